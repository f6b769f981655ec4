//! Sets of chunk or page numbers, as bits.
//!
//! [`BitSet`] belongs to one owner; [`AtomicBitSet`] is shared between threads without a lock. Both hold
//! numbers below a length that is fixed when they are made. A number or the end of a range at or above that
//! length is a bug of the caller, not a condition: every method that takes one as a member panics, in release
//! builds too, because a mark that is dropped in silence is a page that is never pushed. Searches
//! (`next_member`, `next_gap`, `take_run`) take any starting point and find nothing past the end.

mod atomic;
mod plain;

pub use atomic::AtomicBitSet;
pub use plain::BitSet;

use std::ops::Range;

const WORD_BITS: u64 = u64::BITS as u64;

/// Words that hold `len` bits.
fn words_for(len: u64) -> usize {
    usize::try_from(len.div_ceil(WORD_BITS)).expect("a set that fits in memory")
}

/// The word of a member and its bit in it.
#[track_caller]
fn locate(index: u64, len: u64) -> (usize, u64) {
    assert!(index < len, "index {index} is outside a set of {len}");
    ((index / WORD_BITS) as usize, 1 << (index % WORD_BITS))
}

/// The words that a range of members touches, each with the bits of the range in it.
#[track_caller]
fn locate_range(range: Range<u64>, len: u64) -> impl Iterator<Item = (usize, u64)> {
    assert!(
        range.start <= range.end && range.end <= len,
        "range {}..{} is outside a set of {len}",
        range.start,
        range.end
    );
    let Range { mut start, end } = range;
    std::iter::from_fn(move || {
        if start >= end {
            return None;
        }
        let (word, first) = (start / WORD_BITS, start % WORD_BITS);
        let stop = end.min((word + 1) * WORD_BITS);
        let bits = stop - start;
        let mask = (u64::MAX >> (WORD_BITS - bits)) << first;
        start = stop;
        Some((word as usize, mask))
    })
}
