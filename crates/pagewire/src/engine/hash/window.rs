//! The hashes of the pages of one window, by reading it.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::delta::{Node, Scheme};

use super::Hashed;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Part, Read, Sink, Urgency};

/// The length of one piece of a read, in bytes.
const PIECE: u64 = 64 << 10;

/// How much one read asks for, in bytes.
const READ: u64 = 1 << 20;

/// How many reads may be on their way: for stores that answer later.
const UNDER_WAY: usize = 8;

/// The hashes of the pages of `range`, which begins with a page.
pub(super) fn leaves(
    of: &Hashed,
    epoch: u64,
    range: ByteRange,
    scheme: &Scheme,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Node>> {
    let state = State {
        leaves: vec![Node::ZERO; range.len().div_ceil(PAGE_SIZE) as usize],
        parts: HashMap::new(),
        under_way: 0,
        error: None,
    };
    let window = Arc::new(Window { range, scheme: *scheme, state: Mutex::new(state), moved: Condvar::new() });
    for piece in range.split(READ) {
        if stop() {
            return Err(Error::new(ErrorKind::Cancelled, "nobody wants the hashes any more"));
        }
        window.begin()?;
        let reading = Reading { window: window.clone(), got: Mutex::new(0), asked: piece.len() };
        let (ranges, urgency) = (piece.split(PIECE).collect(), Urgency::Background);
        of.read(Read { ranges, epoch, urgency, sink: Arc::new(reading) });
    }
    window.end()
}

struct Window {
    range: ByteRange,
    scheme: Scheme,
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    leaves: Vec<Node>,
    /// Pages of which some bytes have come: where a part begins or ends within a page.
    parts: HashMap<u64, Partial>,
    under_way: usize,
    error: Option<Error>,
}

/// A page that comes in parts.
struct Partial {
    bytes: Vec<u8>,
    got: u64,
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// A read begins, as soon as there is room for it.
    fn begin(&self) -> Result<()> {
        let full = |state: &mut State| state.under_way >= UNDER_WAY && state.error.is_none();
        let mut state = self.moved.wait_while(self.lock(), full).expect("no holder panics");
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        state.under_way += 1;
        Ok(())
    }

    /// Waits for the end of all reads.
    fn end(&self) -> Result<Vec<Node>> {
        let mut state =
            self.moved.wait_while(self.lock(), |state| state.under_way > 0).expect("no holder panics");
        match state.error.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut state.leaves)),
        }
    }

    /// Bytes that begin at `offset`. Whole pages are hashed where they lie.
    fn bytes(&self, offset: u64, bytes: &[u8]) {
        let range = ByteRange::new(offset, offset + bytes.len() as u64);
        let whole = |page: &ByteRange| page.len() == PAGE_SIZE || page.end == self.range.end;
        let piece = |page: ByteRange| &bytes[(page.start - offset) as usize..(page.end - offset) as usize];
        let pages: Vec<ByteRange> = range.split(PAGE_SIZE).collect();
        let is_leaf = |page: &&ByteRange| page.start.is_multiple_of(PAGE_SIZE) && whole(page);
        let hashed: Vec<Option<Node>> =
            pages.iter().map(|page| is_leaf(&page).then(|| self.scheme.leaf(piece(*page)))).collect();
        let mut state = self.lock();
        for (page, hash) in pages.into_iter().zip(hashed) {
            match hash {
                Some(hash) => state.leaves[self.index(page.start)] = hash,
                None => self.partial(&mut state, page, Some(piece(page))),
            }
        }
    }

    /// Zeroes: the leaves are that already, but where a part of a page is something else.
    fn zero(&self, range: ByteRange) {
        let inner = range.align_in(PAGE_SIZE);
        let tail = ByteRange::new(inner.end, range.end);
        let inner =
            match tail.end == self.range.end && tail.start.is_multiple_of(PAGE_SIZE) && !inner.is_empty() {
                true => ByteRange::new(inner.start, range.end),
                false => inner,
            };
        let mut state = self.lock();
        for edge in range.without(inner).iter().flat_map(|edge| edge.split(PAGE_SIZE)) {
            self.partial(&mut state, edge, None);
        }
    }

    /// A part of a page; without bytes it is zeroes.
    fn partial(&self, state: &mut State, part: ByteRange, bytes: Option<&[u8]>) {
        let page = part.align_out(PAGE_SIZE).clamp_to(self.range.end);
        let partial = state
            .parts
            .entry(page.start)
            .or_insert_with(|| Partial { bytes: vec![0; page.len() as usize], got: 0 });
        if let Some(bytes) = bytes {
            let from = (part.start - page.start) as usize;
            partial.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        }
        partial.got += part.len();
        if partial.got >= page.len() {
            let hash = self.scheme.leaf(&partial.bytes);
            state.parts.remove(&page.start);
            state.leaves[self.index(page.start)] = hash;
        }
    }

    fn index(&self, at: u64) -> usize {
        ((at - self.range.start) / PAGE_SIZE) as usize
    }
}

/// One read under way.
struct Reading {
    window: Arc<Window>,
    /// Parts do not overlap, so to count them is enough.
    got: Mutex<u64>,
    asked: u64,
}

impl Sink for Reading {
    fn part(&self, part: Part<'_>) {
        let range = part.range();
        if !self.window.range.contains(range) {
            return;
        }
        match part {
            Part::Bytes { offset, bytes } => self.window.bytes(offset, bytes),
            Part::Zero(range) => self.window.zero(range),
        }
        *self.got.lock().expect("no holder panics") += range.len();
    }

    fn done(&self, result: Result<()>) {
        let got = *self.got.lock().expect("no holder panics");
        let result = result.and_then(|()| match got == self.asked {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Io, format!("{got} of {} bytes were answered", self.asked))),
        });
        let mut state = self.window.lock();
        state.under_way -= 1;
        if let Err(error) = result {
            state.error.get_or_insert(error);
        }
        drop(state);
        self.window.moved.notify_all();
    }
}
