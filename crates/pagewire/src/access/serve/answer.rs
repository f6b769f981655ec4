//! The answer to a READ: data frames as the store has the parts, the last one marked.

use std::sync::{Arc, Mutex};

use pagewire_core::chunk::ByteRange;
use pagewire_core::pack::Codec;
use pagewire_core::wire::{DataHeader, Encoding, MAX_PAYLOAD, Reply};

use super::holes::Holes;
use super::lent::Piece;
use super::outgoing::Outgoing;
use crate::engine::Pin;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Gather, Part, Read, Sink, Urgency};

/// The most that is read at once from a region that can change, whose bytes are copied before they
/// are sent.
const PIECE: u64 = 256 << 10;

/// From this size on, in the mean of its ranges, what is not waited for is handed to the network without being looked at:
/// that takes three system calls a range.
const LARGE: u64 = 64 << 10;

/// Answers a READ whose ranges have been checked.
pub(super) fn read(
    outgoing: &Arc<Outgoing>,
    id: u64,
    pin: &Arc<Pin>,
    ranges: Vec<ByteRange>,
    urgency: Urgency,
    holes: &Holes,
) {
    let left = ByteRange::total(&ranges);
    if left == 0 {
        return outgoing.reply(id, &Reply::End { sent: 0 });
    }
    // What somebody waits for is not to wait for that, too.
    let is_bulk = urgency == Urgency::Background;
    let codec = if is_bulk { outgoing.choose() } else { None };
    if urgency == Urgency::Background
        && codec.is_none()
        && left >= LARGE * ranges.len() as u64
        && outgoing.is_own_thread()
        && pin.region().lend().is_some()
    {
        return send_lent(outgoing, id, pin, &ranges, holes);
    }
    let state = Mutex::new(State { left, deferred: false, ended: false });
    outgoing.begin_read(left as usize);
    let answer = Arc::new(Answer {
        outgoing: outgoing.clone(),
        id,
        pin: pin.clone(),
        bytes: left as usize,
        is_bulk,
        codec,
        state,
    });
    let (region, epoch) = (pin.region(), pin.epoch());
    if region.is_immutable() {
        return region.read(Read { ranges, epoch, urgency, sink: answer });
    }
    // Whoever commits waits for reads under way, so these must not last as long as the peer likes.
    for range in ranges.iter().flat_map(|range| range.split(PIECE)) {
        let answer = answer.clone();
        let gather = Gather::new(range, move |result| match result {
            Ok(bytes) => answer.part(Part::Bytes { offset: range.start, bytes: &bytes }),
            Err(error) => answer.end(Err(error)),
        });
        region.read(Read { ranges: vec![range], epoch, urgency, sink: gather });
    }
}

/// Sends the bytes of a file that is lent, on the connection's own thread: nobody who waits for a byte is held up by
/// it.
fn send_lent(outgoing: &Arc<Outgoing>, id: u64, pin: &Arc<Pin>, ranges: &[ByteRange], holes: &Holes) {
    let Some(lent) = pin.region().lend() else { return };
    for (index, range) in ranges.iter().enumerate() {
        let last = index + 1 == ranges.len();
        let piece = Piece { pin, file: lent.file, holes, range: *range, id, last };
        // Others send in between.
        let sent = piece.send(&outgoing.turn());
        match sent {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Unavailable => return outgoing.close(),
            Err(error) => return outgoing.fail(id, &error, pin.region().info().epoch),
        }
    }
}

struct Answer {
    outgoing: Arc<Outgoing>,
    id: u64,
    pin: Arc<Pin>,
    /// How many bytes were asked for.
    bytes: usize,
    is_bulk: bool,
    /// How to compress it.
    codec: Option<Codec>,
    /// Held while a frame is sent: frames leave in the order in which they are counted.
    state: Mutex<State>,
}

struct State {
    /// How many bytes of ranges are still to be sent.
    left: u64,
    /// Whether a frame waits for the connection's own thread; what follows has to wait behind it.
    deferred: bool,
    ended: bool,
}

impl Answer {
    fn send(&self, state: &mut State, parts: &[&[u8]]) {
        if !state.deferred && self.outgoing.is_own_thread() {
            if self.outgoing.turn().send(parts, false).is_err() {
                self.outgoing.close();
            }
        } else {
            state.deferred = true;
            self.outgoing.defer(parts.concat());
        }
    }

    /// Sends the bytes of `range`; none stand for zeroes.
    fn send_piece(&self, range: ByteRange, bytes: &[u8]) {
        let mut state = self.state.lock().expect("no holder panics");
        if state.ended {
            return;
        }
        state.left = state.left.saturating_sub(range.len());
        state.ended = state.left == 0;
        let encoding = if bytes.is_empty() { Encoding::Zero } else { Encoding::for_bytes(bytes) };
        let codec = self.codec.filter(|_| encoding == Encoding::Raw);
        let packed = codec.and_then(|codec| Some((codec, self.outgoing.pack(codec, bytes)?)));
        let (encoding, payload) = match &packed {
            Some((codec, packed)) => (Encoding::Packed(*codec, packed.len() as u32), &packed[..]),
            None if encoding == Encoding::Zero => (encoding, &[][..]),
            None => (encoding, bytes),
        };
        let epoch = self.pin.epoch();
        let header = DataHeader { range, epoch, encoding, last: state.ended, trailer: false };
        let prefix = header.encode(self.id);
        self.send(&mut state, &[&prefix, payload]);
        if self.is_bulk && !state.deferred {
            self.outgoing.has_sent(payload.len() as u64);
        }
    }

    fn end(&self, result: Result<()>) {
        let mut state = self.state.lock().expect("no holder panics");
        if state.ended {
            return;
        }
        state.ended = true;
        let error = result
            .err()
            .unwrap_or_else(|| Error::new(ErrorKind::Io, format!("the store left out {} bytes", state.left)));
        let epoch = self.pin.region().info().epoch;
        let mut frame = Vec::new();
        Reply::Error(error.to_wire(epoch)).encode(self.id, &mut frame);
        self.send(&mut state, &[&frame]);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.outgoing.end_read(self.bytes);
    }
}

impl Sink for Answer {
    fn part(&self, part: Part<'_>) {
        match part {
            Part::Zero(range) => {
                for piece in range.split(u64::from(pagewire_core::wire::MAX_ZERO_SPAN)) {
                    self.send_piece(piece, &[]);
                }
            }
            Part::Bytes { offset, bytes } => {
                for piece in part.range().split(u64::from(MAX_PAYLOAD)) {
                    let from = (piece.start - offset) as usize;
                    let bytes = &bytes[from..from + piece.len() as usize];
                    self.send_piece(piece, bytes);
                }
            }
        }
    }

    fn done(&self, result: Result<()>) {
        self.end(result);
    }
}
