//! Sending what is dirty: frames of scattered pages, as many at once as fit in the window.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::push::Batch;

use super::{Inner, Lengths, State, closed};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Completion;

/// How many pages go in one write: as many as a frame of the protocol carries.
const BATCH: u64 = 256;

/// How many writes may be on their way: 32 MiB, for 10 Gbit/s at 25 ms.
const WINDOW: usize = 32;

/// The shortest and the longest pause after a failure.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// How long something goes on that keeps failing.
pub(super) struct Patience {
    deadline: Instant,
    pause: Duration,
}

impl Patience {
    pub(super) fn new(patience: Duration) -> Self {
        Self { deadline: Instant::now() + patience, pause: PAUSE.0 }
    }

    /// Whether to go on after `error`, after a pause of the length that is answered.
    pub(super) fn after(&mut self, error: &Error) -> Option<Duration> {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE.1);
        let lost = error.kind() == ErrorKind::Unavailable || error.can_retry();
        (lost && Instant::now() + pause < self.deadline).then_some(pause)
    }
}

impl Inner {
    /// Pushes everything that is dirty, and has it acknowledged. While the store cannot be reached, it is
    /// waited for.
    pub(super) fn push(self: &Arc<Self>, patience: &mut Patience) -> Result<()> {
        loop {
            self.flush_locally_meanwhile();
            match self.push_once() {
                Ok(()) => return Ok(()),
                Err(error) => match patience.after(&error) {
                    Some(pause) => self.pause(pause)?,
                    None => return Err(error),
                },
            }
        }
    }

    /// The same, up to the first failure.
    fn push_once(self: &Arc<Self>) -> Result<()> {
        self.send_length()?;
        let mut bytes = Vec::new();
        let mut state = self.lock();
        loop {
            if let Some(error) = &state.over {
                return Err(error.clone());
            }
            if self.is_stopping() {
                return Err(closed());
            }
            if state.wants_local_flush() {
                drop(state);
                self.flush_locally_meanwhile();
                state = self.lock();
            }
            if state.failure.is_some() {
                // What is on its way may end well.
                if state.in_flight == 0 {
                    return state.failure.take().map_or(Ok(()), Err);
                }
                state = self.wait(state, None);
                continue;
            }
            if state.in_flight < WINDOW {
                self.look_at_stage(&mut state);
                if state.length.untold.is_some() {
                    drop(state);
                    self.send_length()?;
                    state = self.lock();
                    continue;
                }
                if let Some(batch) = state.pages.take(BATCH) {
                    let (end, stage) = (state.length.now, state.stage);
                    state.in_flight += 1;
                    drop(state);
                    self.send(batch, end, stage, &mut bytes);
                    state = self.lock();
                    continue;
                }
            }
            if state.in_flight == 0 {
                return Ok(());
            }
            state = self.wait(state, None);
        }
    }

    /// Notices that the store has lost what was staged.
    pub(super) fn look_at_stage(&self, state: &mut State) {
        let now = self.writer.stage().number;
        if now != state.stage {
            state.stage = now;
            state.lost();
        }
    }

    fn send(self: &Arc<Self>, batch: Batch, end: u64, stage: u64, bytes: &mut Vec<u8>) {
        let range = |pages: &std::ops::Range<u64>| ByteRange::of_pages(pages.clone()).clamp_to(end);
        let ranges: Vec<ByteRange> = batch.pages().iter().map(range).filter(|r| !r.is_empty()).collect();
        let length = ByteRange::total(&ranges);
        let this = self.clone();
        let done: Completion = Box::new(move |result| this.sent(batch, length, stage, result));
        let lent = if let [range] = ranges[..] { self.local.lend(range) } else { None };
        if let Some(bytes) = lent {
            return self.writer.write(&ranges, (*bytes).as_ref(), done);
        }
        let bytes = aligned(bytes, length as usize);
        if let Err(error) = self.local.read_back_ranges(&ranges, bytes) {
            return done(Err(error));
        }
        self.writer.write(&ranges, bytes, done);
    }

    /// The outcome of a push is known, of what was taken when the store was at `stage`.
    fn sent(&self, batch: Batch, bytes: u64, stage: u64, result: Result<()>) {
        let mut state = self.lock();
        state.in_flight -= 1;
        match result {
            Ok(()) => {
                state.pages.pushed(batch);
                state.progress.pushed_bytes += bytes;
                state.progress.pushes += 1;
            }
            // It came to a store that had just lost the length that was staged for it, and is told of that again.
            Err(error) if error.kind() == ErrorKind::OutOfRange && self.writer.stage().number != stage => {
                tracing::debug!(%error, "what was staged was lost while more was pushed");
                state.pages.put_back(batch);
                self.look_at_stage(&mut state);
            }
            Err(error) => {
                state.pages.put_back(batch);
                state.failed(error);
            }
        }
        drop(state);
        self.moved.notify_all();
    }

    /// Tells the store of the region's length, if it does not know.
    fn send_length(&self) -> Result<()> {
        let (shortest, now, stage) = {
            let mut state = self.lock();
            self.look_at_stage(&mut state);
            let Some(shortest) = state.length.untold else { return Ok(()) };
            state.length.tellings += 1;
            (shortest, state.length.now, state.stage)
        };
        let set = |length| self.wait_for(|done| self.writer.set_length(length, done));
        let mut result = set(shortest);
        if result.is_ok() && now != shortest {
            result = set(now);
        }
        let mut state = self.lock();
        state.length.tellings += 1;
        match result {
            Ok(()) => {
                // Lost meanwhile, it is told again. Grown meanwhile, it is told of that.
                if self.writer.stage().number == stage {
                    state.length.untold = (state.length.now != now).then_some(state.length.now);
                }
                Ok(())
            }
            Err(error) => {
                state.failed(error.clone());
                state.failure = None;
                Err(error)
            }
        }
    }

    /// Waits for what `submit` has called back, or for the end of the pusher.
    pub(super) fn wait_for<T: Send + 'static>(
        &self,
        submit: impl FnOnce(Box<dyn FnOnce(Result<T>) + Send>),
    ) -> Result<T> {
        let (sender, answer) = std::sync::mpsc::sync_channel(1);
        submit(Box::new(move |result| {
            // Nobody waits any more where the pusher has ended.
            let _ = sender.try_send(result);
        }));
        loop {
            match answer.recv_timeout(Duration::from_millis(50)) {
                Ok(result) => return result,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) if !self.is_stopping() => {
                    self.flush_locally_meanwhile();
                }
                Err(_) => return Err(closed()),
            }
        }
    }

    /// Waits a moment, or for the end of the pusher.
    pub(super) fn pause(&self, pause: Duration) -> Result<()> {
        let deadline = Instant::now() + pause;
        let mut state = self.lock();
        while !self.is_stopping() && Instant::now() < deadline {
            if state.wants_local_flush() {
                drop(state);
                self.flush_locally_meanwhile();
                state = self.lock();
            }
            state = self.wait(state, Some(deadline));
        }
        if self.is_stopping() { Err(closed()) } else { Ok(()) }
    }
}

/// So many bytes of a buffer, from a page's border on: processors copy several times as fast between
/// addresses that are aligned alike.
pub(super) fn aligned(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    let page = PAGE_SIZE as usize;
    buffer.resize(length + page, 0);
    let start = buffer.as_ptr().addr().next_multiple_of(page) - buffer.as_ptr().addr();
    &mut buffer[start..start + length]
}

impl State {
    /// The store has lost what was staged.
    pub(super) fn lost(&mut self) {
        let again = self.pages.lost();
        let Lengths { now, shortest, flushed, .. } = self.length;
        self.length.untold = (now != flushed || shortest != flushed).then_some(shortest);
        if again > 0 || self.length.untold.is_some() {
            tracing::info!(pages = again, "the store has lost what was not flushed; it is pushed again");
        }
    }

    pub(super) fn failed(&mut self, error: Error) {
        self.progress.failures += 1;
        self.progress.last_error = Some(error.to_string());
        if error.kind() == ErrorKind::Fenced {
            self.over.get_or_insert(error.clone());
        }
        self.failure.get_or_insert(error);
    }
}
