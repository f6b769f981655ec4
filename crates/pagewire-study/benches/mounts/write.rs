//! Writing a file in order, and a flush: written through on both sides.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use pagewire_study::bench::{Failure, Row, Target};
use pagewire_study::mount::{Mode, MountProcess};
use pagewire_study::server::ServerProcess;

use crate::Setup;
use crate::peers::{self, Mounted, Nbdkit, Peer};

/// Writes all of the file, flushes, and answers the rate in GB/s.
fn write(path: &Path, size: u64, value: u8) -> Result<f64, Failure> {
    let piece = vec![value; 1 << 20];
    let mut file = File::options().write(true).open(path)?;
    let start = Instant::now();
    for _ in 0..size / piece.len() as u64 {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    Ok(size as f64 / start.elapsed().as_secs_f64() / 1e9)
}

pub(crate) fn run(setup: &Setup) -> Result<Vec<Row>, Failure> {
    if !setup.wants(&["write"]) {
        return Ok(Vec::new());
    }
    peers::install()?;
    let size = setup.options.size;
    let mut row = Row::new("write", "GB/s", "qemu-storage-daemon", Target::AtLeast(1.2));
    let theirs = setup.place("theirs");
    std::fs::copy(setup.file(), &theirs)?;
    let server = ServerProcess::start_through(&setup.file(), std::net::Ipv4Addr::LOCALHOST)?;
    let nbd = Nbdkit::serve(&theirs)?;
    for round in 0..setup.options.rounds {
        let value = round as u8 + 1;
        let path = setup.place("mounted");
        let mounted = MountProcess::start(&server.region()?, &path, Mode::Writable, None)?;
        let ours = write(&path, size, value)?;
        drop(mounted);
        let mounted = Mounted::start(Peer::Qemu, &nbd, setup.folder(), size, true)?;
        row.push(ours, write(&mounted.file, size, value)?);
        drop(mounted);
        let written = std::fs::read(setup.file())?;
        if written.iter().any(|byte| *byte != value) {
            return Err("WRONG BYTES in the file behind a mount".into());
        }
    }
    Ok(vec![row])
}
