//! Pages on their way from one store to another: read as many at once as the way takes, written as they arrive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pagewire_core::chunk::ByteRange;

use super::{WINDOW, from_bytes};
use crate::engine::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Blocking, Completion, Part, Read, Sink, Store, Urgency};

/// What carries pages of one epoch of a region to a store.
pub(super) struct Flight {
    shared: Arc<Shared>,
}

struct Shared {
    from: Arc<Region>,
    epoch: u64,
    to: Arc<dyn Store>,
    state: Mutex<State>,
    moved: Condvar,
    bytes_moved: AtomicU64,
    bytes_cleared: AtomicU64,
}

#[derive(Default)]
struct State {
    /// How many bytes are asked for and not written yet.
    bytes: u64,
    /// How many requests these are.
    requests: usize,
    /// Whether nothing new may begin.
    paused: bool,
    /// What is to be written again.
    again: Vec<ByteRange>,
    error: Option<Error>,
}

/// Nothing is on its way while this lives.
pub(super) struct Still<'a>(&'a Shared);

impl Flight {
    pub(super) fn new(from: Arc<Region>, epoch: u64, to: Arc<dyn Store>) -> Self {
        let shared = Shared {
            from,
            epoch,
            to,
            state: Mutex::default(),
            moved: Condvar::new(),
            bytes_moved: AtomicU64::new(0),
            bytes_cleared: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(super) fn target(&self) -> &Arc<dyn Store> {
        &self.shared.to
    }

    /// How many bytes have been written.
    pub(super) fn moved(&self) -> u64 {
        self.shared.bytes_moved.load(Ordering::Relaxed)
    }

    /// How many bytes have been made zeroes.
    pub(super) fn cleared(&self) -> u64 {
        self.shared.bytes_cleared.load(Ordering::Relaxed)
    }

    /// Has the bytes of `ranges` carried, as soon as there is room for them on the way. Where the target `is_zero`
    /// there, zeroes need not be.
    ///
    /// # Errors
    ///
    /// What has failed of what was on its way.
    pub(super) fn carry(&self, ranges: Vec<ByteRange>, is_zero: bool) -> Result<()> {
        let total = ByteRange::total(&ranges);
        self.shared.begin(total)?;
        let state = BatchState { bytes: vec![0; total as usize], zero: Vec::new(), got: 0 };
        let batch =
            Batch { shared: self.shared.clone(), ranges: ranges.clone(), is_zero, state: Mutex::new(state) };
        let (epoch, urgency) = (self.shared.epoch, Urgency::Background);
        self.shared.from.read(Read { ranges, epoch, urgency, sink: Arc::new(batch) });
        Ok(())
    }

    /// Has `ranges` made zeroes.
    ///
    /// # Errors
    ///
    /// What has failed of what was on its way.
    pub(super) fn clear(&self, ranges: &[ByteRange]) -> Result<()> {
        // It costs a place on the way, but no bytes.
        self.shared.begin(0)?;
        let done = self.shared.completion(ranges.to_vec(), 0, Outcome::Cleared);
        self.shared.to.zero(ranges, done);
        Ok(())
    }

    /// Waits until nothing is on its way, and lets nothing new begin until the answer is dropped.
    ///
    /// # Errors
    ///
    /// What has failed.
    pub(super) fn pause(&self) -> Result<Still<'_>> {
        let mut state = self.shared.lock();
        state.paused = true;
        let still = Still(&self.shared);
        while state.requests > 0 {
            state = self.shared.moved.wait(state).expect("no holder panics");
        }
        match state.error.clone() {
            Some(error) => {
                drop(state);
                Err(error)
            }
            None => {
                drop(state);
                Ok(still)
            }
        }
    }

    /// Waits for the end of all, and writes what was lost with a connection again.
    ///
    /// # Errors
    ///
    /// What has failed, for longer than `patience`.
    pub(super) fn end(&self, patience: Duration) -> Result<()> {
        drop(self.pause()?);
        let shared = &self.shared;
        let again = std::mem::take(&mut shared.lock().again);
        let deadline = Instant::now() + patience;
        for range in again {
            let write =
                || shared.to.write_bytes(range.start, &from_bytes(&shared.from, range, shared.epoch)?);
            while let Err(error) = write() {
                if !error.can_retry() || Instant::now() >= deadline {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            shared.bytes_moved.fetch_add(range.len(), Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Nothing comes to the store later than whatever is next done with it.
        drop(self.shared.moved.wait_while(self.shared.lock(), |state| state.requests > 0));
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.0.lock().paused = false;
        self.0.moved.notify_all();
    }
}

/// What has become of bytes that are on their way no more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Moved,
    Cleared,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn begin(&self, bytes: u64) -> Result<()> {
        let full = |state: &mut State| {
            let full = state.bytes > 0 && state.bytes + bytes > WINDOW;
            state.error.is_none() && (state.paused || full)
        };
        let mut state = self.moved.wait_while(self.lock(), full).expect("no holder panics");
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        state.bytes += bytes;
        state.requests += 1;
        Ok(())
    }

    /// What is called when `ranges` are written, which have taken so many bytes of the way.
    fn completion(self: &Arc<Self>, ranges: Vec<ByteRange>, bytes: u64, outcome: Outcome) -> Completion {
        let shared = self.clone();
        Box::new(move |result| shared.done(ranges, bytes, outcome, result))
    }

    fn done(&self, ranges: Vec<ByteRange>, bytes: u64, outcome: Outcome, result: Result<()>) {
        let mut state = self.lock();
        state.bytes -= bytes;
        state.requests -= 1;
        match result {
            Ok(()) => {
                let counter = match outcome {
                    Outcome::Moved => &self.bytes_moved,
                    Outcome::Cleared => &self.bytes_cleared,
                };
                counter.fetch_add(ByteRange::total(&ranges), Ordering::Relaxed);
            }
            Err(error) if error.can_retry() => state.again.extend(ranges),
            Err(error) => drop(state.error.get_or_insert(error.with_retry(false))),
        }
        drop(state);
        self.moved.notify_all();
    }

    fn fail(&self, bytes: u64, error: Error) {
        let mut state = self.lock();
        state.bytes -= bytes;
        state.requests -= 1;
        state.error.get_or_insert(error.with_retry(false));
        drop(state);
        self.moved.notify_all();
    }
}

/// The pages of one read, which are written when all of them are there.
struct Batch {
    shared: Arc<Shared>,
    ranges: Vec<ByteRange>,
    is_zero: bool,
    state: Mutex<BatchState>,
}

struct BatchState {
    /// Those of the ranges, one behind the other.
    bytes: Vec<u8>,
    /// What has come as zeroes.
    zero: Vec<ByteRange>,
    got: u64,
}

impl Batch {
    /// Where in the batch a byte of the region is.
    fn place(&self, at: u64) -> Option<usize> {
        let mut before = 0;
        for range in &self.ranges {
            if range.start <= at && at < range.end {
                return Some((before + at - range.start) as usize);
            }
            before += range.len();
        }
        None
    }

    /// Writes what has come.
    fn write(&self, state: BatchState) {
        let (shared, total) = (&self.shared, ByteRange::total(&self.ranges));
        if state.zero.is_empty() {
            let done = shared.completion(self.ranges.clone(), total, Outcome::Moved);
            return shared.to.write(&self.ranges, &state.bytes, done);
        }
        let zero = ByteRange::union(state.zero);
        let mut ranges = self.ranges.clone();
        for hole in &zero {
            ranges = ByteRange::without_any(ranges, *hole);
        }
        let bytes: Vec<u8> = ranges
            .iter()
            .filter_map(|range| self.place(range.start).map(|at| &state.bytes[at..at + range.len() as usize]))
            .flatten()
            .copied()
            .collect();
        // Three requests in place of one: of them each counts for itself.
        shared.lock().requests += 2;
        let left = total - bytes.len() as u64;
        match self.is_zero {
            true => shared.done(Vec::new(), left, Outcome::Cleared, Ok(())),
            false => shared.to.zero(&zero, shared.completion(zero.clone(), left, Outcome::Cleared)),
        }
        match ranges.is_empty() {
            true => shared.done(Vec::new(), 0, Outcome::Moved, Ok(())),
            false => {
                let done = shared.completion(ranges.clone(), bytes.len() as u64, Outcome::Moved);
                shared.to.write(&ranges, &bytes, done);
            }
        }
        shared.done(Vec::new(), 0, Outcome::Moved, Ok(()));
    }
}

impl Sink for Batch {
    fn part(&self, part: Part<'_>) {
        let range = part.range();
        let Some(at) = self.place(range.start) else { return };
        let mut state = self.state.lock().expect("no holder panics");
        match part {
            Part::Bytes { bytes, .. } => match state.bytes.get_mut(at..at + bytes.len()) {
                Some(place) => place.copy_from_slice(bytes),
                None => return,
            },
            Part::Zero(range) => state.zero.push(range),
        }
        state.got += range.len();
    }

    fn done(&self, result: Result<()>) {
        let total = ByteRange::total(&self.ranges);
        let empty = BatchState { bytes: Vec::new(), zero: Vec::new(), got: 0 };
        let state = std::mem::replace(&mut *self.state.lock().expect("no holder panics"), empty);
        match result {
            Ok(()) if state.got == total => self.write(state),
            Ok(()) => {
                let text = format!("{} of {total} bytes were answered", state.got);
                self.shared.fail(total, Error::new(ErrorKind::Io, text));
            }
            Err(error) => self.shared.fail(total, error),
        }
    }
}
