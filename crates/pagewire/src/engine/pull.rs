//! Pulling a region into a local copy: on demand, and in the background.
//!
//! A [`Puller`] is what every managed access method has. Faults come in by [`Puller::fault`] on the
//! thread that resolves them, which only submits ([`demand`]); what comes back is placed by the thread that
//! received it ([`fill`]). The [`background`] thread asks for what is still missing, in the order
//! that was chosen, as one stream where the store can stream.
//!
//! What came is known to the page ([`Puller`] holds a set of pages), since bytes travel in ranges
//! that need not be chunks. A chunk is what is asked for at a fault, and what is counted.

mod background;
mod demand;
mod fill;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

use pagewire_core::bitmap::{AtomicBitSet, BitSet};
use pagewire_core::chunk::{ByteRange, ChunkIndex, ChunkSize, Geometry};
use pagewire_core::pull::{PullOrder, Readahead};

use super::local_copy::LocalCopy;
use super::progress::{Counters, Progress};
use super::region::Pin;
use super::trace::Trace;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{CacheStore, Stream};

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
