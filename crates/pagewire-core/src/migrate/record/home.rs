//! Which pages of a region the destination has at home durably, while the rest is still at the origin.
//!
//! What is at home must never be pulled again: the application may have written to it since. And what is not
//! must be pulled. The sets change with each flush of the region's own store, and the two cannot be made
//! durable as one. So before a flush a file is written that holds the set for the epoch that the store is at,
//! and the set for the epoch that the flush will make; after a crash the one that matches the store's epoch
//! counts. If neither does, nobody knows, and that is an error.
//!
//! From when the record *Accepted* is written for the first time until another record is durable in its place,
//! each flush of the store has to be announced in this way, also while the record is in doubt, and none may be
//! under way when that begins. Else the store may be found at an epoch that is in no list. What the application
//! writes over a page that is at home leaves that page in the set: it is at home as it was flushed.
//!
//! ```text
//! "PWMIGHOM", u32 version, 16 bytes migration, 16 bytes region, u64 sequence, u64 pages, u64 epoch, u64 next epoch,
//! the set of the epoch, the set of the next epoch, u64 xxh3 of everything before
//! ```
//!
//! A set is a sequence of *sections* of 32,768 pages. Each begins with a byte: 0 none, 1 all, 2 a `u16` count
//! and as many runs (`u16` first page, `u16` pages less one), 3 a bit a page, 4 (in the second set alone) as in
//! the first. The shortest is chosen, so that a set is never longer than an eighth of a byte a page, and a byte
//! a section.

use std::ops::Range;

use super::VERSION;
use crate::bitmap::BitSet;
use crate::journal::hash;
use crate::migrate::MigrationId;

const MAGIC: &[u8; 8] = b"PWMIGHOM";

/// Pages of a section: as many as a `u16` counts, half.
const SECTION: u64 = 1 << 15;

/// Which pages of one region are at home durably, by the epoch of the region's own store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HomeSets {
    /// The migration.
    pub id: MigrationId,
    /// The region's identity.
    pub region: [u8; 16],
    /// Grows with everything that is written for this region.
    pub sequence: u64,
    /// The epoch that the store is at.
    pub epoch: u64,
    /// The pages that are at home as of that epoch; its length is the number of the region's pages.
    pub pages: BitSet,
    /// The epoch that the flush which comes next makes; the same as the other one where none is about to.
    pub next_epoch: u64,
    /// The pages that are at home once it is made. As many as the others.
    pub next_pages: BitSet,
}

/// Why nobody knows which pages are at home.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HomeError {
    /// Not written, or written in part.
    #[error("the list of pages that are at home is damaged")]
    Damaged,
    /// A later program has written it.
    #[error("the list of pages that are at home has format version {0}, of which this program knows nothing")]
    Version(u32),
    /// It is of another region, or of another migration.
    #[error("the list of pages that are at home belongs to another migration, or to another region")]
    Other,
    /// The store is at neither epoch.
    #[error("the store is at epoch {store}; the pages at home are known for epochs {epoch} and {next_epoch}")]
    Epoch {
        /// The store's epoch.
        store: u64,
        /// The epoch of the first set.
        epoch: u64,
        /// The epoch of the second set.
        next_epoch: u64,
    },
}

impl HomeSets {
    /// The bytes.
    ///
    /// # Panics
    /// If the two sets are not of the same length.
    pub fn encode(&self) -> Vec<u8> {
        assert_eq!(self.pages.len(), self.next_pages.len(), "both sets are of one region");
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.region);
        for value in [self.sequence, self.pages.len(), self.epoch, self.next_epoch] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        put_set(&mut bytes, &self.pages, None);
        put_set(&mut bytes, &self.next_pages, Some(&self.pages));
        let sum = hash(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The sets of this migration and this region of so many pages. What is allocated is bounded by the number
    /// of pages, whatever the bytes say.
    ///
    /// # Errors
    /// [`HomeError`], but for [`HomeError::Epoch`].
    pub fn decode(bytes: &[u8], id: MigrationId, region: [u8; 16], pages: u64) -> Result<Self, HomeError> {
        let (fields, sum) = bytes.split_last_chunk::<8>().ok_or(HomeError::Damaged)?;
        if hash(fields).to_le_bytes() != *sum {
            return Err(HomeError::Damaged);
        }
        let mut fields = Fields(fields);
        if fields.array::<8>()? != *MAGIC {
            return Err(HomeError::Damaged);
        }
        match u32::from_le_bytes(fields.array()?) {
            VERSION => {}
            other => return Err(HomeError::Version(other)),
        }
        let found = (MigrationId(fields.array()?), fields.array()?);
        let (sequence, count) = (fields.u64()?, fields.u64()?);
        if found != (id, region) || count != pages {
            return Err(HomeError::Other);
        }
        let (epoch, next_epoch) = (fields.u64()?, fields.u64()?);
        let first = fields.set(pages, None)?;
        let second = fields.set(pages, Some(&first))?;
        if !fields.0.is_empty() {
            return Err(HomeError::Damaged);
        }
        Ok(Self { id, region, sequence, epoch, pages: first, next_epoch, next_pages: second })
    }

    /// The newer of two copies, of which one may have been torn. Both are as [`HomeSets::decode`] takes them;
    /// one that was never written is empty.
    ///
    /// # Errors
    /// As [`HomeSets::decode`], where neither is whole.
    pub fn newest(
        copies: [&[u8]; 2],
        id: MigrationId,
        region: [u8; 16],
        pages: u64,
    ) -> Result<Self, HomeError> {
        match copies.map(|bytes| Self::decode(bytes, id, region, pages)) {
            [Err(HomeError::Version(version)), _] | [_, Err(HomeError::Version(version))] => {
                Err(HomeError::Version(version))
            }
            [Ok(one), Ok(other)] => Ok(if one.sequence > other.sequence { one } else { other }),
            [Ok(sets), Err(_)] | [Err(_), Ok(sets)] => Ok(sets),
            [Err(HomeError::Other), Err(_)] | [Err(_), Err(HomeError::Other)] => Err(HomeError::Other),
            [Err(error), Err(_)] => Err(error),
        }
    }

    /// The pages that are at home, where the store is found at this epoch.
    ///
    /// # Errors
    /// [`HomeError::Epoch`].
    pub fn at(&self, store: u64) -> Result<&BitSet, HomeError> {
        if store == self.epoch {
            Ok(&self.pages)
        } else if store == self.next_epoch {
            Ok(&self.next_pages)
        } else {
            Err(HomeError::Epoch { store, epoch: self.epoch, next_epoch: self.next_epoch })
        }
    }
}

fn sections(pages: u64) -> impl Iterator<Item = Range<u64>> {
    (0..pages.div_ceil(SECTION)).map(move |section| {
        let start = section * SECTION;
        start..pages.min(start + SECTION)
    })
}

/// The members of `section`, in runs.
fn runs(set: &BitSet, section: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut from = section.start;
    std::iter::from_fn(move || {
        let start = set.next_member(from).filter(|start| *start < section.end)?;
        let end = set.next_gap(start).map_or(section.end, |end| end.min(section.end));
        from = end;
        Some(start..end)
    })
}

fn put_set(bytes: &mut Vec<u8>, set: &BitSet, before: Option<&BitSet>) {
    for section in sections(set.len()) {
        let pages = section.end - section.start;
        let members = set.count_range(section.clone());
        if members == 0 {
            bytes.push(0);
        } else if members == pages {
            bytes.push(1);
        } else if before.is_some_and(|before| runs(before, section.clone()).eq(runs(set, section.clone()))) {
            bytes.push(4);
        } else {
            let bits = pages.div_ceil(8) as usize;
            let most = bits.saturating_sub(2) / 4;
            let runs: Vec<_> = runs(set, section.clone()).take(most + 1).collect();
            if runs.len() <= most {
                bytes.push(2);
                bytes.extend_from_slice(&(runs.len() as u16).to_le_bytes());
                for run in runs {
                    bytes.extend_from_slice(&((run.start - section.start) as u16).to_le_bytes());
                    bytes.extend_from_slice(&((run.end - run.start - 1) as u16).to_le_bytes());
                }
            } else {
                bytes.push(3);
                let at = bytes.len();
                bytes.resize(at + bits, 0);
                for page in self::runs(set, section.clone()).flatten() {
                    let bit = (page - section.start) as usize;
                    bytes[at + bit / 8] |= 1 << (bit % 8);
                }
            }
        }
    }
}

/// Reads from the front; the hash has been checked, but whoever can write the file can make that fit.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], HomeError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(HomeError::Damaged)?;
        self.0 = rest;
        Ok(*array)
    }

    fn u16(&mut self) -> Result<u64, HomeError> {
        Ok(u64::from(u16::from_le_bytes(self.array()?)))
    }

    fn u64(&mut self) -> Result<u64, HomeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn set(&mut self, pages: u64, before: Option<&BitSet>) -> Result<BitSet, HomeError> {
        // Each section takes a byte at least.
        if pages.div_ceil(SECTION) > self.0.len() as u64 {
            return Err(HomeError::Damaged);
        }
        let mut set = BitSet::new(pages);
        for section in sections(pages) {
            match (self.array::<1>()?[0], before) {
                (0, _) => {}
                (1, _) => {
                    set.insert_range(section);
                }
                (2, _) => {
                    let mut next = section.start;
                    for _ in 0..self.u16()? {
                        let start = section.start + self.u16()?;
                        let end = start + self.u16()? + 1;
                        if start < next || end > section.end {
                            return Err(HomeError::Damaged);
                        }
                        set.insert_range(start..end);
                        next = end;
                    }
                }
                (3, _) => {
                    let bits = (section.end - section.start).div_ceil(8);
                    for at in 0..bits {
                        let byte = self.array::<1>()?[0];
                        for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                            let page = section.start + at * 8 + bit;
                            if page >= section.end {
                                return Err(HomeError::Damaged);
                            }
                            set.insert(page);
                        }
                    }
                }
                (4, Some(before)) => {
                    for run in runs(before, section) {
                        set.insert_range(run);
                    }
                }
                _ => return Err(HomeError::Damaged),
            }
        }
        Ok(set)
    }
}
