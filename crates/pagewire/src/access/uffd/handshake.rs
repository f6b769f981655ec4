//! Firecracker's handshake: the guest's mappings as JSON, and with them the userfaultfd that serves
//! them, in one message over a UNIX socket.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use pagewire_sys::socket::{peer_pid, receive_with_fds};
use pagewire_sys::uffd::Uffd;
use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};

/// The longest message: a few hundred mappings.
const MAX_MESSAGE: usize = 64 << 10;

/// A piece of a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestMapping {
    /// Where it is in the VM monitor's address space.
    pub base: u64,
    /// How many bytes it has.
    pub size: u64,
    /// Where its bytes are in the region.
    pub offset: u64,
    /// The size of its pages: 4096 or 2 MiB.
    pub page_size: u64,
}

/// A mapping as Firecracker writes it.
#[derive(Deserialize)]
struct Written {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    /// Since version 1.10.
    page_size: Option<u64>,
    /// Before; in spite of its name it holds bytes.
    page_size_kib: Option<u64>,
}

/// What a VM monitor sends.
pub(super) struct Handshake {
    pub(super) mappings: Vec<GuestMapping>,
    pub(super) uffd: Uffd,
    pub(super) pid: u32,
}

/// Receives a handshake.
pub(super) fn receive(stream: &UnixStream) -> Result<Handshake> {
    let failed = |error: std::io::Error| Error::io("the handshake of a VM monitor failed", &error);
    let pid = peer_pid(stream.as_fd()).map_err(failed)?;
    let mut message = vec![0; MAX_MESSAGE];
    let (length, fds) = receive_with_fds(stream.as_fd(), &mut message, 1).map_err(failed)?;
    let Some(uffd) = fds.into_iter().next() else {
        return Err(Error::new(ErrorKind::Protocol, "a VM monitor sent no userfaultfd"));
    };
    let text = std::str::from_utf8(&message[..length])
        .map_err(|_| Error::new(ErrorKind::Protocol, "the mappings of a VM monitor are no text"))?;
    let mappings = parse_mappings(text)?;
    let uffd = Uffd::from_fd(uffd)
        .map_err(|error| Error::io("the descriptor of a VM monitor cannot be used", &error))?;
    Ok(Handshake { mappings, uffd, pid })
}

/// The mappings that a VM monitor describes.
///
/// # Errors
///
/// [`ErrorKind::Protocol`] where the text is none, and where sizes or alignments cannot be.
///
/// ```
/// let text = r#"[{"base_host_virt_addr": 1048576, "size": 8192, "offset": 0, "page_size": 4096}]"#;
/// assert_eq!(pagewire::access::uffd::parse_mappings(text).unwrap()[0].size, 8192);
/// ```
pub fn parse_mappings(text: &str) -> Result<Vec<GuestMapping>> {
    let wrong =
        |text: String| Error::new(ErrorKind::Protocol, format!("the mappings of a VM monitor: {text}"));
    let written: Vec<Written> = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    if written.is_empty() {
        return Err(wrong("there are none".into()));
    }
    let mut mappings = Vec::with_capacity(written.len());
    for mapping in written {
        let page_size = match mapping.page_size.or(mapping.page_size_kib).unwrap_or(4096) {
            // Where somebody has taken the old name at its word.
            4 => 4096,
            2048 => 2 << 20,
            bytes => bytes,
        };
        if page_size != 4096 && page_size != 2 << 20 {
            return Err(wrong(format!("pages of {page_size} bytes; 4096 and 2097152 are possible")));
        }
        let (base, size, offset) = (mapping.base_host_virt_addr, mapping.size, mapping.offset);
        let aligned = [base, size, offset].iter().all(|value| value.is_multiple_of(page_size));
        if !aligned || size == 0 || base.checked_add(size).is_none() || offset.checked_add(size).is_none() {
            return Err(wrong(format!(
                "{size} bytes at {base} from {offset} on are not whole pages of {page_size}"
            )));
        }
        mappings.push(GuestMapping { base, size, offset, page_size });
    }
    mappings.sort_by_key(|mapping| mapping.offset);
    if mappings.windows(2).any(|pair| pair[0].offset + pair[0].size > pair[1].offset) {
        return Err(wrong("two of them share bytes of the region".into()));
    }
    Ok(mappings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(size: &str, rest: &str) -> Result<Vec<GuestMapping>> {
        parse_mappings(&format!(r#"[{{"base_host_virt_addr":4194304,"size":{size},"offset":0{rest}}}]"#))
    }

    #[test]
    fn page_sizes_of_all_versions_are_understood() {
        for (rest, page_size) in [
            ("", 4096),
            (r#","page_size":4096"#, 4096),
            (r#","page_size_kib":4096"#, 4096),
            (r#","page_size_kib":4"#, 4096),
            (r#","page_size":2097152,"page_size_kib":2097152"#, 2 << 20),
            (r#","page_size_kib":2048"#, 2 << 20),
            (r#","something_new":true"#, 4096),
        ] {
            assert_eq!(one("4194304", rest).unwrap()[0].page_size, page_size, "{rest}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(one("4097", "").is_err());
        assert!(one("0", "").is_err());
        assert!(one("4096", r#","page_size":8192"#).is_err());
        assert!(one("4096", r#","page_size":2097152"#).is_err());
        assert!(one("18446744073709547520", "").is_err());
        assert!(parse_mappings("[]").is_err());
        assert!(parse_mappings("GET /").is_err());
        let overlapping = r#"[{"base_host_virt_addr":4096,"size":8192,"offset":0},
                              {"base_host_virt_addr":65536,"size":8192,"offset":4096}]"#;
        assert!(parse_mappings(overlapping).is_err());
    }
}
