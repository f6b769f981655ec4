//! Which pages of a region that is on its way are where.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard};

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use crate::error::Result;
use crate::store::Stage;

/// Which pages are at home, and what happens to the others.
pub(super) struct Pages {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    /// The home's stage that `present` is of.
    stage: u64,
    /// The length that the region has for its writer, in bytes.
    length: u64,
    /// The pages that have arrived, or were written, or became the region's when that became longer here.
    present: BitSet,
    /// Those of them that a flush has covered.
    durable: BitSet,
    /// Those that a flush under way will have covered.
    flushing: Option<BitSet>,
    /// The pages that are being brought.
    filling: BitSet,
    /// The pages that had not arrived, and are being written.
    changing: BitSet,
}

/// Pages that are being written.
pub(super) struct Change {
    stage: u64,
    whole: Vec<Range<u64>>,
    changing: Vec<Range<u64>>,
}

/// Pages that are being brought.
pub(super) struct Claim {
    stage: u64,
    /// The runs of pages, none of which has arrived.
    pub(super) pages: Vec<Range<u64>>,
}

/// The pages that a range covers whole, in a region of that length.
pub(super) fn whole_pages(range: ByteRange, length: u64) -> Range<u64> {
    let end = if range.end >= length { length.div_ceil(PAGE_SIZE) } else { range.end / PAGE_SIZE };
    let start = range.start.div_ceil(PAGE_SIZE);
    start..end.max(start)
}

fn touched_pages(range: ByteRange) -> Range<u64> {
    if range.is_empty() { 0..0 } else { range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE) }
}

impl Pages {
    pub(super) fn new(present: BitSet, stage: Stage) -> Self {
        let len = present.len();
        let state = State {
            stage: stage.number,
            length: stage.length,
            durable: present.clone(),
            present,
            flushing: None,
            filling: BitSet::new(len),
            changing: BitSet::new(len),
        };
        Self { state: Mutex::new(state), moved: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Notices that the home has given up what was staged.
    pub(super) fn look_at(&self, stage: Stage) {
        self.lock().look_at(stage);
    }

    /// What is at home of `ranges`, and what is not.
    pub(super) fn split(&self, ranges: &[ByteRange], stage: Stage) -> (Vec<ByteRange>, Vec<ByteRange>) {
        let mut state = self.lock();
        state.look_at(stage);
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for range in ranges {
            let pages = touched_pages(*range);
            let mut page = pages.start;
            while page < pages.end {
                let is_here = state.is_here(page);
                let end = (page..pages.end).find(|page| state.is_here(*page) != is_here).unwrap_or(pages.end);
                let part = ByteRange::of_pages(page..end).intersect(*range);
                (if is_here { &mut here } else { &mut there }).push(part);
                page = end;
            }
        }
        (here, there)
    }

    pub(super) fn is_absent(&self, page: u64, stage: Stage) -> bool {
        let mut state = self.lock();
        state.look_at(stage);
        !state.present.contains(page)
    }

    /// What has not arrived, in order.
    pub(super) fn absent(&self, stage: Stage) -> Vec<ByteRange> {
        let mut state = self.lock();
        state.look_at(stage);
        let length = state.length;
        let gaps = state.present.gaps().map(|gap| ByteRange::of_pages(gap).clamp_to(length));
        gaps.take_while(|gap| !gap.is_empty()).collect()
    }

    /// The pages that are at home, and flushed.
    pub(super) fn durable(&self, stage: Stage) -> BitSet {
        let mut state = self.lock();
        state.look_at(stage);
        state.durable.clone()
    }

    /// Whether all is at home, and flushed.
    #[cfg(test)]
    pub(super) fn is_durable(&self, stage: Stage) -> bool {
        let mut state = self.lock();
        state.look_at(stage);
        let pages = state.length.div_ceil(PAGE_SIZE);
        state.durable.count_range(0..pages) == pages
    }

    pub(super) fn invalidate(&self, ranges: &[ByteRange]) {
        let mut state = self.lock();
        let len = state.present.len();
        for pages in ranges.iter().map(|range| touched_pages(*range)) {
            let pages = pages.start.min(len)..pages.end.min(len);
            state.present.remove_range(pages.clone());
            state.durable.remove_range(pages.clone());
            if let Some(flushing) = &mut state.flushing {
                flushing.remove_range(pages);
            }
        }
    }

    /// The region has another length at its origin: what is new of a longer one has not arrived.
    pub(super) fn resized(&self, length: u64) {
        self.lock().length = length;
    }

    /// The region has another length here: what is new of a longer one are zeroes.
    pub(super) fn set_length(&self, length: u64) {
        let mut state = self.lock();
        let (old, len) = (state.length.div_ceil(PAGE_SIZE), state.present.len());
        let new = length.div_ceil(PAGE_SIZE).min(len);
        if old < new {
            state.present.insert_range(old..new);
        }
        state.length = length;
    }

    /// Waits until none of the pages is on its way that is not there, and counts those as being written.
    pub(super) fn begin_change(&self, ranges: &[ByteRange]) -> Change {
        let mut state = self.lock();
        let len = state.present.len();
        let touched: Vec<Range<u64>> = ranges
            .iter()
            .map(|range| touched_pages(*range))
            .map(|p| p.start.min(len)..p.end.min(len))
            .collect();
        loop {
            let is_busy = |pages: &Range<u64>| {
                state.filling.count_range(pages.clone()) + state.changing.count_range(pages.clone()) > 0
            };
            if !touched.iter().any(is_busy) {
                break;
            }
            state = self.moved.wait(state).expect("no holder panics");
        }
        let mut changing = Vec::new();
        for pages in touched {
            for page in pages {
                if !state.present.contains(page) {
                    state.changing.insert(page);
                    push(&mut changing, page);
                }
            }
        }
        let (stage, length) = (state.stage, state.length);
        Change { stage, changing, whole: ranges.iter().map(|range| whole_pages(*range, length)).collect() }
    }

    /// The pages were written, if that was done.
    pub(super) fn end_change(&self, change: Change, done: bool, stage: Stage) {
        let mut state = self.lock();
        state.look_at(stage);
        for pages in change.changing {
            state.changing.remove_range(pages);
        }
        // Written to what was given up meanwhile, it is written again.
        if done && change.stage == state.stage {
            let len = state.present.len();
            for pages in change.whole {
                state.present.insert_range(pages.start.min(len)..pages.end.min(len));
            }
        }
        drop(state);
        self.moved.notify_all();
    }

    /// Takes on the pages of `range` that have not arrived, and that nobody is at.
    pub(super) fn claim(&self, range: ByteRange, stage: Stage) -> Claim {
        let mut state = self.lock();
        state.look_at(stage);
        let mut claimed = Vec::new();
        for page in whole_pages(range, state.length) {
            if page < state.present.len()
                && !state.present.contains(page)
                && !state.filling.contains(page)
                && !state.changing.contains(page)
            {
                state.filling.insert(page);
                push(&mut claimed, page);
            }
        }
        Claim { stage: state.stage, pages: claimed }
    }

    /// Pages that were taken on have arrived, if that is `done`.
    pub(super) fn filled(&self, claim: Claim, done: bool, stage: Stage) {
        let mut state = self.lock();
        state.look_at(stage);
        let counts = done && claim.stage == state.stage;
        for pages in claim.pages {
            state.filling.remove_range(pages.clone());
            if counts {
                state.present.insert_range(pages);
            }
        }
        drop(state);
        self.moved.notify_all();
    }

    /// The home is about to be flushed: `note` is told which pages are durable, and which will be. One flush at a time.
    pub(super) fn begin_flush(
        &self,
        stage: Stage,
        note: impl FnOnce(&BitSet, &BitSet) -> Result<()>,
    ) -> Result<()> {
        let (before, after) = {
            let mut state = self.lock();
            state.look_at(stage);
            state.flushing = Some(state.present.clone());
            (state.durable.clone(), state.present.clone())
        };
        let noted = note(&before, &after);
        if noted.is_err() {
            self.lock().flushing = None;
        }
        noted
    }

    /// The home was flushed, if that was done.
    pub(super) fn end_flush(&self, done: bool, stage: Stage) {
        let mut state = self.lock();
        if let Some(flushing) = state.flushing.take().filter(|_| done) {
            state.durable.insert_all(&flushing);
        }
        // After that: a failed flush gives up what was staged.
        state.look_at(stage);
    }
}

impl State {
    fn is_here(&self, page: u64) -> bool {
        self.present.contains(page) && !self.changing.contains(page)
    }

    fn look_at(&mut self, stage: Stage) {
        if stage.number != self.stage {
            self.stage = stage.number;
            self.present = self.durable.clone();
            self.length = stage.length;
        }
    }
}

/// Appends a page to runs of pages, which it is behind.
fn push(runs: &mut Vec<Range<u64>>, page: u64) {
    match runs.last_mut() {
        Some(run) if run.end == page => run.end += 1,
        _ => runs.push(page..page + 1),
    }
}
