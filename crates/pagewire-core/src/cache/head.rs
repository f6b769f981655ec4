//! The head: which region the image is of, and at which epoch.

use super::VERSION;
use crate::journal::{BLOCK, Damaged, Reader, Writer};

const MAGIC: &[u8; 8] = b"PWCACHE\0";

/// Which region the image is of, and at which epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Grows with every head that is written.
    pub sequence: u64,
    /// The region's identity.
    pub region: [u8; 16],
    /// What all entries are mixed with.
    pub salt: u64,
    /// The epoch that the image is of.
    pub epoch: u64,
    /// The region's length at that epoch, in bytes.
    pub length: u64,
}

impl Head {
    /// The block.
    pub fn encode(&self) -> [u8; BLOCK] {
        Writer::new(MAGIC, VERSION)
            .bytes(&self.region)
            .u64(self.sequence)
            .u64(self.salt)
            .u64(self.epoch)
            .u64(self.length)
            .end()
    }

    /// The head in a block.
    ///
    /// # Errors
    ///
    /// [`Damaged`].
    pub fn decode(block: &[u8; BLOCK]) -> Result<Self, Damaged> {
        let mut reader = Reader::new(block, MAGIC, VERSION)?;
        let mut region = [0; 16];
        region.copy_from_slice(reader.take(16));
        let sequence = reader.u64();
        Ok(Self { region, sequence, salt: reader.u64(), epoch: reader.u64(), length: reader.u64() })
    }

    /// Whether a block is a head, whole or damaged, and not part of some other file.
    pub fn is_one(block: &[u8; BLOCK]) -> bool {
        block.starts_with(MAGIC)
    }

    /// The newest of the heads in the two blocks.
    ///
    /// # Errors
    ///
    /// [`Damaged`], where there is none, or one is of another version.
    pub fn newest(blocks: [&[u8; BLOCK]; 2]) -> Result<Self, Damaged> {
        match blocks.map(Self::decode) {
            [Err(Damaged::Version(version)), _] | [_, Err(Damaged::Version(version))] => {
                Err(Damaged::Version(version))
            }
            [Ok(one), Ok(other)] => Ok(if one.sequence > other.sequence { one } else { other }),
            [Ok(head), Err(_)] | [Err(_), Ok(head)] => Ok(head),
            [Err(error), Err(_)] => Err(error),
        }
    }
}
