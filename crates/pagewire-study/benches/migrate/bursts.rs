//! An application that writes in bursts, as garbage collection makes them: moved at a good moment, and at any.
//!
//! - `best-time`, `best-bytes`: how long it takes until all is here and the origin knows, without the wait, and what is moved; against
//!   beginning at a random moment. It writes 20 MB/s for two seconds and 500 MB/s for one, over a link of 4.5 Gbit/s, and is moved by
//!   pre-copy with a standstill of 50 ms.

use std::time::Duration;

use pagewire::engine::migration::{DestinationOptions, Goals, Mode, When};
use pagewire_study::bench::{Failure, Options, Row, Target};
use pagewire_study::link::{Link, LinkOptions};
use pagewire_study::origin::Load;
use pagewire_study::scatter::split_mix;

/// How long a good moment may be waited for.
const WITHIN: Duration = Duration::from_secs(20);

pub(super) fn rows(options: &Options) -> Result<Vec<Row>, Failure> {
    let rate = Some(4_500_000_000);
    let link = Link::new(LinkOptions { rate, ..LinkOptions::new(Duration::from_micros(200)) })?;
    let load = Load {
        size: options.size,
        hot: options.size / 2,
        phases: vec![(Duration::from_secs(2), 20_000_000), (Duration::from_secs(1), 500_000_000)],
    };
    let goals =
        Goals { mode: Mode::PreCopy, max_downtime: Some(Duration::from_millis(50)), ..Goals::default() };
    let mut time = Row::new("best-time", "s", "a random moment", Target::AtMost(0.8));
    let mut bytes = Row::new("best-bytes", "MiB", "a random moment", Target::AtMost(0.8));
    let mut random = 11;
    for _ in 0..options.rounds * 4 {
        // Both begin at a random moment of the cycle; one of them waits then.
        let warm = Duration::from_millis(300 + split_mix(&mut random) % 3000);
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
