//! Copying what differs: between any two stores, over whatever happens on the way, and never more than it has to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pagewire::access::serve::ServerOptions;
use pagewire::address::PeerAddress;
use pagewire::engine::copy::{DeltaOptions, DeltaProgress, copy_delta};
use pagewire::engine::{Change, Region};
use pagewire::store::{Blocking, FileOptions, FileStore, Flush, Info, MemoryStore, Read, RemoteStore, Store};
use pagewire::{Algorithm, ByteRange, Error, ErrorKind, Result};

use crate::support::proxy::{Proxy, Weather};
use crate::support::{self, anywhere, patient_for, pattern, region_at, serve_with, wait_until};

/// Memory that holds `bytes`, and can grow to `capacity`.
fn memory(bytes: &[u8], capacity: u64) -> Arc<MemoryStore> {
    let store = MemoryStore::with_capacity(bytes.len() as u64, capacity);
    store.write_bytes(0, bytes).unwrap();
    store.flush_all().unwrap();
    Arc::new(store)
}

/// A file that holds `bytes`, with a journal.
fn journaled(folder: &tempfile::TempDir, name: &str, bytes: &[u8], capacity: u64) -> Arc<FileStore> {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let options = FileOptions { writable: true, capacity: Some(capacity), ..FileOptions::default() };
    Arc::new(FileStore::open_with(&path, &options).unwrap())
}

fn region(store: &Arc<dyn Store>) -> Arc<Region> {
    Region::new("region", store.clone()).unwrap()
}

fn bytes_of(store: &dyn Store) -> Vec<u8> {
    let info = store.info();
    store.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap()
}

/// A few images that have to do with each other in all the ways that there are.
fn pairs() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let image = pattern(1_500_001, 1);
    let mut scattered = image.clone();
    for page in [0, 7, 8, 100, 366] {
        let at = page * 4096 + 50;
        scattered[at] ^= 0x55;
    }
    let mut holes = image.clone();
    holes[40_960..400_000].fill(0);
    vec![
        ("equal", image.clone(), image.clone()),
        ("a few pages", scattered, image.clone()),
        ("zeroes for bytes", holes.clone(), image.clone()),
        ("bytes for zeroes", image.clone(), holes),
        ("from nothing", image.clone(), vec![0; 1_500_001]),
        ("to nothing", vec![0; 1_500_001], image.clone()),
        ("longer", image.clone(), image[..700_000].to_vec()),
        ("shorter", image[..700_001].to_vec(), image.clone()),
        ("shorter within a page, whose rest is not zero", image[..4100].to_vec(), image.clone()),
        ("empty", Vec::new(), image.clone()),
        ("all else", pattern(900_000, 2), pattern(900_000, 3)),
    ]
}

fn copied(from: &Arc<dyn Store>, to: &Arc<dyn Store>, algorithm: Algorithm) -> DeltaProgress {
    let options = DeltaOptions { algorithm, ..DeltaOptions::default() };
    copy_delta(&region(from), to, &options, |_| {}).unwrap()
}

const CAPACITY: u64 = 2_000_000;

#[test]
fn between_any_two_stores_the_target_is_the_source_afterwards() {
    for (what, source, target) in pairs() {
        let folder = tempfile::tempdir().unwrap();
        for algorithm in [Algorithm::Xxh3, Algorithm::Blake3] {
            let from: Arc<dyn Store> = memory(&source, CAPACITY);
            for (kind, to) in [
                ("memory", memory(&target, CAPACITY) as Arc<dyn Store>),
                ("a file", journaled(&folder, &format!("{algorithm:?}"), &target, CAPACITY)),
            ] {
                let before = to.info().epoch;
                let done = copied(&from, &to, algorithm);
                assert!(bytes_of(&*to) == source, "{what}, to {kind}");
                let epochs = u64::from(source != target);
                assert_eq!(to.info().epoch, before + epochs, "{what}, to {kind}");
                assert_eq!((done.length, done.compared), (source.len() as u64, source.len() as u64));
                if what == "a few pages" {
                    assert_eq!(
                        (done.moved, done.cleared),
                        (4 * 4096 + 865, 0),
                        "{what}, to {kind}: the last is short"
                    );
                }
                if what == "zeroes for bytes" {
                    // The pages at the edges hold bytes, too.
                    assert!(done.moved <= 2 * 4096 && done.cleared > 300_000, "{done:?}");
                }
                if what == "equal" {
                    assert_eq!((done.moved, done.cleared), (0, 0));
                }
            }
        }
    }
}

#[test]
fn peers_hash_for_each_other_and_only_what_differs_travels() {
    for (what, source, target) in pairs() {
        let folder = tempfile::tempdir().unwrap();
        let from: Arc<dyn Store> = journaled(&folder, "from", &source, CAPACITY);
        let to: Arc<dyn Store> = journaled(&folder, "to", &target, CAPACITY);
        let regions = [Region::new("from", from).unwrap(), Region::new("to", to.clone()).unwrap()];
        let (_server, peer) = serve_with(regions, &anywhere(), ServerOptions::default());
        let near: Arc<dyn Store> =
            Arc::new(RemoteStore::connect(&region_at(&peer, "from"), &patient_for(20_000)).unwrap());
        let far: Arc<dyn Store> = Arc::new(
            RemoteStore::connect_writer(&region_at(&peer, "to"), &patient_for(20_000), "a test").unwrap(),
        );
        assert!(near.info().capabilities.hash && far.info().capabilities.hash);
        let done = copied(&near, &far, Algorithm::Xxh3);
        assert!(bytes_of(&*to) == source, "{what}");
        let traffic = [near.traffic(), far.traffic()];
        let wire: u64 = traffic.iter().map(|traffic| traffic.sent + traffic.received).sum();
        if what == "equal" {
            assert!(wire < 4096, "{wire} bytes for what is equal");
        }
        // Twice: from the one server and to the other.
        let changes = 2 * done.moved;
        assert!(
            wire >= changes && wire < changes + changes / 2 + 40_000,
            "{what}: {wire} bytes for {changes}"
        );
    }
}

#[test]
fn a_hub_passes_questions_on_to_where_the_bytes_are() {
    let image = pattern(1_000_000, 1);
    let origin: Arc<dyn Store> = memory(&image, CAPACITY);
    let (_origin, peer) =
        serve_with([Region::new("file", origin).unwrap()], &anywhere(), ServerOptions::default());
    let upstream = Arc::new(RemoteStore::connect(&region_at(&peer, "file"), &patient_for(20_000)).unwrap());
    let hub = Region::new("file", upstream.clone()).unwrap();
    let (_hub, peer) = serve_with([hub], &anywhere(), ServerOptions::default());
    let from: Arc<dyn Store> =
        Arc::new(RemoteStore::connect(&region_at(&peer, "file"), &patient_for(20_000)).unwrap());
    let to: Arc<dyn Store> = memory(&image, CAPACITY);
    assert_eq!(copied(&from, &to, Algorithm::Xxh3).moved, 0);
    let traffic = upstream.traffic();
    assert!(traffic.sent + traffic.received < 8192, "{traffic:?}");
}

#[test]
fn connections_that_are_cut_in_the_middle_are_made_again() {
    for seed in 0..6 {
        let (source, target) = (pattern(3_000_000, 1), {
            let mut target = pattern(3_000_000, 1);
            target.chunks_mut(20_000).for_each(|chunk| chunk[11] ^= 1);
            target
        });
        let from: Arc<dyn Store> = memory(&source, 4_000_000);
        let (_server, peer) =
            serve_with([Region::new("file", from).unwrap()], &anywhere(), ServerOptions::default());
        let weather = Weather { cuts: 9, cut_within: 60_000, ..Weather::default() };
        let proxy = Proxy::new(&peer, seed, weather);
        let mut remote = None;
        // The first connections are cut, also while they shake hands.
        wait_until("it connects", || {
            remote = RemoteStore::connect(&region_at(&proxy.address(), "file"), &patient_for(20_000)).ok();
            remote.is_some()
        });
        let (remote, to): (Arc<dyn Store>, Arc<dyn Store>) =
            (Arc::new(remote.unwrap()), memory(&target, 4_000_000));
        let done = copied(&remote, &to, Algorithm::Xxh3);
        assert!(bytes_of(&*to) == source, "seed {seed}");
        assert_eq!(done.moved, 150 * 4096, "seed {seed}");
        assert!(proxy.cuts() > 0, "seed {seed}");
    }
}

#[test]
fn a_source_that_is_written_to_meanwhile_gives_the_epoch_that_was_pinned() {
    let (old, new) = (pattern(2_000_000, 1), pattern(2_000_000, 2));
    let store = memory(&old, 2_000_000);
    let from = Region::new("file", store as Arc<dyn Store>).unwrap();
    let (_server, peer) = serve_with([from.clone()], &anywhere(), ServerOptions::default());
    let remote: Arc<dyn Store> =
        Arc::new(RemoteStore::connect(&region_at(&peer, "file"), &patient_for(20_000)).unwrap());
    let to: Arc<dyn Store> = memory(&vec![7; 2_000_000], 2_000_000);
    // It changes before a byte is compared, and again at every step.
    from.commit(&[Change { offset: 0, bytes: &new }]).unwrap();
    let changing: Arc<dyn Store> =
        Arc::new(Changing { store: to.clone(), region: from.clone(), writes: Mutex::new(0) });
    copied(&remote, &changing, Algorithm::Xxh3);
    assert!(bytes_of(&*to) == old);
    assert!(from.info().epoch > 2, "it was written to meanwhile");
}

/// A target whose every write has the source written to.
struct Changing {
    store: Arc<dyn Store>,
    region: Arc<Region>,
    /// One at a time: each takes the lease.
    writes: Mutex<u64>,
}

impl Store for Changing {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: Read) {
        self.store.read(read);
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: pagewire::store::Completion) {
        let mut write = self.writes.lock().unwrap();
        self.region.commit(&[Change { offset: *write * 4096, bytes: &[*write as u8; 5000] }]).unwrap();
        *write += 1;
        drop(write);
        self.store.write(ranges, bytes, done);
    }

    fn zero(&self, ranges: &[ByteRange], done: pagewire::store::Completion) {
        self.store.zero(ranges, done);
    }

    fn stage(&self) -> pagewire::store::Stage {
        self.store.stage()
    }

    fn flush(&self, flush: Flush) {
        self.store.flush(flush);
    }
}

/// A target that fails after so many writes, as one that is killed does.
struct Failing {
    store: Arc<dyn Store>,
    left: AtomicU64,
}

impl Store for Failing {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: Read) {
        self.store.read(read);
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: pagewire::store::Completion) {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match left {
            Ok(_) => self.store.write(ranges, bytes, done),
            Err(_) => done(Err(Error::new(ErrorKind::Io, "broken on purpose"))),
        }
    }

    fn zero(&self, ranges: &[ByteRange], done: pagewire::store::Completion) {
        self.store.zero(ranges, done);
    }

    fn stage(&self) -> pagewire::store::Stage {
        self.store.stage()
    }

    fn discard(&self) -> Result<()> {
        self.store.discard()
    }

    fn flush(&self, flush: Flush) {
        self.store.flush(flush);
    }
}

#[test]
fn a_copy_that_fails_leaves_what_was_there_or_what_its_checkpoints_have_kept() {
    let (source, target) = (pattern(12 << 20, 1), pattern(12 << 20, 2));
    let from: Arc<dyn Store> = memory(&source, 12 << 20);
    for checkpoint in [None, Some(2 << 20)] {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = journaled(&folder, "to", &target, 12 << 20);
        let to: Arc<dyn Store> = Arc::new(Failing { store: store.clone(), left: 7.into() });
        let options = DeltaOptions { checkpoint, ..DeltaOptions::default() };
        let error = copy_delta(&region(&from), &to, &options, |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        store.discard().unwrap();
        let kept = bytes_of(&*store);
        match checkpoint {
            None => assert!(kept == target && store.info().epoch == 1),
            Some(_) => assert!(store.info().epoch > 1 && kept != target && kept != source),
        }
        // Made again, it goes on where it was.
        let done = copy_delta(&region(&from), &store, &options, |_| {}).unwrap();
        assert!(bytes_of(&*store) == source);
        match checkpoint {
            None => assert_eq!(done.moved, 12 << 20),
            Some(_) => assert!(done.moved <= (12 - 2) << 20, "{} bytes were moved again", done.moved),
        }
    }
}

/// A target that is restarted before its first flush, and so loses what was staged.
struct Forgetful {
    store: Arc<dyn Store>,
    flushes: AtomicU64,
}

impl Store for Forgetful {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: Read) {
        self.store.read(read);
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: pagewire::store::Completion) {
        self.store.write(ranges, bytes, done);
    }

    fn zero(&self, ranges: &[ByteRange], done: pagewire::store::Completion) {
        self.store.zero(ranges, done);
    }

    fn stage(&self) -> pagewire::store::Stage {
        self.store.stage()
    }

    fn flush(&self, flush: Flush) {
        if self.flushes.fetch_add(1, Ordering::SeqCst) == 0 {
            self.store.discard().unwrap();
        }
        self.store.flush(flush);
    }
}

#[test]
fn a_target_that_forgets_what_was_not_flushed_is_compared_again() {
    let (source, target) = (pattern(2_000_000, 1), pattern(2_000_000, 2));
    let from: Arc<dyn Store> = memory(&source, CAPACITY);
    let store: Arc<dyn Store> = memory(&target, CAPACITY);
    let to: Arc<dyn Store> = Arc::new(Forgetful { store: store.clone(), flushes: 0.into() });
    let mut seen = 0;
    let done = copy_delta(&region(&from), &to, &DeltaOptions::default(), |progress| {
        assert!(progress.moved >= seen, "what was moved only grows");
        seen = progress.moved;
    });
    assert!(bytes_of(&*store) == source);
    assert_eq!(done.unwrap().moved, 2 * 2_000_000, "twice");
}

#[test]
fn a_target_that_is_too_small_is_told_before_anything_moves() {
    let from: Arc<dyn Store> = memory(&pattern(100_000, 1), 100_000);
    let to: Arc<dyn Store> = memory(&pattern(50_000, 2), 60_000);
    let error = copy_delta(&region(&from), &to, &DeltaOptions::default(), |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(bytes_of(&*to) == pattern(50_000, 2));
}

#[test]
fn holes_are_told_without_being_read() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(600 << 20).unwrap();
    file.write_all_at(&pattern(100_000, 1), 300 << 20).unwrap();
    let from: Arc<dyn Store> = Arc::new(FileStore::open(&path, None, false).unwrap());
    let target = folder.path().join("target");
    let options = FileOptions { size: Some(600 << 20), writable: true, ..FileOptions::default() };
    let file = Arc::new(FileStore::open_with(&target, &options).unwrap());
    let to: Arc<dyn Store> = file.clone();
    let done = copied(&from, &to, Algorithm::Xxh3);
    file.settle().unwrap();
    assert!(done.moved <= 2 << 20, "{} bytes", done.moved);
    let found = std::fs::metadata(&target).unwrap();
    assert!(found.len() == 600 << 20 && found.blocks() * 512 < 8 << 20, "{} blocks", found.blocks());
    let mut middle = vec![0; 100_000];
    std::fs::File::open(&target).unwrap().read_exact_at(&mut middle, 300 << 20).unwrap();
    assert!(middle == pattern(100_000, 1));
}

#[test]
fn demand_reads_go_on_while_hashes_are_computed() {
    let image = pattern(20 << 20, 1);
    let file = support::file(&image);
    let region = support::file_region(file.path());
    let (_server, peer) = serve_with([region], &anywhere(), ServerOptions::default());
    let compared = comparing(&peer, image.clone());
    let remote = RemoteStore::connect(&region_at(&peer, "file"), &patient_for(20_000)).unwrap();
    for page in 0..200u64 {
        let at = (page * 97 % 5000) * 4096;
        assert!(remote.read_bytes(ByteRange::new(at, at + 4096), 1).unwrap() == image[at as usize..][..4096]);
    }
    assert!(support::within("the comparison", Duration::from_secs(20), move || compared.join().unwrap()));
}

/// Compares a region with what it holds, again and again.
fn comparing(peer: &PeerAddress, image: Vec<u8>) -> std::thread::JoinHandle<bool> {
    let address = region_at(peer, "file");
    std::thread::spawn(move || {
        let to: Arc<dyn Store> = memory(&image, 20 << 20);
        (0..5).all(|_| {
            let remote: Arc<dyn Store> =
                Arc::new(RemoteStore::connect(&address, &patient_for(20_000)).unwrap());
            copied(&remote, &to, Algorithm::Blake3).moved == 0
        })
    })
}
