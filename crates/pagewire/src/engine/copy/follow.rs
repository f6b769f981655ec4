//! Following a region: each of its epochs is brought to a store, as an epoch there.
//!
//! What has changed since the last one is asked of the region, and carried. Where the region does not know that any more, or
//! the two have not met yet, they are compared by their hashes: so one that was away, or is too slow for what the
//! region keeps, catches up without transferring all, and costs nobody else anything.

use std::sync::Arc;
use std::time::Duration;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use serde::Serialize;

use super::delta::{BATCH, DeltaOptions, copy_delta};
use super::flight::Flight;
use crate::engine::{Pin, Region};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Flush, Store, wait};

/// How often to look whether there is a newer epoch, of which a peer tells by itself.
const LOOK: Duration = Duration::from_millis(2);

/// How long to wait before what has failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How often a step begins anew because the epoch that it carries was gone before it had all of it.
const TRIES: usize = 8;

/// What one step has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Followed {
    /// The region's epoch that the store has now.
    pub epoch: u64,
    /// Its length, in bytes.
    pub length: u64,
    /// How many bytes were moved.
    pub moved: u64,
    /// Whether the two were compared by their hashes.
    pub compared: bool,
}

/// Brings the epochs of a region to a store.
pub struct Follower {
    from: Arc<Region>,
    to: Arc<dyn Store>,
    options: DeltaOptions,
    /// The epoch that the store has, if that is known.
    at: Option<u64>,
}

impl Follower {
    /// A follower of `from`, of which nothing is known to be in `to`.
    pub fn new(from: Arc<Region>, to: Arc<dyn Store>, options: &DeltaOptions) -> Self {
        // An epoch is brought as a whole.
        Self { from, to, options: DeltaOptions { checkpoint: None, ..options.clone() }, at: None }
    }

    /// The epoch of the region that the store has, if that is known.
    pub fn epoch(&self) -> Option<u64> {
        self.at
    }

    /// Whether the region has told of an epoch that the store does not have.
    pub fn has_news(&self) -> bool {
        self.at.is_none_or(|at| self.from.newest() > at)
    }

    /// Brings the newest epoch; answers none where the store has it.
    ///
    /// # Errors
    ///
    /// As [`copy_delta`]; the next step compares the two then.
    pub fn step(&mut self) -> Result<Option<Followed>> {
        let mut tries = 0..TRIES;
        loop {
            match self.bring() {
                Err(error) if error.kind() == ErrorKind::Stale && tries.next().is_some() => {
                    tracing::debug!(region = self.from.name(), %error, "a newer epoch is brought instead");
                }
                result => return result,
            }
        }
    }

    fn bring(&mut self) -> Result<Option<Followed>> {
        self.from.refresh()?;
        let pin = self.from.pin()?;
        let (epoch, length) = (pin.epoch(), pin.info().length);
        if self.at == Some(epoch) {
            return Ok(None);
        }
        let changed = self.at.and_then(|at| self.from.changes(at));
        // Until the store has the newer epoch as a whole, nobody knows what it has.
        self.at = None;
        let followed = match changed {
            Some(changed) => {
                let moved = self.carry(&pin, changed)?;
                Followed { epoch, length, moved, compared: false }
            }
            None => {
                let done = copy_delta(&self.from, &self.to, &self.options, |_| {})?;
                Followed { epoch, length, moved: done.moved, compared: true }
            }
        };
        self.at = Some(epoch);
        Ok(Some(followed))
    }

    /// Carries what has changed, and flushes it.
    fn carry(&self, pin: &Pin, mut changed: Vec<ByteRange>) -> Result<u64> {
        let (stage, length) = (self.to.stage(), pin.info().length);
        if stage.length != length {
            wait(|done| self.to.set_length(length, done))?;
            // What is new behind an end is no change of bytes.
            changed.push(ByteRange::new(stage.length.min(length) / PAGE_SIZE * PAGE_SIZE, length));
        }
        let changed = ByteRange::union(changed.into_iter().map(|range| range.clamp_to(length)).collect());
        let flight = Flight::new(self.from.clone(), pin.epoch(), self.to.clone());
        let mut batch: Vec<ByteRange> = Vec::new();
        for piece in changed.iter().filter(|range| !range.is_empty()).flat_map(|range| range.split(BATCH)) {
            if ByteRange::total(&batch) + piece.len() > BATCH {
                flight.carry(std::mem::take(&mut batch), false)?;
            }
            batch.push(piece);
        }
        if !batch.is_empty() {
            flight.carry(batch, false)?;
        }
        flight.end(self.options.patience)?;
        let number = stage.flushed.max(self.to.stage().flushed) + 1;
        wait(|done| self.to.flush(Flush { number, stage: stage.number, done }))?;
        Ok(flight.moved())
    }

    /// Makes one step after another until `pause` answers false, which waits so long, or for the end. Tells `told` of
    /// each; one that fails and can be tried again is logged, and tried again.
    ///
    /// # Errors
    ///
    /// What no further step mends.
    pub fn run(
        &mut self,
        mut told: impl FnMut(&Followed),
        mut pause: impl FnMut(Duration) -> bool,
    ) -> Result<()> {
        loop {
            let next = match self.has_news().then(|| self.step()).transpose().map(Option::flatten) {
                Ok(followed) => {
                    followed.iter().for_each(&mut told);
                    LOOK
                }
                Err(error) if can_go_on(&error) => {
                    tracing::warn!(region = self.from.name(), %error, "an epoch cannot be brought; it is tried again");
                    AGAIN
                }
                Err(error) => return Err(error),
            };
            if !pause(next) {
                return Ok(());
            }
        }
    }
}

/// Whether another step may succeed.
fn can_go_on(error: &Error) -> bool {
    error.can_retry() || matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Stale | ErrorKind::Busy)
}
