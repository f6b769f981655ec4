//! Over a link of 25 ms: how soon the first byte is there, and how fast everything is in order.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use pagewire_study::bench::{Failure, Row, Target};
use pagewire_study::link::{ADDRESS_A, Link, LinkOptions};
use pagewire_study::mount::{Mode, MountProcess};
use pagewire_study::server::ServerProcess;

use crate::Setup;

const ROUND_TRIP: Duration = Duration::from_millis(25);

/// How many connections the baseline has, as a mount does.
const CONNECTIONS: usize = 4;

/// How much is read at once.
const PIECE: usize = 128 << 10;

pub(crate) fn run(setup: &Setup) -> Result<Vec<Row>, Failure> {
    let names = ["wan-first-byte", "wan-in-order"];
    if !setup.wants(&names) {
        return Ok(Vec::new());
    }
    let skip = std::env::var("PAGEWIRE_TEST_SKIP").unwrap_or_default();
    if skip.split(',').any(|name| name.trim() == "netns") {
        eprintln!("SKIPPED: PAGEWIRE_TEST_SKIP names netns");
        return Ok(Vec::new());
    }
    let link = Link::new(LinkOptions::new(ROUND_TRIP))?;
    let round_trip = link.verify()?.round_trip;
    let server = ServerProcess::start(&setup.file(), ADDRESS_A, Some(link.a()))?;
    let mut first = Row::new("wan-first-byte", "ms", "round trip", Target::AtMost(4.0));
    let mut order = Row::new("wan-in-order", "MB/s", "bare TCP", Target::AtLeast(0.5));
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let rate = |duration: Duration| setup.options.size as f64 / duration.as_secs_f64() / 1e6;
    for _ in 0..setup.options.rounds {
        let path = setup.place("mounted");
        let start = Instant::now();
        let mounted = MountProcess::start(&server.region()?, &path, Mode::Pulled, Some(link.b()))?;
        let file = File::open(&path)?;
        let mut piece = vec![0; PIECE];
        file.read_exact_at(&mut piece[..1], 0)?;
        first.push(millis(start.elapsed()), millis(round_trip));
        if setup.wants(&names[1..]) {
            let start = Instant::now();
            let mut at = 0;
            while at < setup.options.size {
                at += file.read_at(&mut piece, at)?.max(1) as u64;
            }
            let ours = start.elapsed();
            order.push(rate(ours), rate(link.transfer(setup.options.size, CONNECTIONS)?));
        }
        drop((file, mounted));
    }
    Ok(vec![first, order])
}
