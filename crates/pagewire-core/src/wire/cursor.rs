//! Reading and writing the fields of a body. Integers are little-endian; a string is a `u16` length
//! and that many bytes of UTF-8; a list is a `u32` count and its elements.

use crate::chunk::{ByteRange, PAGE_SIZE};

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

    /// A number in as few bytes as it needs, seven bits in each, the lowest first (LEB128).
    fn short(&mut self) -> Result<u64, Malformed> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.bad("a number of more than 64 bits"))
    }

    /// A set of pages of a region of `length` bytes, by the ranges of its bytes.
    pub(super) fn pages(&mut self, length: u64) -> Result<Vec<ByteRange>, Malformed> {
        let count = self.count(2, super::MAX_RANGES)?;
        let mut end = 0u64;
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            let (gap, pages) = (self.short()?, self.short()?);
            let next = end.checked_add(gap).and_then(|start| Some((start, start.checked_add(pages)?)));
            let Some((start, after)) = next.filter(|(_, after)| *after <= length.div_ceil(PAGE_SIZE)) else {
                return Err(self.bad("a page is behind the end of the region"));
            };
            if pages == 0 || (gap == 0 && end > 0) {
                return Err(self.bad("runs of pages that are empty, or one"));
            }
            end = after;
            ranges.push(ByteRange::of_pages(start..after).clamp_to(length));
        }
        Ok(ranges)
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

fn put_short(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Pages, by ranges in order and apart: how many lie between one run and the next, and how many it has. Most runs are short and near each
/// other, and take two bytes.
pub(super) fn put_pages(out: &mut Vec<u8>, ranges: &[ByteRange]) {
    debug_assert!(ranges.len() <= super::MAX_RANGES);
    out.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
    let mut end = 0;
    for range in ranges {
        let (start, after) = (range.start / PAGE_SIZE, range.end.div_ceil(PAGE_SIZE));
        put_short(out, start - end);
        put_short(out, after - start);
        end = after;
    }
}
