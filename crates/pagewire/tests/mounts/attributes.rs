//! What a mounted file is besides its bytes, and what can be asked of it that is neither reading nor writing.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use pagewire::access::fuse::{MountOptions, Status};
use pagewire_sys::file::{Allocate, extended_attribute, punch_hole};

use crate::support::{Host, errno, fails_with, pattern, read_at, wait_until, writable};

const LENGTH: usize = 1_000_003;

#[test]
fn sizes_modes_and_times_are_those_of_the_region_and_its_changes() {
    let host = Host::new(&pattern(LENGTH, 1), 2 << 20);
    let before = SystemTime::now() - Duration::from_secs(1);
    let reader = host.mount("reader", MountOptions::default());
    let found = std::fs::metadata(reader.path()).unwrap();
    assert!(found.is_file());
    assert_eq!((found.len(), found.mode() & 0o7777), (LENGTH as u64, 0o444));
    assert!(found.modified().unwrap() >= before && found.accessed().unwrap() >= before);

    let writer = host.mount("writer", writable());
    let found = std::fs::metadata(writer.path()).unwrap();
    assert_eq!((found.len(), found.mode() & 0o7777), (LENGTH as u64, 0o644));
    let file = writer.open();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    file.set_times(std::fs::FileTimes::new().set_modified(old)).unwrap();
    assert_eq!(file.metadata().unwrap().modified().unwrap(), old);
    file.write_all_at(&[7; 5000], 1_200_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1_205_000, "before it is written back");
    file.sync_all().unwrap();
    let changed = file.metadata().unwrap();
    assert_eq!(changed.len(), 1_205_000);

    // Who reads sees it in the other mount, and that it was modified.
    wait_until("the reader has the new length", || {
        std::fs::metadata(reader.path()).unwrap().len() == 1_205_000
    });
    assert!(std::fs::metadata(reader.path()).unwrap().modified().unwrap() >= found.modified().unwrap());
    assert_eq!(read_at(&reader.open_to_read(), 1_200_000, 5000), [7; 5000]);
    let free = pagewire_status(&writer.path().display().to_string());
    assert_eq!((free.length, free.unflushed_bytes, free.writable), (1_205_000, 0, true));
}

fn pagewire_status(path: &str) -> Status {
    let value = extended_attribute(path.as_ref(), "user.pagewire.status").unwrap().expect("a status");
    serde_json::from_slice(&value).unwrap()
}

#[test]
fn the_status_is_an_attribute_and_there_is_no_other() {
    let host = Host::of(&pattern(LENGTH, 2));
    let mount =
        host.mount("mounted", MountOptions { order: pagewire::PullOrder::None, ..Default::default() });
    let path = mount.path().display().to_string();
    assert_eq!(pagewire_status(&path), mount.status_of_file());
    assert_eq!(pagewire_status(&path).demand_reads, 0);
    read_at(&mount.open_to_read(), 5000, 10);
    let status = pagewire_status(&path);
    assert!(status.demand_bytes >= 4096 && status.demand_reads >= 1, "{status:?}");
    assert_eq!((status.length, status.path.as_str(), status.writable), (LENGTH as u64, "page-cache", false));
    assert_eq!(extended_attribute(path.as_ref(), "user.other").unwrap(), None);
}

#[test]
fn each_mode_of_fallocate_does_what_it_says_or_is_refused() {
    let capacity = 2 << 20;
    for options in [writable(), MountOptions { direct: true, ..writable() }] {
        let mut bytes = pattern(LENGTH, 3);
        let host = Host::new(&bytes, capacity);
        let mount = host.mount("mounted", options);
        let file = mount.open();
        let apply = |zero, keep_size, at, len| Allocate { zero, keep_size }.apply(file.as_fd(), at, len);
        punch_hole(file.as_fd(), 5000, 20_000).unwrap();
        bytes[5000..25_000].fill(0);
        apply(true, true, 100_000, 1).unwrap();
        bytes[100_000] = 0;
        // What is there stays, and so does the size.
        apply(false, true, 0, 1_500_000).unwrap();
        apply(true, true, 999_000, 100_000).unwrap();
        bytes[999_000..].fill(0);
        assert_eq!(file.metadata().unwrap().len(), LENGTH as u64);
        // The size grows.
        apply(false, false, 1_100_000, 50_000).unwrap();
        apply(true, false, 1_140_000, 60_000).unwrap();
        bytes.resize(1_200_000, 0);
        assert_eq!(file.metadata().unwrap().len(), 1_200_000);
        assert!(read_at(&file, 0, bytes.len()) == bytes);

        assert!(fails_with(apply(false, false, capacity - 10, 11), errno::ENOSPC));
        assert!(fails_with(apply(true, false, capacity, 1), errno::ENOSPC));
        let collapse = std::process::Command::new("fallocate")
            .args(["--collapse-range", "--offset", "0", "--length", "4096"])
            .arg(mount.path())
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&collapse.stderr).contains("not supported"), "{collapse:?}");
        assert!(read_at(&file, 0, bytes.len()) == bytes);
        file.sync_all().unwrap();
        assert!(host.bytes() == bytes);
    }
}

#[test]
fn a_file_grows_to_the_capacity_and_no_further() {
    let capacity = 1_300_000;
    let mut bytes = pattern(LENGTH, 4);
    let host = Host::new(&bytes, capacity);
    let mount = host.mount("mounted", writable());
    let file = mount.open();
    assert!(fails_with(file.set_len(capacity + 1), errno::ENOSPC));
    assert_eq!(file.metadata().unwrap().len(), LENGTH as u64);
    file.set_len(capacity).unwrap();
    bytes.resize(capacity as usize, 0);
    file.sync_all().unwrap();
    assert!(host.bytes() == bytes);

    // The kernel takes a write past it into its cache, and learns when it writes back.
    let written = file.write_all_at(&[9; 5000], capacity - 1000);
    let synced = file.sync_all();
    assert!(fails_with(written, errno::ENOSPC) || fails_with(synced, errno::ENOSPC), "nobody was told");
    // And it goes on with what fits.
    file.set_len(capacity - 5000).unwrap();
    file.write_all_at(&[8; 5000], capacity - 5000).unwrap();
    file.sync_all().unwrap();
    bytes[capacity as usize - 5000..].fill(8);
    assert!(host.bytes() == bytes);
    drop(file);
    // What the kernel could not write back is told once more, and is no obstacle then.
    let _told = mount.flush();
    mount.unmount();
}

#[test]
fn a_mount_to_read_cannot_be_written_to() {
    let bytes = pattern(LENGTH, 5);
    let host = Host::of(&bytes);
    for direct in [false, true] {
        let mount = host.mount("mounted", MountOptions { direct, ..MountOptions::default() });
        let path = mount.path();
        assert!(fails_with(std::fs::File::options().write(true).open(path), errno::EROFS));
        assert!(fails_with(std::fs::File::create(path), errno::EROFS));
        assert!(std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).is_err());
        assert!(std::fs::read(path).unwrap() == bytes);
        mount.unmount();
    }
}
