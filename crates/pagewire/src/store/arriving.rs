//! A region on its way: what has arrived is at its new home, the rest is still at its origin.
//!
//! To who writes it is the region as it is: what is read and has not arrived is asked of the origin, and kept; what is
//! written has arrived. The origin's bytes stay what they are from the switch on, so it does not matter when which
//! page comes. Nobody else can read it until everything is here: an older epoch has pages of the origin in it that a
//! newer one has at home.
//!
//! *Durable* is what a flush of the home has covered. Before a flush, a [`Keeper`] takes note of the pages that it will make
//! durable, and of those that are so already: after a crash the home's epoch tells which of the two is true, and all
//! else comes from the origin again. Where the home gives up what was staged, pages that had arrived since its last
//! flush have not arrived.
//!
//! - [`pages`]: which pages are where.
//! - [`fill`]: what comes from the origin.

mod fill;
mod pages;

use std::sync::{Arc, Mutex, MutexGuard, RwLock, Weak};
use std::time::Duration;

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use super::joined::JoinedReads;
use super::{
    AtOnce, Capabilities, Completion, Flush, HashRequest, Info, Lent, Read, STAGED, Sink, Stage, Store,
    Traffic, wait,
};
use crate::error::{Error, ErrorKind, Result};
pub(crate) use fill::Filling;
use fill::Kept;
use pages::{Pages, whole_pages};

/// Takes note, durably, of which pages are durable at home.
pub(crate) trait Keeper: Send + Sync {
    /// The home is about to be flushed: at its epoch `epoch` it has the pages `before`, at the next one `after`.
    fn flushing(&self, epoch: u64, before: &BitSet, after: &BitSet) -> Result<()>;
}

/// A region that is at two places.
pub(crate) struct Arriving {
    home: Arc<dyn Store>,
    /// None once everything is here.
    origin: RwLock<Option<Arc<dyn Store>>>,
    pages: Pages,
    keeper: Option<Box<dyn Keeper>>,
    flushes: Mutex<Flushes>,
    /// Held for as long as the home is flushed.
    flushing: Mutex<()>,
    this: Weak<Self>,
}

/// Flushes of the one who writes, and those that are made besides: the home numbers them together.
#[derive(Default)]
struct Flushes {
    /// The greatest number that the writer has flushed by.
    writers: u64,
    /// The last number that the home was given.
    home: u64,
}

impl Arriving {
    /// A region of which the pages `present` are durable at `home`, which its writer has fenced; all others are at
    /// `origin`.
    pub(crate) fn new(
        home: Arc<dyn Store>,
        origin: Arc<dyn Store>,
        present: BitSet,
        keeper: Option<Box<dyn Keeper>>,
    ) -> Arc<Self> {
        let stage = home.stage();
        let flushes = Flushes { writers: stage.flushed, home: stage.flushed };
        Arc::new_cyclic(|this| Self {
            pages: Pages::new(present, stage),
            home,
            origin: RwLock::new(Some(origin)),
            keeper,
            flushes: Mutex::new(flushes),
            flushing: Mutex::default(),
            this: this.clone(),
        })
    }

    /// Where it arrives.
    pub(crate) fn home(&self) -> &Arc<dyn Store> {
        &self.home
    }

    fn origin(&self) -> Option<Arc<dyn Store>> {
        self.origin.read().expect("no holder panics").clone()
    }

    fn flushes(&self) -> MutexGuard<'_, Flushes> {
        self.flushes.lock().expect("no holder panics")
    }

    /// What has not arrived, in order.
    pub(crate) fn absent(&self) -> Vec<ByteRange> {
        self.pages.absent(self.home.stage())
    }

    /// Whether all of it is durable at home.
    #[cfg(test)]
    pub(crate) fn is_settled(&self) -> bool {
        self.pages.is_durable(self.home.stage())
    }

    /// Pages of the origin have changed: what has come of them is old. Not after the switch.
    pub(crate) fn invalidate(&self, ranges: &[ByteRange]) {
        self.pages.invalidate(ranges);
    }

    /// Changes the length that the region has at home, before the switch.
    pub(crate) fn resize(&self, length: u64) -> Result<()> {
        if length == self.home.stage().length {
            return Ok(());
        }
        wait(|done| self.home.set_length(length, done))?;
        self.pages.resized(length);
        Ok(())
    }

    /// Has the keeper take note of what is durable at home now.
    pub(crate) fn note(&self) -> Result<()> {
        let _one = self.flushing.lock().expect("no holder panics");
        let Some(keeper) = &self.keeper else { return Ok(()) };
        let durable = self.pages.durable(self.home.stage());
        keeper.flushing(self.home.info().epoch, &durable, &durable)
    }

    /// Makes what has arrived durable at home, besides the flushes of who writes.
    pub(crate) fn settle(&self) -> Result<Info> {
        let stage = self.home.stage().number;
        self.flush_home(stage, None)
    }

    /// Everything is here and durable: the origin is not asked for anything any more.
    pub(crate) fn complete(&self) {
        // What has become the region's since it was settled, because that has grown here, need not be durable.
        *self.origin.write().expect("no holder panics") = None;
    }

    /// Flushes the home under its next number: for the writer, whose own number is `number`, or for nobody.
    fn flush_home(&self, stage: u64, number: Option<u64>) -> Result<Info> {
        let _one = self.flushing.lock().expect("no holder panics");
        let arrives = self.origin().is_some();
        if arrives {
            let epoch = self.home.info().epoch;
            let note = |before: &BitSet, after: &BitSet| {
                self.keeper.as_ref().map_or(Ok(()), |keeper| keeper.flushing(epoch, before, after))
            };
            let noted = self.pages.begin_flush(self.home.stage(), note);
            noted.map_err(|error| error.context("cannot take note of what is about to be durable"))?;
        }
        let next = {
            let mut flushes = self.flushes();
            flushes.home = flushes.home.max(self.home.stage().flushed) + 1;
            flushes.home
        };
        let result = wait(|done| self.home.flush(Flush { number: next, stage, done }));
        if arrives {
            self.pages.end_flush(result.is_ok(), self.home.stage());
        }
        if let (Ok(_), Some(number)) = (&result, number) {
            let mut flushes = self.flushes();
            flushes.writers = flushes.writers.max(number);
        }
        result.map(|info| self.seen(info))
    }

    /// What the region is while it arrives.
    fn seen(&self, info: Info) -> Info {
        if self.origin().is_none() {
            return info;
        }
        let Capabilities { history, commit, .. } = info.capabilities;
        let capabilities = Capabilities { history, commit, ..Capabilities::default() };
        Info { capabilities, ..info }
    }

    /// Waits until no page of `ranges` is on its way, brings those that are to be changed in part and have not
    /// arrived, and counts them all as being written. Answers what ends that.
    fn begin_change(&self, ranges: &[ByteRange]) -> Result<pages::Change> {
        let stage = self.home.stage();
        for range in ranges {
            let whole = whole_pages(*range, stage.length);
            for page in [range.start / PAGE_SIZE, range.end.saturating_sub(1) / PAGE_SIZE] {
                if !whole.contains(&page) && range.start < range.end {
                    self.bring(page)?;
                }
            }
        }
        Ok(self.pages.begin_change(ranges))
    }

    /// Sees to it that a page has arrived.
    fn bring(&self, page: u64) -> Result<()> {
        let range = ByteRange::of_pages(page..page + 1).clamp_to(self.home.stage().length);
        while !range.is_empty() && self.pages.is_absent(page, self.home.stage()) {
            let Some(origin) = self.origin() else { return Ok(()) };
            let bytes = super::Gather::wait(range, |sink| {
                let (epoch, urgency) = (origin.info().epoch, super::Urgency::Demand);
                origin.read(Read { ranges: vec![range], epoch, urgency, sink });
            });
            match bytes {
                Ok(bytes) => self.fill(crate::sink::Part::Bytes { offset: range.start, bytes: &bytes })?,
                // It may have come in another way.
                Err(error) if self.pages.is_absent(page, self.home.stage()) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn change(&self, ranges: &[ByteRange], done: Completion, submit: impl FnOnce(Completion)) {
        if self.origin().is_none() {
            return submit(done);
        }
        match self.begin_change(ranges) {
            Err(error) => done(Err(error)),
            Ok(change) => {
                let result = wait(submit);
                self.pages.end_change(change, result.is_ok(), self.home.stage());
                done(result);
            }
        }
    }
}

impl Store for Arriving {
    fn info(&self) -> Info {
        self.seen(self.home.info())
    }

    fn read(&self, read: Read) {
        let Some(origin) = self.origin() else { return self.home.read(read) };
        if read.epoch != STAGED {
            return read.sink.done(Err(on_its_way()));
        }
        let stage = self.home.stage();
        let beyond = read.ranges.iter().find(|range| range.end > stage.length);
        if let Some(range) = beyond {
            let text = format!("bytes {range} of a region of {} bytes", stage.length);
            return read.sink.done(Err(Error::new(ErrorKind::OutOfRange, text)));
        }
        let (here, there) = self.pages.split(&read.ranges, stage);
        let Read { epoch, urgency, sink, .. } = read;
        let sink: Arc<dyn Sink> = match (here.is_empty(), there.is_empty()) {
            (_, true) => return self.home.read(Read { ranges: here, epoch, urgency, sink }),
            (true, false) => sink,
            (false, false) => Arc::new(JoinedReads::new(2, sink)),
        };
        // What has to come from afar sets out first.
        let Some(this) = self.this.upgrade() else {
            return sink.done(Err(Error::new(ErrorKind::Cancelled, "the region was closed")));
        };
        let kept = Arc::new(Kept::new(this, there.clone(), urgency, sink.clone()));
        origin.read(Read { ranges: there, epoch: origin.info().epoch, urgency, sink: kept });
        if !here.is_empty() {
            self.home.read(Read { ranges: here, epoch, urgency, sink });
        }
    }

    fn read_at_once(&self, range: ByteRange, epoch: u64, buffer: &mut [u8]) -> Result<AtOnce> {
        if self.origin().is_some()
            && (epoch != STAGED || !self.pages.split(&[range], self.home.stage()).1.is_empty())
        {
            return Ok(AtOnce::NotNow);
        }
        self.home.read_at_once(range, epoch, buffer)
    }

    fn holes(&self, range: ByteRange, epoch: u64) -> Option<Vec<ByteRange>> {
        if self.origin().is_some() { None } else { self.home.holes(range, epoch) }
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        self.change(ranges, done, |done| self.home.write(ranges, bytes, done));
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        self.change(ranges, done, |done| self.home.zero(ranges, done));
    }

    fn set_length(&self, length: u64, done: Completion) {
        if self.origin().is_none() {
            return self.home.set_length(length, done);
        }
        let now = self.home.stage().length;
        // The page that the new or the old end is in is changed in part.
        let ends = [length.min(now), now].map(|end| ByteRange::new(end / PAGE_SIZE * PAGE_SIZE, end));
        for end in ends.iter().filter(|end| !end.is_empty()) {
            if let Err(error) = self.bring(end.start / PAGE_SIZE) {
                return done(Err(error));
            }
        }
        // Nothing comes meanwhile of what is between the two.
        let behind = ByteRange::new(length.min(now), length.max(now));
        let change = self.pages.begin_change(&[behind]);
        let result = wait(|done| self.home.set_length(length, done));
        if result.is_ok() {
            self.pages.set_length(length);
        }
        self.pages.end_change(change, false, self.home.stage());
        done(result);
    }

    fn flush(&self, flush: Flush) {
        let Flush { number, stage, done } = flush;
        if number <= self.flushes().writers {
            return done(Ok(self.info()));
        }
        done(self.flush_home(stage, Some(number)));
    }

    fn is_durable(&self) -> bool {
        self.home.is_durable()
    }

    fn stage(&self) -> Stage {
        Stage { flushed: self.flushes().writers, ..self.home.stage() }
    }

    fn discard(&self) -> Result<()> {
        let discarded = self.home.discard();
        self.pages.look_at(self.home.stage());
        discarded
    }

    fn fence(&self) -> Result<Option<u64>> {
        let token = self.home.fence()?;
        self.pages.look_at(self.home.stage());
        let flushed = self.home.stage().flushed;
        *self.flushes() = Flushes { writers: 0, home: flushed };
        Ok(token)
    }

    fn pin(&self, epoch: Option<u64>) -> Result<Info> {
        if self.origin().is_some() { Err(on_its_way()) } else { self.home.pin(epoch) }
    }

    fn unpin(&self, epoch: u64) {
        self.home.unpin(epoch);
    }

    fn newest(&self) -> u64 {
        self.home.newest()
    }

    fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        if self.origin().is_some() { None } else { self.home.changes(since) }
    }

    fn lend(&self) -> Option<Lent<'_>> {
        if self.origin().is_some() { None } else { self.home.lend() }
    }

    fn hash(&self, hash: HashRequest) {
        self.home.hash(hash);
    }

    fn traffic(&self) -> Traffic {
        self.origin().map_or_else(|| self.home.traffic(), |origin| origin.traffic())
    }

    fn round_trip(&self) -> Duration {
        self.origin().map_or_else(|| self.home.round_trip(), |origin| origin.round_trip())
    }

    fn refresh(&self) -> Result<Info> {
        self.home.refresh().map(|info| self.seen(info))
    }
}

fn on_its_way() -> Error {
    let text = "the region is on its way here; it can be read by others once all of it has arrived";
    Error::new(ErrorKind::Busy, text).with_retry(true)
}

#[cfg(test)]
mod tests;
