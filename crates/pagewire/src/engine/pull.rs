//! Pulling a region into a local copy: on demand, and in the background.
//!
//! A [`Puller`] is what every managed access method has. Faults come in by [`Puller::fault`] on the
//! thread that resolves them, which only submits; what comes back is placed by the thread that
//! received it ([`fill`]). The [`background`] thread asks for what is still missing, in the order
//! that was chosen, as one stream where the store can stream.
//!
//! What came is known to the page ([`Puller`] holds a set of pages), since bytes travel in ranges
//! that need not be chunks. A chunk is what is asked for at a fault, and what is counted.

mod background;
mod fill;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

use pagewire_core::bitmap::{AtomicBitSet, BitSet};
use pagewire_core::chunk::{ByteRange, ChunkIndex, ChunkSize, Geometry, PAGE_SIZE};
use pagewire_core::pull::{PullOrder, Readahead};

use super::local_copy::LocalCopy;
use super::progress::{Counters, Progress};
use super::region::Pin;
use super::trace::Trace;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{CacheStore, Read, Stream, Urgency};
use fill::Fill;

/// How a region is pulled.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// The unit that a fault asks for.
    pub chunk: ChunkSize,
    /// What is pulled without being asked for, and in which order.
    pub order: PullOrder,
    /// How many bytes to ask for ahead of an application that reads on and on, at most.
    pub readahead: u64,
    /// How often what could not be had is tried again.
    pub heal_interval: Duration,
    /// After how long without a byte the background pull gives up. None is never: a mapping goes on
    /// when its server comes back, however late.
    pub give_up_after: Option<Duration>,
    /// Where to record the order in which an application needs the region. What the background pull brings before
    /// that is not seen: a trace is best recorded without one.
    pub trace: Option<Arc<Trace>>,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            chunk: ChunkSize::DEFAULT,
            order: PullOrder::Sequential,
            readahead: 4 << 20,
            heal_interval: Duration::from_secs(1),
            give_up_after: None,
            trace: None,
        }
    }
}

/// What becomes of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The bytes are there, or were asked for.
    Handled,
    /// The bytes are on their way already, and should be there by then.
    Soon(Instant),
}

/// The frontier while there is no background pull.
const NOWHERE: u64 = u64::MAX;

/// What is missing behind where the background pull is, by at most so many bytes, is on its way on
/// another connection: they are not equally fast, and each has a part of the window in flight.
const BEHIND: u64 = 64 << 20;

/// What is so far ahead of it, at most, is on its way or about to be.
const AHEAD: u64 = 4 << 20;

/// How long a fault waits for what is about to come in the background before it asks for it itself.
/// On a busy machine the thread that has the bytes may have to wait for a processor for this long.
const SOON: Duration = Duration::from_millis(10);

/// From this round trip on, the page that somebody waits for is asked for before its chunk.
const LONG_WAY: Duration = Duration::from_millis(1);

/// `ranges` in another order: `page` first, if it is in one of them, then the rest.
fn page_first(ranges: &[ByteRange], page: ByteRange) -> Vec<ByteRange> {
    let mut ordered = vec![page];
    ordered.retain(|page| ranges.iter().any(|range| range.contains(*page)));
    for range in ranges {
        // The bytes behind it are likelier to be wanted next.
        let rest = range.without(page).into_iter().rev();
        ordered.extend(rest.filter(|range| !range.is_empty()));
    }
    ordered
}

/// Fills a local copy with one epoch of a region. Dropping it stops the pull; the copy stays as it is.
pub struct Puller {
    inner: Arc<Inner>,
}

/// What the puller, its background thread and the answers under way share. Answers hold it weakly,
/// so that it goes, with the region and the connections, when the puller goes.
struct Inner {
    pin: Arc<Pin>,
    geometry: Geometry,
    local: Arc<dyn LocalCopy>,
    options: PullOptions,
    /// The pages that were placed.
    pages: AtomicBitSet,
    /// The chunks of which every page was placed.
    chunks: AtomicBitSet,
    /// The chunks that were asked for on demand, and have not been answered.
    asked: AtomicBitSet,
    /// Those of them that nobody waited for when they were asked for: on a connection that they share with
    /// pushes and bulk.
    ahead: AtomicBitSet,
    /// The chunks that could not be had, and why.
    failed: Mutex<BTreeMap<u64, Error>>,
    readahead: Mutex<Readahead>,
    stream: Mutex<Option<Box<dyn Stream>>>,
    counters: Counters,
    closed: AtomicBool,
    /// Held for sharing while something is placed; alone, to be sure that nothing is any more.
    placing: RwLock<()>,
    /// Where the background thread rests, and is woken when the puller is closed.
    resting: Mutex<()>,
    closing: Condvar,
    /// Behind the chunk that was tried again last.
    healed: AtomicU64,
    /// Where the background pull is: behind the last byte that it brought.
    frontier: AtomicU64,
    /// Why the background pull has given up, if it has.
    given_up: Mutex<Option<Error>>,
}

impl Puller {
    /// Begins to pull what `pin` shows into `local`, which is empty.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn start(pin: Pin, local: Arc<dyn LocalCopy>, options: PullOptions) -> Result<Self> {
        let pages = Geometry::new(pin.info().length, options.chunk).page_count();
        Self::resume(Arc::new(pin), local, options, &BitSet::new(pages))
    }

    /// The same for a copy that has some of the pages already: `present`, of as many as the region has.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    ///
    /// # Panics
    ///
    /// If `present` is of another number of pages.
    pub fn resume(
        pin: Arc<Pin>,
        local: Arc<dyn LocalCopy>,
        options: PullOptions,
        present: &BitSet,
    ) -> Result<Self> {
        let geometry = Geometry::new(pin.info().length, options.chunk);
        let chunks = geometry.chunk_count();
        let readahead = Readahead::new(options.readahead / options.chunk.bytes());
        let inner = Arc::new(Inner {
            geometry,
            local,
            pages: AtomicBitSet::new(geometry.page_count()),
            chunks: AtomicBitSet::new(chunks),
            asked: AtomicBitSet::new(chunks),
            ahead: AtomicBitSet::new(chunks),
            failed: Mutex::default(),
            readahead: Mutex::new(readahead),
            stream: Mutex::default(),
            counters: Counters::default(),
            closed: AtomicBool::new(false),
            placing: RwLock::default(),
            resting: Mutex::default(),
            closing: Condvar::new(),
            healed: AtomicU64::new(0),
            frontier: AtomicU64::new(NOWHERE),
            given_up: Mutex::default(),
            options,
            pin,
        });
        inner.pages.put_back(present);
        if !present.is_empty() {
            for chunk in 0..chunks {
                if inner.are_there(geometry.pages_of(ChunkIndex(chunk))) {
                    inner.chunks.insert(chunk);
                }
            }
        }
        let puller = Self { inner };
        background::start(&puller.inner)?;
        Ok(puller)
    }

    /// An application has touched the byte at `offset` and waits for it. Returns at once; whoever
    /// waits is woken when the bytes are placed, or when they cannot be had.
    ///
    /// Answers [`Fault::Soon`] where nothing was asked for, because the background pull is about to
    /// bring the bytes: tell [`Puller::overdue`] if that takes longer than it says.
    pub fn fault(&self, offset: u64) -> Fault {
        self.inner.fault(offset)
    }

    /// What was to come soon has not: asks for it, unless it has come by now.
    pub fn overdue(&self, offset: u64) {
        self.inner.overdue(offset);
    }

    /// Waits until every page of `range` is there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfRange`]; whatever keeps one of them from being had.
    pub fn prefault(&self, range: ByteRange) -> Result<()> {
        self.inner.pin.info().check(range)?;
        // A few at a time: the memory that answers take on their way is bounded.
        let step = self.inner.geometry.chunk_size().bytes().max(4 << 20);
        range.split(step).try_for_each(|range| self.inner.prefault(range))
    }

    /// Counts `range` as there though nothing was placed: the application has given up the bytes.
    pub fn supersede(&self, range: ByteRange) {
        self.inner.mark_present(range);
    }

    /// Ends the pull: nothing is placed any more when it returns. Answers which pages were, and what they
    /// are of.
    pub fn stop(&self) -> (BitSet, Arc<Pin>) {
        self.close();
        drop(self.inner.placing.write().expect("no holder panics"));
        (self.inner.pages.snapshot(), self.inner.pin.clone())
    }

    /// How far the pull is.
    pub fn progress(&self) -> Progress {
        self.inner.progress()
    }

    /// Waits until everything is there.
    ///
    /// # Errors
    ///
    /// Why the background pull has given up, if it has; [`ErrorKind::Usage`] if there is none.
    pub fn wait(&self) -> Result<Progress> {
        loop {
            if let Some(progress) = self.wait_until(Instant::now() + Duration::from_secs(3600))? {
                return Ok(progress);
            }
        }
    }

    /// Waits until everything is there, or until `deadline`: then the answer is none.
    ///
    /// # Errors
    ///
    /// As [`Puller::wait`].
    pub fn wait_until(&self, deadline: Instant) -> Result<Option<Progress>> {
        let inner = &self.inner;
        if matches!(inner.options.order, PullOrder::None) && !inner.chunks.is_full() {
            return Err(Error::new(ErrorKind::Usage, "there is no background pull to wait for"));
        }
        let answer = inner.counters.wait_for_end(deadline, || {
            if inner.chunks.is_full() {
                return Some(Ok(inner.progress()));
            }
            inner.given_up().map(Err)
        });
        answer.transpose()
    }

    /// Progress at each `interval`, and once more when everything is there or the background pull
    /// has given up; then the iterator ends.
    pub fn updates(&self, interval: Duration) -> impl Iterator<Item = Progress> + '_ {
        let mut ended = false;
        std::iter::from_fn(move || {
            if ended {
                return None;
            }
            ended = !matches!(self.wait_until(Instant::now() + interval), Ok(None));
            Some(self.progress())
        })
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        self.close();
    }
}

impl Puller {
    fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        self.inner.counters.notify();
        drop(self.inner.resting.lock().expect("no holder panics"));
        self.inner.closing.notify_all();
        // Out of the lock: the end of a stream is told to its sink on this thread.
        let stream = self.inner.stream.lock().expect("no holder panics").take();
        drop(stream);
    }
}

impl Inner {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn given_up(&self) -> Option<Error> {
        self.given_up.lock().expect("no holder panics").clone()
    }

    fn fault(self: &Arc<Self>, offset: u64) -> Fault {
        self.counters.faults.fetch_add(1, Ordering::Relaxed);
        let Some(chunk) = self.geometry.chunk_at(offset) else { return Fault::Handled };
        if let Some(trace) = &self.options.trace {
            trace.record(ByteRange::new(offset, offset + 1));
        }
        if self.is_there(offset) {
            return Fault::Handled;
        }
        // A program that reads along where the background pull is would ask for everything twice.
        let frontier = self.frontier.load(Ordering::Relaxed);
        let near = frontier.saturating_sub(BEHIND)..frontier.saturating_add(AHEAD);
        if frontier != NOWHERE && near.contains(&offset) && !self.asked.contains(chunk.0) {
            return Fault::Soon(Instant::now() + SOON);
        }
        if self.ahead.contains(chunk.0) {
            self.read_ahead(chunk);
            return Fault::Soon(Instant::now() + SOON);
        }
        self.demand_from(chunk, offset, Urgency::Demand);
        self.read_ahead(chunk);
        Fault::Handled
    }

    fn overdue(self: &Arc<Self>, offset: u64) {
        if let Some(chunk) = self.geometry.chunk_at(offset)
            && !self.is_there(offset)
        {
            self.demand_from(chunk, offset, Urgency::Demand);
        }
    }

    /// Whether the page has come after the access and before the fault was read. Who waits for it is
    /// woken then.
    fn is_there(&self, offset: u64) -> bool {
        let page = offset / PAGE_SIZE;
        if !self.pages.contains(page) {
            return false;
        }
        match self.local.wake(self.geometry.range_of_pages(page..page + 1)) {
            Ok(there) => there,
            Err(error) => {
                self.check(Err(error));
                true
            }
        }
    }

    /// Asks for what is missing of a chunk, unless that was done.
    fn demand(self: &Arc<Self>, chunk: ChunkIndex, urgency: Urgency) {
        self.demand_from(chunk, self.geometry.range_of(chunk).start, urgency);
    }

    /// The same for somebody who waits for the page at `offset`, which is in the chunk.
    fn demand_from(self: &Arc<Self>, chunk: ChunkIndex, offset: u64, urgency: Urgency) {
        if urgency == Urgency::Background {
            self.ahead.insert(chunk.0);
        }
        let is_first = self.asked.insert(chunk.0);
        // Whoever waits does not wait behind pushes and bulk: it is asked for once more.
        let overtakes = urgency == Urgency::Demand && self.ahead.remove(chunk.0);
        if !is_first && !overtakes {
            return;
        }
        let mut missing = self.missing(self.geometry.range_of(chunk));
        // A chunk may take several round trips where the link is long and has been idle, since TCP
        // starts slowly; one page never does. On a short link it would only be one more frame.
        if urgency == Urgency::Demand && self.pin.region().round_trip() >= LONG_WAY {
            missing = page_first(
                &missing,
                self.geometry.range_of_pages(offset / PAGE_SIZE..offset / PAGE_SIZE + 1),
            );
        }
        if urgency == Urgency::Demand {
            self.counters.demand_reads.fetch_add(1, Ordering::Relaxed);
        }
        let sink = Arc::new(Fill::new(self, chunk, urgency));
        if missing.is_empty() {
            return crate::store::Sink::done(&*sink, Ok(()));
        }
        let epoch = self.pin.epoch();
        self.pin.region().read(Read { ranges: missing, epoch, urgency, sink });
    }

    /// An application that reads on and on is to find the next chunks there.
    fn read_ahead(self: &Arc<Self>, chunk: ChunkIndex) {
        let ahead = {
            let mut readahead = self.readahead.lock().expect("no holder panics");
            readahead.on_fault(chunk, self.geometry.chunk_count())
        };
        if ahead.is_empty() {
            return;
        }
        let stream = self.stream.lock().expect("no holder panics");
        if let Some(stream) = &*stream {
            return stream.steer(&[self.geometry.range_of_chunks(ahead)]);
        }
        drop(stream);
        // A store without streams answers on this thread, which must not wait for a disk.
        let streams = self.pin.info().capabilities.stream;
        let urgency = if streams { Urgency::Background } else { Urgency::Demand };
        for chunk in ahead {
            self.demand(ChunkIndex(chunk), urgency);
        }
    }

    /// The parts of `range` whose pages were not placed.
    fn missing(&self, range: ByteRange) -> Vec<ByteRange> {
        let mut missing = Vec::new();
        for page in self.geometry.pages_touching(range).filter(|page| !self.pages.contains(*page)) {
            self.geometry.range_of_pages(page..page + 1).append_to(&mut missing);
        }
        missing
    }

    fn are_there(&self, mut pages: std::ops::Range<u64>) -> bool {
        pages.all(|page| self.pages.contains(page))
    }

    fn mark_present(&self, range: ByteRange) {
        let pages = self.geometry.pages_within(range);
        if pages.is_empty() {
            return;
        }
        self.pages.insert_range(pages);
        for chunk in self.geometry.touching(range) {
            let pages = self.geometry.pages_of(ChunkIndex(chunk));
            let whole = self.are_there(pages);
            // Of two threads that place a chunk's last pages, at least the later one sees them all.
            if whole && self.chunks.insert(chunk) {
                self.failed.lock().expect("no holder panics").remove(&chunk);
            }
        }
        if self.chunks.is_full() {
            self.counters.notify();
        } else {
            self.counters.notify_step();
        }
    }

    /// An error of the local copy itself: unless it can pass, its memory is gone, and there is nothing
    /// left to do.
    fn check(&self, result: Result<()>) {
        let Err(error) = result else { return };
        let region = self.pin.region().name();
        if error.can_retry() {
            return tracing::warn!(region, %error, "bytes could not be placed; they are pulled again");
        }
        if !self.closed.swap(true, Ordering::AcqRel) {
            tracing::warn!(region, %error, "the memory of the copy is gone");
            self.given_up.lock().expect("no holder panics").get_or_insert(error);
            self.counters.notify();
        }
    }

    /// A chunk cannot be had: whoever waits for it gets an error.
    fn fail(&self, chunk: ChunkIndex, error: &Error) {
        let _placing = self.placing.read().expect("no holder panics");
        if self.is_closed() {
            return;
        }
        let range = self.geometry.range_of(chunk);
        let region = self.pin.region().name();
        let news = self.failed.lock().expect("no holder panics").insert(chunk.0, error.clone()).is_none();
        // Looked at after the chunk counts as failed: what comes later than this takes that back.
        let missing = self.missing(range);
        if missing.is_empty() {
            self.failed.lock().expect("no holder panics").remove(&chunk.0);
            return;
        }
        if news {
            tracing::error!(region, %error, "bytes {range} cannot be had; whoever touches them gets an error");
        }
        for range in missing {
            self.check(self.local.fail(range));
        }
        self.counters.notify();
    }

    fn prefault(self: &Arc<Self>, range: ByteRange) -> Result<()> {
        let chunks = self.geometry.touching(range);
        for chunk in chunks.clone() {
            self.failed.lock().expect("no holder panics").remove(&chunk);
            if !self.chunks.contains(chunk) {
                self.demand(ChunkIndex(chunk), Urgency::Demand);
            }
        }
        let pages = self.geometry.pages_touching(range);
        let answer = self.counters.wait(None, || {
            if self.are_there(pages.clone()) {
                return Some(Ok(()));
            }
            if let Some(error) = self.given_up() {
                return Some(Err(error));
            }
            if self.is_closed() {
                return Some(Err(Error::new(ErrorKind::Cancelled, "the copy was closed")));
            }
            let failed = self.failed.lock().expect("no holder panics");
            failed.range(chunks.clone()).next().map(|(_, error)| Err(error.clone()))
        });
        answer.expect("without a deadline there is an answer")
    }

    fn progress(&self) -> Progress {
        let mut progress = Progress {
            length: self.geometry.length(),
            chunks: self.geometry.chunk_count(),
            chunks_present: self.chunks.count(),
            chunks_failed: self.failed.lock().expect("no holder panics").len() as u64,
            ..Progress::default()
        };
        self.counters.fill(&mut progress);
        progress.cached_bytes = self.pin.region().cache().map_or(0, CacheStore::cached_bytes);
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_that_is_waited_for_comes_first_and_nothing_is_lost_or_doubled() {
        let range = |start: u64, end: u64| ByteRange::new(start * PAGE_SIZE, end * PAGE_SIZE);
        assert_eq!(page_first(&[range(0, 16)], range(5, 6)), [range(5, 6), range(6, 16), range(0, 5)]);
        assert_eq!(page_first(&[range(0, 16)], range(0, 1)), [range(0, 1), range(1, 16)]);
        assert_eq!(page_first(&[range(0, 16)], range(15, 16)), [range(15, 16), range(0, 15)]);
        assert_eq!(
            page_first(&[range(0, 2), range(4, 6)], range(4, 5)),
            [range(4, 5), range(0, 2), range(5, 6)]
        );
        // It has come by another way meanwhile.
        assert_eq!(page_first(&[range(0, 2), range(4, 6)], range(3, 4)), [range(0, 2), range(4, 6)]);
        // The last page of a region may be short.
        let short = ByteRange::new(4 * PAGE_SIZE, 4 * PAGE_SIZE + 5);
        assert_eq!(page_first(&[ByteRange::new(0, short.end)], short), [short, range(0, 4)]);
    }
}
