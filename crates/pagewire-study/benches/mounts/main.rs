//! Mounted regions against what else makes a remote file local: qemu-storage-daemon's FUSE export and nbdfuse, both
//! over nbdkit's file plugin on loopback TCP; and against a plain file in memory.
//!
//! `cargo bench -p pagewire-study --bench mounts [-- FILTER...] [--size 1GiB] [--rounds 5] [--json]`
//!
//! Needs root. The peers are installed from Debian where they are missing.
//!
//! - [`peers`]: the other programs, and a mount of each.
//! - [`read`]: reading through a map, cold and warm.
//! - [`write`]: writing in order, and a flush.
//! - [`wan`]: over a link with a round-trip time.
#![forbid(unsafe_code)]

mod peers;
mod read;
mod wan;
mod write;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pagewire_study::bench::{self, Failure, Options, Row};
use pagewire_study::scatter::write_file;
use pagewire_study::{mount, server};

const USAGE: &str = "usage: mounts [FILTER...] [--size 1GiB] [--rounds 5] [--json]
a row is measured if its name contains a FILTER: map-cold touch-cold map-warm touch-warm write wan-first-byte wan-in-order";

fn main() -> ExitCode {
    server::serve_if_asked();
    mount::mount_if_asked();
    bench::run("mounts", USAGE, measure)
}

fn measure(options: &Options) -> Result<Vec<Row>, Failure> {
    let setup = Setup::new(options)?;
    let mut rows = read::run(&setup)?;
    rows.extend(write::run(&setup)?);
    rows.extend(wan::run(&setup)?);
    Ok(rows)
}

/// A file of random bytes in memory, and where to mount.
pub(crate) struct Setup {
    pub(crate) options: Options,
    folder: tempfile::TempDir,
}

impl Setup {
    fn new(options: &Options) -> Result<Self, Failure> {
        let folder = tempfile::tempdir_in("/dev/shm")?;
        let setup = Self { options: options.clone(), folder };
        write_file(&std::fs::File::create(setup.file())?, options.size)?;
        Ok(setup)
    }

    /// The file that is served.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("file")
    }

    /// A place of this name, beside it.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether one of the rows of these names is to be measured.
    pub(crate) fn wants(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.options.wants(name))
    }
}
