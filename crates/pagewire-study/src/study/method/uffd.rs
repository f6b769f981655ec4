//! The library's mapping through userfaultfd, in the application's own process.

use pagewire::access::uffd::{MapOptions, Mapping, WritableMapping, WriteOptions};
use pagewire::address::StoreAddress;
use pagewire::engine::PullOptions;

use super::local::{load, store};
use super::{Access, Attached};
use crate::study::sidecar::{chunk, pull_order, remote};
use crate::study::trouble::{Result, Trouble};
use crate::study::workload::PAGE;

fn options(access: &Access) -> Result<MapOptions> {
    let pull = PullOptions {
        chunk: chunk(access.point.chunk_bytes)?,
        order: pull_order(access.mode),
        ..PullOptions::default()
    };
    Ok(MapOptions { pull, ..MapOptions::default() })
}

/// It is read.
pub(super) struct Read(Mapping);

impl Read {
    pub(super) fn attach(access: &Access) -> Result<Self> {
        let address: StoreAddress = access.region.parse()?;
        Ok(Self(Mapping::open_with(&address, &options(access)?, &remote(access.point.connections))?))
    }
}

impl Attached for Read {
    fn read(&self, page: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&self.0[(page * PAGE) as usize..][..PAGE as usize]);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        Err(Trouble::failed("the mapping is read"))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn detach(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// It is read and written.
pub(super) struct Written(WritableMapping);

impl Written {
    pub(super) fn attach(access: &Access) -> Result<Self> {
        let address: StoreAddress = access.region.parse()?;
        let options = WriteOptions { map: options(access)?, ..WriteOptions::default() };
        Ok(Self(WritableMapping::open_with(&address, &options, &remote(access.point.connections))?))
    }

    fn words(&self, page: u64) -> impl Iterator<Item = &std::sync::atomic::AtomicU64> {
        (page * PAGE..(page + 1) * PAGE).step_by(8).filter_map(|at| self.0.atomic_u64(at))
    }
}

impl Attached for Written {
    fn read(&self, page: u64, bytes: &mut [u8]) -> Result<()> {
        load(self.words(page), bytes);
        Ok(())
    }

    fn write(&self, page: u64, bytes: &[u8]) -> Result<()> {
        store(self.words(page), bytes);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()?;
        Ok(())
    }

    fn detach(self: Box<Self>) -> Result<()> {
        self.flush()
    }
}
