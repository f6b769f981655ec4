//! The access methods, a file each: how an application comes to a region, and how it reads, writes and flushes.
//!
//! The application's own work is the same for all: it copies whole pages out of and into what the method gives it, by
//! loads and stores where that is memory.

mod file;
mod local;
mod mirror;
mod nbd_user;
mod uffd;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::{Method, Mode, Point};
use super::sidecar::{Kind, Task};
use super::trouble::Result;

pub(super) use local::LocalMemory;

/// A region that an application uses.
pub(super) trait Attached: Send + Sync {
    /// Copies a page out.
    fn read(&self, page: u64, bytes: &mut [u8]) -> Result<()>;

    /// Replaces a page.
    fn write(&self, page: u64, bytes: &[u8]) -> Result<()>;

    /// Returns when what was written is at the server, where the method has a way to wait for that.
    fn flush(&self) -> Result<()>;

    /// What processes beside the application have used: processor time, and memory in bytes.
    fn sidecars(&mut self) -> Result<(Duration, u64)> {
        Ok((Duration::ZERO, 0))
    }

    /// Gives the region up: what was written is at the server then.
    fn detach(self: Box<Self>) -> Result<()>;
}

/// Which region, and how it is reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Access {
    /// How.
    pub(super) method: Method,
    /// With a local copy that fills itself or without.
    pub(super) mode: Option<Mode>,
    /// The circumstances.
    pub(super) point: Point,
    /// The region's address; that of a file, for what is local.
    pub(super) region: String,
    /// Its length, in bytes.
    pub(super) bytes: u64,
    /// A file that may be made for it.
    pub(super) file: PathBuf,
}

impl Access {
    /// Whether the application writes.
    pub(super) fn writes(&self) -> bool {
        self.point.pattern.writes()
    }

    /// What a sidecar is asked for.
    fn task(&self, kind: Kind) -> Task {
        Task {
            kind,
            region: self.region.clone(),
            file: self.file.clone(),
            writable: self.writes() && kind != Kind::Copy,
            mode: self.mode,
            chunk_bytes: self.point.chunk_bytes,
            connections: self.point.connections,
        }
    }

    /// Makes the region usable.
    pub(super) fn attach(&self) -> Result<Box<dyn Attached>> {
        Ok(match self.method {
            Method::Uffd if self.writes() => Box::new(uffd::Written::attach(self)?),
            Method::Uffd => Box::new(uffd::Read::attach(self)?),
            Method::Fuse if self.mode == Some(Mode::Direct) => {
                Box::new(file::Called::attach(self, Kind::Mount)?)
            }
            Method::Fuse => Box::new(file::Mapped::attach(self, Kind::Mount)?),
            Method::Nbd => Box::new(file::Mapped::attach(self, Kind::Device)?),
            Method::NbdUser if self.mode == Some(Mode::Direct) => Box::new(nbd_user::Direct::attach(self)?),
            Method::NbdUser => Box::new(nbd_user::Managed::attach(self)?),
            Method::Mirror => Box::new(mirror::Mirrored::attach(self)?),
            Method::LocalMemory => Box::new(LocalMemory::attach(self)?),
            Method::LocalFile => Box::new(local::LocalFile::attach(self)?),
        })
    }
}
