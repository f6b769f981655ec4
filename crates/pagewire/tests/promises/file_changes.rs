//! A file that changes under its server: an error, never zeroes, never another region's bytes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pagewire::engine::Region;
use pagewire::engine::copy::{CopyOptions, copy};
use pagewire::store::{Blocking, MemoryStore, RemoteOptions, RemoteStore, Store};
use pagewire::{ByteRange, ErrorKind, PullOrder};

use crate::support::{self, anywhere, file, file_region, patient_for, pattern, region_at};

#[test]
fn a_file_that_shrinks_is_an_error_and_not_zeroes() {
    if !support::has_userfaultfd() {
        return;
    }
    let bytes = pattern(2 << 20, 1);
    let file = file(&bytes);
    let (_server, address) = support::serve([file_region(file.path())], &anywhere());
    let mapping = support::map(&address, "file", PullOrder::None, &patient_for(2000)).unwrap();
    mapping.prefault(ByteRange::new(0, 65536)).unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let error = mapping.prefault(ByteRange::new(1 << 20, 2 << 20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    assert!(mapping[..65536] == bytes[..65536], "what had come stays");
}

#[test]
fn the_background_pull_of_a_file_that_has_shrunk_gives_up() {
    if !support::has_userfaultfd() {
        return;
    }
    for (kept, length) in [(0, 2 << 20), ((1 << 20) + 5, 2 << 20), ((2 << 20) - 1, 2 << 20)] {
        let file = file(&pattern(length, 2));
        let (_server, address) = support::serve([file_region(file.path())], &anywhere());
        let remote = RemoteStore::connect(&region_at(&address, "file"), &RemoteOptions::default()).unwrap();
        let region = Region::new("file", Arc::new(remote)).unwrap();
        file.as_file().set_len(kept).unwrap();
        let options = support::map_options(PullOrder::Sequential);
        let mapping = pagewire::access::uffd::Mapping::map(&region, &options).unwrap();
        let deadline = std::time::Instant::now() + support::HANG;
        let error = mapping.wait_until(deadline).map(|done| done.expect("the pull hangs")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{kept}: {error}");
    }
}

#[test]
fn a_copy_of_a_file_that_has_shrunk_fails() {
    let file = file(&pattern(2 << 20, 3));
    let (_server, address) = support::serve([file_region(file.path())], &anywhere());
    let remote = RemoteStore::connect(&region_at(&address, "file"), &RemoteOptions::default()).unwrap();
    let from = Region::new("from", Arc::new(remote)).unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let to: Arc<dyn Store> = Arc::new(MemoryStore::new(2 << 20));
    let error = copy(&from, &to, &CopyOptions::default(), |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
}

#[test]
fn a_file_that_was_replaced_is_another_region_after_a_restart() {
    if !support::has_userfaultfd() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, pattern(1 << 20, 4)).unwrap();
    let (server, address) = support::serve([file_region(&path)], &anywhere());
    let mapping = support::map(&address, "file", PullOrder::None, &patient_for(5000)).unwrap();
    let remote = RemoteStore::connect(&region_at(&address, "file"), &patient_for(5000)).unwrap();
    mapping.prefault(ByteRange::new(0, 65536)).unwrap();
    drop(server);
    let other = folder.path().join("other");
    std::fs::write(&other, pattern(1 << 20, 5)).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let (_server, _) = support::serve([file_region(&path)], &address);
    let error = mapping.prefault(ByteRange::new(65536, 1 << 20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    let error = remote.read_bytes(ByteRange::new(0, 4096), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    assert!(mapping[..65536] == pattern(1 << 20, 4)[..65536]);
}

#[test]
fn a_file_that_was_written_to_is_another_region_after_a_restart() {
    let file = file(&pattern(1 << 20, 6));
    let (server, address) = support::serve([file_region(file.path())], &anywhere());
    let remote = RemoteStore::connect(&region_at(&address, "file"), &patient_for(5000)).unwrap();
    assert!(remote.read_bytes(ByteRange::new(0, 4096), 1).is_ok());
    drop(server);
    std::os::unix::fs::FileExt::write_all_at(file.as_file(), b"x", 5000).unwrap();
    file.as_file().set_modified(SystemTime::now() + Duration::from_secs(2)).unwrap();
    let (_server, _) = support::serve([file_region(file.path())], &address);
    let error = remote.read_bytes(ByteRange::new(4096, 8192), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
}

#[test]
fn a_region_that_is_missing_for_a_while_is_waited_for() {
    let bytes = pattern(300_000, 7);
    let file = file(&bytes);
    let (server, address) = support::serve([file_region(file.path())], &anywhere());
    let remote = RemoteStore::connect(&region_at(&address, "file"), &patient_for(5000)).unwrap();
    drop(server);
    // Another server is there meanwhile, which does not have it.
    let (wrong, _) = support::serve([], &address);
    let error = remote.read_bytes(ByteRange::new(0, 4096), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    drop(wrong);
    let (_server, _) = support::serve([file_region(file.path())], &address);
    support::wait_until("the region is found again", || {
        remote.read_bytes(ByteRange::new(0, 300_000), 1).is_ok_and(|got| got == bytes)
    });
}
