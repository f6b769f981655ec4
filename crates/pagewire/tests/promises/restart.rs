//! A server that dies in the middle of a pull and comes back: the pull goes on, the bytes are right.

use std::sync::Arc;

use pagewire::store::{Blocking, FileStore, RemoteOptions, RemoteStore};
use pagewire::{ByteRange, PullOrder};

use crate::support::role::{Actor, SERVE};
use crate::support::{self, Held, anywhere, file, file_region, pattern, region_at};

const LENGTH: usize = (6 << 20) + 777;
const BORDER: u64 = 2 << 20;

#[test]
fn a_pull_goes_on_when_its_server_is_started_again() {
    if !support::has_userfaultfd() {
        return;
    }
    let bytes = pattern(LENGTH, 1);
    let file = file(&bytes);
    let store = Arc::new(FileStore::open(file.path(), None, false).unwrap());
    let (held, _hold) = Held::new(store, BORDER);
    let first = pagewire::engine::Region::new("file", held).unwrap();
    let (server, address) = support::serve([first], &anywhere());
    let mapping = support::map(&address, "file", PullOrder::Sequential, &RemoteOptions::default()).unwrap();
    support::wait_until("the first part arrives", || mapping.progress().chunks_present >= BORDER / 65536);
    // Somebody waits for what the first server will never give.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| mapping[5 << 20]);
        support::wait_until("the fault is taken", || mapping.progress().faults == 1);
        drop(server);
        let (_server, _) = support::serve([file_region(file.path())], &address);
        assert_eq!(waiting.join().unwrap(), bytes[5 << 20]);
        let deadline = std::time::Instant::now() + support::HANG;
        assert!(mapping.wait_until(deadline).unwrap().expect("the pull hangs").is_complete());
    });
    assert!(*mapping == bytes);
}

#[test]
fn a_pull_goes_on_after_the_server_process_was_killed() {
    if !support::has_userfaultfd() {
        return;
    }
    let bytes = pattern(LENGTH, 2);
    let file = file(&bytes);
    let start = |listen: String, border: u64| {
        let path = file.path().to_str().unwrap().to_owned();
        let actor =
            Actor::start(SERVE, &[("file", path), ("listen", listen), ("border", border.to_string())]);
        let address = actor.wait_for("listening ");
        (actor, address)
    };
    let (mut first, address) = start(anywhere().to_string(), BORDER);
    let peer = address.parse().unwrap();
    let mapping = support::map(&peer, "file", PullOrder::Sequential, &RemoteOptions::default()).unwrap();
    support::wait_until("the first part arrives", || mapping.progress().chunks_present >= BORDER / 65536);
    first.kill();
    let (_second, again) = start(address.clone(), u64::MAX);
    assert_eq!(again, address);
    let deadline = std::time::Instant::now() + support::HANG;
    assert!(mapping.wait_until(deadline).unwrap().expect("the pull hangs").is_complete());
    assert!(*mapping == bytes);
}

#[test]
fn a_read_goes_on_when_its_server_is_started_again() {
    let bytes = pattern(LENGTH, 3);
    let file = file(&bytes);
    let store = Arc::new(FileStore::open(file.path(), None, false).unwrap());
    let (held, _hold) = Held::new(store, BORDER);
    let first = pagewire::engine::Region::new("file", held).unwrap();
    let (server, address) = support::serve([first], &anywhere());
    let remote = RemoteStore::connect(&region_at(&address, "file"), &RemoteOptions::default()).unwrap();
    std::thread::scope(|scope| {
        let remote = &remote;
        let reads: Vec<_> = (0..8u64)
            .map(|step| {
                let range = ByteRange::new(step * 700_001, step * 700_001 + 650_000);
                scope.spawn(move || (range, remote.read_bytes(range, 1)))
            })
            .collect();
        drop(server);
        let (_server, _) = support::serve([file_region(file.path())], &address);
        for read in reads {
            let (range, got) = read.join().unwrap();
            assert!(got.unwrap() == bytes[range.start as usize..range.end as usize], "bytes {range}");
        }
    });
}
