//! What runs in the guest, each as a part of a scenario.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire::ByteRange;
use pagewire::access::nbd::{Device, DeviceOptions, device_status};
use pagewire::engine::Region;
use pagewire::store::{Blocking, MemoryStore, Store};
use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;

/// The length of devices here.
const LENGTH: usize = 8 << 20;

/// The device and what is in it are those of the script.
#[test]
#[ignore = "runs in a guest, as a part of a scenario"]
fn a_device_is_mapped() {
    let device = OpenOptions::new().read(true).write(true).open("/dev/nbd0").unwrap();
    let mapping = FileMapping::new(device.as_fd(), LENGTH, Protection::ReadWrite).unwrap();
    let mut found = vec![0; LENGTH];
    mapping.copy_out(0, &mut found).unwrap();
    assert!(found == std::fs::read("disk").unwrap(), "the mapping shows another file");
    // Across pages, and to the last byte.
    for (at, byte) in [(4090, 1), (1 << 20, 2), (LENGTH - 5000, 3)] {
        let bytes = [byte; 5000];
        mapping.copy_in(at, &bytes).unwrap();
        found[at..at + 5000].copy_from_slice(&bytes);
    }
    mapping.sync(0, LENGTH).unwrap();
    // The server puts it in its place after the flush, from its journal.
    let deadline = Instant::now() + Duration::from_secs(20);
    while found != std::fs::read("disk").unwrap() {
        assert!(Instant::now() < deadline, "what was synced is not in the region");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "runs in a guest, as a part of a scenario"]
fn a_device_is_made_by_ioctl() {
    let store = Arc::new(MemoryStore::new(LENGTH as u64));
    let region = Region::new("memory", store.clone()).unwrap();
    let last = ByteRange::new(LENGTH as u64 - 8192, LENGTH as u64);
    for ioctl in [true, false, true] {
        let options = DeviceOptions { writable: true, connections: 2, ioctl, ..DeviceOptions::default() };
        let device = Device::make(&region, None, &options).unwrap();
        let status = device_status(device.path());
        // By ioctl it cannot be said whose it is.
        assert_eq!(status.is_some(), !ioctl, "{status:?}");
        let file = OpenOptions::new().read(true).write(true).open(device.path()).unwrap();
        let bytes = [7 + u8::from(ioctl); 8192];
        file.write_all_at(&bytes, last.start).unwrap();
        file.sync_all().unwrap();
        let found = store.read_bytes(last, store.info().epoch).unwrap();
        assert!(found == bytes, "what was synced is not in the region");
        drop(file);
        device.take_down(false).unwrap();
        assert_eq!(device_status(device.path()), None);
        drop(device);
        drop(region.writer("the next one").expect("the lease was given back"));
    }
}
