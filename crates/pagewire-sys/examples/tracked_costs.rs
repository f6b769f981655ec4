//! What it costs to find 10,000 written pages in 1 GiB that is present: `cargo run --release --example tracked_costs`.

use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pagewire_sys::PAGE_SIZE;
use pagewire_sys::event::{EventFd, PollItem, poll};
use pagewire_sys::tracked::{TrackedMapping, Tracking};
use pagewire_sys::uffd::{Event, EventBuffer};

const LEN: usize = 1 << 30;
const WRITTEN: usize = 10_000;
const ROUNDS: usize = 15;

fn main() -> std::io::Result<()> {
    for tracking in [Tracking::Async, Tracking::Sync, Tracking::Hash] {
        let memory = TrackedMapping::new(LEN, Some(tracking), false)?;
        let block: Vec<u8> = (0..1usize << 20).map(|at| at as u8).collect();
        for offset in (0..LEN).step_by(block.len()) {
            memory.place(offset, &block)?;
        }
        let stop = EventFd::new()?;
        std::thread::scope(|scope| {
            scope.spawn(|| serve(&memory, &stop));
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| measure(&memory)));
            stop.signal()?;
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
    }
    Ok(())
}

fn measure(memory: &TrackedMapping) -> std::io::Result<()> {
    let (mut writes, mut counts, mut takes) = (vec![], vec![], vec![]);
    let (mut copies, mut loads) = (vec![], vec![]);
    let mut ranges = Vec::new();
    // The processor copies fastest between addresses that are aligned alike.
    let mut copy = vec![0; WRITTEN * PAGE_SIZE + PAGE_SIZE];
    let aligned = copy.as_ptr().addr().next_multiple_of(PAGE_SIZE) - copy.as_ptr().addr();
    let copy = &mut copy[aligned..][..WRITTEN * PAGE_SIZE];
    for round in 0..ROUNDS {
        let timed = Instant::now();
        for number in 0..WRITTEN {
            // Scattered: every 26th page and some.
            let page = (number * 26 + number % 7 + round) % (LEN / PAGE_SIZE);
            let word = memory.atomic_u64(page * PAGE_SIZE).expect("a word of the page");
            word.fetch_add(1, Ordering::Relaxed);
        }
        writes.push(timed.elapsed());

        let timed = Instant::now();
        let count = memory.count_written()?;
        counts.push(timed.elapsed());
        assert_eq!(count, WRITTEN * PAGE_SIZE);

        ranges.clear();
        let timed = Instant::now();
        memory.take_written(&mut ranges)?;
        takes.push(timed.elapsed());
        assert_eq!(ranges.iter().map(ExactSizeIterator::len).sum::<usize>(), count);

        let timed = Instant::now();
        memory.copy_out_ranges(&ranges, copy)?;
        copies.push(timed.elapsed());

        let timed = Instant::now();
        memory.load_ranges(&ranges, copy)?;
        loads.push(timed.elapsed());
    }
    println!(
        "{}: first write {:?} a page, look {:?}, take {:?}, copy out {:?} or {:?} ({} ranges)",
        memory.tracking(),
        median(writes) / WRITTEN as u32,
        median(counts),
        median(takes),
        median(copies),
        median(loads),
        ranges.len(),
    );
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Resolves write faults; nothing is absent.
fn serve(memory: &TrackedMapping, stop: &EventFd) {
    let mut buffer = EventBuffer::default();
    loop {
        let mut items = [PollItem::readable(memory.uffd().as_fd()), PollItem::readable(stop.as_fd())];
        poll(&mut items, None).expect("poll");
        if items[1].is_ready() {
            return;
        }
        for event in memory.uffd().read_events(&mut buffer).expect("events") {
            let Event::PageFault { address, .. } = event else { panic!("{event:?}") };
            memory.write_fault(*address as usize - memory.mapping().address()).expect("write fault");
        }
    }
}
