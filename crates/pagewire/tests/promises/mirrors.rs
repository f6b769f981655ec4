//! Files that are mirrored, and regions that are followed: all are equal in the end, and in between nobody sees what was
//! never there.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pagewire::access::mirror::{Mirror, MirrorOptions};
use pagewire::access::serve::{Server, ServerOptions};
use pagewire::address::{PeerAddress, StoreAddress};
use pagewire::engine::Region;
use pagewire::engine::copy::{DeltaOptions, Follower};
use pagewire::store::{self, Blocking, FileOptions, FileStore, MemoryStore, RemoteOptions, Store};
use pagewire::{ByteRange, ErrorKind};
use pagewire_core::delta::{self, Node, Scheme};
use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;

use crate::support::random::{Random, seed};
use crate::support::{self, anywhere, pattern, region_at};

const PAGE: usize = 4096;

/// A hub for one region, and a folder for files.
struct Hub {
    folder: tempfile::TempDir,
    server: Option<Server>,
    address: PeerAddress,
    capacity: u64,
    images: u64,
}

impl Hub {
    fn new(capacity: u64, images: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("hub"), []).unwrap();
        let mut hub = Self { folder, server: None, address: anywhere(), capacity, images };
        hub.start();
        hub
    }

    fn start(&mut self) {
        let options = FileOptions {
            capacity: Some(self.capacity),
            images: self.images,
            writable: true,
            ..FileOptions::default()
        };
        let mut store = None;
        support::wait_until("the server before has let go of the file", || {
            store = FileStore::open_with(&self.path("hub"), &options).ok();
            store.is_some()
        });
        let region = Region::new("hub", Arc::new(store.unwrap())).unwrap();
        let options = ServerOptions { lapse: Duration::from_millis(300), ..ServerOptions::default() };
        let server = Server::new([region], options).unwrap();
        self.address = server.listen(&self.address).unwrap();
        self.server = Some(server);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn address(&self) -> StoreAddress {
        StoreAddress::Remote(region_at(&self.address, "hub"))
    }

    fn mirror(&self, path: &Path) -> Mirror {
        let store = store::open(&self.address(), true, &RemoteOptions::default()).unwrap();
        let region = Region::at(&self.address(), store).unwrap();
        Mirror::start(path, &region, &MirrorOptions { threads: Some(2), ..MirrorOptions::default() }).unwrap()
    }

    fn follower(&self, to: Arc<dyn Store>) -> Follower {
        let store = store::open(&self.address(), false, &RemoteOptions::default()).unwrap();
        Follower::new(Region::at(&self.address(), store).unwrap(), to, &DeltaOptions::default())
    }

    /// What the region holds.
    fn bytes(&self) -> Vec<u8> {
        let store = store::open(&self.address(), false, &RemoteOptions::default()).unwrap();
        let info = store.info();
        store.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap()
    }
}

fn memory(capacity: u64) -> Arc<MemoryStore> {
    Arc::new(MemoryStore::with_capacity(0, capacity))
}

fn all_of(store: &dyn Store) -> Vec<u8> {
    let info = store.info();
    store.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap()
}

fn root(scheme: &Scheme, bytes: &[u8]) -> Node {
    let leaves: Vec<Node> = bytes.chunks(PAGE).map(|page| scheme.leaf(page)).collect();
    delta::root(scheme, &leaves)
}

/// Stores to a shared mapping of the file until it is told to stop, in one place after another.
fn scribble(path: &Path, length: usize, number: u64, stop: &AtomicBool) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mapping = FileMapping::new(file.as_fd(), length, Protection::ReadWrite).unwrap();
    let mut random = Random(number);
    while !stop.load(Ordering::Relaxed) {
        let size = 1 + random.draw(9000) as usize;
        let at = random.draw((length - size) as u64) as usize;
        let bytes = vec![random.draw(256) as u8; size];
        mapping.copy_in(at, &bytes).unwrap();
        if random.draw(4) == 0 {
            std::thread::sleep(Duration::from_micros(random.draw(3000)));
        }
    }
}

/// For how long programs write: `PAGEWIRE_TEST_SECONDS`, or a moment.
fn seconds() -> u64 {
    let named = std::env::var("PAGEWIRE_TEST_SECONDS").ok();
    named.map_or(2, |seconds| seconds.parse().expect("PAGEWIRE_TEST_SECONDS is a number"))
}

#[test]
fn all_are_equal_in_the_end_and_each_epoch_was_one_that_the_mirror_has_made() {
    let number = seed(u64::from(std::process::id()));
    let length = 3_000_001;
    let hub = Hub::new(4 << 20, 64 << 20);
    let path = hub.path("file");
    std::fs::write(&path, pattern(length, 1)).unwrap();
    let mut mirror = hub.mirror(&path);
    let scheme = mirror.scheme();
    let made: Mutex<HashMap<u64, Node>> = Mutex::default();
    let (scribbling, following) = (AtomicBool::new(false), AtomicBool::new(false));
    let seen: Vec<Vec<(u64, Node)>> = std::thread::scope(|scope| {
        scope.spawn(|| scribble(&path, length, number, &scribbling));
        let followers: Vec<_> = (0..2)
            .map(|_| {
                let to = memory(4 << 20);
                let (mut follower, following) = (hub.follower(to.clone()), &following);
                scope.spawn(move || {
                    let mut seen = Vec::new();
                    let mut last = false;
                    while !last {
                        last = following.load(Ordering::Acquire);
                        if let Some(followed) = follower.step().unwrap() {
                            seen.push((followed.epoch, root(&scheme, &all_of(&*to))));
                        }
                    }
                    seen
                })
            })
            .collect();
        let end = Instant::now() + Duration::from_secs(seconds());
        while Instant::now() < end {
            let round = mirror.round().unwrap();
            made.lock().unwrap().insert(round.epoch, mirror.root());
        }
        scribbling.store(true, Ordering::Relaxed);
        // Nobody writes any more after this.
        std::thread::sleep(Duration::from_millis(50));
        let round = mirror.round().unwrap();
        made.lock().unwrap().insert(round.epoch, mirror.root());
        following.store(true, Ordering::Release);
        followers.into_iter().map(|follower| follower.join().unwrap()).collect()
    });
    let made = made.into_inner().unwrap();
    let file = std::fs::read(&path).unwrap();
    assert!(hub.bytes() == file, "seed {number}");
    for seen in seen {
        assert!(seen.len() > 3, "seed {number}: {} epochs", seen.len());
        assert_eq!(seen.last().unwrap().1, root(&scheme, &file), "seed {number}: the last one is the file");
        for (epoch, found) in seen {
            // One that was there before the first round is the mirror's of an earlier life: none here.
            let expected = made.get(&epoch).or_else(|| (epoch < 2).then_some(&Node::ZERO));
            assert_eq!(Some(&found), expected, "seed {number}: epoch {epoch}");
        }
    }
}

#[test]
fn a_file_whose_length_changes_in_the_middle_of_rounds_is_equal_in_the_end() {
    let number = seed(u64::from(std::process::id()));
    let hub = Hub::new(4 << 20, 16 << 20);
    let path = hub.path("file");
    std::fs::write(&path, pattern(1_234_567, 2)).unwrap();
    let mut mirror = hub.mirror(&path);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&path).unwrap();
            let mut random = Random(number);
            while !stop.load(Ordering::Relaxed) {
                let length = random.draw(4 << 20);
                file.set_len(length).unwrap();
                let at = random.draw(length.saturating_sub(5000).max(1));
                file.write_all_at(&vec![random.draw(256) as u8; random.draw(5000) as usize], at).unwrap();
                std::thread::sleep(Duration::from_micros(random.draw(2000)));
            }
        });
        for _ in 0..60 {
            mirror.round().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    mirror.round().unwrap();
    assert!(hub.bytes() == std::fs::read(&path).unwrap(), "seed {number}");
}

#[test]
fn one_page_that_changes_is_one_page_that_moves() {
    let hub = Hub::new(4 << 20, 16 << 20);
    let path = hub.path("file");
    let mut bytes = pattern(2_000_000, 3);
    std::fs::write(&path, &bytes).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let to = memory(4 << 20);
    let mut follower = hub.follower(to.clone());
    let mut change = |at: usize, value: u8| {
        bytes[at] = value;
        file.write_all_at(&[value], at as u64).unwrap();
        bytes.clone()
    };
    let mut mirror = hub.mirror(&path);
    assert_eq!(mirror.round().unwrap().pushed, 2_000_000);
    let first = mirror.round().unwrap();
    assert_eq!(first.pushed, 0, "nothing has changed");
    assert!(follower.step().unwrap().expect("it has nothing").compared);
    assert_eq!(follower.step().unwrap(), None);
    let now = change(777_777, 0);
    let second = mirror.round().unwrap();
    assert_eq!((second.pushed, second.epoch), (4096, first.epoch + 1));
    support::wait_until("the follower is told", || follower.has_news());
    let followed = follower.step().unwrap().unwrap();
    assert_eq!((followed.moved, followed.compared), (4096, false));
    assert!(all_of(&*to) == now);
    // Away for some epochs, each of them finds out what it has missed.
    drop((mirror, follower));
    change(5, 0);
    change(1_999_999, 0);
    let mut mirror = hub.mirror(&path);
    assert_eq!(mirror.round().unwrap().pushed, 4096 + (2_000_000 % 4096));
    let now = change(6, 0);
    mirror.round().unwrap();
    let mut follower = hub.follower(to.clone());
    let followed = follower.step().unwrap().unwrap();
    assert!(followed.compared && followed.moved <= 2 * 4096, "{followed:?}");
    assert!(all_of(&*to) == now);
}

#[test]
fn a_follower_that_stops_reading_holds_up_nobody_and_catches_up_by_comparing() {
    // The hub keeps little for those who are behind.
    let hub = Hub::new(4 << 20, 100_000);
    let path = hub.path("file");
    std::fs::write(&path, pattern(2_000_000, 4)).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let mut mirror = hub.mirror(&path);
    mirror.round().unwrap();
    let (slow, quick) = (memory(4 << 20), memory(4 << 20));
    let (mut slow_follower, mut quick_follower) = (hub.follower(slow.clone()), hub.follower(quick.clone()));
    slow_follower.step().unwrap();
    for value in 1..=20u8 {
        file.write_all_at(&[value; 50_000], u64::from(value) * 90_000).unwrap();
        mirror.round().unwrap();
        support::wait_until("the quick one is told", || quick_follower.has_news());
        quick_follower.step().unwrap();
        assert!(all_of(&*quick) == std::fs::read(&path).unwrap());
    }
    let caught_up = slow_follower.step().unwrap().unwrap();
    assert!(caught_up.moved < 1_200_000, "{caught_up:?}");
    assert!(all_of(&*slow) == std::fs::read(&path).unwrap());
}

#[test]
fn hubs_can_be_chained_and_restarted() {
    let mut first = Hub::new(4 << 20, 16 << 20);
    let second = Hub::new(4 << 20, 16 << 20);
    let path = first.path("file");
    std::fs::write(&path, pattern(1_000_000, 5)).unwrap();
    let mut mirror = first.mirror(&path);
    mirror.round().unwrap();
    let to: Arc<dyn Store> = store::open(&second.address(), true, &RemoteOptions::default()).unwrap();
    let mut between = first.follower(to);
    between.step().unwrap();
    let end = memory(4 << 20);
    let mut last = second.follower(end.clone());
    last.step().unwrap();
    assert!(all_of(&*end) == pattern(1_000_000, 5));
    first.server = None;
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"while the hub is away", 500_000).unwrap();
    first.start();
    let round = mirror.round().unwrap();
    // A page whose connection is lost, before the mirror knows that its hub is another one, is pushed twice.
    assert!((4096..=8192).contains(&round.pushed), "{round:?}");
    support::wait_until("the follower between is told", || between.has_news());
    between.step().unwrap();
    support::wait_until("the last one is told", || last.has_news());
    last.step().unwrap();
    assert!(all_of(&*end) == std::fs::read(&path).unwrap());
}

#[test]
fn a_file_that_is_replaced_removed_or_too_long_is_what_one_would_expect() {
    let hub = Hub::new(1 << 20, 16 << 20);
    let path = hub.path("file");
    assert_eq!(start_error(&hub, &path), ErrorKind::NotFound);
    assert_eq!(start_error(&hub, hub.folder.path()), ErrorKind::Usage);
    std::fs::write(&path, pattern(300_000, 6)).unwrap();
    let mut mirror = hub.mirror(&path);
    mirror.round().unwrap();
    std::fs::write(hub.path("other"), pattern(400_000, 7)).unwrap();
    std::fs::rename(hub.path("other"), &path).unwrap();
    mirror.round().unwrap();
    assert!(hub.bytes() == pattern(400_000, 7));
    let removed = File::options().write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    removed.write_all_at(b"still mapped, perhaps", 0).unwrap();
    assert_eq!(mirror.round().unwrap().pushed, 4096);
    std::fs::write(&path, pattern((1 << 20) + 1, 8)).unwrap();
    assert_eq!(mirror.round().unwrap_err().kind(), ErrorKind::NoSpace);
    std::fs::write(&path, pattern(1 << 20, 8)).unwrap();
    mirror.round().unwrap();
    assert!(hub.bytes() == pattern(1 << 20, 8));
}

fn start_error(hub: &Hub, path: &Path) -> ErrorKind {
    let region = Region::new("r", Arc::new(MemoryStore::new(hub.capacity))).unwrap();
    Mirror::start(path, &region, &MirrorOptions::default()).err().unwrap().kind()
}

#[test]
fn epochs_are_brought_to_a_file_as_a_whole() {
    let hub = Hub::new(4 << 20, 16 << 20);
    let path = hub.path("file");
    std::fs::write(&path, pattern(1_000_003, 9)).unwrap();
    let mut mirror = hub.mirror(&path);
    mirror.round().unwrap();
    let followed = hub.path("followed");
    std::fs::write(&followed, []).unwrap();
    let options = FileOptions { capacity: Some(4 << 20), writable: true, ..FileOptions::default() };
    let to = Arc::new(FileStore::open_with(&followed, &options).unwrap());
    let reader = Region::new("followed", to.clone()).unwrap();
    let mut follower = hub.follower(to.clone());
    follower.step().unwrap();
    let before = reader.pin().unwrap();
    std::fs::write(&path, pattern(2_000_003, 10)).unwrap();
    mirror.round().unwrap();
    support::wait_until("the follower is told", || follower.has_news());
    follower.step().unwrap();
    let read = |pin: &pagewire::engine::Pin| {
        to.read_bytes(ByteRange::new(0, pin.info().length), pin.epoch()).unwrap()
    };
    assert!(read(&before) == pattern(1_000_003, 9), "who has the epoch before goes on with it");
    assert!(read(&reader.pin().unwrap()) == pattern(2_000_003, 10));
    to.settle().unwrap();
    assert!(std::fs::read(&followed).unwrap() == pattern(2_000_003, 10));
}
