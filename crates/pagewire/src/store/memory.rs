//! `mem:SIZE`: zeroed memory of this process.
//!
//! An epoch is a table of blocks that are shared with other epochs and copied when written: a reader
//! takes the table under a short lock and hands out the bytes without one, and an older epoch that
//! somebody holds costs what was written since. What is staged is a table of its own, until the flush.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use pagewire_core::chunk::ByteRange;
use uuid::Uuid;

use super::{
    AtOnce, Capabilities, Completion, Flush, Info, Part, Read, STAGED, Stage, Store, given_up, stale,
};
use crate::error::{Error, ErrorKind, Result};

/// The length of a block, in bytes: small enough that copying one for a small write is cheap, large
/// enough that the table is small.
const BLOCK: u64 = 64 << 10;

/// How many bytes older epochs may take for their readers unless told otherwise.
const IMAGES: u64 = 32 << 20;

/// Of how many epochs it is remembered what they have changed.
const REMEMBERED: usize = 64;

/// Zeroed memory of this process. Blocks that were never written take no memory.
pub struct MemoryStore {
    id: Uuid,
    capacity: u64,
    images: u64,
    state: Mutex<State>,
}

struct State {
    epoch: u64,
    current: Arc<Image>,
    /// The epochs that readers hold, and how many do.
    held: BTreeMap<u64, (Arc<Image>, usize)>,
    /// How many bytes each older epoch had that the one after it has not.
    replaced: BTreeMap<u64, u64>,
    /// What each of the last epochs has changed, to the block.
    changed: BTreeMap<u64, Vec<ByteRange>>,
    staged: Option<Arc<Image>>,
    /// Grows whenever something that was staged is given up.
    stage: u64,
    token: u64,
    flushed: u64,
}

/// What the region is at one epoch. Blocks that are absent hold zeroes.
#[derive(Clone)]
struct Image {
    length: u64,
    blocks: Vec<Block>,
}

type Block = Option<Arc<[u8]>>;

impl MemoryStore {
    /// A region of `length` zeroes.
    pub fn new(length: u64) -> Self {
        Self::with_capacity(length, length)
    }

    /// The same that can grow to `capacity`.
    pub fn with_capacity(length: u64, capacity: u64) -> Self {
        let capacity = capacity.max(length);
        let blocks = vec![None; capacity.div_ceil(BLOCK) as usize];
        let state = State {
            epoch: 1,
            current: Arc::new(Image { length, blocks }),
            held: BTreeMap::new(),
            replaced: BTreeMap::new(),
            changed: BTreeMap::new(),
            staged: None,
            stage: 1,
            token: 0,
            flushed: 0,
        };
        Self { id: Uuid::new_v4(), capacity, images: IMAGES, state: Mutex::new(state) }
    }

    /// The same, with so many bytes at most for readers of older epochs: the oldest are told that theirs
    /// is gone where more would be needed.
    #[must_use]
    pub fn with_images(self, images: u64) -> Self {
        Self { images, ..self }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn info_of(&self, epoch: u64, image: &Image) -> Info {
        Info {
            id: self.id,
            epoch,
            length: image.length,
            capacity: self.capacity,
            granularity: BLOCK as u32,
            writable: true,
            capabilities: Capabilities { history: true, commit: true, ..Capabilities::default() },
        }
    }
}

impl State {
    /// The table of an epoch.
    fn image(&self, epoch: u64) -> Option<Arc<Image>> {
        match epoch {
            STAGED => Some(self.staged.as_ref().unwrap_or(&self.current).clone()),
            epoch if epoch == self.epoch => Some(self.current.clone()),
            epoch => self.held.get(&epoch).map(|(image, _)| image.clone()),
        }
    }

    /// Whether `ranges` can be written to.
    fn check(&self, ranges: &[ByteRange]) -> Result<()> {
        let image = self.staged.as_ref().unwrap_or(&self.current);
        ranges.iter().try_for_each(|&range| image.check(range))
    }

    /// Makes what is staged the newest epoch, and lets go of older ones that take more than `bound` bytes.
    fn commit(&mut self, staged: Arc<Image>, bound: u64) {
        let changed = self.current.changes(&staged);
        self.replaced.insert(self.epoch, ByteRange::total(&changed));
        self.current = staged;
        self.epoch += 1;
        self.changed.insert(self.epoch, changed);
        if self.changed.len() > REMEMBERED {
            self.changed.pop_first();
        }
        while let Some((&oldest, _)) = self.held.first_key_value() {
            self.replaced = self.replaced.split_off(&oldest);
            if oldest == self.epoch || self.replaced.values().sum::<u64>() <= bound {
                return;
            }
            self.held.remove(&oldest);
        }
        self.replaced.clear();
    }

    fn give_up(&mut self) {
        if self.staged.take().is_some() {
            self.stage += 1;
        }
    }

    fn staged(&mut self) -> &mut Image {
        Arc::make_mut(self.staged.get_or_insert_with(|| self.current.clone()))
    }
}

impl Image {
    fn check(&self, range: ByteRange) -> Result<()> {
        if range.end <= self.length {
            return Ok(());
        }
        let text = format!("bytes {range} of a region of {} bytes", self.length);
        Err(Error::new(ErrorKind::OutOfRange, text))
    }

    /// What is not the same in another image of the region, to the block.
    fn changes(&self, other: &Image) -> Vec<ByteRange> {
        let same = |(one, two): (&Block, &Block)| match (one, two) {
            (None, None) => true,
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            _ => false,
        };
        let range = |block: usize| ByteRange::new(block as u64 * BLOCK, (block as u64 + 1) * BLOCK);
        let blocks = self.blocks.iter().zip(&other.blocks).enumerate();
        let mut changes: Vec<_> =
            blocks.filter(|(_, pair)| !same(*pair)).map(|(block, _)| range(block)).collect();
        if self.length != other.length {
            changes.push(ByteRange::new(self.length.min(other.length), self.length.max(other.length)));
        }
        ByteRange::union(changes)
    }

    fn write(&mut self, range: ByteRange, bytes: &[u8]) {
        for piece in range.split(BLOCK) {
            let block = self.blocks[(piece.start / BLOCK) as usize]
                .get_or_insert_with(|| Arc::from(vec![0; BLOCK as usize]));
            let from = (piece.start - range.start) as usize;
            let bytes = &bytes[from..from + piece.len() as usize];
            Arc::make_mut(block)[within(piece)].copy_from_slice(bytes);
        }
    }

    fn zero(&mut self, range: ByteRange) {
        for piece in range.split(BLOCK) {
            let block = &mut self.blocks[(piece.start / BLOCK) as usize];
            if piece.len() == BLOCK {
                *block = None;
            } else if let Some(block) = block {
                Arc::make_mut(block)[within(piece)].fill(0);
            }
        }
    }
}

/// Where in its block a piece is.
fn within(piece: ByteRange) -> std::ops::Range<usize> {
    let start = (piece.start % BLOCK) as usize;
    start..start + piece.len() as usize
}

impl Store for MemoryStore {
    fn info(&self) -> Info {
        let state = self.lock();
        self.info_of(state.epoch, &state.current)
    }

    fn read(&self, read: Read) {
        let (image, newest) = {
            let state = self.lock();
            (state.image(read.epoch), state.epoch)
        };
        let Some(image) = image else { return read.sink.done(Err(stale(read.epoch, newest))) };
        if let Some(error) = read.ranges.iter().find_map(|&range| image.check(range).err()) {
            return read.sink.done(Err(error));
        }
        for piece in read.ranges.iter().flat_map(|range| range.split(BLOCK)) {
            read.sink.part(match &image.blocks[(piece.start / BLOCK) as usize] {
                Some(bytes) => Part::Bytes { offset: piece.start, bytes: &bytes[within(piece)] },
                None => Part::Zero(piece),
            });
        }
        read.sink.done(Ok(()));
    }

    fn read_at_once(&self, range: ByteRange, epoch: u64, buffer: &mut [u8]) -> Result<AtOnce> {
        let (image, newest) = {
            let state = self.lock();
            (state.image(epoch), state.epoch)
        };
        let image = image.ok_or_else(|| stale(epoch, newest))?;
        image.check(range)?;
        let block = |piece: ByteRange| image.blocks[(piece.start / BLOCK) as usize].as_ref();
        if range.split(BLOCK).all(|piece| block(piece).is_none()) {
            return Ok(AtOnce::Zeroes);
        }
        for piece in range.split(BLOCK) {
            let from = (piece.start - range.start) as usize;
            let buffer = &mut buffer[from..from + piece.len() as usize];
            match block(piece) {
                Some(bytes) => buffer.copy_from_slice(&bytes[within(piece)]),
                None => buffer.fill(0),
            }
        }
        Ok(AtOnce::Bytes)
    }

    fn holes(&self, range: ByteRange, epoch: u64) -> Option<Vec<ByteRange>> {
        let image = self.lock().image(epoch)?;
        let is_hole = |piece: &ByteRange| image.blocks[(piece.start / BLOCK) as usize].is_none();
        let range = range.clamp_to(image.length);
        Some(ByteRange::union(range.split(BLOCK).filter(is_hole).collect()))
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        let mut state = self.lock();
        let checked = state.check(ranges);
        if checked.is_ok() && ByteRange::total(ranges) > 0 {
            let mut rest = bytes;
            for range in ranges {
                let (these, behind) = rest.split_at(range.len() as usize);
                state.staged().write(*range, these);
                rest = behind;
            }
        }
        drop(state);
        done(checked);
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        let mut state = self.lock();
        let checked = state.check(ranges);
        if checked.is_ok() && ByteRange::total(ranges) > 0 {
            ranges.iter().for_each(|range| state.staged().zero(*range));
        }
        drop(state);
        done(checked);
    }

    fn set_length(&self, length: u64, done: Completion) {
        if length > self.capacity {
            return done(Err(super::too_long(length, self.capacity)));
        }
        let mut state = self.lock();
        let staged = state.staged();
        if length < staged.length {
            staged.zero(ByteRange::new(length, staged.length));
        }
        staged.length = length;
        drop(state);
        done(Ok(()));
    }

    fn flush(&self, flush: Flush) {
        let mut state = self.lock();
        if flush.stage != state.stage {
            drop(state);
            return (flush.done)(Err(given_up()));
        }
        if flush.number > state.flushed {
            state.flushed = flush.number;
            if let Some(staged) = state.staged.take() {
                state.commit(staged, self.images);
            }
        }
        let info = self.info_of(state.epoch, &state.current);
        drop(state);
        (flush.done)(Ok(info));
    }

    fn is_durable(&self) -> bool {
        false
    }

    fn stage(&self) -> Stage {
        let state = self.lock();
        let length = state.staged.as_ref().map_or(state.current.length, |staged| staged.length);
        let (number, flushed, token) = (state.stage, state.flushed, state.token);
        Stage { number, flushed, token, length, ..Stage::default() }
    }

    fn discard(&self) -> Result<()> {
        self.lock().give_up();
        Ok(())
    }

    fn fence(&self) -> Result<Option<u64>> {
        let mut state = self.lock();
        state.give_up();
        state.flushed = 0;
        state.token += 1;
        Ok(Some(state.token))
    }

    fn pin(&self, epoch: Option<u64>) -> Result<Info> {
        let mut state = self.lock();
        let epoch = epoch.unwrap_or(state.epoch);
        let Some(image) = state.image(epoch).filter(|_| epoch != STAGED) else {
            return Err(stale(epoch, state.epoch));
        };
        let info = self.info_of(epoch, &image);
        state.held.entry(epoch).or_insert((image, 0)).1 += 1;
        Ok(info)
    }

    fn unpin(&self, epoch: u64) {
        let mut state = self.lock();
        if let Some((_, count)) = state.held.get_mut(&epoch) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(&epoch);
            }
        }
    }

    fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        let state = self.lock();
        if since == state.epoch {
            return Some(Vec::new());
        }
        // Every epoch since then has to be known.
        let oldest = *state.changed.first_key_value()?.0;
        let known = since < state.epoch && since + 1 >= oldest && since != STAGED;
        let changed = state.changed.range(since + 1..).flat_map(|(_, ranges)| ranges.iter().copied());
        known.then(|| ByteRange::union(changed.collect()))
    }
}
