//! Staging: what is written goes to the journal, a slot for each page, and only the writer sees it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE, round_up};
use pagewire_core::journal::{Area, Index, hash};

use super::journaled::{Journaled, Writing, check};
use super::view::{Committed, Source, ZERO};
use crate::error::Result;
use crate::store::disk::Disk;
use crate::store::{STAGED, too_long};

const PAGE: usize = PAGE_SIZE as usize;

/// What is staged for the next epoch.
pub(super) struct Staged {
    epoch: u64,
    /// Names what is staged since something was last lost: with an earlier life of the store, or because it
    /// was given up.
    pub(super) number: u64,
    pages: HashMap<u64, Slot>,
    /// How many slots there are.
    pub(super) slots: u64,
    /// Those of them that no page has any more. Whoever was reading may still read from them.
    freed: Vec<u64>,
    /// Those that nobody reads from either.
    free: Vec<u64>,
    /// Pages that were staged, and whose slot may hold anything since it could not be written again.
    broken: HashSet<u64>,
    /// The region's length with what is staged, and the shortest that it was; and without.
    pub(super) length: u64,
    pub(super) cut: u64,
    before: u64,
    /// The writer's token, and the number of its last flush.
    pub(super) token: u64,
    pub(super) flushed: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    slot: u64,
    hash: u64,
}

impl Staged {
    pub(super) fn new(epoch: u64, length: u64, (token, flushed): (u64, u64)) -> Self {
        Self {
            epoch,
            number: new_number(),
            pages: HashMap::new(),
            slots: 0,
            freed: Vec::new(),
            free: Vec::new(),
            broken: HashSet::new(),
            length,
            cut: length,
            before: length,
            token,
            flushed,
        }
    }

    pub(super) fn area(&self) -> Area {
        Area::of_epoch(self.epoch)
    }

    pub(super) fn slot(&self, page: u64) -> Option<u64> {
        self.pages.get(&page).map(|slot| slot.slot)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.length == self.before && self.cut == self.before
    }

    /// Whether something that was staged is lost.
    pub(super) fn is_broken(&self) -> bool {
        !self.broken.is_empty()
    }

    /// What is staged is given up, of a region of this length. Whoever has not heard of that finds another
    /// number, and does not take an empty stage for what it has written.
    pub(super) fn give_up(&mut self, length: u64) {
        if !self.is_empty() || self.is_broken() {
            self.number = new_number();
        }
        self.clear(length);
    }

    /// Nothing is staged any more, of a region of this length.
    fn clear(&mut self, length: u64) {
        self.pages.clear();
        self.broken.clear();
        self.freed.clear();
        self.free.clear();
        self.slots = 0;
        (self.length, self.cut, self.before) = (length, length, length);
    }

    /// What is staged is an epoch now; the next one begins.
    pub(super) fn commit(&mut self, flushed: u64) -> Committed {
        let pages = self.pages.drain().map(|(page, slot)| (page, slot.slot)).collect();
        let committed = Committed { epoch: self.epoch, pages, length: self.length, cut: self.cut };
        self.epoch += 1;
        self.flushed = flushed;
        self.clear(committed.length);
        committed
    }

    /// A page holds zeroes now.
    fn zero(&mut self, page: u64) {
        if let Some(Slot { slot, .. }) = self.pages.insert(page, Slot { slot: ZERO, hash: 0 })
            && slot != ZERO
        {
            self.freed.push(slot);
        }
        self.broken.remove(&page);
    }

    /// The pages from `end` on are gone.
    fn cut(&mut self, end: u64) {
        let freed = self.pages.iter().filter(|(page, slot)| **page >= end && slot.slot != ZERO);
        self.freed.extend(freed.map(|(_, slot)| slot.slot));
        self.pages.retain(|page, _| *page < end);
        self.broken.retain(|page| *page < end);
    }

    /// The slots for some pages: those that they have, and others.
    fn take_slots(&mut self, pages: Range<u64>) -> Vec<u64> {
        pages
            .map(|page| match self.slot(page) {
                Some(slot) if slot != ZERO => slot,
                _ => self.free.pop().unwrap_or_else(|| {
                    self.slots += 1;
                    self.slots - 1
                }),
            })
            .collect()
    }

    /// What the area holds.
    pub(super) fn index(&self) -> Index {
        let mut index = Index::default();
        for (page, slot) in &self.pages {
            match slot.slot {
                ZERO => index.zeroes.push(*page),
                number => index.pages.push((*page, number, slot.hash)),
            }
        }
        index
    }
}

/// A number that no stage had before.
fn new_number() -> u64 {
    let mut random = [0; 8];
    random.copy_from_slice(&crate::peer::random_id()[..8]);
    u64::from_le_bytes(random) | 1
}

/// Pages with their bytes: those of a write, cut at the borders of pages.
enum Part<'a> {
    /// Whole pages from this one on.
    Whole(u64, &'a [u8]),
    /// Bytes within one page.
    Within(ByteRange, &'a [u8]),
}

fn parts<'a>(ranges: &[ByteRange], bytes: &'a [u8]) -> Vec<Part<'a>> {
    let mut parts = Vec::with_capacity(ranges.len());
    let mut rest = bytes;
    for range in ranges {
        let (mut these, behind) = rest.split_at(range.len() as usize);
        rest = behind;
        let mut at = range.start;
        while at < range.end {
            let within = at % PAGE_SIZE;
            let whole = (range.end - at) / PAGE_SIZE * PAGE_SIZE;
            let count = match within {
                0 if whole > 0 => whole,
                _ => (PAGE_SIZE - within).min(range.end - at),
            };
            let (bytes, more) = these.split_at(count as usize);
            parts.push(match count == whole && within == 0 {
                true => Part::Whole(at / PAGE_SIZE, bytes),
                false => Part::Within(ByteRange::new(at, at + count), bytes),
            });
            these = more;
            at += count;
        }
    }
    parts
}

impl Journaled {
    /// Stages a write.
    pub(super) fn write(&self, ranges: &[ByteRange], bytes: &[u8]) -> Result<()> {
        let mut writing = self.writing()?;
        self.check_staged(ranges)?;
        let journal = self.sidecar.disk()?;
        for part in parts(ranges, bytes) {
            match part {
                Part::Whole(page, bytes) => self.stage_pages(&*journal, page, bytes)?,
                Part::Within(range, bytes) => self.stage_within(&*journal, &mut writing, range, bytes)?,
            }
        }
        Ok(())
    }

    /// Stages a write of zeroes.
    pub(super) fn zero(&self, ranges: &[ByteRange]) -> Result<()> {
        let mut writing = self.writing()?;
        self.check_staged(ranges)?;
        let journal = self.sidecar.disk()?;
        for range in ranges {
            let (first, last) = (range.start.div_ceil(PAGE_SIZE), range.end / PAGE_SIZE);
            // Of a last page that is short, all that there is is a whole page.
            let at_end = range.end == self.staged().length;
            let last = if at_end { range.end.div_ceil(PAGE_SIZE) } else { last };
            if first >= last {
                let zeroes = [0; 2 * PAGE];
                let pieces = [
                    range.intersect(ByteRange::new(0, round_up(range.start, PAGE_SIZE))),
                    range.intersect(ByteRange::new(round_up(range.start, PAGE_SIZE), u64::MAX)),
                ];
                for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
                    self.stage_within(&*journal, &mut writing, piece, &zeroes[..piece.len() as usize])?;
                }
                continue;
            }
            let (front, back) = (first * PAGE_SIZE, last * PAGE_SIZE);
            for piece in [ByteRange::new(range.start, front), ByteRange::new(back.min(range.end), range.end)]
            {
                if !piece.is_empty() {
                    let zeroes = [0; PAGE];
                    self.stage_within(&*journal, &mut writing, piece, &zeroes[..piece.len() as usize])?;
                }
            }
            let mut staged = self.staged();
            (first..last).for_each(|page| staged.zero(page));
        }
        Ok(())
    }

    /// Stages another length.
    pub(super) fn set_length(&self, length: u64) -> Result<()> {
        let mut writing = self.writing()?;
        if length > self.capacity {
            return Err(too_long(length, self.capacity));
        }
        let journal = self.sidecar.disk()?;
        let now = self.staged().length;
        let tail = ByteRange::new(length, round_up(length, PAGE_SIZE).min(now).max(length));
        if !tail.is_empty() {
            // It is zero should the region grow over it.
            let zeroes = [0; PAGE];
            self.stage_within(&*journal, &mut writing, tail, &zeroes[..tail.len() as usize])?;
        }
        let mut staged = self.staged();
        staged.length = length;
        staged.cut = staged.cut.min(length);
        staged.cut(length.div_ceil(PAGE_SIZE));
        Ok(())
    }

    fn check_staged(&self, ranges: &[ByteRange]) -> Result<()> {
        let length = self.staged().length;
        ranges.iter().try_for_each(|range| check(*range, length))
    }

    /// Stages a part of a page, with the rest of it as it is for the writer.
    fn stage_within(
        &self,
        journal: &dyn Disk,
        writing: &mut Writing,
        range: ByteRange,
        bytes: &[u8],
    ) -> Result<()> {
        let page = range.start / PAGE_SIZE;
        let whole = ByteRange::of_pages(page..page + 1);
        let there = whole.clamp_to(self.staged().length);
        writing.buffer.clear();
        writing.buffer.resize(PAGE, 0);
        self.read_staged(there, &mut writing.buffer)?;
        let within = (range.start - whole.start) as usize;
        writing.buffer[within..within + bytes.len()].copy_from_slice(bytes);
        self.stage_pages(journal, page, &writing.buffer)
    }

    /// What the writer sees of a range within a page.
    fn read_staged(&self, range: ByteRange, bytes: &mut [u8]) -> Result<()> {
        let (pieces, _ticket) = self.resolve(STAGED, &[range])?;
        for piece in pieces {
            let at = (piece.range.start - range.start) as usize;
            let filled = piece.bytes_end.saturating_sub(piece.range.start) as usize;
            let bytes = &mut bytes[at..at + filled];
            let journal = self.sidecar.existing();
            let read = match (&piece.source, journal) {
                (Source::Data, _) => self.data.read_exact_at(bytes, piece.range.start),
                (Source::Journal(place), Some(journal)) => journal.read_exact_at(bytes, *place),
                _ => Ok(()),
            };
            read.map_err(|error| self.sidecar.failed("read back from the file or", &error))?;
        }
        Ok(())
    }

    /// Sees to it that staging `pages` makes the area no longer than the region can be, whatever was staged and
    /// replaced by zeroes, or cut off, before.
    fn reuse_slots(&self, pages: &Range<u64>) {
        let most = self.capacity.div_ceil(PAGE_SIZE);
        let freed = {
            let mut staged = self.staged();
            if staged.slots + (pages.end - pages.start) <= most {
                return;
            }
            std::mem::take(&mut staged.freed)
        };
        if !freed.is_empty() {
            self.gate.wait();
            self.staged().free.extend(freed);
        }
    }

    /// Stages whole pages: each that is staged already in its slot, the others in new ones, one after the
    /// other.
    fn stage_pages(&self, journal: &dyn Disk, first: u64, bytes: &[u8]) -> Result<()> {
        let hashes: Vec<u64> = bytes.chunks_exact(PAGE).map(hash).collect();
        let pages = first..first + hashes.len() as u64;
        self.reuse_slots(&pages);
        let (area, slots) = {
            let mut staged = self.staged();
            (staged.area(), staged.take_slots(pages.clone()))
        };
        let mut done = 0;
        while done < slots.len() {
            let run = 1 + slots[done..].windows(2).take_while(|pair| pair[0] + 1 == pair[1]).count();
            let range = ByteRange::new(slots[done] * PAGE_SIZE, (slots[done] + run as u64) * PAGE_SIZE);
            let mut at = done * PAGE;
            let written = area.places(range).try_for_each(|(place, length)| {
                let piece = &bytes[at..at + length as usize];
                at += length as usize;
                journal.write_all_at(piece, place)
            });
            let mut staged = self.staged();
            for index in done..done + run {
                let page = first + index as u64;
                if written.is_ok() {
                    staged.pages.insert(page, Slot { slot: slots[index], hash: hashes[index] });
                    staged.broken.remove(&page);
                } else if staged.pages.contains_key(&page) {
                    staged.broken.insert(page);
                }
            }
            if written.is_err() {
                // Nobody has read from those that no page has got.
                let unused = pages.clone().zip(&slots).skip(done);
                let unused = unused.filter(|(page, slot)| staged.slot(*page) != Some(**slot));
                let unused: Vec<u64> = unused.map(|(_, slot)| *slot).collect();
                staged.free.extend(unused.into_iter().rev());
            }
            drop(staged);
            written.map_err(|error| self.sidecar.failed("write to", &error))?;
            done += run;
        }
        Ok(())
    }
}
