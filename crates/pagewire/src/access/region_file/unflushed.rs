//! What was written to a mounted file and is not flushed yet.
//!
//! The kernel writes its dirty pages back to the mount and forgets them then; but until they are durable at
//! the store somebody has to have them, to read them and to send them again should the store lose them. This
//! is a local copy of those pages alone: they come by writes, are pushed by the
//! [`Pusher`](crate::engine::Pusher), and go when they are flushed.
//!
//! Pages lie in [blocks](block), each with a lock of its own, so that nobody waits while others copy. A block is
//! taken out of the map only while nobody else holds it.

mod block;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use crate::engine::{Lent, LocalCopy};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Completion;
use block::{BLOCK, Block, PAGE, PAGES, Pages, Spare};

/// Pages that were written and are not flushed.
#[derive(Default)]
pub(super) struct Unflushed {
    blocks: Mutex<BTreeMap<u64, Arc<Mutex<Block>>>>,
    spare: Spare,
    /// How many pages there are, and how many of them were not taken for a push since they were written.
    pages: AtomicU64,
    dirty: AtomicU64,
    /// Whether a flush was asked for that makes room.
    asked: AtomicBool,
    /// Those who wait for room.
    waiting: Mutex<Vec<Completion>>,
}

/// A page of which only a part was written, and the rest of which is at the store.
pub(super) struct Incomplete {
    pub(super) page: u64,
    /// What was written of it, and the bytes.
    within: Range<usize>,
    bytes: Vec<u8>,
}

impl Unflushed {
    /// How many bytes of pages there are.
    pub(super) fn bytes(&self) -> u64 {
        self.pages.load(Ordering::Relaxed) * PAGE_SIZE
    }

    /// How many bytes of pages were written and not taken for a push since.
    pub(super) fn dirty_bytes(&self) -> u64 {
        self.dirty.load(Ordering::Relaxed) * PAGE_SIZE
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Mutex<Block>>>> {
        self.blocks.lock().expect("no holder panics")
    }

    fn existing(&self, block: u64) -> Option<Arc<Mutex<Block>>> {
        self.map().get(&block).cloned()
    }

    fn block(&self, block: u64) -> Arc<Mutex<Block>> {
        self.map().entry(block).or_default().clone()
    }

    /// Writes `bytes` at `offset` of a region of `length` bytes, in which they lie. What is answered is written
    /// when [`Unflushed::complete`] has had the rest of its page.
    pub(super) fn write(&self, offset: u64, bytes: &[u8], length: u64) -> Vec<Incomplete> {
        let mut incomplete = Vec::new();
        let range = ByteRange::new(offset, offset + bytes.len() as u64);
        for piece in range.split(BLOCK) {
            let block = self.block(piece.start / BLOCK);
            let mut block = block.lock().expect("no holder panics");
            let whole = piece.start / PAGE_SIZE..piece.end / PAGE_SIZE;
            if piece == ByteRange::of_pages(whole.clone()) {
                let bytes = &bytes[(piece.start - offset) as usize..(piece.end - offset) as usize];
                block.bytes_mut(whole.clone(), &self.spare).copy_from_slice(bytes);
                self.mark(&mut block, Pages::of(whole));
                continue;
            }
            for part in piece.split(PAGE_SIZE) {
                let page = part.start / PAGE_SIZE;
                let bytes = &bytes[(part.start - offset) as usize..(part.end - offset) as usize];
                let within =
                    (part.start % PAGE_SIZE) as usize..(part.start % PAGE_SIZE) as usize + bytes.len();
                let is_present = block.present.contains(page);
                // Behind the region's end are zeroes.
                let is_whole = within.start == 0 && (within.end == PAGE || part.end == length);
                if !is_present && !is_whole {
                    block.fetches += 1;
                    incomplete.push(Incomplete { page, within, bytes: bytes.to_vec() });
                    continue;
                }
                let to = block.bytes_mut(page..page + 1, &self.spare);
                to[within.clone()].copy_from_slice(bytes);
                if !is_present {
                    to[within.end..].fill(0);
                }
                self.mark(&mut block, Pages::of(page..page + 1));
            }
        }
        incomplete
    }

    /// Writes a part of a page, now that the rest is there; or gives it up, without the rest.
    pub(super) fn complete(&self, incomplete: &Incomplete, rest: Option<&[u8]>) {
        let Incomplete { page, within, bytes } = incomplete;
        let number = page / PAGES;
        {
            let block = self.block(number);
            let mut block = block.lock().expect("no holder panics");
            block.fetches -= 1;
            if let Some(rest) = rest {
                let is_present = block.present.contains(*page);
                let to = block.bytes_mut(*page..page + 1, &self.spare);
                if !is_present {
                    to[..rest.len()].copy_from_slice(rest);
                    to[rest.len()..].fill(0);
                }
                to[within.clone()].copy_from_slice(bytes);
                self.mark(&mut block, Pages::of(*page..page + 1));
            }
            if block.fetches == 0 {
                let clean = block.clean;
                self.remove(&mut block, clean);
            }
        }
        self.remove_empty(number);
    }

    /// Writes zeroes to whole pages.
    pub(super) fn zero(&self, pages: Range<u64>) {
        for piece in ByteRange::of_pages(pages).split(BLOCK) {
            let block = self.block(piece.start / BLOCK);
            let mut block = block.lock().expect("no holder panics");
            let pages = Pages::of(piece.start / PAGE_SIZE..piece.end / PAGE_SIZE);
            self.mark(&mut block, pages);
            block.zero = block.zero.or(pages);
        }
    }

    /// These pages of a block were written.
    fn mark(&self, block: &mut Block, pages: Pages) {
        self.pages.fetch_add(pages.without(block.present).count(), Ordering::Relaxed);
        self.dirty.fetch_add(pages.without(block.dirty).count(), Ordering::Relaxed);
        block.present = block.present.or(pages);
        block.dirty = block.dirty.or(pages);
        block.clean = block.clean.without(pages);
    }

    /// These pages of a block are gone.
    fn remove(&self, block: &mut Block, pages: Pages) {
        self.pages.fetch_sub(pages.and(block.present).count(), Ordering::Relaxed);
        self.dirty.fetch_sub(pages.and(block.dirty).count(), Ordering::Relaxed);
        for set in [&mut block.present, &mut block.zero, &mut block.dirty, &mut block.clean] {
            *set = set.without(pages);
        }
    }

    /// Takes a block without pages out of the map, if nobody holds it.
    fn remove_empty(&self, number: u64) {
        let mut map = self.map();
        let Some(block) = map.get_mut(&number).and_then(Arc::get_mut) else { return };
        let block = block.get_mut().expect("no holder panics");
        if block.present.is_empty() && block.fetches == 0 {
            let memory = block.take_memory();
            map.remove(&number);
            memory.into_iter().for_each(|memory| self.spare.keep(memory));
        }
    }

    /// The region ends at `length` now: what is behind is gone.
    pub(super) fn cut(&self, length: u64) {
        let blocks: Vec<u64> = self.map().range(length / BLOCK..).map(|(number, _)| *number).collect();
        for number in blocks {
            if let Some(block) = self.existing(number) {
                let mut block = block.lock().expect("no holder panics");
                let first = (number * PAGES).max(length.div_ceil(PAGE_SIZE)).min((number + 1) * PAGES);
                self.remove(&mut block, Pages::of(first..(number + 1) * PAGES));
                let (page, within) = (length / PAGE_SIZE, (length % PAGE_SIZE) as usize);
                if within != 0 && page / PAGES == number && block.present.contains(page) {
                    block.bytes_mut(page..page + 1, &self.spare)[within..].fill(0);
                }
            }
            self.remove_empty(number);
        }
    }

    /// Whether there is any page of `range`.
    pub(super) fn touches(&self, range: ByteRange) -> bool {
        if self.bytes() == 0 || range.is_empty() {
            return false;
        }
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
        let found: Vec<_> =
            self.map().range(blocks).map(|(number, block)| (*number, block.clone())).collect();
        found.into_iter().any(|(number, block)| {
            let whole = ByteRange::new(number * BLOCK, (number + 1) * BLOCK);
            let part = range.intersect(whole);
            let pages = Pages::of(part.start / PAGE_SIZE..part.end.div_ceil(PAGE_SIZE));
            !block.lock().expect("no holder panics").present.and(pages).is_empty()
        })
    }

    /// Copies what there is of `range` to `out`, which has its length, and answers what there is not.
    pub(super) fn copy_out(&self, range: ByteRange, out: &mut [u8]) -> Vec<ByteRange> {
        let mut gaps = Vec::new();
        for piece in range.split(BLOCK) {
            let Some(block) = self.existing(piece.start / BLOCK) else {
                piece.append_to(&mut gaps);
                continue;
            };
            let block = block.lock().expect("no holder panics");
            for part in piece.split(PAGE_SIZE) {
                let page = part.start / PAGE_SIZE;
                if !block.present.contains(page) {
                    part.append_to(&mut gaps);
                    continue;
                }
                let to = &mut out[(part.start - range.start) as usize..(part.end - range.start) as usize];
                let within = (part.start % PAGE_SIZE) as usize;
                match block.page(page) {
                    Some(bytes) => to.copy_from_slice(&bytes[within..within + to.len()]),
                    None => to.fill(0),
                }
            }
        }
        gaps
    }

    /// Calls `done` as soon as there are fewer than `most` bytes.
    pub(super) fn when_below(&self, most: u64, done: Completion) {
        if self.bytes() < most {
            return done(Ok(()));
        }
        self.waiting.lock().expect("no holder panics").push(done);
        // Everything may have gone in between.
        if self.bytes() < most {
            self.release(&Ok(()));
        }
    }

    /// A flush is to make room. False where one was asked for, after the end of which those who wait by now go on.
    pub(super) fn ask_for_flush(&self) -> bool {
        !self.asked.swap(true, Ordering::AcqRel)
    }

    /// Lets those go on who wait for room, after a flush.
    pub(super) fn release(&self, result: &Result<()>) {
        // Before they are looked for: whoever begins to wait after that asks for another flush.
        self.asked.store(false, Ordering::Release);
        let waiting = std::mem::take(&mut *self.waiting.lock().expect("no holder panics"));
        waiting.into_iter().for_each(|done| done(result.clone()));
    }
}

impl LocalCopy for Unflushed {
    fn place(&self, _: u64, _: &[u8]) -> Result<()> {
        cannot()
    }

    fn place_zero(&self, _: ByteRange) -> Result<()> {
        cannot()
    }

    fn wake(&self, _: ByteRange) -> Result<bool> {
        Ok(true)
    }

    fn fail(&self, _: ByteRange) -> Result<()> {
        Ok(())
    }

    fn evict(&self, _: ByteRange) -> Result<()> {
        cannot()
    }

    fn read_back(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let range = ByteRange::new(offset, offset + bytes.len() as u64);
        match self.copy_out(range, bytes).first() {
            None => Ok(()),
            Some(gap) => Err(Error::new(ErrorKind::Io, format!("bytes {gap} were not written"))),
        }
    }

    fn lend(&self, range: ByteRange) -> Option<Lent> {
        let is_block = range.start.is_multiple_of(BLOCK) && range.len() == BLOCK;
        let block = self.existing(range.start / BLOCK).filter(|_| is_block)?;
        let memory = block.lock().expect("no holder panics").lend();
        memory.map(|memory| memory as Lent)
    }

    fn take_dirty(&self, ranges: &mut Vec<ByteRange>) -> Result<()> {
        let blocks: Vec<_> = self.map().iter().map(|(number, block)| (*number, block.clone())).collect();
        for (number, block) in blocks {
            let mut block = block.lock().expect("no holder panics");
            let taken = std::mem::take(&mut block.dirty);
            self.dirty.fetch_sub(taken.count(), Ordering::Relaxed);
            for page in taken.iter().map(|page| number * PAGES + page) {
                ByteRange::of_pages(page..page + 1).append_to(ranges);
            }
        }
        Ok(())
    }

    fn count_dirty(&self) -> Result<u64> {
        Ok(self.dirty_bytes())
    }

    fn flushed(&self, pages: &[Range<u64>]) {
        for piece in pages.iter().flat_map(|run| ByteRange::of_pages(run.clone()).split(BLOCK)) {
            let number = piece.start / BLOCK;
            if let Some(block) = self.existing(number) {
                let mut block = block.lock().expect("no holder panics");
                let pages = Pages::of(piece.start / PAGE_SIZE..piece.end / PAGE_SIZE);
                let clean = pages.without(block.dirty);
                // Whoever completes a page has asked for the rest of it before, and must not find it gone.
                match block.fetches {
                    0 => self.remove(&mut block, clean),
                    _ => block.clean = block.clean.or(clean.and(block.present)),
                }
            }
            self.remove_empty(number);
        }
        self.release(&Ok(()));
    }
}

fn cannot<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "what is not flushed is only written to"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: u64 = 200 * PAGE_SIZE + 100;

    fn all(copy: &Unflushed) -> (Vec<u8>, Vec<ByteRange>) {
        let mut bytes = vec![0xee; LENGTH as usize];
        let gaps = copy.copy_out(ByteRange::new(0, LENGTH), &mut bytes);
        (bytes, gaps)
    }

    #[test]
    fn pages_are_there_from_their_write_to_their_flush() {
        let copy = Unflushed::default();
        assert!(!copy.touches(ByteRange::new(0, LENGTH)));
        assert!(copy.write(62 * PAGE_SIZE, &[7; 4 * PAGE], LENGTH).is_empty(), "across two blocks");
        assert!(copy.write(200 * PAGE_SIZE, &[8; 100], LENGTH).is_empty(), "the short end is whole");
        copy.zero(64..66);
        assert!(copy.touches(ByteRange::new(66 * PAGE_SIZE - 1, LENGTH)));
        assert!(!copy.touches(ByteRange::new(66 * PAGE_SIZE, 200 * PAGE_SIZE)));
        let (bytes, gaps) = all(&copy);
        let page = |page: usize| &bytes[page * PAGE..(page + 1) * PAGE];
        assert!(page(63) == [7; PAGE] && page(64) == [0; PAGE] && bytes[200 * PAGE..] == [8; 100]);
        assert_eq!(
            gaps,
            [ByteRange::new(0, 62 * PAGE_SIZE), ByteRange::new(66 * PAGE_SIZE, 200 * PAGE_SIZE)]
        );
        let mut taken = Vec::new();
        copy.take_dirty(&mut taken).unwrap();
        assert_eq!(taken, [ByteRange::of_pages(62..66), ByteRange::of_pages(200..201)]);
        assert_eq!((copy.bytes(), copy.dirty_bytes()), (5 * PAGE_SIZE, 0));
        // Written again before the flush is done: it stays.
        assert!(copy.write(63 * PAGE_SIZE + 5, &[9; 10], LENGTH).is_empty(), "it is there");
        copy.flushed(&[62..66, 200..201]);
        assert_eq!((copy.bytes(), copy.dirty_bytes()), (PAGE_SIZE, PAGE_SIZE));
        let (bytes, _) = all(&copy);
        assert_eq!((bytes[63 * PAGE + 4], bytes[63 * PAGE + 5]), (7, 9));
    }

    #[test]
    fn a_page_that_is_written_in_part_is_completed() {
        let copy = Unflushed::default();
        let parts = copy.write(PAGE_SIZE + 10, &[1; 2 * PAGE], LENGTH);
        assert_eq!(parts.iter().map(|part| part.page).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(copy.bytes(), PAGE_SIZE, "the one between");
        // Another part of the same page is completed first.
        let other = copy.write(PAGE_SIZE, &[2; 3], LENGTH);
        copy.complete(&other[0], Some(&[5; PAGE]));
        copy.take_dirty(&mut Vec::new()).unwrap();
        copy.flushed(std::slice::from_ref(&(1..2)));
        assert!(copy.touches(ByteRange::of_pages(1..2)), "it waits for the first part");
        copy.complete(&parts[0], Some(&[6; PAGE]));
        let mut bytes = [0; PAGE];
        assert!(copy.copy_out(ByteRange::of_pages(1..2), &mut bytes).is_empty());
        assert_eq!((bytes[2], bytes[3], bytes[9], bytes[10]), (2, 5, 5, 1), "nothing of it is taken back");
        copy.complete(&parts[1], None);
        assert!(!copy.touches(ByteRange::of_pages(3..4)), "given up");
    }

    #[test]
    fn what_is_cut_off_is_gone_and_zero() {
        let copy = Unflushed::default();
        copy.write(0, &vec![1; 130 * PAGE], LENGTH);
        copy.cut(65 * PAGE_SIZE + 10);
        assert_eq!(copy.bytes(), 66 * PAGE_SIZE);
        let mut bytes = [9; PAGE];
        assert!(copy.copy_out(ByteRange::of_pages(65..66), &mut bytes).is_empty());
        assert!(bytes[..10] == [1; 10] && bytes[10..].iter().all(|byte| *byte == 0));
        copy.cut(0);
        assert_eq!((copy.bytes(), copy.dirty_bytes(), copy.map().len()), (0, 0, 0));
    }

    #[test]
    fn who_waits_for_room_goes_on_when_there_is_some() {
        use std::sync::atomic::AtomicUsize;
        let copy = Unflushed::default();
        copy.write(0, &[1; PAGE], LENGTH);
        let went_on = Arc::new(AtomicUsize::new(0));
        let count = || -> Completion {
            let went_on = went_on.clone();
            Box::new(move |_| {
                went_on.fetch_add(1, Ordering::Relaxed);
            })
        };
        copy.when_below(2 * PAGE_SIZE, count());
        copy.when_below(PAGE_SIZE, count());
        assert_eq!(went_on.load(Ordering::Relaxed), 1);
        copy.take_dirty(&mut Vec::new()).unwrap();
        copy.flushed(std::slice::from_ref(&(0..1)));
        assert_eq!(went_on.load(Ordering::Relaxed), 2);
    }
}
