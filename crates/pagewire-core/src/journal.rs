//! How a file keeps what was flushed and is not in its place yet: the bytes of a redo journal, which is the
//! file's sidecar too.
//!
//! ```text
//! 0        4096     8192     12288    16384
//! | state 0 | state 1 | commit 0 | commit 1 | A | B | A | B | …
//! ```
//!
//! - Two *state* blocks, written in turns: who the region is, which file its bytes are in, which epoch is in
//!   place there, and who writes. The one with the greater sequence number counts; the other one is what is
//!   left when a write of the first is torn.
//! - Two *commit* blocks: that of epoch `e` is number `e % 2`.
//! - Two *areas*, interleaved in segments of 1 MiB so that either can grow: what is staged for one epoch goes
//!   to one, for the next to the other. An area holds pages of 4096 bytes, and behind them an index of which
//!   pages they are, each with a hash of its bytes.
//!
//! # The order of things
//!
//! 1. What is written is staged in an area. Nothing else knows of it.
//! 2. A flush writes the index and the commit block, and waits once until all of it is durable. From then on
//!    the epoch exists. Should the machine stop before, the block or something that it stands for is missing,
//!    which the hashes tell: the journal was half-written, and is dropped.
//! 3. The state says that the epoch is being *applied*, durably, before the first byte of the file is
//!    replaced. From then on a commit that does not check out is damage and no half-written journal: the file
//!    may be a mix, and must not be used.
//! 4. The pages go to their places, and the file is made durable.
//! 5. The state says that the epoch is in place. This is durable before the area is used again, since the
//!    next epoch's flush, which comes first, makes it so.
//!
//! Numbers are little-endian, hashes are 64-bit xxh3. Every block ends with the hash of what stands before it.

mod commit;
mod state;

use crate::chunk::ByteRange;
use twox_hash::XxHash3_64;

pub use commit::{Commit, Index};
pub use state::{FileId, Stamp, State};

/// The length of a block and of a page, in bytes.
pub const BLOCK: usize = 4096;

/// The version of the format. Others are not read.
pub const VERSION: u32 = 1;

/// Where the areas begin.
const AREAS: u64 = 4 * BLOCK as u64;

/// The length of a segment of an area, in bytes.
pub const SEGMENT: u64 = 1 << 20;

/// Why something is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// Its hash is another one, or it is no such thing at all.
    #[error("not written, or written in part")]
    Hash,
    /// A later program has written it.
    #[error("format version {0}, of which this program knows nothing")]
    Version(u32),
}

/// The hash of a page or of an index.
pub fn hash(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// Where the state block of a sequence number is.
pub fn state_at(sequence: u64) -> u64 {
    sequence % 2 * BLOCK as u64
}

/// Where the commit block of an epoch is.
pub fn commit_at(epoch: u64) -> u64 {
    (2 + epoch % 2) * BLOCK as u64
}

/// One of the two areas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area(u64);

impl Area {
    /// The area of an epoch.
    pub fn of_epoch(epoch: u64) -> Self {
        Self(epoch % 2)
    }

    /// Where in the journal the bytes `range` of the area are, in pieces: where each is, and how long.
    pub fn places(self, range: ByteRange) -> impl Iterator<Item = (u64, u64)> {
        range.split(SEGMENT).map(move |piece| {
            let (segment, within) = (piece.start / SEGMENT, piece.start % SEGMENT);
            (AREAS + (2 * segment + self.0) * SEGMENT + within, piece.len())
        })
    }

    /// Where in the journal a page of the area is.
    pub fn page_at(self, slot: u64) -> u64 {
        let per_segment = SEGMENT / BLOCK as u64;
        AREAS + (2 * (slot / per_segment) + self.0) * SEGMENT + slot % per_segment * BLOCK as u64
    }
}

/// Writes fields into a block.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(magic: &[u8; 8], version: u32) -> Self {
        let mut bytes = Vec::with_capacity(BLOCK);
        bytes.extend_from_slice(magic);
        bytes.extend_from_slice(&version.to_le_bytes());
        Self(bytes)
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn end(mut self) -> [u8; BLOCK] {
        self.0.resize(BLOCK - 8, 0);
        let hash = hash(&self.0);
        self.0.extend_from_slice(&hash.to_le_bytes());
        let mut block = [0; BLOCK];
        block.copy_from_slice(&self.0);
        block
    }
}

/// Reads the fields of a block whose hash is right, so that they are as they were written.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(block: &'a [u8; BLOCK], magic: &[u8; 8], known: u32) -> Result<Self, Damaged> {
        let (fields, sum) = block.split_at(BLOCK - 8);
        if sum != hash(fields).to_le_bytes() || !fields.starts_with(magic) {
            return Err(Damaged::Hash);
        }
        let mut reader = Self(&fields[magic.len()..]);
        let mut version = [0; 4];
        version.copy_from_slice(reader.take(4));
        match u32::from_le_bytes(version) {
            version if version == known => Ok(reader),
            other => Err(Damaged::Version(other)),
        }
    }

    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count);
        self.0 = rest;
        head
    }

    pub(crate) fn u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8));
        u64::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests;
