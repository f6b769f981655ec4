//! Placing what comes, on the thread that received it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak, mpsc};
use std::time::Instant;

use pagewire_core::chunk::{ByteRange, ChunkIndex};

use super::Inner;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Part, Sink, Urgency};

impl Inner {
    /// Places a part of an answer.
    pub(super) fn place(&self, part: Part<'_>) {
        let _placing = self.placing.read().expect("no holder panics");
        if self.is_closed() {
            return;
        }
        let placed = match part {
            Part::Bytes { offset, bytes } => self.local.place(offset, bytes),
            Part::Zero(range) => self.local.place_zero(range),
        };
        let good = placed.is_ok();
        self.check(placed);
        if good {
            self.mark_present(part.range());
        }
    }
}

/// The answer to a read of one chunk that somebody waits for, or will soon.
pub(super) struct Fill {
    inner: Weak<Inner>,
    chunk: ChunkIndex,
    urgency: Urgency,
    asked: Instant,
}

impl Fill {
    pub(super) fn new(inner: &Arc<Inner>, chunk: ChunkIndex, urgency: Urgency) -> Self {
        Self { inner: Arc::downgrade(inner), chunk, urgency, asked: Instant::now() }
    }
}

impl Sink for Fill {
    fn part(&self, part: Part<'_>) {
        let Some(inner) = self.inner.upgrade() else { return };
        // Counted first: whoever sees the bytes finds them counted.
        inner.counters.demand_bytes.fetch_add(part.range().len(), Ordering::Relaxed);
        inner.place(part);
    }

    fn done(&self, result: Result<()>) {
        let Some(inner) = self.inner.upgrade() else { return };
        if self.urgency == Urgency::Demand {
            inner.counters.demand_took(self.asked.elapsed());
        }
        inner.ahead.remove(self.chunk.0);
        inner.asked.remove(self.chunk.0);
        let range = inner.geometry.range_of(self.chunk);
        let result = result.and_then(|()| match inner.missing(range).first() {
            None => Ok(()),
            Some(gap) => Err(Error::new(ErrorKind::Io, format!("the answer left out bytes {gap}"))),
        });
        if let Err(error) = result {
            inner.fail(self.chunk, &error);
        }
    }
}

/// The answer to a background stream or read.
pub(super) struct BackgroundFill {
    inner: Weak<Inner>,
    ended: mpsc::SyncSender<Result<()>>,
}

impl BackgroundFill {
    /// A sink, and where its end can be waited for.
    pub(super) fn new(inner: &Arc<Inner>) -> (Arc<Self>, mpsc::Receiver<Result<()>>) {
        let (ended, receiver) = mpsc::sync_channel(1);
        (Arc::new(Self { inner: Arc::downgrade(inner), ended }), receiver)
    }
}

impl Sink for BackgroundFill {
    fn part(&self, part: Part<'_>) {
        let Some(inner) = self.inner.upgrade() else { return };
        let ByteRange { end, .. } = part.range();
        if end > inner.geometry.length() {
            // Not for us; what is missing at the end of the answer is asked for again.
            return tracing::warn!(
                region = inner.pin.region().name(),
                end,
                "bytes past the end of the region"
            );
        }
        inner.frontier.store(end, Ordering::Relaxed);
        inner.counters.background_bytes.fetch_add(part.range().len(), Ordering::Relaxed);
        inner.place(part);
    }

    fn done(&self, result: Result<()>) {
        // There is room for the one end; who does not wait for it any more needs no word.
        let _ = self.ended.try_send(result);
    }
}
