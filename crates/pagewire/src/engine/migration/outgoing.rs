//! One region of a migration, at its origin: what was written of it, and what the destination was told of that.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, ChunkSize, Geometry, PAGE_SIZE};
use pagewire_core::wire::MAX_RANGES;

use super::live::{Live, LiveStore};
use crate::engine::Region;
use crate::error::Result;

/// A region that is moved away.
pub(super) struct Outgoing {
    pub(super) name: String,
    pub(super) live: Arc<dyn Live>,
    sets: Mutex<Sets>,
}

struct Sets {
    /// What was written and not answered yet.
    pending: BitSet,
    /// The set that the destination may not have received yet; everything, where that is not known.
    kept: Option<BitSet>,
    /// How much was found to be written since somebody has looked, and since when.
    written: u64,
    looked: Instant,
}

/// What was written, since somebody has looked.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) time: Duration,
    pub(super) ranges: Vec<ByteRange>,
}

impl Outgoing {
    pub(super) fn new(name: String, live: Arc<dyn Live>) -> Self {
        let sets = Sets { pending: BitSet::new(0), kept: None, written: 0, looked: Instant::now() };
        Self { name, live, sets: Mutex::new(sets) }
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().expect("no holder panics")
    }

    /// What the destination reads, under a number that it knows it by.
    pub(super) fn region(&self, epoch: u64) -> Result<Arc<Region>> {
        Region::new(&self.name, Arc::new(LiveStore { live: self.live.clone(), epoch }))
    }

    pub(super) fn length(&self) -> u64 {
        self.live.info().length
    }

    /// Begins to track what is written; nothing was answered yet.
    pub(super) fn track(&self) -> Result<()> {
        let mut sets = self.sets();
        let pages = Geometry::new(self.live.info().capacity, ChunkSize::PAGE).page_count();
        *sets = Sets { pending: BitSet::new(pages), kept: None, written: 0, looked: Instant::now() };
        self.live.track()?;
        // What was written before, and nobody has collected yet, is read with everything else.
        self.live.take_written(&mut BitSet::new(pages))?;
        sets.looked = Instant::now();
        Ok(())
    }

    pub(super) fn untrack(&self) {
        self.live.untrack();
        let mut sets = self.sets();
        (sets.pending, sets.kept) = (BitSet::new(0), None);
    }

    /// Takes what was written since the last set, which was received, as the next one.
    pub(super) fn take_set(&self) -> Result<()> {
        let mut sets = self.sets();
        self.take(&mut sets)?;
        sets.keep();
        Ok(())
    }

    /// The same for the last set; where the one before was not `confirmed` to be received, that belongs to it, too.
    pub(super) fn take_last(&self, confirmed: bool) -> Result<()> {
        let mut sets = self.sets();
        self.take(&mut sets)?;
        let Sets { pending, kept, .. } = &mut *sets;
        if let Some(kept) = kept.as_ref().filter(|_| !confirmed) {
            pending.insert_all(kept);
        }
        sets.keep();
        Ok(())
    }

    /// How much was written since somebody has looked.
    pub(super) fn look(&self) -> Result<Written> {
        let mut sets = self.sets();
        self.take(&mut sets)?;
        Ok(sets.look())
    }

    /// The set that is kept.
    pub(super) fn kept(&self) -> Written {
        let mut sets = self.sets();
        let ranges = sets.kept.as_ref().map(|set| self.ranges(set)).unwrap_or_default();
        Written { ranges, ..sets.look() }
    }

    /// How many bytes of pages were written though the application was suspended.
    pub(super) fn strays(&self) -> u64 {
        let mut sets = self.sets();
        let before = sets.written;
        // What cannot be found out is not worth more.
        let _found = self.take(&mut sets);
        sets.written - before
    }

    fn take(&self, sets: &mut Sets) -> Result<()> {
        let mut taken = BitSet::new(sets.pending.len());
        self.live.take_written(&mut taken)?;
        sets.written += taken.count() * PAGE_SIZE;
        sets.pending.insert_all(&taken);
        Ok(())
    }

    /// The pages of a set as ranges, as few as an answer may have.
    fn ranges(&self, set: &BitSet) -> Vec<ByteRange> {
        let length = self.live.info().length;
        let runs = set.runs().map(|run| ByteRange::of_pages(run).clamp_to(length));
        coarsen(runs.filter(|range| !range.is_empty()).collect(), MAX_RANGES)
    }
}

impl Sets {
    fn keep(&mut self) {
        let empty = BitSet::new(self.pending.len());
        self.kept = Some(std::mem::replace(&mut self.pending, empty));
    }

    fn look(&mut self) -> Written {
        let now = Instant::now();
        let time = now - std::mem::replace(&mut self.looked, now);
        Written { bytes: std::mem::take(&mut self.written), time, ranges: Vec::new() }
    }
}

/// At most so many ranges that hold all of these, which are in order: the narrowest gaps are closed.
fn coarsen(ranges: Vec<ByteRange>, most: usize) -> Vec<ByteRange> {
    let Some(excess) = ranges.len().checked_sub(most).filter(|excess| *excess > 0) else { return ranges };
    let mut gaps: Vec<u64> = ranges.windows(2).map(|pair| pair[1].start - pair[0].end).collect();
    let (_, &mut widest, _) = gaps.select_nth_unstable(excess - 1);
    let mut coarse: Vec<ByteRange> = Vec::with_capacity(most);
    for range in ranges {
        match coarse.last_mut() {
            Some(last) if range.start - last.end <= widest => last.end = range.end,
            _ => coarse.push(range),
        }
    }
    coarse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_gaps_are_closed() {
        let ranges = |pages: &[(u64, u64)]| -> Vec<ByteRange> {
            pages.iter().map(|&(from, to)| ByteRange::of_pages(from..to)).collect()
        };
        let all = ranges(&[(0, 1), (2, 3), (9, 10), (11, 12), (30, 31)]);
        assert_eq!(coarsen(all.clone(), 5), all);
        assert_eq!(coarsen(all.clone(), 3), ranges(&[(0, 3), (9, 12), (30, 31)]));
        assert_eq!(coarsen(all.clone(), 2), ranges(&[(0, 12), (30, 31)]));
        assert_eq!(coarsen(all, 1), ranges(&[(0, 31)]));
        let every_second: Vec<ByteRange> =
            (0..100_000).map(|page| ByteRange::of_pages(page * 2..page * 2 + 1)).collect();
        let coarse = coarsen(every_second.clone(), 1000);
        assert!(coarse.len() <= 1000);
        assert!(every_second.iter().all(|range| coarse.iter().any(|wide| wide.contains(*range))));
    }
}
