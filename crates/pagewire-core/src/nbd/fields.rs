//! Reading and writing fields: integers are big-endian; a string has its length somewhere before it, or
//! is what is left.

use super::MAX_STRING;

/// What does not follow the specification. In most places the connection that it came on is not to be
/// trusted any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}: {reason}")]
pub struct Malformed {
    /// What was to be read.
    pub what: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl Malformed {
    pub(super) fn new(what: &'static str, reason: impl Into<String>) -> Self {
        Self { what, reason: reason.into() }
    }
}

/// Reads fields from the front of some bytes.
pub(super) struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(super) fn bad(&self, reason: impl Into<String>) -> Malformed {
        Malformed::new(self.what, reason)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        if self.rest.len() < count {
            return Err(self.bad(format!("ends {} bytes early", count - self.rest.len())));
        }
        let (head, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Refuses bytes that do not begin with `magic`.
    pub(super) fn magic32(&mut self, magic: u32) -> Result<(), Malformed> {
        match self.u32()? {
            found if found == magic => Ok(()),
            found => Err(self.bad(format!("begins with 0x{found:08x} instead of 0x{magic:08x}"))),
        }
    }

    /// The same for 64 bits.
    pub(super) fn magic64(&mut self, magic: u64) -> Result<(), Malformed> {
        match self.u64()? {
            found if found == magic => Ok(()),
            found => Err(self.bad(format!("begins with 0x{found:016x} instead of 0x{magic:016x}"))),
        }
    }

    /// A string of so many bytes.
    pub(super) fn string(&mut self, length: usize) -> Result<String, Malformed> {
        if length > MAX_STRING {
            return Err(self.bad(format!("a string of {length} bytes, where {MAX_STRING} are allowed")));
        }
        let bytes = self.bytes(length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) if text.contains('\0') => Err(self.bad("a string contains NUL")),
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.bad("a string is not UTF-8")),
        }
    }

    /// A string behind its length in 32 bits.
    pub(super) fn counted_string(&mut self) -> Result<String, Malformed> {
        let length = self.u32()? as usize;
        self.string(length)
    }

    /// A string that is everything that is left.
    pub(super) fn rest_as_string(mut self) -> Result<String, Malformed> {
        self.string(self.rest.len())
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Everything that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Refuses bytes behind the last field.
    pub(super) fn end(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(self.bad(format!("{n} bytes follow the last field"))),
        }
    }
}

/// As much of `text` as a string may have.
pub(super) fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_STRING);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Appends a string behind its length in 32 bits.
pub(super) fn put_counted_string(out: &mut Vec<u8>, text: &str) {
    let text = cut(text);
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}
