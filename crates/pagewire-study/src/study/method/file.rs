//! A file or device that another process answers for: a FUSE mount, or a block device of the kernel's NBD client.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;

use super::{Access, Attached};
use crate::study::helper::{Helper, Kind};
use crate::study::trouble::Result;
use crate::study::workload::PAGE;

/// It is mapped: the page cache is the local copy.
pub(super) struct Mapped {
    // Dropped first: a mount that is in use is not taken down.
    mapping: FileMapping,
    helper: Helper,
}

impl Mapped {
    pub(super) fn attach(access: &Access, kind: Kind) -> Result<Self> {
        let helper = Helper::start(&access.task(kind))?;
        let mapping = map(&open(&helper, access)?, access)?;
        Ok(Self { mapping, helper })
    }
}

/// Maps a file as an application does.
pub(super) fn map(file: &File, access: &Access) -> Result<FileMapping> {
    let protection = if access.writes() { Protection::ReadWrite } else { Protection::Read };
    Ok(FileMapping::new(file.as_fd(), access.bytes as usize, protection)?)
}

fn open(helper: &Helper, access: &Access) -> Result<File> {
    Ok(File::options().read(true).write(access.writes()).open(helper.path())?)
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

    fn helpers(&mut self) -> Result<(Duration, u64)> {
        self.helper.usage()
    }

    fn detach(self: Box<Self>) -> Result<()> {
        let Self { mapping, helper } = *self;
        drop(mapping);
        helper.end()
    }
}

/// There is no local copy, and each access is a system call: a mapping would have the kernel keep one.
pub(super) struct Called {
    file: File,
    helper: Helper,
}

impl Called {
    pub(super) fn attach(access: &Access, kind: Kind) -> Result<Self> {
        let helper = Helper::start(&access.task(kind))?;
        Ok(Self { file: open(&helper, access)?, helper })
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

    fn helpers(&mut self) -> Result<(Duration, u64)> {
        self.helper.usage()
    }

    fn detach(self: Box<Self>) -> Result<()> {
        let Self { file, helper } = *self;
        drop(file);
        helper.end()
    }
}
