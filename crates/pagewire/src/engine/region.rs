//! A region: a store with a name, what its readers see, and who may write to it.
//!
//! A reader is pinned to an epoch. Where the store keeps its epochs itself (files and peers do), the
//! region just names them. Where it does not, the region does it, by before-images ([`history`]): it
//! first keeps the bytes that are about to be replaced, then waits for the reads that began without
//! knowing of them (the gate), then lets them be replaced.
//!
//! There is one [`Writer`] at a time: it has the region's [`lease`].

mod history;
mod lease;
mod writer;

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use pagewire_core::chunk::ByteRange;

use crate::address::{StoreAddress, check_name};
use crate::error::Result;
use crate::store::{
    AtOnce, CacheStore, HashRequest, Info, Lent, Read, STAGED, Store, Stream, StreamRequest, Traffic,
};
use history::History;
use lease::Lease;

pub use writer::Writer;

/// How many bytes of before-images a region keeps for readers of older epochs unless told otherwise.
pub const DEFAULT_IMAGES: u64 = 32 << 20;

/// A store with a name, whose readers see one epoch each.
pub struct Region {
    name: String,
    store: Arc<dyn Store>,
    /// Where the store keeps no epochs itself and can be written to.
    history: Option<History>,
    lease: Lease,
    watchers: Mutex<Vec<Weak<dyn Watch>>>,
}

/// Whoever wants to know of new epochs.
pub trait Watch: Send + Sync {
    /// The region has a newer epoch. Called on the thread that has made it, which must not be held up.
    fn epoch(&self, region: &Region, epoch: u64);
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
    /// [`ErrorKind::Usage`](crate::ErrorKind::Usage) for a name that no region can have.
    pub fn new(name: &str, store: Arc<dyn Store>) -> Result<Arc<Self>> {
        Self::with_images(name, store, DEFAULT_IMAGES)
    }

    /// The same, which keeps at most `images` bytes for readers of older epochs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`](crate::ErrorKind::Usage) for a name that no region can have.
    pub fn with_images(name: &str, store: Arc<dyn Store>, images: u64) -> Result<Arc<Self>> {
        check_name(name)?;
        let info = store.info();
        let history = (info.writable && !info.capabilities.history).then(|| History::new(&info, images));
        let lease = Lease::new(store.stage().token);
        Ok(Arc::new(Self { name: name.into(), store, history, lease, watchers: Mutex::default() }))
    }

    /// The region at `address`, under the address for a name, for logs and errors.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`](crate::ErrorKind::Usage) for an address that is empty or holds control characters.
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
        let info = self.store.info();
        match &self.history {
            Some(history) => history.info(info),
            None => info,
        }
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
        !self.store.info().writable
    }

    /// Whether what is flushed outlives the process that has the region's store.
    pub fn is_durable(&self) -> bool {
        self.store.is_durable()
    }

    /// Which bytes differ, at most, between the epoch `since` and the newest; none where that is not
    /// known.
    pub fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        match &self.history {
            Some(history) => history.changes(since),
            None => self.store.changes(since),
        }
    }

    /// Pins the newest epoch.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`](crate::ErrorKind::Busy) where so much of it was replaced and not flushed that it cannot be given now.
    pub fn pin(self: &Arc<Self>) -> Result<Pin> {
        self.pin_at(None)
    }

    /// Pins `epoch`, if it can still be given.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stale`](crate::ErrorKind::Stale) if it cannot.
    pub fn pin_epoch(self: &Arc<Self>, epoch: u64) -> Result<Pin> {
        self.pin_at(Some(epoch))
    }

    fn pin_at(self: &Arc<Self>, epoch: Option<u64>) -> Result<Pin> {
        let info = match &self.history {
            Some(history) => history.pin(epoch, self.store.info()),
            None => self.store.pin(epoch),
        };
        let info = info.map_err(|error| error.context(format!("'{}'", self.name)))?;
        Ok(Pin { region: self.clone(), epoch: info.epoch, info })
    }

    /// Submits a read of an epoch that is pinned.
    pub fn read(&self, read: Read) {
        match &self.history {
            Some(history) => history.read(&*self.store, read),
            None => self.store.read(read),
        }
    }

    /// Whether [`Region::submit_hash`] gives hashes without the bytes coming here.
    pub fn can_hash(&self) -> bool {
        self.history.is_none() && self.store.info().capabilities.hash
    }

    /// Whether the store can stream, since it is another process.
    pub(crate) fn can_stream(&self) -> bool {
        self.store.info().capabilities.stream
    }

    /// Submits a request for hashes to the store, where that [can hash](Region::can_hash).
    pub fn submit_hash(&self, hash: HashRequest) {
        self.store.hash(hash);
    }

    /// How many bytes have gone over the network for the region.
    pub fn traffic(&self) -> Traffic {
        self.store.traffic()
    }

    /// The bytes of `range` at an epoch that is pinned, or at [`STAGED`] for who has the lease, where the calling
    /// thread has them without waiting: see [`Store::read_at_once`].
    ///
    /// # Errors
    ///
    /// As the store's read.
    pub fn read_at_once(&self, range: ByteRange, epoch: u64, buffer: &mut [u8]) -> Result<AtOnce> {
        match &self.history {
            None => self.store.read_at_once(range, epoch, buffer),
            Some(_) if epoch == STAGED => self.store.read_at_once(range, self.store.info().epoch, buffer),
            // What was replaced has to be looked for, and whoever replaces it to be kept waiting.
            Some(_) => Ok(AtOnce::NotNow),
        }
    }

    /// Which bytes of `range` at an epoch that is pinned, or at [`STAGED`], are zeroes that take no room: see
    /// [`Store::holes`].
    pub fn holes(&self, range: ByteRange, epoch: u64) -> Option<Vec<ByteRange>> {
        match &self.history {
            None => self.store.holes(range, epoch),
            Some(_) if epoch == STAGED => self.store.holes(range, self.store.info().epoch),
            Some(_) => None,
        }
    }

    /// The newest epoch that is known of here: that of the store, or one that a peer has told of.
    pub fn newest(&self) -> u64 {
        self.store.newest().max(self.info().epoch)
    }

    /// Tells `watcher` of new epochs from now on, until it is dropped.
    pub fn watch(&self, watcher: Weak<dyn Watch>) {
        let mut watchers = self.watchers.lock().expect("no holder panics");
        watchers.retain(|known| known.strong_count() > 0 && !known.ptr_eq(&watcher));
        watchers.push(watcher);
    }

    fn tell_epoch(&self, epoch: u64) {
        let watchers = self.watchers.lock().expect("no holder panics").clone();
        watchers.iter().filter_map(Weak::upgrade).for_each(|watcher| watcher.epoch(self, epoch));
    }

    /// The copy on this host's disk in front of the region's store, if it has one.
    pub fn cache(&self) -> Option<&CacheStore> {
        self.store.cache()
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
        match &self.history {
            Some(history) => history.stream(&*self.store, stream),
            None => self.store.stream(stream),
        }
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
    /// [`ErrorKind::Changed`](crate::ErrorKind::Changed) if it is not.
    pub(crate) fn check_lent(&self) -> Result<()> {
        self.store.refresh().map(drop)
    }

    /// Writes `changes` as one epoch, durably, and answers it. Readers that are pinned to an older
    /// epoch go on seeing theirs. No change at all makes no epoch.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where the store cannot be written to; [`ErrorKind::Busy`](crate::ErrorKind::Busy) while
    /// somebody else has the lease. Whatever the store says; the region is then what it was before
    /// where the store can `commit`.
    pub fn commit(self: &Arc<Self>, changes: &[Change<'_>]) -> Result<u64> {
        let info = self.info();
        for change in changes {
            let end = change.offset.saturating_add(change.bytes.len() as u64);
            info.check(ByteRange::new(change.offset, end))?;
        }
        let writer = self.writer("a commit")?;
        for change in changes.iter().filter(|change| !change.bytes.is_empty()) {
            writer.write_bytes(change.offset, change.bytes)?;
        }
        Ok(writer.flush_all()?.epoch)
    }
}

/// One reader's hold on one epoch of a region; or a writer's view of it, which holds none.
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

    /// The epoch, or [`STAGED`].
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The file that holds all of this epoch, where the region has a cache that does: see
    /// [`CacheStore::image`].
    pub fn image(&self) -> Option<Lent<'_>> {
        self.region.cache()?.image(self.epoch)
    }

    /// What is known of the region at this epoch.
    pub fn info(&self) -> Info {
        match self.epoch {
            // What is written may change the length.
            STAGED => Info { length: self.region.store.stage().length, ..self.info },
            _ => self.info,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        match &self.region.history {
            _ if self.epoch == STAGED => {}
            Some(history) => history.unpin(self.epoch),
            None => self.region.store.unpin(self.epoch),
        }
    }
}

#[cfg(test)]
mod tests;
