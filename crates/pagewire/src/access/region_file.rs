//! A region as a file, or as the bytes of a block device: what reading, writing, resizing and flushing it come to,
//! whoever asks for it.
//!
//! A file is *read* at one epoch, which moves on when the region does ([`RegionFile::follow`]); or it is *written*
//! by the one who has the region's lease. What was written stands in front of the store until it is flushed
//! ([`write`]).
//!
//! Everything is submit and complete: none of these calls waits for the store, and what they call back is
//! called on the thread that has the answer.

// What block devices need is less.
#![cfg_attr(not(feature = "fuse"), allow(dead_code))]

mod answer;
mod freezing;
mod unflushed;
mod write;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use pagewire_core::bitmap::AtomicBitSet;
use pagewire_core::chunk::{ByteRange, ChunkSize, Geometry, PAGE_SIZE};

use crate::engine::trace::Trace;
use crate::engine::{Moment, Pin, PushOptions, PushProgress, Region, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Completion, Read, STAGED, Urgency};
use answer::{Answer, Asked};
use freezing::Freezing;
use write::Writing;

pub(super) use answer::ReadDone;

/// From this length on a read goes the way of bulk.
const LONG: u64 = 64 << 10;

/// A region as a file.
pub(super) struct RegionFile {
    region: Arc<Region>,
    access: Access,
    /// The pages that were read since they changed last: a hint, since the kernel may have dropped them.
    read: AtomicBitSet,
    /// The pages that are known to hold zeroes, of a file that is read.
    zeroes: AtomicBitSet,
    pub(super) counters: Counters,
    arrivals: Arrivals,
    trace: Option<Arc<Trace>>,
    freezing: Freezing,
    /// Reads of an epoch that is gone, until the file has moved on; none where it does not.
    newer: Mutex<Option<Vec<Completion>>>,
}

/// Somebody may wait for something to be read.
#[derive(Default)]
struct Arrivals {
    waiters: AtomicUsize,
    lock: Mutex<()>,
    moved: Condvar,
}

enum Access {
    Read(RwLock<Arc<Pin>>),
    Write(Box<Writing>),
}

/// What reads had to do, and how much was written.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) demand_reads: AtomicU64,
    pub(super) demand_bytes: AtomicU64,
    pub(super) background_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
}

impl RegionFile {
    /// A file to read the newest epoch of a region. Where it `follows`, somebody calls [`RegionFile::follow`] again
    /// and again, until [`RegionFile::stay`].
    pub(super) fn read_only(region: Arc<Region>, follows: bool, trace: Option<Arc<Trace>>) -> Result<Self> {
        let pin = region.pin()?;
        // A newer epoch may be longer.
        let room = pin.info().length.max(pin.info().capacity);
        let newer = Mutex::new(follows.then(Vec::new));
        Ok(Self { newer, ..Self::new(region, Access::Read(RwLock::new(Arc::new(pin))), room, trace) })
    }

    /// A file to write to with the lease of `writer`.
    pub(super) fn writable(
        writer: Writer,
        push: &PushOptions,
        atomic: bool,
        trace: Option<Arc<Trace>>,
    ) -> Result<Self> {
        let region = writer.region().clone();
        let capacity = region.info().capacity;
        let writing = Box::new(Writing::start(writer, push, atomic)?);
        Ok(Self::new(region, Access::Write(writing), capacity, trace))
    }

    fn new(region: Arc<Region>, access: Access, room: u64, trace: Option<Arc<Trace>>) -> Self {
        let pages = Geometry::new(room, ChunkSize::PAGE).page_count();
        let (read, zeroes) = (AtomicBitSet::new(pages), AtomicBitSet::new(pages));
        let (counters, arrivals) = (Counters::default(), Arrivals::default());
        let (newer, freezing) = (Mutex::default(), Freezing::default());
        Self { region, access, read, zeroes, counters, arrivals, trace, freezing, newer }
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    pub(super) fn is_writable(&self) -> bool {
        matches!(self.access, Access::Write(_))
    }

    /// Writes the trace, where one is recorded.
    pub(super) fn save_trace(&self) -> Result<()> {
        self.trace.as_ref().map_or(Ok(()), |trace| trace.save())
    }

    /// The epoch that readers see: the newest, for a file that is written to.
    pub(super) fn epoch(&self) -> u64 {
        match &self.access {
            Access::Read(pin) => pin.read().expect("no holder panics").epoch(),
            Access::Write(_) => self.region.info().epoch,
        }
    }

    /// The length as it is now, in bytes.
    pub(super) fn length(&self) -> u64 {
        match &self.access {
            Access::Read(pin) => pin.read().expect("no holder panics").info().length,
            Access::Write(writing) => writing.pusher.length(),
        }
    }

    /// The length that it can have, in bytes.
    pub(super) fn capacity(&self) -> u64 {
        match &self.access {
            Access::Read(_) => self.length(),
            Access::Write(_) => self.region.info().capacity,
        }
    }

    /// How far the writing is, where it is written to.
    pub(super) fn push_progress(&self) -> Option<PushProgress> {
        match &self.access {
            Access::Read(_) => None,
            Access::Write(writing) => Some(writing.pusher.progress()),
        }
    }

    /// How many bytes of pages were written and are not flushed.
    pub(super) fn unflushed_bytes(&self) -> u64 {
        match &self.access {
            Access::Read(_) => 0,
            Access::Write(writing) => writing.unflushed.bytes(),
        }
    }

    /// Whether any page of `range` was written and is not flushed.
    #[cfg_attr(not(feature = "nbd"), expect(dead_code, reason = "only NBD tells of it"))]
    pub(super) fn is_unflushed(&self, range: ByteRange) -> bool {
        match &self.access {
            Access::Read(_) => false,
            Access::Write(writing) => writing.unflushed.touches(range),
        }
    }

    /// How many bytes were read since they changed last.
    pub(super) fn read_bytes(&self) -> u64 {
        (self.read.count() * PAGE_SIZE).min(self.length())
    }

    /// Whether any page of `range` was not read since it changed last.
    pub(super) fn misses(&self, range: ByteRange) -> bool {
        let pages = pages_in(&self.read, range);
        self.read.next_gap(pages.start).is_some_and(|gap| gap < pages.end)
    }

    /// Reads what there is of `range`, and calls `done` with its bytes: fewer at the end of the file.
    pub(super) fn read(self: &Arc<Self>, range: ByteRange, urgency: Urgency, done: ReadDone) {
        let range = range.clamp_to(self.length());
        if range.is_empty() {
            return done(Ok(&[]));
        }
        if urgency == Urgency::Demand {
            self.counters.demand_reads.fetch_add(1, Ordering::Relaxed);
            if let Some(trace) = &self.trace {
                trace.record(range);
            }
        }
        self.submit_read(range, Asked { urgency, is_noted: true }, done);
    }

    /// The same for somebody who caches nothing: no note is taken of it.
    pub(super) fn peek(self: &Arc<Self>, range: ByteRange, urgency: Urgency, done: ReadDone) {
        let range = range.clamp_to(self.length());
        if range.is_empty() {
            return done(Ok(&[]));
        }
        self.submit_read(range, Asked { urgency, is_noted: false }, done);
    }

    /// Reads a range that is not empty; it may be read again.
    fn submit_read(self: &Arc<Self>, range: ByteRange, asked: Asked, done: ReadDone) {
        // To a peer, the way of bulk is the faster one for what is long, whoever waits. Here it may hold up this thread.
        let by_bulk = range.len() >= LONG && self.region.info().capabilities.stream;
        let way = if by_bulk { Urgency::Background } else { asked.urgency };
        match &self.access {
            Access::Read(pin) => {
                let pin = pin.read().expect("no holder panics").clone();
                let epoch = pin.epoch();
                let sink = Arc::new(Answer::new(self, range, &[range], asked, done).at_epoch(pin));
                self.region.read(Read { ranges: vec![range], epoch, urgency: way, sink });
            }
            Access::Write(writing) => {
                let (readable, moment) = writing.pusher.readable();
                if range.end <= readable && !writing.unflushed.touches(range) {
                    let sink = Arc::new(Answer::new(self, range, &[range], asked, done).staged_at(moment));
                    return self.region.read(Read { ranges: vec![range], epoch: STAGED, urgency: way, sink });
                }
                let mut bytes = vec![0; range.len() as usize];
                let gaps = writing.unflushed.copy_out(range, &mut bytes);
                // Asked after that: pages that were flushed meanwhile are gone from here, and may lie behind what
                // the store could be asked for before.
                let (readable, moment) = writing.pusher.readable();
                // Behind what the store can be asked for are zeroes.
                let gaps: Vec<ByteRange> = gaps
                    .into_iter()
                    .map(|gap| gap.clamp_to(readable))
                    .filter(|gap| !gap.is_empty())
                    .collect();
                if gaps.is_empty() {
                    return done(Ok(&bytes));
                }
                let answer = Answer::new(self, range, &gaps, asked, done).over(bytes);
                let sink = Arc::new(answer.staged_at(moment));
                self.region.read(Read { ranges: gaps, epoch: STAGED, urgency: way, sink });
            }
        }
    }

    /// The moment that the store is at; none where it is not written to.
    pub(super) fn moment(&self) -> Option<Moment> {
        match &self.access {
            Access::Read(_) => None,
            Access::Write(writing) => Some(writing.pusher.readable().1),
        }
    }

    /// Whether readers see another epoch than that of `pin` by now.
    pub(super) fn has_moved(&self, pin: &Arc<Pin>) -> bool {
        match &self.access {
            Access::Read(now) => !Arc::ptr_eq(&now.read().expect("no holder panics"), pin),
            Access::Write(_) => false,
        }
    }

    /// Takes note of what was answered.
    fn was_read(&self, range: ByteRange, asked: Asked) {
        if !asked.is_noted {
            return;
        }
        let counter = match asked.urgency {
            Urgency::Demand => &self.counters.demand_bytes,
            Urgency::Background => &self.counters.background_bytes,
        };
        counter.fetch_add(range.len(), Ordering::Relaxed);
        self.read.insert_range(pages_in(&self.read, range));
        // Who begins to wait just now looks again after a moment.
        if self.arrivals.waiters.load(Ordering::Relaxed) > 0 {
            self.arrivals.moved.notify_all();
        }
    }

    /// Waits until something was read, or for a moment.
    pub(super) fn wait_for_read(&self, most: Duration) {
        let Arrivals { waiters, lock, moved } = &self.arrivals;
        let guard = lock.lock().expect("no holder panics");
        waiters.fetch_add(1, Ordering::Relaxed);
        let _early = moved.wait_timeout(guard, most).expect("no holder panics");
        waiters.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes note of zeroes of an epoch, if it is that which readers see.
    pub(super) fn is_zero(&self, range: ByteRange, pin: &Arc<Pin>) {
        // Of a file that is written to nobody asks.
        let Access::Read(now) = &self.access else { return };
        // Held, so that the file does not move on in between.
        let now = now.read().expect("no holder panics");
        if !Arc::ptr_eq(&now, pin) {
            return;
        }
        let end = range.end == now.info().length;
        let whole = range.start.div_ceil(PAGE_SIZE)..if end {
            range.end.div_ceil(PAGE_SIZE)
        } else {
            range.end / PAGE_SIZE
        };
        let whole = whole.start.min(self.zeroes.len())..whole.end.min(self.zeroes.len());
        if whole.start < whole.end {
            self.zeroes.insert_range(whole);
        }
    }

    /// The first byte at or behind `offset` that may be data, or that is known to be in a hole; the end of the
    /// file is a hole. None behind the end, and where there is no more data.
    pub(super) fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        let length = self.length();
        if offset >= length {
            return None;
        }
        let page = (offset / PAGE_SIZE).min(self.zeroes.len());
        let found = if data { self.zeroes.next_gap(page) } else { self.zeroes.next_member(page) };
        let found = found.map_or(u64::MAX, |page| page.saturating_mul(PAGE_SIZE)).max(offset);
        match (found < length, data) {
            (true, _) => Some(found),
            (false, true) => None,
            (false, false) => Some(length),
        }
    }

    /// Moves a file that is read on to the newest epoch of its region. Answers the ranges that may have changed;
    /// none where there is no newer one.
    ///
    /// Reads of the old epoch that are under way are answered with its bytes, or asked for again: whoever caches
    /// what is read has to drop these ranges after this call.
    pub(super) fn follow(&self) -> Result<Option<Vec<ByteRange>>> {
        let Access::Read(pin) = &self.access else { return Ok(None) };
        let old = pin.read().expect("no holder panics").clone();
        let is_gone = self.waiting().as_ref().is_some_and(|waiting| !waiting.is_empty());
        if self.region.newest() == old.epoch() && !is_gone {
            return Ok(None);
        }
        let moved = self.region.refresh().and_then(|_| self.region.pin());
        let new = match moved {
            Ok(new) if new.epoch() != old.epoch() => new,
            // That was gone, too, before it could be held: the next one may be had.
            Err(error) if error.kind() == ErrorKind::Stale => return Ok(None),
            result => {
                // Who finds the epoch gone waits for nothing then.
                let waiting = self.waiting().as_mut().map(std::mem::take).unwrap_or_default();
                let error = || Error::new(ErrorKind::Stale, format!("epoch {} is gone", old.epoch()));
                let error = result.as_ref().err().cloned().unwrap_or_else(error);
                waiting.into_iter().for_each(|go_on| go_on(Err(error.clone())));
                return result.map(|_| None);
            }
        };
        let (before, after) = (old.info().length, new.info().length);
        let whole = ByteRange::new(0, before.max(after));
        let mut changed = self.region.changes(old.epoch()).unwrap_or_else(|| vec![whole]);
        if before != after {
            changed.push(ByteRange::new(before.min(after) / PAGE_SIZE * PAGE_SIZE, whole.end));
        }
        *pin.write().expect("no holder panics") = Arc::new(new);
        for range in &changed {
            for set in [&self.read, &self.zeroes] {
                set.remove_range(pages_in(set, *range));
            }
        }
        // Before whoever caches drops what has changed, which may wait for these.
        let waiting = self.waiting().as_mut().map(std::mem::take).unwrap_or_default();
        waiting.into_iter().for_each(|go_on| go_on(Ok(())));
        Ok(Some(ByteRange::union(changed)))
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Vec<Completion>>> {
        self.newer.lock().expect("no holder panics")
    }

    /// Calls `go_on` once readers see another epoch than that of `pin`, which is gone; or with `error`, where nobody
    /// has the file move on.
    pub(super) fn when_moved(&self, pin: &Arc<Pin>, error: Error, go_on: Completion) {
        let mut waiting = self.waiting();
        let result = match waiting.as_mut() {
            _ if self.has_moved(pin) => Ok(()),
            Some(waiting) => return waiting.push(go_on),
            None => Err(error),
        };
        drop(waiting);
        go_on(result);
    }

    /// The file moves on no more: those who wait for it are told, and nobody waits from now on.
    pub(super) fn stay(&self) {
        let waiting = self.waiting().take().unwrap_or_default();
        let over = || Error::new(ErrorKind::Cancelled, "the mount is taken down");
        waiting.into_iter().for_each(|go_on| go_on(Err(over())));
    }
}

/// The pages that a range touches.
fn pages(range: ByteRange) -> std::ops::Range<u64> {
    range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE)
}

/// The pages that a range touches, as far as a set has them.
fn pages_in(set: &AtomicBitSet, range: ByteRange) -> std::ops::Range<u64> {
    let pages = pages(range);
    pages.start.min(set.len())..pages.end.min(set.len())
}
