// One range of pages is what many of these tests compare with.
#![allow(clippy::single_range_in_vec_init)]

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pagewire_sys::PAGE_SIZE;
use pagewire_sys::tracked::{TrackedMapping, Tracking};

use crate::support::{OnDrop, pages, serving, skipped};

/// Does `test` with memory of that many pages, for each kind of tracking, while faults are served with pages
/// of 99.
fn each(count: usize, test: impl Fn(&TrackedMapping)) {
    if skipped("userfaultfd") {
        return;
    }
    for tracking in [Tracking::Async, Tracking::Sync, Tracking::Hash] {
        eprintln!("by {tracking}");
        let memory = TrackedMapping::new(count * PAGE_SIZE, Some(tracking), false).unwrap();
        assert_eq!(memory.tracking(), tracking);
        serving(&memory, |_| vec![99; PAGE_SIZE], || test(&memory));
    }
}

/// Takes, as page numbers.
fn take(memory: &TrackedMapping) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    memory.take_written(&mut ranges).unwrap();
    ranges.iter().map(|range| range.start / PAGE_SIZE..range.end / PAGE_SIZE).collect()
}

/// A program's store.
fn write(memory: &TrackedMapping, offset: usize, byte: u8) {
    assert!(offset < memory.mapping().len());
    // SAFETY: the byte is mapped for writing, and the tests write each byte from one thread.
    unsafe { memory.as_mut_ptr().add(offset).write_volatile(byte) };
}

/// A program's load.
fn read(memory: &TrackedMapping, offset: usize) -> u8 {
    assert!(offset < memory.mapping().len());
    // SAFETY: as for `write`.
    unsafe { memory.as_mut_ptr().add(offset).read_volatile() }
}

/// Repeatable numbers below `bound`.
fn numbers(seed: u64, bound: usize) -> impl Iterator<Item = usize> {
    let mut state = seed;
    std::iter::from_fn(move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        Some((state >> 33) as usize % bound)
    })
}

#[test]
fn the_best_tracking_is_what_none_in_particular_means() {
    if skipped("userfaultfd") {
        return;
    }
    let best = Tracking::best().unwrap();
    let memory = TrackedMapping::new(1, None, false).unwrap();
    assert_eq!(memory.tracking(), best);
    assert_eq!((memory.len(), memory.mapping().len()), (1, PAGE_SIZE));
    assert_eq!(Tracking::Sync.to_string(), "write-protect faults");
}

#[test]
fn placed_pages_are_clean_and_writes_are_found() {
    each(8, |memory| {
        assert_eq!(memory.place(0, &pages(1, 6)).unwrap(), 6 * PAGE_SIZE);
        assert_eq!(take(memory), []);
        assert_eq!(read(memory, 5 * PAGE_SIZE), 6);
        assert_eq!(take(memory), [], "a read is no write");

        write(memory, 2 * PAGE_SIZE - 1, 7);
        memory.copy_in(2 * PAGE_SIZE, &[101]).unwrap();
        memory.atomic_u64(4 * PAGE_SIZE + 8).unwrap().store(5, Ordering::Relaxed);
        assert_eq!(memory.count_written().unwrap(), 3 * PAGE_SIZE);
        assert_eq!(take(memory), [1..3, 4..5], "a look alone arms nothing");
        assert_eq!((take(memory), memory.count_written().unwrap()), (vec![], 0));

        write(memory, 2 * PAGE_SIZE, 102);
        assert_eq!(take(memory), [2..3], "armed again");
        let mut out = vec![3..4];
        write(memory, 0, 0);
        memory.take_written(&mut out).unwrap();
        assert_eq!(out, [3..4, 0..PAGE_SIZE], "appended");
    });
}

#[test]
fn a_page_that_is_written_as_it_arrives_is_found() {
    each(4, |memory| {
        // The first page is placed for a write that waits for it.
        write(memory, 1, 1);
        assert_eq!(take(memory), [0..1]);
        memory.place(2 * PAGE_SIZE, &pages(5, 1)).unwrap();
        write(memory, 2 * PAGE_SIZE, 1);
        assert_eq!(take(memory), [2..3]);
        assert_eq!((read(memory, 0), read(memory, 1), read(memory, 2 * PAGE_SIZE)), (99, 1, 1));
    });
}

#[test]
fn zero_pages_are_clean_until_written() {
    each(130, |memory| {
        assert_eq!(memory.place_zero(0, 129 * PAGE_SIZE).unwrap(), 129 * PAGE_SIZE);
        assert_eq!(memory.place_zero(128 * PAGE_SIZE, 2 * PAGE_SIZE).unwrap(), PAGE_SIZE);
        assert_eq!(read(memory, 2 * PAGE_SIZE), 0);
        assert_eq!((take(memory), memory.count_written().unwrap()), (vec![], 0));
        for round in 1..4 {
            write(memory, 128 * PAGE_SIZE + 9, round);
            write(memory, 2 * PAGE_SIZE, round);
            assert_eq!(take(memory), [2..3, 128..129]);
            assert_eq!(take(memory), []);
        }
    });
}

#[test]
fn present_pages_are_left_as_they_are() {
    each(6, |memory| {
        memory.place(2 * PAGE_SIZE, &pages(50, 1)).unwrap();
        write(memory, 2 * PAGE_SIZE, 51);
        memory.place_zero(4 * PAGE_SIZE, PAGE_SIZE).unwrap();
        assert_eq!(memory.place(0, &pages(1, 6)).unwrap(), 4 * PAGE_SIZE);
        assert_eq!(memory.place_zero(0, 6 * PAGE_SIZE).unwrap(), 0);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|page| read(memory, page * PAGE_SIZE)), [1, 2, 51, 4, 0, 6]);
        assert_eq!(take(memory), [2..3]);
    });
}

#[test]
fn what_is_found_is_exact_to_the_page() {
    const COUNT: usize = 1000;
    each(COUNT, |memory| {
        memory.place_zero(0, 100 * PAGE_SIZE).unwrap();
        memory.place(100 * PAGE_SIZE, &pages(0, COUNT - 200)).unwrap();
        let mut random = numbers(1, (COUNT - 100) * PAGE_SIZE);
        for round in 0..8 {
            let mut expected = BTreeSet::new();
            for _ in 0..1 << round {
                let offset = random.next().unwrap();
                write(memory, offset, read(memory, offset).wrapping_add(1));
                expected.insert(offset / PAGE_SIZE);
            }
            let ranges = take(memory);
            assert!(
                ranges.windows(2).all(|pair| pair[0].end < pair[1].start),
                "merged, in order: {ranges:?}"
            );
            assert_eq!(ranges.into_iter().flatten().collect::<BTreeSet<_>>(), expected);
        }
    });
}

#[test]
fn a_write_between_take_and_copy_is_not_lost_even_when_it_is_taken_back() {
    each(2, |memory| {
        memory.place(0, &pages(1, 1)).unwrap();
        write(memory, 0, 2);
        assert_eq!(take(memory), [0..1]);
        write(memory, 0, 3);
        let mut store = [0; PAGE_SIZE];
        memory.copy_out_ranges(&[0..PAGE_SIZE], &mut store).unwrap();
        assert_eq!(store[0], 3);
        write(memory, 0, 2);
        assert_eq!(take(memory), [0..1], "the store has a 3");
        memory.copy_out(0, &mut store).unwrap();
        assert_eq!((store[0], take(memory)), (2, vec![]));
    });
}

#[test]
fn what_is_collected_from_under_a_writer_is_its_memory_in_the_end() {
    const COUNT: usize = 150;
    each(COUNT, |memory| {
        let mut store: Vec<u8> = pages(0, COUNT);
        memory.place(0, &store).unwrap();
        let stop = AtomicBool::new(false);
        let collect = |store: &mut [u8]| {
            let mut ranges = Vec::new();
            memory.take_written(&mut ranges).unwrap();
            let mut copy = vec![0; ranges.iter().map(ExactSizeIterator::len).sum()];
            memory.copy_out_ranges(&ranges, &mut copy).unwrap();
            let mut rest = &copy[..];
            for range in &ranges {
                store[range.clone()].copy_from_slice(rest.split_off(..range.len()).unwrap());
            }
            ranges.len()
        };
        std::thread::scope(|scope| {
            let stopped = OnDrop(|| stop.store(true, Ordering::Relaxed));
            let writer = scope.spawn(|| {
                let mut random = numbers(7, COUNT * PAGE_SIZE / 8);
                let mut writes = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let word = random.next().unwrap() * 8;
                    let lock = memory.atomic_u64(word / PAGE_SIZE * PAGE_SIZE).unwrap();
                    // A lock that is taken and given back: its page is often what it was.
                    let free = lock.swap(u64::MAX, Ordering::Relaxed);
                    if writes.is_multiple_of(3) && !word.is_multiple_of(PAGE_SIZE) {
                        memory.atomic_u64(word).unwrap().store(writes, Ordering::Relaxed);
                    }
                    lock.store(free, Ordering::Relaxed);
                    writes += 1;
                }
                writes
            });
            // So many takes that found something, which takes a blink unless nothing is found.
            let deadline = Instant::now() + Duration::from_secs(10);
            let mut takes = 0;
            while takes < 40 {
                assert!(Instant::now() < deadline, "{takes} takes found something");
                takes += usize::from(collect(&mut store) > 0);
            }
            drop(stopped);
            assert!(writer.join().unwrap() > 0);
        });
        while collect(&mut store) > 0 {}
        let mut end = vec![0; COUNT * PAGE_SIZE];
        memory.mapping().copy_out(0, &mut end).unwrap();
        let differ: Vec<_> = (0..COUNT)
            .filter(|page| end[page * PAGE_SIZE..][..PAGE_SIZE] != store[page * PAGE_SIZE..][..PAGE_SIZE])
            .collect();
        assert_eq!(differ, [0; 0], "pages whose last write was lost");
    });
}

#[test]
fn what_is_copied_in_while_it_is_collected_is_not_lost() {
    const COUNT: usize = 8;
    each(COUNT, |memory| {
        let mut store = vec![1; COUNT * PAGE_SIZE];
        memory.place(0, &store).unwrap();
        let stop = AtomicBool::new(false);
        let collect = |store: &mut [u8]| {
            let mut ranges = Vec::new();
            memory.take_written(&mut ranges).unwrap();
            for range in &ranges {
                memory.copy_out(range.start, &mut store[range.clone()]).unwrap();
            }
            ranges.len()
        };
        // Each round ends with a last copy and a last take, so that nothing later makes good what was lost.
        for round in 0..300 {
            std::thread::scope(|scope| {
                let stopped = OnDrop(|| stop.store(true, Ordering::Relaxed));
                let writer = scope.spawn(|| {
                    for step in 0..20 {
                        let byte = (round * 20 + step) as u8;
                        memory.copy_in(100, &vec![byte; COUNT * PAGE_SIZE - 200]).unwrap();
                    }
                    stop.store(true, Ordering::Relaxed);
                });
                while !stop.load(Ordering::Relaxed) {
                    collect(&mut store);
                }
                writer.join().unwrap();
                drop(stopped);
            });
            stop.store(false, Ordering::Relaxed);
            collect(&mut store);
            assert_eq!(collect(&mut store), 0, "round {round}: nothing is reported twice");
            let mut end = vec![0; COUNT * PAGE_SIZE];
            memory.mapping().copy_out(0, &mut end).unwrap();
            assert!(end == store, "round {round}: a copy was lost");
        }
    });
}

#[test]
fn discarded_pages_are_absent_and_clean() {
    each(70, |memory| {
        memory.place(0, &pages(1, 70)).unwrap();
        write(memory, 63 * PAGE_SIZE, 9);
        write(memory, 64 * PAGE_SIZE, 9);
        write(memory, 66 * PAGE_SIZE, 9);
        memory.discard(62 * PAGE_SIZE, 3 * PAGE_SIZE).unwrap();
        assert_eq!(memory.count_written().unwrap(), PAGE_SIZE);
        assert_eq!(take(memory), [66..67]);
        assert_eq!(read(memory, 62 * PAGE_SIZE), 99, "it faulted anew");
        assert_eq!(
            memory.place_zero(61 * PAGE_SIZE, 3 * PAGE_SIZE).unwrap(),
            PAGE_SIZE,
            "page 63 was absent"
        );
        assert_eq!(take(memory), []);
        write(memory, 63 * PAGE_SIZE, 9);
        write(memory, 64 * PAGE_SIZE, 10);
        assert_eq!((read(memory, 64 * PAGE_SIZE), read(memory, 64 * PAGE_SIZE + 1)), (10, 99));
        assert_eq!(take(memory), [63..65]);

        // An absent page between two written ones is not armed with them: it can be poisoned and placed.
        memory.discard(PAGE_SIZE, PAGE_SIZE).unwrap();
        write(memory, 0, 10);
        write(memory, 2 * PAGE_SIZE, 10);
        assert_eq!(take(memory), [0..1, 2..3]);
        memory.poison(PAGE_SIZE, PAGE_SIZE).unwrap();
        assert_eq!(memory.copy_out(PAGE_SIZE, &mut [0]).unwrap_err().raw_os_error(), Some(libc::EFAULT));
        assert_eq!(memory.place(0, &pages(1, 2)).unwrap(), PAGE_SIZE);
        assert_eq!((read(memory, PAGE_SIZE), take(memory)), (2, vec![]));
    });
}

#[test]
fn a_late_write_fault_of_a_discarded_page_notes_nothing() {
    if skipped("userfaultfd") {
        return;
    }
    let memory = TrackedMapping::new(PAGE_SIZE, Some(Tracking::Sync), false).unwrap();
    memory.place(0, &pages(1, 1)).unwrap();
    memory.discard(0, PAGE_SIZE).unwrap();
    memory.write_fault(5).unwrap();
    assert_eq!(take(&memory), []);
    for other in [Tracking::Async, Tracking::Hash] {
        assert!(TrackedMapping::new(PAGE_SIZE, Some(other), false).unwrap().write_fault(0).is_err());
    }
}

#[test]
fn forgotten_writes_are_not_reported() {
    each(70, |memory| {
        memory.place(0, &pages(1, 70)).unwrap();
        for page in [0, 1, 65] {
            write(memory, page * PAGE_SIZE, 200);
        }
        memory.forget(PAGE_SIZE, 69 * PAGE_SIZE).unwrap();
        assert_eq!(take(memory), [0..1]);
        write(memory, PAGE_SIZE, 201);
        write(memory, 65 * PAGE_SIZE, 201);
        assert_eq!(take(memory), [1..2, 65..66]);
    });
}

#[test]
fn poison_is_an_error_of_copies_until_it_is_healed() {
    each(4, |memory| {
        let by_hash = memory.tracking() == Tracking::Hash;
        memory.place(0, &pages(1, 1)).unwrap();
        write(memory, 0, 1);
        memory.poison(0, 4 * PAGE_SIZE).unwrap();
        assert_eq!(take(memory), if by_hash { vec![] } else { vec![0..1] }, "of poison nothing was written");
        let mut buffer = [0; 2 * PAGE_SIZE];
        let error = memory.copy_out_ranges(&[0..1, PAGE_SIZE..PAGE_SIZE + 1], &mut buffer[..2]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        assert_eq!(take(memory), []);
        assert_eq!(memory.place_zero(2 * PAGE_SIZE, PAGE_SIZE).unwrap(), PAGE_SIZE);
        memory.discard(3 * PAGE_SIZE, PAGE_SIZE).unwrap();
        assert_eq!([2, 3].map(|page| read(memory, page * PAGE_SIZE)), [0, 99]);
        memory.discard(0, PAGE_SIZE).unwrap();
        assert_eq!(memory.place(0, &pages(7, 2)).unwrap(), 2 * PAGE_SIZE);
        memory.copy_out(0, &mut buffer).unwrap();
        assert_eq!((buffer[0], buffer[PAGE_SIZE], take(memory)), (7, 8, vec![]));
        write(memory, PAGE_SIZE, 0);
        assert_eq!(take(memory), [1..2]);
    });
}

#[test]
fn many_ranges_are_copied_one_after_the_other() {
    const COUNT: usize = 700;
    each(COUNT, |memory| {
        let content: Vec<u8> = numbers(3, 256).take(COUNT * PAGE_SIZE).map(|byte| byte as u8).collect();
        memory.place(0, &content).unwrap();
        let mut ends = numbers(4, 900);
        let starts = numbers(5, COUNT * PAGE_SIZE - 900);
        let mut ranges: Vec<_> = starts.take(3000).map(|start| start..start + ends.next().unwrap()).collect();
        ranges[1023] = 5..5;
        ranges[2047] = 0..COUNT * PAGE_SIZE;
        let expected: Vec<u8> = ranges.iter().flat_map(|range| &content[range.clone()]).copied().collect();
        let mut buffer = vec![0; expected.len()];
        memory.copy_out_ranges(&ranges, &mut buffer).unwrap();
        assert!(buffer == expected);
        memory.copy_out_ranges(&[], &mut []).unwrap();
        assert!(memory.copy_out_ranges(&ranges, &mut buffer[1..]).is_err());
        let outside = COUNT * PAGE_SIZE - 1..COUNT * PAGE_SIZE + 1;
        assert!(memory.copy_out_ranges(&[outside], &mut buffer[..2]).is_err());
        assert_eq!(take(memory), []);
    });
}

#[test]
fn what_is_read_from_a_file_into_the_memory_is_written() {
    each(8, |memory| {
        memory.place(0, &[1; 8 * PAGE_SIZE]).unwrap();
        assert_eq!(take(memory), []);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 3 * PAGE_SIZE]).unwrap();
        let read = memory.read_from(file.as_fd(), 10, 2 * PAGE_SIZE + 5, 100).unwrap();
        assert_eq!((read, take(memory)), (100, vec![2..3]));
        let read =
            memory.read_from(file.as_fd(), 2 * PAGE_SIZE as u64, 5 * PAGE_SIZE, 3 * PAGE_SIZE).unwrap();
        assert_eq!((read, take(memory)), (PAGE_SIZE, vec![5..6]), "the file ends");
        let mut bytes = vec![0; 8 * PAGE_SIZE];
        memory.copy_out(0, &mut bytes).unwrap();
        let mut model = vec![1; 8 * PAGE_SIZE];
        model[2 * PAGE_SIZE + 5..][..100].fill(7);
        model[5 * PAGE_SIZE..6 * PAGE_SIZE].fill(7);
        assert!(bytes == model);
        assert!(memory.read_from(file.as_fd(), 0, 8 * PAGE_SIZE - 1, 2).is_err(), "outside of the mapping");
    });
}

#[test]
fn ranges_are_of_whole_pages_and_the_last_may_be_short() {
    if skipped("userfaultfd") {
        return;
    }
    for tracking in [Tracking::Async, Tracking::Sync, Tracking::Hash] {
        let memory = TrackedMapping::new(2 * PAGE_SIZE + 10, Some(tracking), false).unwrap();
        serving(
            &memory,
            |_| vec![99; PAGE_SIZE],
            || {
                assert_eq!(memory.place(2 * PAGE_SIZE, &[4; 10]).unwrap(), PAGE_SIZE);
                assert_eq!((read(&memory, 2 * PAGE_SIZE + 9), read(&memory, 2 * PAGE_SIZE + 10)), (4, 0));
                assert_eq!(memory.place_zero(0, memory.len()).unwrap(), 2 * PAGE_SIZE);
                write(&memory, memory.len() - 1, 5);
                assert_eq!(take(&memory), [2..3]);
                memory.discard(PAGE_SIZE, PAGE_SIZE + 10).unwrap();
                assert_eq!(memory.place(PAGE_SIZE, &[6; PAGE_SIZE + 10]).unwrap(), 2 * PAGE_SIZE);
                memory.wake(0, memory.len()).unwrap();
            },
        );
        for (offset, len) in
            [(1, PAGE_SIZE), (0, 10), (0, 4 * PAGE_SIZE), (4 * PAGE_SIZE, 0), (PAGE_SIZE, usize::MAX)]
        {
            assert!(memory.place_zero(offset, len).is_err(), "{offset} {len}");
            assert!(memory.discard(offset, len).is_err() && memory.forget(offset, len).is_err());
        }
        assert!(memory.write_fault(3 * PAGE_SIZE).is_err());
    }
    let empty = TrackedMapping::new(0, None, false).unwrap();
    assert!(empty.is_empty() && empty.place(0, &[]).unwrap() == 0 && empty.atomic_u8(0).is_none());
    assert_eq!(take(&empty), []);
}

#[test]
fn atomics_are_aligned_inside_and_of_one_width() {
    each(2, |memory| {
        memory.place(0, &pages(1, 2)).unwrap();
        assert_eq!(memory.atomic_u32(8).unwrap().fetch_add(1, Ordering::Relaxed), 0x01010101);
        assert_eq!(memory.atomic_u8(16).unwrap().load(Ordering::Relaxed), 1);
        assert_eq!(memory.atomic_u16(PAGE_SIZE).unwrap().load(Ordering::Relaxed), 0x0202);
        assert!(memory.atomic_u32(12).is_some());
        assert!(memory.atomic_u64(8).is_none() && memory.atomic_u8(15).is_none(), "it is of 32 bits");
        assert!(memory.atomic_u64(28).is_none() && memory.atomic_u16(101).is_none(), "misaligned");
        assert!(memory.atomic_u64(2 * PAGE_SIZE).is_none() && memory.atomic_u8(usize::MAX).is_none());
        assert_eq!(take(memory), [0..1]);
    });
}

#[test]
fn for_user_mode_only_the_program_is_served_and_system_calls_are_not() {
    if skipped("userfaultfd") {
        return;
    }
    for tracking in [Tracking::Async, Tracking::Sync, Tracking::Hash] {
        let memory = TrackedMapping::new(3 * PAGE_SIZE, Some(tracking), true).unwrap();
        serving(
            &memory,
            |_| vec![99; PAGE_SIZE],
            || {
                let fault =
                    |result: std::io::Result<()>| result.unwrap_err().raw_os_error() == Some(libc::EFAULT);
                assert!(fault(memory.copy_out(0, &mut [0])) && fault(memory.copy_in(0, &[1])));
                assert_eq!(read(&memory, PAGE_SIZE), 99);
                if tracking == Tracking::Sync {
                    assert!(fault(memory.copy_in(PAGE_SIZE, &[1])));
                }
                write(&memory, PAGE_SIZE, 1);
                memory.copy_in(PAGE_SIZE + 1, &[2]).unwrap();
                assert_eq!(take(&memory), [1..2]);
            },
        );
    }
}
