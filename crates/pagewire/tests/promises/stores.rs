//! The contract of a store, and each store that must keep it.

use std::sync::Arc;
use std::time::Duration;

use pagewire::address::PeerAddress;
use pagewire::engine::Region;
use pagewire::store::wrap::{Chaos, Faults, Retry};
use pagewire::store::{Blocking, FileStore, MemoryStore, Read, RemoteOptions, RemoteStore, Store, Urgency};
use pagewire::{ByteRange, ErrorKind};

use crate::support::recorder::{self, Recorder};
use crate::support::{self, anywhere, file, file_region, pattern, region_at};

pub(crate) const LENGTHS: [usize; 8] = [0, 1, 4095, 4096, 4097, 65535, 65536, 65537];

/// Ranges of a region of `length` bytes that are interesting to ask for, several at a time.
fn requests(length: u64) -> Vec<Vec<ByteRange>> {
    let range =
        |start: u64, end: u64| ByteRange::new(start.min(length), end.min(length).max(start.min(length)));
    vec![
        vec![],
        vec![range(0, length)],
        vec![range(0, 0)],
        vec![range(length, length)],
        vec![range(0, 1)],
        vec![range(1, 2)],
        vec![range(4095, 4097)],
        vec![range(4096, 8192)],
        vec![range(length.saturating_sub(1), length)],
        vec![range(5, 4000), range(4000, 4001), range(4010, 9000), range(30_000, 60_001)],
        vec![range(61_440, 65_537), range(8192, 12_288), range(0, 4096)],
        vec![range(7, 7), range(100, 200), range(length, length)],
    ]
}

/// What every store promises of its reads, for a store that holds `model` and does not fail.
pub(crate) fn check_reads(name: &str, store: &dyn Store, model: &[u8]) {
    let info = store.info();
    let length = model.len() as u64;
    assert_eq!(info.length, length, "{name}");
    assert!(info.capacity >= info.length && info.granularity.is_power_of_two(), "{name}");
    for urgency in [Urgency::Demand, Urgency::Background] {
        for ranges in requests(length) {
            let (end, whole) = recorder::read(store, &ranges, urgency, model);
            assert!(end.is_ok() && whole, "{name}, {length} bytes, {ranges:?}, {urgency:?}: {end:?}");
        }
        for ranges in [
            vec![ByteRange::new(0, length + 1)],
            vec![ByteRange::new(length, length + 4096)],
            vec![ByteRange::new(1 << 50, (1 << 50) + 1)],
            vec![ByteRange::new(0, length.min(4096)), ByteRange::new(length + 4096, length + 8192)],
        ] {
            let (end, _) = recorder::read(store, &ranges, urgency, model);
            let error = end.expect_err(name);
            assert_eq!(error.kind(), ErrorKind::OutOfRange, "{name}, {length} bytes, {ranges:?}: {error}");
            assert!(!error.can_retry());
        }
    }
    assert!(store.read_bytes(ByteRange::new(0, length), info.epoch).unwrap() == model, "{name}");
    store.flush_all().unwrap();
    assert_eq!(store.refresh().unwrap(), info, "{name}: nothing has changed");
    // From several threads at once.
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            scope.spawn(move || {
                for step in 0..10 {
                    let start = (thread * 31 + step * 977).min(length);
                    let ranges = [ByteRange::new(start, (start + 5000).min(length))];
                    let (end, whole) = recorder::read(store, &ranges, Urgency::Background, model);
                    assert!(end.is_ok() && whole, "{name}");
                }
            });
        }
    });
}

/// What every store promises that can be written to. It holds `model`.
pub(crate) fn check_writes(name: &str, store: &dyn Store, mut model: Vec<u8>) {
    let length = model.len() as u64;
    assert!(store.info().writable, "{name}");
    for (offset, count) in [(0, 1), (1, 4095), (4095, 2), (4096, 4096), (65_530, 7), (0, length), (length, 0)]
    {
        let (offset, end) = (offset.min(length), (offset + count).min(length));
        let bytes: Vec<u8> = (offset..end).map(|at| (at % 241) as u8 + 3).collect();
        store.write_bytes(offset, &bytes).unwrap();
        store.flush_all().unwrap();
        model[offset as usize..end as usize].copy_from_slice(&bytes);
        check_reads(name, store, &model);
    }
    for (start, end) in [(0, 0), (10, 5000), (4096, 8192), (0, 65_536), (length, length)] {
        let range = ByteRange::new(start.min(length), end.min(length));
        store.zero_range(range).unwrap();
        store.flush_all().unwrap();
        model[range.start as usize..range.end as usize].fill(0);
        check_reads(name, store, &model);
    }
    for error in [
        store.write_bytes(length, &[1]).unwrap_err(),
        store.write_bytes(length.saturating_sub(1), &[1, 2]).unwrap_err(),
        store.write_bytes(u64::MAX, &[1]).unwrap_err(),
        store.zero_range(ByteRange::new(length, length + 1)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{name}: {error}");
    }
    check_reads(name, store, &model);
}

/// What a store promises that cannot be written to.
pub(crate) fn check_refuses_writes(name: &str, store: &dyn Store) {
    assert!(!store.info().writable, "{name}");
    let length = store.info().length;
    if length > 0 {
        assert!(store.write_bytes(0, &[1]).is_err(), "{name}");
        assert!(store.zero_range(ByteRange::new(0, 1)).is_err(), "{name}");
    }
    store.flush_all().unwrap();
}

pub(crate) fn retry(store: &Arc<dyn Store>) -> Retry {
    Retry::new(store.clone(), Duration::from_secs(5))
}

pub(crate) fn memory(model: &[u8]) -> MemoryStore {
    let store = MemoryStore::new(model.len() as u64);
    store.write_bytes(0, model).unwrap();
    store.flush_all().unwrap();
    store
}

/// A region of its own on a server of its own, opened.
fn remote(peer: &PeerAddress) -> Arc<dyn Store> {
    let options = RemoteOptions { connections: 2, ..RemoteOptions::default() };
    Arc::new(RemoteStore::connect(&region_at(peer, "file"), &options).unwrap())
}

#[test]
fn memory_keeps_the_contract() {
    for length in LENGTHS {
        let zeroes = vec![0; length];
        check_reads("fresh memory", &MemoryStore::new(length as u64), &zeroes);
        let model = pattern(length, 1);
        let store: Arc<dyn Store> = Arc::new(memory(&model));
        check_reads("memory", &*store, &model);
        check_reads("memory, retried", &retry(&store), &model);
        check_writes("memory", &*store, model.clone());
        check_writes("memory, retried", &retry(&(Arc::new(memory(&model)) as Arc<dyn Store>)), model);
    }
}

#[test]
fn a_file_keeps_the_contract() {
    for length in LENGTHS {
        let model = pattern(length, 2);
        let file = file(&model);
        let store: Arc<dyn Store> = Arc::new(FileStore::open(file.path(), None, false).unwrap());
        check_reads("file", &*store, &model);
        check_reads("file, retried", &retry(&store), &model);
        check_refuses_writes("file", &*store);
        check_refuses_writes("file, retried", &retry(&store));
        drop(store);
        let store: Arc<dyn Store> = Arc::new(FileStore::open(file.path(), None, true).unwrap());
        check_reads("writable file", &*store, &model);
        check_writes("writable file", &*store, model);
        let now = store.read_bytes(ByteRange::new(0, length as u64), store.info().epoch).unwrap();
        check_writes("writable file, retried", &retry(&store), now.clone());
        drop(store);
        let after = FileStore::open(file.path(), None, false).unwrap();
        assert_eq!(after.info().length, length as u64, "it has kept its length");
    }
}

#[test]
fn a_remote_region_keeps_the_contract() {
    for length in LENGTHS {
        let model = pattern(length, 3);
        let file = file(&model);
        let folder = tempfile::tempdir().unwrap();
        let unix = PeerAddress::Unix(folder.path().join("socket with a space"));
        for address in [anywhere(), unix] {
            let (_server, peer) = support::serve([file_region(file.path())], &address);
            let peer: PeerAddress = peer.to_string().parse().unwrap();
            let store = remote(&peer);
            check_reads("remote", &*store, &model);
            check_reads("remote, retried", &retry(&store), &model);
            check_refuses_writes("remote", &*store);
            // The same through memory, which the server reads and does not lend.
            let memory = Region::new("file", Arc::new(memory(&model))).unwrap();
            let (_server, peer) = support::serve([memory], &anywhere());
            check_reads("remote memory", &*remote(&peer), &model);
        }
    }
}

#[test]
fn a_store_that_fails_now_and_then_is_made_good_by_trying_again() {
    let faults =
        Faults { error: 20, cut: 20, delay: Duration::from_millis(1), delayed: 10, ..Faults::default() };
    for length in [1, 65_537] {
        let model = pattern(length, 4);
        let file = file(&model);
        let (_server, peer) = support::serve([file_region(file.path())], &anywhere());
        let stores: [(&str, Arc<dyn Store>); 3] = [
            ("memory", Arc::new(memory(&model))),
            ("file", Arc::new(FileStore::open(file.path(), None, false).unwrap())),
            ("remote", remote(&peer)),
        ];
        for (seed, (name, store)) in stores.into_iter().enumerate() {
            let chaos: Arc<dyn Store> = Arc::new(Chaos::new(store, seed as u64, faults));
            for _ in 0..2 {
                let (end, whole) = recorder::read(
                    &retry(&chaos),
                    &[ByteRange::new(0, length as u64)],
                    Urgency::Demand,
                    &model,
                );
                assert!(end.is_ok() && whole, "{name}: {end:?}");
                for ranges in requests(length as u64) {
                    let (end, whole) = recorder::read(&retry(&chaos), &ranges, Urgency::Background, &model);
                    assert!(end.is_ok() && whole, "{name}, {ranges:?}: {end:?}");
                }
            }
        }
    }
}

#[test]
fn a_store_that_leaves_something_out_is_noticed() {
    let model = pattern(300_000, 5);
    let whole = ByteRange::new(0, 300_000);
    let faults = Faults { short: 50, ..Faults::default() };
    let chaos: Arc<dyn Store> = Arc::new(Chaos::new(Arc::new(memory(&model)), 9, faults));
    let retried: Arc<dyn Store> = Arc::new(retry(&chaos));
    for (name, store) in [("chaos", &chaos), ("retried", &retried)] {
        let (mut good, mut bad) = (0, 0);
        for _ in 0..60 {
            match store.read_bytes(whole, store.info().epoch) {
                Ok(bytes) => {
                    assert!(bytes == model, "{name}: a gap was taken for good");
                    good += 1;
                }
                Err(_) => bad += 1,
            }
        }
        assert!(good > 0 && (bad > 0 || name == "retried"), "{name}: {good} good, {bad} bad");
    }
    // Through a server, whose client must not take a gap for good either.
    let (_server, peer) = support::serve([Region::new("file", chaos).unwrap()], &anywhere());
    let remote = remote(&peer);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..60 {
        match remote.read_bytes(whole, remote.info().epoch) {
            Ok(bytes) => {
                assert!(bytes == model, "a gap was taken for good");
                good += 1;
            }
            Err(_) => bad += 1,
        }
    }
    assert!(good > 0 && bad > 0, "{good} good, {bad} bad");
}

#[test]
fn an_error_that_does_not_pass_is_told_at_once_and_one_that_does_after_the_patience() {
    let always = Faults { error: 100, ..Faults::default() };
    let chaos: Arc<dyn Store> = Arc::new(Chaos::new(Arc::new(MemoryStore::new(8192)), 1, always));
    let asked = std::time::Instant::now();
    let store = Retry::new(chaos, Duration::from_millis(120));
    let error = store.read_bytes(ByteRange::new(0, 8192), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(asked.elapsed() >= Duration::from_millis(30) && asked.elapsed() < Duration::from_secs(2));
    // Dropped while reads wait for their next attempt: each is told.
    let chaos: Arc<dyn Store> = Arc::new(Chaos::new(Arc::new(MemoryStore::new(8192)), 1, always));
    let store = Retry::new(chaos, Duration::from_secs(60));
    let range = ByteRange::new(0, 8192);
    let recorders: Vec<Arc<Recorder>> = (0..10).map(|_| Arc::default()).collect();
    for recorder in &recorders {
        store.read(Read {
            ranges: vec![range],
            epoch: 1,
            urgency: Urgency::Background,
            sink: recorder.clone(),
        });
    }
    assert!(recorders.iter().all(|recorder| !recorder.has_ended()));
    drop(store);
    for recorder in recorders {
        recorder.wait().unwrap_err();
        recorder.check(&[range], &[0; 8192]);
    }
}

#[test]
fn one_read_may_be_longer_and_have_more_ranges_than_one_message() {
    let length = 330u64 << 20;
    let file = file(&[1; 4096]);
    file.as_file().set_len(length).unwrap();
    let region = Region::new("file", Arc::new(MemoryStore::new(length))).unwrap();
    let (_server, peer) = support::serve([file_region(file.path())], &anywhere());
    let (_memory, memory_peer) = support::serve([region], &anywhere());
    let every_other_page: Vec<ByteRange> =
        (0..40_000).map(|step| ByteRange::new(step * 8192 + 4096, step * 8192 + 8192)).collect();
    let stores: [(&str, Arc<dyn Store>); 4] = [
        ("memory", Arc::new(MemoryStore::new(length))),
        ("file", Arc::new(FileStore::open(file.path(), None, false).unwrap())),
        ("remote file", remote(&peer)),
        ("remote memory", remote(&memory_peer)),
    ];
    struct Count(std::sync::atomic::AtomicU64, std::sync::mpsc::SyncSender<pagewire::Result<()>>);
    impl pagewire::store::Sink for Count {
        fn part(&self, part: pagewire::store::Part<'_>) {
            self.0.fetch_add(part.range().len(), std::sync::atomic::Ordering::SeqCst);
        }
        fn done(&self, result: pagewire::Result<()>) {
            self.1.send(result).unwrap();
        }
    }
    for (name, store) in stores {
        for ranges in [vec![ByteRange::new(4096, 70 << 20)], every_other_page.clone()] {
            let (sender, receiver) = std::sync::mpsc::sync_channel(1);
            let sink = Arc::new(Count(0.into(), sender));
            let total: u64 = ranges.iter().map(|range| range.len()).sum();
            store.read(Read {
                ranges,
                epoch: store.info().epoch,
                urgency: Urgency::Background,
                sink: sink.clone(),
            });
            let end = receiver.recv_timeout(support::HANG).unwrap();
            end.unwrap_or_else(|error| panic!("{name}, {total} bytes: {error}"));
            assert_eq!(sink.0.load(std::sync::atomic::Ordering::SeqCst), total, "{name}");
        }
    }
}
