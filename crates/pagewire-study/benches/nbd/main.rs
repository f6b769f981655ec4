//! NBD against the other servers and clients of it, over loopback TCP and UNIX sockets, with files in memory:
//! `serve --nbd` against nbdkit's file plugin and qemu-nbd under nbdcopy and fio, `copy nbd://… file:` against
//! nbdcopy to a file.
//!
//! `cargo bench -p pagewire-study --bench nbd [-- FILTER...] [--size 1GiB] [--rounds 5] [--json]`
//!
//! Needs root. The peers are installed from Debian where they are missing. Regions are files without a journal,
//! as the peers' are.
//!
//! - [`peers`]: the servers.
//! - [`clients`]: nbdcopy, fio and our copy, and what each of them has reached.
#![forbid(unsafe_code)]

mod clients;
mod peers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pagewire_study::bench::{self, Failure, Options, Row, Target};
use pagewire_study::nbd;
use pagewire_study::scatter::write_file;

use clients::Fio;
use peers::{By, Kind, Served};

const USAGE: &str = "usage: nbd [FILTER...] [--size 1GiB] [--rounds 5] [--json]
a row is measured if its name contains a FILTER: copy-file nbdcopy-tcp nbdcopy-unix randread-1 randread-16 \
randwrite-16 write-1m";

fn main() -> ExitCode {
    nbd::run_if_asked();
    bench::run("nbd", USAGE, measure)
}

fn measure(options: &Options) -> Result<Vec<Row>, Failure> {
    peers::install()?;
    let setup = Setup::new(options)?;
    let mut rows = Vec::new();
    for by in [By::Tcp, By::Unix] {
        rows.push(copy_file(&setup, by)?);
    }
    for by in [By::Tcp, By::Unix] {
        let measured = |served: &Served| clients::nbdcopy_to_null(served, setup.options.size);
        rows.push(against_servers(&setup, by, "nbdcopy", "GB/s", false, measured)?);
    }
    for by in [By::Unix, By::Tcp] {
        for fio in [Fio::RandRead(1), Fio::RandRead(16), Fio::RandWrite(16), Fio::Write] {
            let measured = |served: &Served| fio.run(served, setup.options.size);
            rows.push(against_servers(&setup, by, fio.name(), fio.unit(), fio.writes(), measured)?);
        }
    }
    Ok(rows.into_iter().flatten().collect())
}

/// Our server against the better one of the others.
fn against_servers(
    setup: &Setup,
    by: By,
    name: &str,
    unit: &'static str,
    writable: bool,
    measured: impl Fn(&Served) -> Result<f64, Failure>,
) -> Result<Option<Row>, Failure> {
    let name = format!("{name}-{}", by.name());
    if !setup.options.wants(&name) {
        return Ok(None);
    }
    let mut row = Row::new(name, unit, "the better of nbdkit and qemu-nbd", Target::AtLeast(1.0));
    let serve = |kind| Served::start(kind, by, &setup.file(), setup.folder(), writable);
    for _ in 0..setup.options.rounds {
        let ours = measured(&serve(Kind::Pagewire)?)?;
        let (nbdkit, qemu) = (measured(&serve(Kind::Nbdkit)?)?, measured(&serve(Kind::Qemu)?)?);
        row.push(ours, nbdkit.max(qemu));
    }
    Ok(Some(row))
}

/// Our copy from nbdkit to a file against nbdcopy's.
fn copy_file(setup: &Setup, by: By) -> Result<Option<Row>, Failure> {
    let name = format!("copy-file-{}", by.name());
    if !setup.options.wants(&name) {
        return Ok(None);
    }
    let mut row = Row::new(name, "GB/s", "nbdcopy to a file", Target::AtLeast(1.0));
    let served = Served::start(Kind::Nbdkit, by, &setup.file(), setup.folder(), false)?;
    let target = setup.folder().join("target");
    for _ in 0..setup.options.rounds {
        let ours = clients::copy_to_file(&served, &target, setup.options.size)?;
        setup.check(&target)?;
        let theirs = clients::nbdcopy_to_file(&served, &target, setup.options.size)?;
        row.push(ours, theirs);
    }
    Ok(Some(row))
}

/// A file of random bytes in memory.
pub(crate) struct Setup {
    options: Options,
    folder: tempfile::TempDir,
}

impl Setup {
    fn new(options: &Options) -> Result<Self, Failure> {
        let folder = tempfile::tempdir_in("/dev/shm")?;
        let setup = Self { options: options.clone(), folder };
        write_file(&std::fs::File::create(setup.file())?, options.size)?;
        Ok(setup)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("file")
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether a copy is one.
    fn check(&self, target: &Path) -> Result<(), Failure> {
        let same = std::process::Command::new("cmp").arg("-s").args([&self.file(), target]).status()?;
        if same.success() { Ok(()) } else { Err("WRONG BYTES in a copy".into()) }
    }
}
