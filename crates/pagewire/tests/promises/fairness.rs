//! Reads that somebody waits for, and pulls in the background, go on while pushes are held up; and pushes go
//! on while pulls are. By progress, and not by time: what is held up is let go only when the rest is done.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use pagewire::access::uffd::{Tracking, WritableMapping, WriteOptions};
use pagewire::engine::{PushOptions, Region};
use pagewire::store::{
    Blocking, Completion, Flush, Info, MemoryStore, Read, RemoteOptions, Stage, Store, Urgency,
};
use pagewire::{ByteRange, PullOrder, Result};

use crate::support::{self, anywhere, map_options, pattern, region_at, wait_until};

const LENGTH: u64 = 16 << 20;

/// A store whose writes, or whose reads in the background, are held up while it is shut.
struct Shut {
    store: MemoryStore,
    writes: Gate,
    reads: Gate,
}

#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
    held: AtomicUsize,
    passed: AtomicUsize,
}

impl Gate {
    fn pass(&self) {
        self.held.fetch_add(1, Ordering::SeqCst);
        drop(self.opened.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
        self.held.fetch_sub(1, Ordering::SeqCst);
        self.passed.fetch_add(1, Ordering::SeqCst);
    }

    fn shut(&self) -> Shutter<'_> {
        *self.shut.lock().unwrap() = true;
        Shutter(self)
    }
}

/// Opens the gate, also when a test fails.
struct Shutter<'a>(&'a Gate);

impl Drop for Shutter<'_> {
    fn drop(&mut self) {
        *self.0.shut.lock().unwrap() = false;
        self.0.opened.notify_all();
    }
}

impl Store for Shut {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: Read) {
        if read.urgency == Urgency::Background {
            self.reads.pass();
        }
        self.store.read(read);
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        self.writes.pass();
        self.store.write(ranges, bytes, done);
    }

    fn flush(&self, flush: Flush) {
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

    fn pin(&self, epoch: Option<u64>) -> Result<Info> {
        self.store.pin(epoch)
    }

    fn unpin(&self, epoch: u64) {
        self.store.unpin(epoch);
    }
}

#[test]
fn whoever_waits_for_a_page_goes_first_while_much_is_pushed() {
    if !support::has_userfaultfd() {
        return;
    }
    let store = MemoryStore::new(LENGTH);
    let bytes = pattern(LENGTH as usize, 6);
    store.write_bytes(0, &bytes).unwrap();
    store.flush_all().unwrap();
    let store = Arc::new(Shut { store, writes: Gate::default(), reads: Gate::default() });
    let region = Region::new("region", store.clone()).unwrap();
    let (_server, peer) = support::serve([region], &anywhere());
    let push = PushOptions { interval: Some(Duration::from_millis(1)), ..PushOptions::default() };
    let options = WriteOptions {
        map: map_options(PullOrder::None),
        push,
        tracking: Some(Tracking::Async),
        owner: Some("a test".into()),
    };
    let address = format!("{}", region_at(&peer, "region")).parse().unwrap();
    let mapping = WritableMapping::open_with(&address, &options, &RemoteOptions::default()).unwrap();
    // Half of the region is written, and none of it can be pushed.
    let half = LENGTH / 2;
    let shutter = store.writes.shut();
    mapping.write(0, &vec![9; half as usize]).unwrap();
    wait_until("pushes are held up", || store.writes.held.load(Ordering::SeqCst) > 0);
    let mut page = [0; 4096];
    for at in (half..LENGTH).step_by(64 << 10) {
        mapping.read(at, &mut page).unwrap();
        assert!(page[..] == bytes[at as usize..][..4096], "byte {at}");
    }
    assert!(mapping.progress().demand_reads > 0);
    assert_eq!((store.writes.passed.load(Ordering::SeqCst), mapping.push_progress().pushes), (0, 0));
    drop(shutter);
    mapping.flush().unwrap();
    let info = store.info();
    let found = store.store.read_bytes(ByteRange::new(0, LENGTH), info.epoch).unwrap();
    assert!(
        found[..half as usize].iter().all(|byte| *byte == 9)
            && found[half as usize..] == bytes[half as usize..]
    );
}

#[test]
fn pushes_go_on_while_the_background_pull_is_held_up() {
    if !support::has_userfaultfd() {
        return;
    }
    let store = MemoryStore::new(LENGTH);
    store.write_bytes(0, &pattern(LENGTH as usize, 6)).unwrap();
    store.flush_all().unwrap();
    let store = Arc::new(Shut { store, writes: Gate::default(), reads: Gate::default() });
    let shutter = store.reads.shut();
    let region = Region::new("region", store.clone()).unwrap();
    let (_server, peer) = support::serve([region], &anywhere());
    let options = WriteOptions {
        map: map_options(PullOrder::Sequential),
        push: PushOptions { interval: None, ..PushOptions::default() },
        tracking: Some(Tracking::Async),
        owner: Some("a test".into()),
    };
    let address = format!("{}", region_at(&peer, "region")).parse().unwrap();
    let mapping = WritableMapping::open_with(&address, &options, &RemoteOptions::default()).unwrap();
    wait_until("the pull is held up", || store.reads.held.load(Ordering::SeqCst) > 0);
    for round in 1..4u8 {
        mapping.write(8 << 20, &vec![round; 2 << 20]).unwrap();
        let epoch = mapping.flush().unwrap().epoch;
        assert_eq!(epoch, 2 + u64::from(round));
    }
    assert_eq!(store.reads.passed.load(Ordering::SeqCst), 0);
    drop(shutter);
    mapping.wait().unwrap();
}
