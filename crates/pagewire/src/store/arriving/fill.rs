//! What comes from the origin, on its way to its new home.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use pagewire_core::chunk::ByteRange;

use super::Arriving;
use crate::error::Result;
use crate::sink::Part;
use crate::store::{Read, STAGED, Sink, Urgency, wait};

impl Arriving {
    /// Puts a part of the origin's bytes to where nothing has arrived: what was written here meanwhile stays.
    ///
    /// # Errors
    ///
    /// Whatever the home says; the pages have not arrived then.
    pub(crate) fn fill(&self, part: Part<'_>) -> Result<()> {
        let stage = self.home.stage();
        let claim = self.pages.claim(part.range(), stage);
        if claim.pages.is_empty() {
            return Ok(());
        }
        let end = stage.length.min(part.range().end);
        let ranges: Vec<ByteRange> =
            claim.pages.iter().map(|run| ByteRange::of_pages(run.clone()).clamp_to(end)).collect();
        let filled = match part {
            Part::Zero(_) => wait(|done| self.home.zero(&ranges, done)),
            Part::Bytes { offset, bytes } => ranges.iter().try_for_each(|range| {
                let from = (range.start - offset) as usize;
                let bytes = &bytes[from..from + range.len() as usize];
                wait(|done| self.home.write(&[*range], bytes, done))
            }),
        };
        self.pages.filled(claim, filled.is_ok(), self.home.stage());
        filled
    }
}

/// The sink of what somebody has asked for: they get it first, then it is kept.
///
/// It may come in another way meanwhile, and then it is at home: once everything is, the origin need not answer any more
/// what was asked of it before.
pub(super) struct Kept {
    arriving: Arc<Arriving>,
    urgency: Urgency,
    sink: Arc<dyn Sink>,
    /// What has not come.
    missing: Mutex<Vec<ByteRange>>,
}

impl Kept {
    pub(super) fn new(
        arriving: Arc<Arriving>,
        ranges: Vec<ByteRange>,
        urgency: Urgency,
        sink: Arc<dyn Sink>,
    ) -> Self {
        Self { arriving, urgency, sink, missing: Mutex::new(ranges) }
    }

    fn missing(&self) -> MutexGuard<'_, Vec<ByteRange>> {
        self.missing.lock().expect("no holder panics")
    }
}

impl Sink for Kept {
    fn part(&self, part: Part<'_>) {
        {
            let mut missing = self.missing();
            *missing = ByteRange::without_any(std::mem::take(&mut *missing), part.range());
        }
        self.sink.part(part);
        // What cannot be kept is asked for again.
        if let Err(error) = self.arriving.fill(part) {
            tracing::debug!(%error, "what was asked for could not be kept");
        }
    }

    fn done(&self, result: Result<()>) {
        let Err(error) = result else { return self.sink.done(Ok(())) };
        let missing = std::mem::take(&mut *self.missing());
        let (ranges, absent) = self.arriving.pages.split(&missing, self.arriving.home.stage());
        if !absent.is_empty() {
            return self.sink.done(Err(error));
        }
        tracing::debug!(%error, "what the origin does not answer has come meanwhile");
        let (urgency, sink) = (self.urgency, self.sink.clone());
        self.arriving.home.read(Read { ranges, epoch: STAGED, urgency, sink });
    }
}

/// The sink of what nobody waits for.
pub(crate) struct Filling<F> {
    arriving: Arc<Arriving>,
    bytes: Arc<AtomicU64>,
    failure: std::sync::Mutex<Option<crate::error::Error>>,
    done: std::sync::Mutex<Option<F>>,
}

impl<F: FnOnce(Result<()>) + Send> Filling<F> {
    /// Counts what comes in `bytes`, and calls `done` at the end.
    pub(crate) fn new(arriving: Arc<Arriving>, bytes: Arc<AtomicU64>, done: F) -> Self {
        Self {
            arriving,
            bytes,
            failure: std::sync::Mutex::default(),
            done: std::sync::Mutex::new(Some(done)),
        }
    }
}

impl<F: FnOnce(Result<()>) + Send> Sink for Filling<F> {
    fn part(&self, part: Part<'_>) {
        if let Part::Bytes { bytes, .. } = &part {
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        if let Err(error) = self.arriving.fill(part) {
            self.failure.lock().expect("no holder panics").get_or_insert(error);
        }
    }

    fn done(&self, result: Result<()>) {
        let failure = self.failure.lock().expect("no holder panics").take();
        let done = self.done.lock().expect("no holder panics").take();
        if let Some(done) = done {
            done(result.and(failure.map_or(Ok(()), Err)));
        }
    }
}
