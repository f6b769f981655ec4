//! What every store promises.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use pagewire_core::chunk::ByteRange;
use pagewire_core::delta::{Node, Scheme};
use serde::Serialize;
use uuid::Uuid;

use super::cache::CacheStore;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::Sink;

/// Where a region's bytes live.
///
/// # Promises
///
/// - A read of an epoch answers that epoch's bytes, a read of [`STAGED`] what was written last; or it
///   fails. Zeroes are never invented.
/// - `done` of a request's sink or completion is called exactly once, and last, also when the store
///   is dropped or the peer is gone.
/// - A write has taken its bytes when the call returns, and is done when its completion says so; a
///   read of [`STAGED`] that is submitted after that sees it.
/// - A flush covers the writes that were done before it was submitted.
///
/// # Writes, epochs and commits
///
/// One writer at a time: who writes has called [`Store::fence`] since anybody else wrote. What is
/// written is *staged* until the flush. A store that can `commit` keeps it apart: readers go on seeing
/// the epoch before, and whatever is killed at whatever moment, whoever opens the store again finds one
/// epoch's image and nothing of what was staged. Other stores write through: the bytes are in place at
/// once, and a flush makes them durable.
pub trait Store: Send + Sync {
    /// What is known of the region now, at its newest epoch. Cheap: it asks nobody.
    fn info(&self) -> Info;

    /// Submits a read.
    fn read(&self, read: Read);

    /// The bytes of `range` at `epoch`, or at [`STAGED`], into a buffer of the same length, where the calling
    /// thread has them without waiting for anything. It costs less than a read, which answers the rest.
    ///
    /// # Errors
    ///
    /// As the read.
    fn read_at_once(&self, range: ByteRange, epoch: u64, buffer: &mut [u8]) -> Result<AtOnce> {
        let _ = (range, epoch, buffer);
        Ok(AtOnce::NotNow)
    }

    /// Which bytes of `range` at `epoch`, or at [`STAGED`], are zeroes that take no room, in order. There may be
    /// more of them. None where nothing is known.
    fn holes(&self, range: ByteRange, epoch: u64) -> Option<Vec<ByteRange>> {
        let _ = (range, epoch);
        None
    }

    /// Submits a write of `bytes`: those of `ranges`, one range after the other. Ranges do not overlap.
    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        let _ = (ranges, bytes);
        done(Err(unsupported("write to")));
    }

    /// Submits a write of zeroes to `ranges`.
    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        let _ = ranges;
        done(Err(unsupported("write zeroes to")));
    }

    /// Submits a change of the region's length, which is staged as a write is: up to the capacity, past
    /// which it is [`ErrorKind::NoSpace`]. What is behind the new end is gone, and zero if it comes back.
    fn set_length(&self, length: u64, done: Completion) {
        let _ = length;
        done(Err(unsupported("change the length of")));
    }

    /// Submits a flush: what is staged is durable when `done` says so, as far as the store itself is
    /// durable, and is an epoch of its own. Nothing staged makes no epoch.
    ///
    /// Where it fails, nothing is staged any more: whoever still has the bytes writes them again. The
    /// one failure after which that is open is a lost connection; [`Store::stage`] tells then.
    fn flush(&self, flush: Flush);

    /// Whether what is flushed outlives the process that has the store, so that a flush costs something.
    fn is_durable(&self) -> bool {
        true
    }

    /// Which stage the store is at, as far as it is known here.
    fn stage(&self) -> Stage {
        Stage { length: self.info().length, ..Stage::default() }
    }

    /// Gives up what is staged. If anything was, it is another [stage](Store::stage) from then on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where writes go through.
    fn discard(&self) -> Result<()> {
        Err(unsupported("take writes back from"))
    }

    /// A new writer begins: answers its token, which is greater than every one before it, durably where
    /// the store is durable. What an earlier writer has staged is given up. None where the store keeps
    /// no tokens.
    ///
    /// # Errors
    ///
    /// If the store cannot be written to.
    fn fence(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Holds an epoch for a reader, the newest where none is named, and answers what the region is at
    /// it. Each hold is ended by [`Store::unpin`]. A store without `history` has its newest epoch alone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stale`] if it cannot be given any more.
    fn pin(&self, epoch: Option<u64>) -> Result<Info> {
        let info = self.info();
        match epoch {
            Some(epoch) if epoch != info.epoch => Err(stale(epoch, info.epoch)),
            _ => Ok(info),
        }
    }

    /// Ends a hold on an epoch.
    fn unpin(&self, epoch: u64) {
        let _ = epoch;
    }

    /// The newest epoch that is known of: a store that is pinned to one may have heard of a newer.
    fn newest(&self) -> u64 {
        self.info().epoch
    }

    /// Which bytes differ, at most, between the epoch `since` and the newest. None where that is not
    /// known any more.
    fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        (since == self.info().epoch).then(Vec::new)
    }

    /// Capability `lend`: the file that the bytes are in, so that a server can hand them to the
    /// network without touching them, and find holes.
    fn lend(&self) -> Option<Lent<'_>> {
        None
    }

    /// The file that [`Store::write`] writes to, each byte at its own offset and at once, and nothing else: who writes
    /// to the region may have the kernel move bytes there, within the region's length. The rest of what is promised of
    /// writes holds as well.
    fn lend_for_writing(&self) -> Option<Lent<'_>> {
        None
    }

    /// Capability `stream`: begins to send many ranges without a request for each. The sink's
    /// `part` may be called from several threads at once.
    ///
    /// # Errors
    ///
    /// As soon as it is known that the stream cannot begin; its sink is not called then.
    fn stream(&self, stream: StreamRequest) -> Result<Box<dyn Stream>> {
        let _ = stream;
        Err(unsupported("stream from"))
    }

    /// Capability `hash`: submits a request for hashes of the region, which come without its bytes. For other stores
    /// [`engine::hash`](crate::engine::hash) computes them.
    fn hash(&self, hash: HashRequest) {
        (hash.done)(Err(unsupported("ask for hashes of")));
    }

    /// How many bytes have gone out and come in over the network for it; none where there is no network.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    /// How long the shortest answer is on its way: nothing where the bytes are on this host.
    fn round_trip(&self) -> Duration {
        Duration::ZERO
    }

    /// The copy on this host's disk in front of the store, if there is one.
    fn cache(&self) -> Option<&CacheStore> {
        None
    }

    /// Moves to the newest epoch that the store has, and says what is known of it.
    ///
    /// # Errors
    ///
    /// If the store cannot be reached, or holds another region now.
    fn refresh(&self) -> Result<Info> {
        Ok(self.info())
    }
}

/// The error for an epoch that cannot be given.
pub(crate) fn stale(epoch: u64, newest: u64) -> Error {
    let text = format!("epoch {epoch} is gone; the newest is {newest}");
    Error::new(ErrorKind::Stale, text).with_retry(false)
}

/// The error for a flush of a stage that is not there any more.
pub(crate) fn given_up() -> Error {
    let text = "what was written and not flushed is lost, and is to be written again";
    Error::new(ErrorKind::Unavailable, text).with_retry(true)
}

/// The error for a region that would grow past its capacity.
pub(crate) fn too_long(length: u64, capacity: u64) -> Error {
    let text = format!("a length of {length} bytes exceeds the region's capacity, {capacity} bytes");
    Error::new(ErrorKind::NoSpace, text)
}

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("cannot {what} this kind of store"))
}

/// What is known of a region at one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Info {
    /// The region's identity. Another identity is another region, whatever its name.
    pub id: Uuid,
    /// The epoch that reads give.
    pub epoch: u64,
    /// The region's length at that epoch, in bytes.
    pub length: u64,
    /// The length that it can grow to, in bytes.
    pub capacity: u64,
    /// The length of reads that the store likes best, in bytes: a power of two.
    pub granularity: u32,
    /// Whether it can be written to.
    pub writable: bool,
    /// What it can do that not every store can.
    pub capabilities: Capabilities,
}

impl Info {
    /// Whether `range` lies within the region.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfRange`] where it does not.
    pub fn check(&self, range: ByteRange) -> Result<()> {
        if range.end > self.length {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("bytes {range} of a region of {} bytes", self.length),
            ));
        }
        Ok(())
    }
}

/// What only some stores can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Capabilities {
    /// [`Store::lend`].
    pub lend: bool,
    /// [`Store::stream`].
    pub stream: bool,
    /// It keeps its epochs itself: a read may name any epoch that is pinned, and [`Store::pin`] any that
    /// the store can still give.
    pub history: bool,
    /// Flushes are all or nothing: see [`Store`].
    pub commit: bool,
    /// [`Store::hash`].
    pub hash: bool,
}

/// A file that holds a region's bytes, each at its own offset.
#[derive(Debug, Clone, Copy)]
pub struct Lent<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
}

/// What [`Store::read_at_once`] has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtOnce {
    /// The buffer has the bytes.
    Bytes,
    /// They are all zeroes. The buffer was not touched.
    Zeroes,
    /// Not without waiting. The buffer may hold anything.
    NotNow,
}

/// Whether somebody waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// An application waits: the submitting thread is not to be held up by slow storage either.
    Demand,
    /// Nobody waits yet; the submitting thread can be held up.
    Background,
}

/// A read request.
pub struct Read {
    /// Which bytes. They do not overlap.
    pub ranges: Vec<ByteRange>,
    /// The epoch that they must belong to, or [`STAGED`].
    pub epoch: u64,
    /// Whether somebody waits.
    pub urgency: Urgency,
    /// Where the answer goes.
    pub sink: Arc<dyn Sink>,
}

/// A request for hashes.
pub struct HashRequest {
    /// The epoch that they are to be of, or [`STAGED`]. Of what is staged, answers to requests of the same scheme may
    /// tell what it was when the first of them was made.
    pub epoch: u64,
    /// How they are made.
    pub scheme: Scheme,
    /// What is behind this many bytes counts as zeroes.
    pub length: u64,
    /// The level of the nodes.
    pub level: u8,
    /// The bytes that the nodes stand for: in order, apart from each other, from node to node. They may pass the
    /// region's end.
    pub ranges: Vec<ByteRange>,
    /// What is called with the nodes of each range, one range after the other.
    pub done: Box<dyn FnOnce(Result<Vec<Node>>) + Send>,
}

/// Bytes on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Traffic {
    /// How many have gone out.
    pub sent: u64,
    /// How many have come in.
    pub received: u64,
}

/// A stream request.
pub struct StreamRequest {
    /// Which bytes, in the order in which they are wanted.
    pub ranges: Vec<ByteRange>,
    /// The epoch that they must belong to.
    pub epoch: u64,
    /// Where the answer goes.
    pub sink: Arc<dyn Sink>,
}

/// A stream under way. Dropping it cancels it.
pub trait Stream: Send + Sync {
    /// What of these ranges was not sent yet goes next, in this order; then the rest.
    fn steer(&self, ranges: &[ByteRange]);

    /// Stops it: the sink's `done` is called soon.
    fn cancel(&self);
}

/// What is called when a write or a zero is done.
pub type Completion = Box<dyn FnOnce(Result<()>) + Send>;

/// A flush request.
pub struct Flush {
    /// Its number among those of this writer, from 1 on and growing: repeated, it changes nothing.
    pub number: u64,
    /// The stage that is flushed, as [`Store::stage`] told it: if the store is not at it any more, what
    /// was written is lost, and the flush fails with an error that can be retried.
    pub stage: u64,
    /// What is called when it is done: with what the region is then.
    pub done: FlushDone,
}

/// What is called when a flush is done.
pub type FlushDone = Box<dyn FnOnce(Result<Info>) + Send>;

/// How far what was written has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stage {
    /// Stays what it is for as long as the store has all that was written and not flushed. Another number
    /// means that something of it is lost: the store was restarted, or has given up what was staged.
    pub number: u64,
    /// The greatest number of a flush of the newest writer that is known to be durable.
    pub flushed: u64,
    /// The newest writer's token, as [`Store::fence`] gave it, also before a restart. 0 where the store
    /// keeps none.
    pub token: u64,
    /// The region's length with what is staged, in bytes.
    pub length: u64,
    /// Whether changes are staged that were found unpushed in a cache, and that the newest writer has not made:
    /// there is something to flush though it has written nothing.
    pub recovered: bool,
}

/// In place of an epoch: what the writer sees, with all that it has written.
pub const STAGED: u64 = 0;
