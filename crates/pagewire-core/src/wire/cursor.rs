//! Reading and writing the fields of a body. Integers are little-endian; a string is a `u16` length
//! and that many bytes of UTF-8; a list is a `u32` count and its elements.

use crate::chunk::ByteRange;

/// A frame that does not follow the specification. The connection that it came on is not to be
/// trusted any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {frame}: {reason}")]
pub struct Malformed {
    /// Which frame.
    pub frame: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl Malformed {
    pub(super) fn new(frame: &'static str, reason: impl Into<String>) -> Self {
        Self { frame, reason: reason.into() }
    }
}

/// Reads fields from the front of a body.
pub(super) struct Fields<'a> {
    frame: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(frame: &'static str, body: &'a [u8]) -> Self {
        Self { frame, rest: body }
    }

    pub(super) fn bad(&self, reason: impl Into<String>) -> Malformed {
        Malformed::new(self.frame, reason)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        if self.rest.len() < count {
            return Err(self.bad(format!("ends {} bytes early", count - self.rest.len())));
        }
        let (head, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A flag in a byte of its own: 0 or 1.
    pub(super) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.bad(format!("a flag is {other}, not 0 or 1"))),
        }
    }

    pub(super) fn string(&mut self, longest: usize) -> Result<String, Malformed> {
        let length = usize::from(self.u16()?);
        if length > longest {
            return Err(self.bad(format!("a string of {length} bytes, where {longest} are allowed")));
        }
        let bytes = self.bytes(length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.bad("a string is not UTF-8")),
        }
    }

    /// A count of elements that take at least `each` bytes, so that a count never makes the reader
    /// reserve more than the body's own size.
    pub(super) fn count(&mut self, each: usize, most: usize) -> Result<usize, Malformed> {
        let count = self.u32()? as usize;
        if count > most {
            return Err(self.bad(format!("{count} elements, where {most} are allowed")));
        }
        if count * each > self.rest.len() {
            return Err(self.bad(format!("{count} elements do not fit in the body")));
        }
        Ok(count)
    }

    pub(super) fn range(&mut self) -> Result<ByteRange, Malformed> {
        let (start, length) = (self.u64()?, self.u64()?);
        ByteRange::checked(start, length)
            .ok_or_else(|| self.bad("a range passes the end of the address space"))
    }

    pub(super) fn ranges(&mut self) -> Result<Vec<ByteRange>, Malformed> {
        let count = self.count(16, super::MAX_RANGES)?;
        (0..count).map(|_| self.range()).collect()
    }

    /// Everything that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Refuses bytes behind the last field: within one version a body has exactly its fields.
    pub(super) fn end(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(self.bad(format!("{n} bytes follow the last field"))),
        }
    }
}

pub(super) fn put_string(out: &mut Vec<u8>, text: &str, longest: usize) {
    let mut end = text.len().min(longest);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend_from_slice(&(end as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..end]);
}

pub(super) fn put_ranges(out: &mut Vec<u8>, ranges: &[ByteRange]) {
    debug_assert!(ranges.len() <= super::MAX_RANGES);
    out.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
    for range in ranges {
        out.extend_from_slice(&range.start.to_le_bytes());
        out.extend_from_slice(&range.len().to_le_bytes());
    }
}
