//! Of which width the atomics of each word are.
//!
//! Rust's memory model allows atomic accesses that race only when they are of the same width: an `AtomicU8`
//! and an `AtomicU64` over the same byte must not be in use at once. A safe function that hands out atomics
//! must therefore see to it that each byte is given out in one width, for as long as the memory lives.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that one entry of the table speaks of: 16 words of 8 bytes, 4 bits each.
const BYTES_PER_ENTRY: usize = 128;

/// The table; made when the first atomic is asked for. The kernel gives memory only to the part of it that is
/// used.
#[derive(Debug, Default)]
pub(super) struct Widths(OnceLock<Box<[AtomicU64]>>);

impl Widths {
    /// Whether the word at `offset`, of a mapping of `len` bytes, may be given out in `width` bytes (1, 2, 4
    /// or 8); from now on in no other.
    pub(super) fn claim(&self, len: usize, offset: usize, width: u8) -> bool {
        let table = self.0.get_or_init(|| zeroes(len.div_ceil(BYTES_PER_ENTRY)));
        let Some(entry) = table.get(offset / BYTES_PER_ENTRY) else { return false };
        let shift = offset / 8 % 16 * 4;
        let claimed = |entry: u64| (entry >> shift & 0xf) as u8;
        match claimed(entry.load(Ordering::Relaxed)) {
            0 => {
                let claim = |entry| (claimed(entry) == 0).then_some(entry | u64::from(width) << shift);
                match entry.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim) {
                    Ok(_) => true,
                    Err(entry) => claimed(entry) == width,
                }
            }
            other => other == width,
        }
    }
}

/// Zeroes that are allocated as such, and not written one by one.
pub(super) fn zeroes(count: usize) -> Box<[AtomicU64]> {
    let plain = Box::into_raw(vec![0u64; count].into_boxed_slice());
    // SAFETY: AtomicU64 has the size and validity of u64, and on a 64-bit machine its alignment; the box was
    // ours alone.
    unsafe { Box::from_raw(plain as *mut [AtomicU64]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_has_one_width() {
        let widths = Widths::default();
        assert!(widths.claim(4096, 16, 8) && widths.claim(4096, 16, 8));
        assert!(!widths.claim(4096, 20, 4) && !widths.claim(4096, 23, 1));
        assert!(widths.claim(4096, 24, 1) && widths.claim(4096, 31, 1) && !widths.claim(4096, 24, 2));
        assert!(widths.claim(4096, 128 + 16, 4) && widths.claim(4096, 4088, 2));
        assert!(!widths.claim(4096, 4096, 8));
    }
}
