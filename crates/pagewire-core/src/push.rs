//! What of a local copy has to be pushed to the store, is being pushed, is staged there, and is being
//! flushed; and which transitions are legal.
//!
//! These are sets of pages, not one state: a page may be dirty and staged at once, when it was written again
//! after its push. A page goes round like this:
//!
//! ```text
//!            write               take              pushed           begin_flush         end_flush(done)
//!  (clean) ---------> dirty -------------> pushing ---------> staged -----------> flushing ---------> (clean)
//!                     ^ ^ ^                   |                 |                    |
//!                     | | +---- put_back -----+                 |                    |
//!                     | +---------------- lost -----------------+                    |
//!                     +------------- lost, end_flush(given up) ----------------------+
//! ```
//!
//! A write to a page that is somewhere on this way makes it dirty *as well*; nothing that comes back from an
//! earlier push clears that. A page that is being pushed is not taken a second time until the outcome of the
//! first push is known, so that two versions of one page never race to the store.
//!
//! What the store has staged it can lose: by a restart, or by a flush that fails. A *round* ends then; what
//! was pushed in it is dirty again, and the outcome of a push that began in it counts as a failure, since
//! nobody can say whether the store had it before or after.
//!
//! [`PushState`] holds no bytes and does no I/O. The engine tells it what happened and does what it answers.

use std::ops::Range;

use crate::bitmap::BitSet;

/// The sets of one local copy.
///
/// ```
/// use pagewire_core::push::PushState;
///
/// let mut state = PushState::new(256);
/// state.mark(3..5);
/// let batch = state.take(256).expect("two pages");
/// assert_eq!(batch.pages(), [3..5]);
/// state.pushed(batch);
/// let flush = state.begin_flush().expect("none is under way");
/// assert!(state.end_flush(flush, true));
/// assert!(state.is_clean());
/// ```
#[derive(Clone, Debug)]
pub struct PushState {
    /// Pages written and not taken for a push since.
    dirty: BitSet,
    /// Pages taken for a push whose outcome is open.
    pushing: BitSet,
    /// Pages pushed since the last flush began.
    staged: BitSet,
    /// Pages that the flush under way covers.
    flushing: BitSet,
    /// The page that the next push starts at: going round, so that a page that is written all the time does
    /// not keep the pages behind it from being pushed.
    cursor: u64,
    round: u64,
    /// The number of the flush under way.
    flush: Option<u64>,
    flushes_begun: u64,
}

/// Pages that were taken for a push. Its outcome has to be told.
#[derive(Debug)]
#[must_use = "a push has an outcome"]
pub struct Batch {
    pages: Vec<Range<u64>>,
    round: u64,
}

impl Batch {
    /// Which pages, in runs.
    pub fn pages(&self) -> &[Range<u64>] {
        &self.pages
    }

    /// How many pages.
    pub fn count(&self) -> u64 {
        self.pages.iter().map(|run| run.end - run.start).sum()
    }
}

/// The flush under way, as a token: it stands for what was staged when it began.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a flush that is begun has to be ended"]
pub struct FlushSet {
    number: u64,
    pages: u64,
}

impl FlushSet {
    /// How many pages it covers.
    pub fn pages(&self) -> u64 {
        self.pages
    }
}

impl PushState {
    /// The state of a copy of so many pages, of which none is written.
    pub fn new(pages: u64) -> Self {
        let set = || BitSet::new(pages);
        Self {
            dirty: set(),
            pushing: set(),
            staged: set(),
            flushing: set(),
            cursor: 0,
            round: 0,
            flush: None,
            flushes_begun: 0,
        }
    }

    /// The pages that are written and not taken for a push since.
    pub fn dirty(&self) -> &BitSet {
        &self.dirty
    }

    /// The pages whose push is under way.
    pub fn pushing(&self) -> &BitSet {
        &self.pushing
    }

    /// The pages that were pushed since the last flush began.
    pub fn staged(&self) -> &BitSet {
        &self.staged
    }

    /// Whether everything that was marked is pushed.
    pub fn is_pushed(&self) -> bool {
        self.dirty.is_empty() && self.pushing.is_empty()
    }

    /// Whether the store has everything, flushed.
    pub fn is_clean(&self) -> bool {
        self.is_pushed() && self.staged.is_empty() && self.flushing.is_empty()
    }

    /// Pages were written.
    ///
    /// # Panics
    /// If there are no such pages.
    pub fn mark(&mut self, pages: Range<u64>) {
        self.dirty.insert_range(pages);
    }

    /// Pages are gone: what was written to them is of no interest any more. None of them may be on its way.
    pub fn forget(&mut self, pages: Range<u64>) {
        debug_assert_eq!(self.pushing.count_range(pages.clone()), 0, "the outcome of a push is awaited");
        for set in [&mut self.dirty, &mut self.staged, &mut self.flushing] {
            set.remove_range(pages.clone());
        }
    }

    /// Takes up to `most` dirty pages for a push. Their dirty marks are cleared *before* the bytes are read, so a
    /// write that arrives in between marks them again. A run of pages that reaches across a multiple of `most` is
    /// cut there, and ends the batch, so that long runs are taken in pieces that are aligned.
    ///
    /// None where there are none but those that are dirty again while their push is under way.
    pub fn take(&mut self, most: u64) -> Option<Batch> {
        let mut pages: Vec<Range<u64>> = Vec::new();
        let mut left = most;
        let start = self.cursor;
        for part in [start..self.dirty.len(), 0..start] {
            let mut from = part.start;
            while left > 0
                && let Some(run) = self.next_pushable(from).filter(|run| run.start < part.end)
            {
                let border = (run.start / most + 1).saturating_mul(most);
                let end = run.end.min(part.end).min(run.start.saturating_add(left)).min(border);
                left = if end == border && end < run.end { 0 } else { left - (end - run.start) };
                let run = run.start..end;
                self.dirty.remove_range(run.clone());
                self.pushing.insert_range(run.clone());
                from = run.end;
                self.cursor = from;
                pages.push(run);
            }
        }
        // Whoever writes to a store wants its ranges in order.
        pages.sort_unstable_by_key(|run| run.start);
        (!pages.is_empty()).then_some(Batch { pages, round: self.round })
    }

    /// A push has succeeded: its pages are staged, if the store is still in the round that it began in.
    pub fn pushed(&mut self, batch: Batch) {
        if batch.round != self.round {
            return self.put_back(batch);
        }
        for run in batch.pages {
            self.pushing.remove_range(run.clone());
            self.staged.insert_range(run);
        }
    }

    /// A push has failed: its pages are dirty again.
    pub fn put_back(&mut self, batch: Batch) {
        for run in batch.pages {
            self.pushing.remove_range(run.clone());
            self.dirty.insert_range(run);
        }
    }

    /// A flush is about to be sent to the store: it covers what is staged now. What is pushed while it is under
    /// way is staged for the next one. None while another flush is under way.
    pub fn begin_flush(&mut self) -> Option<FlushSet> {
        if self.flush.is_some() {
            return None;
        }
        std::mem::swap(&mut self.staged, &mut self.flushing);
        self.flushes_begun += 1;
        self.flush = Some(self.flushes_begun);
        Some(FlushSet { number: self.flushes_begun, pages: self.flushing.count() })
    }

    /// The pages that the flush covers and that nothing is to be done about once it is done: those that were
    /// not written again since.
    pub fn clean_after(&self, flush: &FlushSet) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        if self.flush != Some(flush.number) {
            return runs;
        }
        let again =
            |page: u64| [&self.dirty, &self.pushing, &self.staged].iter().any(|set| set.contains(page));
        for page in self.flushing.iter().filter(|page| !again(*page)) {
            match runs.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    /// The store has answered the flush: what it covered is clean if it is done; otherwise the store has given
    /// up everything that was staged ([`PushState::lost`]).
    ///
    /// Answers whether what was staged when it began is flushed: not if it failed, nor if it was
    /// [lost](Self::lost) meanwhile, since nobody can say then what a success covered.
    #[must_use = "false means that the flush has to be repeated"]
    #[expect(clippy::needless_pass_by_value, reason = "a flush ends once")]
    pub fn end_flush(&mut self, flush: FlushSet, done: bool) -> bool {
        if self.flush != Some(flush.number) {
            return false;
        }
        if done {
            self.flush = None;
            self.flushing.clear();
        } else {
            self.lost();
        }
        done
    }

    /// The store has lost what was staged, and is as the last flush that was done has left it: everything else
    /// has to be pushed again. A flush under way is void. Answers how many pages became dirty.
    pub fn lost(&mut self) -> u64 {
        let again = self.dirty.insert_all(&self.staged) + self.dirty.insert_all(&self.flushing);
        self.staged.clear();
        self.flushing.clear();
        self.flush = None;
        self.round += 1;
        again
    }

    /// The first run of pages at or after `from` that are dirty and not being pushed.
    fn next_pushable(&self, mut from: u64) -> Option<Range<u64>> {
        loop {
            let start = self.pushing.next_gap(self.dirty.next_member(from)?)?;
            if self.dirty.contains(start) {
                let dirty_end = self.dirty.next_gap(start).unwrap_or(self.dirty.len());
                let end = self.pushing.next_member(start).unwrap_or(dirty_end).min(dirty_end);
                return Some(start..end);
            }
            from = start;
        }
    }
}

#[cfg(test)]
mod tests;
