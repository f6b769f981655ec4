//! What is said of an export.

use super::{MAX_PAYLOAD, Malformed, TransmissionFlags};

/// What is said of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its size, in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// The server's own name for it, where that was said.
    pub name: Option<String>,
    /// What it is, for people.
    pub description: Option<String>,
    /// The sizes of its blocks, where they were said.
    pub blocks: Option<BlockSizes>,
}

/// The sizes of blocks, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// What offsets and lengths must be multiples of.
    pub minimum: u32,
    /// What they should be multiples of.
    pub preferred: u32,
    /// The longest payload of a request or a reply.
    pub maximum: u32,
}

impl ExportInfo {
    /// Only what every export has.
    pub fn new(size: u64, flags: TransmissionFlags) -> Self {
        Self { size, flags, name: None, description: None, blocks: None }
    }

    /// Whether a client can make use of it.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where it breaks what the specification demands of flags and of the sizes of blocks, or has
    /// more bytes than offsets in a file.
    pub fn check(&self) -> Result<(), Malformed> {
        let bad = |reason: String| Err(Malformed::new("description of an export", reason));
        if self.size > i64::MAX as u64 {
            return bad(format!("{} bytes are more than any device has", self.size));
        }
        if !self.flags.contains(TransmissionFlags::HAS_FLAGS) {
            return bad(format!("NBD_FLAG_HAS_FLAGS is missing in {:?}", self.flags));
        }
        let Some(BlockSizes { minimum, preferred, maximum }) = self.blocks else { return Ok(()) };
        if !minimum.is_power_of_two() || minimum > 1 << 16 {
            return bad(format!("a minimum block size of {minimum}"));
        }
        if !preferred.is_power_of_two() || preferred < minimum.max(512) {
            return bad(format!("a preferred block size of {preferred} where {minimum} is the minimum"));
        }
        let least = self.size.min(preferred.into());
        if (maximum != u32::MAX && maximum % minimum != 0) || u64::from(maximum) < least {
            return bad(format!("a maximum block size of {maximum} where {minimum} is the minimum"));
        }
        Ok(())
    }

    /// The sizes of blocks that a client is to keep to.
    pub fn block_sizes(&self) -> BlockSizes {
        self.blocks.unwrap_or_default()
    }
}

impl Default for BlockSizes {
    /// What clients keep to where a server has said nothing, to get on with every one.
    fn default() -> Self {
        Self { minimum: 512, preferred: 4096, maximum: MAX_PAYLOAD }
    }
}
