//! The contract of a local copy, and pulls into one against a plain model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire::engine::{LocalCopy, PlainMemory, PullOptions, Puller, Region};
use pagewire::store::wrap::{Chaos, Faults};
use pagewire::store::{Blocking, MemoryStore, Read, RemoteOptions, RemoteStore, Store};
use pagewire::{ByteRange, ChunkSize, ErrorKind, PullOrder};
use pagewire_core::chunk::ChunkIndex;
use proptest::prelude::*;

use crate::support::{self, anywhere, pattern, region_at};

fn memory_region(bytes: &[u8]) -> Arc<Region> {
    Region::new("memory", Arc::new(memory(bytes))).unwrap()
}

fn memory(bytes: &[u8]) -> MemoryStore {
    let store = MemoryStore::new(bytes.len() as u64);
    store.write_bytes(0, bytes).unwrap();
    store.flush_all().unwrap();
    store
}

fn pull(order: PullOrder, chunk: u64) -> PullOptions {
    PullOptions {
        order,
        chunk: ChunkSize::new(chunk).unwrap(),
        heal_interval: Duration::from_millis(20),
        ..PullOptions::default()
    }
}

fn read_all(local: &dyn LocalCopy, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    local.read_back(0, &mut bytes).unwrap();
    bytes
}

fn take_dirty(local: &PlainMemory) -> Vec<ByteRange> {
    let mut ranges = Vec::new();
    local.take_dirty(&mut ranges).unwrap();
    ranges
}

#[derive(Debug, Clone)]
enum Step {
    Place(u64, u64, u8),
    PlaceZero(u64, u64),
    Write(u64, u64, u8),
    Fail(u64, u64),
    Evict(u64, u64),
    Take,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pages = (0u64..12, 0u64..6);
    let step = prop_oneof![
        3 => (pages.clone(), any::<u8>()).prop_map(|((start, count), value)| Step::Place(start, count, value)),
        1 => pages.clone().prop_map(|(start, count)| Step::PlaceZero(start, count)),
        3 => (pages.clone(), any::<u8>()).prop_map(|((start, count), value)| Step::Write(start, count, value)),
        1 => pages.clone().prop_map(|(start, count)| Step::Fail(start, count)),
        1 => pages.prop_map(|(start, count)| Step::Evict(start, count)),
        1 => Just(Step::Take),
    ];
    proptest::collection::vec(step, 0..50)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a list of pages: what is in each, and whether it is dirty.
    #[test]
    fn plain_memory_keeps_the_contract(length in 0u64..12 * 4096, steps in steps()) {
        let local = PlainMemory::new(length);
        let count = length.div_ceil(4096);
        let mut model: Vec<(Option<u8>, bool)> = vec![(None, false); count as usize];
        let range = |start: u64, pages: u64| {
            ByteRange::new((start * 4096).min(length), ((start + pages) * 4096).min(length))
        };
        let pages = |range: ByteRange| range.start.div_ceil(4096) as usize..range.end.div_ceil(4096) as usize;
        for step in steps {
            match step {
                // There is nothing at the end to begin at.
                Step::Place(start, ..) | Step::PlaceZero(start, _) | Step::Write(start, ..) | Step::Fail(start, _)
                | Step::Evict(start, _) if start >= count => {}
                Step::Place(start, count, value) => {
                    let range = range(start, count);
                    local.place(range.start, &vec![value; range.len() as usize]).unwrap();
                    model[pages(range)].iter_mut().for_each(|page| page.0 = page.0.or(Some(value)));
                }
                Step::PlaceZero(start, count) => {
                    let range = range(start, count);
                    local.place_zero(range).unwrap();
                    model[pages(range)].iter_mut().for_each(|page| page.0 = page.0.or(Some(0)));
                }
                Step::Write(start, count, value) => {
                    let range = range(start, count);
                    local.write(range.start, &vec![value; range.len() as usize]).unwrap();
                    model[pages(range)].fill((Some(value), true));
                }
                Step::Fail(start, count) => local.fail(range(start, count)).unwrap(),
                Step::Evict(start, count) => {
                    let range = range(start, count);
                    local.evict(range).unwrap();
                    model[pages(range)].fill((None, false));
                }
                Step::Take => {
                    let dirty = model.iter().filter(|page| page.1).count() as u64;
                    let taken = take_dirty(&local);
                    let count: u64 = taken.iter().map(|range| range.len().div_ceil(4096)).sum();
                    prop_assert_eq!(count, dirty);
                    for range in &taken {
                        for page in &mut model[pages(*range)] {
                            prop_assert!(page.1);
                            page.1 = false;
                        }
                    }
                }
            }
            let dirty = model.iter().enumerate().filter(|(_, page)| page.1);
            let dirty: u64 = dirty.map(|(number, _)| range(number as u64, 1).len()).sum();
            prop_assert_eq!(local.count_dirty().unwrap(), dirty);
            for (number, page) in model.iter().enumerate() {
                let range = range(number as u64, 1);
                let mut bytes = vec![0x5a; range.len() as usize];
                let read = local.read_back(range.start, &mut bytes);
                prop_assert_eq!(read.is_ok(), page.0.is_some());
                if let Some(value) = page.0 {
                    prop_assert!(bytes.iter().all(|byte| *byte == value));
                }
            }
        }
    }

    /// Pulls of any length, chunk and order, with faults anywhere, from a store that fails now and
    /// then, while pages are written before they are pulled.
    #[test]
    fn a_pull_is_what_the_store_holds_but_for_what_was_written(
        length in 0usize..400_000,
        chunk in prop::sample::select(vec![4096u64, 16 << 10, 64 << 10, 1 << 20]),
        order in 0..3,
        listed in proptest::collection::vec(0u64..120, 0..20),
        faults in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        written in proptest::collection::vec((any::<prop::sample::Index>(), 1u64..5), 0..4),
        chaos in any::<bool>(),
        seed: u64,
    ) {
        let bytes = pattern(length, 9);
        let mut model = bytes.clone();
        let length = length as u64;
        let mut store: Arc<dyn Store> = Arc::new(memory(&bytes));
        if chaos {
            let faults = Faults { error: 10, cut: 10, short: 10, ..Faults::default() };
            store = Arc::new(Chaos::new(store, seed, faults));
        }
        let region = Region::new("memory", store).unwrap();
        let order = match order {
            0 => PullOrder::None,
            1 => PullOrder::Sequential,
            _ => PullOrder::List(listed.into_iter().map(ChunkIndex).collect()),
        };
        let local = Arc::new(PlainMemory::new(length));
        if length > 0 {
            for (at, pages) in written {
                let start = at.index(length as usize) as u64 / 4096 * 4096;
                let range = ByteRange::new(start, (start + pages * 4096).min(length));
                local.write(range.start, &vec![0; range.len() as usize]).unwrap();
                model[range.start as usize..range.end as usize].fill(0);
            }
        }
        take_dirty(&local);
        let puller = Puller::start(region.pin().unwrap(), local.clone(), pull(order.clone(), chunk)).unwrap();
        for at in &faults {
            if length > 0 {
                puller.fault(at.index(length as usize) as u64);
            }
        }
        let deadline = Instant::now() + support::HANG;
        if order == PullOrder::None {
            // Each try meets the faults anew.
            while puller.prefault(ByteRange::new(0, length)).is_err() {
                prop_assert!(Instant::now() < deadline, "never all of it");
            }
        }
        let done = puller.wait_until(deadline).unwrap().expect("the pull hangs");
        prop_assert!(done.is_complete());
        prop_assert_eq!(done.chunks, length.div_ceil(chunk));
        prop_assert!(read_all(&*local, model.len()) == model);
        prop_assert_eq!(take_dirty(&local), vec![], "what is pulled is clean");
    }
}

#[test]
fn a_chunk_that_is_written_before_it_is_pulled_counts_once_and_completes() {
    let bytes = pattern(4 * 65536 + 10, 1);
    for order in [
        PullOrder::Sequential,
        PullOrder::List(vec![ChunkIndex(4), ChunkIndex(1), ChunkIndex(1), ChunkIndex(99)]),
    ] {
        let local = Arc::new(PlainMemory::new(bytes.len() as u64));
        local.write(65536, &[5; 65536]).unwrap();
        local.write(4 * 65536, &[6; 10]).unwrap();
        let puller =
            Puller::start(memory_region(&bytes).pin().unwrap(), local.clone(), pull(order, 65536)).unwrap();
        let done = puller.wait_until(Instant::now() + support::HANG).unwrap().expect("the pull hangs");
        assert_eq!((done.chunks, done.chunks_present, done.chunks_failed), (5, 5, 0));
        let mut model = bytes.clone();
        model[65536..131_072].fill(5);
        model[4 * 65536..].fill(6);
        assert!(read_all(&*local, bytes.len()) == model);
        let dirty: u64 = take_dirty(&local).iter().map(|range| range.len()).sum();
        assert_eq!(dirty, 65536 + 10, "what was written is still to be pushed");
    }
}

#[test]
fn what_was_given_up_is_not_pulled_and_counts_as_there() {
    let bytes = pattern(4 * 65536, 2);
    let local = Arc::new(PlainMemory::new(bytes.len() as u64));
    let puller =
        Puller::start(memory_region(&bytes).pin().unwrap(), local.clone(), pull(PullOrder::None, 65536))
            .unwrap();
    puller.supersede(ByteRange::new(65536, 3 * 65536 + 4096));
    assert_eq!(puller.progress().chunks_present, 2);
    puller.prefault(ByteRange::new(0, 4 * 65536)).unwrap();
    assert_eq!(puller.progress().demand_bytes, 65536 + 65536 - 4096);
    assert!(local.read_back(65536, &mut [0; 4096]).is_err(), "nothing was placed there");
}

#[test]
fn progress_is_told_in_every_mode_and_ends() {
    let bytes = pattern(1 << 20, 3);
    let remote = |peer| RemoteStore::connect(&region_at(peer, "memory"), &RemoteOptions::default()).unwrap();
    let (_server, peer) = support::serve([memory_region(&bytes)], &anywhere());
    for order in [
        PullOrder::None,
        PullOrder::Sequential,
        PullOrder::List(vec![ChunkIndex(7)]),
        PullOrder::List(vec![]),
    ] {
        for region in [memory_region(&bytes), Region::new("remote", Arc::new(remote(&peer))).unwrap()] {
            let local = Arc::new(PlainMemory::new(bytes.len() as u64));
            let puller = Arc::new(
                Puller::start(region.pin().unwrap(), local.clone(), pull(order.clone(), 65536)).unwrap(),
            );
            let telling = puller.clone();
            let updates = support::within("progress", Duration::from_secs(10), move || {
                telling.updates(Duration::from_millis(1)).collect::<Vec<_>>()
            });
            let last = updates.last().expect("progress is told");
            assert!(updates.windows(2).all(|pair| pair[0].bytes() <= pair[1].bytes()));
            if order == PullOrder::None {
                assert_eq!((last.chunks_present, last.chunks), (0, 16));
                assert_eq!(puller.wait().unwrap_err().kind(), ErrorKind::Usage);
                puller.prefault(ByteRange::new(0, 1 << 20)).unwrap();
                assert!(puller.updates(Duration::from_millis(1)).last().unwrap().is_complete());
            } else {
                assert!(last.is_complete() && last.bytes() == 1 << 20, "{order:?}: {last:?}");
            }
            assert!(read_all(&*local, bytes.len()) == bytes);
        }
    }
}

#[test]
fn progress_ends_when_the_pull_gives_up() {
    let always = Faults { error: 100, ..Faults::default() };
    let chaos = Chaos::new(Arc::new(MemoryStore::new(1 << 20)), 1, always);
    let region = Region::new("chaos", Arc::new(chaos)).unwrap();
    let local = Arc::new(PlainMemory::new(1 << 20));
    let options = PullOptions { give_up_after: Some(Duration::from_millis(100)), ..PullOptions::default() };
    let puller = Puller::start(region.pin().unwrap(), local, options).unwrap();
    let updates = support::within("progress", Duration::from_secs(5), move || {
        let updates: Vec<_> = puller.updates(Duration::from_millis(10)).collect();
        (updates, puller.wait())
    });
    assert!(!updates.0.is_empty() && updates.1.unwrap_err().kind() == ErrorKind::Unavailable);
}

/// A store whose reads are answered when the test says so.
struct ByHand {
    store: MemoryStore,
    reads: std::sync::Mutex<Vec<Read>>,
}

impl Store for ByHand {
    fn info(&self) -> pagewire::store::Info {
        pagewire::store::Info { writable: false, ..self.store.info() }
    }

    fn read(&self, read: Read) {
        self.reads.lock().unwrap().push(read);
    }

    fn flush(&self, flush: pagewire::store::Flush) {
        self.store.flush(flush);
    }
}

#[test]
fn an_error_for_what_has_come_another_way_is_none() {
    let bytes = pattern(65536, 4);
    let store = Arc::new(ByHand { store: memory(&bytes), reads: std::sync::Mutex::default() });
    let region = Region::new("slow", store.clone()).unwrap();
    let local = Arc::new(PlainMemory::new(65536));
    let puller = Puller::start(region.pin().unwrap(), local, pull(PullOrder::Sequential, 65536)).unwrap();
    puller.fault(0);
    support::wait_until("both have asked", || store.reads.lock().unwrap().len() == 2);
    let mut reads = std::mem::take(&mut *store.reads.lock().unwrap());
    reads.sort_by_key(|read| read.urgency == pagewire::store::Urgency::Demand);
    let demand = reads.pop().unwrap();
    let background = reads.pop().unwrap();
    store.store.read(background);
    puller.wait().unwrap();
    demand.sink.done(Err(pagewire::Error::new(ErrorKind::Unavailable, "too late")));
    let progress = puller.progress();
    assert_eq!(
        (progress.chunks_present, progress.chunks_failed),
        (1, 0),
        "all is there, and nothing has failed"
    );
}

#[test]
fn a_copy_cannot_be_asked_for_what_it_does_not_have() {
    let local = PlainMemory::new(10_000);
    assert_eq!(local.read_back(9_000, &mut [0; 1001]).unwrap_err().kind(), ErrorKind::OutOfRange);
    assert_eq!(local.place(8192, &[0; 4096]).unwrap_err().kind(), ErrorKind::OutOfRange);
    assert!(local.place(1, &[0; 4096]).is_err());
    let puller = Puller::start(
        memory_region(&[1; 10_000]).pin().unwrap(),
        Arc::new(local),
        pull(PullOrder::None, 4096),
    )
    .unwrap();
    assert_eq!(puller.prefault(ByteRange::new(0, 10_001)).unwrap_err().kind(), ErrorKind::OutOfRange);
    puller.prefault(ByteRange::new(3, 3)).unwrap();
    puller.fault(1 << 40);
    puller.prefault(ByteRange::new(0, 10_000)).unwrap();
}
