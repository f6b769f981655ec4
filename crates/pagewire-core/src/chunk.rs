//! Chunks, pages and byte ranges: all alignment arithmetic of Pagewire.
//!
//! A region is a run of bytes from 0 to its length. It is cut in two ways: into **pages** of the kernel's
//! 4096 bytes, in which changes are tracked, and into **chunks** of a size that each client chooses, in which
//! presence is tracked and data is pulled. Neither cut has to fit the length: the last chunk and the last page
//! may be short. [`Geometry`] knows both cuts of one region; [`ByteRange`] is what passes between modules and
//! over the wire; [`ChunkSize`] and [`ChunkIndex`] keep sizes and numbers of chunks apart from offsets.
//!
//! No other module divides or rounds an offset. Where a result would not fit 64 bits it saturates at
//! `u64::MAX`, which no region reaches, so that arithmetic on a peer's numbers can neither wrap nor panic.

mod geometry;
mod range;
mod size;

pub use geometry::Geometry;
pub use range::ByteRange;
pub use size::{ChunkSize, ChunkSizeError};

/// Bytes of a page: the kernel's page on every machine that Pagewire runs on.
pub const PAGE_SIZE: u64 = 4096;

/// The number of a chunk in its region, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkIndex(pub u64);

/// The smallest multiple of `align` that is not below `value`; `u64::MAX` if that does not fit.
///
/// # Panics
/// If `align` is zero.
pub const fn round_up(value: u64, align: u64) -> u64 {
    match value % align {
        0 => value,
        rest => value.saturating_add(align - rest),
    }
}

/// The largest multiple of `align` that is not above `value`.
///
/// # Panics
/// If `align` is zero.
pub const fn round_down(value: u64, align: u64) -> u64 {
    value - value % align
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_multiples_and_saturates() {
        assert_eq!((round_up(0, 4096), round_down(0, 4096)), (0, 0));
        assert_eq!((round_up(1, 4096), round_down(1, 4096)), (4096, 0));
        assert_eq!((round_up(4096, 4096), round_down(4096, 4096)), (4096, 4096));
        assert_eq!((round_up(10, 3), round_down(10, 3)), (12, 9));
        assert_eq!(round_up(u64::MAX - 1, 4096), u64::MAX);
        assert_eq!(round_down(u64::MAX, 4096), u64::MAX - 4095);
    }
}
