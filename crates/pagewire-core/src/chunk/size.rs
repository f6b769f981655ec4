//! The size of a chunk: checked once, where it is parsed or received, and trusted from then on.

use std::fmt;

use super::PAGE_SIZE;

/// Bytes of a chunk: a power of two, a multiple of the page, 64 MiB at most.
///
/// ```
/// use pagewire_core::chunk::ChunkSize;
///
/// let size = ChunkSize::new(1 << 20)?;
/// assert_eq!(size.pages(), 256);
/// assert_eq!(size.to_string(), "1 MiB");
/// assert!(ChunkSize::new(5000).is_err());
/// # Ok::<(), pagewire_core::chunk::ChunkSizeError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkSize(u64);

/// Why a number of bytes cannot be a chunk size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChunkSizeError {
    /// Chunks are cut at powers of two.
    #[error("a chunk size must be a power of two, and {0} bytes is not")]
    NotPowerOfTwo(u64),
    /// A chunk holds whole pages.
    #[error("a chunk must hold at least one page of 4096 bytes, and {0} bytes is less")]
    TooSmall(u64),
    /// A chunk has to fit in memory many times over.
    #[error("a chunk must be 64 MiB at most, and {0} bytes is more")]
    TooLarge(u64),
}

impl ChunkSize {
    /// 64 KiB, the size used unless told otherwise.
    pub const DEFAULT: Self = Self(64 << 10);
    /// 4 KiB: one page.
    pub const PAGE: Self = Self(PAGE_SIZE);
    /// 64 MiB, the largest.
    pub const MAX: Self = Self(64 << 20);

    /// Checks a number of bytes.
    ///
    /// # Errors
    /// If it is not a power of two from 4096 bytes to 64 MiB.
    pub const fn new(bytes: u64) -> Result<Self, ChunkSizeError> {
        if bytes < PAGE_SIZE {
            Err(ChunkSizeError::TooSmall(bytes))
        } else if bytes > Self::MAX.0 {
            Err(ChunkSizeError::TooLarge(bytes))
        } else if !bytes.is_power_of_two() {
            Err(ChunkSizeError::NotPowerOfTwo(bytes))
        } else {
            Ok(Self(bytes))
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size in pages, at least 1.
    pub const fn pages(self) -> u64 {
        self.0 / PAGE_SIZE
    }
}

impl Default for ChunkSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for ChunkSize {
    /// In the largest of bytes, KiB and MiB that gives a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        const KIB: u64 = 1 << 10;
        match self.0 {
            bytes if bytes.is_multiple_of(MIB) => write!(f, "{} MiB", bytes / MIB),
            bytes if bytes.is_multiple_of(KIB) => write!(f, "{} KiB", bytes / KIB),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_every_power_of_two_of_whole_pages_and_nothing_else() {
        for exponent in 12..=26 {
            assert_eq!(ChunkSize::new(1 << exponent).map(ChunkSize::bytes), Ok(1 << exponent));
        }
        assert_eq!(ChunkSize::new(0), Err(ChunkSizeError::TooSmall(0)));
        assert_eq!(ChunkSize::new(2048), Err(ChunkSizeError::TooSmall(2048)));
        assert_eq!(ChunkSize::new(12288), Err(ChunkSizeError::NotPowerOfTwo(12288)));
        assert_eq!(ChunkSize::new(1 << 27), Err(ChunkSizeError::TooLarge(1 << 27)));
        assert_eq!(ChunkSize::new(u64::MAX), Err(ChunkSizeError::TooLarge(u64::MAX)));
    }

    #[test]
    fn shows_the_size_in_a_readable_unit() {
        assert_eq!(ChunkSize::PAGE.to_string(), "4 KiB");
        assert_eq!(ChunkSize::DEFAULT.to_string(), "64 KiB");
        assert_eq!(ChunkSize::MAX.to_string(), "64 MiB");
    }
}
