//! Half-open ranges of bytes.

use std::fmt;
use std::ops::Range;

use super::{PAGE_SIZE, round_down, round_up};

/// The bytes from `start` up to, not including, `end`. A range with `end <= start` is empty.
///
/// ```
/// use pagewire_core::chunk::ByteRange;
///
/// let wanted = ByteRange::checked(5000, 100).expect("does not overflow");
/// assert_eq!(wanted.align_out(4096), ByteRange::new(4096, 8192));
/// assert_eq!(ByteRange::checked(u64::MAX, 2), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

impl ByteRange {
    /// The range of the program's own numbers. `end` below `start` is a bug: debug builds assert, others
    /// answer the empty range at `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        debug_assert!(start <= end, "a range ends before it starts");
        Self { start, end: if end < start { start } else { end } }
    }

    /// The range of numbers that somebody else sent: `None` if its end does not fit 64 bits.
    pub const fn checked(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// The bytes of whole pages by their numbers, saturating.
    pub const fn of_pages(pages: Range<u64>) -> Self {
        let start = pages.start.saturating_mul(PAGE_SIZE);
        let end = pages.end.saturating_mul(PAGE_SIZE);
        Self { start, end: if end < start { start } else { end } }
    }

    /// Bytes in the range.
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the range has no byte.
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// The bytes that are in both; an empty range if there are none.
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }

    /// Whether `other` lies between the borders of this range. An empty `other` has a place too: it is
    /// contained only if that place is.
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end && other.start <= self.end
    }

    /// What of the range lies before `other`, and what behind it; either may be empty. Nothing is taken
    /// away by a range that has no byte in common with this one.
    pub fn without(self, other: Self) -> [Self; 2] {
        let common = self.intersect(other);
        if common.is_empty() {
            return [self, Self::new(self.end, self.end)];
        }
        [Self::new(self.start, common.start), Self::new(common.end, self.end)]
    }

    /// What is left of `ranges` without the bytes of `taken`, in the same order.
    pub fn without_any(ranges: impl IntoIterator<Item = Self>, taken: Self) -> Vec<Self> {
        let left = ranges.into_iter().flat_map(|range| range.without(taken));
        left.filter(|range| !range.is_empty()).collect()
    }

    /// The bytes that are in any of `ranges`, as ranges in order that neither overlap nor touch.
    pub fn union(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_by_key(|range| range.start);
        let mut union: Vec<Self> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match union.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => union.push(range),
            }
        }
        union
    }

    /// The lengths of `ranges` added up, saturating.
    pub fn total<'a>(ranges: impl IntoIterator<Item = &'a Self>) -> u64 {
        ranges.into_iter().fold(0, |total, range| total.saturating_add(range.len()))
    }

    /// Whether the two have a byte in common.
    pub fn overlaps(self, other: Self) -> bool {
        !self.intersect(other).is_empty()
    }

    /// The smallest range of multiples of `align` that holds this one; its end is `u64::MAX` where the next
    /// multiple does not fit. An empty range stays empty.
    ///
    /// # Panics
    /// If `align` is zero.
    pub const fn align_out(self, align: u64) -> Self {
        let start = round_down(self.start, align);
        Self { start, end: if self.is_empty() { start } else { round_up(self.end, align) } }
    }

    /// The largest range of multiples of `align` inside this one; empty if there is none.
    ///
    /// # Panics
    /// If `align` is zero.
    pub const fn align_in(self, align: u64) -> Self {
        let (start, end) = (round_up(self.start, align), round_down(self.end, align));
        // A start that saturated is no multiple, and is above every end.
        if start < end { Self { start, end } } else { Self { start: end, end } }
    }

    /// What of the range lies below `len`.
    pub fn clamp_to(self, len: u64) -> Self {
        let start = self.start.min(len);
        Self { start, end: self.end.min(len).max(start) }
    }

    /// Whether both borders are multiples of `align`.
    ///
    /// # Panics
    /// If `align` is zero.
    pub const fn is_aligned(self, align: u64) -> bool {
        self.start.is_multiple_of(align) && self.end.is_multiple_of(align)
    }

    /// The range in pieces of at most `max_len` bytes, in order, cut at the multiples of `max_len`: all pieces
    /// but the first and the last are whole and aligned.
    ///
    /// # Panics
    /// If `max_len` is zero.
    pub fn split(self, max_len: u64) -> impl Iterator<Item = Self> {
        assert!(max_len > 0, "a range cannot be split into pieces of nothing");
        let mut rest = self;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let border = round_down(rest.start, max_len).saturating_add(max_len).min(rest.end);
            let piece = Self { start: rest.start, end: border };
            rest.start = border;
            Some(piece)
        })
    }

    /// Takes its first `len` bytes off it, or all that there are.
    ///
    /// ```
    /// # use pagewire_core::chunk::ByteRange;
    /// let mut left = ByteRange::new(10, 20);
    /// assert_eq!(left.take_front(4), ByteRange::new(10, 14));
    /// assert_eq!(left, ByteRange::new(14, 20));
    /// assert_eq!(left.take_front(100), ByteRange::new(14, 20));
    /// assert!(left.is_empty());
    /// ```
    pub fn take_front(&mut self, len: u64) -> Self {
        let front = Self { start: self.start, end: self.start.saturating_add(len).min(self.end) };
        self.start = front.end;
        front
    }

    /// How far `pos` is from the start of the range: the index in a buffer that holds the range. `None` if
    /// `pos` is not in the range.
    pub const fn offset_of(self, pos: u64) -> Option<u64> {
        if self.start <= pos && pos < self.end { Some(pos - self.start) } else { None }
    }

    /// Appends the range to an ordered list, merged with its last entry where the two are adjacent.
    pub fn append_to(self, list: &mut Vec<Self>) {
        match list.last_mut() {
            _ if self.is_empty() => {}
            Some(last) if last.end == self.start => last.end = self.end,
            _ => list.push(self),
        }
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Ranges near both ends of the address space, where arithmetic goes wrong.
    fn any_range() -> impl Strategy<Value = ByteRange> {
        (any::<bool>(), 0u64..40_000, 0u64..40_000).prop_map(|(high, a, b)| {
            let (start, end) = (a.min(b), a.max(b));
            if high { ByteRange::new(u64::MAX - end, u64::MAX - start) } else { ByteRange::new(start, end) }
        })
    }

    proptest! {
        #[test]
        fn intersection_holds_the_common_bytes(a in any_range(), b in any_range()) {
            let both = a.intersect(b);
            prop_assert_eq!(both, ByteRange { ..b.intersect(a) });
            prop_assert_eq!(a.overlaps(b), a.start.max(b.start) < a.end.min(b.end));
            if !both.is_empty() {
                prop_assert!(a.contains(both) && b.contains(both));
                prop_assert_eq!(both.len(), a.end.min(b.end) - a.start.max(b.start));
            }
            prop_assert_eq!(a.contains(b) && !b.is_empty(), !b.is_empty() && both == b);
        }

        #[test]
        fn aligning_brackets_the_range(range in any_range(), exponent in 0u32..16) {
            let align = 1 << exponent;
            let (out, inner) = (range.align_out(align), range.align_in(align));
            prop_assert_eq!(out.is_empty(), range.is_empty());
            if !range.is_empty() {
                prop_assert!(out.contains(range));
                prop_assert!(range.start - out.start < align);
                prop_assert!(out.end - range.end < align);
                prop_assert!(out.end == u64::MAX || out.is_aligned(align));
            }
            prop_assert!(inner.is_aligned(align) || inner.is_empty());
            if inner.is_empty() {
                prop_assert!(range.len() < 2 * align);
            } else {
                prop_assert!(range.contains(inner));
                prop_assert!(inner.start - range.start < align && range.end - inner.end < align);
            }
        }

        #[test]
        fn what_is_taken_away_and_what_is_left_are_the_whole(range in any_range(), other in any_range()) {
            let [before, after] = range.without(other);
            let common = range.intersect(other);
            prop_assert!(!before.overlaps(other) && !after.overlaps(other));
            prop_assert_eq!(before.len() + common.len() + after.len(), range.len());
            prop_assert!([before, common, after].iter().all(|part| part.is_empty() || range.contains(*part)));
        }

        #[test]
        fn a_union_holds_each_byte_once(ranges in proptest::collection::vec((0u64..300, 0u64..60), 0..12)) {
            let ranges: Vec<ByteRange> =
                ranges.into_iter().map(|(start, len)| ByteRange::new(start, start + len)).collect();
            let mut bytes: Vec<u64> = ranges.iter().flat_map(|range| range.start..range.end).collect();
            bytes.sort_unstable();
            bytes.dedup();
            let union = ByteRange::union(ranges);
            prop_assert!(union.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(ByteRange::total(&union), bytes.len() as u64);
            prop_assert_eq!(union.iter().flat_map(|range| range.start..range.end).collect::<Vec<_>>(), bytes);
        }

        #[test]
        fn split_covers_the_range_in_order(range in any_range(), max_len in 1000u64..9000) {
            let mut next = range.start;
            for piece in range.split(max_len) {
                prop_assert_eq!(piece.start, next);
                prop_assert!(!piece.is_empty() && piece.len() <= max_len);
                prop_assert!(piece.end == range.end || piece.end % max_len == 0);
                next = piece.end;
            }
            prop_assert_eq!(next, range.end);
        }

        #[test]
        fn offsets_and_clamps_stay_in_the_range(range in any_range(), pos in any::<u64>(), len in 0u64..50_000) {
            match range.offset_of(pos) {
                Some(offset) => prop_assert!(offset < range.len() && range.start + offset == pos),
                None => prop_assert!(pos < range.start || pos >= range.end),
            }
            let clamped = range.clamp_to(len);
            prop_assert!(clamped.end <= len);
            prop_assert_eq!(clamped.len(), range.end.min(len).saturating_sub(range.start));
        }
    }

    #[test]
    fn checked_refuses_what_overflows() {
        assert_eq!(ByteRange::checked(u64::MAX, 0), Some(ByteRange::new(u64::MAX, u64::MAX)));
        assert_eq!(ByteRange::checked(u64::MAX - 1, 1), Some(ByteRange::new(u64::MAX - 1, u64::MAX)));
        assert_eq!(ByteRange::checked(u64::MAX, 1), None);
    }

    #[test]
    fn an_empty_range_has_a_place() {
        let range = ByteRange::new(10, 20);
        assert!(range.contains(ByteRange::new(20, 20)));
        assert!(!range.contains(ByteRange::new(21, 21)));
        assert!(!range.overlaps(ByteRange::new(15, 15)));
    }

    #[test]
    fn appending_merges_neighbours() {
        let mut list = Vec::new();
        for (start, end) in [(0, 5), (5, 9), (9, 9), (10, 12), (3, 4)] {
            ByteRange::new(start, end).append_to(&mut list);
        }
        assert_eq!(list, [ByteRange::new(0, 9), ByteRange::new(10, 12), ByteRange::new(3, 4)]);
    }
}
