//! How a persistent local copy of a region is kept: the bytes of its three files.
//!
//! | file | holds |
//! | --- | --- |
//! | `FILE` | the *image*: the region's bytes, each at its own offset; holes where nothing was pulled, and where there are zeroes |
//! | `FILE.cache` | which pages of the image are there, at which epoch of which region |
//! | `FILE.unpushed` | what was written and not flushed to the store yet, as far as it was flushed locally |
//!
//! Each can be lost, or damaged, without making a wrong byte of it: the image is never believed, but checked
//! against `FILE.cache` a page at a time, whenever it is read; and what is unpushed is checked as a whole.
//!
//! # `FILE.cache`
//!
//! ```text
//! 0        4096     8192
//! | head 0 | head 1 | entry of page 0 | entry of page 1 | …
//! ```
//!
//! Two *heads* are written in turns; the one with the greater sequence number counts. A head says which
//! region and which epoch the image is of, and has a *salt* that is drawn anew whenever everything that was
//! there is void. An *entry* is 16 bytes: the check of the page, and the epoch that it was pulled at. The
//! check is the hash of the page's bytes, mixed with the salt, the page's number and the epoch, so that an
//! entry which is damaged, in the wrong place or left over from another region fits no bytes. Past its end a
//! region counts as zeroes. An entry that is all zeroes is that of a page which is absent.
//!
//! An entry counts if its epoch is not above that of the reader, and if it fits. There is one rule about the
//! order of things: **a head with a new epoch is written when the entries of all pages which that epoch has
//! changed are gone durably.** Everything else may reach the disk in any order, or not at all: an entry whose
//! bytes are not there does not fit, and an entry of an epoch that no head knows of is too new for any reader.
//!
//! # `FILE.unpushed`
//!
//! ```text
//! 0          4096       8192       12288
//! | commit 0 | commit 1 | copy     | index A | index B | pages | index A | index B | pages | …
//! ```
//!
//! Pages lie in *slots*. A page that is kept gets a slot that the last commit does not use. A *local flush*
//! makes the slots and an index of them durable, then writes and makes durable a commit: number `n` in block
//! `n % 2` with index `n % 2`. Then a copy of the block is written, so that a commit which was durable is not
//! taken for one that was torn. The three streams are interleaved, 1 MiB of pages to 8 KiB of
//! each index, so that all can grow.
//!
//! On opening, the newest commit whose block is whole counts. What it stands for was durable before it, so if
//! that does not check out it is damage, and refused. Numbers are little-endian; blocks end with their hash, as
//! those of the [`journal`](crate::journal).

mod head;
mod unpushed;

use crate::chunk::{ByteRange, PAGE_SIZE};
use crate::journal::BLOCK;
use twox_hash::XxHash3_64;

pub use head::Head;
pub use unpushed::{COPY_AT, Kept, SLOTS_AT, Stream, commit_at};

/// The version of the format. Others are not read.
pub const VERSION: u32 = 1;

/// Where the entries begin.
pub const ENTRIES: u64 = 2 * BLOCK as u64;

/// The length of an entry, in bytes.
pub const ENTRY: u64 = 16;

/// Where the head of a sequence number is.
pub fn head_at(sequence: u64) -> u64 {
    sequence % 2 * BLOCK as u64
}

/// Where the entries of pages are.
pub fn entries_at(pages: std::ops::Range<u64>) -> ByteRange {
    ByteRange::new(ENTRIES + pages.start * ENTRY, ENTRIES + pages.end * ENTRY)
}

/// What is known of one page of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry {
    check: u64,
    epoch: u64,
}

impl Entry {
    /// The entry of a page whose bytes have this hash at an epoch.
    pub fn new(salt: u64, page: u64, epoch: u64, hash: u64) -> Self {
        let mut mixed = [0; 32];
        for (into, value) in mixed.chunks_exact_mut(8).zip([salt, page, epoch, hash]) {
            into.copy_from_slice(&value.to_le_bytes());
        }
        Self { check: XxHash3_64::oneshot(&mixed), epoch }
    }

    /// Whether it says that anything is there.
    pub fn is_absent(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it is that of a page whose bytes have this hash, for a reader of `epoch`.
    pub fn fits(&self, salt: u64, page: u64, epoch: u64, hash: u64) -> bool {
        self.is_for(epoch) && *self == Self::new(salt, page, self.epoch, hash)
    }

    /// Whether a reader of `epoch` may use it, if it fits.
    pub fn is_for(&self, epoch: u64) -> bool {
        !self.is_absent() && self.epoch <= epoch
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; ENTRY as usize] {
        let mut bytes = [0; ENTRY as usize];
        bytes[..8].copy_from_slice(&self.check.to_le_bytes());
        bytes[8..].copy_from_slice(&self.epoch.to_le_bytes());
        bytes
    }

    /// The entry that these bytes are.
    pub fn decode(bytes: &[u8; ENTRY as usize]) -> Self {
        let (mut check, mut epoch) = ([0; 8], [0; 8]);
        check.copy_from_slice(&bytes[..8]);
        epoch.copy_from_slice(&bytes[8..]);
        Self { check: u64::from_le_bytes(check), epoch: u64::from_le_bytes(epoch) }
    }
}

/// The hash of a page; of one that is short, as if zeroes followed.
pub fn hash_page(bytes: &[u8]) -> u64 {
    if bytes.len() == PAGE_SIZE as usize {
        return XxHash3_64::oneshot(bytes);
    }
    let mut page = [0; PAGE_SIZE as usize];
    page[..bytes.len()].copy_from_slice(bytes);
    XxHash3_64::oneshot(&page)
}

#[cfg(test)]
mod tests;
