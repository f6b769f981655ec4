//! The thread that asks for what nobody waits for yet, and tries again what could not be had.

use std::sync::atomic::Ordering;
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

/// After how long without a byte a stream is given up for a new one, where the pull itself never is.
const SILENCE: Duration = Duration::from_secs(30);

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
        let has_moved = inner.pages.count() > before;
        if has_moved {
            moved = Instant::now();
        }
        match round {
            Ok(true) => {}
            Ok(false) => {
                // Nothing to do but to heal; whoever closes the puller says so.
                inner.rest(inner.options.heal_interval);
                continue;
            }
            Err(error) if inner.may_pass(&error, moved) => {
                tracing::debug!(region = inner.pin.region().name(), %error, "the background pull pauses");
            }
            Err(error) => return inner.give_up(error),
        }
        if has_moved {
            pause = PAUSE.0;
            continue;
        }
        inner.rest(pause);
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

    /// Waits, unless the puller is closed meanwhile. What arrives meanwhile does not wake this thread.
    fn rest(&self, duration: Duration) {
        let guard = self.resting.lock().expect("no holder panics");
        if !self.is_closed() {
            // Woken early or not, the caller looks what there is to do.
            let _ = self.closing.wait_timeout(guard, duration).expect("no holder panics");
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
        // In turns, so that some that never heal do not keep the others from it.
        let from = self.healed.load(Ordering::Relaxed);
        let failed: Vec<u64> = {
            let failed = self.failed.lock().expect("no holder panics");
            failed.range(from..).chain(failed.range(..from)).map(|(chunk, _)| *chunk).take(64).collect()
        };
        for chunk in failed {
            self.healed.store(chunk + 1, Ordering::Relaxed);
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
        let (sink, receiver) = BackgroundFill::new(self);
        let epoch = self.pin.epoch();
        let stream = self.pin.region().stream(StreamRequest { ranges, epoch, sink })?;
        *self.stream.lock().expect("no holder panics") = Some(stream);
        let patience = self.options.give_up_after.unwrap_or(SILENCE);
        let turn = self.options.heal_interval.min(patience);
        let mut count = self.pages.count();
        let mut moved = Instant::now();
        loop {
            // In turns: the puller may be closed, and what could not be had is tried again.
            let mut ended = receiver.recv_timeout(turn);
            if self.pages.count() != count {
                count = self.pages.count();
                moved = Instant::now();
            } else if matches!(ended, Err(mpsc::RecvTimeoutError::Timeout)) && moved.elapsed() >= patience {
                let region = self.pin.region().name();
                tracing::warn!(
                    region,
                    ?patience,
                    "no byte of the background pull has come; beginning it anew"
                );
                ended = Ok(Err(Error::new(ErrorKind::Unavailable, "the stream has fallen silent")));
            }
            let over = !matches!(ended, Err(mpsc::RecvTimeoutError::Timeout)) || self.is_closed();
            if over || Weak::strong_count(weak) == 1 {
                // Out of the lock: the end of a stream is told to its sink on this thread.
                let stream = self.stream.lock().expect("no holder panics").take();
                drop(stream);
                self.frontier.store(super::NOWHERE, Ordering::Relaxed);
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
            let (sink, ended) = BackgroundFill::new(self);
            let (epoch, urgency) = (self.pin.epoch(), Urgency::Background);
            self.pin.region().read(Read { ranges: missing, epoch, urgency, sink });
            ended.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "dropped")))?;
        }
        Ok(())
    }
}
