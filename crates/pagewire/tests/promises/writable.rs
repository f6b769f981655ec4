//! Mappings that are written to, of regions of a peer: what the store holds after a flush is what the
//! memory holds, however changes are found.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pagewire::access::serve::ServerOptions;
use pagewire::access::uffd::{Tracking, WritableMapping, WriteOptions};
use pagewire::address::PeerAddress;
use pagewire::engine::{PushOptions, Region};
use pagewire::store::{Blocking, MemoryStore, RemoteOptions, Store};
use pagewire::{ByteRange, ErrorKind, PullOrder, Result};

use crate::support::proxy::{Proxy, Weather};
use crate::support::{self, anywhere, map_options, patient_for, pattern, region_at, serve_with, wait_until};

const LENGTH: u64 = (1 << 20) + 5000;

const WAYS: [Tracking; 3] = [Tracking::Async, Tracking::Sync, Tracking::Hash];

/// A region that holds a pattern, and its store.
fn stored() -> (Arc<Region>, Arc<MemoryStore>, Vec<u8>) {
    let store = Arc::new(MemoryStore::with_capacity(LENGTH, 2 * LENGTH));
    let bytes = pattern(LENGTH as usize, 4);
    store.write_bytes(0, &bytes).unwrap();
    store.flush_all().unwrap();
    (Region::new("memory", store.clone()).unwrap(), store, bytes)
}

fn options(tracking: Tracking, order: PullOrder, interval: Option<u64>) -> WriteOptions {
    let push = PushOptions { interval: interval.map(Duration::from_millis), ..PushOptions::default() };
    WriteOptions { map: map_options(order), push, tracking: Some(tracking), owner: Some("a test".into()) }
}

fn map(peer: &PeerAddress, options: &WriteOptions, remote: &RemoteOptions) -> Result<WritableMapping> {
    let address = format!("{}", region_at(peer, "memory")).parse().unwrap();
    WritableMapping::open_with(&address, options, remote)
}

fn newest(store: &dyn Store) -> Vec<u8> {
    let info = store.info();
    store.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap()
}

#[test]
fn what_is_written_is_flushed_and_nothing_else_is_pushed() {
    if !support::has_userfaultfd() {
        return;
    }
    for tracking in WAYS {
        let (region, store, mut model) = stored();
        let (_server, peer) = support::serve([region], &anywhere());
        let mapping =
            map(&peer, &options(tracking, PullOrder::Sequential, None), &RemoteOptions::default()).unwrap();
        assert_eq!((mapping.tracking(), mapping.len(), mapping.epoch()), (tracking, LENGTH, 2));
        assert_eq!(mapping.flush().unwrap().epoch, 2, "{tracking}: nothing was written");
        // A page that has not arrived, one that has, and the short last one.
        mapping.write(300_000, b"hello").unwrap();
        let mut byte = [0];
        mapping.read(500_000, &mut byte).unwrap();
        assert_eq!(byte[0], model[500_000]);
        mapping.atomic_u8(500_000).unwrap().store(7, Ordering::Relaxed);
        mapping.write(LENGTH - 3, &[1, 2, 3]).unwrap();
        assert_eq!(mapping.write(LENGTH - 2, &[1, 2, 3]).unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(mapping.read(LENGTH, &mut [0]).unwrap_err().kind(), ErrorKind::OutOfRange);
        model[300_000..300_005].copy_from_slice(b"hello");
        model[500_000] = 7;
        model[LENGTH as usize - 3..].copy_from_slice(&[1, 2, 3]);
        mapping.wait().unwrap();
        assert_eq!(mapping.flush().unwrap().epoch, 3);
        assert!(newest(&*store) == model, "{tracking}");
        let pushed = mapping.push_progress().pushed_bytes;
        assert_eq!(pushed, 2 * 4096 + LENGTH % 4096, "{tracking}: exact to the page");
        // What is written again is pushed again, and only that.
        mapping.write(300_000, b"world").unwrap();
        model[300_000..300_005].copy_from_slice(b"world");
        mapping.flush().unwrap();
        assert!(newest(&*store) == model, "{tracking}");
        assert_eq!(mapping.push_progress().pushed_bytes, pushed + 4096);
    }
}

#[test]
fn pages_are_written_while_they_arrive_and_while_they_are_pushed() {
    if !support::has_userfaultfd() {
        return;
    }
    for tracking in WAYS {
        let (region, store, _) = stored();
        let (_server, peer) = support::serve([region], &anywhere());
        let options = options(tracking, PullOrder::Sequential, Some(1));
        let mapping = map(&peer, &options, &RemoteOptions::default()).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2u64 {
                let (mapping, stop) = (&mapping, &stop);
                scope.spawn(move || {
                    let mut random = 77 + thread;
                    while !stop.load(Ordering::Acquire) {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1442);
                        let at = (random >> 33) % (LENGTH / 8) * 8;
                        mapping.atomic_u64(at).unwrap().store(random, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(5));
                mapping.flush().unwrap();
            }
            stop.store(true, Ordering::Release);
        });
        let info = mapping.flush().unwrap();
        let mut memory = vec![0; LENGTH as usize];
        mapping.read(0, &mut memory).unwrap();
        assert_eq!(store.info().epoch, info.epoch);
        assert!(newest(&*store) == memory, "{tracking}: the store is not what the memory is");
    }
}

#[test]
fn one_page_is_written_as_fast_as_can_be() {
    if !support::has_userfaultfd() {
        return;
    }
    let (region, store, _) = stored();
    let (_server, peer) = support::serve([region], &anywhere());
    let options = options(Tracking::Async, PullOrder::None, Some(1));
    let mapping = map(&peer, &options, &RemoteOptions::default()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let cells: Vec<_> = (0..4).map(|page| mapping.atomic_u64(page * 4096).unwrap()).collect();
            let mut value = 0;
            while !stop.load(Ordering::Acquire) {
                value += 1;
                cells.iter().for_each(|cell| cell.store(value, Ordering::Relaxed));
            }
        });
        let mut epoch = 2;
        for _ in 0..50 {
            let flushed = mapping.flush().unwrap().epoch;
            assert!(flushed <= epoch + 1);
            epoch = flushed;
        }
        stop.store(true, Ordering::Release);
        // How many of them the thread came to write before is the scheduler's to say.
        assert!(epoch > 2, "{epoch}");
    });
    mapping.flush().unwrap();
    let mut memory = vec![0; 4 * 4096];
    mapping.read(0, &mut memory).unwrap();
    assert!(newest(&*store)[..memory.len()] == memory);
}

#[test]
fn a_region_grows_to_its_capacity_and_shrinks() {
    if !support::has_userfaultfd() {
        return;
    }
    for tracking in WAYS {
        let (region, store, mut model) = stored();
        let (_server, peer) = support::serve([region], &anywhere());
        let options = options(tracking, PullOrder::Sequential, Some(1));
        let mapping = map(&peer, &options, &RemoteOptions::default()).unwrap();
        assert_eq!(mapping.capacity(), 2 * LENGTH);
        assert_eq!(mapping.set_length(2 * LENGTH + 1).unwrap_err().kind(), ErrorKind::NoSpace);
        for length in [LENGTH + 10_000, 700_001, 700_003, 900_000, 2 * LENGTH, 4096, 0, 100, LENGTH] {
            mapping.set_length(length).unwrap();
            model.resize(length as usize, 0);
            let mut memory = vec![1; length as usize];
            mapping.read(0, &mut memory).unwrap();
            assert!(memory == model, "{tracking}: a length of {length}");
            if length > 50 {
                mapping.write(length - 50, &[9; 50]).unwrap();
                model[length as usize - 50..].fill(9);
            }
            assert_eq!(mapping.flush().unwrap().length, length);
            assert!(newest(&*store) == model, "{tracking}: a length of {length}, flushed");
        }
    }
}

#[test]
fn what_lies_behind_the_end_never_becomes_the_regions() {
    if !support::has_userfaultfd() {
        return;
    }
    let (region, store, mut model) = stored();
    let (_server, peer) = support::serve([region], &anywhere());
    let options = options(Tracking::Async, PullOrder::None, None);
    let mapping = map(&peer, &options, &RemoteOptions::default()).unwrap();
    for behind in [LENGTH, LENGTH + 100, LENGTH + 8192] {
        mapping.atomic_u8(behind).unwrap().store(5, Ordering::Relaxed);
    }
    assert_eq!(mapping.flush().unwrap().length, LENGTH);
    mapping.set_length(LENGTH + 20_000).unwrap();
    model.resize(LENGTH as usize + 20_000, 0);
    mapping.flush().unwrap();
    let mut memory = vec![1; model.len()];
    mapping.read(0, &mut memory).unwrap();
    assert!(memory == model && newest(&*store) == model);
}

#[test]
fn a_mapping_that_has_lost_its_lease_is_readable_and_says_so() {
    if !support::has_userfaultfd() {
        return;
    }
    let (region, store, model) = stored();
    let lapse = ServerOptions { lapse: Duration::from_millis(200), ..ServerOptions::default() };
    let (_server, peer) = serve_with([region], &anywhere(), lapse);
    let proxy = Proxy::new(&peer, 1, Weather::default());
    let options = options(Tracking::Async, PullOrder::None, Some(5));
    let mapping = map(&proxy.address(), &options, &patient_for(5000)).unwrap();
    mapping.write(0, &[1; 100]).unwrap();
    mapping.flush().unwrap();
    proxy.stall(true);
    proxy.cut_all();
    let mut other = None;
    wait_until("the lease lapses", || {
        other = map(&peer, &WriteOptions::default(), &patient_for(5000)).ok();
        other.is_some()
    });
    mapping.write(200, &[2; 100]).unwrap();
    proxy.stall(false);
    assert_eq!(mapping.flush().unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(mapping.flush().unwrap_err().kind(), ErrorKind::Fenced, "for good");
    let mut bytes = [0; 300];
    mapping.read(0, &mut bytes).unwrap();
    assert_eq!((bytes[99], bytes[299]), (1, 2), "it reads what was written");
    // What has not arrived comes from the epoch that it was at.
    let mut far = [0; 10];
    mapping.read(900_000, &mut far).unwrap();
    assert_eq!(far, model[900_000..900_010]);
    assert_eq!(newest(&*store)[200], model[200]);
}

#[test]
fn servers_come_and_go_and_nothing_is_lost_or_doubled() {
    if !support::has_userfaultfd() {
        return;
    }
    let (region, store, mut model) = stored();
    let (server, peer) = support::serve([region.clone()], &anywhere());
    let options = options(Tracking::Async, PullOrder::Sequential, Some(1));
    let mapping = map(&peer, &options, &patient_for(10_000)).unwrap();
    let mut server = Some(server);
    for round in 1..=8u8 {
        for page in 0..64u64 {
            let at = page * 16_384 + u64::from(round) * 100;
            mapping.write(at, &[round; 100]).unwrap();
            model[at as usize..at as usize + 100].fill(round);
        }
        let (region, peer) = (region.clone(), peer.clone());
        let restarting = server.take().map(|server| {
            std::thread::spawn(move || {
                drop(server);
                std::thread::sleep(Duration::from_millis(20));
                support::serve([region], &peer).0
            })
        });
        let epoch = mapping.flush().unwrap().epoch;
        assert_eq!(store.info().epoch, epoch, "round {round}");
        assert!(newest(&*store) == model, "round {round}");
        server = restarting.map(|thread| thread.join().unwrap());
    }
}
