//! The writer that all clients of an export share: what they have written, and how it is flushed.
//!
//! A flush covers what was answered before it came, from whichever connection. So flushes that come while
//! one is under way need one more in all: whoever waits behind it is covered by the next, which begins after
//! they came.
//!
//! A flush that fails may have lost what others have written. So each client is told once, by its own next
//! flush, of every loss since it came ([`Writing::losses`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use pagewire_core::bitmap::{AtomicBitSet, BitSet};
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use crate::engine::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Flush, wait};

/// How many bytes may be written before they are flushed though nobody asks for it, where a flush costs room
/// until it comes: what is staged takes up to this much beside the region.
const FLUSH_ABOVE: u64 = 1 << 30;

/// The writer that all clients of an export share.
pub(super) struct Writing {
    pub(super) writer: Writer,
    /// The pages that were written and not flushed.
    written: AtomicBitSet,
    /// How many bytes that is, with what was written twice.
    bytes: AtomicU64,
    /// Whether it is being flushed since it was much.
    relieving: AtomicBool,
    /// How many flushes were asked for.
    asked: AtomicU64,
    flushing: Mutex<Flushing>,
    /// Those of the pages that are being flushed.
    under_way: Mutex<BitSet>,
    /// How often something may have been lost.
    losses: AtomicU64,
}

struct Flushing {
    /// The store's stage that what was written belongs to, and the number of the last flush.
    stage: u64,
    number: u64,
    /// How many flushes had been asked for when the last one began, and how it has ended.
    covers: u64,
    result: Result<()>,
}

impl Writing {
    pub(super) fn new(writer: Writer) -> Self {
        let stage = writer.stage();
        let pages = writer.region().info().capacity.max(stage.length).div_ceil(PAGE_SIZE);
        let flushing = Flushing { stage: stage.number, number: stage.flushed, covers: 0, result: Ok(()) };
        Self {
            writer,
            written: AtomicBitSet::new(pages),
            bytes: AtomicU64::new(0),
            relieving: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            flushing: Mutex::new(flushing),
            under_way: Mutex::new(BitSet::new(pages)),
            losses: AtomicU64::new(0),
        }
    }

    /// `range` was written, or may have been in part. To be called when that is done, and before it is answered: a
    /// flush that has begun by then may or may not cover it.
    pub(super) fn mark(&self, range: ByteRange) {
        let pages = range.align_out(PAGE_SIZE);
        self.written.insert_range(pages.start / PAGE_SIZE..pages.end / PAGE_SIZE);
        self.bytes.fetch_add(range.len(), Ordering::Relaxed);
    }

    /// Whether so much was written that it is to be flushed by whoever asks: nobody else is told so until
    /// [`Writing::relieve`] has ended.
    pub(super) fn needs_relief(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= FLUSH_ABOVE
            && self.writer.region().info().capabilities.commit
            && !self.relieving.swap(true, Ordering::AcqRel)
    }

    /// Flushes since there is much to flush.
    pub(super) fn relieve(&self) {
        if let Err(error) = self.flush() {
            tracing::error!(region = self.writer.region().name(), %error, "what was written cannot be flushed");
        }
        self.relieving.store(false, Ordering::Release);
    }

    /// How often something that was written and not flushed may have been lost.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// Whether there may be something to flush.
    pub(super) fn is_dirty(&self) -> bool {
        !self.written.is_empty()
    }

    /// Makes durable what was written before. Waits for it.
    pub(super) fn flush(&self) -> Result<()> {
        let asked = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut flushing = self.flushing.lock().expect("no holder panics");
        if flushing.covers >= asked {
            return flushing.result.clone();
        }
        flushing.covers = self.asked.load(Ordering::Acquire);
        // Taken before the flush begins: what is written meanwhile is for the next one.
        *self.under_way() = self.written.take_all();
        self.bytes.store(0, Ordering::Relaxed);
        let (number, stage) = (flushing.number + 1, flushing.stage);
        let flushed = wait(|done| self.writer.flush(Flush { number, stage, done }));
        match flushed {
            Ok(_) => {
                flushing.number = number;
                flushing.result = Ok(());
            }
            Err(error) => {
                self.written.put_back(&self.under_way());
                self.give_up(&mut flushing);
                flushing.result = Err(error);
            }
        }
        self.under_way().clear();
        flushing.result.clone()
    }

    /// A flush has failed. What is written from now on belongs to whatever stage the store is at then.
    fn give_up(&self, flushing: &mut Flushing) {
        match self.writer.discard() {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Err(error) => tracing::debug!(%error, "what was staged may still be"),
        }
        flushing.stage = self.writer.stage().number;
        self.losses.fetch_add(1, Ordering::AcqRel);
    }

    /// Which pages of `range` were written and not flushed, as runs of bytes, `most` at most.
    pub(super) fn unflushed(&self, range: ByteRange, most: usize) -> Vec<ByteRange> {
        let end = range.end.div_ceil(PAGE_SIZE);
        let under_way = self.under_way();
        let sooner = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).min();
        let mut runs = Vec::new();
        let mut at = range.start / PAGE_SIZE;
        while runs.len() < most {
            let first = sooner(self.written.next_member(at), under_way.next_member(at));
            let Some(first) = first.filter(|page| *page < end) else { break };
            at = first;
            while at < end {
                if self.written.contains(at) {
                    at = self.written.next_gap(at).unwrap_or(end);
                } else if under_way.contains(at) {
                    at = under_way.next_gap(at).unwrap_or(end);
                } else {
                    break;
                }
            }
            runs.push(ByteRange::of_pages(first..at.min(end)));
        }
        runs
    }

    fn under_way(&self) -> MutexGuard<'_, BitSet> {
        self.under_way.lock().expect("no holder panics")
    }
}

/// What one client knows of the losses.
#[derive(Default)]
pub(super) struct Seen(AtomicU64);

impl Seen {
    pub(super) fn now(writing: &Writing) -> Self {
        Self(AtomicU64::new(writing.losses()))
    }

    /// Flushes, and says whether everything that this client may have written is durable.
    pub(super) fn flush(&self, writing: &Arc<Writing>) -> Result<()> {
        let flushed = writing.flush();
        let losses = writing.losses();
        if self.0.swap(losses, Ordering::AcqRel) != losses {
            return Err(flushed.err().unwrap_or_else(lost));
        }
        flushed
    }
}

fn lost() -> Error {
    Error::new(
        ErrorKind::Io,
        "what was written and not flushed may be lost, since an earlier flush has failed",
    )
}
