//! A region that changes while it is read: each reader sees one epoch, or an error, never a mix.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use pagewire::engine::{Change, Region};
use pagewire::store::{
    Blocking, Completion, Flush, Info, MemoryStore, Read, RemoteOptions, RemoteStore, Stage, Store,
};
use pagewire::{ByteRange, ErrorKind, PullOrder};

use crate::support::{self, anywhere, patient_for, region_at};

const LENGTH: u64 = (1 << 20) + 3;

/// A region whose every byte is 1, at its first epoch.
fn ones(images: u64) -> (Arc<Region>, u64) {
    let store = MemoryStore::new(LENGTH).with_images(images);
    let region = Region::new("changing", Arc::new(store)).unwrap();
    let epoch = fill(&region, 1);
    (region, epoch)
}

/// Makes every byte of the region `value`.
fn fill(region: &Arc<Region>, value: u8) -> u64 {
    let bytes = vec![value; LENGTH as usize];
    region.commit(&[Change { offset: 0, bytes: &bytes }]).unwrap()
}

#[test]
fn each_mapping_shows_the_epoch_that_it_was_made_at() {
    if !support::has_userfaultfd() {
        return;
    }
    let (region, first) = ones(64 << 20);
    let (_server, address) = support::serve([region.clone()], &anywhere());
    let mut mappings = Vec::new();
    for value in 1..=6u8 {
        let order = if value % 2 == 0 { PullOrder::None } else { PullOrder::Sequential };
        let mapping = support::map(&address, "changing", order, &RemoteOptions::default()).unwrap();
        assert_eq!(mapping.epoch(), first + u64::from(value) - 1);
        // Some of it has come before the commit, the rest comes after it.
        assert_eq!(mapping[usize::from(value) * 100_000], value);
        mappings.push((value, mapping));
        fill(&region, value + 1);
    }
    for (value, mapping) in &mappings {
        assert!(mapping.iter().all(|byte| byte == value), "the mapping of epoch {value} is a mix");
    }
    for (_, mut mapping) in mappings {
        assert!(mapping.refresh().unwrap());
        assert_eq!(mapping.epoch(), first + 6);
        assert!(mapping.iter().all(|byte| *byte == 7));
        assert!(!mapping.refresh().unwrap(), "there is nothing newer");
    }
}

/// A store that goes on to the next epoch right after it was pinned, once.
struct Moving {
    store: MemoryStore,
    region: Mutex<Weak<Region>>,
}

impl Store for Moving {
    fn info(&self) -> Info {
        self.store.info()
    }
    fn read(&self, read: Read) {
        self.store.read(read);
    }
    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        self.store.write(ranges, bytes, done);
    }
    fn flush(&self, flush: Flush) {
        self.store.flush(flush);
    }
    fn stage(&self) -> Stage {
        self.store.stage()
    }
    fn fence(&self) -> pagewire::Result<Option<u64>> {
        self.store.fence()
    }
    fn pin(&self, epoch: Option<u64>) -> pagewire::Result<Info> {
        let info = self.store.pin(epoch)?;
        let region = std::mem::take(&mut *self.region.lock().unwrap());
        if let Some(region) = region.upgrade() {
            fill(&region, 2);
        }
        Ok(info)
    }
    fn unpin(&self, epoch: u64) {
        self.store.unpin(epoch);
    }
}

#[test]
fn an_epoch_that_comes_while_a_region_is_opened_is_told() {
    let store = Arc::new(Moving { store: MemoryStore::new(LENGTH), region: Mutex::default() });
    let region = Region::new("changing", store.clone()).unwrap();
    let first = fill(&region, 1);
    let (_server, address) = support::serve([region.clone()], &anywhere());
    *store.region.lock().unwrap() = Arc::downgrade(&region);
    let reader = RemoteStore::connect(&region_at(&address, "changing"), &RemoteOptions::default()).unwrap();
    assert_eq!(reader.info().epoch, first);
    support::wait_until("the reader is told", || reader.newest() == first + 1);
}

#[test]
fn a_refresh_in_place_brings_what_has_changed_and_keeps_the_rest() {
    if !support::has_userfaultfd() {
        return;
    }
    let (region, first) = ones(64 << 20);
    let (_server, address) = support::serve([region.clone()], &anywhere());
    let mut mapping = support::map(&address, "changing", PullOrder::None, &RemoteOptions::default()).unwrap();
    mapping.prefault(ByteRange::new(0, LENGTH)).unwrap();
    let (before, brought) = (mapping.as_ptr(), mapping.progress().bytes());
    region.commit(&[Change { offset: 100_000, bytes: &[2; 10] }]).unwrap();
    support::wait_until("the mapping is told", || mapping.newest_epoch() == first + 1);
    assert_eq!((mapping.epoch(), mapping[100_000]), (first, 1), "nobody moves it");
    assert!(mapping.refresh().unwrap());
    assert_eq!((mapping.epoch(), mapping.as_ptr()), (first + 1, before));
    assert!(mapping[..100_000].iter().all(|byte| *byte == 1));
    assert_eq!(mapping[100_000..100_010], [2; 10]);
    assert!(mapping[100_010..].iter().all(|byte| *byte == 1));
    assert!(mapping.progress().bytes() <= 65536 && brought >= LENGTH, "only what has changed came again");
    for value in 3..20u8 {
        fill(&region, value);
        assert!(mapping.refresh().unwrap());
        assert!(mapping.iter().all(|byte| *byte == value), "a mix of epochs");
    }
}

#[test]
fn readers_see_one_epoch_while_a_writer_commits() {
    let (region, _) = ones(256 << 20);
    let (_server, address) = support::serve([region.clone()], &anywhere());
    let deadline = Instant::now() + std::time::Duration::from_millis(700);
    let read = [AtomicU64::new(0), AtomicU64::new(0)];
    std::thread::scope(|scope| {
        for read in &read {
            let address = &address;
            scope.spawn(move || {
                let options = RemoteOptions { connections: 1, ..RemoteOptions::default() };
                let mut rounds = 0;
                while Instant::now() < deadline || rounds == 0 {
                    let remote = RemoteStore::connect(&region_at(address, "changing"), &options).unwrap();
                    let epoch = remote.info().epoch;
                    let bytes = remote.read_bytes(ByteRange::new(0, LENGTH), epoch).unwrap();
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mix of epochs");
                    let again = remote.read_bytes(ByteRange::new(0, LENGTH), epoch).unwrap();
                    assert!(bytes == again, "the epoch has changed under its reader");
                    rounds += 1;
                    read.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut commits = 0u64;
        while Instant::now() < deadline {
            // Readers who wait for a processor are not to lose their epoch meanwhile.
            let rounds = read.iter().map(|read| read.load(Ordering::Relaxed)).min().unwrap();
            if commits > 100 * (1 + rounds) {
                std::thread::yield_now();
                continue;
            }
            commits += 1;
            fill(&region, (commits % 255) as u8 + 1);
        }
        assert!(commits > 2, "the writer is held up");
    });
}

#[test]
fn past_the_bound_a_reader_is_told_that_its_epoch_is_gone() {
    if !support::has_userfaultfd() {
        return;
    }
    let (region, _) = ones(LENGTH);
    let (_server, address) = support::serve([region.clone()], &anywhere());
    let mapping = support::map(&address, "changing", PullOrder::None, &patient_for(2000)).unwrap();
    mapping.prefault(ByteRange::new(0, 65536)).unwrap();
    for value in 2..=5 {
        fill(&region, value);
    }
    let error = mapping.prefault(ByteRange::new(65536, LENGTH)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    assert!(mapping[..65536].iter().all(|byte| *byte == 1), "what had come stays");
    let mut mapping = mapping;
    assert!(mapping.refresh().unwrap());
    assert!(mapping.iter().all(|byte| *byte == 5));
}

#[test]
fn a_background_pull_of_an_epoch_that_is_gone_gives_up() {
    let (region, _) = ones(4096);
    let (_server, address) = support::serve([region.clone()], &anywhere());
    let remote = RemoteStore::connect(&region_at(&address, "changing"), &RemoteOptions::default()).unwrap();
    let pinned = Region::new("pinned", Arc::new(remote)).unwrap();
    let pin = pinned.pin().unwrap();
    fill(&region, 2);
    fill(&region, 3);
    let local = Arc::new(pagewire::engine::PlainMemory::new(LENGTH));
    let puller =
        pagewire::engine::Puller::start(pin, local, pagewire::engine::PullOptions::default()).unwrap();
    let ended = puller.wait_until(Instant::now() + support::HANG);
    let error = ended.map(|done| done.expect("the pull hangs")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
}

#[test]
fn a_client_that_was_away_while_its_epoch_went_is_told() {
    let (region, first) = ones(64 << 20);
    let (server, address) = support::serve([region.clone()], &anywhere());
    let remote = RemoteStore::connect(&region_at(&address, "changing"), &patient_for(5000)).unwrap();
    drop(server);
    // Its pin goes with its connection, however soon the server notices.
    support::wait_until("the pin is gone", || {
        fill(&region, 2);
        region.pin_epoch(first).is_err()
    });
    let (_server, _) = support::serve([region], &address);
    let error = remote.read_bytes(ByteRange::new(0, LENGTH), first).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
}

#[test]
fn small_commits_show_page_by_page_what_they_should() {
    let (region, first) = ones(64 << 20);
    let (_server, address) = support::serve([region.clone()], &anywhere());
    let remote = RemoteStore::connect(&region_at(&address, "changing"), &RemoteOptions::default()).unwrap();
    let mut model = vec![1u8; LENGTH as usize];
    let old = model.clone();
    for step in 0..40u64 {
        let offset = step * 48_271 % (LENGTH - 5000);
        let bytes = vec![step as u8 + 2; 1 + (step * 131 % 5000) as usize];
        let shorter = &bytes[..bytes.len() / 2];
        let changes = [
            Change { offset, bytes: &bytes },
            Change { offset: LENGTH - 3, bytes: &shorter[..shorter.len().min(3)] },
        ];
        region.commit(&changes).unwrap();
        for change in &changes {
            model[change.offset as usize..][..change.bytes.len()].copy_from_slice(change.bytes);
        }
        assert!(remote.read_bytes(ByteRange::new(0, LENGTH), first).unwrap() == old, "step {step}");
    }
    let now = remote.refresh().unwrap();
    assert_eq!(now.epoch, first + 40);
    assert!(remote.read_bytes(ByteRange::new(0, LENGTH), now.epoch).unwrap() == model);
    assert_eq!(region.commit(&[]).unwrap(), now.epoch, "nothing to write makes no epoch");
    let error = region.commit(&[Change { offset: LENGTH - 1, bytes: &[1, 2] }]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
}
