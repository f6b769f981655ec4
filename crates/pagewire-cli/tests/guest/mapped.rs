//! What runs in the guest: a device is mapped, as a program would map it.

use std::fs::OpenOptions;
use std::os::fd::AsFd;

use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;

/// The device, its length, and what is in it are those of the script.
#[test]
#[ignore = "runs in a guest, as a part of a scenario"]
fn a_device_is_mapped() {
    const LENGTH: usize = 8 << 20;
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
    assert!(found == std::fs::read("disk").unwrap(), "what was synced is not in the region");
}
