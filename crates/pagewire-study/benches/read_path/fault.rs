//! Single faults: on a mapping that does nothing else, and on one that is being pulled.

use std::collections::HashSet;
use std::hint::black_box;
use std::time::{Duration, Instant};

use pagewire::PullOrder;
use pagewire::access::uffd::Mapping;
use pagewire::address::StoreAddress;
use pagewire::store::RemoteOptions;
use pagewire_study::limits::{self, FaultLimit};
use pagewire_study::scatter::{scattered, split_mix};
use pagewire_study::server::ServerProcess;

use crate::setup::{SETTLE, Setup, map_options};
use pagewire_study::bench::{Failure, Row, Target};

/// Faults of a round.
const FAULTS: usize = 5000;

/// The chunk of the row that counts.
const CHUNK: u64 = 64 << 10;

/// A touch that takes longer has waited: one of a byte that is there takes well under one.
const WAITED: Duration = Duration::from_micros(5);

/// A pull at full speed that brings nothing for so long has stopped.
const STALLED: Duration = Duration::from_secs(10);

/// What the background pull may have on its way: faults stay ahead of it by so much.
const AHEAD: u64 = 24 << 20;

pub(crate) fn run(setup: &Setup) -> Result<Vec<Row>, Failure> {
    let server = ServerProcess::start(setup.path(), std::net::Ipv4Addr::LOCALHOST, None)?;
    let region = server.region()?;
    let mut rows = Vec::new();
    for (name, chunk) in [("fault-4k", 4096), ("fault-64k", CHUNK)] {
        if setup.wants(&[name, &format!("{name}-p99")]) {
            let mut p50 = Row::new(name, "us", "bare calls", Target::AtMost(1.4));
            let mut p99 = Row::new(format!("{name}-p99"), "us", "bare calls", Target::None);
            for _ in 0..setup.options.rounds {
                let ours = idle(&region, chunk)?;
                let limit = limits::fault(setup.path(), FAULTS, chunk as usize)?;
                p50.push(micros(ours.p50), micros(limit.p50));
                p99.push(micros(ours.p99), micros(limit.p99));
            }
            rows.extend([p50, p99]);
        }
    }
    if setup.wants(&["fault-busy", "fault-busy-max"]) {
        let mut median = Row::new("fault-busy", "us", "fault-64k", Target::AtMost(3.0));
        let mut max = Row::new("fault-busy-max", "ms", "allowed", Target::AlwaysAtMost(1.0));
        for round in 0..setup.options.rounds {
            let quiet = idle(&region, CHUNK)?;
            let mut times = busy(&region, round as u64)?;
            times.sort_unstable();
            let longest = times.last().ok_or("no fault while the region was pulled: it is too small")?;
            median.push(micros(times[times.len() / 2]), micros(quiet.p50));
            max.push(micros(*longest) / 1000.0, 50.0);
        }
        rows.extend([median, max]);
    }
    Ok(rows)
}

/// Faults one at a time, at the offsets of the baseline.
fn idle(region: &StoreAddress, chunk: u64) -> Result<FaultLimit, Failure> {
    let options = map_options(PullOrder::None, chunk)?;
    let mapping = Mapping::open_with(region, &options, &RemoteOptions::default())?;
    std::thread::sleep(SETTLE);
    let places = scattered(mapping.len() as u64 / chunk).take(FAULTS);
    let times: Vec<Duration> = places.map(|place| touch(&mapping, place * chunk)).collect();
    let progress = mapping.progress();
    if progress.demand_reads != times.len() as u64 {
        let text = format!("{} touches made {} reads", times.len(), progress.demand_reads);
        return Err(text.into());
    }
    FaultLimit::of(times).ok_or_else(|| "the region is too small to fault on".into())
}

/// Faults at random places ahead of a pull at full speed.
fn busy(region: &StoreAddress, seed: u64) -> Result<Vec<Duration>, Failure> {
    let options = map_options(PullOrder::Sequential, CHUNK)?;
    let mapping = Mapping::open_with(region, &options, &RemoteOptions::default())?;
    let length = mapping.len() as u64;
    let (mut state, mut touched, mut times) = (seed, HashSet::new(), Vec::new());
    let (mut brought, mut moved) = (0, Instant::now());
    loop {
        let before = mapping.progress();
        // In order, so about so much of the beginning is there; behind that is what was touched.
        let from = before.background_bytes + AHEAD.min(length / 8);
        if from >= length || before.is_complete() {
            return Ok(times);
        }
        if before.background_bytes > brought {
            (brought, moved) = (before.background_bytes, Instant::now());
        } else if moved.elapsed() > STALLED {
            return Err(format!("the background pull stands still: {before:?}").into());
        }
        let place = from / CHUNK + split_mix(&mut state) % ((length - from) / CHUNK).max(1);
        if !touched.insert(place) {
            // Few are left; a loop that only looks for one would take the processor from the pull.
            std::thread::yield_now();
            continue;
        }
        let time = touch(&mapping, place * CHUNK);
        if mapping.progress().faults > before.faults || time > WAITED {
            times.push(time);
        }
    }
}

fn touch(mapping: &Mapping, offset: u64) -> Duration {
    let start = Instant::now();
    black_box(mapping[offset as usize]);
    start.elapsed()
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
