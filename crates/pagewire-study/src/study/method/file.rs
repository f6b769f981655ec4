//! A file or device that another process answers for: a FUSE mount, or a block device of the kernel's NBD client.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;

use super::{Access, Attached};
use crate::study::sidecar::{Kind, Sidecar};
use crate::study::trouble::Result;
use crate::study::workload::PAGE;

/// It is mapped: the page cache is the local copy.
pub(super) struct Mapped {
    // Dropped first: a mount that is in use is not taken down.
    mapping: FileMapping,
    sidecar: Sidecar,
}

impl Mapped {
    pub(super) fn attach(access: &Access, kind: Kind) -> Result<Self> {
        let sidecar = Sidecar::start(&access.task(kind))?;
        let mapping = map(&open(&sidecar, access)?, access)?;
        Ok(Self { mapping, sidecar })
    }
}

/// Maps a file as an application does.
pub(super) fn map(file: &File, access: &Access) -> Result<FileMapping> {
    let protection = if access.writes() { Protection::ReadWrite } else { Protection::Read };
    Ok(FileMapping::new(file.as_fd(), access.bytes as usize, protection)?)
}

fn open(sidecar: &Sidecar, access: &Access) -> Result<File> {
    Ok(File::options().read(true).write(access.writes()).open(sidecar.path())?)
}

impl Attached for Mapped {
    fn read(&self, page: u64, bytes: &mut [u8]) -> Result<()> {
        Ok(self.mapping.copy_out((page * PAGE) as usize, bytes)?)
    }

    fn write(&self, page: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.mapping.copy_in((page * PAGE) as usize, bytes)?)
    }

    fn flush(&self) -> Result<()> {
        Ok(self.mapping.sync(0, self.mapping.len())?)
    }

    fn sidecars(&mut self) -> Result<(Duration, u64)> {
        self.sidecar.usage()
    }

    fn detach(self: Box<Self>) -> Result<()> {
        let Self { mapping, sidecar } = *self;
        drop(mapping);
        sidecar.end()
    }
}

/// There is no local copy, and each access is a system call: a mapping would have the kernel keep one.
pub(super) struct Called {
    file: File,
    sidecar: Sidecar,
}

impl Called {
    pub(super) fn attach(access: &Access, kind: Kind) -> Result<Self> {
        let sidecar = Sidecar::start(&access.task(kind))?;
        Ok(Self { file: open(&sidecar, access)?, sidecar })
    }
}

impl Attached for Called {
    fn read(&self, page: u64, bytes: &mut [u8]) -> Result<()> {
        Ok(self.file.read_exact_at(bytes, page * PAGE)?)
    }

    fn write(&self, page: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(bytes, page * PAGE)?)
    }

    fn flush(&self) -> Result<()> {
        Ok(self.file.sync_all()?)
    }

    fn sidecars(&mut self) -> Result<(Duration, u64)> {
        self.sidecar.usage()
    }

    fn detach(self: Box<Self>) -> Result<()> {
        let Self { file, sidecar } = *self;
        drop(file);
        sidecar.end()
    }
}
