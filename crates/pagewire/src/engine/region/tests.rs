//! Readers of older epochs see theirs, whatever is committed meanwhile, or are told that it is gone.

use super::*;
use crate::error::{Error, ErrorKind};
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
    let region = Region::new("r", plain(20_000)).unwrap();
    let mut model = vec![vec![0u8; 20_000]];
    let mut pins = vec![region.pin().unwrap()];
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
        pins.push(region.pin().unwrap());
        for (pin, bytes) in pins.iter().zip(&model) {
            assert_eq!(&image(&region, pin.epoch(), 20_000).unwrap(), bytes);
            let changes = region.changes(pin.epoch()).unwrap();
            for (index, (old, new)) in bytes.chunks(4096).zip(model[round as usize].chunks(4096)).enumerate()
            {
                let page = ByteRange::of_pages(index as u64..index as u64 + 1);
                let told = changes.iter().any(|change| change.overlaps(page));
                assert!(told || old == new, "page {index} since epoch {}", pin.epoch());
            }
        }
        let last = region.changes(epoch - 1).unwrap();
        assert!(ByteRange::total(&last) <= 4 * 4096, "no more than was written: {last:?}");
    }
    assert_eq!(region.changes(model.len() as u64 + 1), None);
    assert_eq!(region.commit(&[]).unwrap(), region.info().epoch, "nothing to commit makes no epoch");
    assert_eq!(image(&region, 99, 1).unwrap_err().kind(), ErrorKind::Stale, "no epoch of the future");
}

#[test]
fn past_the_bound_a_reader_is_told_that_its_epoch_is_gone() {
    let region = Region::with_images("r", plain(100_000), 10_000).unwrap();
    let pin = region.pin().unwrap();
    region.commit(&[Change { offset: 0, bytes: &[1; 6000] }]).unwrap();
    assert_eq!(image(&region, pin.epoch(), 8000).unwrap(), [0; 8000]);
    region.commit(&[Change { offset: 50_000, bytes: &[2; 6000] }]).unwrap();
    assert_eq!(image(&region, pin.epoch(), 8000).unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(region.pin_epoch(pin.epoch()).err().unwrap().kind(), ErrorKind::Stale);
    assert_eq!(image(&region, region.info().epoch, 6000).unwrap(), [1; 6000]);
}

#[test]
fn images_that_nobody_needs_are_dropped() {
    let region = Region::new("r", plain(100_000)).unwrap();
    let first = region.pin().unwrap().epoch();
    region.commit(&[Change { offset: 0, bytes: &[1; 6000] }]).unwrap();
    assert!(region.pin_epoch(first).is_err(), "nobody was pinned to it");
}

#[test]
fn while_nobody_reads_little_is_kept_for_a_reader_that_may_come() {
    let region = Region::with_images("r", plain(100_000), 80_000).unwrap();
    let writer = region.writer("test").unwrap();
    writer.write_bytes(0, &[1; 6000]).unwrap();
    let pin = region.pin().expect("there are images of all that was replaced");
    writer.write_bytes(50_000, &[2; 6000]).unwrap();
    assert_eq!(image(&region, pin.epoch(), 60_000).unwrap(), [0; 60_000], "all is kept for a reader");
    drop(pin);
    writer.write_bytes(90_000, &[3; 6000]).unwrap();
    assert_eq!(region.pin().err().unwrap().kind(), ErrorKind::Busy, "more was replaced than is kept");
    writer.flush_all().unwrap();
    assert_eq!(image(&region, region.pin().unwrap().epoch(), 6000).unwrap(), [1; 6000]);
}

/// A store that writes through and keeps no epochs, and fails its second write when told.
struct Plain {
    store: Arc<MemoryStore>,
    fail: AtomicBool,
    writes: std::sync::atomic::AtomicUsize,
}

fn plain(length: u64) -> Arc<Plain> {
    Arc::new(Plain {
        store: Arc::new(MemoryStore::new(length)),
        fail: AtomicBool::new(false),
        writes: 0.into(),
    })
}

impl Store for Plain {
    fn info(&self) -> Info {
        Info { epoch: 1, capabilities: crate::store::Capabilities::default(), ..self.store.info() }
    }
    fn read(&self, read: Read) {
        assert_eq!(read.epoch, 1);
        self.store.read(Read { epoch: self.store.info().epoch, ..read });
    }
    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: crate::store::Completion) {
        let count = self.writes.fetch_add(1, Ordering::SeqCst);
        if self.fail.load(Ordering::SeqCst) && count == 1 {
            return done(Err(Error::new(ErrorKind::Io, "disk full")));
        }
        self.store.write(ranges, bytes, Box::new(|_| {}));
        done(self.store.flush_all().map(drop));
    }
    fn flush(&self, flush: crate::store::Flush) {
        (flush.done)(Ok(self.info()));
    }
    fn stream(&self, stream: StreamRequest) -> Result<Box<dyn crate::store::Stream>> {
        let stop = Arc::new(AtomicBool::new(false));
        let (store, told) = (Arc::downgrade(&self.store), stop.clone());
        std::thread::spawn(move || {
            for page in stream.ranges.iter().flat_map(|range| range.split(4096)) {
                let Some(store) = store.upgrade().filter(|_| !told.load(Ordering::SeqCst)) else { break };
                // The newest bytes, whichever epoch they are of.
                let bytes = store.read_bytes(page, STAGED).unwrap();
                stream.sink.part(Part::Bytes { offset: page.start, bytes: &bytes });
            }
            stream.sink.done(Ok(()));
        });
        Ok(Box::new(Streamed(stop)))
    }
}

#[test]
fn a_write_that_fails_half_way_leaves_the_epoch_what_it_was_and_a_later_one_succeeds() {
    let store = plain(9000);
    store.fail.store(true, Ordering::SeqCst);
    let region = Region::new("r", store.clone()).unwrap();
    let pin = region.pin().unwrap();
    let changes = [Change { offset: 0, bytes: &[1; 100] }, Change { offset: 5000, bytes: &[2; 100] }];
    assert_eq!(region.commit(&changes).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(region.info().epoch, pin.epoch());
    assert_eq!(image(&region, pin.epoch(), 9000).unwrap(), [0; 9000]);
    store.fail.store(false, Ordering::SeqCst);
    let epoch = region.commit(&changes).unwrap();
    assert_eq!(epoch, pin.epoch() + 1);
    assert_eq!(image(&region, pin.epoch(), 9000).unwrap(), [0; 9000]);
    assert_eq!(image(&region, epoch, 9000).unwrap()[5000..5100], [2; 100]);
}

#[test]
fn what_is_not_flushed_is_the_writers_alone() {
    for (name, store) in
        [("plain", plain(9000) as Arc<dyn Store>), ("memory", Arc::new(MemoryStore::new(9000)))]
    {
        let region = Region::new("r", store).unwrap();
        let first = region.pin().unwrap();
        let writer = region.writer("one").unwrap();
        writer.write_bytes(4000, &[1; 200]).unwrap();
        assert_eq!(writer.read_bytes(ByteRange::new(4000, 4200)).unwrap(), [1; 200], "{name}");
        assert_eq!(image(&region, first.epoch(), 9000).unwrap(), [0; 9000], "{name}");
        let second = region.pin().unwrap();
        assert_eq!(second.epoch(), first.epoch(), "{name}");
        assert_eq!(image(&region, second.epoch(), 9000).unwrap(), [0; 9000], "{name}");
        let epoch = writer.flush_all().unwrap().epoch;
        assert_eq!(epoch, first.epoch() + 1, "{name}");
        assert_eq!(writer.flush_all().unwrap().epoch, epoch, "{name}: nothing to flush makes no epoch");
        assert_eq!(image(&region, epoch, 9000).unwrap()[4000..4200], [1; 200], "{name}");
        assert_eq!(image(&region, first.epoch(), 9000).unwrap(), [0; 9000], "{name}");
        assert_eq!(region.writer("two").err().unwrap().kind(), ErrorKind::Busy, "{name}");
        drop(writer);
        region.writer("two").unwrap();
    }
}

#[test]
fn a_writer_that_is_dropped_gives_up_what_it_has_not_flushed() {
    let region = Region::new("r", Arc::new(MemoryStore::new(9000))).unwrap();
    let writer = region.writer("one").unwrap();
    writer.write_bytes(0, &[1; 9000]).unwrap();
    let token = writer.token();
    writer.lose(std::time::Duration::from_secs(3600));
    let writer = region.resume_writer(token, "one").unwrap();
    assert_eq!(writer.read_bytes(ByteRange::new(0, 9000)).unwrap(), [1; 9000], "it was only lost");
    drop(writer);
    let next = region.writer("two").unwrap();
    assert_eq!(next.read_bytes(ByteRange::new(0, 9000)).unwrap(), [0; 9000]);
    assert!(next.token() > token);
    let error = region.resume_writer(token, "one").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
}

#[test]
fn readers_never_see_a_mix_while_somebody_commits() {
    for store in [plain(256 << 10) as Arc<dyn Store>, Arc::new(MemoryStore::new(256 << 10))] {
        never_a_mix(&Region::new("r", store).unwrap());
    }
}

fn never_a_mix(region: &Arc<Region>) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !stop.load(Ordering::SeqCst) {
                let pin = region.pin().unwrap();
                let bytes = image(region, pin.epoch(), 256 << 10).unwrap();
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

/// A stream of [`Plain`]: a thread that reads page after page.
struct Streamed(Arc<AtomicBool>);

impl crate::store::Stream for Streamed {
    fn steer(&self, _: &[ByteRange]) {}

    fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_stream_gives_its_epoch_while_somebody_commits() {
    let length = 64 * 4096;
    let region = Region::with_images("r", plain(length), 8 << 20).unwrap();
    let mut commits = 0u64;
    for _ in 0..20 {
        let pin = region.pin().unwrap();
        let expected = (pin.epoch() - 1) as u8;
        let (sender, done) = mpsc::sync_channel(1);
        let sink = Arc::new(Collect {
            bytes: Mutex::new(vec![99; length as usize]),
            done: Mutex::new(Some(sender)),
        });
        let ranges = vec![ByteRange::new(0, length)];
        let stream = region.stream(StreamRequest { ranges, epoch: pin.epoch(), sink: sink.clone() }).unwrap();
        for _ in 0..3 {
            commits += 1;
            region.commit(&[Change { offset: 0, bytes: &vec![commits as u8; length as usize] }]).unwrap();
        }
        done.recv().unwrap().unwrap();
        drop(stream);
        assert!(sink.bytes.lock().unwrap().iter().all(|byte| *byte == expected), "not epoch {}", pin.epoch());
    }
    // What is not kept any more is told, and nothing else is given for it.
    let region = Region::with_images("r", plain(length), 4096).unwrap();
    let pin = region.pin().unwrap();
    let (sender, done) = mpsc::sync_channel(1);
    let sink =
        Arc::new(Collect { bytes: Mutex::new(vec![0; length as usize]), done: Mutex::new(Some(sender)) });
    for value in [7, 8] {
        region.commit(&[Change { offset: 0, bytes: &vec![value; length as usize] }]).unwrap();
    }
    let ranges = vec![ByteRange::new(0, length)];
    let _stream = region.stream(StreamRequest { ranges, epoch: pin.epoch(), sink: sink.clone() }).unwrap();
    assert_eq!(done.recv().unwrap().unwrap_err().kind(), ErrorKind::Stale);
    assert!(sink.bytes.lock().unwrap().iter().all(|byte| *byte == 0));
}
