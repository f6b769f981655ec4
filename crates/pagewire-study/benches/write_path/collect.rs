//! Finding the changes of a mapping that is wholly there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pagewire_study::bench::{Failure, Options, Row, Target};
use pagewire_study::scatter::{fill, split_mix};
use pagewire_sys::PAGE_SIZE;
use pagewire_sys::tracked::{TrackedMapping, Tracking};

use crate::{DIRTY, dirty_pages};

/// How often changes are collected while a program writes.
const INTERVAL: Duration = Duration::from_millis(100);

/// How many pages a second the paced program writes, and for how long.
const PACE: u64 = 25_000;
const PACED_FOR: Duration = Duration::from_secs(2);

/// How many pages the program writes that goes as fast as it can.
const UNPACED: u64 = 2_000_000;

pub(crate) fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    if options.wants("collect") || options.wants("collect-vs-hash") {
        rows.extend(collect(options)?);
    }
    if options.wants("write-paced") || options.wants("write-unpaced") {
        rows.extend(slowdown(options)?);
    }
    Ok(rows)
}

/// Memory all of which is there, and clean.
fn filled(size: u64, tracking: Tracking) -> Result<TrackedMapping, Failure> {
    let memory = TrackedMapping::new(size as usize, Some(tracking), false)?;
    let mut state = 1;
    let mut piece = vec![0; 1 << 20];
    for at in (0..size as usize).step_by(piece.len()) {
        fill(&mut state, &mut piece);
        memory.place(at, &piece[..piece.len().min(size as usize - at)])?;
    }
    Ok(memory)
}

fn touch(memory: &TrackedMapping, page: u64, value: u64) -> Result<(), Failure> {
    let cell = memory.atomic_u64(page as usize * PAGE_SIZE).ok_or("a page outside of the memory")?;
    cell.store(value, Ordering::Relaxed);
    Ok(())
}

fn collect(options: &Options) -> Result<Vec<Row>, Failure> {
    let mut time = Row::new("collect", "ms", "2 ms", Target::AtMost(1.0));
    let mut hashed = Row::new("collect-vs-hash", "ms", "xxh3", Target::AtMost(0.02));
    let (tracked, hashes) = (filled(options.size, Tracking::Async)?, filled(options.size, Tracking::Hash)?);
    let pages = dirty_pages(options.size, DIRTY);
    let mut written = Vec::new();
    // The first time, room is made for the answer.
    for round in 0..=options.rounds {
        let mut took = [Duration::ZERO; 2];
        for (memory, took) in [&tracked, &hashes].into_iter().zip(&mut took) {
            for &page in &pages {
                touch(memory, page, round as u64)?;
            }
            written.clear();
            let start = Instant::now();
            memory.take_written(&mut written)?;
            *took = start.elapsed();
            let found: usize = written.iter().map(|range| range.len()).sum();
            if found != pages.len() * PAGE_SIZE {
                return Err(format!("{found} bytes were found of {} pages", pages.len()).into());
            }
        }
        let [ours, theirs] = took.map(|took| took.as_secs_f64() * 1000.0);
        if round > 0 {
            time.push(ours, 2.0);
            hashed.push(ours, theirs);
        }
    }
    Ok(vec![time, hashed])
}

/// Runs `program` while changes are collected or not.
fn tracked(memory: &TrackedMapping, track: bool, program: impl FnOnce() -> Duration) -> Duration {
    let stop = AtomicBool::new(!track);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut written = Vec::new();
            while !stop.load(Ordering::Acquire) {
                written.clear();
                memory.take_written(&mut written).expect("the kernel tracks this memory");
                std::thread::park_timeout(INTERVAL);
            }
        });
        let took = program();
        stop.store(true, Ordering::Release);
        collector.thread().unpark();
        took
    })
}

/// Writes pages at a pace, a millisecond's worth at a time.
fn paced(memory: &TrackedMapping, pages: u64) -> Duration {
    let mut state = 7;
    let start = Instant::now();
    for tick in 0..PACED_FOR.as_millis() as u32 {
        for _ in 0..PACE / 1000 {
            let page = split_mix(&mut state) % pages;
            touch(memory, page, state).expect("a page of the memory");
        }
        let due = start + Duration::from_millis(1) * (tick + 1);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    start.elapsed()
}

fn unpaced(memory: &TrackedMapping, pages: u64) -> Duration {
    let mut state = 7;
    let start = Instant::now();
    for _ in 0..UNPACED {
        let page = split_mix(&mut state) % pages;
        touch(memory, page, state).expect("a page of the memory");
    }
    start.elapsed()
}

fn slowdown(options: &Options) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let memory = filled(options.size, Tracking::Async)?;
    let pages = options.size / PAGE_SIZE as u64;
    type Program = fn(&TrackedMapping, u64) -> Duration;
    let programs: [(&str, Program, Target); 2] =
        [("write-paced", paced, Target::AtMost(1.3)), ("write-unpaced", unpaced, Target::None)];
    for (name, program, target) in programs {
        if !options.wants(name) {
            continue;
        }
        let mut row = Row::new(name, "s", "untracked", target);
        // Every page was written once before the first round, so that both ways find it the same.
        tracked(&memory, false, || unpaced(&memory, pages));
        for _ in 0..options.rounds {
            let ours = tracked(&memory, true, || program(&memory, pages));
            // What was armed last costs the next to write it a fault: that is not the baseline's.
            tracked(&memory, false, || unpaced(&memory, pages));
            let baseline = tracked(&memory, false, || program(&memory, pages));
            row.push(ours.as_secs_f64(), baseline.as_secs_f64());
        }
        rows.push(row);
    }
    Ok(rows)
}
