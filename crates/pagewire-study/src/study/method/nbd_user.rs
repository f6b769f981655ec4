//! An NBD export by the client in user space. The application reads and writes it by calls: there is no device, and no
//! page fault.

use std::sync::Arc;

use pagewire::address::StoreAddress;
use pagewire::engine::{LocalCopy, PlainMemory, PullOptions, Puller, PushOptions, Pusher, Region};
use pagewire::store::{self, Blocking, Store};
use pagewire::{ByteRange, PullOrder};

use super::{Access, Attached};
use crate::study::sidecar::{chunk, remote};
use crate::study::trouble::Result;
use crate::study::workload::PAGE;

fn open(access: &Access) -> Result<(Arc<dyn Store>, StoreAddress)> {
    let address: StoreAddress = access.region.parse()?;
    Ok((store::open(&address, access.writes(), &remote(access.point.connections))?, address))
}

fn range(page: u64) -> ByteRange {
    ByteRange::new(page * PAGE, (page + 1) * PAGE)
}

/// Each read and write is a request.
pub(super) struct Direct {
    store: Arc<dyn Store>,
    epoch: u64,
}

impl Direct {
    pub(super) fn attach(access: &Access) -> Result<Self> {
        let (store, _) = open(access)?;
        let epoch = if access.writes() { store::STAGED } else { store.info().epoch };
        Ok(Self { store, epoch })
    }
}

impl Attached for Direct {
    fn read(&self, page: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&self.store.read_bytes(range(page), self.epoch)?);
        Ok(())
    }

    fn write(&self, page: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.store.write_bytes(page * PAGE, bytes)?)
    }

    fn flush(&self) -> Result<()> {
        self.store.flush_all()?;
        Ok(())
    }

    fn detach(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// There is a copy in memory, which fills itself in the background.
pub(super) struct Managed {
    // Dropped first: it reads the memory.
    pusher: Option<Pusher>,
    puller: Puller,
    memory: Arc<PlainMemory>,
}

impl Managed {
    pub(super) fn attach(access: &Access) -> Result<Self> {
        let (store, address) = open(access)?;
        let region = Region::at(&address, store)?;
        let length = region.info().length;
        let memory = Arc::new(PlainMemory::new(length));
        let writer = access.writes().then(|| region.writer(&store::this_process())).transpose()?;
        let pin = match &writer {
            Some(writer) => writer.pin(),
            None => region.pin()?,
        };
        let options = PullOptions {
            chunk: chunk(access.point.chunk_bytes)?,
            order: PullOrder::Sequential,
            ..PullOptions::default()
        };
        let puller = Puller::start(pin, memory.clone(), options)?;
        let start = |writer| Pusher::start(writer, memory.clone(), length, PushOptions::default());
        let pusher = writer.map(start).transpose()?;
        Ok(Self { pusher, puller, memory })
    }
}

impl Attached for Managed {
    fn read(&self, page: u64, bytes: &mut [u8]) -> Result<()> {
        self.puller.prefault(range(page))?;
        Ok(self.memory.read_back(page * PAGE, bytes)?)
    }

    fn write(&self, page: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.memory.write(page * PAGE, bytes)?)
    }

    fn flush(&self) -> Result<()> {
        if let Some(pusher) = &self.pusher {
            pusher.flush()?;
        }
        Ok(())
    }

    fn detach(self: Box<Self>) -> Result<()> {
        self.flush()
    }
}
