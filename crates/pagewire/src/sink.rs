//! Where the answer to a read goes, whoever gives it: a store, or the session with a peer.

use std::fmt;

use pagewire_core::chunk::ByteRange;

use crate::error::Result;

/// Where an answer goes.
pub trait Sink: Send + Sync {
    /// A part of the answer. Parts come in any order, on any thread, and together cover the request
    /// exactly when it succeeds.
    fn part(&self, part: Part<'_>);

    /// The end of the answer; nothing follows. On an error some parts may have come.
    fn done(&self, result: Result<()>);
}

/// A part of an answer.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// The bytes of a range that begins at `offset`.
    Bytes {
        /// Where in the region.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A range that holds zeroes.
    Zero(ByteRange),
}

impl Part<'_> {
    /// Which bytes of the region the part gives.
    pub fn range(&self) -> ByteRange {
        match self {
            Part::Bytes { offset, bytes } => ByteRange::new(*offset, offset + bytes.len() as u64),
            Part::Zero(range) => *range,
        }
    }
}

impl<'a> Part<'a> {
    /// What the part gives of `range`, which lies within it.
    pub(crate) fn cut(self, range: ByteRange) -> Part<'a> {
        match self {
            Part::Bytes { offset, bytes } => {
                let from = (range.start - offset) as usize;
                Part::Bytes { offset: range.start, bytes: &bytes[from..from + range.len() as usize] }
            }
            Part::Zero(_) => Part::Zero(range),
        }
    }
}

impl fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if matches!(self, Part::Zero(_)) { "Zero" } else { "Bytes" };
        write!(f, "{name}({})", self.range())
    }
}
