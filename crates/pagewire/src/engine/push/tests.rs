//! What is remembered for whoever moves a region, while it is pushed and flushed at the same moment.

use std::ops::Range;
use std::sync::atomic::AtomicU64;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use super::*;
use crate::engine::{PlainMemory, Region};
use crate::store::{Blocking, Completion, Flush, Info, MemoryStore, Read, STAGED, Stage, Store};

const PAGES: u64 = 16;

/// When somebody is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// After the changes were taken, before they are told.
    Taken,
    /// Before what is flushed is given up.
    Flushed,
}

/// Memory, in which one thread can be stopped. As a mounted file it gives up pages that are flushed and not written
/// again: these have changed to zeroes.
struct Stopping {
    memory: PlainMemory,
    dirty: Mutex<BitSet>,
    stop_at: Mutex<Option<At>>,
    moved: Condvar,
    is_there: AtomicBool,
    given_up: AtomicU64,
    fails: AtomicBool,
}

impl Stopping {
    fn new() -> Arc<Self> {
        let memory = PlainMemory::new(PAGES * PAGE_SIZE);
        Arc::new(Self {
            memory,
            dirty: Mutex::new(BitSet::new(PAGES)),
            stop_at: Mutex::default(),
            moved: Condvar::new(),
            is_there: AtomicBool::new(false),
            given_up: AtomicU64::new(0),
            fails: AtomicBool::new(false),
        })
    }

    fn write(&self, page: u64, value: u8) {
        let mut dirty = self.dirty.lock().unwrap();
        self.memory.write(page * PAGE_SIZE, &[value; PAGE_SIZE as usize]).unwrap();
        dirty.insert(page);
    }

    /// The next one who comes there stops, until it is let go.
    fn stop(&self, at: At) {
        self.is_there.store(false, Ordering::Release);
        *self.stop_at.lock().unwrap() = Some(at);
    }

    fn wait_until_there(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.is_there.load(Ordering::Acquire) {
            assert!(Instant::now() < deadline, "nobody comes there");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn go_on(&self) {
        *self.stop_at.lock().unwrap() = None;
        self.moved.notify_all();
    }

    fn may_stop(&self, at: At) {
        let mut stop_at = self.stop_at.lock().unwrap();
        while *stop_at == Some(at) {
            self.is_there.store(true, Ordering::Release);
            stop_at = self.moved.wait(stop_at).unwrap();
        }
    }
}

impl LocalCopy for Stopping {
    fn place(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.memory.place(offset, bytes)
    }

    fn place_zero(&self, range: ByteRange) -> Result<()> {
        self.memory.place_zero(range)
    }

    fn wake(&self, range: ByteRange) -> Result<bool> {
        self.memory.wake(range)
    }

    fn fail(&self, range: ByteRange) -> Result<()> {
        self.memory.fail(range)
    }

    fn evict(&self, range: ByteRange) -> Result<()> {
        self.memory.evict(range)
    }

    fn read_back(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.memory.read_back(offset, bytes)
    }

    fn take_dirty(&self, ranges: &mut Vec<ByteRange>) -> Result<()> {
        {
            let mut dirty = self.dirty.lock().unwrap();
            ranges.extend(dirty.runs().map(ByteRange::of_pages));
            dirty.clear();
        }
        self.may_stop(At::Taken);
        match self.fails.load(Ordering::Acquire) {
            true => Err(Error::new(ErrorKind::Io, "the rest cannot be looked at")),
            false => Ok(()),
        }
    }

    fn count_dirty(&self) -> Result<u64> {
        Ok(0)
    }

    fn flushed(&self, pages: &[Range<u64>]) {
        self.may_stop(At::Flushed);
        let dirty = self.dirty.lock().unwrap();
        for page in pages.iter().cloned().flatten().filter(|page| !dirty.contains(*page)) {
            self.memory.write(page * PAGE_SIZE, &[0; PAGE_SIZE as usize]).unwrap();
            self.given_up.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A region of the whole capacity, written back at flushes only.
fn pusher(local: &Arc<Stopping>) -> (Arc<MemoryStore>, Arc<Pusher>) {
    let store = Arc::new(MemoryStore::new(PAGES * PAGE_SIZE));
    let region = Region::new("memory", store.clone()).unwrap();
    let options = PushOptions { interval: None, ..PushOptions::default() };
    let writer = region.writer("a test").unwrap();
    let pusher = Pusher::start(writer, local.clone(), PAGES * PAGE_SIZE, options).unwrap();
    (store, Arc::new(pusher))
}

fn take(pusher: &Pusher) -> Vec<u64> {
    let mut pages = BitSet::new(PAGES);
    pusher.take_tracked(&mut pages).unwrap();
    pages.iter().collect()
}

fn first_bytes(store: &MemoryStore, pages: Range<u64>) -> Vec<u8> {
    pages.map(|page| store.read_bytes(ByteRange::of_pages(page..page + 1), STAGED).unwrap()[0]).collect()
}

#[test]
fn what_is_written_is_answered_once_and_pushed_all_the_same() {
    let local = Stopping::new();
    let (store, pusher) = pusher(&local);
    local.write(1, 1);
    assert_eq!(pusher.take_tracked(&mut BitSet::new(PAGES)).unwrap_err().kind(), ErrorKind::Usage);
    pusher.track();
    assert_eq!(take(&pusher), [1], "what was not collected by then may come, too");
    local.write(2, 2);
    local.write(3, 3);
    assert_eq!(take(&pusher), [2, 3]);
    assert_eq!(take(&pusher), [0u64; 0]);
    local.write(4, 4);
    pusher.flush().unwrap();
    assert_eq!(first_bytes(&store, 1..5), [1, 2, 3, 4]);
    assert_eq!(take(&pusher), [4], "the push thread has collected it");
    local.write(5, 5);
    pusher.flush().unwrap();
    pusher.track();
    assert_eq!(take(&pusher), [0u64; 0], "forgotten");
    local.write(6, 6);
    assert_eq!(take(&pusher), [6]);
    pusher.untrack();
    pusher.flush().unwrap();
    assert_eq!(first_bytes(&store, 5..7), [5, 6], "what lay aside is pushed");
    assert!(pusher.take_tracked(&mut BitSet::new(PAGES)).is_err());
}

/// The push thread has taken a page out of the local copy and has told nobody: whoever asks waits for it.
#[test]
fn one_answer_has_also_what_the_push_thread_has_just_taken() {
    let local = Stopping::new();
    let (store, pusher) = pusher(&local);
    pusher.track();
    for round in 0..3 {
        local.write(3, 7 + round);
        local.stop(At::Taken);
        let flushing = pusher.clone();
        let flush = std::thread::spawn(move || flushing.flush());
        local.wait_until_there();
        let asking = pusher.clone();
        let asked = std::thread::spawn(move || take(&asking));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!asked.is_finished(), "it is not known yet");
        local.go_on();
        assert_eq!(asked.join().unwrap(), [3]);
        flush.join().unwrap().unwrap();
        assert_eq!(first_bytes(&store, 3..4), [7 + round]);
    }
}

/// A page that is written while the flush of its old bytes ends, and is taken just then by whoever asks.
#[test]
fn what_is_taken_while_a_flush_ends_is_not_given_up() {
    let local = Stopping::new();
    let (store, pusher) = pusher(&local);
    pusher.track();
    local.write(3, 1);
    local.write(4, 1);
    local.stop(At::Flushed);
    let flushing = pusher.clone();
    let flush = std::thread::spawn(move || flushing.flush());
    local.wait_until_there();
    local.write(3, 2);
    let asking = pusher.clone();
    let asked = std::thread::spawn(move || take(&asking));
    std::thread::sleep(Duration::from_millis(20));
    local.go_on();
    assert_eq!(asked.join().unwrap(), [3, 4]);
    flush.join().unwrap().unwrap();
    assert_eq!(local.given_up.load(Ordering::Relaxed), 1, "page 4");
    pusher.flush().unwrap();
    assert_eq!(first_bytes(&store, 3..5), [2, 1]);
}

/// The same, taken before the flush ends: while its answer is on the way.
#[test]
fn what_was_taken_before_a_flush_ends_is_not_given_up() {
    let local = Stopping::new();
    let (store, pusher) = pusher(&local);
    pusher.track();
    local.write(3, 1);
    local.stop(At::Flushed);
    let flushing = pusher.clone();
    let flush = std::thread::spawn(move || flushing.flush());
    local.wait_until_there();
    local.go_on();
    flush.join().unwrap().unwrap();
    for round in 2..50 {
        // Somewhere in the middle of the flush: a page must never be lost, wherever that is.
        local.write(3, round);
        local.write(5, round);
        let (flushing, writing) = (pusher.clone(), local.clone());
        let flush = std::thread::spawn(move || flushing.flush());
        writing.write(3, 100 + round);
        take(&pusher);
        flush.join().unwrap().unwrap();
        pusher.flush().unwrap();
        assert_eq!(first_bytes(&store, 3..4), [100 + round]);
        assert_eq!(first_bytes(&store, 5..6), [round]);
    }
}

#[test]
fn nothing_that_was_taken_is_lost_where_the_rest_fails() {
    let local = Stopping::new();
    let (store, pusher) = pusher(&local);
    pusher.track();
    local.write(3, 3);
    local.fails.store(true, Ordering::Release);
    assert!(pusher.take_tracked(&mut BitSet::new(PAGES)).is_err());
    local.write(4, 4);
    assert!(pusher.flush().is_err());
    local.fails.store(false, Ordering::Release);
    assert_eq!(take(&pusher), [3, 4]);
    pusher.flush().unwrap();
    assert_eq!(first_bytes(&store, 3..5), [3, 4]);
}

#[test]
fn what_a_change_of_length_changes_is_among_it() {
    let local = Stopping::new();
    let (_store, pusher) = pusher(&local);
    pusher.track();
    pusher.set_length(10 * PAGE_SIZE + 1).unwrap();
    assert_eq!(take(&pusher), [10, 11, 12, 13, 14, 15], "the page of the new end, too");
    pusher.grow(12 * PAGE_SIZE).unwrap();
    assert_eq!(take(&pusher), [10, 11]);
    pusher.grow(12 * PAGE_SIZE).unwrap();
    assert_eq!(take(&pusher), [0u64; 0], "nothing has changed");
    // What lies aside and is cut off is not pushed.
    local.write(11, 1);
    assert_eq!(take(&pusher), [11]);
    pusher.set_length(5 * PAGE_SIZE).unwrap();
    pusher.flush().unwrap();
    assert_eq!(pusher.progress().pushed_bytes, 0);
    assert_eq!(take(&pusher), (5..12).collect::<Vec<_>>());
}

/// A store that loses what is staged while a write is on its way to it, once, as one does whose session is made again.
struct Losing {
    store: MemoryStore,
    loses: AtomicBool,
}

impl Store for Losing {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: Read) {
        self.store.read(read);
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        if self.loses.swap(false, Ordering::AcqRel) {
            self.store.discard().unwrap();
        }
        self.store.write(ranges, bytes, done);
    }

    fn set_length(&self, length: u64, done: Completion) {
        self.store.set_length(length, done);
    }

    fn flush(&self, flush: Flush) {
        self.store.flush(flush);
    }

    fn stage(&self) -> Stage {
        self.store.stage()
    }

    fn discard(&self) -> Result<()> {
        self.store.discard()
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.store.fence()
    }
}

#[test]
fn a_length_that_is_lost_while_what_needs_it_is_on_its_way_is_told_again() {
    let local = Stopping::new();
    let store = MemoryStore::with_capacity(4 * PAGE_SIZE, PAGES * PAGE_SIZE);
    let store = Arc::new(Losing { store, loses: AtomicBool::new(false) });
    let region = Region::new("memory", store.clone()).unwrap();
    let options = PushOptions { interval: None, patience: Duration::ZERO, ..PushOptions::default() };
    let writer = region.writer("a test").unwrap();
    let pusher = Pusher::start(writer, local.clone(), PAGES * PAGE_SIZE, options).unwrap();
    pusher.grow(10 * PAGE_SIZE).unwrap();
    local.write(1, 1);
    local.write(8, 8);
    store.loses.store(true, Ordering::Release);
    pusher.flush().unwrap();
    let info = store.info();
    assert_eq!(info.length, 10 * PAGE_SIZE);
    let bytes = store.store.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap();
    assert_eq!([1, 8].map(|page: usize| bytes[page * 4096]), [1, 8]);
    assert_eq!(pusher.progress().failures, 0);
}
