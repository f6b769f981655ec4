//! The disk of a server is full: a small file system that is full for real, in a mount namespace of the
//! server's own.

use std::sync::Arc;

use pagewire::engine::{PlainMemory, PushOptions, Pusher, Region};
use pagewire::store::{Blocking, RemoteOptions, RemoteStore, Store};
use pagewire::{ByteRange, ErrorKind};

use crate::support::role::{Actor, SERVE_FULL};
use crate::support::{self, anywhere, patient_for, pattern, region_at};

const PAGES: u64 = 100;
const LENGTH: u64 = PAGES * 4096;

/// What the file system has room for.
const ROOM: u64 = 1 << 20;

/// A server whose disk has room for so many pages, and a local copy of its region.
struct Full {
    server: Actor,
    at: pagewire::address::RegionAddress,
    local: Arc<PlainMemory>,
    pusher: Pusher,
    _folder: tempfile::TempDir,
}

impl Full {
    fn new(room: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = [
            ("folder", folder.path().to_str().unwrap().to_owned()),
            ("filler", (ROOM - room * 4096).to_string()),
            ("size", LENGTH.to_string()),
            ("listen", anywhere().to_string()),
        ];
        let server = Actor::start_in(folder.path(), ROOM, SERVE_FULL, &settings);
        let at = region_at(&server.wait_for("listening ").parse().unwrap(), "region");
        let remote = RemoteStore::connect_writer(&at, &patient_for(10_000), "a test").unwrap();
        let region = Region::new("region", Arc::new(remote)).unwrap();
        let local = Arc::new(PlainMemory::new(LENGTH));
        let options = PushOptions { interval: None, ..PushOptions::default() };
        let writer = region.writer("a test").unwrap();
        let pusher = Pusher::start(writer, local.clone(), LENGTH, options).unwrap();
        Self { server, at, local, pusher, _folder: folder }
    }

    /// What a new reader sees.
    fn read(&self) -> (u64, Vec<u8>) {
        let reader = RemoteStore::connect(&self.at, &RemoteOptions::default()).unwrap();
        let epoch = reader.info().epoch;
        (epoch, reader.read_bytes(ByteRange::new(0, LENGTH), epoch).unwrap())
    }

    fn make_room(&mut self) {
        self.server.say();
        self.server.wait_for("room");
    }
}

#[test]
fn a_flush_for_which_there_is_no_room_fails_and_a_later_one_succeeds() {
    if !support::has("mount-namespaces") {
        return;
    }
    let mut full = Full::new(30);
    let bytes = pattern(LENGTH as usize, 1);
    full.local.write(0, &bytes).unwrap();
    for _ in 0..3 {
        let error = full.pusher.flush().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        let progress = full.pusher.progress();
        assert_eq!(progress.dirty_bytes + progress.staged_bytes, LENGTH, "the marks are put back");
        assert!(progress.dirty_bytes > 0 && progress.last_error.is_some());
        assert!(full.read() == (1, vec![0; LENGTH as usize]), "readers see what was flushed");
    }
    full.make_room();
    assert_eq!(full.pusher.flush().unwrap().epoch, 2);
    assert!(full.read() == (2, bytes));
    let progress = full.pusher.progress();
    assert_eq!((progress.dirty_bytes, progress.staged_bytes, progress.last_error), (0, 0, None));
}

#[test]
fn what_was_flushed_is_seen_though_there_is_no_room_for_it_in_its_place() {
    if !support::has("mount-namespaces") {
        return;
    }
    // The journal has room for one epoch, and the file for a part of it.
    let mut full = Full::new(PAGES + 25);
    let mut bytes = pattern(LENGTH as usize, 2);
    full.local.write(0, &bytes).unwrap();
    assert_eq!(full.pusher.flush().unwrap().epoch, 2);
    assert!(full.read() == (2, bytes.clone()));
    full.local.write(4096, &[9; 4096]).unwrap();
    let error = full.pusher.flush().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(full.read() == (2, bytes.clone()), "the epoch that was flushed is whole");
    full.make_room();
    bytes[4096..8192].fill(9);
    support::wait_until("there is room", || {
        full.pusher
            .flush()
            .inspect_err(|error| assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}"))
            .is_ok()
    });
    assert!(full.read() == (3, bytes));
}
