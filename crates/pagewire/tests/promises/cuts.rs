//! The connection is lost at every frame of a push and a flush, one after the other, in either
//! direction: nothing is lost, nothing is doubled, and the epoch grows by one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pagewire::access::serve::ServerOptions;
use pagewire::address::PeerAddress;
use pagewire::engine::{PlainMemory, PushOptions, Pusher, Region};
use pagewire::store::{
    Blocking, Completion, FileOptions, FileStore, Flush, Info, MemoryStore, Read, RemoteStore, Stage, Store,
};
use pagewire::{ByteRange, Error, ErrorKind, Result};
use pagewire_core::wire::FrameType;

use crate::support::frames::{Fate, FrameProxy};
use crate::support::{self, anywhere, patient_for, pattern, region_at, serve_with, wait_until};

const LENGTH: u64 = 600 * 4096 + 100;
const CAPACITY: u64 = 610 * 4096;

/// A local copy that is written back to the region `cut` at `peer`: at an interval, or when it is told to.
fn pusher(peer: &PeerAddress, interval: Option<Duration>) -> (Arc<PlainMemory>, Pusher) {
    let mut remote = None;
    // The one before may have had no connection to give the lease back on.
    wait_until("the lease is free", || {
        remote = RemoteStore::connect_writer(&region_at(peer, "cut"), &patient_for(15_000), "a test")
            .inspect_err(|error| assert_eq!(error.kind(), ErrorKind::Busy, "{error}"))
            .ok();
        remote.is_some()
    });
    let region = Region::new("cut", Arc::new(remote.unwrap())).unwrap();
    let local = Arc::new(PlainMemory::new(CAPACITY));
    let options = PushOptions { interval, ..PushOptions::default() };
    let writer = region.writer("a test").unwrap();
    let pusher = Pusher::start(writer, local.clone(), CAPACITY, options).unwrap();
    (local, pusher)
}

/// The newest epoch of a region, and its bytes.
fn newest(region: &Region, store: &dyn Store) -> (u64, Vec<u8>) {
    let info = region.info();
    (info.epoch, store.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap())
}

/// Whether a frame belongs to a push or a flush, and not to a connection that is made again.
fn is_of_a_flush(kind: FrameType) -> bool {
    let kinds =
        [FrameType::SET_LENGTH, FrameType::WRITE, FrameType::FLUSH, FrameType::DONE, FrameType::FLUSHED];
    kinds.contains(&kind)
}

/// Loses the connection at every frame of flushes to `store`.
fn cut_at_every_frame(name: &str, store: &Arc<dyn Store>, fate: Fate) {
    let region = Region::new("cut", store.clone()).unwrap();
    let options = ServerOptions { lapse: Duration::from_millis(20), ..ServerOptions::default() };
    let (_server, peer) = serve_with([region.clone()], &anywhere(), options);
    let mut kinds = Vec::new();
    for frame in 0.. {
        let what = format!("{name}, {fate:?} at frame {frame}");
        assert!(frame < 100, "{what}: there is no end");
        let proxy = FrameProxy::new(&peer);
        let (local, pusher) = pusher(&proxy.address(), None);
        let (before, mut model) = newest(&region, &**store);
        let mut seen = 0;
        proxy.arm(fate, move |_, kind| {
            seen += usize::from(is_of_a_flush(kind));
            is_of_a_flush(kind) && seen == frame + 1
        });
        // More pages than one frame takes, another length, and a page that is not whole.
        let value = frame as u8 + 1;
        let length = LENGTH + 5000 * ((frame as u64 + 1) % 2);
        pusher.set_length(length).unwrap();
        model.resize(length as usize, 0);
        for pages in [0..2, 3..590, 599..600] {
            let (start, end) = (pages.start * 4096, pages.end * 4096);
            local.write(start as u64, &vec![value; end - start]).unwrap();
            model[start..end].fill(value);
        }
        let info = pusher.flush().unwrap_or_else(|error| panic!("{what}: {error}"));
        let (epoch, bytes) = newest(&region, &**store);
        assert_eq!((info.epoch, epoch), (before + 1, before + 1), "{what}");
        assert!(bytes == model, "{what}: what is flushed is not what was written");
        assert_eq!(pusher.flush().unwrap().epoch, epoch, "{what}: something was left over");
        // It goes on.
        let hit = proxy.disarm();
        local.write(4096, &[value ^ 0xff; 4096]).unwrap();
        assert_eq!(pusher.flush().unwrap().epoch, epoch + 1, "{what}");
        match hit {
            Some(kind) => kinds.push(kind),
            None => break,
        }
    }
    // Every request and every answer was lost once; which of several writes comes when is open.
    for kind in [FrameType::SET_LENGTH, FrameType::FLUSH, FrameType::FLUSHED] {
        assert!(kinds.contains(&kind), "{name}, {fate:?}: {kinds:?}");
    }
    assert!(kinds.len() >= 10, "{name}, {fate:?}: {kinds:?}");
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::with_capacity(LENGTH, CAPACITY))
}

fn file(path: &Path) -> Arc<dyn Store> {
    let options = FileOptions { writable: true, capacity: Some(CAPACITY), ..FileOptions::default() };
    Arc::new(FileStore::open_with(path, &options).unwrap())
}

#[test]
fn a_frame_is_lost_with_its_connection_or_with_all() {
    std::thread::scope(|scope| {
        for fate in [Fate::LostWithItsConnection, Fate::LostWithAll, Fate::CutBehind, Fate::AllCutBehind] {
            scope.spawn(move || cut_at_every_frame("memory", &memory(), fate));
        }
    });
}

#[test]
fn a_frame_is_lost_on_its_way_to_a_file() {
    std::thread::scope(|scope| {
        for fate in [Fate::LostWithAll, Fate::AllCutBehind] {
            scope.spawn(move || {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("region");
                std::fs::write(&path, vec![0; LENGTH as usize]).unwrap();
                cut_at_every_frame("a file", &file(&path), fate);
            });
        }
    });
}

/// A store whose next flush finds the disk full, and gives up what is staged.
struct FullOnce {
    store: Arc<dyn Store>,
    full: AtomicBool,
}

impl Store for FullOnce {
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
        if self.full.swap(false, Ordering::SeqCst) {
            self.store.discard().unwrap();
            return (flush.done)(Err(Error::new(ErrorKind::NoSpace, "the disk is full")));
        }
        self.store.flush(flush);
    }

    fn stage(&self) -> Stage {
        self.store.stage()
    }

    fn discard(&self) -> Result<()> {
        self.store.discard()
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.store.fence()
    }
}

#[test]
fn a_server_in_between_goes_on_when_the_one_behind_it_is_restarted() {
    let region = Region::new("cut", memory()).unwrap();
    let (server, origin) = support::serve([region.clone()], &anywhere());
    let upstream =
        RemoteStore::connect_writer(&region_at(&origin, "cut"), &patient_for(15_000), "in between").unwrap();
    let between = Region::new("cut", Arc::new(upstream)).unwrap();
    let (_between, peer) = support::serve([between], &anywhere());
    let (local, pusher) = pusher(&peer, Some(Duration::from_millis(1)));
    let mut server = Some(server);
    for round in 1..4u8 {
        local.write(4096, &[round; 8192]).unwrap();
        wait_until("it is pushed", || pusher.progress().staged_bytes == 8192);
        // What was staged there is lost, and who has written it does not see that.
        drop(server.take());
        server = Some(support::serve([region.clone()], &origin).0);
        let before = region.info().epoch;
        assert_eq!(pusher.flush().unwrap().epoch, before + 1, "round {round}");
        let pin = region.pin().unwrap();
        let reader = RemoteStore::connect(&region_at(&origin, "cut"), &patient_for(5000)).unwrap();
        let bytes = reader.read_bytes(ByteRange::new(4096, 3 * 4096), pin.epoch()).unwrap();
        assert!(bytes.iter().all(|byte| *byte == round), "round {round}");
    }
}

#[test]
fn a_flush_that_failed_is_not_taken_for_one_that_was_done_when_the_answer_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("region");
    std::fs::write(&path, vec![0; LENGTH as usize]).unwrap();
    let stores = [("memory", memory()), ("a file", file(&path)), ("a server in between", memory())];
    for (name, inner) in stores {
        let store = Arc::new(FullOnce { store: inner.clone(), full: AtomicBool::new(true) });
        let region = Region::new("cut", store).unwrap();
        let (_server, mut peer) = support::serve([region.clone()], &anywhere());
        let mut between = None;
        if name == "a server in between" {
            let at = region_at(&peer, "cut");
            let upstream = RemoteStore::connect_writer(&at, &patient_for(15_000), "in between").unwrap();
            let passed_on = Region::new("cut", Arc::new(upstream)).unwrap();
            let (server, address) = support::serve([passed_on], &anywhere());
            (between, peer) = (Some(server), address);
        }
        let proxy = FrameProxy::new(&peer);
        let (local, pusher) = pusher(&proxy.address(), None);
        let bytes = pattern(2 * 4096, 5);
        local.write(4096, &bytes).unwrap();
        let mut asked = false;
        proxy.arm(Fate::LostWithAll, move |_, kind| {
            // The first reply behind the request to flush is its own.
            let is_answer = asked && kind.0 >> 12 == 1;
            asked |= kind == FrameType::FLUSH;
            is_answer
        });
        let before = region.info().epoch;
        // It fails, or it is made good: but it is never said to be done when it was not.
        match pusher.flush() {
            Ok(info) => assert_eq!(info.epoch, before + 1, "{name}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{name}: {error}");
                pusher.flush().unwrap();
            }
        }
        assert!(proxy.hit().is_some(), "{name}: the answer was not lost");
        let (epoch, found) = newest(&region, &*inner);
        assert_eq!(epoch, before + 1, "{name}");
        assert!(found[4096..3 * 4096] == bytes, "{name}: what was written is lost");
        drop((pusher, between));
    }
}
