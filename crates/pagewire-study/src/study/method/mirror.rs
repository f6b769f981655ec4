//! A local file that is mapped: all of it is copied before the application begins, and a mirror keeps the region in step
//! with it by hashing.

use std::fs::File;
use std::time::Duration;

use pagewire_sys::file_mapping::FileMapping;

use super::file::map;
use super::{Access, Attached};
use crate::study::sidecar::{Kind, Sidecar};
use crate::study::trouble::Result;
use crate::study::workload::PAGE;

pub(super) struct Mirrored {
    mapping: FileMapping,
    /// There is one where the application writes.
    mirror: Option<Sidecar>,
    /// What the copy has used.
    copied: Duration,
}

impl Mirrored {
    pub(super) fn attach(access: &Access) -> Result<Self> {
        let mut copy = Sidecar::start(&access.task(Kind::Copy))?;
        let (copied, _) = copy.usage()?;
        copy.end()?;
        let mirror = access.writes().then(|| Sidecar::start(&access.task(Kind::Mirror))).transpose()?;
        let file = File::options().read(true).write(access.writes()).open(&access.file)?;
        Ok(Self { mapping: map(&file, access)?, mirror, copied })
    }
}

impl Attached for Mirrored {
    fn read(&self, page: u64, bytes: &mut [u8]) -> Result<()> {
        Ok(self.mapping.copy_out((page * PAGE) as usize, bytes)?)
    }

    fn write(&self, page: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.mapping.copy_in((page * PAGE) as usize, bytes)?)
    }

    /// Nobody can wait for a mirror: its next round finds what was written.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn sidecars(&mut self) -> Result<(Duration, u64)> {
        let (cpu, memory) = self.mirror.as_mut().map(Sidecar::usage).transpose()?.unwrap_or_default();
        Ok((cpu + self.copied, memory))
    }

    fn detach(self: Box<Self>) -> Result<()> {
        self.mirror.map_or(Ok(()), Sidecar::end)
    }
}
