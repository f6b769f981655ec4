//! The region file, and what mappings are opened with.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pagewire::access::uffd::{MapOptions, Mapping};
use pagewire::engine::PullOptions;
use pagewire::{ChunkSize, PullOrder};
use pagewire_study::scatter::write_file;

use pagewire_study::bench::{Failure, Options};

/// For threads to come to rest before what is measured.
pub(crate) const SETTLE: Duration = Duration::from_millis(50);

/// What every measurement needs.
pub(crate) struct Setup {
    pub(crate) options: Options,
    file: File,
    path: PathBuf,
}

impl Setup {
    /// Makes the region: random bytes in memory. The file has no name, so it goes with the last
    /// process that has it open.
    pub(crate) fn new(options: &Options) -> Result<Self, Failure> {
        let file = tempfile::tempfile_in("/dev/shm")?;
        write_file(&file, options.size)?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        Ok(Self { options: options.clone(), file, path })
    }

    /// Where the region file can be opened, by child processes, too.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn size(&self) -> u64 {
        self.options.size
    }

    /// Whether one of the rows of these names is to be measured.
    pub(crate) fn wants(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.options.wants(name))
    }

    /// Fails where a byte of the mapping is not the file's.
    pub(crate) fn check(&self, mapping: &Mapping) -> Result<(), Failure> {
        let mut piece = vec![0; 1 << 20];
        for (index, bytes) in mapping.chunks(piece.len()).enumerate() {
            let piece = &mut piece[..bytes.len()];
            self.file.read_exact_at(piece, (index << 20) as u64)?;
            if piece != bytes {
                return Err(format!("WRONG BYTES in the MiB number {index}").into());
            }
        }
        Ok(())
    }
}

/// How a mapping is opened.
pub(crate) fn map_options(order: PullOrder, chunk: u64) -> Result<MapOptions, Failure> {
    let pull = PullOptions { order, chunk: ChunkSize::new(chunk)?, ..PullOptions::default() };
    Ok(MapOptions { pull, ..MapOptions::default() })
}
