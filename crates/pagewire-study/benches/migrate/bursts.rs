//! An application that writes in bursts, as garbage collection makes them: moved at a good moment, and at any.
//!
//! - `best-time`, `best-bytes`: how long it takes until all is here and the origin knows, without the wait, and what is moved; against
//!   beginning at a random moment. It writes 20 MB/s for two seconds and 500 MB/s for one, to one page of half of its memory after
//!   another, over a link of 4.5 Gbit/s, and is moved by pre-copy with a standstill of 50 ms.

use std::time::Duration;

use pagewire::engine::migration::{DestinationOptions, Goals, Mode, When};
use pagewire_study::bench::{Failure, Options, Row, Target};
use pagewire_study::link::{Link, LinkOptions};
use pagewire_study::origin::{Load, Writes};
use pagewire_study::scatter::split_mix;

/// How long it takes from one burst to the next.
const CYCLE: Duration = Duration::from_secs(3);

/// How long a good moment may be waited for.
const WITHIN: Duration = Duration::from_secs(20);

pub(super) fn rows(options: &Options) -> Result<Vec<Row>, Failure> {
    let rate = Some(4_500_000_000);
    let link = Link::new(LinkOptions { rate, ..LinkOptions::new(Duration::from_micros(200)) })?;
    let load = Load {
        size: options.size,
        hot: options.size / 2,
        writes: Writes::InOrder,
        phases: vec![(CYCLE * 2 / 3, 20_000_000), (CYCLE / 3, 500_000_000)],
    };
    let goals =
        Goals { mode: Mode::PreCopy, max_downtime: Some(Duration::from_millis(50)), ..Goals::default() };
    let mut time = Row::new("best-time", "s", "a random moment", Target::AtMost(0.8));
    let mut bytes = Row::new("best-bytes", "MiB", "a random moment", Target::AtMost(0.8));
    let (mut random, runs) = (11, options.rounds as u64 * 4);
    for run in 0..runs {
        // Both are asked for at a random moment of the cycle; one of them waits then. Each run has a part of the cycle for its
        // own, so that few runs stand for all moments.
        let part = CYCLE.as_millis() as u64 / runs;
        let warm = Duration::from_millis(300 + run * part + split_mix(&mut random) % part);
        let run = |when| {
            let options = DestinationOptions { goals, when, ..DestinationOptions::default() };
            super::run_when(&load, &options, Some(&link), warm)
        };
        let best = run(When::Best { within: WITHIN })?;
        let any = run(When::Now)?;
        time.push(best.report.seconds, any.report.seconds);
        bytes.push(best.report.moved_bytes as f64 / 1048576.0, any.report.moved_bytes as f64 / 1048576.0);
    }
    Ok(vec![time, bytes])
}
