//! Moving an application while it runs: how long it stands still, and what moves.
//!
//! `cargo bench -p pagewire-study --bench migrate [-- FILTER...] [--size 1GiB] [--rounds 5] [--json]`
//!
//! The application is a process of its own. It writes 100 MB/s to 64 MiB of its memory, unless a row says otherwise; it is moved
//! into this process. The time for which it stands still is taken by the clock of the host: from when it is asked to stop until its
//! first write here. Over loopback four times as many runs are made as there are rounds.
//!
//! - `downtime`, `downtime-worst`: over loopback, in the median and at worst; against 5 and 15 ms.
//! - `bytes`: what is moved, against the region.
//! - `slowdown`: how fast the application writes while nothing is moved, against while it is.
//! - `post-copy`: from the beginning until it runs here, and has written, over loopback; against 10 ms.
//! - `wan-downtime`, `wan-post-copy`: with a round trip of 25 ms; against 2 round trips and 10 ms, and 3 and 10 ms, until it
//!   runs. `wan-first-write` is until it has written, to a page that has to come; against one round trip more.
//! - `fast-writer`, `fast-downtime`: one that writes faster than the link of 1 Gbit/s carries; against its deadline, and against
//!   2 round trips and 10 ms.
#![forbid(unsafe_code)]

mod bursts;

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pagewire::access::uffd::{WritableMapping, WriteOptions};
use pagewire::engine::migration::{Destination, DestinationOptions, Goals, Mode, Report};
use pagewire::store::{MemoryStore, Store};
use pagewire_study::bench::{self, Failure, Options, Row, Target};
use pagewire_study::link::{ADDRESS_A, Link, LinkOptions};
use pagewire_study::origin::{self, Load, OriginProcess, Writes, seconds_since_1970};

const USAGE: &str = "usage: migrate [FILTER...] [--size 1GiB] [--rounds 5] [--json]
a row is measured if its name contains a FILTER: downtime downtime-worst bytes slowdown post-copy wan-downtime
wan-post-copy wan-first-write fast-writer fast-downtime best-time best-bytes";

const ROUND_TRIP: Duration = Duration::from_millis(25);

/// When a fast writer has to have arrived.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long the application runs before it is moved.
const WARM: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    origin::run_if_asked();
    bench::run("migrate", USAGE, measure)
}

fn measure(options: &Options) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let wants = |names: &[&str]| names.iter().any(|name| options.wants(name));
    if wants(&["downtime", "downtime-worst", "bytes", "slowdown"]) {
        rows.extend(loopback(options)?);
    }
    if wants(&["post-copy"]) {
        let mut row = Row::new("post-copy", "ms", "10 ms", Target::AtMost(1.0));
        for _ in 0..options.rounds {
            let run = run(&steady(options), Goals { mode: Mode::PostCopy, ..Goals::default() }, None)?;
            row.push(run.wrote * 1e3, 10.0);
        }
        rows.push(row);
    }
    if wants(&["wan-downtime", "wan-post-copy", "wan-first-write"]) {
        rows.extend(wan(options)?);
    }
    if wants(&["fast-writer", "fast-downtime"]) {
        rows.extend(fast(options)?);
    }
    if wants(&["best-time", "best-bytes"]) {
        rows.extend(bursts::rows(options)?);
    }
    Ok(rows)
}

/// The application of most rows.
fn steady(options: &Options) -> Load {
    let hot = (64 << 20).min(options.size / 4);
    scattered(options.size, hot, 100_000_000)
}

fn scattered(size: u64, hot: u64, rate: u64) -> Load {
    Load { size, hot, writes: Writes::Scattered, phases: vec![(Duration::from_secs(1), rate)] }
}

fn loopback(options: &Options) -> Result<Vec<Row>, Failure> {
    let mut downtime = Row::new("downtime", "ms", "5 ms", Target::AtMost(1.0));
    let mut bytes = Row::new("bytes", "MiB", "region", Target::AtMost(1.3));
    let mut slowdown = Row::new("slowdown", "MB/s", "while it is moved", Target::AtMost(1.3));
    let mut worst: f64 = 0.0;
    for _ in 0..options.rounds * 4 {
        let run = run(&steady(options), Goals::default(), None)?;
        downtime.push(run.downtime * 1e3, 5.0);
        bytes.push(run.report.moved_bytes as f64 / 1048576.0, options.size as f64 / 1048576.0);
        slowdown.push(run.rate_before / 1e6, run.rate_during / 1e6);
        worst = worst.max(run.downtime);
    }
    let mut at_worst = Row::new("downtime-worst", "ms", "15 ms", Target::AtMost(1.0));
    at_worst.push(worst * 1e3, 15.0);
    Ok(vec![downtime, at_worst, bytes, slowdown])
}

fn wan(options: &Options) -> Result<Vec<Row>, Failure> {
    let link = Link::new(LinkOptions::new(ROUND_TRIP))?;
    let trip = link.verify()?.round_trip.as_secs_f64();
    let mut downtime = Row::new("wan-downtime", "ms", "2 round trips + 10 ms", Target::AtMost(1.0));
    let mut post = Row::new("wan-post-copy", "ms", "3 round trips + 10 ms", Target::AtMost(1.0));
    let mut wrote = Row::new("wan-first-write", "ms", "4 round trips + 10 ms", Target::AtMost(1.0));
    for _ in 0..options.rounds {
        let pre = run(&steady(options), Goals::default(), Some(&link))?;
        downtime.push(pre.downtime * 1e3, (2.0 * trip + 0.01) * 1e3);
        let goals = Goals { mode: Mode::PostCopy, ..Goals::default() };
        let started = run(&steady(options), goals, Some(&link))?;
        post.push(started.running * 1e3, (3.0 * trip + 0.01) * 1e3);
        wrote.push(started.wrote * 1e3, (4.0 * trip + 0.01) * 1e3);
    }
    Ok(vec![downtime, post, wrote])
}

fn fast(options: &Options) -> Result<Vec<Row>, Failure> {
    let rate = Some(1_000_000_000);
    let link = Link::new(LinkOptions { rate, ..LinkOptions::new(ROUND_TRIP) })?;
    let trip = link.verify()?.round_trip.as_secs_f64();
    let mut all = Row::new("fast-writer", "s", "its deadline", Target::AtMost(1.0));
    let mut downtime = Row::new("fast-downtime", "ms", "2 round trips + 10 ms", Target::AtMost(1.0));
    let load = scattered(options.size, options.size, 400_000_000);
    for _ in 0..options.rounds {
        let goals = Goals { deadline: Some(DEADLINE), ..Goals::default() };
        let run = run(&load, goals, Some(&link))?;
        all.push(run.report.seconds, DEADLINE.as_secs_f64());
        downtime.push(run.downtime * 1e3, (2.0 * trip + 0.01) * 1e3);
    }
    Ok(vec![all, downtime])
}

/// What one migration has come to.
struct Run {
    report: Report,
    /// From when the application was asked to stop until its first write here, in seconds.
    downtime: f64,
    /// From the beginning of the migration until then, in seconds.
    wrote: f64,
    /// From there until it runs: it has the region, and has touched none of it.
    running: f64,
    /// How fast the application wrote before, and until it was suspended, in bytes per second.
    rate_before: f64,
    rate_during: f64,
}

fn run(load: &Load, goals: Goals, link: Option<&Link>) -> Result<Run, Failure> {
    run_when(load, &DestinationOptions { goals, ..DestinationOptions::default() }, link, WARM)
}

/// Moves an application after it has run for a while.
fn run_when(
    load: &Load,
    options: &DestinationOptions,
    link: Option<&Link>,
    warm: Duration,
) -> Result<Run, Failure> {
    let host = link.map_or(Ipv4Addr::LOCALHOST, |_| ADDRESS_A);
    let mut application = OriginProcess::start(load, host, link.map(Link::a))?;
    let start = application.progress()?;
    std::thread::sleep(warm);
    let before = application.progress()?;
    let address = application.address()?;
    let moved = || -> Result<(Report, [f64; 2], f64), Failure> {
        let home = Arc::new(MemoryStore::with_capacity(0, load.size));
        let begun = Instant::now();
        let destination = Destination::start(&[(address.clone(), home as Arc<dyn Store>)], options.clone())?;
        let (mut took, mut ran_at, mut mapping) = ([0.0; 2], 0.0, None);
        destination.run(|arrived| {
            let here = WritableMapping::map(&arrived.regions[0].1, &WriteOptions::default())?;
            let running = begun.elapsed().as_secs_f64();
            here.atomic_u64(0).expect("it is not empty").fetch_add(1, Ordering::Relaxed);
            (took, ran_at) = ([running, begun.elapsed().as_secs_f64()], seconds_since_1970());
            mapping = Some(here);
            Ok(())
        })?;
        Ok((destination.finish()?, took, ran_at))
    };
    let (report, [running, wrote], ran_at) = match link {
        // Threads are where the thread is that starts them.
        Some(link) => link.b().run(moved)??,
        None => moved()?,
    };
    let after = application.progress()?;
    let rate = |pages: u64, time: f64| (pages * 4096) as f64 / time.max(1e-9);
    Ok(Run {
        downtime: ran_at - after.suspended,
        wrote,
        running,
        rate_before: rate(before.pages - start.pages, before.ran - start.ran),
        rate_during: rate(after.pages - before.pages, before_suspended(&before, after.suspended, after.ran)),
        report,
    })
}

/// For how long an application has run since `before` when it was suspended, in seconds.
fn before_suspended(before: &origin::Progress, suspended: f64, ran: f64) -> f64 {
    ran - before.ran - (seconds_since_1970() - suspended)
}
