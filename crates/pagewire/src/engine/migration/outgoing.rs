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
    tracking: Tracking,
    /// What was written and not answered yet.
    pending: BitSet,
    /// The set that the destination may not have received yet; everything, where that is not known.
    kept: Option<BitSet>,
    /// How much was found to be written since somebody has looked.
    written: u64,
    /// When that look began, and the last one. While one goes on, pages that it has passed are written again, so it is
    /// from begin to begin that the time is counted.
    looked: Instant,
    taken: Instant,
}

/// Whether what was written since somebody has read is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tracking {
    /// Nothing is read.
    Off,
    /// Nothing was read yet; what was written before that is of no interest, and not collected yet.
    Ready,
    On,
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
        Self { name, live, sets: Mutex::new(Sets::new(0)) }
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().expect("no holder panics")
    }

    /// What the destination reads, under a number that it knows it by.
    pub(super) fn region(self: &Arc<Self>, epoch: u64) -> Result<Arc<Region>> {
        let tracked = self.clone();
        let begin = Box::new(move || tracked.begin(&mut tracked.sets()));
        Region::new(&self.name, Arc::new(LiveStore { live: self.live.clone(), epoch, begin }))
    }

    pub(super) fn length(&self) -> u64 {
        self.live.info().length
    }

    /// Begins to track what is written; nothing was answered yet.
    pub(super) fn track(&self) -> Result<()> {
        let mut sets = self.sets();
        let pages = Geometry::new(self.live.info().capacity, ChunkSize::PAGE).page_count();
        *sets = Sets { tracking: Tracking::Ready, ..Sets::new(pages) };
        self.live.track()
    }

    /// Before the first byte is read, or set taken: what was written before, and nobody has collected yet, is read with
    /// everything else. To collect it takes long where all of a large region was written to, and who switches at once
    /// does not need it.
    fn begin(&self, sets: &mut Sets) -> Result<()> {
        if sets.tracking == Tracking::Ready {
            sets.taken = Instant::now();
            sets.looked = sets.taken;
            self.live.take_written(&mut BitSet::new(sets.pending.len()))?;
            sets.tracking = Tracking::On;
        }
        Ok(())
    }

    pub(super) fn untrack(&self) {
        self.live.untrack();
        *self.sets() = Sets::new(0);
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
        match sets.tracking {
            // Nothing was read before: all of it is in the last set.
            Tracking::Ready => {
                let pages = 0..sets.pending.len();
                sets.pending.insert_range(pages);
                sets.tracking = Tracking::Off;
            }
            _ => self.take(&mut sets)?,
        }
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
        if sets.tracking == Tracking::Off {
            return 0;
        }
        let before = sets.written;
        // What cannot be found out is not worth more.
        let _found = self.take(&mut sets);
        sets.written - before
    }

    fn take(&self, sets: &mut Sets) -> Result<()> {
        self.begin(sets)?;
        sets.taken = Instant::now();
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
    /// Of a region of so many pages, which nobody reads.
    fn new(pages: u64) -> Self {
        let now = Instant::now();
        let pending = BitSet::new(pages);
        Self { tracking: Tracking::Off, pending, kept: None, written: 0, looked: now, taken: now }
    }

    fn keep(&mut self) {
        let empty = BitSet::new(self.pending.len());
        self.kept = Some(std::mem::replace(&mut self.pending, empty));
    }

    fn look(&mut self) -> Written {
        let time = self.taken - std::mem::replace(&mut self.looked, self.taken);
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
    use uuid::Uuid;

    use super::*;
    use crate::sink::Part;
    use crate::store::{Capabilities, Gather, Info, Read, Urgency};

    /// Four pages of which a test says what was written, and that count how often they were asked.
    struct Fake {
        written: Mutex<(BitSet, u64)>,
    }

    impl Fake {
        fn write(&self, page: u64) {
            self.written.lock().expect("no holder panics").0.insert(page);
        }

        fn asked(&self) -> u64 {
            self.written.lock().expect("no holder panics").1
        }
    }

    impl Live for Fake {
        fn info(&self) -> Info {
            Info {
                id: Uuid::nil(),
                epoch: 1,
                length: 4 * PAGE_SIZE,
                capacity: 4 * PAGE_SIZE,
                granularity: 4096,
                writable: true,
                capabilities: Capabilities::default(),
            }
        }

        fn read(&self, read: Read) {
            read.ranges.iter().for_each(|range| read.sink.part(Part::Zero(*range)));
            read.sink.done(Ok(()));
        }

        fn track(&self) -> Result<()> {
            Ok(())
        }

        fn untrack(&self) {}

        fn take_written(&self, pages: &mut BitSet) -> Result<()> {
            let mut written = self.written.lock().expect("no holder panics");
            pages.insert_all(&written.0);
            written.0.clear();
            written.1 += 1;
            Ok(())
        }

        fn freeze(&self) -> Result<()> {
            Ok(())
        }

        fn thaw(&self) {}

        fn keep(&self) -> Result<()> {
            Ok(())
        }
    }

    fn outgoing() -> (Arc<Fake>, Arc<Outgoing>) {
        let live = Arc::new(Fake { written: Mutex::new((BitSet::new(4), 0)) });
        let outgoing = Arc::new(Outgoing::new("a".into(), live.clone()));
        (live, outgoing)
    }

    fn read_first_page(outgoing: &Arc<Outgoing>) -> Result<()> {
        let (region, range) = (outgoing.region(1)?, ByteRange::of_pages(0..1));
        let read = |sink| Read { ranges: vec![range], epoch: 1, urgency: Urgency::Background, sink };
        Gather::wait(range, |sink| region.read(read(sink))).map(drop)
    }

    fn pages(from: u64, to: u64) -> Vec<ByteRange> {
        vec![ByteRange::of_pages(from..to)]
    }

    #[test]
    fn what_was_written_before_the_first_read_is_in_no_set() -> Result<()> {
        let (live, outgoing) = outgoing();
        outgoing.track()?;
        live.write(0);
        read_first_page(&outgoing)?;
        assert_eq!(live.asked(), 1);
        live.write(1);
        outgoing.take_set()?;
        assert_eq!(outgoing.kept().ranges, pages(1, 2));
        live.write(2);
        outgoing.take_last(true)?;
        assert_eq!(outgoing.kept().ranges, pages(2, 3));
        live.write(3);
        assert_eq!(outgoing.strays(), PAGE_SIZE);
        Ok(())
    }

    #[test]
    fn who_has_read_nothing_is_told_of_everything_without_a_look() -> Result<()> {
        let (live, outgoing) = outgoing();
        outgoing.track()?;
        live.write(0);
        outgoing.take_last(true)?;
        assert_eq!(outgoing.kept().ranges, pages(0, 4));
        read_first_page(&outgoing)?;
        assert_eq!((live.asked(), outgoing.strays()), (0, 0));
        Ok(())
    }

    #[test]
    fn a_round_before_the_first_read_is_of_what_was_written_since_the_tracking_began() -> Result<()> {
        let (live, outgoing) = outgoing();
        outgoing.track()?;
        live.write(0);
        assert_eq!(outgoing.look()?.bytes, 0);
        live.write(1);
        assert_eq!(outgoing.look()?.bytes, PAGE_SIZE);
        outgoing.take_last(true)?;
        assert_eq!(outgoing.kept().ranges, pages(1, 2));
        Ok(())
    }

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
