//! Writing a local copy back: in the background, and as a flush when somebody asks for one.
//!
//! One thread does it all, in turns: it collects what was written ([`LocalCopy::take_dirty`]), sends it
//! in frames of scattered pages, several of them on their way at once ([`send`]), and flushes
//! ([`worker`]). What is collected goes through core's [`PushState`], which knows what still has to be
//! pushed whatever fails or is lost on the way.
//!
//! Where the region has a cache on this host, what is collected is [kept](keep) there too, so that it survives
//! this process; and it is [remembered](track) for whoever moves the region to another host.
//!
//! A flush takes two round trips where little is written: one for the pages, and one for itself.

mod keep;
mod send;
mod track;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ChunkSize, Geometry};
use pagewire_core::push::PushState;
use serde::Serialize;

use super::local_copy::LocalCopy;
use super::region::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Completion, FlushDone, Info, too_long, wait};

/// How long to wait at the end for the answers to what is on its way, so that nothing comes after the
/// lease is given back.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How a local copy is written back.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// How often what was written is pushed in the background, and flushed locally where the region has a cache;
    /// none pushes at a flush only.
    pub interval: Option<Duration>,
    /// From so many written bytes on it is pushed at once.
    pub max_dirty: u64,
    /// How long a flush goes on trying while the store cannot be reached.
    pub patience: Duration,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self {
            interval: Some(Duration::from_secs(1)),
            max_dirty: 64 << 20,
            patience: Duration::from_secs(30),
        }
    }
}

/// How far the writing back is. Numbers of bytes and of what has happened only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PushProgress {
    /// The newest epoch that is known of.
    pub epoch: u64,
    /// How many bytes of pages are collected and not pushed.
    pub dirty_bytes: u64,
    /// How many bytes of pages are pushed and not flushed.
    pub staged_bytes: u64,
    /// How many bytes were pushed.
    pub pushed_bytes: u64,
    /// In how many writes.
    pub pushes: u64,
    /// How many flushes made an epoch.
    pub flushes: u64,
    /// How many writes and flushes failed, and were or will be repeated.
    pub failures: u64,
    /// What failed last, if nothing has succeeded since.
    pub last_error: Option<String>,
}

/// Writes a local copy back, until it is dropped. What is not flushed then is given up.
pub struct Pusher {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

struct Inner {
    writer: Writer,
    local: Arc<dyn LocalCopy>,
    options: PushOptions,
    /// Held while something is collected, from before the local copy is looked through until what it answers is
    /// marked.
    collecting: Mutex<()>,
    state: Mutex<State>,
    /// Something has happened: an answer, a request, the end.
    moved: Condvar,
    stopping: AtomicBool,
}

struct State {
    pages: PushState,
    /// The pages that were written since they were kept in the region's cache, where it has one.
    unkept: Option<BitSet>,
    /// Whether the length has changed since, and whether keeping them fails.
    unkept_length: bool,
    keeping_fails: bool,
    /// The pages that were written since somebody asked, where somebody wants to know.
    tracked: Option<track::Tracked>,
    length: Lengths,
    /// The stage that the store was at when the first push of this round was sent.
    stage: u64,
    /// The number of the last flush.
    flushes: u64,
    in_flight: usize,
    /// What has failed since anybody looked.
    failure: Option<Error>,
    /// Why nothing can be written any more.
    over: Option<Error>,
    requests: Vec<Request>,
    /// Whether somebody wants a push now.
    hurry: bool,
    progress: PushProgress,
}

/// The region's length: as it is now, and what of its way there the store has to be told.
struct Lengths {
    now: u64,
    /// The shortest that it was since the last flush: what is behind is zero where it is longer now.
    shortest: u64,
    /// What it was at the last flush.
    flushed: u64,
    /// The shortest that it was since the store was told of it, if there is anything to tell.
    untold: Option<u64>,
    /// How often the store began and ended to be told: odd in between.
    tellings: u64,
}

/// A moment of the store that is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    stage: u64,
    tellings: u64,
}

#[cfg_attr(
    not(any(feature = "fuse", feature = "nbd")),
    expect(dead_code, reason = "for those who read what is not pushed")
)]
impl Moment {
    /// Whether what is staged was not lost between this moment and `later`.
    pub(crate) fn has_kept(self, later: Self) -> bool {
        self.stage == later.stage
    }

    /// Whether the store had one length from this moment to `later`, so that what it can be asked for has been so
    /// all the time.
    pub(crate) fn has_one_length(self, later: Self) -> bool {
        self == later && self.tellings.is_multiple_of(2)
    }
}

impl Lengths {
    fn set(&mut self, length: u64) {
        self.now = length;
        self.shortest = self.shortest.min(length);
        self.untold = Some(self.untold.unwrap_or(length).min(length));
    }

    fn is_flushed(&self) -> bool {
        self.now == self.flushed && self.shortest == self.flushed
    }
}

enum Request {
    Flush(FlushDone),
    FlushLocal(Completion),
    SetLength(u64, Completion),
}

impl Pusher {
    /// Begins to write `local` back, of which nothing was written yet. It has room for `capacity` bytes.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn start(
        writer: Writer,
        local: Arc<dyn LocalCopy>,
        capacity: u64,
        options: PushOptions,
    ) -> Result<Self> {
        let stage = writer.stage();
        let pages = Geometry::new(capacity, ChunkSize::PAGE).page_count();
        let length = stage.length;
        let state = State {
            pages: PushState::new(pages),
            unkept: writer.region().cache().filter(|cache| cache.lasts()).map(|_| BitSet::new(pages)),
            unkept_length: false,
            keeping_fails: false,
            tracked: None,
            length: Lengths { now: length, shortest: length, flushed: length, untold: None, tellings: 0 },
            stage: stage.number,
            flushes: stage.flushed,
            in_flight: 0,
            failure: None,
            over: None,
            requests: Vec::new(),
            hurry: false,
            progress: PushProgress { epoch: writer.region().info().epoch, ..PushProgress::default() },
        };
        let inner = Arc::new(Inner {
            writer,
            local,
            options,
            collecting: Mutex::default(),
            state: Mutex::new(state),
            moved: Condvar::new(),
            stopping: AtomicBool::new(false),
        });
        let worker = inner.clone();
        let thread = std::thread::Builder::new()
            .name("pw-push".into())
            .spawn(move || worker.run())
            .map_err(|error| Error::io("cannot start a thread", &error))?;
        Ok(Self { inner, thread: Some(thread) })
    }

    /// Returns when everything that was written before the call is durable at the store; the answer is
    /// what the region is then. Its epoch has grown by one, unless there was nothing to flush.
    ///
    /// While the store cannot be reached, it is waited for within the patience.
    ///
    /// # Errors
    ///
    /// Whatever the store says; everything that was written is then still to be flushed, and a later
    /// flush does it. [`ErrorKind::Fenced`] once somebody else writes to the region.
    pub fn flush(&self) -> Result<Info> {
        wait(|done| self.submit_flush(done))
    }

    /// [`Pusher::flush`] for those who do not wait: `done` is called with the answer, on a thread that must
    /// not be held up.
    pub fn submit_flush(&self, done: FlushDone) {
        self.submit(Request::Flush(done));
    }

    /// Returns when everything that was written before the call, and is not flushed yet, is durable in the
    /// region's cache on this host: all of it or nothing. It takes no network, also while a flush waits for one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where the region has no cache; what the cache's disk says.
    pub fn flush_local(&self) -> Result<()> {
        wait(|done| self.submit(Request::FlushLocal(done)))
    }

    /// Changes the region's length, which is part of the next flush.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSpace`] past the capacity; whatever the store says.
    pub fn set_length(&self, length: u64) -> Result<()> {
        wait(|done| self.submit_set_length(length, done))
    }

    /// [`Pusher::set_length`] for those who do not wait, as [`Pusher::submit_flush`].
    pub fn submit_set_length(&self, length: u64, done: Completion) {
        match self.grow(length) {
            // What is behind the new end has to be taken back where it was on its way.
            Ok(()) if length < self.length() => self.submit(Request::SetLength(length, done)),
            result => done(result),
        }
    }

    /// Makes the region at least so long, as part of the next flush.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSpace`] past the capacity.
    pub fn grow(&self, length: u64) -> Result<()> {
        let capacity = self.inner.writer.region().info().capacity;
        if length > capacity {
            return Err(too_long(length, capacity));
        }
        let mut state = self.inner.lock();
        match length > state.length.now {
            true => self.inner.change_length(&mut state, length),
            false => Ok(()),
        }
    }

    /// Pushes soon what was written, whatever the interval.
    pub fn hurry(&self) {
        let mut state = self.inner.lock();
        if !std::mem::replace(&mut state.hurry, true) {
            drop(state);
            self.inner.moved.notify_all();
        }
    }

    /// The region's length as it is now.
    pub fn length(&self) -> u64 {
        self.inner.lock().length.now
    }

    /// How far the writing back is.
    pub fn progress(&self) -> PushProgress {
        let state = self.inner.lock();
        let bytes = |pages: u64| pages * ChunkSize::PAGE.bytes();
        PushProgress {
            dirty_bytes: bytes(state.pages.dirty().count() + state.pages.pushing().count()),
            staged_bytes: bytes(state.pages.staged().count()),
            ..state.progress.clone()
        }
    }

    /// How much of the region the store can be asked for: behind it are zeroes, but for what was written,
    /// whatever the store has there. Counts for the moment that is the second answer: what is asked for at one in
    /// which the store is told of another length may be refused.
    #[cfg_attr(
        not(any(feature = "fuse", feature = "nbd")),
        expect(dead_code, reason = "for those who read what is not pushed")
    )]
    pub(crate) fn readable(&self) -> (u64, Moment) {
        let state = self.inner.lock();
        let told = self.inner.writer.stage();
        let untold = state.length.untold.unwrap_or(state.length.now);
        // Lost meanwhile, it is told again; until then the store has what was flushed.
        let lost = if told.number == state.stage { u64::MAX } else { state.length.shortest };
        let moment = Moment { stage: told.number, tellings: state.length.tellings };
        (untold.min(told.length).min(lost), moment)
    }

    /// Why nothing can be written any more, if that is so.
    pub fn over(&self) -> Option<Error> {
        self.inner.lock().over.clone()
    }

    fn submit(&self, request: Request) {
        self.inner.lock().requests.push(request);
        self.inner.moved.notify_all();
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        self.inner.stopping.store(true, Ordering::Release);
        drop(self.inner.lock());
        self.inner.moved.notify_all();
        if let Some(thread) = self.thread.take() {
            // One that has panicked has stopped, too.
            let _ = thread.join();
        }
        let deadline = Instant::now() + LAST_ANSWERS;
        let mut state = self.inner.lock();
        while state.in_flight > 0 && Instant::now() < deadline {
            state = self.inner.wait(state, Some(deadline));
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// The region has another length from now on; the store and the cache are told.
    fn change_length(&self, state: &mut State, length: u64) -> Result<()> {
        if let Some(cache) = self.writer.region().cache().filter(|cache| cache.lasts()) {
            cache.keep_length(length)?;
            state.unkept_length = true;
        }
        state.track_length(length);
        state.length.set(length);
        Ok(())
    }

    /// Waits until something happens, or `deadline`.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, deadline: Option<Instant>) -> MutexGuard<'a, State> {
        match deadline {
            None => self.moved.wait(state).expect("no holder panics"),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.moved.wait_timeout(state, left).expect("no holder panics").0
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Cancelled, "the region was closed")
}

#[cfg(test)]
mod tests;
