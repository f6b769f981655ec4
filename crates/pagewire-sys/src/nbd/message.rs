//! Messages of generic netlink as bytes, without a socket.
//!
//! A message is a header, a generic header (command and version), and attributes: each with its length and type, and
//! aligned to four bytes. Integers are as the processor has them.

use std::io;

use crate::syscall::invalid;

/// Bytes of a header, of a generic header, and of an attribute's header.
const HEADER: usize = 16;
const GENERIC: usize = 4;
const ATTRIBUTE: usize = 4;

/// All begins at multiples of so many bytes.
const ALIGNMENT: usize = 4;

/// The bit of an attribute's type that says that it holds attributes, and all bits that are no type.
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const TYPE: u16 = libc::NLA_TYPE_MASK as u16;

/// A request that is being put together.
#[derive(Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    /// One to a family, to be acknowledged.
    pub(super) fn new(family: u16, command: u8, version: u8, sequence: u32) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut bytes = vec![0; 4];
        bytes.extend(family.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        // The kernel knows whom it is from.
        bytes.extend([0; 4]);
        bytes.extend([command, version, 0, 0]);
        Self(bytes)
    }

    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(super) fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A text, with the zero that ends it.
    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        self.bytes(kind, &[text.as_bytes(), &[0]].concat())
    }

    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (ATTRIBUTE + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// An attribute that holds those which `fill` adds.
    pub(super) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let at = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((kind | NESTED).to_ne_bytes());
        let mut filled = fill(self);
        let length = (filled.0.len() - at) as u16;
        filled.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    /// The message as it is sent.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// A message that came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// A request has ended, with this error; 0 is none.
    End { sequence: u32, error: i32 },
    /// A family says something.
    Generic { family: u16, sequence: u32, command: u8, attributes: &'a [u8] },
    /// Anything else.
    Other,
}

/// The messages of what was received with one call.
///
/// # Errors
///
/// `InvalidData` where the kernel's bytes are no messages.
pub(super) fn messages(mut bytes: &[u8]) -> io::Result<Vec<Message<'_>>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = number(bytes, 0)? as usize;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER).ok_or_else(malformed)?;
        let kind = short(message, 4)?;
        let sequence = number(message, 8)?;
        let body = &message[HEADER..];
        found.push(match i32::from(kind) {
            libc::NLMSG_ERROR => Message::End { sequence, error: -number(body, 0)?.cast_signed() },
            kind if kind < libc::NLMSG_MIN_TYPE => Message::Other,
            _ => {
                let attributes = body.get(GENERIC..).ok_or_else(malformed)?;
                Message::Generic { family: kind as u16, sequence, command: body[0], attributes }
            }
        });
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    Ok(found)
}

/// The attributes in `bytes`: their types and values.
///
/// # Errors
///
/// `InvalidData` where the kernel's bytes are no attributes.
pub(super) fn attributes(mut bytes: &[u8]) -> io::Result<Vec<(u16, &[u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(short(bytes, 0)?);
        let kind = short(bytes, 2)? & TYPE;
        found.push((kind, bytes.get(ATTRIBUTE..length).ok_or_else(malformed)?));
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    Ok(found)
}

/// The value of the first attribute of a type.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> io::Result<Option<&[u8]>> {
    Ok(attributes(bytes)?.into_iter().find(|(found, _)| *found == kind).map(|(_, value)| value))
}

/// The two bytes at an offset.
pub(super) fn short(bytes: &[u8], at: usize) -> io::Result<u16> {
    let bytes = bytes.get(at..at + 2).ok_or_else(malformed)?;
    Ok(u16::from_ne_bytes(bytes.try_into().expect("two bytes")))
}

/// The four bytes at an offset.
pub(super) fn number(bytes: &[u8], at: usize) -> io::Result<u32> {
    let bytes = bytes.get(at..at + 4).ok_or_else(malformed)?;
    Ok(u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, invalid("the kernel's answer cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_as_what_it_was_made_of() {
        let request = Request::new(30, 1, 2, 7)
            .u32(1, 5)
            .nested(7, |request| request.nested(1, |request| request.u32(1, 11)))
            .text(10, "abcd")
            .u64(2, 1 << 40)
            .finish();
        assert_eq!(request.len() % ALIGNMENT, 0);
        let messages = messages(&request).unwrap();
        let [Message::Generic { family: 30, sequence: 7, command: 1, attributes: found }] = messages[..]
        else {
            panic!("{messages:?}");
        };
        let found = attributes(found).unwrap();
        let kinds: Vec<u16> = found.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [1, 7, 10, 2]);
        assert_eq!(found[0].1, 5_u32.to_ne_bytes());
        let item = attribute(found[1].1, 1).unwrap().unwrap();
        assert_eq!(attribute(item, 1).unwrap(), Some(&11_u32.to_ne_bytes()[..]));
        assert_eq!(found[2].1, b"abcd\0");
        assert_eq!(found[3].1, (1_u64 << 40).to_ne_bytes());
        assert_eq!(attribute(item, 2).unwrap(), None);
    }

    #[test]
    fn an_end_has_its_error() {
        let mut bytes = Request::new(libc::NLMSG_ERROR as u16, 0, 0, 3).finish();
        bytes.truncate(HEADER);
        bytes.extend((-libc::EBUSY).to_ne_bytes());
        bytes[..4].copy_from_slice(&20_u32.to_ne_bytes());
        assert_eq!(messages(&bytes).unwrap(), [Message::End { sequence: 3, error: libc::EBUSY }]);
    }

    #[test]
    fn what_is_cut_off_is_an_error_and_no_panic() {
        let request = Request::new(30, 1, 1, 1).u32(1, 5).text(10, "name").finish();
        for length in 1..request.len() {
            assert!(messages(&request[..length]).is_err(), "{length}");
        }
        let Message::Generic { attributes: found, .. } = messages(&request).unwrap().remove(0) else {
            panic!("it is one");
        };
        for length in [1, 3, 5, 9, 10, 15] {
            assert!(attributes(&found[..length]).is_err(), "{length}");
        }
        // An attribute shorter than its header, which would be read for ever.
        assert!(attributes(&[0, 0, 1, 0]).is_err());
        assert!(attributes(&[3, 0, 1, 0]).is_err());
    }
}
