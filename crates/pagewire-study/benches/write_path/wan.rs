//! A flush over a link of 25 ms: its round trips, and its bytes.

use std::time::{Duration, Instant};

use pagewire_study::bench::{Failure, Options, Row, Target};
use pagewire_study::link::{ADDRESS_A, Link, LinkOptions};
use pagewire_study::server::ServerProcess;
use pagewire_sys::PAGE_SIZE;

use crate::push::{map, write};
use crate::{DIRTY, dirty_pages};

const ROUND_TRIP: Duration = Duration::from_millis(25);

/// How many pages are few.
const FEW: u64 = 16;

pub(crate) fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    if !options.wants("wan-flush") && !options.wants("wan-bytes") {
        return Ok(Vec::new());
    }
    let skip = std::env::var("PAGEWIRE_TEST_SKIP").unwrap_or_default();
    if skip.split(',').any(|name| name.trim() == "netns") {
        eprintln!("SKIPPED: PAGEWIRE_TEST_SKIP names netns");
        return Ok(Vec::new());
    }
    let mut flush = Row::new("wan-flush", "ms", "2 round trips", Target::AtMost(1.1));
    let mut bytes = Row::new("wan-bytes", "MB", "dirty bytes", Target::AtMost(1.1));
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let path = folder.path().join("region");
    std::fs::write(&path, vec![1; 64 << 20])?;
    let link = Link::new(LinkOptions::new(ROUND_TRIP))?;
    let round_trip = link.verify()?.round_trip;
    let server = ServerProcess::start_writable(&path, ADDRESS_A, Some(link.a()))?;
    let region = server.region()?;
    let mapping = link.b().run(|| map(&region))??;
    mapping.wait()?;
    for round in 0..=options.rounds {
        write(&mapping, &dirty_pages(64 << 20, FEW), round as u8 + 2)?;
        let start = Instant::now();
        mapping.flush()?;
        let took = start.elapsed();
        let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let many = dirty_pages(64 << 20, DIRTY);
        write(&mapping, &many, round as u8 + 100)?;
        let before = link.b_to_a().bytes;
        mapping.flush()?;
        std::thread::sleep(2 * ROUND_TRIP);
        let sent = link.b_to_a().bytes - before;
        if round > 0 {
            flush.push(millis(took), 2.0 * millis(round_trip));
            bytes.push(sent as f64 / 1e6, (many.len() * PAGE_SIZE) as f64 / 1e6);
        }
    }
    Ok(vec![flush, bytes])
}
