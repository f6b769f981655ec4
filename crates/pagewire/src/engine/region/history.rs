//! The epochs of a store that keeps none and writes through: what is replaced is kept for the readers of
//! the newest epoch, and of those before it that somebody holds.
//!
//! Each write makes a *version*, which nobody sees; a flush makes the newest version an epoch. Core's
//! [`BeforeImages`] take a reader from the version that the store is at back to that of the epoch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, ChunkSize, Geometry, PAGE_SIZE};
use pagewire_core::epoch::{BeforeImages, Piece};

use crate::error::{Error, ErrorKind, Result};
use crate::store::gate::{Gate, Ticket};
use crate::store::{Blocking, Info, Part, Read, STAGED, Sink, Store, Stream, StreamRequest, stale};

/// While no epoch is held, so many times less is kept: for a reader that may come. To keep all that a writer
/// replaces in order would cost as much as what it writes.
const UNHELD: u64 = 8;

/// Of how many epochs it is remembered what they have changed, and of how many ranges of each.
const REMEMBERED: (usize, usize) = (64, 4096);

/// The epochs of one store.
pub(super) struct History {
    state: Arc<Mutex<State>>,
    gate: Arc<Gate>,
    /// Held while the store is changed: one change at a time.
    changing: Mutex<()>,
    bound: u64,
}

struct State {
    epoch: u64,
    /// The region's length at that epoch: what is written may have changed the store's already.
    length: u64,
    /// The version that the newest epoch is.
    version: u64,
    /// The newest version.
    newest: u64,
    images: BeforeImages<Arc<Vec<u8>>>,
    /// The epochs that readers hold: the version of each, its length, and how many readers.
    held: BTreeMap<u64, Held>,
    /// The pages that were written since the newest epoch.
    written: BitSet,
    /// What each of the last epochs has changed, to the page.
    changed: BTreeMap<u64, Vec<ByteRange>>,
}

#[derive(Clone, Copy)]
struct Held {
    version: u64,
    length: u64,
    readers: usize,
}

impl History {
    pub(super) fn new(info: &Info, bound: u64) -> Self {
        let state = State {
            epoch: info.epoch,
            length: info.length,
            version: 0,
            newest: 0,
            images: BeforeImages::new(0),
            held: BTreeMap::new(),
            written: BitSet::new(Geometry::new(info.capacity, ChunkSize::PAGE).page_count()),
            changed: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), gate: Arc::default(), changing: Mutex::default(), bound }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// What is known of the region at its newest epoch, given what the store says.
    pub(super) fn info(&self, mut info: Info) -> Info {
        let state = self.lock();
        (info.epoch, info.length) = (state.epoch, state.length);
        info.capabilities.history = true;
        info
    }

    /// Which bytes differ, at most, between the epoch `since` and the newest; none where that is not remembered.
    pub(super) fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        let state = self.lock();
        // Every epoch since then has to be known.
        let known = (since..state.epoch).all(|epoch| state.changed.contains_key(&(epoch + 1)));
        let changed = state.changed.range(since.saturating_add(1)..).flat_map(|(_, ranges)| ranges);
        (known && since <= state.epoch).then(|| ByteRange::union(changed.copied().collect()))
    }

    pub(super) fn pin(&self, epoch: Option<u64>, info: Info) -> Result<Info> {
        let mut state = self.lock();
        let newest = state.epoch;
        let epoch = epoch.unwrap_or(newest);
        let held = match state.held.get(&epoch) {
            Some(held) => *held,
            None if epoch == newest => Held { version: state.version, length: state.length, readers: 0 },
            None => return Err(stale(epoch, newest)),
        };
        if held.version < state.images.oldest() {
            if epoch == newest {
                let text =
                    format!("more than {} bytes of epoch {epoch} were replaced, and not flushed", self.bound);
                return Err(Error::new(ErrorKind::Busy, text));
            }
            return Err(stale(epoch, newest));
        }
        state.held.insert(epoch, Held { readers: held.readers + 1, ..held });
        let mut info = Info { epoch, length: held.length, ..info };
        info.capabilities.history = true;
        Ok(info)
    }

    pub(super) fn unpin(&self, epoch: u64) {
        let mut state = self.lock();
        if let Some(held) = state.held.get_mut(&epoch) {
            held.readers -= 1;
            if held.readers == 0 {
                state.held.remove(&epoch);
                state.release_unneeded();
            }
        }
    }

    pub(super) fn read(&self, store: &dyn Store, read: Read) {
        let now = store.info().epoch;
        if read.epoch == STAGED {
            return store.read(Read { epoch: now, ..read });
        }
        let (pieces, ticket) = {
            let state = self.lock();
            let version = state.version_of(read.epoch);
            let pieces: Option<Vec<_>> = version.and_then(|version| {
                read.ranges.iter().map(|range| state.images.lookup(version, *range).ok()).collect()
            });
            let Some(pieces) = pieces else {
                let error = stale(read.epoch, state.epoch);
                drop(state);
                return read.sink.done(Err(error));
            };
            (pieces, self.gate.enter())
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
        store.read(Read { ranges, epoch: now, urgency: read.urgency, sink });
    }

    /// Begins a stream. What comes is looked at when it has come: what has been replaced by then is kept, and is
    /// given instead.
    pub(super) fn stream(&self, store: &dyn Store, stream: StreamRequest) -> Result<Box<dyn Stream>> {
        let now = store.info().epoch;
        if stream.epoch == STAGED {
            return store.stream(StreamRequest { epoch: now, ..stream });
        }
        let version = {
            let state = self.lock();
            let version = state.version_of(stream.epoch);
            version.ok_or_else(|| stale(stream.epoch, state.epoch))?
        };
        let (state, epoch) = (self.state.clone(), stream.epoch);
        let sink = Arc::new(OfVersion { state, version, epoch, sink: stream.sink, stale: Mutex::default() });
        store.stream(StreamRequest { epoch: now, sink, ..stream })
    }

    /// Lets `change` replace `ranges` of the store, when their bytes are kept for those who need them.
    pub(super) fn change(
        &self,
        store: &dyn Store,
        ranges: &[ByteRange],
        change: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let _one = self.changing.lock().expect("no holder panics");
        let info = store.info();
        let written = ranges;
        loop {
            // Where more was replaced than is kept, and nobody reads an older epoch, what else is replaced before the
            // next flush is of no use to anybody.
            let is_kept = self.lock().can_be_given();
            let ranges = if is_kept { ByteRange::union(ranges.to_vec()) } else { Vec::new() };
            let images = ranges
                .iter()
                .map(|range| range.clamp_to(info.length))
                .filter(|range| !range.is_empty())
                .map(|range| Ok((range, Arc::new(store.read_bytes(range, info.epoch)?))))
                .collect::<Result<Vec<(ByteRange, Arc<Vec<u8>>)>>>()?;
            let mut state = self.lock();
            if !is_kept && state.can_be_given() {
                // There was a flush in between.
                continue;
            }
            state.write(written);
            state.newest += 1;
            let (version, cost) = (state.newest, images.iter().map(|(range, _)| range.len()).sum());
            state.images.commit(version, images, cost);
            let bound = if state.held.is_empty() { self.bound / UNHELD } else { self.bound };
            state.images.trim(bound);
            break;
        }
        // From here on, reads of older versions take the images; those that began before must end.
        self.gate.wait();
        let result = change();
        // Whatever epoch a flush that came meanwhile has made, the next one has it, too.
        self.lock().write(written);
        result
    }

    /// What was written is durable, and the newest epoch now, if anything was. Answers which is.
    pub(super) fn flushed(&self, length: u64) -> u64 {
        let mut state = self.lock();
        if state.newest > state.version {
            state.version = state.newest;
            state.epoch += 1;
            state.remember(length);
            state.length = length;
            state.release_unneeded();
        }
        state.epoch
    }
}

impl State {
    fn write(&mut self, ranges: &[ByteRange]) {
        let pages = self.written.len();
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let (first, end) = (range.start / PAGE_SIZE, range.end.div_ceil(PAGE_SIZE));
            self.written.insert_range(first.min(pages)..end.min(pages));
        }
    }

    /// Takes note of what the newest epoch has changed, in which the region has this length.
    fn remember(&mut self, length: u64) {
        let mut changed: Vec<ByteRange> = self.written.runs().map(ByteRange::of_pages).collect();
        self.written.clear();
        if changed.len() > REMEMBERED.1 {
            // What is not known of one epoch is not known since any before it.
            return self.changed.clear();
        }
        if length != self.length {
            changed.push(ByteRange::new(length.min(self.length), length.max(self.length)));
        }
        self.changed.insert(self.epoch, ByteRange::union(changed));
        if self.changed.len() > REMEMBERED.0 {
            self.changed.pop_first();
        }
    }

    /// The version that an epoch is, where a reader holds it or it is the newest.
    fn version_of(&self, epoch: u64) -> Option<u64> {
        match self.held.get(&epoch) {
            Some(held) => Some(held.version),
            None => (epoch == self.epoch).then_some(self.version),
        }
    }

    /// Whether an epoch can still be given: the newest, or one that a reader holds.
    fn can_be_given(&self) -> bool {
        let oldest = self.images.oldest();
        self.version >= oldest || self.held.values().any(|held| held.version >= oldest)
    }

    /// Drops the images that neither a reader nor the newest epoch needs.
    fn release_unneeded(&mut self) {
        let oldest = self.held.values().map(|held| held.version).min();
        self.images.release_before(oldest.unwrap_or(self.version).min(self.version));
    }
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

/// Passes on what belongs to a version, of a store that is ahead of it.
struct OfVersion {
    state: Arc<Mutex<State>>,
    version: u64,
    epoch: u64,
    sink: Arc<dyn Sink>,
    /// Why the rest cannot be given, if that is so.
    stale: Mutex<Option<Error>>,
}

impl Sink for OfVersion {
    fn part(&self, part: Part<'_>) {
        let pieces = {
            let state = self.state.lock().expect("no holder panics");
            let pieces = state.images.lookup(self.version, part.range());
            pieces.map_err(|_| stale(self.epoch, state.epoch))
        };
        let pieces = match pieces {
            Ok(pieces) => pieces,
            Err(error) => {
                self.stale.lock().expect("no holder panics").get_or_insert(error);
                return;
            }
        };
        for piece in pieces {
            match piece {
                Piece::Current(range) => self.sink.part(part.cut(range)),
                Piece::Image { range, of, image } => {
                    let from = (range.start - of.start) as usize;
                    let bytes = &image[from..from + range.len() as usize];
                    self.sink.part(Part::Bytes { offset: range.start, bytes });
                }
            }
        }
    }

    fn done(&self, result: Result<()>) {
        let stale = self.stale.lock().expect("no holder panics").take();
        self.sink.done(stale.map_or(result, Err));
    }
}
