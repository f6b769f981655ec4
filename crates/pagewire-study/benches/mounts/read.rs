//! Reading through a map: everything in order, and pages here and there; cold, and when all has arrived.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use pagewire_study::bench::{Failure, Row, Target};
use pagewire_study::mount::{Mode, MountProcess};
use pagewire_study::scatter::split_mix;
use pagewire_study::server::ServerProcess;
use pagewire_sys::PAGE_SIZE;
use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;

use crate::Setup;
use crate::peers::{self, Mounted, Nbdkit, Peer};

/// How many pages are touched.
const TOUCHED: usize = 4000;

fn map(path: &Path, size: u64) -> Result<FileMapping, Failure> {
    Ok(FileMapping::new(File::open(path)?.as_fd(), size as usize, Protection::Read)?)
}

/// Reads every byte, and answers their sum and how long it took from before the file was opened.
fn in_order(path: &Path, size: u64) -> Result<(u64, Duration), Failure> {
    let start = Instant::now();
    let map = map(path, size)?;
    let sum = (0..size as usize / 8).fold(0u64, |sum, word| sum.wrapping_add(map.load_u64(word * 8)));
    Ok((sum, start.elapsed()))
}

/// Touches pages here and there, and answers how long each took.
fn touch(path: &Path, size: u64) -> Result<Duration, Failure> {
    let map = map(path, size)?;
    let pages = size / PAGE_SIZE as u64;
    let mut state = 7;
    let mut chosen = std::collections::BTreeSet::new();
    let mut order = Vec::new();
    while order.len() < TOUCHED.min(pages as usize / 4) {
        let page = split_mix(&mut state) % pages;
        if chosen.insert(page) {
            order.push(page);
        }
    }
    let start = Instant::now();
    for page in &order {
        std::hint::black_box(map.load_u64(*page as usize * PAGE_SIZE));
    }
    Ok(start.elapsed() / order.len() as u32)
}

pub(crate) fn run(setup: &Setup) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    if setup.wants(&["map-cold", "touch-cold"]) {
        peers::install()?;
        rows.extend(cold(setup)?);
    }
    if setup.wants(&["map-warm", "touch-warm"]) {
        rows.extend(warm(setup)?);
    }
    Ok(rows)
}

fn cold(setup: &Setup) -> Result<Vec<Row>, Failure> {
    let size = setup.options.size;
    let mut order = Row::new("map-cold", "GB/s", "the better of qemu and nbdfuse", Target::AtLeast(2.0));
    let mut touched = Row::new("touch-cold", "us", "the better of qemu and nbdfuse", Target::AtMost(0.5));
    let server = ServerProcess::start(&setup.file(), std::net::Ipv4Addr::LOCALHOST, None)?;
    let nbd = Nbdkit::serve(&setup.file())?;
    let region = server.region()?;
    let (expected, _) = in_order(&setup.file(), size)?;
    let rate = |took: Duration| size as f64 / took.as_secs_f64() / 1e9;
    let micros = |took: Duration| took.as_secs_f64() * 1e6;
    for _ in 0..setup.options.rounds {
        if setup.options.wants("map-cold") {
            let mounted = MountProcess::start(&region, &setup.place("mounted"), Mode::Pulled, None)?;
            let (sum, ours) = in_order(&setup.place("mounted"), size)?;
            drop(mounted);
            if sum != expected {
                return Err("WRONG BYTES in a mounted file".into());
            }
            let mut best = f64::MIN;
            for peer in Peer::ALL {
                let mounted = Mounted::start(peer, &nbd, setup.folder(), size, false)?;
                best = best.max(rate(in_order(&mounted.file, size)?.1));
            }
            order.push(rate(ours), best);
        }
        if setup.options.wants("touch-cold") {
            let mounted = MountProcess::start(&region, &setup.place("mounted"), Mode::Demand, None)?;
            let ours = micros(touch(&setup.place("mounted"), size)?);
            drop(mounted);
            let mut best = f64::MAX;
            for peer in Peer::ALL {
                let mounted = Mounted::start(peer, &nbd, setup.folder(), size, false)?;
                best = best.min(micros(touch(&mounted.file, size)?));
            }
            touched.push(ours, best);
        }
    }
    Ok(vec![order, touched])
}

fn warm(setup: &Setup) -> Result<Vec<Row>, Failure> {
    let size = setup.options.size;
    let mut order = Row::new("map-warm", "GB/s", "a file on tmpfs", Target::AtLeast(0.8));
    let mut touched = Row::new("touch-warm", "reads/us", "a file on tmpfs", Target::AtLeast(0.8));
    let server = ServerProcess::start(&setup.file(), std::net::Ipv4Addr::LOCALHOST, None)?;
    let path = setup.place("mounted");
    let _mounted = MountProcess::start(&server.region()?, &path, Mode::Pulled, None)?;
    in_order(&path, size)?;
    let rate = |took: Duration| size as f64 / took.as_secs_f64() / 1e9;
    for _ in 0..setup.options.rounds {
        let (ours, plain) = (in_order(&path, size)?.1, in_order(&setup.file(), size)?.1);
        order.push(rate(ours), rate(plain));
        let (ours, plain) = (touch(&path, size)?, touch(&setup.file(), size)?);
        touched.push(1.0 / (ours.as_secs_f64() * 1e6), 1.0 / (plain.as_secs_f64() * 1e6));
    }
    Ok(vec![order, touched])
}
