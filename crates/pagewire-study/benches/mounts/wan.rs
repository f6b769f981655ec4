//! Over a link of 25 ms: how soon the first byte is there.

use std::time::{Duration, Instant};

use pagewire_study::bench::{Failure, Row, Target};
use pagewire_study::link::{ADDRESS_A, Link, LinkOptions};
use pagewire_study::mount::{Mode, MountProcess};
use pagewire_study::server::ServerProcess;

use crate::Setup;

const ROUND_TRIP: Duration = Duration::from_millis(25);

pub(crate) fn run(setup: &Setup) -> Result<Vec<Row>, Failure> {
    if !setup.wants(&["wan-first-byte"]) {
        return Ok(Vec::new());
    }
    let skip = std::env::var("PAGEWIRE_TEST_SKIP").unwrap_or_default();
    if skip.split(',').any(|name| name.trim() == "netns") {
        eprintln!("SKIPPED: PAGEWIRE_TEST_SKIP names netns");
        return Ok(Vec::new());
    }
    let mut row = Row::new("wan-first-byte", "ms", "round trip", Target::AtMost(4.0));
    let link = Link::new(LinkOptions::new(ROUND_TRIP))?;
    let round_trip = link.verify()?.round_trip;
    let server = ServerProcess::start(&setup.file(), ADDRESS_A, Some(link.a()))?;
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    for _ in 0..setup.options.rounds {
        let path = setup.place("mounted");
        let start = Instant::now();
        let mounted = MountProcess::start(&server.region()?, &path, Mode::Pulled, Some(link.b()))?;
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::open(&path)?, &mut byte, 0)?;
        row.push(millis(start.elapsed()), millis(round_trip));
        drop(mounted);
    }
    Ok(vec![row])
}
