//! Copying what differs: source and target are compared by their hashes, window by window, and only pages that differ
//! move.
//!
//! A few windows are compared at once. Each side's hashes are computed where its bytes are, both at the same time: by a
//! peer that can, else here. What differs in a window is moved while the next ones are compared.
//!
//! It trusts nothing but hashes, and so a copy that was interrupted goes on by being made again: what has arrived is
//! equal. Where the target keeps nothing of what was not flushed, a checkpoint now and then flushes what has arrived.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pagewire_core::chunk::ByteRange;
use pagewire_core::delta::{Algorithm, Comparison, Difference, Differing, Node, Question, Scheme, windows};
use serde::Serialize;

use super::flight::Flight;
use crate::engine::hash::{Hashed, Hashes};
use crate::engine::{Pin, Region};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Flush, STAGED, Store, wait};

/// How many windows are compared at once, at most: enough for a peer that is far away, and what it keeps trees for.
const MOST_AT_ONCE: usize = 4;

/// How much one read asks for, in bytes.
pub(super) const BATCH: u64 = 1 << 20;

/// How a region is compared and what differs is copied.
#[derive(Debug, Clone)]
pub struct DeltaOptions {
    /// How the hashes are made: [`Algorithm::Blake3`] where those who write to either side are not to be trusted.
    pub algorithm: Algorithm,
    /// Flushes what has arrived whenever it is this many bytes, so that it is kept when the copy is interrupted. The
    /// target is a mix of old and new at these epochs. Without it, the copy is one epoch.
    pub checkpoint: Option<u64>,
    /// After how long without an answer the copy fails.
    pub patience: Duration,
    /// How often progress is told.
    pub interval: Duration,
}

impl Default for DeltaOptions {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Xxh3,
            checkpoint: None,
            patience: Duration::from_secs(30),
            interval: Duration::from_millis(100),
        }
    }
}

/// How far a copy of what differs is. Numbers only grow, but for `compared`, which begins anew where the target was restarted
/// and has lost what was not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DeltaProgress {
    /// The region's length, in bytes.
    pub length: u64,
    /// How much of it has been compared, and moved where it differs.
    pub compared: u64,
    /// How many bytes were moved.
    pub moved: u64,
    /// How many bytes of the target were made zeroes, without any being moved.
    pub cleared: u64,
    /// How many times the target was flushed.
    pub flushes: u64,
}

impl DeltaProgress {
    /// What was moved in all, with what earlier attempts have moved.
    fn after(&self, before: &Self) -> Self {
        Self {
            moved: self.moved + before.moved,
            cleared: self.cleared + before.cleared,
            flushes: self.flushes + before.flushes,
            ..*self
        }
    }
}

/// Makes `to` what the newest epoch of `from` is, by moving what differs. Tells `progress` how far it is.
///
/// # Errors
///
/// [`ErrorKind::NoSpace`] where the region does not fit. Whatever either store says; then nothing has changed since the
/// last checkpoint in a target that can `commit`, and another one holds a part of the copy.
pub fn copy_delta(
    from: &Arc<Region>,
    to: &Arc<dyn Store>,
    options: &DeltaOptions,
    mut progress: impl FnMut(&DeltaProgress),
) -> Result<DeltaProgress> {
    let pin = from.pin()?;
    let mut before = DeltaProgress::default();
    let mut deadline = None;
    loop {
        let tell = &mut |now: &DeltaProgress| progress(&now.after(&before));
        let (attempt, done) = attempt(&pin, to, options, tell);
        match attempt {
            // A target that was restarted has lost what was not flushed. To find out what that is costs little.
            Err(error)
                if error.can_retry()
                    && Instant::now() < *deadline.get_or_insert(Instant::now() + options.patience) =>
            {
                tracing::info!(%error, "comparing again");
                before = done.after(&before);
                std::thread::sleep(Duration::from_millis(50));
            }
            result => return result.map(|()| done.after(&before)),
        }
    }
}

/// Compares the two, and moves what differs. Answers how far it came, too.
fn attempt(
    pin: &Pin,
    to: &Arc<dyn Store>,
    options: &DeltaOptions,
    progress: &mut impl FnMut(&DeltaProgress),
) -> (Result<()>, DeltaProgress) {
    let from = pin.region();
    let length = pin.info().length;
    let stage = to.stage();
    if stage.length != length
        && let Err(error) = wait(|done| to.set_length(length, done))
    {
        return (Err(error), DeltaProgress::default());
    }
    let windows: Vec<ByteRange> = windows(length).collect();
    let workers = std::thread::available_parallelism().map_or(1, usize::from).clamp(2, MOST_AT_ONCE);
    let workers = workers.min(windows.len());
    let scheme = Scheme { algorithm: options.algorithm, key: crate::peer::random_id() };
    let side = |of: Hashed, epoch| Side { of, hashes: Hashes::new(epoch, scheme, length, workers), length };
    let copying = Copying {
        source: side(Hashed::Region(from.clone()), pin.epoch()),
        target: side(Hashed::Store(to.clone()), STAGED),
        flight: Flight::new(from.clone(), pin.epoch(), to.clone()),
        length,
        patience: options.patience,
        checkpoint: options.checkpoint,
        flushing: Mutex::new(Flushing { number: stage.flushed, stage: stage.number, flushes: 0, moved: 0 }),
        next: AtomicUsize::new(0),
        windows,
        compared: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        end: Mutex::new(End { running: workers, error: None }),
        ended: Condvar::new(),
    };
    for side in [&copying.source, &copying.target] {
        if !side.of.is_asked() && side.of.is_remote() {
            tracing::warn!("a peer cannot hash its region: all of its bytes come here to be compared");
        }
    }
    let compared = std::thread::scope(|scope| -> Result<()> {
        for index in 0..workers {
            let worker = std::thread::Builder::new().name(format!("pw-compare-{index}"));
            let copying = &copying;
            if let Err(error) = worker.spawn_scoped(scope, move || copying.work()) {
                copying.fail(Error::io("cannot start a thread", &error));
                copying.leave();
            }
        }
        copying.watch(options.interval, progress)
    });
    let result = compared.and_then(|()| copying.flight.end(options.patience)).and_then(|()| copying.flush());
    let done = copying.progress();
    progress(&done);
    (result, done)
}

/// One of the two that are compared.
struct Side {
    of: Hashed,
    hashes: Hashes,
    length: u64,
}

struct Copying {
    source: Side,
    target: Side,
    flight: Flight,
    length: u64,
    patience: Duration,
    checkpoint: Option<u64>,
    flushing: Mutex<Flushing>,
    windows: Vec<ByteRange>,
    next: AtomicUsize,
    compared: AtomicU64,
    failed: AtomicBool,
    end: Mutex<End>,
    ended: Condvar,
}

struct Flushing {
    /// The number of the last flush.
    number: u64,
    stage: u64,
    flushes: u64,
    /// How much had been moved by then.
    moved: u64,
}

struct End {
    running: usize,
    error: Option<Error>,
}

impl Copying {
    /// The life of one worker: a window after the other.
    fn work(&self) {
        while !self.failed.load(Ordering::Relaxed)
            && let Some(&window) = self.windows.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            let done = self.compare(window).and_then(|differing| self.transfer(&differing));
            match done {
                Ok(()) => drop(self.compared.fetch_add(window.len(), Ordering::Relaxed)),
                Err(error) => self.fail(error),
            }
        }
        self.leave();
    }

    fn fail(&self, error: Error) {
        self.end.lock().expect("no holder panics").error.get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
    }

    fn leave(&self) {
        self.end.lock().expect("no holder panics").running -= 1;
        self.ended.notify_all();
    }

    /// Tells how far it is until the workers have ended.
    fn watch(&self, interval: Duration, progress: &mut impl FnMut(&DeltaProgress)) -> Result<()> {
        let mut end = self.end.lock().expect("no holder panics");
        while end.running > 0 {
            let waited = self.ended.wait_timeout_while(end, interval, |end| end.running > 0);
            end = waited.expect("no holder panics").0;
            if end.running > 0 {
                progress(&self.progress());
            }
        }
        end.error.take().map_or(Ok(()), Err)
    }

    fn progress(&self) -> DeltaProgress {
        DeltaProgress {
            length: self.length,
            compared: self.compared.load(Ordering::Relaxed),
            moved: self.flight.moved(),
            cleared: self.flight.cleared(),
            flushes: self.flushing.lock().expect("no holder panics").flushes,
        }
    }

    /// What differs in a window.
    fn compare(&self, window: ByteRange) -> Result<Vec<Differing>> {
        let mut comparison = Comparison::new(window, self.length);
        while let Some(question) = comparison.question() {
            let (source, target) = std::thread::scope(|scope| {
                let source = scope.spawn(|| self.ask(&self.source, &question));
                let target = self.ask(&self.target, &question);
                (source.join().expect("it does not panic"), target)
            });
            comparison
                .answer(&source?, &target?)
                .map_err(|error| Error::new(ErrorKind::Protocol, error.to_string()))?;
        }
        Ok(comparison.differing())
    }

    fn ask(&self, side: &Side, question: &Question) -> Result<Vec<Node>> {
        let deadline = Instant::now() + self.patience;
        let stop = || self.failed.load(Ordering::Relaxed);
        loop {
            match side.hashes.nodes(&side.of, side.length, question.level, &question.ranges, &stop) {
                Err(error) if error.can_retry() && Instant::now() < deadline && !stop() => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                result => return result,
            }
        }
    }

    /// Has what differs moved, which goes on when this returns.
    fn transfer(&self, differing: &[Differing]) -> Result<()> {
        for how in [Difference::Bytes, Difference::Fill, Difference::Clear] {
            let mut batch: Vec<ByteRange> = Vec::new();
            let ranges = differing.iter().filter(|differing| differing.how == how);
            for piece in ranges.flat_map(|differing| differing.range.split(BATCH)) {
                if ByteRange::total(&batch) + piece.len() > BATCH {
                    self.submit(how, std::mem::take(&mut batch))?;
                }
                batch.push(piece);
            }
            if !batch.is_empty() {
                self.submit(how, batch)?;
            }
        }
        Ok(())
    }

    fn submit(&self, how: Difference, ranges: Vec<ByteRange>) -> Result<()> {
        if let Some(checkpoint) = self.checkpoint {
            let since = self.flushing.lock().expect("no holder panics").moved;
            if self.flight.moved() + self.flight.cleared() >= since + checkpoint {
                self.flush()?;
            }
        }
        match how {
            Difference::Bytes => self.flight.carry(ranges, false),
            Difference::Fill => self.flight.carry(ranges, true),
            Difference::Clear => self.flight.clear(&ranges),
        }
    }

    /// Flushes what has arrived.
    fn flush(&self) -> Result<()> {
        let mut flushing = self.flushing.lock().expect("no holder panics");
        let _still = self.flight.pause()?;
        let (number, stage) = (flushing.number + 1, flushing.stage);
        wait(|done| self.flight.target().flush(Flush { number, stage, done }))?;
        flushing.number = number;
        flushing.flushes += 1;
        flushing.moved = self.flight.moved() + self.flight.cleared();
        Ok(())
    }
}
