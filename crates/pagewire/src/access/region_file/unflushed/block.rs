//! A block of pages: which of them are there, and their bytes.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use pagewire_core::chunk::PAGE_SIZE;

pub(super) const PAGE: usize = PAGE_SIZE as usize;

const WORDS: usize = 4;

/// How many pages a block has: as many as one push takes.
pub(super) const PAGES: u64 = 64 * WORDS as u64;
pub(super) const BLOCK: u64 = PAGES * PAGE_SIZE;

/// How many blocks without pages are kept: fresh memory costs more than what is copied into it.
const SPARE: usize = 160;

/// A set of pages of one block.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pages([u64; WORDS]);

impl Pages {
    /// Those of some pages of the region, which lie in one block.
    pub(super) fn of(pages: Range<u64>) -> Self {
        let (start, end) = (pages.start % PAGES, pages.end - pages.start / PAGES * PAGES);
        let mut set = Self::default();
        for (number, word) in (0..).step_by(64).zip(&mut set.0) {
            let below = |page: u64| match page.saturating_sub(number) {
                bit @ 0..64 => (1 << bit) - 1,
                _ => u64::MAX,
            };
            *word = below(end) & !below(start);
        }
        set
    }

    pub(super) fn contains(self, page: u64) -> bool {
        self.0[(page % PAGES / 64) as usize] & 1 << (page % 64) != 0
    }

    pub(super) fn count(self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub(super) fn and(self, other: Self) -> Self {
        self.with(other, |ours, theirs| ours & theirs)
    }

    pub(super) fn or(self, other: Self) -> Self {
        self.with(other, |ours, theirs| ours | theirs)
    }

    /// Those that are not in `other`.
    pub(super) fn without(self, other: Self) -> Self {
        self.with(other, |ours, theirs| ours & !theirs)
    }

    fn with(mut self, other: Self, merge: impl Fn(u64, u64) -> u64) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(ours, theirs)| *ours = merge(*ours, theirs));
        self
    }

    /// Which numbers they have in the block.
    pub(super) fn iter(self) -> impl Iterator<Item = u64> {
        (0..PAGES).filter(move |page| self.contains(*page))
    }
}

/// Memory for the pages of a block, from a page's border on: processors copy several times as fast between
/// addresses that are aligned alike.
pub(super) struct Memory {
    bytes: Vec<u8>,
    start: usize,
}

impl Memory {
    fn new() -> Self {
        let bytes = vec![0; BLOCK as usize + PAGE];
        let start = bytes.as_ptr().addr().wrapping_neg() % PAGE;
        Self { bytes, start }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + BLOCK as usize]
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + BLOCK as usize]
    }
}

/// Memory that blocks had.
#[derive(Default)]
pub(super) struct Spare(Mutex<Vec<Arc<Memory>>>);

impl Spare {
    fn take(&self) -> Arc<Memory> {
        self.0.lock().expect("no holder panics").pop().unwrap_or_else(|| Arc::new(Memory::new()))
    }

    /// Keeps memory that nobody else holds.
    pub(super) fn keep(&self, mut memory: Arc<Memory>) {
        let mut spare = self.0.lock().expect("no holder panics");
        if spare.len() < SPARE && Arc::get_mut(&mut memory).is_some() {
            spare.push(memory);
        }
    }
}

/// A block of pages.
#[derive(Default)]
pub(super) struct Block {
    memory: Option<Arc<Memory>>,
    pub(super) present: Pages,
    /// Which of the present pages are zeroes without bytes.
    pub(super) zero: Pages,
    pub(super) dirty: Pages,
    /// Which pages could go if they were not being completed.
    pub(super) clean: Pages,
    /// How many pages are being completed from the store.
    pub(super) fetches: u32,
}

impl Block {
    /// The bytes of some pages, to be written.
    pub(super) fn bytes_mut(&mut self, pages: Range<u64>, spare: &Spare) -> &mut [u8] {
        let memory = self.memory.get_or_insert_with(|| spare.take());
        if Arc::get_mut(memory).is_none() {
            // It is being sent, and stays what it is for that long.
            let mut copy = spare.take();
            let to = Arc::get_mut(&mut copy).expect("nobody else has spare memory");
            to.as_mut().copy_from_slice((**memory).as_ref());
            *memory = copy;
        }
        let memory = Arc::get_mut(memory).expect("it is not lent");
        let (first, count) = ((pages.start % PAGES) as usize, (pages.end - pages.start) as usize);
        let bytes = &mut memory.as_mut()[first * PAGE..(first + count) * PAGE];
        let zero = self.zero.and(Pages::of(pages));
        if !zero.is_empty() {
            for page in zero.iter().map(|page| page as usize - first) {
                bytes[page * PAGE..(page + 1) * PAGE].fill(0);
            }
            self.zero = self.zero.without(zero);
        }
        bytes
    }

    /// The page's bytes; none where they are zeroes.
    pub(super) fn page(&self, page: u64) -> Option<&[u8]> {
        if self.zero.contains(page) {
            return None;
        }
        let at = (page % PAGES) as usize * PAGE;
        self.memory.as_ref().map(|memory| &(**memory).as_ref()[at..at + PAGE])
    }

    /// The bytes of all the block's pages, if it has them all; they stay what they are.
    pub(super) fn lend(&self) -> Option<Arc<Memory>> {
        let is_whole = self.present == Pages::of(0..PAGES) && self.zero.is_empty();
        self.memory.clone().filter(|_| is_whole)
    }

    pub(super) fn take_memory(&mut self) -> Option<Arc<Memory>> {
        self.memory.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_pages_are_what_ranges_say() {
        for (start, end) in [(0, 0), (0, 1), (63, 64), (63, 65), (64, 128), (5, 200), (0, 256), (255, 256)] {
            for block in [0, 3] {
                let pages = block * PAGES + start..block * PAGES + end;
                let set = Pages::of(pages.clone());
                assert!(set.iter().eq(start..end), "{start}..{end}");
                assert_eq!(set.count(), end - start);
                assert!(
                    (block * PAGES..(block + 1) * PAGES)
                        .all(|page| set.contains(page) == pages.contains(&page))
                );
            }
        }
        let (low, high) = (Pages::of(0..100), Pages::of(50..256));
        assert!(low.or(high) == Pages::of(0..256) && low.and(high) == Pages::of(50..100));
        assert!(low.without(high) == Pages::of(0..50));
    }

    #[test]
    fn what_is_lent_stays_what_it_is() {
        let (mut block, spare) = (Block::default(), Spare::default());
        block.bytes_mut(0..PAGES, &spare).fill(7);
        assert!(block.lend().is_none(), "nothing is there");
        block.present = Pages::of(0..PAGES);
        let lent = block.lend().expect("it is whole");
        block.bytes_mut(3..4, &spare).fill(8);
        assert!((*lent).as_ref().iter().all(|byte| *byte == 7));
        let page = |page| block.page(page).expect("it has bytes");
        assert!(page(3) == [8; PAGE] && page(2) == [7; PAGE] && page(4) == [7; PAGE]);
        block.zero = Pages::of(5..6);
        assert!(block.lend().is_none(), "not all of it is in its memory");
    }
}
