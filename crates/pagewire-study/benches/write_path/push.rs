//! Scattered pages, written through a mapping and flushed, against writing them to a file here.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use pagewire::PullOrder;
use pagewire::access::uffd::{MapOptions, WritableMapping, WriteOptions};
use pagewire::address::StoreAddress;
use pagewire::engine::{PullOptions, PushOptions};
use pagewire::store::RemoteOptions;
use pagewire_study::bench::{Failure, Options, Row, Target};
use pagewire_study::server::ServerProcess;
use pagewire_sys::PAGE_SIZE;

use crate::{DIRTY, dirty_pages};

/// A mapping that is pushed when it is flushed, and no sooner.
pub(crate) fn map(region: &StoreAddress) -> Result<WritableMapping, Failure> {
    let pull = PullOptions { order: PullOrder::Sequential, ..PullOptions::default() };
    let map = MapOptions { pull, ..MapOptions::default() };
    let push = PushOptions { interval: None, ..PushOptions::default() };
    let options = WriteOptions { map, push, ..WriteOptions::default() };
    Ok(WritableMapping::open_with(region, &options, &RemoteOptions::default())?)
}

/// Writes to each of the pages.
pub(crate) fn write(mapping: &WritableMapping, pages: &[u64], value: u8) -> Result<(), Failure> {
    for page in pages {
        mapping.write(page * PAGE_SIZE as u64, &[value; 64])?;
    }
    Ok(())
}

pub(crate) fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let places = [
        ("push-tmpfs", Path::new("/dev/shm"), Target::AtLeast(0.2)),
        ("push-disk", Path::new(env!("CARGO_TARGET_TMPDIR")), Target::AtLeast(0.5)),
    ];
    let wanted = places.into_iter().filter(|(name, ..)| options.wants(name));
    wanted.map(|(name, place, target)| measure(options, name, place, target)).collect()
}

fn measure(options: &Options, name: &str, place: &Path, target: Target) -> Result<Row, Failure> {
    let mut row = Row::new(name, "pages/ms", "pwrite + fdatasync", target);
    let folder = tempfile::tempdir_in(place)?;
    let make = |name: &str| {
        let path = folder.path().join(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let piece = vec![1; 1 << 20];
        for at in (0..options.size).step_by(piece.len()) {
            file.write_all_at(&piece[..piece.len().min((options.size - at) as usize)], at)?;
        }
        file.sync_all()?;
        Ok::<_, Failure>((path, file))
    };
    let (path, _) = make("region")?;
    let (_, local) = make("local")?;
    let server = ServerProcess::start_writable(&path, std::net::Ipv4Addr::LOCALHOST, None)?;
    let mapping = map(&server.region()?)?;
    mapping.wait()?;
    let pages = dirty_pages(options.size, DIRTY);
    for round in 0..=options.rounds {
        write(&mapping, &pages, round as u8 + 2)?;
        let start = Instant::now();
        let epoch = mapping.flush()?.epoch;
        let ours = start.elapsed();
        let start = Instant::now();
        let mut bytes = [3; PAGE_SIZE];
        for page in &pages {
            bytes[0] = round as u8;
            local.write_all_at(&bytes, page * PAGE_SIZE as u64)?;
        }
        local.sync_data()?;
        let theirs = start.elapsed();
        if epoch != round as u64 + 2 {
            return Err(format!("flush {round} made epoch {epoch}").into());
        }
        // The server may be applying what was flushed: that is its time, not that of the next baseline.
        std::thread::sleep(Duration::from_millis(300));
        if round > 0 {
            let rate = |took: Duration| pages.len() as f64 / took.as_secs_f64() / 1000.0;
            row.push(rate(ours), rate(theirs));
        }
    }
    Ok(row)
}
