//! A server that is gone for good: errors and signals within the patience, never zeroes, never a
//! hang; and what is poisoned heals when it comes back after all.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire::address::PeerAddress;
use pagewire::engine::Region;
use pagewire::store::{Blocking, FileStore, MemoryStore, Read, RemoteStore, Store, Urgency};
use pagewire::{ByteRange, ErrorKind, PullOrder};

use crate::support::recorder::Recorder;
use crate::support::role::{Actor, TOUCH};
use crate::support::{self, Held, anywhere, file, file_region, patient_for, pattern, region_at};

const SIGBUS: i32 = 7;

#[test]
fn prefault_fails_after_the_patience_and_heals_when_the_server_is_back() {
    if !support::has_userfaultfd() {
        return;
    }
    // Pages with bytes, a hole, and a short last page.
    let mut bytes = pattern((1 << 20) + 100, 1);
    bytes[256 << 10..512 << 10].fill(0);
    let file = file(&bytes[..256 << 10]);
    file.as_file().set_len(512 << 10).unwrap();
    std::os::unix::fs::FileExt::write_all_at(file.as_file(), &bytes[512 << 10..], 512 << 10).unwrap();
    let (server, address) = support::serve([file_region(file.path())], &anywhere());
    let mapping = support::map(&address, "file", PullOrder::None, &patient_for(300)).unwrap();
    drop(server);
    let whole = ByteRange::new(0, bytes.len() as u64);
    let asked = Instant::now();
    let error = mapping.prefault(whole).unwrap_err();
    let took = asked.elapsed();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(2), "after {took:?}");
    assert!(mapping.progress().chunks_failed > 0);
    let (_server, _) = support::serve([file_region(file.path())], &address);
    support::wait_until("the poisoned pages heal", || mapping.prefault(whole).is_ok());
    assert!(*mapping == bytes);
    assert_eq!(mapping.progress().chunks_failed, 0);
}

#[test]
fn what_is_poisoned_heals_by_itself() {
    if !support::has_userfaultfd() {
        return;
    }
    let bytes = pattern(300_000, 2);
    let file = file(&bytes);
    let (server, address) = support::serve([file_region(file.path())], &anywhere());
    let mapping = support::map(&address, "file", PullOrder::None, &patient_for(100)).unwrap();
    drop(server);
    mapping.prefault(ByteRange::new(0, bytes.len() as u64)).unwrap_err();
    let (_server, _) = support::serve([file_region(file.path())], &address);
    support::wait_until("the pages heal", || {
        let progress = mapping.progress();
        progress.is_complete() && progress.chunks_failed == 0
    });
    assert!(*mapping == bytes);
}

/// An application that has mapped a region and is about to touch what has not come, its server gone;
/// and where that was.
fn application_without_server(seed: u8) -> (Actor, PeerAddress) {
    let bytes = pattern(1 << 20, seed);
    let file = file(&bytes);
    let (server, address) = support::serve([file_region(file.path())], &anywhere());
    let settings = [("peer", address.to_string()), ("touch", (700_000).to_string())];
    let application = Actor::start(TOUCH, &settings);
    assert_eq!(application.wait_for("ready "), bytes[0].to_string());
    drop(server);
    (application, address)
}

#[test]
fn who_touches_what_cannot_be_had_gets_a_sigbus() {
    if !support::has_userfaultfd() {
        return;
    }
    let (mut application, _) = application_without_server(3);
    application.say();
    let (status, log) = application.end();
    assert_eq!(status.signal(), Some(SIGBUS), "{status}; it said: {log}");
    assert!(log.contains("cannot be had"), "no word of it in the log: {log}");
}

#[test]
fn who_touches_what_another_server_has_gets_a_sigbus() {
    if !support::has_userfaultfd() {
        return;
    }
    let (mut application, address) = application_without_server(4);
    // Zeroes, under the same name, at the same place.
    let other = Region::new("file", Arc::new(MemoryStore::new(1 << 20))).unwrap();
    let (_server, _) = support::serve([other], &address);
    application.say();
    let (status, log) = application.end();
    assert_eq!(status.signal(), Some(SIGBUS), "{status}; it said: {log}");
}

#[test]
fn a_read_fails_after_the_patience() {
    let file = file(&pattern(100_000, 5));
    let (server, address) = support::serve([file_region(file.path())], &anywhere());
    let remote = RemoteStore::connect(&region_at(&address, "file"), &patient_for(200)).unwrap();
    drop(server);
    let asked = Instant::now();
    let error = remote.read_bytes(ByteRange::new(0, 10_000), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.can_retry());
    assert!(asked.elapsed() < Duration::from_secs(2));
    assert_eq!(remote.info().length, 100_000, "what is known stays known");
}

#[test]
fn nobody_there_is_an_error_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("pw://{}", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let error = RemoteStore::connect(&region_at(&address, "file"), &patient_for(300)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[test]
fn a_store_that_is_dropped_ends_its_reads() {
    let bytes = pattern(4 << 20, 6);
    let file = file(&bytes);
    let store = Arc::new(FileStore::open(file.path(), None, false).unwrap());
    let (held, _hold) = Held::new(store, 1 << 20);
    let (_server, address) = support::serve([Region::new("file", held).unwrap()], &anywhere());
    let remote = RemoteStore::connect(&region_at(&address, "file"), &patient_for(60_000)).unwrap();
    let range = ByteRange::new(0, bytes.len() as u64);
    let recorders: Vec<_> = (0..6)
        .map(|step| {
            let recorder = Arc::new(Recorder::default());
            let urgency = if step % 2 == 0 { Urgency::Demand } else { Urgency::Background };
            let sink = recorder.clone();
            remote.read(Read { ranges: vec![range], epoch: 1, urgency, sink });
            recorder
        })
        .collect();
    drop(remote);
    for recorder in recorders {
        let error = recorder.wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        recorder.check(&[range], &bytes);
    }
}
