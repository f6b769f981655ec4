//! Remembering what is written, for whoever moves the region meanwhile: a second set besides what has to be
//! pushed, into which everything goes that is collected.
//!
//! Whoever asks for it collects first, on its own thread. One thread collects at a time: what another has taken out
//! of the local copy is in the set before the next one looks, so that one question to a local copy that nobody
//! writes to any more answers everything.
//!
//! What is collected so lies aside until the pushing thread collects the next time: a flush that is under way would
//! otherwise never be done with what is written meanwhile.

use std::ops::Range;

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::push::FlushSet;

use super::{Inner, Pusher, State};
use crate::error::{Error, ErrorKind, Result};

/// What was written, as far as it is known.
pub(super) struct Tracked {
    /// Since somebody asked.
    written: BitSet,
    /// What was taken out of the local copy, and is to be pushed when the pushing thread collects.
    aside: BitSet,
}

impl Pusher {
    /// Begins to remember which pages are written, for [`Pusher::take_tracked`]; what was remembered before is
    /// forgotten.
    pub fn track(&self) {
        let mut state = self.inner.lock();
        let pages = state.pages.dirty().len();
        let tracked = state.tracked.get_or_insert_with(|| Tracked::new(pages));
        tracked.written.clear();
    }

    /// Remembers no longer.
    pub fn untrack(&self) {
        let mut state = self.inner.lock();
        state.mark_aside();
        state.tracked = None;
    }

    /// Adds the pages that were written since [`Pusher::track`], or since this was called last, to `pages`, which has
    /// room for those of the capacity. A write that comes meanwhile is in this answer or in the next. Where the region
    /// has become longer or shorter, the pages between are among them.
    ///
    /// # Errors
    ///
    /// As [`LocalCopy::take_dirty`](crate::engine::LocalCopy::take_dirty): the next call then answers everything;
    /// [`ErrorKind::Usage`] where nothing is remembered.
    ///
    /// # Panics
    ///
    /// If `pages` is for a region of another capacity.
    pub fn take_tracked(&self, pages: &mut BitSet) -> Result<()> {
        let _one = self.inner.collecting.lock().expect("no holder panics");
        if self.inner.lock().tracked.is_none() {
            return Err(Error::new(ErrorKind::Usage, "nobody has asked to remember what is written"));
        }
        let mut ranges = Vec::new();
        let taken = self.inner.local.take_dirty(&mut ranges);
        let mut state = self.inner.lock();
        let end = state.length.now;
        let Some(tracked) = &mut state.tracked else {
            // Not any more.
            state.mark(&ranges);
            return taken;
        };
        for run in pages_of(&ranges, end) {
            tracked.written.insert_range(run.clone());
            tracked.aside.insert_range(run);
        }
        taken?;
        pages.insert_all(&tracked.written);
        tracked.written.clear();
        Ok(())
    }
}

impl Inner {
    /// Takes what was written since the last time; from now on it has to be pushed.
    pub(super) fn collect(&self, ranges: &mut Vec<ByteRange>) -> Result<()> {
        let _one = self.collecting.lock().expect("no holder panics");
        ranges.clear();
        let taken = self.local.take_dirty(ranges);
        // What was taken counts as clean also where the rest could not be looked at.
        let mut state = self.lock();
        state.mark_aside();
        state.mark(ranges);
        taken
    }

    /// A flush is done, of a region that had this length: what it covered and was not written since need not be
    /// kept. What was staged behind it is lost where the store is at another `stage`.
    pub(super) fn covered(&self, set: FlushSet, length: u64, epoch: u64, stage: Option<u64>) {
        // What is taken out of the local copy meanwhile would look as if it was not written since.
        let _one = self.collecting.lock().expect("no holder panics");
        let mut state = self.lock();
        let mut clean = state.pages.clean_after(&set);
        if let Some(Tracked { aside, .. }) =
            state.tracked.as_ref().filter(|tracked| !tracked.aside.is_empty())
        {
            let pages = clean.into_iter().flatten().filter(|page| !aside.contains(*page));
            clean = pages.map(|page| page..page + 1).collect();
        }
        let done = state.pages.end_flush(set, true);
        state.flushed(length, epoch);
        if let Some(stage) = stage {
            state.stage = stage;
            state.lost();
        }
        drop(state);
        if done {
            self.local.flushed(&clean);
        }
    }
}

impl Tracked {
    fn new(pages: u64) -> Self {
        Self { written: BitSet::new(pages), aside: BitSet::new(pages) }
    }
}

impl State {
    /// The region has this length from now on: what is between it and the old one has changed.
    pub(super) fn track_length(&mut self, length: u64) {
        let (short, long) = (length.min(self.length.now), length.max(self.length.now));
        let Some(tracked) = self.tracked.as_mut().filter(|_| short < long) else { return };
        tracked.written.insert_range(short / PAGE_SIZE..long.div_ceil(PAGE_SIZE));
        if length == short {
            let end = tracked.aside.len();
            tracked.aside.remove_range(short.div_ceil(PAGE_SIZE)..end);
        }
    }

    /// How many bytes of pages lie aside.
    pub(super) fn bytes_aside(&self) -> u64 {
        self.tracked.as_ref().map_or(0, |tracked| tracked.aside.count() * PAGE_SIZE)
    }

    /// What lies aside has to be pushed.
    fn mark_aside(&mut self) {
        let Some(tracked) = self.tracked.as_mut().filter(|tracked| !tracked.aside.is_empty()) else { return };
        let runs: Vec<Range<u64>> = tracked.aside.runs().collect();
        tracked.aside.clear();
        runs.into_iter().for_each(|run| self.mark_run(run));
    }

    /// Ranges were collected that have to be pushed.
    fn mark(&mut self, ranges: &[ByteRange]) {
        for run in pages_of(ranges, self.length.now) {
            if let Some(tracked) = &mut self.tracked {
                tracked.written.insert_range(run.clone());
            }
            self.mark_run(run);
        }
    }

    fn mark_run(&mut self, run: Range<u64>) {
        if let Some(unkept) = &mut self.unkept {
            unkept.insert_range(run.clone());
        }
        self.pages.mark(run);
    }
}

/// The pages of ranges, as far as a region of this length has them.
fn pages_of(ranges: &[ByteRange], end: u64) -> impl Iterator<Item = Range<u64>> {
    let ranges = ranges.iter().map(move |range| range.clamp_to(end)).filter(|range| !range.is_empty());
    ranges.map(|range| range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE))
}
