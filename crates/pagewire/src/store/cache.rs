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

mod files;
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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use pagewire_core::cache::Head;
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::wire::MAX_RANGES;
use serde::Serialize;

use super::pool::Pool;
use super::{
    Completion, Flush, Info, Lent, Read, RemoteOptions, RemoteStore, STAGED, Sink, Stage, Store, Stream,
    StreamRequest, Urgency,
};
use crate::address::StoreAddress;
use crate::error::{Error, ErrorKind, Result};
use local::{Done, Job, Local, Move, touching};
use read::{Answer, CachedStream, Joined, coalesce};
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

    /// Follows the store to its epoch.
    fn follow(&self, info: &Info) {
        let region = *info.id.as_bytes();
        let (known, same) = {
            let view = self.local.view();
            (view.epoch, view.region == region && view.epoch > 0)
        };
        if same && info.epoch <= known {
            return;
        }
        // The store may be asked for this, so no lock is held.
        let changes = if same { self.store.changes(known) } else { None };
        if same && changes.is_none() {
            let cache = self.local.path.display();
            tracing::info!(
                "what has changed since the cache {cache} was used is not known; it is filled anew"
            );
        }
        let mut view = self.local.view();
        if view.epoch != known {
            return;
        }
        let before = view.length;
        let cut = before.min(info.length);
        let stale = changes.map(|changes| {
            let end = before.max(info.length);
            let tail = ByteRange::new(cut, end);
            let changes = changes.into_iter().chain([tail]).map(|range| touching(range.clamp_to(end)));
            changes.filter(|pages| !pages.is_empty()).collect::<Vec<_>>()
        });
        match &stale {
            Some(stale) => stale.iter().for_each(|pages| view.forget(pages.clone())),
            None => {
                let everything = view.present.len();
                view.forget(0..everything);
                view.salt = new_salt();
            }
        }
        view.resize(info.length);
        (view.region, view.epoch) = (region, info.epoch);
        view.begin_generation(stale.clone());
        let head = Head { sequence: 0, region, salt: view.salt, epoch: info.epoch, length: info.length };
        let step = Move { head, generation: view.generation, stale, staged: Vec::new() };
        // Under the view's lock: steps follow each other in the order of their epochs.
        if cut < before {
            self.local.push(Job::Cut(cut), 0);
        }
        self.local.push(Job::Move(step), 0);
    }

    /// What of a read the image has, and what the store has to be asked for. None where all of it is the
    /// store's.
    fn split(&self, ranges: &[ByteRange], epoch: u64) -> Option<(local::Pulled, Vec<ByteRange>, Groups)> {
        let view = self.local.view();
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        if epoch != STAGED && (epoch != view.epoch || end > view.length) {
            return None;
        }
        let (mut there, mut groups) = (Vec::new(), Vec::with_capacity(ranges.len()));
        for range in ranges {
            let mut missing = Vec::new();
            view.split(*range, &mut there, &mut missing);
            groups.push(missing);
        }
        Some((view.pulled(), there, groups))
    }

    fn answer(&self, at: local::Pulled, epoch: u64, urgency: Urgency, sink: Arc<dyn Sink>) -> Answer {
        let (local, store) = (self.local.clone(), self.store.clone());
        Answer { local, store, at, epoch, urgency, joined: Joined::new(sink) }
    }
}

/// What is missing of each range of a request.
type Groups = Vec<Vec<ByteRange>>;

fn new_salt() -> u64 {
    let mut salt = [0; 8];
    salt.copy_from_slice(&crate::peer::random_id()[..8]);
    u64::from_le_bytes(salt)
}

impl Store for CacheStore {
    fn info(&self) -> Info {
        self.seen(self.store.info())
    }

    fn read(&self, read: Read) {
        let Some((at, there, mut groups)) = self.split(&read.ranges, read.epoch) else {
            return self.store.read(read);
        };
        let Read { epoch, urgency, sink, .. } = read;
        let answer = self.answer(at, epoch, urgency, sink);
        let kept = if epoch == STAGED { self.take_recovered(&mut groups) } else { Vec::new() };
        answer.ask(groups.concat());
        if !kept.is_empty() {
            answer.joined.begin();
            let (answer, unpushed) = (answer.clone(), self.unpushed.clone());
            self.pool.run(Box::new(move || answer.joined.end(answer.answer_kept(&unpushed, &kept))));
        }
        let wait = urgency == Urgency::Background || self.local.in_memory;
        let ended = Arc::<AtomicBool>::default();
        let left = answer.answer(&there, wait, &ended);
        if !left.is_empty() {
            answer.joined.begin();
            let answer = answer.clone();
            self.pool.run(Box::new(move || {
                let left = answer.answer(&left, true, &ended);
                answer.ask(left);
                answer.joined.end(Ok(()));
            }));
        }
        answer.joined.end(Ok(()));
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        match self.push_recovered() {
            Ok(()) => {
                self.replaces(ranges);
                self.write_through(ranges, bytes, done);
            }
            Err(error) => done(Err(error)),
        }
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        match self.push_recovered() {
            Ok(()) => {
                self.replaces(ranges);
                self.zero_through(ranges, done);
            }
            Err(error) => done(Err(error)),
        }
    }

    fn set_length(&self, length: u64, done: Completion) {
        match self.push_recovered() {
            Ok(()) => {
                self.replaces_from(length.min(self.store.stage().length));
                self.set_length_through(length, done);
            }
            Err(error) => done(Err(error)),
        }
    }

    fn flush(&self, flush: Flush) {
        match self.push_recovered() {
            Ok(()) => self.flush_through(flush),
            Err(error) => (flush.done)(Err(error)),
        }
    }

    fn stage(&self) -> Stage {
        let stage = self.store.stage();
        let recovered = self.recovered.lock().expect("no holder panics");
        let length = recovered.as_ref().and_then(|recovered| recovered.length_at(&stage));
        Stage { recovered: recovered.is_some(), length: length.unwrap_or(stage.length), ..stage }
    }

    fn discard(&self) -> Result<()> {
        self.store.discard()?;
        self.give_up_written();
        Ok(())
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.check_writable()?;
        self.begin_writer()
    }

    fn pin(&self, epoch: Option<u64>) -> Result<Info> {
        let info = self.store.pin(epoch)?;
        if epoch.is_none() {
            self.follow(&info);
        }
        Ok(self.seen(info))
    }

    fn unpin(&self, epoch: u64) {
        self.store.unpin(epoch);
    }

    fn newest(&self) -> u64 {
        self.store.newest()
    }

    fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        self.store.changes(since)
    }

    fn stream(&self, stream: StreamRequest) -> Result<Box<dyn Stream>> {
        let StreamRequest { ranges, epoch, sink } = stream;
        let Some((at, there, mut groups)) = self.split(&ranges, epoch) else {
            return self.store.stream(StreamRequest { ranges, epoch, sink });
        };
        let answer = self.answer(at, epoch, Urgency::Background, sink);
        let kept = if epoch == STAGED { self.take_recovered(&mut groups) } else { Vec::new() };
        // What was joined would bring what is kept from the store.
        let mut asked = if kept.is_empty() { coalesce(groups, MAX_RANGES) } else { groups.concat() };
        let rest = asked.split_off(asked.len().min(MAX_RANGES));
        // What was joined covers some of what is there.
        let covered = ByteRange::union(asked.clone());
        let there: Vec<ByteRange> = there.into_iter().flat_map(|range| without(range, &covered)).collect();
        let mut remote = None;
        if !asked.is_empty() {
            answer.joined.begin();
            let sink = answer.sink();
            remote = Some(self.store.stream(StreamRequest { ranges: asked.clone(), epoch, sink })?);
            answer.ask(rest);
        }
        let ended = Arc::<AtomicBool>::default();
        let (cancelled, unpushed) = (ended.clone(), self.unpushed.clone());
        self.pool.run(Box::new(move || {
            let kept = answer.answer_kept(&unpushed, &kept);
            answer.answer(&there, true, &cancelled);
            let is_cancelled = cancelled.load(Ordering::Acquire) && !there.is_empty();
            answer.joined.end(match is_cancelled {
                true => Err(Error::new(ErrorKind::Cancelled, "the stream was cancelled")),
                false => kept,
            });
        }));
        Ok(Box::new(CachedStream { ended, remote, asked }))
    }

    fn round_trip(&self) -> Duration {
        self.store.round_trip()
    }

    fn refresh(&self) -> Result<Info> {
        let info = self.store.refresh()?;
        self.follow(&info);
        Ok(self.seen(info))
    }

    fn cache(&self) -> Option<&CacheStore> {
        Some(self)
    }
}

impl CacheStore {
    /// What the store says, as it is through the cache.
    fn seen(&self, mut info: Info) -> Info {
        // Whoever is lent the file has to know that it moves on with a refresh.
        info.capabilities.lend = false;
        info.writable &= self.writable;
        info
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

/// What of `range` is in none of `others`, which are in order and do not overlap.
fn without(range: ByteRange, others: &[ByteRange]) -> Vec<ByteRange> {
    let mut left = vec![range];
    let first = others.partition_point(|other| other.end <= range.start);
    for other in others[first..].iter().take_while(|other| other.start < range.end) {
        let last = left.pop().unwrap_or(ByteRange::new(range.end, range.end));
        left.extend(last.without(*other));
    }
    left.retain(|range| !range.is_empty());
    left
}
