//! The background pull of a mounted file: the page cache is the local copy, and the kernel fills it.
//!
//! A thread reads the file, in the order of the pull; what the kernel asks the mount for on behalf of this thread is
//! read from the store as background work. So a program's later access finds its bytes in the page cache, and makes
//! no trip to user space. The cache can be evicted: what was read is a hint.
//!
//! Where a round trip takes next to nothing, long runs are read in order, to nowhere, with the kernel's own readahead in
//! front: it makes the cache of large folios, at half the price of single pages. Short runs are asked for piece by piece,
//! many at once. So are all runs where a round trip takes long: the kernel reads ahead of whoever comes first to a page that it
//! has marked for that, so a program that reads in order too would take the marks of this thread, and this thread those
//! of the program; each would begin anew with a small window, again and again.
//!
//! The file is reached by a clone of the mount that is under no path, where that is permitted, so that the mount can
//! be taken down meanwhile.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, ChunkSize, Geometry};
use pagewire_core::pull::{PullOrder, Window, WindowLimits};
use pagewire_sys::mount::{Detached, ReadAhead};
use pagewire_sys::socket::send_file;

use crate::access::region_file::{Counters, RegionFile};
use crate::error::Result;

/// How far the kernel reads ahead of the thread, in bytes.
const AHEAD: u64 = 4 << 20;

/// From when on a round trip takes long.
pub(super) const LONG_WAY: Duration = Duration::from_millis(1);

/// From this length on a run is a long one.
const LONG: u64 = 1 << 20;

/// How much of a long run is read at once: between two reads the thread looks whether to go on.
const PIECE: u64 = 256 << 10;

/// How much is asked for at once piece by piece, and how much of it may be on its way: what the link holds, since a program
/// that wants what is on its way already waits for all that is before it.
const STEP: u64 = 128 << 10;
const LIMITS: WindowLimits = WindowLimits { min: 1 << 20, initial: 1 << 20, max: 128 << 20 };

/// How much is asked for first, and twice as much each time from then on: all of it fits into what a TCP connection may send
/// before it has heard anything, and whoever wants the first byte waits for no more.
const FIRST_STEP: u64 = 8 << 10;

/// From so many bytes a second on programs are busy, and how often to look.
const BUSY: f64 = 200e6;
const TURN: Duration = Duration::from_millis(3);

/// For how long programs that have written that fast are taken for busy still: they write in bursts, as the kernel
/// writes back.
const WRITING: Duration = Duration::from_millis(100);

/// How long to wait before what could not be read is asked for again, where nothing else comes, and where something does.
const PAUSE: Duration = Duration::from_secs(1);
const LONG_PAUSE: Duration = Duration::from_secs(60);

/// How often to look whether to stop, and how far it is.
const LOOK: Duration = Duration::from_millis(20);

/// The threads that read ahead, by their numbers.
#[derive(Default)]
pub(super) struct Warmers {
    threads: RwLock<BTreeSet<u32>>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    stop: Arc<Stop>,
}

#[derive(Default)]
struct Stop {
    stopped: AtomicBool,
    lock: Mutex<()>,
    moved: Condvar,
}

impl Stop {
    fn is_set(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Waits a moment, or until it is set.
    fn rest(&self, duration: Duration) {
        let guard = self.lock.lock().expect("no holder panics");
        if !self.is_set() {
            let _early = self.moved.wait_timeout(guard, duration).expect("no holder panics");
        }
    }
}

/// A file that is read, and where its bytes go.
struct Source {
    file: File,
    nowhere: File,
}

impl Source {
    /// Has the kernel read a range into its page cache, as for a program that reads in order, but without a copy.
    fn read(&self, range: ByteRange) -> std::io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            match send_file(self.nowhere.as_fd(), self.file.as_fd(), at, range.end - at)? {
                // It ends there by now.
                0 => break,
                read => at += read,
            }
        }
        Ok(())
    }
}

/// What a warmer is to read.
pub(super) struct Warming {
    pub(super) file: Arc<RegionFile>,
    pub(super) mount: PathBuf,
    /// Where the file is below the root of the mount.
    pub(super) path: PathBuf,
    pub(super) order: PullOrder,
    pub(super) chunk: ChunkSize,
    /// How far the kernel reads ahead in files that programs open.
    pub(super) read_ahead: (ReadAhead, u64),
    /// Whether it is over when all is in the region's cache, so that the file can be opened straight on that.
    pub(super) ends: bool,
}

impl Warmers {
    /// Whether a thread is one of these.
    pub(super) fn contains(&self, thread: u32) -> bool {
        self.threads.read().expect("no holder panics").contains(&thread)
    }

    /// Begins to read a file ahead.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub(super) fn start(self: &Arc<Self>, warming: Warming) -> Result<()> {
        let this = self.clone();
        let (opened, open) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("pw-warm".into()).spawn(move || {
            crate::schedule::bulk();
            let id = pagewire_sys::thread::id();
            this.threads.write().expect("no holder panics").insert(id);
            // What is all in the cache may not be needed, and could not be opened straight on that meanwhile.
            let is_done = warming.may_be_done() && {
                let _ = opened.try_send(());
                warming.is_done(&this.stop)
            };
            let source = if is_done { Ok(None) } else { warming.open().map(Some) };
            // There is room for the one word.
            let _ = opened.try_send(());
            match source {
                Ok(None) => {}
                Ok(Some(source)) => warming.run(&source, &this.stop),
                Err(error) => tracing::warn!(%error, "there is no background pull"),
            }
            this.threads.write().expect("no holder panics").remove(&id);
        });
        let thread = thread.map_err(|error| crate::Error::io("cannot start a thread", &error))?;
        self.handles.lock().expect("no holder panics").push(thread);
        // To open it uses the mount for a moment, and whoever is told that it is there may take it down.
        let _or_ended = open.recv();
        Ok(())
    }

    /// Ends them all, and waits for it: they have no file open then.
    pub(super) fn stop(&self) {
        self.stop.stopped.store(true, Ordering::Release);
        drop(self.stop.lock.lock().expect("no holder panics"));
        self.stop.moved.notify_all();
        let handles = std::mem::take(&mut *self.handles.lock().expect("no holder panics"));
        for handle in handles {
            // One that has panicked has ended, too.
            let _ = handle.join();
        }
    }
}

impl Warming {
    fn run(&self, source: &Source, stop: &Stop) {
        let mut told = false;
        while !stop.is_set() {
            let geometry = Geometry::new(self.file.length(), self.chunk);
            let missing = self.missing(geometry);
            if missing.is_empty() && self.is_done(stop) {
                return;
            }
            if missing.is_empty() {
                // It is there, as far as anybody can tell; a newer epoch may make it stale.
                stop.rest(PAUSE);
                continue;
            }
            let before = self.file.read_bytes();
            if let Err(error) = self.round(source, &missing, stop)
                && !std::mem::replace(&mut told, true)
            {
                tracing::warn!(%error, "the background pull pauses");
            }
            if self.file.read_bytes() == before {
                stop.rest(PAUSE);
            }
        }
    }

    /// Whether nothing is missing in the cache, as far as that is known without looking.
    fn may_be_done(&self) -> bool {
        self.ends && self.file.region().cache().is_some_and(|cache| cache.missing().is_empty())
    }

    /// Whether all is in the cache, and as it should be: nobody needs the page cache of this mount any more.
    fn is_done(&self, stop: &Stop) -> bool {
        let Some(cache) = self.file.region().cache().filter(|_| self.ends) else { return false };
        cache.check_while(|| !stop.is_set()).unwrap_or_else(|error| {
            tracing::warn!(%error, "the cache cannot be checked");
            false
        })
    }

    fn open(&self) -> std::io::Result<Source> {
        // The open file is to be no obstacle to the end of this process.
        pagewire_sys::thread::leave_descriptors()?;
        // A file that is opened now is read ahead that far; those that programs open later are not.
        let (read_ahead, bytes) = &self.read_ahead;
        let _may_not = read_ahead.set(AHEAD);
        let opened = Detached::clone_of(&self.mount)
            .and_then(|detached| detached.open(&self.path))
            .or_else(|_| File::open(join(&self.mount, &self.path)));
        let _may_not = read_ahead.set(*bytes);
        Ok(Source { file: opened?, nowhere: File::options().write(true).open("/dev/null")? })
    }

    /// What was not read since it changed last, in the order of the pull.
    fn missing(&self, geometry: Geometry) -> Vec<ByteRange> {
        let mut present = BitSet::new(geometry.chunk_count());
        for chunk in 0..geometry.chunk_count() {
            let range = geometry.range_of_chunks(chunk..chunk + 1);
            if !self.file.misses(range) {
                present.insert(chunk);
            }
        }
        self.order.plan(geometry, &present)
    }

    fn round(&self, source: &Source, missing: &[ByteRange], stop: &Stop) -> std::io::Result<()> {
        if self.file.region().round_trip() >= LONG_WAY {
            return self.ask(source, missing, stop);
        }
        let mut short = Vec::new();
        let mut manners = Manners::new(&self.file);
        for run in missing {
            if run.len() < LONG {
                short.push(*run);
                continue;
            }
            self.ask(source, &std::mem::take(&mut short), stop)?;
            for piece in run.split(PIECE) {
                manners.wait(stop);
                if stop.is_set() {
                    return Ok(());
                }
                source.read(piece)?;
            }
        }
        self.ask(source, &short, stop)
    }

    /// Has runs read piece by piece, and waits for them.
    fn ask(&self, source: &Source, runs: &[ByteRange], stop: &Stop) -> std::io::Result<()> {
        let mut asked = VecDeque::new();
        let (mut window, mut on_way, mut last) = (Window::new(LIMITS), 0, Instant::now());
        let background = || self.file.counters.background_bytes.load(Ordering::Relaxed);
        let (mut came, mut came_at) = (background(), last);
        let mut pieces = steps(runs).filter(|piece| self.file.misses(*piece));
        loop {
            let next = if on_way < window.size() { pieces.next() } else { None };
            if let Some(piece) = next {
                pagewire_sys::file::fadvise_willneed(source.file.as_fd(), piece.start, piece.len())?;
                on_way += piece.len();
                asked.push_back((piece, Instant::now()));
                continue;
            }
            let Some((first, since)) = asked.front() else { return Ok(()) };
            if stop.is_set() {
                return Ok(());
            }
            let now = Instant::now();
            let so_far = background();
            if so_far != came {
                (came, came_at) = (so_far, now);
            }
            // What fails is not waited for for ever: the next round asks again. What is only slow is not asked for twice, nor
            // more behind it: programs would wait behind all that.
            let waited = now - *since;
            let is_lost = waited > PAUSE && now - came_at > PAUSE || waited > LONG_PAUSE;
            let is_here = !self.file.misses(*first);
            if is_here {
                window.on_round_trip(waited);
                window.on_delivered(first.len(), now - std::mem::replace(&mut last, now));
            }
            if is_here || is_lost {
                on_way -= first.len();
                asked.pop_front();
            } else {
                self.file.wait_for_read(LOOK);
            }
        }
    }
}

/// Runs in pieces, each twice as long as the one before, [`STEP`] at most, as far as its run goes.
fn steps(runs: &[ByteRange]) -> impl Iterator<Item = ByteRange> {
    let (mut runs, mut left, mut step) = (runs.iter().copied(), ByteRange::new(0, 0), FIRST_STEP);
    std::iter::from_fn(move || {
        while left.is_empty() {
            left = runs.next()?;
        }
        let piece = left.clamp_to(left.start + step);
        (left.start, step) = (piece.end, (step * 2).min(STEP));
        Some(piece)
    })
}

/// Steps back while programs read or write as fast as they can: the kernel reads ahead of them, and what the background
/// would do besides only takes their time.
struct Manners<'a> {
    file: &'a RegionFile,
    looked: Instant,
    seen: Demand,
    /// Until when somebody counts as writing.
    writing: Instant,
}

/// How many bytes programs have asked for and written.
#[derive(Clone, Copy)]
struct Demand {
    read: u64,
    written: u64,
}

impl Demand {
    fn of(file: &RegionFile) -> Self {
        let Counters { demand_bytes, written_bytes, .. } = &file.counters;
        Self { read: demand_bytes.load(Ordering::Relaxed), written: written_bytes.load(Ordering::Relaxed) }
    }
}

impl<'a> Manners<'a> {
    fn new(file: &'a RegionFile) -> Self {
        let now = Instant::now();
        Self { file, looked: now, seen: Demand::of(file), writing: now }
    }

    /// Waits until programs are not busy.
    fn wait(&mut self, stop: &Stop) {
        while self.looked.elapsed() >= TURN && !stop.is_set() {
            let (demand, now) = (Demand::of(self.file), Instant::now());
            let most = BUSY * (now - self.looked).as_secs_f64();
            let (read, written) = (demand.read - self.seen.read, demand.written - self.seen.written);
            (self.looked, self.seen) = (now, demand);
            if written as f64 > most {
                self.writing = now + WRITING;
            }
            if read as f64 <= most && now >= self.writing {
                return;
            }
            stop.rest(TURN);
        }
    }
}

/// The path of a file below the root of a mount, which is the root itself where there is none.
pub(super) fn join(mount: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { mount.into() } else { mount.join(path) }
}
