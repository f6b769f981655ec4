//! The local copy that is memory of another process.
//!
//! Memory that the guest has given up (a balloon does that, by `madvise`) comes back as zeroes, and
//! what was pulled for it must not be placed any more. The kernel tells by an event, and lets the
//! guest go on as soon as the event is read. So the set of what was given up is changed under a lock
//! that is taken *before* the event is read, and that placements share: each has happened before the
//! memory was given up, or sees that it was.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, OnceLock, RwLock};
use std::thread::ThreadId;

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, ChunkSize, Geometry, PAGE_SIZE, round_down, round_up};
use pagewire_sys::uffd::{CopyMode, Event, EventBuffer, PlaceError, Uffd};

use crate::access::uffd::handshake::GuestMapping;
use crate::access::uffd::{place_error, poisoned};
use crate::engine::LocalCopy;
use crate::error::{Error, ErrorKind, Result};

const HUGE: u64 = 2 << 20;

/// How many events are read at once.
const EVENTS: usize = 32;

/// Memory of another process.
pub(super) struct GuestMemory {
    uffd: Uffd,
    /// By their offset in the region.
    mappings: Vec<GuestMapping>,
    /// To the page of the region.
    geometry: Geometry,
    removed: RwLock<BitSet>,
    /// Huge pages of which a part has come, by their offset in the region.
    parts: Mutex<HashMap<u64, HugePage>>,
    /// The thread that reads events.
    reader: OnceLock<ThreadId>,
    buffer: Mutex<EventBuffer>,
    /// Events that were read, and what they say was given up, which nobody has dealt with yet.
    unread: Mutex<Unread>,
    /// Huge pages that were placed, by their offset in the region divided by their size.
    placed: Mutex<BitSet>,
}

/// Events that were read and not dealt with.
#[derive(Default)]
pub(super) struct Unread {
    pub(super) events: Vec<Event>,
    pub(super) removed: Vec<ByteRange>,
}

/// A huge page that is put together before it is placed.
struct HugePage {
    bytes: Vec<u8>,
    pages: BitSet,
}

/// What became of a fault, as far as memory that was given up is concerned.
pub(super) enum Zeroed {
    /// It was given up, and holds zeroes now.
    Done,
    /// It was given up, and more was just now; try again when the events were read.
    Again,
    /// It was not given up; it is at this offset of the region.
    NotRemoved(u64),
    /// The address belongs to none of the mappings.
    Unknown,
}

/// A part of one mapping.
struct Piece {
    /// In the other process.
    address: u64,
    /// In the region.
    range: ByteRange,
    page_size: u64,
}

impl GuestMemory {
    pub(super) fn new(uffd: Uffd, mappings: Vec<GuestMapping>, length: u64) -> Self {
        let geometry = Geometry::new(length, ChunkSize::PAGE);
        Self {
            uffd,
            mappings,
            geometry,
            removed: RwLock::new(BitSet::new(geometry.page_count())),
            parts: Mutex::default(),
            reader: OnceLock::new(),
            buffer: Mutex::new(EventBuffer::new(EVENTS)),
            unread: Mutex::default(),
            placed: Mutex::new(BitSet::new(length.div_ceil(HUGE))),
        }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    /// The parts of the region that no mapping shows.
    pub(super) fn unmapped(&self, length: u64) -> Vec<ByteRange> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for mapping in &self.mappings {
            gaps.push(ByteRange::new(at, mapping.offset));
            at = mapping.offset + mapping.size;
        }
        gaps.push(ByteRange::new(at, length));
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }

    /// What was read and not dealt with, after whatever can be read now. The calling thread is the
    /// one that reads events from now on.
    pub(super) fn take_events(&self) -> io::Result<Unread> {
        self.reader.get_or_init(|| std::thread::current().id());
        self.read_events()?;
        Ok(std::mem::take(&mut *self.unread.lock().expect("no holder panics")))
    }

    /// Whether events were read while a fault was answered, which nobody has dealt with yet.
    pub(super) fn has_unread(&self) -> bool {
        let unread = self.unread.lock().expect("no holder panics");
        !unread.events.is_empty() || !unread.removed.is_empty()
    }

    fn is_reader(&self) -> bool {
        self.reader.get() == Some(&std::thread::current().id())
    }

    /// Reads what events there are.
    fn read_events(&self) -> io::Result<()> {
        let mut buffer = self.buffer.lock().expect("no holder panics");
        let mut removed = self.removed.write().expect("no holder panics");
        match self.uffd.read_events(&mut buffer) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut unread = self.unread.lock().expect("no holder panics");
        for event in buffer.take() {
            if let Event::Remove { start, end } | Event::Unmap { start, end } = event {
                for range in self.in_region(ByteRange::new(start, end)) {
                    removed.insert_range(self.geometry.pages_within(range));
                    unread.removed.push(range);
                }
            } else {
                unread.events.push(event);
            }
        }
        Ok(())
    }

    /// The parts of the region that a range of the other process's addresses shows.
    fn in_region(&self, addresses: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
        self.mappings.iter().filter_map(move |mapping| {
            let there = ByteRange::new(mapping.base, mapping.base + mapping.size);
            let part = there.intersect(addresses);
            let at = part.start.saturating_sub(mapping.base) + mapping.offset;
            (!part.is_empty()).then(|| ByteRange::new(at, at + part.len()))
        })
    }

    /// Answers a fault with zeroes, if the memory was given up.
    pub(super) fn zero_if_removed(&self, address: u64) -> Zeroed {
        let found = self
            .mappings
            .iter()
            .find(|mapping| (mapping.base..mapping.base + mapping.size).contains(&address));
        let Some(mapping) = found else { return Zeroed::Unknown };
        let address = round_down(address, mapping.page_size);
        let offset = address - mapping.base + mapping.offset;
        let removed = self.removed.read().expect("no holder panics");
        if !removed.contains(offset / PAGE_SIZE) {
            return Zeroed::NotRemoved(offset);
        }
        let zeroed = if mapping.page_size == PAGE_SIZE {
            self.uffd.zero_all(address as usize, PAGE_SIZE as usize, false)
        } else {
            let zeroes = vec![0; mapping.page_size as usize];
            let (to, page_size) = (address as usize, mapping.page_size as usize);
            self.uffd.copy_all_pages(to, &zeroes, CopyMode::default(), page_size)
        };
        match zeroed {
            Err(PlaceError::Again { .. }) => Zeroed::Again,
            // A process that has gone needs no answer; its end is seen elsewhere.
            Ok(()) | Err(PlaceError::Gone) => Zeroed::Done,
            Err(error) => {
                tracing::error!(address, %error, "a VM monitor waits for a page that cannot be placed");
                Zeroed::Done
            }
        }
    }

    /// `range` cut into parts of one mapping each.
    fn pieces(&self, range: ByteRange) -> impl Iterator<Item = Piece> + '_ {
        let range = ByteRange::new(range.start, round_up(range.end, PAGE_SIZE));
        self.mappings.iter().filter_map(move |mapping| {
            let there = ByteRange::new(mapping.offset, mapping.offset + mapping.size);
            let range = there.intersect(range);
            let address = mapping.base + range.start.saturating_sub(mapping.offset);
            (!range.is_empty()).then_some(Piece { address, range, page_size: mapping.page_size })
        })
    }

    /// Does `place` for each run of pages of a piece that was not given up, with the run's address
    /// and its range in the region. It is repeated where the kernel says that the mappings change;
    /// in between, their events can be read.
    fn place_kept(
        &self,
        piece: &Piece,
        place: impl Fn(usize, ByteRange) -> Result<(), PlaceError>,
    ) -> Result<()> {
        let mut at = piece.range.start;
        while at < piece.range.end {
            let removed = self.removed.read().expect("no holder panics");
            let pages = self.geometry.pages_touching(ByteRange::new(at, piece.range.end));
            let Some(first) = removed.next_gap(pages.start).filter(|page| *page < pages.end) else {
                return Ok(());
            };
            let end = removed.next_member(first).map_or(pages.end, |end| end.min(pages.end));
            let run = ByteRange::new(first * PAGE_SIZE, end * PAGE_SIZE);
            let address = piece.address + (run.start - piece.range.start);
            match place(address as usize, run) {
                Ok(()) => at = run.end,
                Err(PlaceError::Again { done }) => {
                    at = run.start + done as u64;
                    drop(removed);
                    // A store of this host answers on the thread that reads events: nobody else would.
                    if self.is_reader() {
                        let failed = |error| Error::io("cannot read the events of a VM monitor", &error);
                        self.read_events().map_err(failed)?;
                    }
                    std::thread::yield_now();
                }
                Err(error) => return Err(place_error(&error)),
            }
        }
        Ok(())
    }

    /// Adds bytes to the huge pages that they belong to, and places those that are whole.
    fn place_huge(&self, piece: &Piece, bytes: &[u8]) -> Result<()> {
        for part in piece.range.split(HUGE) {
            let from = (part.start - piece.range.start) as usize;
            let Some(whole) = self.add_to_huge(part, &bytes[from..from + part.len() as usize]) else {
                continue;
            };
            let start = round_down(part.start, HUGE);
            let page = Piece {
                address: round_down(piece.address + from as u64, HUGE),
                range: ByteRange::new(start, start + HUGE),
                page_size: HUGE,
            };
            self.place_kept(&page, |address, run| {
                let at = (run.start - start) as usize;
                let bytes = &whole[at..at + run.len() as usize];
                self.uffd.copy_all_pages(address, bytes, CopyMode::default(), HUGE as usize)
            })?;
            self.placed.lock().expect("no holder panics").insert(start / HUGE);
        }
        Ok(())
    }

    fn add_to_huge(&self, part: ByteRange, bytes: &[u8]) -> Option<Vec<u8>> {
        let start = round_down(part.start, HUGE);
        if self.placed.lock().expect("no holder panics").contains(start / HUGE) {
            return None;
        }
        let mut parts = self.parts.lock().expect("no holder panics");
        let huge = parts.entry(start).or_insert_with(|| HugePage {
            bytes: vec![0; HUGE as usize],
            pages: BitSet::new(HUGE / PAGE_SIZE),
        });
        let from = (part.start - start) as usize;
        huge.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        huge.pages.insert_range(from as u64 / PAGE_SIZE..(from + bytes.len()) as u64 / PAGE_SIZE);
        if huge.pages.is_full() { parts.remove(&start).map(|huge| huge.bytes) } else { None }
    }

    fn place_piece(&self, piece: &Piece, bytes: &[u8]) -> Result<()> {
        if piece.page_size == HUGE {
            return self.place_huge(piece, bytes);
        }
        self.place_kept(piece, |address, run| {
            let at = (run.start - piece.range.start) as usize;
            self.uffd.copy_all(address, &bytes[at..at + run.len() as usize], CopyMode::default())
        })
    }
}

impl LocalCopy for GuestMemory {
    fn place(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let range = ByteRange::new(offset, offset + bytes.len() as u64);
        for piece in self.pieces(range) {
            let from = (piece.range.start - offset) as usize;
            let until = (piece.range.end.min(range.end) - offset) as usize;
            // Mappings end with a page, and so does what they show of the region.
            self.place_piece(&piece, &bytes[from..until])?;
        }
        Ok(())
    }

    fn place_zero(&self, range: ByteRange) -> Result<()> {
        for piece in self.pieces(range) {
            if piece.page_size == HUGE {
                let zeroes = vec![0; piece.range.len().min(HUGE) as usize];
                for part in piece.range.split(HUGE) {
                    let address = piece.address + (part.start - piece.range.start);
                    let part = Piece { address, range: part, page_size: HUGE };
                    self.place_huge(&part, &zeroes[..part.range.len() as usize])?;
                }
            } else {
                self.place_kept(&piece, |address, run| {
                    self.uffd.zero_all(address, run.len() as usize, false)
                })?;
            }
        }
        Ok(())
    }

    fn wake(&self, range: ByteRange) -> Result<bool> {
        for piece in self.pieces(range) {
            let start = round_down(piece.range.start, piece.page_size);
            let placed = piece.page_size != HUGE
                || self.placed.lock().expect("no holder panics").contains(start / HUGE);
            if !placed {
                return Ok(false);
            }
            let address = round_down(piece.address, piece.page_size) as usize;
            let length = round_up(piece.range.end - start, piece.page_size) as usize;
            self.uffd.wake(address, length).map_err(|error| place_error(&error))?;
        }
        Ok(true)
    }

    fn fail(&self, range: ByteRange) -> Result<()> {
        for piece in self.pieces(range) {
            let start = round_down(piece.range.start, piece.page_size);
            let end = round_up(piece.range.end, piece.page_size);
            let address = round_down(piece.address, piece.page_size);
            let whole = Piece { address, range: ByteRange::new(start, end), page_size: piece.page_size };
            self.place_kept(&whole, |address, run| {
                poisoned(self.uffd.poison_all(address, run.len() as usize, piece.page_size as usize))
            })?;
        }
        Ok(())
    }

    fn evict(&self, _: ByteRange) -> Result<()> {
        Err(not_ours("evict from"))
    }

    fn read_back(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(not_ours("read"))
    }

    fn take_dirty(&self, _: &mut Vec<ByteRange>) -> Result<()> {
        Err(not_ours("track the writes of"))
    }

    fn count_dirty(&self) -> Result<u64> {
        Err(not_ours("track the writes of"))
    }
}

/// A foreign userfaultfd cannot be given our tracking: the monitor has registered its memory.
fn not_ours(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("cannot {what} the memory of another process"))
}
