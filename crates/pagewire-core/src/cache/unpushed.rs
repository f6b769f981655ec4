//! The commit of a local flush, and where what it stands for lies.

use super::VERSION;
use crate::chunk::{ByteRange, PAGE_SIZE};
use crate::journal::{BLOCK, Damaged, Reader, SEGMENT, Writer};

const MAGIC: &[u8; 8] = b"PWKEPT\0\0";

/// Where the copy of the newest commit is.
pub const COPY_AT: u64 = 2 * BLOCK as u64;

/// Where the streams begin.
pub const SLOTS_AT: u64 = 3 * BLOCK as u64;

/// Where the commit of a number is.
pub fn commit_at(number: u64) -> u64 {
    number % 2 * BLOCK as u64
}

/// What was written to a region and not flushed to its store, as of one local flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// Grows with every commit.
    pub number: u64,
    /// The region's identity.
    pub region: [u8; 16],
    /// The epoch that the changes stand on.
    pub epoch: u64,
    /// The token of who has written them; 0 where there was none.
    pub token: u64,
    /// The number of the last flush that was asked for before: a later one covers all of this.
    pub submitted: u64,
    /// The region's length with the changes, in bytes.
    pub length: u64,
    /// The shortest that it was since the epoch: what that has behind is gone.
    pub cut: u64,
    /// The region's length at the epoch, in bytes.
    pub before: u64,
    /// The length of the index, in bytes.
    pub index: u64,
    /// The hash of the index.
    pub hash: u64,
    /// How many pages the index holds. None of them, and no other length, is nothing at all.
    pub pages: u64,
}

impl Kept {
    /// The block.
    pub fn encode(&self) -> [u8; BLOCK] {
        Writer::new(MAGIC, VERSION)
            .bytes(&self.region)
            .u64(self.number)
            .u64(self.epoch)
            .u64(self.token)
            .u64(self.submitted)
            .u64(self.length)
            .u64(self.cut)
            .u64(self.before)
            .u64(self.index)
            .u64(self.hash)
            .u64(self.pages)
            .end()
    }

    /// The commit in a block.
    ///
    /// # Errors
    ///
    /// [`Damaged`].
    pub fn decode(block: &[u8; BLOCK]) -> Result<Self, Damaged> {
        let mut reader = Reader::new(block, MAGIC, VERSION)?;
        let mut region = [0; 16];
        region.copy_from_slice(reader.take(16));
        let number = reader.u64();
        Ok(Self {
            region,
            number,
            epoch: reader.u64(),
            token: reader.u64(),
            submitted: reader.u64(),
            length: reader.u64(),
            cut: reader.u64(),
            before: reader.u64(),
            index: reader.u64(),
            hash: reader.u64(),
            pages: reader.u64(),
        })
    }

    /// Whether there is nothing that the store lacks.
    pub fn is_empty(&self) -> bool {
        self.pages == 0 && self.length == self.before && self.cut == self.before
    }

    /// The newest commit of those in the three blocks.
    ///
    /// # Errors
    ///
    /// [`Damaged`], where one is of another version, or none is whole.
    pub fn newest(blocks: [&[u8; BLOCK]; 3]) -> Result<Self, Damaged> {
        let mut newest: Result<Self, Damaged> = Err(Damaged::Hash);
        for block in blocks {
            match (Self::decode(block), &newest) {
                (Err(Damaged::Version(version)), _) => return Err(Damaged::Version(version)),
                (Ok(commit), Ok(known)) if commit.number <= known.number => {}
                (Ok(commit), _) => newest = Ok(commit),
                (Err(Damaged::Hash), _) => {}
            }
        }
        newest
    }
}

/// The length of a segment of an index: room for the pages of a segment, and a little.
const INDEX_SEGMENT: u64 = 2 * BLOCK as u64;

/// The length of a segment of each stream together.
const GROUP: u64 = 2 * INDEX_SEGMENT + SEGMENT;

/// One of the three streams that are interleaved in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// Where in a group its segment is, and how long that is.
    at: u64,
    segment: u64,
}

impl Stream {
    /// That of the pages.
    pub const PAGES: Self = Self { at: 2 * INDEX_SEGMENT, segment: SEGMENT };

    /// That of the index of a commit.
    pub fn index(number: u64) -> Self {
        Self { at: number % 2 * INDEX_SEGMENT, segment: INDEX_SEGMENT }
    }

    #[cfg(test)]
    pub(super) fn segment(self) -> u64 {
        self.segment
    }

    /// Where in the file the bytes `range` of the stream are, in pieces: where each is, and how long.
    pub fn places(self, range: ByteRange) -> impl Iterator<Item = (u64, u64)> {
        range.split(self.segment).map(move |piece| {
            let (group, within) = (piece.start / self.segment, piece.start % self.segment);
            (SLOTS_AT + group * GROUP + self.at + within, piece.len())
        })
    }

    /// Where in the file a slot of the pages is.
    pub fn slot_at(slot: u64) -> u64 {
        let per_segment = SEGMENT / PAGE_SIZE;
        SLOTS_AT + slot / per_segment * GROUP + Self::PAGES.at + slot % per_segment * PAGE_SIZE
    }
}
