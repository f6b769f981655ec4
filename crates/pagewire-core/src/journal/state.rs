//! The state block: who the region is, and how far its file has come.

use super::{BLOCK, Damaged, Reader, VERSION, Writer};

const MAGIC: &[u8; 8] = b"PWSTATE\0";

/// Which file the region's bytes are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileId {
    /// Its number in its file system.
    pub inode: u64,
    /// When it was created, in nanoseconds since 1970, where the file system knows; else 0.
    pub birth: u64,
}

/// What a file looks like from outside when nobody has written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Its length, in bytes.
    pub size: u64,
    /// When its bytes last changed, in nanoseconds since 1970.
    pub modified: u64,
}

/// Who the region is, and how far its file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// Grows with every state that is written.
    pub sequence: u64,
    /// The region's identity.
    pub region: [u8; 16],
    /// The file.
    pub file: FileId,
    /// What the file looks like while nothing is being applied.
    pub stamp: Stamp,
    /// The epoch that is in place.
    pub applied: u64,
    /// The epoch that is being put in place: the file may be a mix of both. 0 for none.
    pub applying: u64,
    /// The region's length at the epoch that is in place, in bytes.
    pub length: u64,
    /// The newest writer's token.
    pub token: u64,
    /// The number of that writer's last flush.
    pub flushed: u64,
}

impl State {
    /// The block.
    pub fn encode(&self) -> [u8; BLOCK] {
        Writer::new(MAGIC, VERSION)
            .bytes(&self.region)
            .u64(self.sequence)
            .u64(self.file.inode)
            .u64(self.file.birth)
            .u64(self.stamp.size)
            .u64(self.stamp.modified)
            .u64(self.applied)
            .u64(self.applying)
            .u64(self.length)
            .u64(self.token)
            .u64(self.flushed)
            .end()
    }

    /// The state in a block.
    ///
    /// # Errors
    ///
    /// [`Damaged`].
    pub fn decode(block: &[u8; BLOCK]) -> Result<Self, Damaged> {
        let mut reader = Reader::new(block, MAGIC, VERSION)?;
        let mut region = [0; 16];
        region.copy_from_slice(reader.take(16));
        Ok(Self {
            region,
            sequence: reader.u64(),
            file: FileId { inode: reader.u64(), birth: reader.u64() },
            stamp: Stamp { size: reader.u64(), modified: reader.u64() },
            applied: reader.u64(),
            applying: reader.u64(),
            length: reader.u64(),
            token: reader.u64(),
            flushed: reader.u64(),
        })
    }

    /// The newest of the states in the two blocks.
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
            [Ok(state), Err(_)] | [Err(_), Ok(state)] => Ok(state),
            [Err(error), Err(_)] => Err(error),
        }
    }
}
