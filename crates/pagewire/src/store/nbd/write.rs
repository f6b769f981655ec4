//! Writing to an export: in pieces that the server takes, and in whole blocks.
//!
//! A server may have blocks that can only be written whole. Where a write ends within one, the rest of the
//! block is read first and written with it; meanwhile nothing else is written ([`Turns`]), or one of two
//! writes to the same block would be lost. Whole blocks are written at once, many at a time.
//!
//! Zeroes are written by WRITE_ZEROES where the server has that, and as bytes else. TRIM is never used: what
//! it leaves behind need not be zero.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use pagewire_core::chunk::ByteRange;
use pagewire_core::nbd::TransmissionFlags;

use super::call::{Call, Command, Ending};
use super::session::{Lane, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::store::joined::JoinedRequests;
use crate::store::{Completion, Gather, wait};

/// The longest write, in bytes: the cost per request has vanished, and others get their turn.
const LONGEST: u64 = 4 << 20;

/// How far zeroes are written at once, in bytes: a server that writes them to a disk answers within the
/// patience.
const LONGEST_ZERO: u64 = 32 << 20;

/// Writes to one export.
pub(super) struct Writing {
    session: Arc<Session>,
    turns: Arc<Turns>,
    /// What offsets and lengths are multiples of, but for the end of the export.
    block: u64,
    longest: u64,
    longest_zero: u64,
    zeroes: Arc<AtomicBool>,
}

/// What is to be written.
enum Piece {
    Bytes(ByteRange, Vec<u8>),
    Zero(ByteRange),
}

impl Piece {
    fn range(&self) -> ByteRange {
        match self {
            Piece::Bytes(range, _) | Piece::Zero(range) => *range,
        }
    }
}

/// Who may write: many at once, or one alone.
#[derive(Default)]
struct Turns {
    state: Mutex<(usize, bool)>,
    free: Condvar,
}

/// A turn that is held.
struct Turn {
    turns: Arc<Turns>,
    alone: bool,
}

impl Turns {
    /// A turn beside others, where nobody writes alone.
    fn share_now(self: &Arc<Self>) -> Option<Turn> {
        let mut state = self.state.lock().expect("no holder panics");
        if state.1 {
            return None;
        }
        state.0 += 1;
        Some(Turn { turns: self.clone(), alone: false })
    }

    fn share(self: &Arc<Self>) -> Turn {
        let state = self.state.lock().expect("no holder panics");
        let mut state = self.free.wait_while(state, |state| state.1).expect("no holder panics");
        state.0 += 1;
        Turn { turns: self.clone(), alone: false }
    }

    fn alone(self: &Arc<Self>) -> Turn {
        let state = self.state.lock().expect("no holder panics");
        let mut state = self.free.wait_while(state, |state| state.1).expect("no holder panics");
        state.1 = true;
        drop(self.free.wait_while(state, |state| state.0 > 0).expect("no holder panics"));
        Turn { turns: self.clone(), alone: true }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock().expect("no holder panics");
        match self.alone {
            true => state.1 = false,
            false => state.0 -= 1,
        }
        drop(state);
        self.turns.free.notify_all();
    }
}

impl Writing {
    pub(super) fn new(session: &Arc<Session>, block: u64, longest: u64) -> Self {
        let zeroes = session.export.flags.contains(TransmissionFlags::SEND_WRITE_ZEROES);
        Self {
            session: session.clone(),
            turns: Arc::default(),
            block,
            longest: longest.min(LONGEST),
            longest_zero: longest.min(LONGEST_ZERO),
            zeroes: Arc::new(AtomicBool::new(zeroes)),
        }
    }

    /// Writes the bytes of `ranges`.
    pub(super) fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        let mut rest = bytes;
        let mut pieces = Vec::new();
        for range in ranges {
            let (mut these, behind) = rest.split_at(range.len() as usize);
            rest = behind;
            for piece in range.split(self.longest) {
                let (first, others) = these.split_at(piece.len() as usize);
                these = others;
                pieces.push(Piece::Bytes(piece, first.to_vec()));
            }
        }
        self.submit(ranges, pieces, done);
    }

    /// Writes zeroes to `ranges`.
    pub(super) fn zero(&self, ranges: &[ByteRange], done: Completion) {
        let by_command = self.zeroes.load(Ordering::Relaxed);
        let longest = if by_command { self.longest_zero } else { self.longest };
        let mut pieces = Vec::new();
        for piece in ranges.iter().flat_map(|range| range.split(longest)) {
            let inner = if self.block > 1 { self.whole_blocks(piece) } else { piece };
            if !by_command || inner.is_empty() {
                pieces.push(Piece::Bytes(piece, vec![0; piece.len() as usize]));
                continue;
            }
            pieces.push(Piece::Zero(inner));
            let edges = piece.without(inner).into_iter().filter(|edge| !edge.is_empty());
            pieces.extend(edges.map(|edge| Piece::Bytes(edge, vec![0; edge.len() as usize])));
        }
        self.submit(ranges, pieces, done);
    }

    /// The whole blocks within a range. The last block of the export may be short.
    fn whole_blocks(&self, range: ByteRange) -> ByteRange {
        let end = self.session.export.size;
        let inner = range.align_in(self.block);
        if range.end == end && !range.is_empty() {
            let start = range.start.next_multiple_of(self.block).min(end);
            return ByteRange::new(start, end);
        }
        inner
    }

    fn submit(&self, ranges: &[ByteRange], pieces: Vec<Piece>, done: Completion) {
        if let Some(error) = ranges.iter().find_map(|range| self.session.check(*range).err()) {
            return done(Err(error));
        }
        if pieces.is_empty() {
            return done(Ok(()));
        }
        let joined = JoinedRequests::new(pieces.len(), done);
        let fits = |piece: &Piece| self.whole_blocks(piece.range()) == piece.range();
        for piece in pieces {
            let joined = joined.clone();
            let one =
                One { session: self.session.clone(), zeroes: self.zeroes.clone(), longest: self.longest };
            let done: Completion = Box::new(move |result| joined.done(result));
            if self.block == 1 {
                one.send(piece, None, done);
            } else if !fits(&piece) {
                let (turns, block) = (self.turns.clone(), self.block);
                self.session.pool.run(Box::new(move || one.merge(&piece, block, turns.alone(), done)));
            } else if let Some(turn) = self.turns.share_now() {
                one.send(piece, Some(turn), done);
            } else {
                // Who submits is not to wait.
                let turns = self.turns.clone();
                self.session.pool.run(Box::new(move || one.send(piece, Some(turns.share()), done)));
            }
        }
    }
}

/// What one piece needs to be written.
struct One {
    session: Arc<Session>,
    zeroes: Arc<AtomicBool>,
    longest: u64,
}

impl One {
    /// Writes a piece of whole blocks.
    fn send(self, piece: Piece, turn: Option<Turn>, done: Completion) {
        let session = self.session.clone();
        let deadline = session.deadline();
        let told = session.clone();
        let (command, done): (_, Completion) = match piece {
            Piece::Bytes(range, bytes) => (Command::Write(range, bytes), done),
            Piece::Zero(range) => {
                (Command::Zero(range), Box::new(move |result| self.zeroed(range, result, done)))
            }
        };
        let ending = Ending::Done(Box::new(move |result| {
            if result.is_ok() {
                told.acknowledged();
            }
            drop(turn);
            done(result);
        }));
        session.submit(vec![Call::new(command, Lane::Bulk, deadline, ending)]);
    }

    /// Zeroes were written, or not: a server may offer the command and not have it for every export.
    fn zeroed(self, range: ByteRange, result: Result<()>, done: Completion) {
        match result {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                tracing::debug!(export = %self.session.address, %error, "zeroes are written as bytes");
                self.zeroes.store(false, Ordering::Relaxed);
                // Who receives must not be held up by sending.
                let session = self.session.clone();
                session.pool.run(Box::new(move || self.send_zero_bytes(range, done)));
            }
            result => done(result),
        }
    }

    fn send_zero_bytes(self, range: ByteRange, done: Completion) {
        let pieces: Vec<_> = range.split(self.longest).collect();
        let joined = JoinedRequests::new(pieces.len(), done);
        for piece in pieces {
            let joined = joined.clone();
            let one =
                One { session: self.session.clone(), zeroes: self.zeroes.clone(), longest: self.longest };
            let bytes = Piece::Bytes(piece, vec![0; piece.len() as usize]);
            one.send(bytes, None, Box::new(move |result| joined.done(result)));
        }
    }

    /// Writes a piece that ends within a block, with the rest of the block as it is.
    fn merge(self, piece: &Piece, block: u64, turn: Turn, done: Completion) {
        let Piece::Bytes(range, bytes) = piece else {
            return done(Err(Error::new(ErrorKind::Usage, "zeroes are written to whole blocks")));
        };
        let wide = range.align_out(block).clamp_to(self.session.export.size);
        let merged = self.read(wide).and_then(|mut merged| {
            let from = (range.start - wide.start) as usize;
            merged[from..from + bytes.len()].copy_from_slice(bytes);
            wait(|done| self.send(Piece::Bytes(wide, merged), None, done))
        });
        drop(turn);
        done(merged);
    }

    fn read(&self, range: ByteRange) -> Result<Vec<u8>> {
        Gather::wait(range, |sink| {
            let ending = Ending::Sink(sink);
            let call = Call::new(Command::Read(range), Lane::Bulk, self.session.deadline(), ending);
            self.session.submit(vec![call]);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_alone_waits_for_the_others_and_they_for_it() {
        let turns: Arc<Turns> = Arc::default();
        let (one, two) = (turns.share(), turns.share());
        let waiting = turns.clone();
        let (sender, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let turn = waiting.alone();
            sender.send(()).unwrap();
            turn
        });
        while turns.share_now().is_some() {
            std::thread::yield_now();
        }
        drop(one);
        assert!(told.try_recv().is_err());
        drop(two);
        told.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        assert!(turns.share_now().is_none());
        drop(thread.join().unwrap());
        assert!(turns.share_now().is_some());
    }
}
