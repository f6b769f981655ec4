//! Copies on this host's disk, over real sockets and restarts of real processes: what was pulled is not pulled
//! again, and what was flushed locally is not lost.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pagewire::access::uffd::{MapOptions, Mapping, WritableMapping, WriteOptions};
use pagewire::address::{PeerAddress, StoreAddress};
use pagewire::engine::{PushOptions, Region};
use pagewire::store::{
    self, Blocking, CacheFiles, CacheStore, FileStore, MemoryStore, RemoteOptions, STAGED, Store,
};
use pagewire::{ByteRange, Error, ErrorKind, PullOrder, Result};

use crate::support::role::{Actor, CACHED_READER, CACHED_WRITER, SERVE};
use crate::support::{self, anywhere, file, map_options, patient_for, pattern, region_at, wait_until};

const LENGTH: usize = (4 << 20) + 777;

fn address(peer: &PeerAddress, name: &str) -> StoreAddress {
    format!("{}", region_at(peer, name)).parse().unwrap()
}

fn options(cache: &Path, order: PullOrder) -> MapOptions {
    MapOptions { cache: Some(cache.into()), ..map_options(order) }
}

fn map(peer: &PeerAddress, cache: &Path, order: PullOrder) -> Result<Mapping> {
    Mapping::open_with(&address(peer, "file"), &options(cache, order), &patient_for(2000))
}

fn write(peer: &PeerAddress, cache: &Path, remote: &RemoteOptions) -> Result<WritableMapping> {
    let push = PushOptions { interval: None, patience: Duration::from_secs(5), ..PushOptions::default() };
    let map = options(cache, PullOrder::Sequential);
    let options = WriteOptions { map, push, tracking: None, owner: Some("a test".into()) };
    WritableMapping::open_with(&address(peer, "memory"), &options, remote)
}

fn cache_of(mapping: &Mapping) -> &CacheStore {
    mapping.region().cache().unwrap()
}

/// A region of memory, its store, and what it holds.
fn stored() -> (Arc<Region>, Arc<MemoryStore>, Vec<u8>) {
    let store = Arc::new(MemoryStore::with_capacity(LENGTH as u64, 2 * LENGTH as u64));
    let bytes = pattern(LENGTH, 4);
    store.write_bytes(0, &bytes).unwrap();
    store.flush_all().unwrap();
    (Region::new("memory", store.clone()).unwrap(), store, bytes)
}

fn newest(store: &dyn Store) -> Vec<u8> {
    let info = store.info();
    store.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap()
}

#[test]
fn a_client_that_was_killed_pulls_only_what_is_missing() {
    if !support::has_userfaultfd() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let bytes = pattern(LENGTH, 1);
    let file = file(&bytes);
    let path = file.path().to_str().unwrap().to_owned();
    const BORDER: u64 = 2 << 20;
    let start = |border: u64| {
        let settings =
            [("file", path.clone()), ("listen", anywhere().to_string()), ("border", border.to_string())];
        let actor = Actor::start(SERVE, &settings);
        let peer: PeerAddress = actor.wait_for("listening ").parse().unwrap();
        (actor, peer)
    };
    let (_server, peer) = start(BORDER);
    let settings = [
        ("peer", peer.to_string()),
        ("cache", cache.to_str().unwrap().into()),
        ("until", BORDER.to_string()),
    ];
    let mut client = Actor::start(CACHED_READER, &settings);
    client.wait_for("pulled");
    client.kill();
    let (_server, peer) = start(u64::MAX);
    let mapping = map(&peer, &cache, PullOrder::Sequential).unwrap();
    assert!(mapping.wait().unwrap().is_complete() && *mapping == bytes);
    let progress = cache_of(&mapping).progress();
    assert_eq!(progress.cached_bytes, BORDER, "what the killed client had pulled");
    assert_eq!(progress.remote_bytes, LENGTH as u64 - BORDER, "only what is missing");
    assert_eq!(mapping.progress().cached_bytes, BORDER);
    // All of it is in the file now, as it is.
    assert!(cache_of(&mapping).check().unwrap());
    assert!(std::fs::read(&cache).unwrap() == bytes);
    let pin = mapping.region().pin().unwrap();
    assert!(pin.image().is_some());
}

#[test]
fn a_region_that_is_complete_needs_its_server_for_its_epoch_only() {
    if !support::has_userfaultfd() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let bytes = pattern(LENGTH, 2);
    let file = file(&bytes);
    let (server, peer) = support::serve([support::file_region(file.path())], &anywhere());
    map(&peer, &cache, PullOrder::Sequential).unwrap().wait().unwrap();
    let mapping = map(&peer, &cache, PullOrder::Sequential).unwrap();
    drop(server);
    assert!(mapping.wait().unwrap().is_complete() && *mapping == bytes);
    assert_eq!(cache_of(&mapping).progress().remote_bytes, 0);
    drop(mapping);
    let error = map(&peer, &cache, PullOrder::Sequential).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[test]
fn a_mapping_that_is_refreshed_pulls_what_has_changed() {
    if !support::has_userfaultfd() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let (region, store, mut bytes) = stored();
    let (_server, peer) = support::serve([region.clone()], &anywhere());
    let options = options(&cache, PullOrder::Sequential);
    let mut mapping =
        Mapping::open_with(&address(&peer, "memory"), &options, &RemoteOptions::default()).unwrap();
    mapping.wait().unwrap();
    let before = cache_of(&mapping).progress().remote_bytes;
    let writer = region.writer("somebody").unwrap();
    writer.write_bytes(1 << 20, &[9; 4096]).unwrap();
    writer.flush_all().unwrap();
    bytes[1 << 20..(1 << 20) + 4096].fill(9);
    assert!(mapping.refresh().unwrap());
    mapping.wait().unwrap();
    assert!(*mapping == bytes && newest(&*store) == bytes);
    // The store tells changes to 64 KiB.
    assert_eq!(cache_of(&mapping).progress().remote_bytes - before, 64 << 10);
    drop(mapping);
    let mapping = Mapping::open_with(&address(&peer, "memory"), &options, &RemoteOptions::default()).unwrap();
    mapping.wait().unwrap();
    assert!(*mapping == bytes);
    assert_eq!(cache_of(&mapping).progress().remote_bytes, 0);
}

#[test]
fn a_writer_that_was_killed_while_its_server_was_away_loses_nothing_that_was_flushed_locally() {
    if !support::has_userfaultfd() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let (region, store, mut bytes) = stored();
    let (server, peer) = support::serve([region.clone()], &anywhere());
    let settings = [("peer", peer.to_string()), ("cache", cache.to_str().unwrap().into())];
    let mut client = Actor::start(CACHED_WRITER, &settings);
    client.wait_for("mapped");
    drop(server);
    client.say();
    // It has written, flushed locally without a server, and written more.
    client.wait_for("kept");
    client.kill();
    assert!(newest(&*store) == bytes, "nothing has come to the store");
    bytes[100_000..104_096].fill(0xaa);
    bytes[LENGTH - 3..].fill(0xbb);
    let (_server, peer) = support::serve([region], &peer);
    // Nobody but the one who has written them has the lease, and can go on with it at once.
    let error = Mapping::open_with(
        &address(&peer, "memory"),
        &options(&cache, PullOrder::None),
        &RemoteOptions::default(),
    );
    let error = error.err().unwrap();
    assert!(error.to_string().contains("were not pushed"), "{error}");
    let mapping = write(&peer, &cache, &patient_for(3000)).unwrap();
    let mut seen = vec![0; LENGTH];
    mapping.read(0, &mut seen).unwrap();
    assert!(seen == bytes, "the writer sees them");
    let epoch = mapping.epoch();
    assert!(newest(&*store) != bytes, "an epoch is made by a flush");
    assert_eq!(mapping.flush().unwrap().epoch, epoch + 1);
    assert!(newest(&*store) == bytes);
    drop(mapping);
    let mapping = write(&peer, &cache, &patient_for(3000)).unwrap();
    assert_eq!(mapping.flush().unwrap().epoch, epoch + 1, "there is nothing left to flush");
    mapping.wait().unwrap();
    let progress = mapping.region().cache().unwrap().progress();
    assert_eq!((progress.remote_bytes, progress.unpushed_bytes), (0, 0), "what was flushed is in the cache");
}

#[test]
fn a_local_flush_does_not_wait_for_a_flush_that_waits_for_the_server() {
    if !support::has_userfaultfd() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let (region, store, mut bytes) = stored();
    let (server, peer) = support::serve([region.clone()], &anywhere());
    let mapping = write(&peer, &cache, &patient_for(20_000)).unwrap();
    mapping.wait().unwrap();
    mapping.write(5, b"one").unwrap();
    drop(server);
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| mapping.flush());
        wait_until("the flush fails for the first time", || mapping.push_progress().failures > 0);
        mapping.write(9000, b"two").unwrap();
        mapping.flush_local().unwrap();
        assert!(!flush.is_finished());
        assert_eq!(mapping.region().cache().unwrap().progress().unpushed_bytes, 2 * 4096);
        let (_server, _) = support::serve([region.clone()], &peer);
        flush.join().unwrap().unwrap();
        mapping.flush().unwrap();
    });
    bytes[5..8].copy_from_slice(b"one");
    bytes[9000..9003].copy_from_slice(b"two");
    assert!(newest(&*store) == bytes);
    wait_until("it is not unpushed any more", || {
        mapping.region().cache().unwrap().progress().unpushed_bytes == 0
    });
    drop(mapping);
    // Without a cache there is nowhere to keep anything.
    let (_server, peer) = support::serve([stored().0], &anywhere());
    let options = WriteOptions { map: map_options(PullOrder::None), ..WriteOptions::default() };
    let mapping =
        WritableMapping::open_with(&address(&peer, "memory"), &options, &patient_for(3000)).unwrap();
    assert_eq!(mapping.flush_local().unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn changes_are_refused_when_somebody_else_has_written_since() {
    if !support::has_userfaultfd() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let (region, store, mut bytes) = stored();
    let (_server, peer) = support::serve([region.clone()], &anywhere());
    let mapping = write(&peer, &cache, &patient_for(3000)).unwrap();
    mapping.write(0, b"mine").unwrap();
    mapping.set_length(LENGTH as u64 + 10_000).unwrap();
    mapping.flush_local().unwrap();
    drop(mapping);
    let mut writer = None;
    wait_until("the lease is free", || {
        writer = region.writer("somebody else").ok();
        writer.is_some()
    });
    let writer = writer.unwrap();
    writer.write_bytes(8192, b"theirs").unwrap();
    writer.flush_all().unwrap();
    drop(writer);
    bytes[8192..8198].copy_from_slice(b"theirs");
    let error = write(&peer, &cache, &patient_for(3000)).err().unwrap();
    let unpushed = folder.path().join("cache.unpushed");
    let way_out = format!("remove {}", unpushed.display());
    assert!(error.kind() == ErrorKind::Changed && error.to_string().contains(&way_out), "{error}");
    std::fs::remove_file(unpushed).unwrap();
    let mapping = write(&peer, &cache, &patient_for(3000)).unwrap();
    let mut seen = vec![0; mapping.len() as usize];
    mapping.read(0, &mut seen).unwrap();
    assert!(seen == bytes && newest(&*store) == bytes);
}

#[test]
fn the_lease_of_one_region_is_not_taken_for_that_of_another() {
    if !support::has_userfaultfd() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let (first, second) = (stored().0, stored().0);
    let (_server, peer) = support::serve([first], &anywhere());
    drop(write(&peer, &cache, &patient_for(3000)).unwrap());
    // The leases of stores in memory are numbered alike.
    let writer = second.writer("somebody else").unwrap();
    let (_server, peer) = support::serve([second], &anywhere());
    let error = write(&peer, &cache, &patient_for(3000)).err().unwrap();
    assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("somebody else"), "{error}");
    writer.write_bytes(0, b"theirs").unwrap();
    writer.flush_all().unwrap();
}

#[test]
fn what_cannot_be_a_cache_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| -> Result<CacheStore> {
        CacheStore::new(CacheFiles::open(path)?, Arc::new(MemoryStore::new(4096)), false)
    };
    let refused = |path: &Path, kind: ErrorKind, says: &str| {
        let error: Error = open(path).err().unwrap();
        assert!(error.kind() == kind && error.to_string().contains(says), "{}: {error:?}", path.display());
    };
    refused(&folder.path().join("no/such/folder"), ErrorKind::NotFound, "no/such/folder");
    refused(folder.path(), ErrorKind::Io, "cannot open the cache");
    refused(Path::new("/dev/null"), ErrorKind::Usage, "no regular file");
    let precious = folder.path().join("precious");
    std::fs::write(&precious, b"somebody's").unwrap();
    refused(&precious, ErrorKind::Usage, "is no cache of Pagewire");
    std::fs::write(folder.path().join("precious.cache"), b"no state").unwrap();
    refused(&precious, ErrorKind::Usage, "is no cache of Pagewire");
    assert_eq!(std::fs::read(&precious).unwrap(), b"somebody's");
    let cache = folder.path().join("cache");
    let first = open(&cache).unwrap();
    refused(&cache, ErrorKind::Busy, "in use");
    drop(first);
    drop(open(&cache).unwrap());
    // A store that is written to in place has no epochs to stand on.
    let plain = file(&[7; 8192]);
    let address: StoreAddress = format!("file:{}?journal=off", plain.path().display()).parse().unwrap();
    let StoreAddress::File(address) = address else { panic!("it is a file") };
    let store = Arc::new(FileStore::at(&address, true).unwrap());
    let error = CacheStore::new(CacheFiles::open(&cache).unwrap(), store, true).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn a_cache_in_memory_answers_for_a_server_that_is_gone_and_goes_with_its_process() {
    let (region, store, mut bytes) = stored();
    let (server, peer) = support::serve([region], &anywhere());
    let address = address(&peer, "memory");
    let whole = ByteRange::new(0, LENGTH as u64);
    let near = store::open_in_memory(&address, Some("a test"), &patient_for(300)).unwrap();
    assert!(near.read_bytes(whole, STAGED).unwrap() == bytes);
    near.fence().unwrap();
    bytes[5000..15000].fill(7);
    near.write_bytes(5000, &[7; 10000]).unwrap();
    near.flush_all().unwrap();
    assert!(newest(&*store) == bytes);
    let cache = near.cache().expect("a peer's region has one");
    assert!(!cache.lasts());
    cache.settle();
    // What a write has touched in part is pulled once more.
    assert!(near.read_bytes(whole, STAGED).unwrap() == bytes);
    cache.settle();
    assert_eq!(cache.missing(), []);
    drop(server);
    assert!(near.read_bytes(whole, STAGED).unwrap() == bytes, "all of it is here");
}

#[test]
fn what_is_on_this_host_has_no_cache_in_memory() {
    let file = file(&pattern(LENGTH, 1));
    for address in ["mem:1MiB".to_owned(), format!("file:{}", file.path().display())] {
        let near = store::open_in_memory(&address.parse().unwrap(), None, &patient_for(300)).unwrap();
        assert!(near.cache().is_none(), "{address}");
    }
}

#[test]
fn nothing_is_kept_twice_for_a_cache_that_does_not_last() {
    if !support::has_userfaultfd() {
        return;
    }
    let (region, _, _) = stored();
    let (_server, peer) = support::serve([region], &anywhere());
    let near = store::open_in_memory(&address(&peer, "memory"), Some("a test"), &patient_for(2000)).unwrap();
    let region = Region::new("memory", near.clone()).unwrap();
    let push = PushOptions { interval: Some(Duration::from_millis(5)), ..PushOptions::default() };
    let mapping = WritableMapping::map(&region, &WriteOptions { push, ..WriteOptions::default() }).unwrap();
    mapping.write(4096, &[9; 4096]).unwrap();
    wait_until("it is pushed", || mapping.push_progress().pushed_bytes > 0);
    assert_eq!(near.cache().unwrap().progress().unpushed_bytes, 0);
    mapping.flush().unwrap();
}
