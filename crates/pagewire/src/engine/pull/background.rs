//! The thread that asks for what nobody waits for yet, and tries again what could not be had.

use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use pagewire_core::chunk::{ByteRange, ChunkIndex};
use pagewire_core::pull::PullOrder;
use pagewire_core::wire::MAX_RANGES;

use super::Inner;
use super::fill::BackgroundFill;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Read, StreamRequest, Urgency};

/// The shortest and the longest pause after a stream that failed or brought nothing.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How much a store without streams is asked for at once, in bytes.
const PIECE: u64 = 1 << 20;

/// Starts the thread. It holds the puller's state only while it works, so that it ends when the
/// puller is dropped.
pub(super) fn start(inner: &Arc<Inner>) -> Result<()> {
    let weak = Arc::downgrade(inner);
    std::thread::Builder::new()
        .name("pw-pull".into())
        .spawn(move || run(&weak))
        .map(drop)
        .map_err(|error| Error::io("cannot start a thread", &error))
}

fn run(weak: &Weak<Inner>) {
    let mut pause = PAUSE.0;
    let mut healed = Instant::now();
    let mut moved = Instant::now();
    loop {
        let Some(inner) = weak.upgrade() else { return };
        if inner.is_closed() {
            return;
        }
        if healed.elapsed() >= inner.options.heal_interval {
            inner.heal();
            healed = Instant::now();
        }
        let before = inner.pages.count();
        let round = inner.pull_round(weak);
        match round {
            Ok(true) => {}
            Ok(false) => {
                // Nothing to do but to heal; whoever closes the puller says so.
                let deadline = Instant::now() + inner.options.heal_interval;
                inner.counters.wait(Some(deadline), || inner.is_closed().then_some(()));
                continue;
            }
            Err(error) if inner.may_pass(&error, moved) => {
                tracing::debug!(region = inner.pin.region().name(), %error, "the background pull pauses");
            }
            Err(error) => return inner.give_up(error),
        }
        if inner.pages.count() > before {
            pause = PAUSE.0;
            moved = Instant::now();
            continue;
        }
        let deadline = Instant::now() + pause;
        inner.counters.wait(Some(deadline), || inner.is_closed().then_some(()));
        pause = (pause * 2).min(PAUSE.1);
    }
}

impl Inner {
    /// Whether it makes sense to go on after `error`, when the last byte came at `moved`.
    fn may_pass(&self, error: &Error, moved: Instant) -> bool {
        match self.options.give_up_after {
            Some(patience) => error.can_retry() && moved.elapsed() < patience,
            // A server that has lost the region may find it again; a region that has become another
            // one never becomes this one again.
            None => !matches!(error.kind(), ErrorKind::Changed | ErrorKind::Stale | ErrorKind::Cancelled),
        }
    }

    fn give_up(&self, error: Error) {
        if self.is_closed() {
            return;
        }
        tracing::error!(region = self.pin.region().name(), %error, "the background pull gives up");
        self.given_up.lock().expect("no holder panics").get_or_insert(error);
        self.counters.notify();
    }

    /// Asks again for what could not be had, while nobody waits for it.
    fn heal(self: &Arc<Self>) {
        // Bounded, so that a store that is down for long is not asked for everything at once.
        let failed: Vec<u64> =
            self.failed.lock().expect("no holder panics").keys().copied().take(64).collect();
        for chunk in failed {
            self.demand(ChunkIndex(chunk), Urgency::Background);
        }
    }

    /// Pulls what is missing, once. Answers whether anything was.
    fn pull_round(self: &Arc<Self>, weak: &Weak<Self>) -> Result<bool> {
        if matches!(self.options.order, PullOrder::None) || self.chunks.is_full() {
            return Ok(false);
        }
        let mut missing = self.options.order.plan(self.geometry, &self.chunks.snapshot());
        if missing.is_empty() {
            return Ok(false);
        }
        if self.pin.info().capabilities.stream {
            missing.truncate(MAX_RANGES);
            self.stream_round(missing, weak)?;
        } else {
            self.read_round(&missing)?;
        }
        Ok(true)
    }

    fn stream_round(self: &Arc<Self>, ranges: Vec<ByteRange>, weak: &Weak<Self>) -> Result<()> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let sink = BackgroundFill::new(self, move |result| {
            // The other end waits until it has heard this once.
            let _ = sender.try_send(result);
        });
        let epoch = self.pin.epoch();
        let stream = self.pin.region().stream(StreamRequest { ranges, epoch, sink: Arc::new(sink) })?;
        *self.stream.lock().expect("no holder panics") = Some(stream);
        loop {
            // In turns: the puller may be closed, and what could not be had is tried again.
            let ended = receiver.recv_timeout(self.options.heal_interval);
            let over = !matches!(ended, Err(mpsc::RecvTimeoutError::Timeout)) || self.is_closed();
            if over || Weak::strong_count(weak) == 1 {
                // Out of the lock: the end of a stream is told to its sink on this thread.
                let stream = self.stream.lock().expect("no holder panics").take();
                drop(stream);
                return ended.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "closed")));
            }
            self.heal();
        }
    }

    fn read_round(self: &Arc<Self>, ranges: &[ByteRange]) -> Result<()> {
        for piece in ranges.iter().flat_map(|range| range.split(PIECE)) {
            if self.is_closed() {
                return Ok(());
            }
            let missing = self.missing(piece);
            if missing.is_empty() {
                continue;
            }
            let (sender, receiver) = mpsc::sync_channel(1);
            let sink = BackgroundFill::new(self, move |result| {
                // The other end waits until it has heard this once.
                let _ = sender.try_send(result);
            });
            let (epoch, urgency) = (self.pin.epoch(), Urgency::Background);
            self.pin.region().read(Read { ranges: missing, epoch, urgency, sink: Arc::new(sink) });
            receiver.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "dropped")))?;
        }
        Ok(())
    }
}
