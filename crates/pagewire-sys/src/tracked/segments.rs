//! What must be known of each page where the kernel does not keep it: whether it is present, whether it was
//! written, and the hash of its content. In pieces of 64 pages with a lock each, so that a thread that places
//! a page waits for one piece of a scan at most.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::PAGE_SIZE;

/// Pages of a segment: the bits of a word.
const PAGES: usize = u64::BITS as usize;

/// Bytes of a segment: they fit into a core's own cache.
pub(super) const SEGMENT_SIZE: usize = PAGES * PAGE_SIZE;

/// 64 pages, a bit each.
#[derive(Debug, Default)]
pub(super) struct Segment {
    pub(super) present: u64,
    /// To be reported by the next take.
    pub(super) written: u64,
    /// Of the pages that are present; allocated for the first.
    hashes: Option<Box<[u64; PAGES]>>,
}

impl Segment {
    /// The hashes of the pages, where they are kept.
    pub(super) fn hashes(&mut self) -> &mut [u64; PAGES] {
        self.hashes.get_or_insert_with(|| Box::new([0; PAGES]))
    }
}

/// Those of a whole mapping.
#[derive(Debug)]
pub(super) struct Segments {
    segments: Box<[Mutex<Segment>]>,
    len: usize,
}

impl Segments {
    /// For a mapping of `len` bytes, of which nothing is present.
    pub(super) fn new(len: usize) -> Segments {
        let count = len.div_ceil(SEGMENT_SIZE);
        Segments { segments: (0..count).map(|_| Mutex::default()).collect(), len }
    }

    /// All bytes.
    pub(super) fn all(&self) -> Range<usize> {
        0..self.len
    }

    /// Calls `visit` with each segment of the range, locked, and the part of the range that lies in it.
    pub(super) fn visit(
        &self,
        range: Range<usize>,
        mut visit: impl FnMut(&mut Segment, Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut start = range.start;
        while start < range.end {
            let index = start / SEGMENT_SIZE;
            let end = ((index + 1) * SEGMENT_SIZE).min(range.end);
            // Every change of a segment is complete by itself, so that one whose thread panicked is as good.
            let mut segment = self.segments[index].lock().unwrap_or_else(PoisonError::into_inner);
            visit(&mut segment, start..end)?;
            start = end;
        }
        Ok(())
    }
}

/// The bits of the pages of a range that lies in one segment.
pub(super) fn bits(range: &Range<usize>) -> u64 {
    let first = range.start / PAGE_SIZE % PAGES;
    let count = range.len() / PAGE_SIZE;
    if count == 0 { 0 } else { u64::MAX >> (PAGES - count) << first }
}

/// The runs of pages whose bits are set, in bytes, for a segment that holds byte `inside`.
pub(super) fn runs(mut bits: u64, inside: usize) -> impl Iterator<Item = Range<usize>> {
    let base = inside / SEGMENT_SIZE * SEGMENT_SIZE;
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let first = bits.trailing_zeros() as usize;
        let count = (bits >> first).trailing_ones() as usize;
        bits &= !(u64::MAX >> (PAGES - count) << first);
        Some(base + first * PAGE_SIZE..base + (first + count) * PAGE_SIZE)
    })
}

/// The index in its segment of the page that begins at this byte.
pub(super) fn index(byte: usize) -> usize {
    byte / PAGE_SIZE % PAGES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_runs_are_inverse() {
        let base = 3 * SEGMENT_SIZE;
        for first in 0..PAGES {
            for end in first + 1..=PAGES {
                let range = base + first * PAGE_SIZE..base + end * PAGE_SIZE;
                let found: Vec<_> = runs(bits(&range), base + SEGMENT_SIZE - 1).collect();
                assert_eq!(found, [range]);
            }
        }
        let found: Vec<_> =
            runs(0b1011 | 1 << 63, 0).map(|run| run.start / PAGE_SIZE..run.end / PAGE_SIZE).collect();
        assert_eq!(found, [0..2, 3..4, 63..64]);
    }

    #[test]
    fn a_range_is_visited_in_parts_of_segments() {
        let segments = Segments::new(2 * SEGMENT_SIZE + PAGE_SIZE);
        let mut parts = Vec::new();
        let range = SEGMENT_SIZE - PAGE_SIZE..segments.all().end;
        segments
            .visit(range, |segment, part| {
                segment.present |= bits(&part);
                parts.push((part.start / PAGE_SIZE, part.end / PAGE_SIZE));
                Ok(())
            })
            .unwrap();
        assert_eq!(parts, [(63, 64), (64, 128), (128, 129)]);
        let mut present = Vec::new();
        segments
            .visit(segments.all(), |segment, _| {
                present.push(segment.present.count_ones());
                Ok(())
            })
            .unwrap();
        assert_eq!(present, [1, 64, 1]);
    }
}
