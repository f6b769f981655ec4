//! Mounts that are read while the region changes: each file moves on to newer epochs, whole.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use pagewire::access::fuse::MountOptions;
use pagewire::{ChunkSize, PullOrder};

use crate::support::{Host, pattern, read_at, wait_until, writable};

/// The bytes of an epoch: the same everywhere, and of a length of its own.
fn bytes_of(epoch: u64) -> Vec<u8> {
    vec![epoch as u8 + 1; 300_000 + (epoch * 77_777 % 500_000) as usize]
}

#[test]
fn one_mount_writes_and_the_other_shows_each_epoch_whole() {
    for direct in [false, true] {
        let host = Host::new(&bytes_of(0), 1 << 20);
        let writer = host.mount("writer", MountOptions { atomic: true, ..writable() });
        let reader = host.mount("reader", MountOptions { direct, ..MountOptions::default() });
        let (to, from) = (writer.open(), reader.open_to_read());
        for epoch in 0..12 {
            let bytes = bytes_of(epoch);
            to.set_len(bytes.len() as u64).unwrap();
            to.write_all_at(&bytes, 0).unwrap();
            to.sync_all().unwrap();
            let newest = writer.status_of_file().epoch;
            wait_until("the reader has the epoch", || reader.status_of_file().epoch >= newest);
            // It says so a moment before it tells the kernel.
            wait_until("the reader shows the epoch", || {
                from.metadata().unwrap().len() == bytes.len() as u64
                    && std::fs::read(reader.path()).unwrap() == bytes
            });
        }
        // Nothing of an older one comes back.
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(std::fs::read(reader.path()).unwrap() == bytes_of(11));
    }
}

#[test]
fn what_is_read_at_one_epoch_is_of_that_epoch() {
    let host = Host::of(&[0; 400_000]);
    let writer = host.mount("writer", MountOptions { atomic: true, ..writable() });
    let reader = host.mount("reader", MountOptions::default());
    let stop = AtomicBool::new(false);
    let compared = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let file = reader.open_to_read();
            let mut compared = 0;
            while !stop.load(Ordering::Relaxed) {
                let before = reader.status_of_file().epoch;
                let (first, second) = (read_at(&file, 0, 400_000), read_at(&file, 0, 400_000));
                if first == second && reader.status_of_file().epoch == before {
                    // It may have moved on just before, and tell the kernel just now: then it is a mix of both.
                    let third = read_at(&file, 0, 400_000);
                    if third == first {
                        assert!(first == vec![first[0]; 400_000], "epoch {before} is a mix");
                        compared += 1;
                    }
                }
            }
            compared
        });
        let file = writer.open();
        for value in 1..=25u8 {
            file.write_all_at(&[value; 400_000], 0).unwrap();
            file.sync_all().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
        stop.store(true, Ordering::Relaxed);
        reading.join().unwrap()
    });
    assert!(compared > 10, "only {compared} reads could be compared");
    wait_until("the last epoch", || read_at(&reader.open_to_read(), 0, 400_000) == [25; 400_000]);
}

#[test]
fn only_what_has_changed_is_read_again() {
    let length = 4 << 20;
    let mut bytes = pattern(length, 1);
    let host = Host::of(&bytes);
    let options = MountOptions { order: PullOrder::None, ..MountOptions::default() };
    let reader = host.mount("reader", options);
    let file = reader.open_to_read();
    assert!(read_at(&file, 0, length) == bytes);
    let before = reader.status_of_file();
    host.write(length as u64, &[(1 << 20, &[7; 4096])]);
    bytes[1 << 20..(1 << 20) + 4096].fill(7);
    wait_until("the change is shown", || read_at(&file, 1 << 20, 4096) == [7; 4096]);
    assert!(read_at(&file, 0, length) == bytes);
    let after = reader.status_of_file();
    let again = after.demand_bytes - before.demand_bytes;
    assert!(again >= 4096 && again <= 2 * ChunkSize::DEFAULT.bytes(), "{again} bytes were read again");
}

#[test]
fn a_mount_that_stays_shows_what_it_showed() {
    let bytes = pattern(300_000, 1);
    let host = Host::of(&bytes);
    let reader = host.mount("reader", MountOptions { follow: false, ..MountOptions::default() });
    read_at(&reader.open_to_read(), 0, 10);
    host.write(300_000, &[(0, &[0; 300_000])]);
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(std::fs::read(reader.path()).unwrap() == bytes);
}

/// Readers that find their epoch gone before the file has moved on wait for that.
#[test]
fn a_reader_of_an_epoch_that_is_gone_gets_the_next_one() {
    let host = Host::with_images(&[1; 400_000], 400_000, 0);
    let options = MountOptions { direct: true, order: PullOrder::None, ..MountOptions::default() };
    let reader = host.mount("reader", options);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let file = reader.open_to_read();
                    let mut bytes = vec![0; 4096];
                    let mut reads = 0;
                    while !stop.load(Ordering::Relaxed) {
                        file.read_exact_at(&mut bytes, reads * 7919 % 300_000)
                            .unwrap_or_else(|error| panic!("read {reads}: {error}"));
                        reads += 1;
                    }
                })
            })
            .collect();
        for value in 2..40u8 {
            host.write(400_000, &[(0, &[value; 400_000])]);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
        let ended: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        ended.into_iter().for_each(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    });
    wait_until("the last epoch", || read_at(&reader.open_to_read(), 0, 10) == [39; 10]);
}

#[test]
fn many_threads_read_at_random_while_the_pull_runs() {
    let length = 8 << 20;
    let bytes = pattern(length, 6);
    let host = Host::of(&bytes);
    let reader = host.mount("reader", MountOptions::default());
    std::thread::scope(|scope| {
        for thread in 0..64usize {
            let (bytes, reader) = (&bytes, &reader);
            scope.spawn(move || {
                let file = reader.open_to_read();
                for step in 0..40usize {
                    let at = (thread * 7_654_321 + step * 1_234_567) % (length - 10_000);
                    assert!(read_at(&file, at as u64, 9999) == bytes[at..at + 9999], "at {at}");
                }
            });
        }
    });
    wait_until("all is there", || reader.status_of_file().cached_bytes == length as u64);
    let before = reader.status_of_file();
    assert!(before.background_bytes > 0);
    assert!(std::fs::read(reader.path()).unwrap() == bytes);
    assert_eq!(reader.status_of_file().demand_reads, before.demand_reads, "it is in the cache");
}
