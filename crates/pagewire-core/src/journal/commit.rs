//! The commit block, and the index that it stands for.

use super::{BLOCK, Damaged, Reader, VERSION, Writer, hash};

const MAGIC: &[u8; 8] = b"PWCOMMIT";

/// An epoch that was flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Commit {
    /// The epoch, and with it the area.
    pub epoch: u64,
    /// How many pages the area holds; the index is behind them.
    pub slots: u64,
    /// The length of the index, in bytes.
    pub index: u64,
    /// The hash of the index.
    pub hash: u64,
    /// The region's length, in bytes.
    pub length: u64,
    /// The shortest that the region was since the epoch before: what the file has behind that is gone.
    pub cut: u64,
    /// The token of who has flushed it.
    pub token: u64,
    /// The number of the flush.
    pub flushed: u64,
}

impl Commit {
    /// The block.
    pub fn encode(&self) -> [u8; BLOCK] {
        Writer::new(MAGIC, VERSION)
            .u64(self.epoch)
            .u64(self.slots)
            .u64(self.index)
            .u64(self.hash)
            .u64(self.length)
            .u64(self.cut)
            .u64(self.token)
            .u64(self.flushed)
            .end()
    }

    /// The commit in a block.
    ///
    /// # Errors
    ///
    /// [`Damaged`].
    pub fn decode(block: &[u8; BLOCK]) -> Result<Self, Damaged> {
        let mut reader = Reader::new(block, MAGIC, VERSION)?;
        Ok(Self {
            epoch: reader.u64(),
            slots: reader.u64(),
            index: reader.u64(),
            hash: reader.u64(),
            length: reader.u64(),
            cut: reader.u64(),
            token: reader.u64(),
            flushed: reader.u64(),
        })
    }
}

/// Which pages an area holds, and which pages are zeroes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// The page's number, its place in the area, and the hash of its bytes.
    pub pages: Vec<(u64, u64, u64)>,
    /// The numbers of pages that hold zeroes.
    pub zeroes: Vec<u64>,
}

impl Index {
    /// The bytes of the index.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + 24 * self.pages.len() + 8 * self.zeroes.len());
        bytes.extend_from_slice(&(self.pages.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&(self.zeroes.len() as u64).to_le_bytes());
        for (page, slot, hash) in &self.pages {
            for value in [page, slot, hash] {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        for page in &self.zeroes {
            bytes.extend_from_slice(&page.to_le_bytes());
        }
        bytes
    }

    /// The index whose bytes have a hash, which a commit stands for.
    ///
    /// # Errors
    ///
    /// [`Damaged`], where the bytes are not those that were committed.
    pub fn decode(expected: u64, bytes: &[u8]) -> Result<Self, Damaged> {
        if hash(bytes) != expected || bytes.len() < 16 || !bytes.len().is_multiple_of(8) {
            return Err(Damaged::Hash);
        }
        let mut values = bytes.chunks_exact(8).map(|chunk| {
            let mut value = [0; 8];
            value.copy_from_slice(chunk);
            u64::from_le_bytes(value)
        });
        let mut next = || values.next().unwrap_or(0);
        let (pages, zeroes) = (next(), next());
        let expected = pages.checked_mul(3).and_then(|count| count.checked_add(zeroes)?.checked_add(2));
        if expected != Some(bytes.len() as u64 / 8) {
            return Err(Damaged::Hash);
        }
        let pages = (0..pages).map(|_| (next(), next(), next())).collect();
        let zeroes = (0..zeroes).map(|_| next()).collect();
        Ok(Self { pages, zeroes })
    }
}
