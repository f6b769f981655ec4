//! Delta copies against rsync: one page in a hundred changed, and nothing changed, between two processes over loopback.
//!
//! `cargo bench -p pagewire-study --bench delta [-- FILTER...] [--size 1GiB] [--rounds 5] [--json]`
//!
//! Needs root. rsync is installed from Debian where it is missing. All of it runs in a network namespace of its own,
//! whose loopback device counts what goes over the wire: with all headers, of both directions, for both alike. The files
//! are in memory. Where nothing differs, the bytes of the frames are held against the target, and those of the link are given
//! to know: most of them are the beginnings and ends of five TCP connections. Ours begins with the connection and ends when the bytes are in their place in the file; rsync's
//! begins with its process.
//!
//! - [`ours`]: one delta copy to or from a server process.
//! - [`rsync`]: the same by an rsync daemon.
#![forbid(unsafe_code)]

mod ours;
mod rsync;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;

use pagewire_study::bench::{self, Failure, Options, Row, Target};
use pagewire_study::scatter::{fill, scattered, write_file};
use pagewire_study::server;
use pagewire_sys::net::NetNamespace;

const USAGE: &str = "usage: delta [FILTER...] [--size 1GiB] [--rounds 5] [--json]
a row is measured if its name contains a FILTER: push-time push-wire pull-time pull-wire equal-time equal-wire
equal-link";

const PAGE: u64 = 4096;

fn main() -> ExitCode {
    server::serve_if_asked();
    bench::run("delta", USAGE, measure)
}

/// What one copy took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    /// Bytes at the loopback device.
    pub(crate) wire: u64,
    /// Bytes of frames, at the sockets; none where they are not known.
    pub(crate) frames: u64,
}

/// Which of the two sides is the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Push,
    Pull,
}

fn measure(options: &Options) -> Result<Vec<Row>, Failure> {
    rsync::install()?;
    let setup = Setup::new(options)?;
    let mut rows = Vec::new();
    for (direction, name) in [(Direction::Push, "push"), (Direction::Pull, "pull")] {
        if !options.wants(&format!("{name}-time")) && !options.wants(&format!("{name}-wire")) {
            continue;
        }
        let mut time = Row::new(format!("{name}-time"), "s", "rsync", Target::AtMost(0.2));
        let mut wire = Row::new(format!("{name}-wire"), "MB", "rsync", Target::AtMost(0.9));
        for _ in 0..options.rounds {
            setup.change_back()?;
            let ours = ours::copy(&setup, direction)?;
            setup.change_back()?;
            let theirs = rsync::copy(&setup, direction)?;
            time.push(ours.seconds, theirs.seconds);
            wire.push(ours.wire as f64 / 1e6, theirs.wire as f64 / 1e6);
        }
        rows.extend([time, wire]);
    }
    if ["equal-time", "equal-wire", "equal-link"].into_iter().any(|name| options.wants(name)) {
        let mut time = Row::new("equal-time", "s", "0.35 s", Target::AtMost(1.0));
        let mut wire = Row::new("equal-wire", "KiB", "4 KiB", Target::AtMost(1.0));
        let mut link = Row::new("equal-link", "KiB", "4 KiB", Target::None);
        setup.make_equal()?;
        for _ in 0..options.rounds {
            let ours = ours::copy(&setup, Direction::Push)?;
            time.push(ours.seconds, 0.35);
            wire.push(ours.frames as f64 / 1024.0, 4.0);
            link.push(ours.wire as f64 / 1024.0, 4.0);
        }
        rows.extend([time, wire, link]);
    }
    Ok(rows)
}

/// Two files in memory of which one page in a hundred differs, and a network that nobody else uses.
pub(crate) struct Setup {
    folder: tempfile::TempDir,
    pub(crate) namespace: NetNamespace,
    size: u64,
}

impl Setup {
    fn new(options: &Options) -> Result<Self, Failure> {
        let folder = tempfile::tempdir_in("/dev/shm")?;
        let namespace = NetNamespace::create()?;
        namespace.run(pagewire_sys::net::loopback_up)??;
        let setup = Self { folder, namespace, size: options.size };
        for path in [setup.source(), setup.target()] {
            write_file(&File::create(path)?, setup.size)?;
        }
        Ok(setup)
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.folder.path().join("target")
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().into()
    }

    /// Makes one page in a hundred of the target another than the source's.
    fn change_back(&self) -> Result<(), Failure> {
        let pages = self.size / PAGE;
        let target = File::options().write(true).open(self.target())?;
        let mut state = 7;
        let mut page = vec![0; PAGE as usize];
        for number in scattered(pages).take((pages / 100) as usize) {
            fill(&mut state, &mut page);
            target.write_all_at(&page, number * PAGE)?;
        }
        Ok(())
    }

    fn make_equal(&self) -> Result<(), Failure> {
        std::fs::copy(self.source(), self.target())?;
        Ok(())
    }

    /// Whether the copy is good.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let (source, target) = (File::open(self.source())?, File::open(self.target())?);
        let mut pieces = [vec![0; 1 << 20], vec![0; 1 << 20]];
        for at in (0..self.size).step_by(1 << 20) {
            let length = (self.size - at).min(1 << 20) as usize;
            source.read_exact_at(&mut pieces[0][..length], at)?;
            target.read_exact_at(&mut pieces[1][..length], at)?;
            if pieces[0][..length] != pieces[1][..length] {
                return Err(format!("WRONG BYTES at {at} after a copy").into());
            }
        }
        Ok(())
    }
}

/// Bytes that have gone through the loopback device of the calling thread's network.
pub(crate) fn wire() -> Result<u64, Failure> {
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let received = devices.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    let received = received.and_then(|line| line.split_whitespace().next());
    Ok(received.ok_or("there is no loopback device")?.parse()?)
}
