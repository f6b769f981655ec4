//! A network that cuts, delays and stalls: what arrives is right all the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire::engine::Region;
use pagewire::engine::copy::{CopyOptions, copy};
use pagewire::store::{Blocking, MemoryStore, RemoteOptions, RemoteStore, Store, Urgency};
use pagewire::{ByteRange, PullOrder};

use crate::support::proxy::{Proxy, Weather};
use crate::support::recorder;
use crate::support::{self, anywhere, file, file_region, patient_for, pattern, region_at};

fn rough(cuts: usize) -> Weather {
    Weather { cuts, cut_within: 300_000, delay: Duration::from_micros(300), ..Weather::default() }
}

#[test]
fn a_mapping_is_right_over_a_network_that_cuts() {
    if !support::has_userfaultfd() {
        return;
    }
    let bytes = pattern((3 << 20) + 4097, 1);
    let file = file(&bytes);
    let (_server, address) = support::serve([file_region(file.path())], &anywhere());
    for seed in 1..=3 {
        let proxy = Proxy::new(&address, seed, rough(10));
        // The first attempt to open is made once; only what is open is held on to.
        let mut mapping = None;
        support::wait_until("the region can be opened", || {
            mapping =
                support::map(&proxy.address(), "file", PullOrder::Sequential, &RemoteOptions::default()).ok();
            mapping.is_some()
        });
        let mapping = mapping.unwrap();
        for step in 0..200usize {
            let at = step * 104_729 % bytes.len();
            assert_eq!(mapping[at], bytes[at], "seed {seed}, byte {at}");
        }
        let deadline = Instant::now() + support::HANG;
        let done = mapping.wait_until(deadline).unwrap();
        assert!(done.is_some(), "seed {seed}: the pull hangs: {:?}", mapping.progress());
        assert!(*mapping == bytes, "seed {seed}");
        assert!(proxy.cuts() > 0, "seed {seed}: nothing was cut");
    }
}

#[test]
fn reads_are_answered_once_over_a_network_that_cuts() {
    let bytes = pattern(2 << 20, 2);
    let file = file(&bytes);
    let (_server, address) = support::serve([file_region(file.path())], &anywhere());
    for seed in 1..=4 {
        let proxy =
            Proxy::new(&address, seed, Weather { cuts: 12, cut_within: 600_000, ..Weather::default() });
        let mut remote = None;
        support::wait_until("the region can be opened", || {
            remote =
                RemoteStore::connect(&region_at(&proxy.address(), "file"), &RemoteOptions::default()).ok();
            remote.is_some()
        });
        let remote = remote.unwrap();
        for urgency in [Urgency::Demand, Urgency::Background] {
            for step in 0..12u64 {
                let start = step * 77_777;
                let ranges =
                    [ByteRange::new(start, start + 800_000), ByteRange::new(1_900_000, 1_900_000 + step)];
                let (end, whole) = recorder::read(&remote, &ranges, urgency, &bytes);
                end.unwrap_or_else(|error| panic!("seed {seed}, {urgency:?}: {error}"));
                assert!(whole, "seed {seed}, {urgency:?}: the answer has gaps");
                let range = ByteRange::new(start, start + 900_000);
                let got = remote.read_bytes(range, 1);
                let got = got.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                assert!(got == bytes[start as usize..][..900_000]);
            }
        }
    }
}

#[test]
fn a_copy_is_right_over_a_network_that_cuts() {
    let bytes = pattern((4 << 20) + 9, 3);
    let file = file(&bytes);
    let (_server, address) = support::serve([file_region(file.path())], &anywhere());
    let proxy = Proxy::new(&address, 5, Weather { cuts: 8, cut_within: 1 << 20, ..Weather::default() });
    let mut from = None;
    support::wait_until("the region can be opened", || {
        from = RemoteStore::connect(&region_at(&proxy.address(), "file"), &RemoteOptions::default()).ok();
        from.is_some()
    });
    let from = Region::new("from", Arc::new(from.unwrap())).unwrap();
    let to: Arc<dyn Store> = Arc::new(MemoryStore::new(bytes.len() as u64));
    let mut told = 0;
    let done = copy(&from, &to, &CopyOptions::default(), |_| told += 1).unwrap();
    assert!(done.is_complete() && told > 0);
    assert!(to.read_bytes(ByteRange::new(0, bytes.len() as u64), to.info().epoch).unwrap() == bytes);
}

#[test]
fn a_stall_that_ends_is_only_a_delay() {
    if !support::has_userfaultfd() {
        return;
    }
    let bytes = pattern(8 << 20, 4);
    let file = file(&bytes);
    let (_server, address) = support::serve([file_region(file.path())], &anywhere());
    let proxy = Proxy::new(&address, 6, Weather { delay: Duration::from_micros(500), ..Weather::default() });
    let mapping =
        support::map(&proxy.address(), "file", PullOrder::Sequential, &RemoteOptions::default()).unwrap();
    support::wait_until("something arrives", || mapping.progress().chunks_present > 0);
    proxy.stall(true);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| mapping[(8 << 20) - 1]);
        std::thread::sleep(Duration::from_millis(150));
        proxy.stall(false);
        assert_eq!(waiting.join().unwrap(), bytes[(8 << 20) - 1]);
    });
    let deadline = Instant::now() + support::HANG;
    assert!(mapping.wait_until(deadline).unwrap().is_some(), "the pull hangs");
    assert!(*mapping == bytes);
}

#[test]
fn a_demand_read_over_a_stalled_network_fails_after_the_patience() {
    let file = file(&pattern(8 << 20, 5));
    let (_server, address) = support::serve([file_region(file.path())], &anywhere());
    let proxy = Proxy::new(&address, 7, Weather::default());
    let remote = RemoteStore::connect(&region_at(&proxy.address(), "file"), &patient_for(200)).unwrap();
    proxy.stall(true);
    let asked = Instant::now();
    let error = remote.read_bytes(ByteRange::new(0, 4096), 1).unwrap_err();
    assert_eq!(error.kind(), pagewire::ErrorKind::Unavailable, "{error}");
    assert!(asked.elapsed() < Duration::from_secs(2), "after {:?}", asked.elapsed());
    proxy.stall(false);
}

#[test]
fn a_copy_over_a_network_that_stalls_for_good_fails_after_the_patience() {
    let file = file(&pattern(32 << 20, 6));
    let (_server, address) = support::serve([file_region(file.path())], &anywhere());
    let proxy =
        Arc::new(Proxy::new(&address, 8, Weather { delay: Duration::from_millis(1), ..Weather::default() }));
    let remote = RemoteStore::connect(&region_at(&proxy.address(), "file"), &patient_for(300)).unwrap();
    let from = Region::new("from", Arc::new(remote)).unwrap();
    let to: Arc<dyn Store> = Arc::new(MemoryStore::new(32 << 20));
    let options = CopyOptions {
        patience: Duration::from_millis(300),
        interval: Duration::from_millis(5),
        ..CopyOptions::default()
    };
    let error =
        support::within("a copy from a peer that has fallen silent", Duration::from_secs(5), move || {
            copy(&from, &to, &options, |progress| proxy.stall(progress.chunks_present > 0)).unwrap_err()
        });
    assert_eq!(error.kind(), pagewire::ErrorKind::Unavailable, "{error}");
}

#[test]
fn a_copy_that_has_taken_longer_than_the_patience_survives_a_lost_connection() {
    let bytes = pattern(16 << 20, 7);
    let file = file(&bytes);
    let (_server, address) = support::serve([file_region(file.path())], &anywhere());
    let weather = Weather { delay: Duration::from_millis(6), ..Weather::default() };
    let proxy = Proxy::new(&address, 9, weather);
    let remote = RemoteStore::connect(&region_at(&proxy.address(), "file"), &patient_for(5000)).unwrap();
    let from = Region::new("from", Arc::new(remote)).unwrap();
    let to: Arc<dyn Store> = Arc::new(MemoryStore::new(16 << 20));
    let patience = Duration::from_millis(150);
    let options = CopyOptions { patience, interval: Duration::from_millis(5), ..CopyOptions::default() };
    let (begun, mut cut) = (Instant::now(), false);
    let done = copy(&from, &to, &options, |progress| {
        if !cut && !progress.is_complete() && begun.elapsed() > patience * 2 {
            proxy.cut_all();
            cut = true;
        }
    });
    assert!(cut, "it was over before the connection could be lost");
    assert!(done.unwrap().is_complete());
    assert!(to.read_bytes(ByteRange::new(0, bytes.len() as u64), to.info().epoch).unwrap() == bytes);
}
