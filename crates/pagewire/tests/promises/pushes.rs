//! Writing a local copy back: whatever fails on the way, a flush is all that was written by then, and
//! every epoch is one that was flushed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pagewire::engine::{LocalCopy, PlainMemory, PushOptions, Pusher, Region};
use pagewire::store::{Blocking, MemoryStore, RemoteStore, Store};
use pagewire::{ByteRange, Error, ErrorKind};

use crate::support::fragile::{Fragile, Trouble};
use crate::support::proxy::{Proxy, Weather};
use crate::support::random::{self, Random};
use crate::support::{self, anywhere, patient_for, region_at, wait_until};

const LENGTH: u64 = 40 * 4096 + 100;

/// Everything is flushed when it says so and at no other time.
fn by_hand() -> PushOptions {
    PushOptions { interval: None, ..PushOptions::default() }
}

/// A local copy of `store`'s region that is written back.
fn pusher(store: Arc<dyn Store>, options: PushOptions) -> (Arc<PlainMemory>, Pusher) {
    let region = Region::new("memory", store).unwrap();
    let capacity = region.info().capacity;
    let local = Arc::new(PlainMemory::new(capacity));
    let pusher = Pusher::start(region.writer("a test").unwrap(), local.clone(), capacity, options).unwrap();
    (local, pusher)
}

fn newest(store: &dyn Store) -> Vec<u8> {
    let info = store.info();
    store.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap()
}

#[test]
fn a_flush_is_an_epoch_and_nothing_to_flush_is_none() {
    let store = Arc::new(MemoryStore::new(LENGTH));
    let (local, pusher) = pusher(store.clone(), by_hand());
    let before = store.info().epoch;
    assert_eq!(pusher.flush().unwrap().epoch, before, "nothing was written");
    local.write(4096, &[1; 8192]).unwrap();
    local.write(LENGTH - 100, &[2; 100]).unwrap();
    let info = pusher.flush().unwrap();
    assert_eq!((info.epoch, store.info().epoch), (before + 1, before + 1));
    let bytes = newest(&*store);
    assert!(bytes[4096..12288].iter().all(|byte| *byte == 1) && bytes[bytes.len() - 100..] == [2; 100]);
    assert_eq!(pusher.flush().unwrap().epoch, before + 1);
    let progress = pusher.progress();
    assert_eq!((progress.pushed_bytes, progress.pushes, progress.flushes), (8292, 1, 1));
    assert_eq!((progress.dirty_bytes, progress.staged_bytes, progress.failures), (0, 0, 0));
}

#[test]
fn what_is_written_is_pushed_in_the_background_and_flushed_when_asked() {
    let store = Arc::new(MemoryStore::new(LENGTH));
    let options = PushOptions { interval: Some(Duration::from_millis(5)), ..PushOptions::default() };
    let (local, pusher) = pusher(store.clone(), options);
    local.write(0, &[1; 4096]).unwrap();
    wait_until("it is pushed", || pusher.progress().pushed_bytes == 4096);
    assert_eq!(store.info().epoch, 1, "nobody has flushed it");
    assert_eq!(store.read_bytes(ByteRange::new(0, 1), pagewire::store::STAGED).unwrap(), [1]);
    assert_eq!(pusher.flush().unwrap().epoch, 2);
    assert_eq!(pusher.progress().pushed_bytes, 4096, "it is not pushed again");
}

#[test]
fn much_that_is_written_does_not_wait_for_the_interval() {
    let options = PushOptions {
        interval: Some(Duration::from_secs(3600)),
        max_dirty: 5 * 4096,
        ..PushOptions::default()
    };
    let (local, pusher) = pusher(Arc::new(MemoryStore::new(LENGTH)), options);
    local.write(0, &[1; 4 * 4096]).unwrap();
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(pusher.progress().pushed_bytes, 0);
    local.write(20 * 4096, &[1; 4096]).unwrap();
    wait_until("it is pushed", || pusher.progress().pushed_bytes == 5 * 4096);
}

#[test]
fn what_is_written_during_a_push_is_pushed_again() {
    let store = Fragile::new(MemoryStore::new(LENGTH), 3, Trouble::default());
    let options = PushOptions { interval: Some(Duration::from_millis(1)), ..PushOptions::default() };
    let (local, pusher) = pusher(store.clone(), options);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut value = 0u8;
            while !stop.load(Ordering::Acquire) {
                value = value.wrapping_add(1);
                for page in [0u64, 7, 8, 30] {
                    local.write(page * 4096, &[value; 4096]).unwrap();
                }
            }
        });
        for _ in 0..100 {
            pusher.flush().unwrap();
        }
        stop.store(true, Ordering::Release);
    });
    pusher.flush().unwrap();
    let mut bytes = vec![0; 4096];
    for page in [0u64, 7, 8, 30] {
        local.read_back(page * 4096, &mut bytes).unwrap();
        assert!(newest(&*store)[page as usize * 4096..][..4096] == bytes[..], "page {page}");
    }
}

#[test]
fn a_full_store_fails_the_flush_and_a_later_one_succeeds() {
    let store = Fragile::new(MemoryStore::new(LENGTH), 3, Trouble { full: 100, ..Trouble::default() });
    let (local, pusher) = pusher(store.clone(), by_hand());
    local.write(0, &[1; 8192]).unwrap();
    for _ in 0..3 {
        let error = pusher.flush().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert_eq!(store.info().epoch, 1);
        assert_eq!(pusher.progress().dirty_bytes, 8192, "the marks are put back");
    }
    assert!(pusher.progress().last_error.unwrap().contains("full"));
    store.set(Trouble::default());
    assert_eq!(pusher.flush().unwrap().epoch, 2);
    assert!(newest(&*store)[..8192].iter().all(|byte| *byte == 1));
    assert_eq!(pusher.progress().last_error, None);
}

#[test]
fn a_store_that_is_gone_for_longer_than_the_patience_fails_the_flush_only() {
    let store = Fragile::new(MemoryStore::new(LENGTH), 3, Trouble { lost: 100, ..Trouble::default() });
    let options = PushOptions { interval: None, patience: Duration::from_millis(60), ..by_hand() };
    let (local, pusher) = pusher(store.clone(), options);
    local.write(0, &[1; 4096]).unwrap();
    let begun = Instant::now();
    assert_eq!(pusher.flush().unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(5));
    store.set(Trouble::default());
    pusher.flush().unwrap();
    assert!(newest(&*store)[..4096].iter().all(|byte| *byte == 1));
}

#[test]
fn what_a_store_has_lost_is_pushed_again() {
    let store = Fragile::new(MemoryStore::new(LENGTH), 3, Trouble::default());
    let options = PushOptions { interval: Some(Duration::from_millis(2)), ..PushOptions::default() };
    let (local, pusher) = pusher(store.clone(), options);
    for value in 1..20u8 {
        local.write(u64::from(value) * 4096, &[value; 4096]).unwrap();
        wait_until("it is pushed", || pusher.progress().staged_bytes == 4096);
        store.restart();
        pusher.flush().unwrap();
        assert!(newest(&*store)[usize::from(value) * 4096..][..4096].iter().all(|byte| *byte == value));
    }
}

#[test]
fn what_is_behind_an_end_that_has_moved_is_zero() {
    let store = Arc::new(MemoryStore::with_capacity(LENGTH, 2 * LENGTH));
    let (local, pusher) = pusher(store.clone(), by_hand());
    local.write(0, &vec![1; LENGTH as usize / 4096 * 4096]).unwrap();
    pusher.flush().unwrap();
    let error = pusher.set_length(2 * LENGTH + 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    pusher.set_length(8192).unwrap();
    pusher.set_length(LENGTH).unwrap();
    let info = pusher.flush().unwrap();
    assert_eq!((info.epoch, info.length), (3, LENGTH));
    let bytes = newest(&*store);
    assert!(bytes[..8192].iter().all(|byte| *byte == 1) && bytes[8192..].iter().all(|byte| *byte == 0));
    pusher.set_length(2 * LENGTH).unwrap();
    assert_eq!(pusher.length(), 2 * LENGTH);
    local.write(LENGTH / 4096 * 4096 + 4096, &[5; 4096]).unwrap();
    let info = pusher.flush().unwrap();
    assert_eq!((info.epoch, info.length), (4, 2 * LENGTH));
    assert_eq!(newest(&*store)[LENGTH as usize / 4096 * 4096 + 4096..][..4096], [5; 4096]);
}

/// What every epoch is, against what was written.
struct Model {
    local: Arc<PlainMemory>,
    pusher: Pusher,
    bytes: Vec<u8>,
    random: Random,
}

impl Model {
    /// Writes some pages, or changes the length, or flushes. Answers the flush.
    fn step(&mut self, capacity: u64) -> Option<Result<u64, Error>> {
        let length = self.bytes.len() as u64;
        match self.random.draw(20) {
            0..=15 if length > 0 => {
                let pages = length.div_ceil(4096);
                let first = self.random.draw(pages);
                let start = first * 4096;
                let end = ((first + 1 + self.random.draw(3)) * 4096).min(length);
                let value = self.random.draw(256) as u8;
                let page_end = end.next_multiple_of(4096).min(capacity);
                self.local.write(start, &vec![value; (page_end - start) as usize]).unwrap();
                self.bytes[start as usize..end as usize].fill(value);
                None
            }
            16 => {
                let length = self.random.draw(capacity / 4096 + 1) * 4096;
                self.pusher.set_length(length).unwrap();
                self.bytes.resize(length as usize, 0);
                // What is behind the end is zero in the copy, too, should it come back.
                let zeroes = vec![0; (capacity - length) as usize];
                self.local.write(length, &zeroes).unwrap();
                None
            }
            17 | 18 => Some(self.pusher.flush().map(|info| info.epoch)),
            _ => None,
        }
    }
}

#[test]
fn ten_thousand_steps_over_a_store_that_fails_in_every_way() {
    let capacity = 48 * 4096;
    let seed = random::seed(20_261_123);
    let trouble = Trouble { write: 6, full: 5, lost: 6, restart: 4 };
    let store = Fragile::new(MemoryStore::with_capacity(20 * 4096, capacity), seed, trouble);
    let options = PushOptions { interval: Some(Duration::from_micros(300)), ..PushOptions::default() };
    let (local, pusher) = pusher(store.clone(), options);
    let bytes = vec![0; 20 * 4096];
    local.place(0, &vec![0; capacity as usize]).unwrap();
    let mut model = Model { local, pusher, bytes, random: Random(seed) };
    let (mut good, mut failed) = (0, 0);
    for step in 0..12_000 {
        match model.step(capacity) {
            Some(Ok(epoch)) => {
                assert_eq!(store.info().epoch, epoch, "step {step}");
                assert!(newest(&*store) == model.bytes, "step {step}: epoch {epoch} is not what was written");
                good += 1;
            }
            Some(Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "step {step}: {error}");
                failed += 1;
            }
            None => {}
        }
    }
    store.set(Trouble::default());
    model.pusher.flush().unwrap();
    assert!(newest(&*store) == model.bytes);
    assert!(good > 500 && failed > 20 && store.troubles() > 200, "{good}, {failed}, {}", store.troubles());
}

#[test]
fn steps_over_a_network_that_cuts_and_servers_that_are_restarted() {
    let capacity = 48 * 4096;
    let seed = random::seed(7);
    let store = Arc::new(MemoryStore::with_capacity(20 * 4096, capacity));
    let region = Region::new("memory", store.clone()).unwrap();
    let (server, address) = support::serve([region.clone()], &anywhere());
    let weather = Weather { cuts: 30, cut_within: 3000, cut_up_within: 1 << 20, ..Weather::default() };
    let proxy = Proxy::new(&address, seed, weather);
    let at = region_at(&proxy.address(), "memory");
    let mut remote = None;
    wait_until("the region can be opened", || {
        remote = RemoteStore::connect_writer(&at, &patient_for(5000), "a test").ok();
        remote.is_some()
    });
    let options = PushOptions { interval: Some(Duration::from_micros(300)), ..PushOptions::default() };
    let (local, pusher) = pusher(Arc::new(remote.unwrap()), options);
    local.place(0, &vec![0; capacity as usize]).unwrap();
    let mut model = Model { local, pusher, bytes: vec![0; 20 * 4096], random: Random(seed) };
    let mut server = Some(server);
    for step in 0..2000 {
        if step % 500 == 499 {
            drop(server.take());
            server = Some(support::serve([region.clone()], &address).0);
        }
        if let Some(flushed) = model.step(capacity) {
            let epoch = flushed.unwrap();
            assert_eq!(store.info().epoch, epoch, "step {step}");
            assert!(newest(&*store) == model.bytes, "step {step}: epoch {epoch} is not what was written");
        }
    }
    assert!(proxy.cuts() > 5, "{} cuts", proxy.cuts());
}
