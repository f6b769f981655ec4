//! What every store promises.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use pagewire_core::chunk::ByteRange;
use serde::Serialize;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::sink::Sink;

/// Where a region's bytes live.
///
/// # Promises
///
/// - A read answers what was written last, or fails. Zeroes are never invented.
/// - `done` of a request's sink or completion is called exactly once, and last, also when the store
///   is dropped or the peer is gone.
/// - A write has taken its bytes when the call returns, and is done when its completion says so; a
///   read that is submitted after that sees it.
/// - A flush covers the writes that were done before it was submitted.
pub trait Store: Send + Sync {
    /// What is known of the region now. Cheap: it asks nobody.
    fn info(&self) -> Info;

    /// Submits a read.
    fn read(&self, read: Read);

    /// Submits a write of `bytes` at `offset`.
    fn write(&self, offset: u64, bytes: &[u8], done: Completion) {
        let _ = (offset, bytes);
        done(Err(unsupported("write to")));
    }

    /// Submits a write of zeroes to `range`.
    fn zero(&self, range: ByteRange, done: Completion) {
        let _ = range;
        done(Err(unsupported("write zeroes to")));
    }

    /// Submits a flush: what was written before is durable when `done` says so, as far as the store
    /// itself is durable.
    fn flush(&self, done: Completion);

    /// Capability `lend`: the file that the bytes are in, so that a server can hand them to the
    /// network without touching them, and find holes.
    fn lend(&self) -> Option<Lent<'_>> {
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

    /// How long the shortest answer is on its way: nothing where the bytes are on this host.
    fn round_trip(&self) -> Duration {
        Duration::ZERO
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
    /// It keeps its epochs itself: a read may name any epoch that the store can still give.
    pub history: bool,
}

/// A file that holds a region's bytes, each at its own offset.
#[derive(Debug, Clone, Copy)]
pub struct Lent<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
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
    /// The epoch that they must belong to.
    pub epoch: u64,
    /// Whether somebody waits.
    pub urgency: Urgency,
    /// Where the answer goes.
    pub sink: Arc<dyn Sink>,
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

/// What is called when a write, a zero or a flush is done.
pub type Completion = Box<dyn FnOnce(Result<()>) + Send>;
