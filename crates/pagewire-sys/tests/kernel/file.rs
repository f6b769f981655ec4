use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use pagewire_sys::file::{
    FileKind, block_device_size, data_extents, fadvise_willneed, identity, lock_exclusive, lock_shared,
    pread_nowait, punch_hole, seek_data, seek_hole, unlock,
};

use crate::support::{eventually, skipped};

const MIB: u64 = 1 << 20;

#[test]
fn data_is_told_from_holes() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(16 * MIB).unwrap();
    assert_eq!(seek_data(file.as_fd(), 0).unwrap(), None);
    file.write_all_at(&[1; MIB as usize], 4 * MIB).unwrap();
    file.write_all_at(&[2; 2 * MIB as usize], 8 * MIB).unwrap();
    let file = file.as_fd();
    assert_eq!(seek_data(file, 0).unwrap(), Some(4 * MIB));
    assert_eq!(seek_data(file, 4 * MIB + 5).unwrap(), Some(4 * MIB + 5));
    assert_eq!(seek_hole(file, 4 * MIB).unwrap(), 5 * MIB);
    assert_eq!(seek_hole(file, 12 * MIB).unwrap(), 12 * MIB);
    assert_eq!(seek_data(file, 10 * MIB).unwrap(), None);
    assert_eq!(seek_data(file, 99 * MIB).unwrap(), None);
    assert!(seek_hole(file, 99 * MIB).is_err());
    assert!(seek_data(file, u64::MAX).is_err());

    assert_eq!(data_extents(file, 0..16 * MIB).unwrap(), [4 * MIB..5 * MIB, 8 * MIB..10 * MIB]);
    assert_eq!(data_extents(file, 4 * MIB + 1..9 * MIB).unwrap(), [4 * MIB + 1..5 * MIB, 8 * MIB..9 * MIB]);
    assert_eq!(data_extents(file, 5 * MIB..8 * MIB).unwrap(), []);
    assert_eq!(data_extents(file, 0..u64::MAX >> 1).unwrap().len(), 2);
    punch_hole(file, 8 * MIB, MIB).unwrap();
    assert_eq!(data_extents(file, 0..16 * MIB).unwrap(), [4 * MIB..5 * MIB, 9 * MIB..10 * MIB]);
    assert_eq!(identity(file).unwrap().size, 16 * MIB);
}

#[test]
fn reading_without_waiting_gives_what_is_cached() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(b"in the page cache", 0).unwrap();
    let mut buffer = [0; 32];
    fadvise_willneed(file.as_fd(), 0, 0).unwrap();
    match pread_nowait(file.as_fd(), &mut buffer, 3) {
        Ok(read) => assert_eq!(&buffer[..read], b"the page cache"),
        // The file system cannot tell.
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
    }
    // procfs knows no such reads, whatever it holds.
    let status = File::open("/proc/self/status").unwrap();
    assert_eq!(pread_nowait(status.as_fd(), &mut buffer, 0).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(pread_nowait(file.as_fd(), &mut buffer, u64::MAX).is_err());
}

#[test]
fn locks_are_of_the_open_file() {
    let named = tempfile::NamedTempFile::new().unwrap();
    let open = || File::options().read(true).write(true).open(named.path()).unwrap();
    let would_block = |result: io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    };
    let (first, second) = (open(), open());
    lock_exclusive(first.as_fd()).unwrap();
    would_block(lock_exclusive(second.as_fd()));
    would_block(lock_shared(second.as_fd()));
    lock_exclusive(first.as_fd()).unwrap();
    // Closing another open of the same file does not lose the lock, as it does with POSIX locks.
    drop(open());
    would_block(lock_shared(second.as_fd()));
    let copy = first.try_clone().unwrap();
    drop(first);
    would_block(lock_shared(second.as_fd()));
    lock_shared(copy.as_fd()).unwrap();
    lock_shared(second.as_fd()).unwrap();
    would_block(lock_exclusive(copy.as_fd()));
    unlock(second.as_fd()).unwrap();
    lock_exclusive(copy.as_fd()).unwrap();
    drop(copy);
    assert!(eventually(|| lock_exclusive(second.as_fd()).is_ok()));
    let reader = File::open(named.path()).unwrap();
    assert_ne!(lock_exclusive(reader.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn identity_tells_files_apart() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let one = File::create(directory.path().join("one")).unwrap();
    let two = File::create(directory.path().join("two")).unwrap();
    let (first, second) = (identity(one.as_fd()).unwrap(), identity(two.as_fd()).unwrap());
    let metadata = one.metadata().unwrap();
    assert_eq!((first.device, first.inode), (metadata.dev(), metadata.ino()));
    assert_eq!(first.modified, (metadata.mtime(), metadata.mtime_nsec() as u32));
    assert_eq!((first.device, first.size, first.kind), (second.device, 0, FileKind::Regular));
    assert_ne!(first.inode, second.inode);
    assert_eq!(first, identity(File::open(directory.path().join("one")).unwrap().as_fd()).unwrap());
    one.write_all_at(b"longer", 0).unwrap();
    let later = identity(one.as_fd()).unwrap();
    assert_eq!((later.size, later.birth), (6, first.birth));
    assert_eq!(identity(File::open(directory.path()).unwrap().as_fd()).unwrap().kind, FileKind::Directory);
    assert_eq!(identity(File::open("/dev/null").unwrap().as_fd()).unwrap().kind, FileKind::Other);
    assert!(block_device_size(one.as_fd()).is_err());
}

#[test]
fn block_devices_have_a_size() {
    if skipped("blockdevice") {
        return;
    }
    let mut devices = 0;
    for entry in std::fs::read_dir("/sys/block").unwrap() {
        let entry = entry.unwrap();
        let Ok(device) = File::open(std::path::Path::new("/dev").join(entry.file_name())) else { continue };
        // The kernel counts in sectors of 512 bytes, whatever the device's are.
        let sectors = std::fs::read_to_string(entry.path().join("size")).unwrap();
        let bytes = sectors.trim().parse::<u64>().unwrap() * 512;
        assert_eq!(block_device_size(device.as_fd()).unwrap(), bytes, "{:?}", entry.file_name());
        assert_eq!(identity(device.as_fd()).unwrap().kind, FileKind::BlockDevice);
        devices += 1;
    }
    assert!(devices > 0, "no block device can be opened");
}
