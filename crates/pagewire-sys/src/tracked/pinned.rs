//! Pages that the kernel has written on our behalf, by way of pins.
//!
//! `process_vm_writev` takes hold of the pages first, which marks them as written, and copies then, without
//! another look at their protection. A take that comes in between protects the page again, and copies it out as
//! it was: the write that follows would be lost. So who has copied in notes the pages when the copy is done, and
//! the next take reports them, whatever the kernel says of them.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::widths::zeroes;
use crate::PAGE_SIZE;

/// Pages of a word.
const PAGES: usize = u64::BITS as usize;

/// A set of pages of a mapping.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    /// Made when the first page is noted. The kernel gives memory only to the part of it that is used.
    pages: OnceLock<Box<[AtomicU64]>>,
    /// Whether there may be any.
    any: AtomicBool,
}

impl Pinned {
    /// Notes the pages that a range of bytes touches, of a mapping of `len` bytes.
    pub(super) fn note(&self, len: usize, range: Range<usize>) {
        let words = self.pages.get_or_init(|| zeroes(len.div_ceil(PAGES * PAGE_SIZE)));
        for page in range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE) {
            words[page / PAGES].fetch_or(1 << (page % PAGES), Ordering::Relaxed);
        }
        // Behind the pages, so that who takes does not miss them for good.
        self.any.store(true, Ordering::Release);
    }

    /// Takes the pages of a range of whole pages out: their runs, in bytes and in order.
    pub(super) fn take(&self, len: usize, range: Range<usize>) -> Vec<Range<usize>> {
        let all = range.start == 0 && range.end >= len;
        let any =
            if all { self.any.swap(false, Ordering::Acquire) } else { self.any.load(Ordering::Acquire) };
        if !any {
            return Vec::new();
        }
        self.runs(range, |word, mask| word.fetch_and(!mask, Ordering::Relaxed))
    }

    /// The same pages, which stay.
    pub(super) fn look(&self, range: Range<usize>) -> Vec<Range<usize>> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.runs(range, |word, _| word.load(Ordering::Relaxed))
    }

    fn runs(&self, range: Range<usize>, read: impl Fn(&AtomicU64, u64) -> u64) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        let Some(words) = self.pages.get() else { return found };
        let pages = range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE);
        for index in pages.start / PAGES..pages.end.div_ceil(PAGES) {
            let within = |page: &usize| pages.contains(page);
            let of_word = (index * PAGES..(index + 1) * PAGES).filter(within);
            let mask = of_word.clone().fold(0, |mask, page| mask | 1 << (page % PAGES));
            let bits = read(&words[index], mask) & mask;
            for page in of_word.filter(|page| bits >> (page % PAGES) & 1 == 1) {
                let (start, end) = (page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
                match found.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => found.push(start..end),
                }
            }
        }
        found
    }
}

/// Two lists of ranges, each in order, as one: in order, those that touch as one.
pub(super) fn union(one: Vec<Range<usize>>, two: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = one.into_iter().chain(two).collect();
    all.sort_unstable_by_key(|range| range.start);
    let mut union: Vec<Range<usize>> = Vec::with_capacity(all.len());
    for range in all {
        match union.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => union.push(range),
        }
    }
    union
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 130 * PAGE_SIZE;

    fn pages(range: Range<usize>) -> Range<usize> {
        range.start * PAGE_SIZE..range.end * PAGE_SIZE
    }

    #[test]
    fn what_is_noted_is_taken_once() {
        let pinned = Pinned::default();
        assert!(pinned.take(LEN, 0..LEN).is_empty());
        pinned.note(LEN, 5..6);
        pinned.note(LEN, pages(62..66).start + 1..pages(62..66).end);
        pinned.note(LEN, pages(129..130));
        assert_eq!(pinned.take(LEN, pages(63..65)), [pages(63..65)]);
        let rest = [pages(0..1), pages(62..63), pages(65..66), pages(129..130)];
        assert_eq!(pinned.look(0..LEN), rest);
        assert_eq!(pinned.take(LEN, 0..LEN), rest);
        assert!(pinned.take(LEN, 0..LEN).is_empty());
    }

    #[test]
    fn a_union_is_in_order_and_has_each_page_once() {
        let both = union(vec![pages(1..3), pages(9..10)], vec![pages(0..1), pages(2..5), pages(7..8)]);
        assert_eq!(both, [pages(0..5), pages(7..8), pages(9..10)]);
        assert!(union(Vec::new(), Vec::new()).is_empty());
    }
}
