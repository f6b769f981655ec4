//! The streams of one session: what is sent next, how much may be in flight, and when it has ended.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use pagewire_core::chunk::ByteRange;
use pagewire_core::pull::SendOrder;
use pagewire_core::wire::Reply;

use super::holes::Holes;
use super::outgoing::Outgoing;
use crate::engine::Pin;
use crate::error::{Error, ErrorKind, Result};

/// How many streams one session may have at once. Each keeps a bit a page.
const MAX_STREAMS: usize = 4;

/// The length of an extent, in bytes: the cost per extent has vanished, and a stream that is steered
/// or cancelled has no more than this on its way to each socket.
const EXTENT: u64 = 256 << 10;

/// The streams of one session.
#[derive(Default)]
pub(super) struct Streams {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    streams: Vec<Sending>,
    primary: Option<Arc<Outgoing>>,
    closed: bool,
    turn: usize,
    next_serial: u64,
}

struct Sending {
    id: u64,
    /// Tells it from an earlier stream of the same id, whose extents may still be on their way.
    serial: u64,
    handle: u32,
    pin: Arc<Pin>,
    holes: Arc<Holes>,
    order: SendOrder,
    /// How many bytes of payload may be sent in all, and were.
    limit: u64,
    paid: u64,
    /// How many bytes of ranges were sent.
    sent: u64,
    /// How many extents are being sent just now.
    under_way: usize,
}

/// An extent that a connection has taken.
pub(super) struct Extent {
    pub(super) stream: u64,
    serial: u64,
    pub(super) pin: Arc<Pin>,
    pub(super) holes: Arc<Holes>,
    pub(super) range: ByteRange,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// The connection that the ends of streams are told on.
    pub(super) fn set_primary(&self, primary: &Arc<Outgoing>) {
        self.lock().primary = Some(primary.clone());
    }

    pub(super) fn begin(
        &self,
        id: u64,
        handle: u32,
        pin: Arc<Pin>,
        ranges: &[ByteRange],
        limit: u64,
    ) -> Result<()> {
        let mut state = self.lock();
        if state.streams.len() >= MAX_STREAMS {
            let text = format!("{MAX_STREAMS} streams are under way in this session");
            return Err(Error::new(ErrorKind::Busy, text));
        }
        if state.streams.iter().any(|stream| stream.id == id) {
            return Err(Error::new(ErrorKind::Protocol, format!("request {id} is under way already")));
        }
        let order = SendOrder::new(pin.info().length, ranges);
        let serial = state.next_serial;
        state.next_serial += 1;
        let stream = Sending {
            id,
            serial,
            handle,
            pin,
            holes: Arc::default(),
            order,
            limit,
            paid: 0,
            sent: 0,
            under_way: 0,
        };
        state.streams.push(stream);
        let ended = state.take_ended();
        drop(state);
        ended.tell();
        self.work.notify_all();
        Ok(())
    }

    pub(super) fn credit(&self, id: u64, limit: u64) {
        let mut state = self.lock();
        if let Some(stream) = state.find(id) {
            stream.limit = stream.limit.max(limit);
        }
        drop(state);
        self.work.notify_all();
    }

    /// Puts ranges first. Some that add up to more than the region would cost more to sort than to send,
    /// and are ignored.
    pub(super) fn steer(&self, id: u64, ranges: &[ByteRange]) {
        if let Some(stream) = self.lock().find(id)
            && ByteRange::total(ranges) <= stream.pin.info().length
        {
            stream.order.steer(ranges);
        }
    }

    /// What was sent in another way need not be sent again.
    pub(super) fn skip(&self, handle: u32, ranges: &[ByteRange]) {
        let mut state = self.lock();
        if state.streams.is_empty() {
            return;
        }
        for stream in state.streams.iter_mut().filter(|stream| stream.handle == handle) {
            ranges.iter().for_each(|range| stream.order.skip(*range));
        }
        let ended = state.take_ended();
        drop(state);
        ended.tell();
    }

    pub(super) fn cancel(&self, id: u64, outgoing: &Outgoing) {
        let found = {
            let mut state = self.lock();
            let at = state.streams.iter().position(|stream| stream.id == id);
            at.map(|at| state.streams.remove(at))
        };
        if found.is_some() {
            outgoing.fail(id, &Error::new(ErrorKind::Cancelled, "cancelled as asked"), 0);
        }
    }

    /// Ends the stream of an extent with an error.
    pub(super) fn fail(&self, extent: &Extent, error: &Error) {
        let (found, primary) = {
            let mut state = self.lock();
            let at = state.streams.iter().position(|stream| stream.serial == extent.serial);
            (at.map(|at| state.streams.remove(at)), state.primary.clone())
        };
        if let (Some(stream), Some(primary)) = (found, primary) {
            primary.fail(stream.id, error, stream.pin.region().info().epoch);
        }
    }

    /// Waits for the next extent that may be sent; none when `gone` says that nobody is left to send
    /// it, or the session is over.
    pub(super) fn next(&self, gone: impl Fn() -> bool) -> Option<Extent> {
        let mut state = self.lock();
        loop {
            if state.closed || gone() {
                return None;
            }
            if let Some(extent) = state.take_extent() {
                return Some(extent);
            }
            state = self.work.wait(state).expect("no holder panics");
        }
    }

    /// An extent was sent, with so many bytes of payload.
    pub(super) fn sent(&self, extent: &Extent, payload: u64) {
        let mut state = self.lock();
        let of_extent = |stream: &&mut Sending| stream.serial == extent.serial;
        if let Some(stream) = state.streams.iter_mut().find(of_extent) {
            stream.under_way -= 1;
            stream.sent += extent.range.len();
            // It was counted as if all of it were payload, before that was known.
            stream.paid -= extent.range.len() - payload;
        }
        let ended = state.take_ended();
        drop(state);
        ended.tell();
        if payload < extent.range.len() {
            // What the zeroes did not cost can be spent by those who have run out of credit.
            self.work.notify_all();
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.streams.clear();
        state.primary = None;
    }

    pub(super) fn wake(&self) {
        drop(self.lock());
        self.work.notify_all();
    }
}

/// Streams that have sent everything, and whom to tell.
struct Ended {
    streams: Vec<(u64, u64)>,
    primary: Option<Arc<Outgoing>>,
}

impl Ended {
    /// Out of the lock: the socket may be full.
    fn tell(&self) {
        if let Some(primary) = &self.primary {
            for &(id, sent) in &self.streams {
                primary.reply(id, &Reply::End { sent });
            }
        }
    }
}

impl State {
    fn find(&mut self, id: u64) -> Option<&mut Sending> {
        self.streams.iter_mut().find(|stream| stream.id == id)
    }

    /// The next extent, the streams taking turns.
    fn take_extent(&mut self) -> Option<Extent> {
        for _ in 0..self.streams.len() {
            self.turn = (self.turn + 1) % self.streams.len();
            let stream = &mut self.streams[self.turn];
            if stream.paid >= stream.limit {
                continue;
            }
            if let Some(range) = stream.order.next(EXTENT) {
                stream.paid += range.len();
                stream.under_way += 1;
                let (pin, holes) = (stream.pin.clone(), stream.holes.clone());
                return Some(Extent { stream: stream.id, serial: stream.serial, pin, holes, range });
            }
        }
        None
    }

    fn take_ended(&mut self) -> Ended {
        let ended = |stream: &Sending| stream.under_way == 0 && stream.order.is_empty();
        let streams = self.streams.iter().filter(|stream| ended(stream)).map(|s| (s.id, s.sent)).collect();
        self.streams.retain(|stream| !ended(stream));
        Ended { streams, primary: self.primary.clone() }
    }
}
