use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use pagewire_sys::file::{Allocate, data_extents, extended_attribute, fadvise_dontneed};
use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;
use pagewire_sys::thread::leave_descriptors;

#[test]
fn a_mapping_and_its_file_are_the_same_bytes() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(b"by a write", 5000).unwrap();
    file.set_len(10_000).unwrap();
    let mapping = FileMapping::new(file.as_fd(), 10_000, Protection::ReadWrite).unwrap();
    let mut bytes = [0; 10];
    mapping.copy_out(5000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"by a write");
    mapping.copy_in(9995, b"store").unwrap();
    mapping.sync(9995, 5).unwrap();
    let mut bytes = [0; 5];
    file.read_exact_at(&mut bytes, 9995).unwrap();
    assert_eq!(&bytes, b"store");
    fadvise_dontneed(file.as_fd(), 0, 0).unwrap();
    mapping.copy_out(9995, &mut bytes).unwrap();
    assert_eq!(&bytes, b"store");

    assert!(mapping.copy_out(9996, &mut bytes).is_err());
    assert!(mapping.copy_in(usize::MAX, b"x").is_err());
    assert!(mapping.sync(10_000, 1).is_err());
    assert!(FileMapping::new(file.as_fd(), 0, Protection::Read).is_err());
    let to_read = FileMapping::new(file.as_fd(), 10_000, Protection::Read).unwrap();
    assert_eq!(to_read.copy_in(0, b"x").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!((to_read.len(), to_read.is_empty()), (10_000, false));
}

#[test]
fn room_and_zeroes_are_allocated() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[1; 16384], 0).unwrap();
    Allocate { zero: false, keep_size: false }.apply(file.as_fd(), 16384, 4096).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 20_480);
    Allocate { zero: false, keep_size: true }.apply(file.as_fd(), 20_480, 4096).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 20_480);
    Allocate { zero: true, keep_size: true }.apply(file.as_fd(), 4096, 4096).unwrap();
    let mut page = [9; 4096];
    file.read_exact_at(&mut page, 4096).unwrap();
    assert_eq!(page, [0; 4096]);
    assert!(data_extents(file.as_fd(), 0..16384).unwrap().iter().any(|extent| extent.start == 0));
}

#[test]
fn an_attribute_that_is_not_there_is_none() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(extended_attribute(file.path(), "user.none").unwrap(), None);
    assert!(extended_attribute("/no/such/file".as_ref(), "user.none").is_err());
    assert!(extended_attribute(file.path(), "user.\0").is_err());
}

#[test]
fn a_thread_that_leaves_its_descriptors_takes_them_from_nobody() {
    let file = File::open("/proc/self/status").unwrap();
    let number = file.as_raw_fd();
    std::thread::spawn(move || {
        leave_descriptors().unwrap();
        assert!(!std::path::Path::new(&format!("/proc/thread-self/fd/{number}")).exists());
        // What is opened here is in this table alone.
        File::open("/proc/self/status").unwrap().read_at(&mut [0; 10], 0).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!(file.read_at(&mut [0; 10], 0).unwrap(), 10);
}
