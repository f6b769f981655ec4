//! Holes of a mounted file: what is said to be one holds zeroes, whatever is on its way.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use pagewire::access::fuse::MountOptions;
use pagewire_sys::file::{data_extents, fadvise_dontneed, seek_data, seek_hole};

use crate::support::{Host, errno, fails_with, pattern, read_at, run, wait_until, writable};

const MIB: u64 = 1 << 20;

/// A file of zeroes with a piece of data in the middle.
fn sparse() -> Vec<u8> {
    let mut bytes = vec![0; 4 * MIB as usize];
    bytes[(2 * MIB) as usize..(2 * MIB + 100_000) as usize].copy_from_slice(&pattern(100_000, 1));
    bytes
}

#[test]
fn holes_are_found_once_it_is_known_that_they_are_some() {
    let bytes = sparse();
    let host = Host::of(&bytes);
    let mount = host.mount("mounted", MountOptions::default());
    let file = mount.open_to_read();
    assert!(read_at(&file, 0, bytes.len()) == bytes);
    let length = bytes.len() as u64;
    let data = seek_data(file.as_fd(), 0).unwrap().expect("there is data");
    assert!(data <= 2 * MIB && data > 0, "{data}");
    let hole = seek_hole(file.as_fd(), 2 * MIB).unwrap();
    assert!(hole >= 2 * MIB + 100_000 && hole < length, "{hole}");
    assert!(fails_with(seek_hole(file.as_fd(), length), errno::ENXIO));
    let extents = data_extents(file.as_fd(), 0..length).unwrap();
    assert!(extents.iter().all(|extent| extent.start < 2 * MIB + 200_000), "{extents:?}");
    let copy = host.place("copy");
    run("cp", &["--sparse=always", mount.path().to_str().unwrap(), copy.to_str().unwrap()]);
    assert!(std::fs::read(&copy).unwrap() == bytes);
}

/// What was written by a program is in no hole, written back or not.
#[test]
fn what_is_dirty_is_copied() {
    let host = Host::new(&vec![0; 4 * MIB as usize], 8 * MIB);
    let mount = host.mount("mounted", writable());
    let file = mount.open();
    // It is known to be zero, and then it is not.
    read_at(&file, 0, 4 * MIB as usize);
    let mut bytes = vec![0; 6 * MIB as usize];
    for (at, seed) in [(MIB, 1), (4 * MIB + 5000, 2), (6 * MIB - 70_000, 3)] {
        let piece = pattern(70_000, seed);
        file.write_all_at(&piece, at).unwrap();
        bytes[at as usize..at as usize + piece.len()].copy_from_slice(&piece);
    }
    let copy = host.place("copy");
    run("cp", &["--sparse=auto", mount.path().to_str().unwrap(), copy.to_str().unwrap()]);
    assert!(std::fs::read(&copy).unwrap() == bytes);
    assert_eq!(seek_data(file.as_fd(), 0).unwrap(), Some(0));
    assert_eq!(seek_hole(file.as_fd(), 0).unwrap(), bytes.len() as u64);
}

/// Readers bring answers of an older epoch, which has a hole, while the file moves on to one that has none.
#[test]
fn a_hole_of_an_older_epoch_is_none() {
    let host = Host::of(&sparse());
    let mount =
        host.mount("mounted", MountOptions { order: pagewire::PullOrder::None, ..Default::default() });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let file = mount.open_to_read();
                while !stop.load(Ordering::Relaxed) {
                    read_at(&file, 0, MIB as usize);
                    fadvise_dontneed(file.as_fd(), 0, 0).unwrap();
                }
            });
        }
        let file = mount.open_to_read();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..40u64 {
                let at = round % 16 * 65536;
                let epoch = host.write(4 * MIB, &[(at, &pattern(65536, round as u8))]);
                wait_until("the mount moves on", || mount.status_of_file().epoch == epoch);
                std::thread::sleep(std::time::Duration::from_millis(3));
                assert_eq!(seek_data(file.as_fd(), at).unwrap(), Some(at), "round {round}");
                host.write(4 * MIB, &[(at, &[0; 65536])]);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}
