//! Addresses of NBD exports, as the [NBD URI specification][uri] has them.
//!
//! | address | what |
//! | --- | --- |
//! | `nbd://HOST[:PORT]/EXPORT` | by TCP; port 10809 where none is named |
//! | `nbds://HOST[:PORT]/EXPORT` | by TLS over TCP |
//! | `nbd+unix:///EXPORT?socket=PATH` | by a UNIX socket, in the abstract namespace where the path begins with `%00` |
//! | `nbds+unix:///EXPORT?socket=PATH` | by TLS over a UNIX socket |
//!
//! With TLS come `tls-certificates=FOLDER` (what libnbd, nbdkit and qemu call such a folder: `ca-cert.pem`,
//! `client-cert.pem`, `client-key.pem`), `tls-hostname=NAME`, `tls-type=x509` and `tls-verify-peer=1`. What
//! would make TLS less than it says (`tls-verify-peer=0`, anonymous keys) and parameters that nobody knows
//! are refused.
//!
//! [uri]: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use super::{decode_percent, encode_percent, parse_query, usage};
use crate::error::{Error, Result};

/// The port that is meant where the address of an NBD server names none, as IANA has assigned it.
pub const DEFAULT_NBD_PORT: u16 = 10809;

/// The longest name of an export, in bytes, as the NBD protocol has it.
const LONGEST_EXPORT: usize = 4096;

/// An NBD export, or with an empty name a server's default export.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NbdAddress {
    /// Where its server is.
    pub place: NbdPlace,
    /// The export's name there, which may be empty.
    pub export: String,
    /// How TLS is to be spoken; none is not at all.
    pub tls: Option<NbdTls>,
}

/// Where an NBD server can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NbdPlace {
    /// By TCP.
    Tcp {
        /// A name or an address, an IPv6 address without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// By a UNIX socket at this path, or in the abstract namespace where it begins with a NUL.
    Unix(PathBuf),
}

/// What the address of an NBD export says of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct NbdTls {
    /// The folder with `ca-cert.pem`, and `client-cert.pem` and `client-key.pem` where the client has to say
    /// who it is.
    pub certificates: Option<PathBuf>,
    /// The name that the server's certificate is to be for, instead of the host.
    pub hostname: Option<String>,
}

impl NbdAddress {
    /// The name that the server's certificate is to be for, where TLS is spoken and there is one: a UNIX
    /// socket has none by itself.
    pub fn server_name(&self) -> Option<&str> {
        let named = self.tls.as_ref()?.hostname.as_deref();
        named.or(match &self.place {
            NbdPlace::Tcp { host, .. } => Some(host),
            NbdPlace::Unix(_) => None,
        })
    }
}

/// Whether `text` is meant to be the address of an NBD export.
pub(super) fn is_meant(text: &str) -> bool {
    ["nbd:", "nbds:", "nbd+", "nbds+"].iter().any(|scheme| text.starts_with(scheme))
}

impl FromStr for NbdAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| usage(format!("'{text}': {why}"));
        let (scheme, rest) = text.split_once("://").unwrap_or((text, ""));
        let (by_unix, by_tls) = match scheme {
            "nbd" => (false, false),
            "nbds" => (false, true),
            "nbd+unix" => (true, false),
            "nbds+unix" => (true, true),
            _ => return Err(refuse("known are nbd://, nbds://, nbd+unix:// and nbds+unix://")),
        };
        if rest.contains('#') {
            return Err(refuse("write # as %23"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode_percent(export)?;
        if export.len() > LONGEST_EXPORT || export.contains('\0') {
            return Err(refuse("the name of an export has up to 4096 bytes, and none of them is NUL"));
        }
        let parameters = Parameters::parse(query).map_err(|error| error.context(format!("'{text}'")))?;
        let place = match (by_unix, parameters.socket) {
            (true, Some(_)) if !authority.is_empty() => {
                return Err(refuse("a UNIX socket has no host: write nbd+unix:///EXPORT?socket=PATH"));
            }
            (true, Some(path)) => NbdPlace::Unix(path.into()),
            (true, None) => return Err(refuse("it names no socket: write ?socket=PATH")),
            (false, Some(_)) => return Err(refuse("a socket is meant with nbd+unix:// alone")),
            (false, None) => parse_host(authority).map_err(|error| error.context(format!("'{text}'")))?,
        };
        let tls = match (by_tls, parameters.tls) {
            (true, tls) => Some(tls.unwrap_or_default()),
            (false, Some(_)) => return Err(refuse("TLS is spoken with nbds:// and nbds+unix:// alone")),
            (false, None) => None,
        };
        Ok(Self { place, export, tls })
    }
}

/// What stands behind the `?`.
struct Parameters {
    socket: Option<String>,
    tls: Option<NbdTls>,
}

impl Parameters {
    fn parse(query: &str) -> Result<Self> {
        let mut parameters = Self { socket: None, tls: None };
        let mut seen = Vec::new();
        for (key, value) in parse_query(query)? {
            if seen.contains(&key) {
                return Err(usage(format!("it says {key}= twice")));
            }
            seen.push(key);
            if value.is_empty() {
                return Err(usage(format!("{key}= has no value")));
            }
            if key.starts_with("tls-") {
                parse_tls(key, value, parameters.tls.get_or_insert_default())?;
            } else if key == "socket" {
                parameters.socket = Some(value);
            } else {
                let text = format!(
                    "there is no parameter '{key}'; known are socket, tls-certificates, tls-hostname, \
                     tls-type and tls-verify-peer"
                );
                return Err(usage(text));
            }
        }
        Ok(parameters)
    }
}

fn parse_tls(key: &str, value: String, tls: &mut NbdTls) -> Result<()> {
    match (key, value.as_str()) {
        ("tls-certificates", _) => tls.certificates = Some(value.into()),
        ("tls-hostname", _) => tls.hostname = Some(value),
        ("tls-type", "x509") | ("tls-verify-peer", "1") => {}
        ("tls-type", "anon" | "psk") | ("tls-psk-file" | "tls-username", _) => {
            return Err(usage("TLS is spoken with certificates alone (tls-type=x509)".into()));
        }
        ("tls-verify-peer", "0") => {
            let text = "the server's certificate is always verified: name a folder with its authority in \
                        ca-cert.pem by tls-certificates=, and its name by tls-hostname=";
            return Err(usage(text.into()));
        }
        _ => {
            let text = format!(
                "{key}={value} means nothing; known are tls-certificates=FOLDER, tls-hostname=NAME, \
                 tls-type=x509 and tls-verify-peer=1"
            );
            return Err(usage(text));
        }
    }
    Ok(())
}

fn parse_host(authority: &str) -> Result<NbdPlace> {
    if authority.contains('@') {
        return Err(usage("a user's name is of no use: TLS is spoken with certificates alone".into()));
    }
    let (host, port) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, port) =
            bracketed.split_once(']').ok_or_else(|| usage("the bracket of the host is not closed".into()))?;
        let host = decode_percent(host)?;
        let address = host.split_once('%').map_or(host.as_str(), |(address, _zone)| address);
        if address.parse::<Ipv6Addr>().is_err() {
            return Err(usage(format!("'{host}' is no IPv6 address")));
        }
        let port = match port.strip_prefix(':') {
            Some(port) => port,
            None if port.is_empty() => "",
            None => return Err(usage(format!("'{port}' behind the host is no port"))),
        };
        (host, port)
    } else {
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        if port.contains(':') {
            return Err(usage("an IPv6 address is written in brackets".into()));
        }
        (decode_percent(host)?, port)
    };
    if host.is_empty() || host.contains('\0') {
        return Err(usage("it names no host: write nbd://HOST/EXPORT".into()));
    }
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port {
        "" => DEFAULT_NBD_PORT,
        _ => port
            .parse()
            .ok()
            .filter(|_| is_number)
            .ok_or_else(|| usage(format!("'{port}' is no port: there are those up to 65535")))?,
    };
    Ok(NbdPlace::Tcp { host, port })
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        let export = encode_percent(&self.export, "-._~/");
        let mut parameters = Vec::new();
        match &self.place {
            NbdPlace::Tcp { host, port } => {
                let bare = encode_percent(host, "-._~:");
                let host = if host.contains(':') { format!("[{bare}]") } else { bare };
                write!(f, "{scheme}://{host}:{port}")?;
                if !export.is_empty() {
                    write!(f, "/{export}")?;
                }
            }
            NbdPlace::Unix(path) => {
                write!(f, "{scheme}+unix:///{export}")?;
                parameters.push(("socket", path.to_string_lossy().into_owned()));
            }
        }
        if let Some(NbdTls { certificates, hostname }) = &self.tls {
            let certificates = certificates.as_ref().map(|path| path.to_string_lossy().into_owned());
            parameters.extend(certificates.map(|path| ("tls-certificates", path)));
            parameters.extend(hostname.clone().map(|name| ("tls-hostname", name)));
        }
        for (index, (key, value)) in parameters.iter().enumerate() {
            let separator = if index == 0 { '?' } else { '&' };
            write!(f, "{separator}{key}={}", encode_percent(value, "-._~/"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorKind;

    fn tcp(host: &str, port: u16, export: &str) -> NbdAddress {
        let place = NbdPlace::Tcp { host: host.into(), port };
        NbdAddress { place, export: export.into(), tls: None }
    }

    fn unix(path: &str, export: &str) -> NbdAddress {
        NbdAddress { place: NbdPlace::Unix(path.into()), export: export.into(), tls: None }
    }

    #[test]
    fn the_examples_of_the_specification_mean_what_it_says() {
        for (text, address) in [
            ("nbd://example.com/disk", tcp("example.com", 10809, "disk")),
            ("nbd+unix:///disk?socket=sock", unix("sock", "disk")),
            ("nbd://example.com/", tcp("example.com", 10809, "")),
            ("nbd://example.com", tcp("example.com", 10809, "")),
            ("nbd://example.com//disk", tcp("example.com", 10809, "/disk")),
            ("nbd://example.com/hello%20world", tcp("example.com", 10809, "hello world")),
            ("nbd://example.com:10809/export", tcp("example.com", 10809, "export")),
            ("nbd+unix:///export?socket=nbd.sock", unix("nbd.sock", "export")),
            ("nbd+unix:///?socket=%00/abstract", unix("\0/abstract", "")),
        ] {
            assert_eq!(text.parse::<NbdAddress>().unwrap(), address, "{text}");
        }
    }

    #[test]
    fn hosts_ports_and_exports_of_all_sorts_are_read_and_written_alike() {
        for (text, address) in [
            ("nbd://127.0.0.1:1", tcp("127.0.0.1", 1, "")),
            ("nbd://[::1]:10809/a/b", tcp("::1", 10809, "a/b")),
            ("nbd://[fe80::1%25eth0]:9", tcp("fe80::1%eth0", 9, "")),
            ("nbd://h:0/%3F%26%23%2B%E2%82%AC", tcp("h", 0, "?&#+€")),
            ("nbd+unix://?socket=/run/a%20b%26c", unix("/run/a b&c", "")),
        ] {
            let parsed: NbdAddress = text.parse().unwrap();
            assert_eq!(parsed, address, "{text}");
            assert_eq!(parsed.to_string().parse::<NbdAddress>().unwrap(), address, "{text}");
        }
        assert_eq!("nbd://[::1]".parse::<NbdAddress>().unwrap().to_string(), "nbd://[::1]:10809");
        assert_eq!("nbd://h:/x".parse::<NbdAddress>().unwrap().to_string(), "nbd://h:10809/x");
        assert_eq!(unix("/run/s", "").to_string(), "nbd+unix:///?socket=/run/s");
        assert_eq!("nbd://h/a+b?".parse::<NbdAddress>().unwrap().export, "a+b", "a plus is a plus");
    }

    #[test]
    fn what_is_said_of_tls_is_kept() {
        let all = "nbds://h:1/x?tls-type=x509&tls-verify-peer=1&tls-certificates=/c&tls-hostname=n";
        let address: NbdAddress = all.parse().unwrap();
        let tls = NbdTls { certificates: Some("/c".into()), hostname: Some("n".into()) };
        assert_eq!(address.tls, Some(tls));
        assert_eq!(address.server_name(), Some("n"));
        assert_eq!(address.to_string(), "nbds://h:1/x?tls-certificates=/c&tls-hostname=n");

        assert_eq!("nbds://h".parse::<NbdAddress>().unwrap().server_name(), Some("h"));
        assert_eq!("nbd://h".parse::<NbdAddress>().unwrap().server_name(), None, "TLS is not spoken");
        let unix: NbdAddress = "nbds+unix:///x?socket=s".parse().unwrap();
        assert_eq!((unix.tls.as_ref(), unix.server_name()), (Some(&NbdTls::default()), None));
        assert_eq!(unix.to_string(), "nbds+unix:///x?socket=s");
    }

    #[test]
    fn what_is_no_address_is_refused_with_a_hint() {
        let long = format!("nbd://h/{}", "x".repeat(4097));
        for (text, hint) in [
            ("nbd:h", "known are nbd://"),
            ("nbd+tcp://h", "known are nbd://"),
            ("nbd+vsock://1", "known are nbd://"),
            ("nbd:///x", "names no host"),
            ("nbd://", "names no host"),
            ("nbd://:9/x", "names no host"),
            ("nbd://h:99999/x", "no port"),
            ("nbd://h:+1/x", "no port"),
            ("nbd://h:x/x", "no port"),
            ("nbd://::1/x", "in brackets"),
            ("nbd://[::1/x", "not closed"),
            ("nbd://[::1]9/x", "no port"),
            ("nbd://[h]/x", "no IPv6 address"),
            ("nbd://me@h/x", "user's name"),
            ("nbd://h/x#y", "%23"),
            ("nbd://h/%zz", "hexadecimal"),
            ("nbd://h/%ff", "not UTF-8"),
            ("nbd://h/a%00b", "NUL"),
            (&long, "4096 bytes"),
            ("nbd://h/x?socket=s", "nbd+unix:// alone"),
            ("nbd://h/x?tls-type=x509", "nbds://"),
            ("nbd://h/x?size=4", "no parameter 'size'"),
            ("nbd://h/x?x-trial=4", "no parameter 'x-trial'"),
            ("nbd+unix:///x", "names no socket"),
            ("nbd+unix:///x?socket=", "no value"),
            ("nbd+unix:///x?socket=a&socket=b", "twice"),
            ("nbd+unix://h/x?socket=a", "no host"),
            ("nbds://h/x?tls-verify-peer=0", "always verified"),
            ("nbds://h/x?tls-verify-peer=2", "means nothing"),
            ("nbds://h/x?tls-type=psk", "certificates alone"),
            ("nbds://h/x?tls-psk-file=f", "certificates alone"),
            ("nbds://h/x?tls-else=f", "means nothing"),
        ] {
            let error = text.parse::<NbdAddress>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
            assert!(error.to_string().contains(hint), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_again(
            host in "[a-z0-9][a-z0-9.-]{0,20}|::[0-9a-f]{1,4}",
            port: u16,
            path in "[^\0]{1,30}|\0[^\0]{1,20}",
            export in "[^\0]{0,60}",
            by_unix: bool,
            tls in proptest::option::of(("[^\0]{1,20}", "[a-z.]{1,20}")),
        ) {
            let place = if by_unix { NbdPlace::Unix(path.into()) } else { NbdPlace::Tcp { host, port } };
            let tls = tls.map(|(folder, name)| NbdTls { certificates: Some(folder.into()), hostname: Some(name) });
            let address = NbdAddress { place, export, tls };
            prop_assert_eq!(address.to_string().parse::<NbdAddress>().unwrap(), address);
        }

        #[test]
        fn nothing_that_is_written_breaks_the_parser(text in "nbds?(\\+unix)?://.{0,80}") {
            let _ = text.parse::<NbdAddress>();
        }
    }
}
