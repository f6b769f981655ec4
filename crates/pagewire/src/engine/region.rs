//! A region: a store with a name, and what its readers of older epochs still see.
//!
//! A reader is pinned to an epoch. Where the store keeps its epochs itself (a peer does), the reads
//! just name them. Where it does not, the region does it, by before-images: [`Region::commit`] first
//! keeps the bytes that it is about to replace, for as long as somebody is pinned to an epoch before
//! it and the bound allows; then it waits for the reads that began without knowing of them (the
//! [`gate`]); then it writes.

mod gate;
mod history;

use std::sync::Arc;
use std::time::Duration;

use pagewire_core::chunk::ByteRange;

use crate::address::{StoreAddress, check_name};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Info, Lent, Read, Store, Stream, StreamRequest};
use history::History;

/// How many bytes of before-images a region keeps for readers of older epochs unless told otherwise.
pub const DEFAULT_IMAGES: u64 = 32 << 20;

/// A store with a name, whose readers see one epoch each.
pub struct Region {
    name: String,
    store: Arc<dyn Store>,
    /// Where the store keeps no epochs itself and can be written to.
    history: Option<History>,
}

/// Bytes that [`Region::commit`] writes.
#[derive(Debug, Clone)]
pub struct Change<'a> {
    /// Where.
    pub offset: u64,
    /// What.
    pub bytes: &'a [u8],
}

impl Region {
    /// The region `name` in `store`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] for a name that no region can have.
    pub fn new(name: &str, store: Arc<dyn Store>) -> Result<Arc<Self>> {
        Self::with_images(name, store, DEFAULT_IMAGES)
    }

    /// The same, which keeps at most `images` bytes for readers of older epochs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] for a name that no region can have.
    pub fn with_images(name: &str, store: Arc<dyn Store>, images: u64) -> Result<Arc<Self>> {
        check_name(name)?;
        let info = store.info();
        let history = (info.writable && !info.capabilities.history).then(|| History::new(info.epoch, images));
        Ok(Arc::new(Self { name: name.into(), store, history }))
    }

    /// The region at `address`, under the address for a name, for logs and errors.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] for an address that is empty or holds control characters.
    pub fn at(address: &StoreAddress, store: Arc<dyn Store>) -> Result<Arc<Self>> {
        let mut name = address.to_string();
        while name.len() > pagewire_core::wire::MAX_NAME {
            name.pop();
        }
        Self::new(&name, store)
    }

    /// The region's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known of the region at its newest epoch that is known here.
    pub fn info(&self) -> Info {
        let mut info = self.store.info();
        if let Some(history) = &self.history {
            info.epoch = history.current();
            info.capabilities.history = true;
        }
        info
    }

    /// Asks the store for its newest epoch, and answers what is known of the region then.
    ///
    /// # Errors
    ///
    /// As [`Store::refresh`].
    pub fn refresh(&self) -> Result<Info> {
        self.store.refresh()?;
        Ok(self.info())
    }

    /// Whether the bytes stay what they are for as long as the region is open, so that they may be
    /// handed to the network without a copy, or a lock.
    pub fn is_immutable(&self) -> bool {
        self.history.is_none()
    }

    /// Pins the newest epoch.
    pub fn pin(self: &Arc<Self>) -> Pin {
        let info = self.info();
        let epoch = match &self.history {
            Some(history) => history.pin_current(),
            None => info.epoch,
        };
        Pin { region: self.clone(), epoch, info: Info { epoch, ..info } }
    }

    /// Pins `epoch`, if it can still be given.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stale`] if it cannot.
    pub fn pin_epoch(self: &Arc<Self>, epoch: u64) -> Result<Pin> {
        let info = Info { epoch, ..self.info() };
        let available = match &self.history {
            Some(history) => history.pin(epoch),
            None => epoch == self.store.info().epoch,
        };
        if !available {
            return Err(stale(&self.name, epoch, self.info().epoch));
        }
        Ok(Pin { region: self.clone(), epoch, info })
    }

    /// Submits a read of any epoch that can still be given.
    pub fn read(&self, read: Read) {
        match &self.history {
            Some(history) => history.read(&self.name, &*self.store, read),
            None => self.store.read(read),
        }
    }

    /// How long the shortest answer is on its way.
    pub fn round_trip(&self) -> Duration {
        self.store.round_trip()
    }

    /// Begins a stream, where the store can stream.
    ///
    /// # Errors
    ///
    /// As [`Store::stream`].
    pub fn stream(&self, stream: StreamRequest) -> Result<Box<dyn Stream>> {
        self.store.stream(stream)
    }

    /// The file that the bytes are in, where there is one and nobody writes to it.
    pub fn lend(&self) -> Option<Lent<'_>> {
        if self.is_immutable() { self.store.lend() } else { None }
    }

    /// Whether what [`Region::lend`] gave is still the region: a file may have been changed behind
    /// the store's back.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Changed`] if it is not.
    pub(crate) fn check_lent(&self) -> Result<()> {
        self.store.refresh().map(drop)
    }

    /// Writes `changes` as one epoch, durably, and answers it. Readers that are pinned to an older
    /// epoch go on seeing theirs. No change at all makes no epoch.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where the store cannot be written to. Whatever the store says; the
    /// region is then what it was before, or, where even that cannot be written, refuses every read.
    pub fn commit(&self, changes: &[Change<'_>]) -> Result<u64> {
        let info = self.info();
        for change in changes {
            info.check(ByteRange::new(
                change.offset,
                change.offset.saturating_add(change.bytes.len() as u64),
            ))?;
        }
        match &self.history {
            Some(history) => history.commit(&*self.store, changes),
            None => Err(Error::new(ErrorKind::Unsupported, format!("'{}' is read-only here", self.name))),
        }
    }
}

fn stale(name: &str, epoch: u64, newest: u64) -> Error {
    let text = format!("epoch {epoch} of '{name}' is gone; the newest is {newest}");
    Error::new(ErrorKind::Stale, text).with_retry(false)
}

/// One reader's hold on one epoch of a region.
pub struct Pin {
    region: Arc<Region>,
    epoch: u64,
    info: Info,
}

impl Pin {
    /// The region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What is known of the region at this epoch.
    pub fn info(&self) -> Info {
        self.info
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(history) = &self.region.history {
            history.release(self.epoch);
        }
    }
}

#[cfg(test)]
mod tests;
