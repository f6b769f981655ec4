//! What of a local copy is present, dirty and staged, and which transitions are legal.
//!
//! These are sets, not one state: a page may be dirty and staged at once (written again after its push), and a
//! page of an absent chunk may be written. A page goes round like this:
//!
//! ```text
//!            write             take_dirty            pushed           begin_flush           end_flush(ok)
//!  (clean) ---------> dirty -------------> pushing ---------> staged -------------> flushing ----------> (clean)
//!                     ^ ^ ^                   |                |  ^                     |
//!                     | | +---- put_back -----+                |  +---- end_flush(!ok) -+
//!                     | +------------- lost_server ------------+                        |
//!                     +---------------------- lost_server ------------------------------+
//! ```
//!
//! A write to a page that is somewhere on this way makes it dirty *as well*; nothing that comes back from
//! an earlier push clears that. A page that is being pushed is not taken a second time until the outcome of
//! the first push is known, so that two versions of one page never race to the store.
//!
//! [`CopyState`] holds no bytes and does no I/O. The engine tells it what happened and does what it answers.

use std::ops::Range;

use crate::bitmap::BitSet;
use crate::chunk::{ByteRange, ChunkIndex, Geometry};

/// The sets of one local copy.
///
/// ```
/// use pagewire_core::chunk::{ByteRange, ChunkIndex, ChunkSize, Geometry};
/// use pagewire_core::region::{CopyState, WriteOutcome};
///
/// let mut state = CopyState::new(Geometry::new(1 << 20, ChunkSize::DEFAULT));
/// // One page of the absent chunk 0 is written; its pull fills the rest.
/// assert_eq!(state.write(ByteRange::new(0, 4096))?, WriteOutcome::Marked);
/// assert_eq!(state.place(ChunkIndex(0)), [ByteRange::new(4096, 65536)]);
///
/// let taken = state.take_dirty(256);
/// assert_eq!(taken, [ByteRange::new(0, 4096)]);
/// state.pushed(&taken)?;
/// let flush = state.begin_flush()?;
/// assert!(state.end_flush(flush, true));
/// state.evict(ChunkIndex(0))?;
/// # Ok::<(), pagewire_core::region::CopyStateError>(())
/// ```
#[derive(Clone, Debug)]
pub struct CopyState {
    geometry: Geometry,
    /// Chunks all of whose bytes are in the local copy.
    present: BitSet,
    /// Pages of absent chunks that are in the local copy all the same: written, or pulled one by one.
    known: BitSet,
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
    /// The number of the flush under way.
    flush: Option<u64>,
    flushes_begun: u64,
}

/// Why a transition is not legal. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CopyStateError {
    /// A write past the end of the region.
    #[error("bytes {range} are outside a region of {length} bytes")]
    OutOfRange {
        /// What was to be written.
        range: ByteRange,
        /// The length of the region.
        length: u64,
    },
    /// The outcome of a push that was not under way, or that is no run of whole pages.
    #[error("bytes {0} are not pages whose push is under way")]
    NotPushing(ByteRange),
    /// A second flush before the first has ended.
    #[error("a flush is under way")]
    FlushUnderWay,
    /// The local copy holds what the store may not have yet.
    #[error("chunk {} cannot be dropped: {dirty} pages dirty, {pushing} being pushed, {staged} not flushed", chunk.0)]
    Busy {
        /// The chunk that was to be evicted.
        chunk: ChunkIndex,
        /// Its dirty pages.
        dirty: u64,
        /// Its pages whose push is under way.
        pushing: u64,
        /// Its pages that are pushed and not flushed, those of a flush under way included.
        staged: u64,
    },
}

/// What became of a write.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a write that waits for a pull is not marked"]
pub enum WriteOutcome {
    /// The pages are dirty: the bytes may be written.
    Marked,
    /// Nothing was changed: the write covers a part of pages that are absent, and their other bytes have to be
    /// there first. Pull these ranges (the first or the last page of the write, or both), place them, and
    /// write again.
    PullFirst(Vec<ByteRange>),
}

/// The flush under way, as a token: it stands for what was staged when it began.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "a flush that is begun has to be ended"]
pub struct FlushSet {
    number: u64,
    pages: u64,
}

impl FlushSet {
    /// Pages that the flush covers.
    pub fn pages(&self) -> u64 {
        self.pages
    }
}

impl CopyState {
    /// The state of a copy that holds nothing yet.
    pub fn new(geometry: Geometry) -> Self {
        let pages = || BitSet::new(geometry.page_count());
        Self {
            geometry,
            present: BitSet::new(geometry.chunk_count()),
            known: pages(),
            dirty: pages(),
            pushing: pages(),
            staged: pages(),
            flushing: pages(),
            cursor: 0,
            flush: None,
            flushes_begun: 0,
        }
    }

    /// How the region is cut.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The chunks that are in the local copy.
    pub fn present(&self) -> &BitSet {
        &self.present
    }

    /// The pages that are written and not taken for a push since.
    pub fn dirty(&self) -> &BitSet {
        &self.dirty
    }

    /// The pages whose push is under way.
    pub fn pushing(&self) -> &BitSet {
        &self.pushing
    }

    /// The pages that were pushed since the last flush began; those of a flush under way are not among them.
    pub fn staged(&self) -> &BitSet {
        &self.staged
    }

    /// Whether the store has everything, flushed.
    pub fn is_clean(&self) -> bool {
        [&self.dirty, &self.pushing, &self.staged, &self.flushing].into_iter().all(BitSet::is_empty)
    }

    /// The ranges of whole pages, in order, that have to be pulled before `range` can be read.
    pub fn missing(&self, range: ByteRange) -> Vec<ByteRange> {
        self.absent_pages(self.geometry.pages_touching(range))
    }

    /// A pulled chunk is to be put into the local copy: answers the ranges to fill with the pulled bytes, which
    /// are all that was neither written nor filled before, and marks the chunk present. Empty if it was.
    ///
    /// # Panics
    /// If the region has no such chunk.
    #[track_caller]
    pub fn place(&mut self, chunk: ChunkIndex) -> Vec<ByteRange> {
        assert!(chunk.0 < self.geometry.chunk_count(), "{chunk:?} is outside the region");
        self.place_range(self.geometry.range_of(chunk))
    }

    /// The same for any pulled range. Of a page that is pulled in part nothing is filled. A chunk whose last
    /// missing page this was becomes present.
    ///
    /// The bytes must come from a pull that was issued after the last [`evict`](Self::evict) of the chunk:
    /// what was asked for before may be older than what was written, flushed and dropped since.
    pub fn place_range(&mut self, range: ByteRange) -> Vec<ByteRange> {
        let pages = self.geometry.pages_within(range);
        let fill = self.absent_pages(pages.clone());
        self.mark_known(pages);
        fill
    }

    /// The application writes `range`: marks its pages dirty, unless pages have to be pulled first.
    ///
    /// # Errors
    /// [`CopyStateError::OutOfRange`].
    pub fn write(&mut self, range: ByteRange) -> Result<WriteOutcome, CopyStateError> {
        let length = self.geometry.length();
        if !self.geometry.whole().contains(range) {
            return Err(CopyStateError::OutOfRange { range, length });
        }
        let touched = self.geometry.pages_touching(range);
        let whole = self.geometry.pages_within(range);
        // A write inside one page has no whole page, and `whole` may then lie on either border of it.
        let partly = if whole.is_empty() {
            self.absent_pages(touched.clone())
        } else {
            let mut ranges = self.absent_pages(touched.start..whole.start);
            ranges.extend(self.absent_pages(whole.end..touched.end));
            ranges
        };
        if !partly.is_empty() {
            return Ok(WriteOutcome::PullFirst(partly));
        }
        self.dirty.insert_range(touched.clone());
        self.mark_known(touched);
        Ok(WriteOutcome::Marked)
    }

    /// Takes up to `max_pages` dirty pages for a push: answers their ranges, adjacent pages together. Their dirty
    /// marks are cleared *before* the bytes are read, so a write that arrives in between marks them again.
    ///
    /// Pages that are dirty again while their push is under way are left for later; the answer may be empty
    /// though pages are dirty. Each range must end up in [`pushed`](Self::pushed) or
    /// [`put_back`](Self::put_back).
    pub fn take_dirty(&mut self, max_pages: u64) -> Vec<ByteRange> {
        let mut taken = Vec::new();
        let mut left = max_pages;
        let start = self.cursor;
        for part in [start..self.geometry.page_count(), 0..start] {
            let mut from = part.start;
            while left > 0
                && let Some(run) = self.next_pushable(from).filter(|run| run.start < part.end)
            {
                let run = run.start..run.end.min(part.end).min(run.start.saturating_add(left));
                left -= run.end - run.start;
                self.dirty.remove_range(run.clone());
                self.pushing.insert_range(run.clone());
                from = run.end;
                self.cursor = from;
                self.geometry.range_of_pages(run).append_to(&mut taken);
            }
        }
        taken
    }

    /// A push succeeded: the pages are staged. The ranges may be any pieces, at page borders, of what was taken.
    ///
    /// # Errors
    /// [`CopyStateError::NotPushing`].
    pub fn pushed(&mut self, ranges: &[ByteRange]) -> Result<(), CopyStateError> {
        self.end_push(ranges, |state, pages| state.staged.insert_range(pages))
    }

    /// A push failed: the pages are dirty again. Ranges as in [`pushed`](Self::pushed).
    ///
    /// # Errors
    /// [`CopyStateError::NotPushing`].
    pub fn put_back(&mut self, ranges: &[ByteRange]) -> Result<(), CopyStateError> {
        self.end_push(ranges, |state, pages| state.dirty.insert_range(pages))
    }

    /// A flush is about to be sent to the store: it covers what is staged now. What is pushed while it is under
    /// way is staged for the next one.
    ///
    /// # Errors
    /// [`CopyStateError::FlushUnderWay`].
    pub fn begin_flush(&mut self) -> Result<FlushSet, CopyStateError> {
        if self.flush.is_some() {
            return Err(CopyStateError::FlushUnderWay);
        }
        std::mem::swap(&mut self.staged, &mut self.flushing);
        self.flushes_begun += 1;
        self.flush = Some(self.flushes_begun);
        Ok(FlushSet { number: self.flushes_begun, pages: self.flushing.count() })
    }

    /// The store answered the flush. All or nothing: what it covered is clean if `ok`, and staged again if not.
    ///
    /// True if what was staged when it began is flushed. False after a failure, and also after a success whose
    /// server was [lost](Self::lost_server) meanwhile: nobody can say what that success covered, the pages were
    /// made dirty, and the flush has to be repeated after they are pushed.
    #[must_use = "false means that the flush has to be repeated"]
    #[expect(clippy::needless_pass_by_value, reason = "a flush ends once")]
    pub fn end_flush(&mut self, flush: FlushSet, ok: bool) -> bool {
        if self.flush != Some(flush.number) {
            return false;
        }
        self.flush = None;
        if !ok {
            self.staged.insert_all(&self.flushing);
        }
        self.flushing.clear();
        ok
    }

    /// The server was restarted and has only what was flushed: what is staged has to be pushed again and becomes
    /// dirty; answers how many pages that are. A flush under way is void.
    ///
    /// Pages whose push is under way stay so. Their outcome must tell of the new server: whoever drives the
    /// pushes repeats them there, or puts them back; a success of the old server must not be reported after
    /// this call.
    pub fn lost_server(&mut self) -> u64 {
        let again = self.dirty.insert_all(&self.staged) + self.dirty.insert_all(&self.flushing);
        self.staged.clear();
        self.flushing.clear();
        self.flush = None;
        again
    }

    /// Drops a chunk from the local copy: answers the range whose bytes are now nobody's. It, or what of it was
    /// written before its pull, is absent from here on. Pulls of it that were issued before must be ignored.
    ///
    /// # Errors
    /// [`CopyStateError::Busy`] if the store may not have all of it, flushed.
    ///
    /// # Panics
    /// If the region has no such chunk.
    #[track_caller]
    pub fn evict(&mut self, chunk: ChunkIndex) -> Result<ByteRange, CopyStateError> {
        assert!(chunk.0 < self.geometry.chunk_count(), "{chunk:?} is outside the region");
        let pages = self.geometry.pages_of(chunk);
        let count = |set: &BitSet| set.count_range(pages.clone());
        let (dirty, pushing) = (count(&self.dirty), count(&self.pushing));
        let staged = count(&self.staged) + count(&self.flushing);
        if dirty + pushing + staged > 0 {
            return Err(CopyStateError::Busy { chunk, dirty, pushing, staged });
        }
        self.present.remove(chunk.0);
        self.known.remove_range(pages);
        Ok(self.geometry.range_of(chunk))
    }

    /// The bytes of those pages that are not in the local copy.
    fn absent_pages(&self, pages: Range<u64>) -> Vec<ByteRange> {
        let mut ranges = Vec::new();
        let mut from = pages.start;
        while from < pages.end {
            let chunk = self.geometry.chunk_of_page(from);
            let end = self.geometry.pages_of(chunk).end.min(pages.end);
            if !self.present.contains(chunk.0) {
                while let Some(start) = self.known.next_gap(from).filter(|&start| start < end) {
                    from = self.known.next_member(start).unwrap_or(end).min(end);
                    self.geometry.range_of_pages(start..from).append_to(&mut ranges);
                }
            }
            from = end;
        }
        ranges
    }

    /// The pages hold valid bytes from now on. A chunk that lacks none any more is present.
    fn mark_known(&mut self, pages: Range<u64>) {
        for chunk in self.geometry.touching(self.geometry.range_of_pages(pages.clone())) {
            if !self.present.contains(chunk) {
                let of_chunk = self.geometry.pages_of(ChunkIndex(chunk));
                self.known.insert_range(pages.start.max(of_chunk.start)..pages.end.min(of_chunk.end));
                if self.known.count_range(of_chunk.clone()) == of_chunk.end - of_chunk.start {
                    self.known.remove_range(of_chunk);
                    self.present.insert(chunk);
                }
            }
        }
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

    fn end_push(
        &mut self,
        ranges: &[ByteRange],
        mark: impl Fn(&mut Self, Range<u64>) -> u64,
    ) -> Result<(), CopyStateError> {
        let pages = |range: &ByteRange| self.geometry.pages_within(*range);
        let stray = ranges.iter().find(|range| {
            let of_range = pages(range);
            !self.geometry.whole().contains(**range)
                || of_range != self.geometry.pages_touching(**range)
                || self.pushing.count_range(of_range.clone()) != of_range.end - of_range.start
        });
        if let Some(&range) = stray {
            return Err(CopyStateError::NotPushing(range));
        }
        for range in ranges {
            let pages = self.geometry.pages_within(*range);
            self.pushing.remove_range(pages.clone());
            mark(self, pages);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
