//! The epochs of a store that keeps none itself: before-images for pinned readers, and commits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use pagewire_core::chunk::ByteRange;
use pagewire_core::epoch::{BeforeImages, Piece};

use super::gate::{Gate, Ticket};
use super::{Change, stale};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Blocking, Part, Read, Sink, Store};

/// The epochs of one store.
pub(super) struct History {
    state: Mutex<State>,
    gate: Arc<Gate>,
    /// Held for the whole of a commit: one at a time.
    committing: Mutex<()>,
    bound: u64,
}

struct State {
    current: u64,
    /// The epoch that the next commit makes; failed ones are not used again.
    next: u64,
    images: BeforeImages<Arc<[u8]>>,
    /// How many readers are pinned to each epoch.
    pins: BTreeMap<u64, usize>,
    /// Set where a failed commit could not be undone: the store holds a mix.
    broken: Option<Error>,
}

impl History {
    pub(super) fn new(epoch: u64, bound: u64) -> Self {
        let state = State {
            current: epoch,
            next: epoch + 1,
            images: BeforeImages::new(epoch),
            pins: BTreeMap::new(),
            broken: None,
        };
        Self { state: Mutex::new(state), gate: Arc::default(), committing: Mutex::default(), bound }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    pub(super) fn current(&self) -> u64 {
        self.lock().current
    }

    pub(super) fn pin_current(&self) -> u64 {
        let mut state = self.lock();
        let epoch = state.current;
        *state.pins.entry(epoch).or_default() += 1;
        epoch
    }

    pub(super) fn pin(&self, epoch: u64) -> bool {
        let mut state = self.lock();
        let available = (state.images.oldest()..=state.current).contains(&epoch);
        if available {
            *state.pins.entry(epoch).or_default() += 1;
        }
        available
    }

    pub(super) fn release(&self, epoch: u64) {
        let mut state = self.lock();
        if let Some(count) = state.pins.get_mut(&epoch) {
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&epoch);
                state.release_unneeded();
            }
        }
    }

    pub(super) fn read(&self, name: &str, store: &dyn Store, read: Read) {
        let (pieces, ticket) = {
            let state = self.lock();
            if let Some(broken) = &state.broken {
                let error = broken.clone();
                drop(state);
                return read.sink.done(Err(error));
            }
            if read.epoch > state.current {
                let error = stale(name, read.epoch, state.current);
                drop(state);
                return read.sink.done(Err(error));
            }
            let pieces: Result<Vec<_>, _> =
                read.ranges.iter().map(|range| state.images.lookup(read.epoch, *range)).collect();
            match pieces {
                Ok(pieces) => (pieces, self.gate.enter()),
                Err(_) => {
                    let error = stale(name, read.epoch, state.current);
                    drop(state);
                    return read.sink.done(Err(error));
                }
            }
        };
        let mut ranges = Vec::with_capacity(read.ranges.len());
        for piece in pieces.into_iter().flatten() {
            match piece {
                Piece::Current(range) => ranges.push(range),
                Piece::Image { range, of, image } => {
                    let from = (range.start - of.start) as usize;
                    let bytes = &image[from..from + range.len() as usize];
                    read.sink.part(Part::Bytes { offset: range.start, bytes });
                }
            }
        }
        let sink = Arc::new(Counted { sink: read.sink, ticket: Mutex::new(Some(ticket)) });
        if ranges.is_empty() {
            return sink.done(Ok(()));
        }
        store.read(Read { ranges, epoch: store.info().epoch, urgency: read.urgency, sink });
    }

    pub(super) fn commit(&self, store: &dyn Store, changes: &[Change<'_>]) -> Result<u64> {
        let _one = self.committing.lock().expect("no holder panics");
        if let Some(broken) = &self.lock().broken {
            return Err(broken.clone());
        }
        let changes: Vec<&Change<'_>> = changes.iter().filter(|change| !change.bytes.is_empty()).collect();
        if changes.is_empty() {
            return Ok(self.current());
        }
        let epoch = store.info().epoch;
        let images = merged(&changes)
            .into_iter()
            .map(|range| Ok((range, Arc::from(store.read_bytes(range, epoch)?))))
            .collect::<Result<Vec<(ByteRange, Arc<[u8]>)>>>()?;
        let made = {
            let mut state = self.lock();
            let made = state.next;
            state.next += 1;
            let cost = images.iter().map(|(range, _)| range.len()).sum();
            state.images.commit(made, images.clone(), cost);
            made
        };
        // From here on, reads of older epochs take the images; those that began before must end.
        self.gate.wait();
        let written = changes
            .iter()
            .try_for_each(|change| store.write_bytes(change.offset, change.bytes))
            .and_then(|()| store.flush_all());
        if let Err(error) = written {
            let undone = images.iter().try_for_each(|(range, bytes)| store.write_bytes(range.start, bytes));
            if let Err(undo) = undone {
                let text = format!("a write failed half-way ({error}) and could not be undone ({undo})");
                self.lock().broken = Some(Error::new(ErrorKind::Io, text));
            }
            return Err(error);
        }
        let mut state = self.lock();
        state.current = made;
        state.release_unneeded();
        state.images.trim(self.bound);
        Ok(made)
    }
}

impl State {
    /// Drops the images that no pinned reader needs.
    fn release_unneeded(&mut self) {
        let oldest = self.pins.keys().next().copied().unwrap_or(self.current);
        self.images.release_before(oldest);
    }
}

/// The ranges that `changes` touch, in order, without overlaps.
fn merged(changes: &[&Change<'_>]) -> Vec<ByteRange> {
    let range =
        |change: &&Change<'_>| ByteRange::new(change.offset, change.offset + change.bytes.len() as u64);
    ByteRange::union(changes.iter().map(range).collect())
}

/// Leaves the gate when the read has ended.
struct Counted {
    sink: Arc<dyn Sink>,
    ticket: Mutex<Option<Ticket>>,
}

impl Sink for Counted {
    fn part(&self, part: Part<'_>) {
        self.sink.part(part);
    }

    fn done(&self, result: Result<()>) {
        drop(self.ticket.lock().expect("no holder panics").take());
        self.sink.done(result);
    }
}
