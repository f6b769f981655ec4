//! Addresses of stores and peers, and sizes, as they are written on the command line, in a library
//! call and in a configuration file.
//!
//! | address | what |
//! | --- | --- |
//! | `mem:SIZE` | zeroed memory of this process |
//! | `file:PATH` | a file or block device; `?size=SIZE` creates a sparse file, `?capacity=SIZE` lets it grow, `?journal=PATH` or `?journal=off` says where its journal is |
//! | `pw://HOST:PORT/NAME` | a region that a peer offers |
//! | `pw+tls://HOST:PORT/NAME` | the same through TLS |
//! | `pw+unix://SOCKET/NAME` | the same over a UNIX socket, its path percent-encoded |
//! | `nbd://HOST[:PORT]/EXPORT` | an NBD export; also by `nbds://` and `nbd+unix:///EXPORT?socket=PATH` |

mod nbd;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

pub use nbd::{DEFAULT_NBD_PORT, NbdAddress, NbdPlace, NbdTls};

/// The port that is meant where an address names none.
pub const DEFAULT_PORT: u16 = 7070;

/// Where a region's bytes live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAddress {
    /// Zeroed memory of this process.
    Memory {
        /// How many bytes.
        size: u64,
    },
    /// A file or block device.
    File(FileAddress),
    /// A region that a peer offers.
    Remote(RegionAddress),
    /// An NBD export.
    Nbd(NbdAddress),
}

/// A file or block device, and what is to be known to use it as a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileAddress {
    /// Where it is.
    pub path: PathBuf,
    /// The size to create it with where it does not exist.
    pub size: Option<u64>,
    /// The length that it may grow to; its length where none is given.
    pub capacity: Option<u64>,
    /// Where its journal is.
    pub journal: JournalPlace,
}

impl FileAddress {
    /// The file at `path`, as it is.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), size: None, capacity: None, journal: JournalPlace::Beside }
    }
}

/// Where the journal of a file is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum JournalPlace {
    /// Beside it, under its name with `.pagewire` behind. A device has none.
    #[default]
    Beside,
    /// At this path.
    At(PathBuf),
    /// Nowhere: writes go through, and a flush is not all or nothing.
    Off,
}

/// A region that a peer offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionAddress {
    /// Which peer.
    pub peer: PeerAddress,
    /// The region's name there.
    pub name: String,
}

/// A Pagewire process that can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerAddress {
    /// By TCP: `HOST:PORT`, an IPv6 host in brackets.
    Tcp(String),
    /// By TLS over TCP: `HOST:PORT`, where the certificate is to be for the host.
    Tls(String),
    /// By a UNIX socket at this path.
    Unix(PathBuf),
}

fn usage(what: String) -> Error {
    Error::new(ErrorKind::Usage, what)
}

/// The number of bytes that `text` stands for: a number with nothing, `B`, `K`, `KiB`, `M`, `MiB`,
/// `G`, `GiB`, `T` or `TiB` behind it; all units are powers of 1024.
///
/// # Errors
///
/// [`ErrorKind::Usage`] for anything else, and for sizes beyond 4 EiB.
///
/// ```
/// assert_eq!(pagewire::address::parse_size("64KiB").unwrap(), 65536);
/// assert!(pagewire::address::parse_size("64KB").is_err());
/// ```
pub fn parse_size(text: &str) -> Result<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(usage(format!("'{text}' is no size: write a number with KiB, MiB, GiB or TiB"))),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|&bytes| bytes <= 1 << 62)
        .ok_or_else(|| usage(format!("'{text}' is no size, or one that is too large")))
}

/// A size as people read it: `1.5 GiB`.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value.fract() == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

impl FromStr for StoreAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(size) = text.strip_prefix("mem:") {
            return Ok(StoreAddress::Memory { size: parse_size(size)? });
        }
        if let Some(rest) = text.strip_prefix("file:") {
            return parse_file(rest);
        }
        if text.starts_with("pw://") || text.starts_with("pw+") {
            return text.parse().map(StoreAddress::Remote);
        }
        if nbd::is_meant(text) {
            return text.parse().map(StoreAddress::Nbd);
        }
        match text.split_once(':') {
            Some((scheme, _)) if !scheme.is_empty() && !scheme.contains('/') => Err(usage(format!(
                "'{text}': there is no kind of store '{scheme}:'; known are mem:, file:, pw://, \
                 pw+tls://, pw+unix://, nbd://, nbds:// and nbd+unix://"
            ))),
            _ => Err(usage(format!("'{text}' is no address: write file:{text} for a file"))),
        }
    }
}

fn parse_file(rest: &str) -> Result<StoreAddress> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if path.is_empty() {
        return Err(usage(format!("'file:{rest}' names no file")));
    }
    let mut file = FileAddress::new(decode_percent(path)?);
    for (key, value) in parse_query(query)? {
        match key {
            "size" => file.size = Some(parse_size(&value)?),
            "capacity" => file.capacity = Some(parse_size(&value)?),
            "journal" if value == "off" => file.journal = JournalPlace::Off,
            "journal" if !value.is_empty() => file.journal = JournalPlace::At(value.into()),
            "journal" => return Err(usage(format!("'file:{rest}': write journal=PATH or journal=off"))),
            _ => {
                let text = format!(
                    "'file:{rest}': there is no option '{key}'; known are size, capacity and journal"
                );
                return Err(usage(text));
            }
        }
    }
    Ok(StoreAddress::File(file))
}

fn parse_query(query: &str) -> Result<Vec<(&str, String)>> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((key, decode_percent(value)?))
        })
        .collect()
}

impl FromStr for RegionAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (peer, name) = parse_peer(text)?;
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
            usage(format!(
                "'{text}' names no region: write {}/NAME (`pagewire list` tells the names)",
                text.trim_end_matches('/')
            ))
        })?;
        check_name(&name)?;
        Ok(Self { peer, name })
    }
}

impl FromStr for PeerAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match parse_peer(text)? {
            (peer, None) => Ok(peer),
            (peer, Some(name)) if name.is_empty() => Ok(peer),
            (peer, Some(_)) => Err(usage(format!("'{text}' names a region: write {peer} for the peer"))),
        }
    }
}

fn parse_peer(text: &str) -> Result<(PeerAddress, Option<String>)> {
    let (scheme, rest) = text
        .split_once("://")
        .ok_or_else(|| usage(format!("'{text}' is no peer: write pw://HOST:PORT or pw+unix://SOCKET")))?;
    if !["pw", "pw+tls", "pw+unix"].contains(&scheme) {
        return Err(usage(format!("'{text}': known are pw://, pw+tls:// and pw+unix://, not {scheme}://")));
    }
    let (place, name) = match rest.split_once('/') {
        Some((place, name)) => (place, Some(decode_percent(name)?)),
        None => (rest, None),
    };
    if scheme == "pw+unix" {
        let path = decode_percent(place)?;
        if path.is_empty() {
            return Err(usage(format!("'{text}' names no socket: write its path percent-encoded, / as %2F")));
        }
        return Ok((PeerAddress::Unix(path.into()), name));
    }
    let (host, port) = split_port(place).ok_or_else(|| usage(format!("'{text}' names no host and port")))?;
    let place = format!("{host}:{port}");
    Ok((if scheme == "pw+tls" { PeerAddress::Tls(place) } else { PeerAddress::Tcp(place) }, name))
}

fn split_port(place: &str) -> Option<(&str, u16)> {
    let (host, port) = match place.rsplit_once(':') {
        // The colons of an IPv6 address in brackets are not followed by a port.
        Some((_, port)) if port.ends_with(']') => (place, DEFAULT_PORT),
        Some((host, port)) => (host, port.parse().ok()?),
        None => (place, DEFAULT_PORT),
    };
    (!host.is_empty()).then_some((host, port))
}

/// Whether a region may have this name.
///
/// # Errors
///
/// [`ErrorKind::Usage`] for names that are empty, longer than 255 bytes, or hold control characters.
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > pagewire_core::wire::MAX_NAME {
        return Err(usage(format!("a region's name has 1 to 255 bytes, not {}", name.len())));
    }
    if name.chars().any(char::is_control) {
        return Err(usage(format!("the name {name:?} holds control characters")));
    }
    Ok(())
}

fn decode_percent(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
            let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
            bytes.push(byte.ok_or_else(|| usage(format!("'{text}': two hexadecimal digits follow a %")))?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).map_err(|_| usage(format!("'{text}' is not UTF-8")))
}

pub(crate) fn encode_percent(text: &str, keep: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || keep.as_bytes().contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAddress::Tcp(place) => write!(f, "pw://{place}"),
            PeerAddress::Tls(place) => write!(f, "pw+tls://{place}"),
            PeerAddress::Unix(path) => {
                write!(f, "pw+unix://{}", encode_percent(&path.to_string_lossy(), "-._~"))
            }
        }
    }
}

impl fmt::Display for RegionAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.peer, encode_percent(&self.name, "-._~/"))
    }
}

impl fmt::Display for FileAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, size, capacity, journal } = self;
        let encode = |path: &Path| encode_percent(&path.to_string_lossy(), "-._~/ ,+=@:");
        write!(f, "file:{}", encode(path))?;
        let journal = match journal {
            JournalPlace::Beside => None,
            // A file of this name is told from the word by its folder.
            JournalPlace::At(path) if path == Path::new("off") => Some("./off".into()),
            JournalPlace::At(path) => Some(encode(path)),
            JournalPlace::Off => Some("off".into()),
        };
        let options = [
            size.map(|size| format!("size={size}")),
            capacity.map(|capacity| format!("capacity={capacity}")),
            journal.map(|journal| format!("journal={journal}")),
        ];
        let options: Vec<String> = options.into_iter().flatten().collect();
        if options.is_empty() { Ok(()) } else { write!(f, "?{}", options.join("&")) }
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreAddress::Memory { size } => write!(f, "mem:{size}"),
            StoreAddress::File(file) => file.fmt(f),
            StoreAddress::Remote(region) => region.fmt(f),
            StoreAddress::Nbd(export) => export.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [
            "mem:65536",
            "file:/var/lib/a%3Fb.db",
            "file:image.raw?size=1073741824",
            "file:db?size=4096&capacity=8192&journal=/var/j%26k",
            "file:db?journal=off",
            "pw://127.0.0.1:7070/db",
            "pw://[::1]:99/a/b",
            "pw+tls://db.example:7070/db",
            "pw+unix://%2Frun%2Fpagewire.sock/db%25",
            "nbd://127.0.0.1:10809/db",
            "nbds+unix:///db?socket=/run/nbd.sock&tls-hostname=db.example",
        ] {
            let address: StoreAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.to_string().parse::<StoreAddress>().unwrap(), address);
        }
        assert_eq!("pw://host".parse::<PeerAddress>().unwrap(), PeerAddress::Tcp("host:7070".into()));
        assert_eq!("pw+tls://host".parse::<PeerAddress>().unwrap(), PeerAddress::Tls("host:7070".into()));
        assert_eq!("pw://[::1]/".parse::<PeerAddress>().unwrap(), PeerAddress::Tcp("[::1]:7070".into()));
    }

    #[test]
    fn what_is_no_address_is_refused_with_a_hint() {
        for (text, hint) in [
            ("image.raw", "write file:image.raw"),
            ("/a/b:c", "write file:/a/b:c"),
            ("ftp://x", "no kind of store 'ftp:'"),
            ("mem:", "no size"),
            ("mem:12QB", "no size"),
            ("mem:99999999999TiB", "too large"),
            ("file:", "names no file"),
            ("file:x?sizes=1", "no option 'sizes'"),
            ("file:x?journal=", "journal=PATH"),
            ("file:x?capacity=1QB", "no size"),
            ("file:x?size=%zz", "hexadecimal"),
            ("pw://host:1", "names no region"),
            ("pw://host:1/", "names no region"),
            ("pw://:1/x", "no host"),
            ("pw://host:99999/x", "no host and port"),
            ("pw+tcp://host/x", "known are"),
            ("pw+tls://:1/x", "no host"),
            ("pw+unix:///x", "names no socket"),
            ("pw://host/%00", "control characters"),
            ("nbd+tcp://host/x", "known are nbd://"),
        ] {
            let error = text.parse::<StoreAddress>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
            assert!(error.to_string().contains(hint), "{text}: {error}");
        }
        assert!("pw://host:1/x".parse::<PeerAddress>().is_err());
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("7B", 7), ("1K", 1024), ("3 MiB", 3 << 20), ("2G", 2 << 30), ("1TiB", 1 << 40)]
        {
            assert_eq!(parse_size(text).unwrap(), bytes);
        }
        assert_eq!(format_size(1536), "1.5 KiB");
        assert_eq!(format_size(64 << 20), "64 MiB");
        assert_eq!(format_size(12), "12 B");
    }
}
