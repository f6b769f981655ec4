//! Readers of older epochs see theirs, whatever is committed meanwhile, or are told that it is gone.

use super::*;
use crate::store::{Blocking, MemoryStore, Part, Sink, Urgency};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};

struct Collect {
    bytes: Mutex<Vec<u8>>,
    done: Mutex<Option<mpsc::SyncSender<Result<()>>>>,
}

impl Sink for Collect {
    fn part(&self, part: Part<'_>) {
        let range = part.range();
        if let Part::Bytes { bytes, .. } = part {
            self.bytes.lock().unwrap()[range.start as usize..range.end as usize].copy_from_slice(bytes);
        }
    }

    fn done(&self, result: Result<()>) {
        self.done.lock().unwrap().take().expect("done comes once").send(result).unwrap();
    }
}

/// The first `length` bytes of the region at `epoch`.
fn image(region: &Region, epoch: u64, length: u64) -> Result<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let sink =
        Arc::new(Collect { bytes: Mutex::new(vec![0; length as usize]), done: Mutex::new(Some(sender)) });
    let ranges = vec![ByteRange::new(0, length)];
    region.read(Read { ranges, epoch, urgency: Urgency::Background, sink: sink.clone() });
    receiver.recv().unwrap()?;
    Ok(sink.bytes.lock().unwrap().clone())
}

#[test]
fn every_pinned_epoch_stays_what_it_was() {
    let region = Region::new("r", Arc::new(MemoryStore::new(20_000))).unwrap();
    let mut model = vec![vec![0u8; 20_000]];
    let mut pins = vec![region.pin()];
    for round in 1..20u64 {
        let mut next = model.last().unwrap().clone();
        let (a, b) = ((round * 977) as usize, (round * 450 + 3000) as usize);
        let (one, two) = (vec![round as u8; 500], vec![100 + round as u8; 3000]);
        next[a % 19_000..a % 19_000 + 500].copy_from_slice(&one);
        next[b % 17_000..b % 17_000 + 3000].copy_from_slice(&two);
        let changes = [
            Change { offset: a as u64 % 19_000, bytes: &one },
            Change { offset: b as u64 % 17_000, bytes: &two },
        ];
        let epoch = region.commit(&changes).unwrap();
        assert_eq!(epoch, pins.last().unwrap().epoch() + 1);
        model.push(next);
        pins.push(region.pin());
        for (pin, bytes) in pins.iter().zip(&model) {
            assert_eq!(&image(&region, pin.epoch(), 20_000).unwrap(), bytes);
        }
    }
    assert_eq!(region.commit(&[]).unwrap(), region.info().epoch, "nothing to commit makes no epoch");
    assert_eq!(image(&region, 99, 1).unwrap_err().kind(), ErrorKind::Stale, "no epoch of the future");
}

#[test]
fn past_the_bound_a_reader_is_told_that_its_epoch_is_gone() {
    let region = Region::with_images("r", Arc::new(MemoryStore::new(100_000)), 10_000).unwrap();
    let pin = region.pin();
    region.commit(&[Change { offset: 0, bytes: &[1; 6000] }]).unwrap();
    assert_eq!(image(&region, pin.epoch(), 8000).unwrap(), [0; 8000]);
    region.commit(&[Change { offset: 50_000, bytes: &[2; 6000] }]).unwrap();
    assert_eq!(image(&region, pin.epoch(), 8000).unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(region.pin_epoch(pin.epoch()).err().unwrap().kind(), ErrorKind::Stale);
    assert_eq!(image(&region, region.info().epoch, 6000).unwrap(), [1; 6000]);
}

#[test]
fn images_that_nobody_needs_are_dropped() {
    let region = Region::new("r", Arc::new(MemoryStore::new(100_000))).unwrap();
    let first = region.pin().epoch();
    region.commit(&[Change { offset: 0, bytes: &[1; 6000] }]).unwrap();
    assert!(region.pin_epoch(first).is_err(), "nobody was pinned to it");
}

/// A store that fails its writes when told.
struct Failing {
    store: MemoryStore,
    fail: AtomicBool,
    writes: std::sync::atomic::AtomicUsize,
}

impl Store for Failing {
    fn info(&self) -> Info {
        self.store.info()
    }
    fn read(&self, read: Read) {
        self.store.read(read);
    }
    fn write(&self, offset: u64, bytes: &[u8], done: crate::store::Completion) {
        let count = self.writes.fetch_add(1, Ordering::SeqCst);
        if self.fail.load(Ordering::SeqCst) && count == 1 {
            return done(Err(Error::new(ErrorKind::Io, "disk full")));
        }
        self.store.write(offset, bytes, done);
    }
    fn flush(&self, done: crate::store::Completion) {
        self.store.flush(done);
    }
}

#[test]
fn a_commit_that_fails_half_way_is_undone_and_a_later_one_succeeds() {
    let store =
        Arc::new(Failing { store: MemoryStore::new(9000), fail: AtomicBool::new(true), writes: 0.into() });
    let region = Region::new("r", store.clone()).unwrap();
    let pin = region.pin();
    let changes = [Change { offset: 0, bytes: &[1; 100] }, Change { offset: 5000, bytes: &[2; 100] }];
    assert_eq!(region.commit(&changes).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(region.info().epoch, pin.epoch());
    assert_eq!(image(&region, pin.epoch(), 9000).unwrap(), [0; 9000]);
    assert_eq!(store.read_bytes(ByteRange::new(0, 9000), 1).unwrap(), [0; 9000]);
    store.fail.store(false, Ordering::SeqCst);
    let epoch = region.commit(&changes).unwrap();
    assert_eq!(image(&region, pin.epoch(), 9000).unwrap(), [0; 9000]);
    assert_eq!(image(&region, epoch, 9000).unwrap()[5000..5100], [2; 100]);
}

#[test]
fn readers_never_see_a_mix_while_somebody_commits() {
    let region = Region::new("r", Arc::new(MemoryStore::new(256 << 10))).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !stop.load(Ordering::SeqCst) {
                let pin = region.pin();
                let bytes = image(&region, pin.epoch(), 256 << 10).unwrap();
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "epoch {} is a mix", pin.epoch());
                assert_eq!(u64::from(bytes[0]), (pin.epoch() - 1) % 256);
                seen += 1;
            }
            seen
        });
        for round in 1..200u64 {
            region.commit(&[Change { offset: 0, bytes: &vec![(round % 256) as u8; 256 << 10] }]).unwrap();
        }
        stop.store(true, Ordering::SeqCst);
        assert!(reader.join().unwrap() > 0);
    });
}
