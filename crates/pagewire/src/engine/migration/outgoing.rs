//! One region of a migration, at its origin: what was written of it, and what the destination was told of that.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, ChunkSize, Geometry, PAGE_SIZE};
use pagewire_core::wire::{MAX_RANGES, Witnessed};

use super::live::{Live, LiveStore};
use super::witness::Witness;
use super::witnessing::Witnessing;
use crate::engine::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Read;

/// As much as a witness may lack when one switches who does not know of it.
const UNWATCHED: u64 = 16 << 20;

/// A region that is moved away.
pub(super) struct Outgoing {
    pub(super) name: String,
    pub(super) live: Arc<dyn Live>,
    sets: Arc<Mutex<Sets>>,
    /// Where it is streamed to first, and how long that may fail.
    witness: Option<(Witness, Duration)>,
    witnessing: Mutex<Option<Arc<Witnessing>>>,
}

struct Sets {
    /// What was written and not answered yet.
    pending: BitSet,
    /// The set that the destination may not have received yet; everything, where that is not known.
    kept: Option<BitSet>,
    /// What its witness lacks, where it has one.
    unwitnessed: Option<BitSet>,
    /// Which tracking all of this is of.
    number: u64,
    tracking: Tracking,
    /// Whether somebody has asked how far this is, and so knows of the witness.
    is_watched: bool,
    /// What was found to be written since somebody has looked.
    written: BitSet,
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

/// What a witness is to be told of a region, for as long as the tracking lasts.
pub(super) struct Unwitnessed {
    live: Arc<dyn Live>,
    sets: Arc<Mutex<Sets>>,
    number: u64,
}

/// What was written, since somebody has looked.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) time: Duration,
    pub(super) ranges: Vec<ByteRange>,
}

impl Outgoing {
    pub(super) fn new(name: String, live: Arc<dyn Live>, witness: Option<(Witness, Duration)>) -> Self {
        let sets = Arc::new(Mutex::new(Sets::new(0, 0, false)));
        Self { name, live, sets, witness, witnessing: Mutex::default() }
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().expect("no holder panics")
    }

    /// What the destination reads, under a number that it knows it by.
    pub(super) fn region(self: &Arc<Self>, epoch: u64) -> Result<Arc<Region>> {
        let tracked = self.clone();
        let begin = Box::new(move || tracked.sets().begin(&*tracked.live));
        Region::new(&self.name, Arc::new(LiveStore { live: self.live.clone(), epoch, begin }))
    }

    pub(super) fn length(&self) -> u64 {
        self.live.info().length
    }

    /// Begins to track what is written; nothing was answered yet.
    pub(super) fn track(&self) -> Result<()> {
        let mut sets = self.sets();
        let pages = Geometry::new(self.live.info().capacity, ChunkSize::PAGE).page_count();
        *sets =
            Sets { tracking: Tracking::Ready, ..Sets::new(pages, sets.number + 1, self.witness.is_some()) };
        self.live.track()?;
        let Some((witness, patience)) = &self.witness else { return Ok(()) };
        // It reads at once.
        sets.begin(&*self.live)?;
        let number = sets.number;
        drop(sets);
        let unwitnessed = Unwitnessed { live: self.live.clone(), sets: self.sets.clone(), number };
        let witnessing = Witnessing::start(witness.clone(), *patience, &self.name, unwitnessed)?;
        *self.lock_witnessing() = Some(Arc::new(witnessing));
        Ok(())
    }

    pub(super) fn untrack(&self) {
        self.live.untrack();
        self.let_go_of_witness();
        let mut sets = self.sets();
        *sets = Sets::new(0, sets.number + 1, false);
    }

    fn lock_witnessing(&self) -> MutexGuard<'_, Option<Arc<Witnessing>>> {
        self.witnessing.lock().expect("no holder panics")
    }

    fn witnessing(&self) -> Option<Arc<Witnessing>> {
        self.lock_witnessing().clone()
    }

    /// How far the witness is, where there is one.
    ///
    /// # Errors
    ///
    /// Why it was given up.
    pub(super) fn witnessed(&self) -> Result<Option<Witnessed>> {
        self.witnessing().map(|witnessing| witnessing.witnessed()).transpose()
    }

    /// Whether it can be switched without the application standing still for as long as a witness takes that is not
    /// reached yet, or of which who switches does not know.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] where who switches has to name it; whatever keeps it from being reached.
    pub(super) fn check_witnessed(&self) -> Result<()> {
        let Some(witnessing) = self.witnessing() else { return Ok(()) };
        witnessing.reached()?;
        let missing = witnessing.witnessed()?.missing;
        if missing > UNWATCHED && !self.sets().is_watched {
            let text = format!(
                "'{}' is streamed to a witness before it moves, which lacks {missing} bytes: who takes it over names it, too",
                self.name
            );
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Ok(())
    }

    /// The region is frozen and its last set is taken: the witness gets what it lacks.
    pub(super) fn begin_to_seal(&self) {
        if let Some(witnessing) = self.witnessing() {
            witnessing.begin_to_seal();
        }
    }

    /// Waits until the witness has all of the frozen region.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from that.
    pub(super) fn sealed(&self) -> Result<()> {
        self.witnessing().map_or(Ok(()), |witnessing| witnessing.sealed())
    }

    /// Nobody needs the witness any more: its lease is given back.
    pub(super) fn let_go_of_witness(&self) {
        *self.lock_witnessing() = None;
    }

    /// Takes what was written since the last set, which was received, as the next one.
    pub(super) fn take_set(&self) -> Result<()> {
        let mut sets = self.sets();
        sets.take(&*self.live)?;
        sets.keep();
        Ok(())
    }

    /// The application is about to be suspended: what was written since the last set, and would take long to be collected
    /// while it stands still, is collected before.
    pub(super) fn prepare(&self) -> Result<()> {
        self.live.prepare()?;
        let mut sets = self.sets();
        match sets.tracking {
            Tracking::On => sets.take(&*self.live).map(drop),
            Tracking::Ready | Tracking::Off => Ok(()),
        }
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
            _ => drop(sets.take(&*self.live)?),
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
        sets.is_watched = true;
        sets.take(&*self.live)?;
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
        // What cannot be found out is not worth more.
        self.sets().take(&*self.live).unwrap_or(0) * PAGE_SIZE
    }

    /// The pages of a set as ranges, as few as an answer may have.
    fn ranges(&self, set: &BitSet) -> Vec<ByteRange> {
        let length = self.live.info().length;
        let runs = set.runs().map(|run| ByteRange::of_pages(run).clamp_to(length));
        coarsen(runs.filter(|range| !range.is_empty()).collect(), MAX_RANGES)
    }
}

impl Unwitnessed {
    /// What there is, as long as the tracking lasts.
    fn with<T: Default>(&self, with: impl FnOnce(&mut Sets) -> T) -> T {
        let mut sets = self.sets.lock().expect("no holder panics");
        if sets.number == self.number { with(&mut sets) } else { T::default() }
    }

    pub(super) fn length(&self) -> u64 {
        self.live.info().length
    }

    pub(super) fn capacity(&self) -> u64 {
        self.live.info().capacity
    }

    /// Reads what the application sees.
    pub(super) fn read(&self, read: Read) {
        self.live.read(read);
    }

    /// Finds what was written since the last time: it belongs to the destination's next set, too.
    pub(super) fn collect(&self) -> Result<()> {
        self.with(|sets| Some(sets.take(&*self.live))).transpose().map(drop)
    }

    /// Takes on the next pages from `from` on that the witness lacks, one behind the other: `most` at most.
    pub(super) fn take(&self, from: u64, most: u64) -> Option<Range<u64>> {
        let end = self.length().div_ceil(PAGE_SIZE);
        self.with(|sets| {
            let unwitnessed = sets.unwitnessed.as_mut()?;
            // What is behind the end may become part of the region.
            let first = unwitnessed.next_member(from).filter(|first| *first < end)?;
            unwitnessed.take_run(first, most.min(end - first))
        })
    }

    /// The witness has lost these pages, or may have.
    pub(super) fn put_back(&self, pages: &BitSet) {
        self.with(|sets| {
            if let Some(unwitnessed) = &mut sets.unwitnessed {
                unwitnessed.insert_all(pages);
            }
        });
    }

    /// How many bytes the witness lacks, of what was found.
    pub(super) fn missing(&self) -> u64 {
        let pages = self.length().div_ceil(PAGE_SIZE);
        self.with(|sets| {
            let unwitnessed = sets.unwitnessed.as_ref();
            unwitnessed.map_or(0, |set| set.count_range(0..pages.min(set.len())) * PAGE_SIZE)
        })
    }
}

impl Sets {
    /// Of a region of so many pages, which nobody reads.
    fn new(pages: u64, number: u64, is_witnessed: bool) -> Self {
        let now = Instant::now();
        Self {
            pending: BitSet::new(pages),
            kept: None,
            unwitnessed: is_witnessed.then(|| BitSet::full(pages)),
            number,
            tracking: Tracking::Off,
            is_watched: false,
            written: BitSet::new(pages),
            looked: now,
            taken: now,
        }
    }

    /// Before the first byte is read, or set taken: what was written before, and nobody has collected yet, is read with
    /// everything else. To collect it takes long where all of a large region was written to, and who switches at once
    /// does not need it.
    fn begin(&mut self, live: &dyn Live) -> Result<()> {
        if self.tracking == Tracking::Ready {
            self.taken = Instant::now();
            self.looked = self.taken;
            live.take_written(&mut BitSet::new(self.pending.len()))?;
            self.tracking = Tracking::On;
        }
        Ok(())
    }

    /// Takes what was written since the last time, and answers how many pages that was.
    fn take(&mut self, live: &dyn Live) -> Result<u64> {
        self.begin(live)?;
        if self.tracking == Tracking::Off {
            return Ok(0);
        }
        self.taken = Instant::now();
        let mut taken = BitSet::new(self.pending.len());
        live.take_written(&mut taken)?;
        self.written.insert_all(&taken);
        self.pending.insert_all(&taken);
        if let Some(unwitnessed) = &mut self.unwitnessed {
            unwitnessed.insert_all(&taken);
        }
        Ok(taken.count())
    }

    fn keep(&mut self) {
        let empty = BitSet::new(self.pending.len());
        self.kept = Some(std::mem::replace(&mut self.pending, empty));
    }

    fn look(&mut self) -> Written {
        let time = self.taken - std::mem::replace(&mut self.looked, self.taken);
        let bytes = self.written.count() * PAGE_SIZE;
        self.written.clear();
        Written { bytes, time, ranges: Vec::new() }
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
        let outgoing = Arc::new(Outgoing::new("a".into(), live.clone(), None));
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
    fn what_is_collected_before_the_suspension_is_in_the_last_set() -> Result<()> {
        let (live, outgoing) = outgoing();
        outgoing.track()?;
        read_first_page(&outgoing)?;
        live.write(1);
        outgoing.prepare()?;
        live.write(2);
        outgoing.take_last(true)?;
        assert_eq!(outgoing.kept().ranges, pages(1, 3));
        Ok(())
    }

    #[test]
    fn who_has_read_nothing_is_told_of_everything_without_a_look() -> Result<()> {
        let (live, outgoing) = outgoing();
        outgoing.track()?;
        live.write(0);
        outgoing.prepare()?;
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
