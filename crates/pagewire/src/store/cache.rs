//! A store with a copy on this host's disk in front of it: what was pulled is there after a restart, and what
//! was written and could not be pushed yet survives a crash.
//!
//! Every access method has it in the same way, since it is a store around a store: [`open_cached`] opens both.
//! What becomes of its files when a machine stops is in core's [`cache`](pagewire_core::cache); here is how
//! they are used:
//!
//! - [`read`]: what the image has is answered from it, checked to the page; the rest comes from the store, is
//!   placed, and then goes to the image by way of the cache's own thread ([`keeping`]), in bounded memory.
//! - [`write`]: what is written goes to the store, and to its place in the image, where it counts as there
//!   when it has been flushed.
//! - [`unpushed`]: what a local flush keeps ([`CacheStore::flush_local`]), and [`recover`]: what becomes of it
//!   when the cache is opened again.
//!
//! # What a reader sees
//!
//! Exactly what the store gives: one epoch, which [`Store::refresh`] moves on. Then what has changed becomes
//! absent; all of it, where the store does not know what has. Opening asks the store for its epoch, so it needs
//! the store. After that a region that is complete needs it no more.
//!
//! # What the file can be trusted with
//!
//! Nothing. Whatever is read from the image has to fit its check, whoever has changed which file, so that a page
//! that was damaged, cut off or written to by others is pulled again. Only those who are lent the file itself
//! ([`CacheStore::image`]) see what others do to it: it is checked before, and locked against other Pagewire
//! processes, and that is all.
//!
//! A disk that fails, or is full, ends the filling with one warning. Reading goes on; a local flush fails.
//!
//! # Changes that are not pushed
//!
//! They are found again by the next writer, who has them as a part of what it sees, and to be flushed. They stand
//! on an epoch. Who has not held the lease since, and finds the region at another epoch, is refused, unless the
//! region holds the same bytes by now; so is who opens the cache for another region, or only to read, since what
//! was not flushed is part of no epoch. To give the changes up, their file has to be removed.

mod contract;
mod files;
mod follow;
mod keeping;
mod local;
mod read;
mod recover;
mod unpushed;
mod write;

#[cfg(test)]
mod tests;

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use pagewire_core::cache::Head;
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use serde::Serialize;

use super::pool::Pool;
use super::{Lent, RemoteOptions, RemoteStore, Store};
use crate::address::StoreAddress;
use crate::error::{Error, ErrorKind, Result};
use local::{Done, Local};
use recover::Recovered;
use unpushed::Unpushed;

pub use files::{CacheFiles, CacheInfo};

/// A store with a copy on this host's disk in front of it.
pub struct CacheStore {
    store: Arc<dyn Store>,
    local: Arc<Local>,
    unpushed: Arc<Mutex<Unpushed>>,
    /// What was found unpushed, until it is flushed.
    recovered: Arc<Mutex<Option<Recovered>>>,
    writable: bool,
    lasts: bool,
    pool: Pool,
    keeping: Option<JoinHandle<()>>,
}

/// How much of a region is in a cache, and what that has saved. Numbers of bytes served only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct CacheProgress {
    /// How many bytes of the region are in the cache.
    pub present_bytes: u64,
    /// How many bytes were answered from the cache.
    pub cached_bytes: u64,
    /// How many bytes were answered by the store behind it.
    pub remote_bytes: u64,
    /// How many bytes of pages are flushed locally, and not flushed to the store yet.
    pub unpushed_bytes: u64,
    /// Whether all of the newest epoch is in the cache: see [`CacheStore::image`].
    pub complete: bool,
}

/// Opens the store at `address` with the cache at `cache` in front of it, if there is to be one: for writing
/// where an owner is named, as [`super::open_as`] does. Who goes on with a cache that was written to goes on with
/// its lease, too, if nobody else has had that since.
///
/// # Errors
///
/// As [`super::open_as`], [`CacheFiles::open`] and [`CacheStore::new`].
pub fn open_cached(
    address: &StoreAddress,
    owner: Option<&str>,
    remote: &RemoteOptions,
    cache: Option<&Path>,
) -> Result<Arc<dyn Store>> {
    let Some(path) = cache else { return super::open_as(address, owner, remote) };
    let files = CacheFiles::open(path)?;
    let store = match (address, owner, files.lease()) {
        (StoreAddress::Remote(region), Some(owner), Some(lease)) => {
            match RemoteStore::resume_writer(region, remote, owner, lease) {
                Err(error) if matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Changed) => {
                    super::open_as(address, Some(owner), remote)?
                }
                resumed => Arc::new(resumed?),
            }
        }
        _ => super::open_as(address, owner, remote)?,
    };
    Ok(Arc::new(CacheStore::new(files, store, owner.is_some())?))
}

/// Opens the store at `address` with a cache in this process's memory in front of it, as [`open_cached`] does, where
/// that is of use: what is on this host already is as near as it can be, and a store that keeps no epochs cannot be
/// written to through a cache.
///
/// # Errors
///
/// As [`super::open_as`]; what the system says.
pub fn open_in_memory(
    address: &StoreAddress,
    owner: Option<&str>,
    remote: &RemoteOptions,
) -> Result<Arc<dyn Store>> {
    let store = super::open_as(address, owner, remote)?;
    let is_here = matches!(address, StoreAddress::Memory { .. } | StoreAddress::File(_));
    if is_here || (owner.is_some() && !store.info().capabilities.history) {
        return Ok(store);
    }
    Ok(Arc::new(CacheStore::new(CacheFiles::in_memory()?, store, owner.is_some())?))
}

impl CacheStore {
    /// Puts a cache in front of `store`: to be written to where `writable` is true.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Changed`] where the cache holds changes that were not pushed and cannot be now, with the
    /// way out; [`ErrorKind::Unsupported`] for a store to be written to that keeps no epochs; what the cache's
    /// disk says.
    pub fn new(files: CacheFiles, store: Arc<dyn Store>, writable: bool) -> Result<Self> {
        let mut cache = Self::assemble(files, store, writable)?;
        let (local, unpushed) = (cache.local.clone(), cache.unpushed.clone());
        let thread = std::thread::Builder::new().name("pw-cache".into());
        let thread = thread.spawn(move || keeping::run(&local, &unpushed));
        cache.keeping = Some(thread.map_err(|error| Error::io("cannot start a thread", &error))?);
        Ok(cache)
    }

    /// The same without a thread: what would be its work is done by [`CacheStore::settle`].
    fn assemble(files: CacheFiles, store: Arc<dyn Store>, writable: bool) -> Result<Self> {
        let info = store.info();
        if writable && !info.capabilities.history {
            let text = "a store that keeps no epochs cannot be written to through a cache";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let path = files.path.clone();
        let failed =
            |error: std::io::Error| Error::io(format!("cannot open the cache {}", path.display()), &error);
        let known = files.head.filter(|head| head.region == *info.id.as_bytes() && head.epoch <= info.epoch);
        if files.head.is_some_and(|head| head.epoch > 0) && known.is_none() {
            tracing::info!("the cache {} is of another region; it is filled anew", files.path.display());
        }
        let head = known.unwrap_or_default();
        let present = keeping::read_present(&*files.state, &head).map_err(failed)?;
        let (sequence, lasts) = (files.head.map_or(0, |head| head.sequence), files.lasts);
        let (local, unpushed) = Local::new(files, Head { sequence, ..head }, present);
        let cache = Self {
            store,
            local: Arc::new(local),
            unpushed: Arc::new(Mutex::new(unpushed)),
            recovered: Arc::default(),
            writable,
            lasts,
            pool: Pool::new(),
            keeping: None,
        };
        // Nothing is touched before it is known that the cache may be used for this region.
        cache.reconcile()?;
        let image = &cache.local.image;
        if image.len().map_err(&failed)? != head.length {
            image.set_len(head.length).map_err(failed)?;
        }
        cache.follow(&info);
        Ok(cache)
    }

    /// How much is there, and what that has saved.
    pub fn progress(&self) -> CacheProgress {
        let unpushed_bytes = self.unpushed().bytes();
        let view = self.local.view();
        CacheProgress {
            present_bytes: (view.present.count() * PAGE_SIZE).min(view.length),
            cached_bytes: self.local.cached_bytes.load(Ordering::Relaxed),
            remote_bytes: self.local.remote_bytes.load(Ordering::Relaxed),
            unpushed_bytes,
            complete: view.is_complete(),
        }
    }

    /// How many bytes were answered from the cache.
    pub fn cached_bytes(&self) -> u64 {
        self.local.cached_bytes.load(Ordering::Relaxed)
    }

    /// Whether all of the newest epoch is in the cache, and was checked since it was opened.
    pub fn is_complete(&self) -> bool {
        self.local.view().is_complete()
    }

    /// Checks what earlier lives of the cache have left, when what has come is in its place. Answers whether all
    /// of the newest epoch is there. It may take as long as to read the file.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn check(&self) -> Result<bool> {
        self.check_while(|| true)
    }

    /// [`CacheStore::check`] for as long as it is to `go_on`, which is asked again and again.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn check_while(&self, go_on: impl Fn() -> bool) -> Result<bool> {
        self.settle();
        self.local.check_rest(go_on)
    }

    /// Whether it outlasts this process: what is kept in one that does not is no safer than where it was before.
    pub fn lasts(&self) -> bool {
        self.lasts
    }

    /// What is missing of the newest epoch.
    pub fn missing(&self) -> Vec<ByteRange> {
        let view = self.local.view();
        view.present.gaps().map(|gap| ByteRange::of_pages(gap).clamp_to(view.length)).collect()
    }

    /// The file that holds all of `epoch`, each byte at its own offset, as long as the region, if it is
    /// [complete](CacheStore::is_complete), was not opened to be written to, and has not moved on. It holds that
    /// epoch until the next [`Store::refresh`].
    pub fn image(&self, epoch: u64) -> Option<Lent<'_>> {
        let file = self.local.file.as_ref().filter(|_| !self.writable)?;
        let view = self.local.view();
        (view.epoch == epoch && view.is_complete()).then(|| Lent { file: file.as_fd() })
    }

    /// Waits until everything that has come is in the files, as far as the kernel has it.
    pub fn settle(&self) {
        match self.keeping {
            Some(_) => self.local.settle(),
            None => keeping::catch_up(&self.local, &self.unpushed),
        }
    }

    /// Keeps `bytes`, those of `ranges`, one range after the other, for the next [`CacheStore::flush_local`]:
    /// whole pages, but for the region's end. A flush of the store releases what was kept before it was asked
    /// for, so what is kept has to be written to the store as well by then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where the cache was opened for reading; what its disk says.
    pub fn keep(&self, ranges: &[ByteRange], bytes: &[u8]) -> Result<()> {
        self.check_writable()?;
        let mut unpushed = self.unpushed_now()?;
        let mut rest = bytes;
        for range in ranges {
            let (these, behind) = rest.split_at(range.len() as usize);
            rest = behind;
            if !range.start.is_multiple_of(PAGE_SIZE) {
                return Err(Error::new(ErrorKind::Usage, format!("bytes {range} are not whole pages")));
            }
            unpushed.keep(*range, these, self.local.next_order())?;
        }
        Ok(())
    }

    /// Keeps a change of the length for the next [`CacheStore::flush_local`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where the cache was opened for reading.
    pub fn keep_length(&self, length: u64) -> Result<()> {
        self.check_writable()?;
        self.unpushed_now()?.keep_length(length, self.local.next_order());
        Ok(())
    }

    /// Makes everything that is kept durable on this host, all of it or nothing. It is found again when the
    /// cache is next opened for writing, if it was not flushed to the store by then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where the cache was opened for reading; what its disk says.
    pub fn flush_local(&self) -> Result<()> {
        self.check_writable()?;
        self.unpushed_now()?.flush()
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, "the cache was opened for reading"))
    }

    fn unpushed(&self) -> MutexGuard<'_, Unpushed> {
        self.unpushed.lock().expect("no holder panics")
    }

    /// The same without what flushes have covered by now.
    fn unpushed_now(&self) -> Result<MutexGuard<'_, Unpushed>> {
        let (info, flushed) = (self.store.info(), self.store.stage().flushed);
        let mut unpushed = self.unpushed();
        let done = {
            let mut flushes = self.local.flushes.lock().expect("no holder panics");
            // One whose answer was lost may turn out to be done.
            if let Some((_, order)) = flushes.open.take_if(|(number, _)| *number <= flushed) {
                flushes.done = Some(Done { order, epoch: info.epoch, length: info.length });
            }
            flushes.done.take()
        };
        if let Some(done) = done {
            unpushed.release(&done)?;
        }
        Ok(unpushed)
    }
}

impl Drop for CacheStore {
    fn drop(&mut self) {
        if self.keeping.is_none() {
            self.settle();
        }
        self.local.close();
        if let Some(keeping) = self.keeping.take() {
            // One that has panicked has stopped, too.
            let _ = keeping.join();
        }
        if let Some(file) = &self.local.file {
            // Answers on their way hold the file a moment longer than anybody uses it.
            let _ = pagewire_sys::file::unlock(file.as_fd());
        }
    }
}
