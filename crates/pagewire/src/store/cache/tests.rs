//! Caches on disks that stop, fill up and lose what was not synced, in front of a store that is shared with
//! others, restarted and out of reach.

mod crash;
mod damage;
mod model;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pagewire_core::cache::{COPY_AT, ENTRIES, Head, Kept, commit_at};
use pagewire_core::journal::BLOCK;

use super::local::touching;
use super::*;
use crate::store::disk::Disk;
use crate::store::simulated::{Machine, Random, SimulatedDisk};
use crate::store::{Blocking, Completion, Flush, Info, MemoryStore, Read, STAGED, Stage, wait};

const LENGTH: u64 = 20 * PAGE_SIZE + 100;
const CAPACITY: u64 = 40 * PAGE_SIZE;

/// The disks of a cache.
struct Disks {
    image: Arc<SimulatedDisk>,
    state: Arc<SimulatedDisk>,
    kept: Arc<SimulatedDisk>,
}

impl Disks {
    /// Those of a cache that was just made.
    fn new(machine: &Machine) -> Self {
        let mut state = vec![0; ENTRIES as usize];
        state[..BLOCK].copy_from_slice(&Head::default().encode());
        let mut kept = vec![0; 3 * BLOCK];
        for at in [commit_at(0), COPY_AT] {
            kept[at as usize..][..BLOCK].copy_from_slice(&Kept::default().encode());
        }
        Self {
            image: SimulatedDisk::new(machine, Vec::new()),
            state: SimulatedDisk::new(machine, state),
            kept: SimulatedDisk::new(machine, kept),
        }
    }

    /// The disks after the program was killed.
    fn after_kill(&self, machine: &Machine) -> Self {
        Self {
            image: self.image.after_kill(machine),
            state: self.state.after_kill(machine),
            kept: self.kept.after_kill(machine),
        }
    }

    /// The disks after the machine has lost its power.
    fn after_power_loss(&self, machine: &Machine, random: &mut Random) -> Self {
        Self {
            image: self.image.after_power_loss(machine, random),
            state: self.state.after_power_loss(machine, random),
            kept: self.kept.after_power_loss(machine, random),
        }
    }

    fn files(&self) -> Result<CacheFiles> {
        let kept = Some(self.kept.clone() as Arc<dyn Disk>);
        Ok(CacheFiles {
            path: "the cache".into(),
            image: self.image.clone(),
            state: self.state.clone(),
            head: files::read_head(&*self.state, "the cache".as_ref())?,
            unpushed: Unpushed::open("the cache.unpushed".into(), kept, Box::new(|_| unreachable!()))?,
            file: None,
            in_memory: true,
            lasts: true,
        })
    }

    /// Opens the cache without a thread of its own, so that a test knows what is done when.
    fn open(&self, store: &Arc<Server>, writable: bool) -> Result<CacheStore> {
        CacheStore::assemble(self.files()?, store.clone(), writable)
    }
}

/// A store on another host: it can be restarted, and out of reach.
struct Server {
    store: MemoryStore,
    away: AtomicBool,
    read: AtomicU64,
}

impl Server {
    /// One whose region holds something.
    fn new() -> Arc<Self> {
        let store = MemoryStore::with_capacity(LENGTH, CAPACITY);
        // Blocks of the store are larger than pages; some hold zeroes.
        let bytes: Vec<u8> = (0..LENGTH).map(|at| (at / PAGE_SIZE % 7 * 9) as u8).collect();
        store.write_bytes(0, &bytes).unwrap();
        store.flush_all().unwrap();
        let (away, read) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { store, away, read })
    }

    /// It is started again: what was staged is lost.
    fn restart(&self) {
        self.store.discard().unwrap();
    }

    /// All of the newest epoch.
    fn bytes(&self) -> Vec<u8> {
        let info = self.store.info();
        self.store.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap()
    }

    fn away(&self) -> Option<Error> {
        let away = self.away.load(Ordering::Relaxed);
        away.then(|| Error::new(ErrorKind::Unavailable, "the server is away"))
    }
}

impl Store for Server {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: Read) {
        self.read.fetch_add(ByteRange::total(&read.ranges), Ordering::Relaxed);
        match self.away() {
            Some(error) => read.sink.done(Err(error)),
            None => self.store.read(read),
        }
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        match self.away() {
            Some(error) => done(Err(error)),
            None => self.store.write(ranges, bytes, done),
        }
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        match self.away() {
            Some(error) => done(Err(error)),
            None => self.store.zero(ranges, done),
        }
    }

    fn set_length(&self, length: u64, done: Completion) {
        match self.away() {
            Some(error) => done(Err(error)),
            None => self.store.set_length(length, done),
        }
    }

    fn flush(&self, flush: Flush) {
        match self.away() {
            Some(error) => (flush.done)(Err(error)),
            None => self.store.flush(flush),
        }
    }

    fn stage(&self) -> Stage {
        self.store.stage()
    }

    fn discard(&self) -> Result<()> {
        self.away().map_or_else(|| self.store.discard(), Err)
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.away().map_or_else(|| self.store.fence(), Err)
    }

    fn pin(&self, epoch: Option<u64>) -> Result<Info> {
        self.store.pin(epoch)
    }

    fn unpin(&self, epoch: u64) {
        self.store.unpin(epoch);
    }

    fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        self.store.changes(since)
    }
}

/// All that a cache shows of its epoch.
fn epoch_of(cache: &CacheStore) -> Vec<u8> {
    let info = cache.info();
    cache.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap()
}

/// All that a writer sees.
fn staged_of(cache: &CacheStore) -> Vec<u8> {
    cache.read_bytes(ByteRange::new(0, cache.stage().length), STAGED).unwrap()
}

/// Keeps pages of what a writer sees.
fn keep(cache: &CacheStore, bytes: &[u8], pages: impl IntoIterator<Item = u64>) -> Result<()> {
    for page in pages {
        let range = ByteRange::of_pages(page..page + 1).clamp_to(bytes.len() as u64);
        if !range.is_empty() {
            cache.keep(&[range], &bytes[range.start as usize..range.end as usize])?;
        }
    }
    Ok(())
}

#[test]
fn only_what_is_missing_is_asked_for_again() {
    let (server, disks) = (Server::new(), Disks::new(&Machine::stopping_at(usize::MAX)));
    let model = server.bytes();
    let cache = disks.open(&server, false).unwrap();
    let epoch = cache.info().epoch;
    let half = ByteRange::new(0, 10 * PAGE_SIZE);
    assert!(cache.read_bytes(half, epoch).unwrap() == model[..half.end as usize]);
    cache.settle();
    assert_eq!(cache.progress().present_bytes, half.end);
    drop(cache);
    let cache = disks.open(&server, false).unwrap();
    server.read.store(0, Ordering::Relaxed);
    assert!(epoch_of(&cache) == model);
    assert_eq!(server.read.load(Ordering::Relaxed), LENGTH - half.end);
    let CacheProgress { cached_bytes, remote_bytes, complete, .. } = cache.progress();
    assert_eq!((cached_bytes, remote_bytes, complete), (half.end, LENGTH - half.end, false));
    assert!(cache.check().unwrap() && cache.is_complete());
    assert!(disks.image.bytes() == model, "each byte is at its own offset");
    drop(cache);
    // All of it is there: the server is needed for its epoch only.
    let cache = disks.open(&server, false).unwrap();
    server.away.store(true, Ordering::Relaxed);
    assert!(!cache.is_complete(), "it was not looked at yet");
    assert!(epoch_of(&cache) == model && cache.check().unwrap());
}

#[test]
fn a_newer_epoch_makes_absent_what_it_has_changed_and_no_more() {
    let (server, disks) = (Server::new(), Disks::new(&Machine::stopping_at(usize::MAX)));
    let cache = disks.open(&server, false).unwrap();
    epoch_of(&cache);
    cache.settle();
    // The store tells changes to the block of 64 KiB.
    server.store.write_bytes(17 * PAGE_SIZE, b"new").unwrap();
    server.store.flush_all().unwrap();
    cache.refresh().unwrap();
    cache.settle();
    assert_eq!(cache.missing(), [ByteRange::new(16 * PAGE_SIZE, LENGTH)]);
    assert!(epoch_of(&cache) == server.bytes());
    drop(cache);
    // While nobody looks.
    server.store.write_bytes(PAGE_SIZE, b"newer").unwrap();
    server.store.flush_all().unwrap();
    let cache = disks.open(&server, false).unwrap();
    assert_eq!(cache.missing(), [ByteRange::new(0, 16 * PAGE_SIZE)]);
    assert!(epoch_of(&cache) == server.bytes());
    drop(cache);
    // Another region.
    let server = Server::new();
    let cache = disks.open(&server, false).unwrap();
    assert_eq!(cache.progress().present_bytes, 0);
    assert!(epoch_of(&cache) == server.bytes());
}

#[test]
fn what_is_flushed_is_in_the_cache() {
    let (server, disks) = (Server::new(), Disks::new(&Machine::stopping_at(usize::MAX)));
    let cache = disks.open(&server, true).unwrap();
    cache.fence().unwrap();
    staged_of(&cache);
    cache.write_bytes(3 * PAGE_SIZE, &[7; PAGE_SIZE as usize]).unwrap();
    cache.zero_range(ByteRange::new(5 * PAGE_SIZE, 6 * PAGE_SIZE)).unwrap();
    cache.write_bytes(8 * PAGE_SIZE + 1, b"a part").unwrap();
    let staged = staged_of(&cache);
    assert_eq!(cache.flush_all().unwrap().epoch, 3);
    assert!(server.bytes() == staged);
    cache.settle();
    assert_eq!(cache.missing(), [ByteRange::of_pages(8..9)], "of which a part was written");
    drop(cache);
    let cache = disks.open(&server, false).unwrap();
    assert_eq!(cache.missing(), [ByteRange::of_pages(8..9)]);
    server.read.store(0, Ordering::Relaxed);
    assert!(epoch_of(&cache) == staged);
    assert_eq!(server.read.load(Ordering::Relaxed), PAGE_SIZE);
}

#[test]
fn what_is_found_unpushed_is_seen_and_flushed_also_when_the_server_restarts() {
    let (server, disks) = (Server::new(), Disks::new(&Machine::stopping_at(usize::MAX)));
    let cache = disks.open(&server, true).unwrap();
    cache.fence().unwrap();
    let mut model = server.bytes();
    model[PAGE_SIZE as usize..3 * PAGE_SIZE as usize].fill(7);
    keep(&cache, &model, 1..3).unwrap();
    cache.flush_local().unwrap();
    keep(&cache, &[9; LENGTH as usize], 1..2).unwrap();
    drop(cache);
    assert_eq!(disks.open(&server, false).err().unwrap().kind(), ErrorKind::Changed, "part of no epoch");
    let cache = disks.open(&server, true).unwrap();
    cache.fence().unwrap();
    assert!(cache.stage().recovered && staged_of(&cache) == model);
    server.restart();
    assert!(staged_of(&cache) == model);
    cache.write_bytes(PAGE_SIZE + 5, b"on top").unwrap();
    model[PAGE_SIZE as usize + 5..][..6].copy_from_slice(b"on top");
    assert!(staged_of(&cache) == model);
    cache.flush_all().unwrap();
    assert!(server.bytes() == model && !cache.stage().recovered);
    cache.settle();
    assert_eq!(cache.progress().unpushed_bytes, 0);
    drop(cache);
    assert!(epoch_of(&disks.open(&server, false).unwrap()) == model);
}

#[test]
fn changes_on_an_epoch_that_was_replaced_are_refused_and_kept() {
    let (server, disks) = (Server::new(), Disks::new(&Machine::stopping_at(usize::MAX)));
    let cache = disks.open(&server, true).unwrap();
    cache.fence().unwrap();
    let mut model = server.bytes();
    model[..PAGE_SIZE as usize].fill(7);
    keep(&cache, &model, 0..1).unwrap();
    cache.flush_local().unwrap();
    drop(cache);
    server.store.fence().unwrap();
    server.store.write_bytes(9 * PAGE_SIZE, b"theirs").unwrap();
    server.store.flush_all().unwrap();
    for _ in 0..2 {
        let error = disks.open(&server, true).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Changed);
        assert!(error.to_string().contains("remove the cache.unpushed"), "{error}");
    }
    let other = Server::new();
    let before = (disks.image.bytes(), disks.state.bytes(), disks.kept.bytes());
    for writable in [false, true] {
        let error = disks.open(&other, writable).err().unwrap();
        assert!(error.to_string().contains("another region"), "{error}");
    }
    assert!(before == (disks.image.bytes(), disks.state.bytes(), disks.kept.bytes()), "nothing is touched");
    // Had they written the same, nothing would be lost.
    server.store.write_bytes(0, &model[..PAGE_SIZE as usize]).unwrap();
    server.store.flush_all().unwrap();
    assert!(epoch_of(&disks.open(&server, false).unwrap()) == server.bytes());
    let cache = disks.open(&server, true).unwrap();
    cache.fence().unwrap();
    assert!(!cache.stage().recovered && staged_of(&cache) == server.bytes());
}

#[test]
fn a_full_disk_ends_the_filling_and_fails_a_local_flush_and_nothing_else() {
    for from in 0..40 {
        let machine = Machine::full(from..usize::MAX);
        let (server, disks) = (Server::new(), Disks::new(&machine));
        let Ok(cache) = disks.open(&server, true) else { continue };
        cache.fence().unwrap();
        let mut model = server.bytes();
        assert!(staged_of(&cache) == model && staged_of(&cache) == model);
        model[..2 * PAGE_SIZE as usize].fill(7);
        let kept = keep(&cache, &model, 0..2).and_then(|()| cache.flush_local());
        assert!(kept.is_err() || machine.operations() <= from + 30);
        cache.write_bytes(0, &model[..2 * PAGE_SIZE as usize]).unwrap();
        assert!(staged_of(&cache) == model);
        cache.flush_all().unwrap();
        assert!(epoch_of(&cache) == model && server.bytes() == model);
        drop(cache);
        let again = Machine::stopping_at(usize::MAX);
        let cache = disks.after_kill(&again).open(&server, true).unwrap();
        cache.fence().unwrap();
        assert!(staged_of(&cache) == model, "full from operation {from}");
    }
}

#[test]
fn bytes_past_the_end_and_across_borders() {
    let (server, disks) = (Server::new(), Disks::new(&Machine::stopping_at(usize::MAX)));
    let cache = disks.open(&server, false).unwrap();
    let (model, epoch) = (server.bytes(), cache.info().epoch);
    for _ in 0..2 {
        for (start, end) in
            [(0, 1), (4095, 4097), (LENGTH - 1, LENGTH), (20 * PAGE_SIZE, LENGTH), (5, 70_000)]
        {
            let got = cache.read_bytes(ByteRange::new(start, end), epoch).unwrap();
            assert!(got == model[start as usize..end as usize], "bytes {start} to {end}");
        }
        let error = cache.read_bytes(ByteRange::new(LENGTH - 1, LENGTH + 1), epoch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        assert_eq!(cache.read_bytes(ByteRange::new(0, 1), epoch - 1).unwrap_err().kind(), ErrorKind::Stale);
        epoch_of(&cache);
        cache.settle();
    }
}
