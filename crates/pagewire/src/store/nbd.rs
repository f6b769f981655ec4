//! `nbd://HOST/EXPORT`: an export of an NBD server, whichever serves it.
//!
//! A few connections, where the server allows several (`CAN_MULTI_CONN`): one for those who wait, the others
//! for bulk. Each has a thread that makes it, receives on it, and makes it again when it is lost. Whoever
//! submits a request sends it itself; the thread that receives the answer places it.
//!
//! - [`session`]: the calls under way and the links they go by; what a lost link means.
//! - [`unflushed`]: what a restarted server may have lost.
//! - [`call`]: one request, until its end.
//! - [`link`]: one connection: its handshake, and what is sent on it.
//! - [`receive`], [`incoming`]: what comes, and from where it is placed.
//! - [`upkeep`]: the threads.
//! - [`mod@write`]: pieces and blocks.
//! - [`stream`], [`holes`]: many ranges in the background.
//!
//! # What NBD does not say
//!
//! An export has no identity, no epochs and no lease. Its identity here is made of its address and its size.
//! Its one epoch is the moment at which it was opened: what was kept of an earlier one is never taken for the
//! export as it is now, since nobody knows who has written to it in between. Whoever else writes to it
//! while it is in use is not noticed.

mod call;
mod holes;
mod incoming;
mod link;
mod receive;
mod session;
mod stream;
mod unflushed;
mod upkeep;
mod write;

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::nbd::client::{Outcome, Wanted};
use pagewire_core::nbd::{ExportInfo, TransmissionFlags};
use uuid::Uuid;

use super::cut::Cut;
use super::joined::JoinedReads;
use super::{
    Capabilities, Completion, Flush, Info, Read, RemoteOptions, STAGED, Sink, Stage, Store, Stream,
    StreamRequest, Urgency, stale,
};
use crate::address::NbdAddress;
use crate::error::{Error, ErrorKind, Result};
use call::{Call, Command, Ending};
use session::{Lane, Session};
use stream::Streaming;
use write::Writing;

/// What a process can address. A longer export would cost its sets alone more memory than there is.
const MAX_LENGTH: u64 = 1 << 47;

/// The longest read, in bytes: others get their turn, and several go by several connections.
const LONGEST: u64 = 1 << 20;

/// An export of an NBD server.
pub struct NbdStore {
    session: Arc<Session>,
    writing: Writing,
    info: Info,
    /// What offsets and lengths are multiples of.
    block: u64,
    /// The longest read: a power of two.
    longest: u64,
    streams: Mutex<Vec<Weak<Streaming>>>,
}

impl NbdStore {
    /// Connects to the server and opens the export: for writing too where `writable` is true.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] where nobody answers, [`ErrorKind::NotFound`] where there is no such
    /// export, [`ErrorKind::Denied`] for writing to one that can only be read.
    pub fn connect(address: &NbdAddress, writable: bool, options: &RemoteOptions) -> Result<Self> {
        if options.connections == 0 || options.connections > 64 {
            let text = format!("{} connections: 1 to 64 are possible", options.connections);
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let opened = link::open(address, options)?;
        let export = opened.agreed.export.clone();
        let (block, longest) = usable(address, &export)?;
        if writable && export.flags.contains(TransmissionFlags::READ_ONLY) {
            let text = format!("{address} can only be read: its server says so");
            return Err(Error::new(ErrorKind::Denied, text));
        }
        if writable && !export.flags.contains(TransmissionFlags::SEND_FLUSH) {
            tracing::warn!(export = %address, "the server cannot flush: what is written is as durable as it makes it");
        }
        let info = describe(address, &export, writable);
        let session = Session::new(address, options, export, writable);
        // Made first, so that threads that run already end when it is dropped.
        let writing = Writing::new(&session, block, longest);
        let longest = longest.min(LONGEST);
        let store = Self { session, writing, info, block, longest, streams: Mutex::default() };
        store.session.start(opened)?;
        Ok(store)
    }
}

/// The smallest block of an export, and the longest request that is made of it; both powers of two.
fn usable(address: &NbdAddress, export: &ExportInfo) -> Result<(u64, u64)> {
    if export.size > MAX_LENGTH {
        let text = format!("{address} has {} bytes, more than can be mapped", export.size);
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    // A server that says nothing of blocks has none.
    let (block, most) = export.blocks.map_or((1, u64::from(pagewire_core::nbd::MAX_PAYLOAD)), |blocks| {
        (blocks.minimum.into(), u64::from(blocks.maximum.min(pagewire_core::nbd::MAX_PAYLOAD)))
    });
    // A short export may be asked for in one piece.
    let least = block.max(PAGE_SIZE);
    if most < least && most < export.size {
        let text = format!("{address} gives {most} bytes at a time, less than a page");
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok((block, 1 << most.max(least).ilog2()))
}

/// What is known of an export that is opened now.
fn describe(address: &NbdAddress, export: &ExportInfo, writable: bool) -> Info {
    let identity = format!("{address} {}", export.size);
    // A clock that is set before 1970 is no clock.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Info {
        id: Uuid::new_v5(&Uuid::NAMESPACE_URL, identity.as_bytes()),
        epoch: (now.as_micros() as u64).max(1),
        length: export.size,
        capacity: export.size,
        granularity: stream::PIECE as u32,
        writable,
        capabilities: Capabilities { stream: true, ..Capabilities::default() },
    }
}

/// The exports of a server, in its order: each one's name and what is known of it, where the server tells.
///
/// # Errors
///
/// [`ErrorKind::Unavailable`] where nobody answers within the options' `connect_timeout`;
/// [`ErrorKind::Unsupported`] where the server does not list its exports.
pub fn list_exports(server: &NbdAddress, options: &RemoteOptions) -> Result<Vec<NbdExport>> {
    let (connection, outcome, _) = link::greet(server, Wanted::List, options)?;
    connection.shutdown();
    let Outcome::List(listed) = outcome else { unreachable!("a list was asked for") };
    Ok(listed
        .into_iter()
        .map(|one| {
            let (length, read_only) = one.export.map_or((None, None), |export| {
                let read_only = export.flags.contains(TransmissionFlags::READ_ONLY);
                (Some(export.size), Some(read_only))
            });
            NbdExport { name: one.name, description: one.description, length, read_only }
        })
        .collect())
}

/// What a server tells of one of its exports.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NbdExport {
    /// Its name.
    pub name: String,
    /// What it is, for people; may be empty.
    pub description: String,
    /// Its length in bytes, where the server tells.
    pub length: Option<u64>,
    /// Whether it can only be read, where the server tells.
    pub read_only: Option<bool>,
}

impl Store for NbdStore {
    fn info(&self) -> Info {
        self.info
    }

    fn read(&self, read: Read) {
        if let Err(error) = self.check_epoch(read.epoch) {
            return read.sink.done(Err(error));
        }
        if let Some(error) = read.ranges.iter().find_map(|&range| self.info.check(range).err()) {
            return read.sink.done(Err(error));
        }
        let ranges: Vec<ByteRange> = read.ranges.iter().copied().filter(|range| !range.is_empty()).collect();
        if ranges.is_empty() {
            return read.sink.done(Ok(()));
        }
        if read.urgency == Urgency::Demand {
            ranges.iter().for_each(|range| self.skip(*range));
        }
        let fits = |range: &ByteRange| range.align_out(self.block).clamp_to(self.info.length) == *range;
        let (ranges, sink): (_, Arc<dyn Sink>) = if ranges.iter().all(fits) {
            (ranges, read.sink)
        } else {
            let cut = Cut::new(&ranges, self.info.length, read.sink);
            (cut.widened(self.block), Arc::new(cut))
        };
        let pieces: Vec<ByteRange> = ranges.iter().flat_map(|range| range.split(self.longest)).collect();
        let lane = match read.urgency {
            Urgency::Demand => Lane::Demand,
            Urgency::Background => Lane::Bulk,
        };
        let sink: Arc<dyn Sink> =
            if pieces.len() == 1 { sink } else { Arc::new(JoinedReads::new(pieces.len(), sink)) };
        let deadline = self.session.deadline();
        let call = |range| Call::new(Command::Read(range), lane, deadline, Ending::Sink(sink.clone()));
        let calls: Vec<_> = pieces.into_iter().map(call).collect();
        // So many go by one link; those behind them may take another.
        let together = (self.longest / PAGE_SIZE) as usize;
        let total = |calls: &[Arc<Call>]| calls.iter().map(|call| call.command.range().len()).sum::<u64>();
        for calls in calls.chunks(together) {
            if total(calls) <= self.longest {
                self.session.submit(calls.to_vec());
            } else {
                calls.iter().for_each(|call| self.session.submit(vec![call.clone()]));
            }
        }
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        match self.check_writable() {
            Ok(()) => self.writing.write(ranges, bytes, done),
            Err(error) => done(Err(error)),
        }
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        match self.check_writable() {
            Ok(()) => self.writing.zero(ranges, done),
            Err(error) => done(Err(error)),
        }
    }

    fn set_length(&self, length: u64, done: Completion) {
        if length == self.info.length {
            return done(Ok(()));
        }
        if length > self.info.capacity {
            return done(Err(super::too_long(length, self.info.capacity)));
        }
        let text = format!("{} is an NBD export, whose length cannot be changed", self.session.address);
        done(Err(Error::new(ErrorKind::Unsupported, text)));
    }

    fn flush(&self, flush: Flush) {
        let info = self.info;
        let done = flush.done;
        self.session.flush(flush.number, flush.stage, Box::new(move |result| done(result.map(|()| info))));
    }

    fn stage(&self) -> Stage {
        let state = self.session.lock();
        let (number, flushed) = (state.stage(), state.flushed);
        Stage { number, flushed, length: self.info.length, ..Stage::default() }
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.session.lock().flushed = 0;
        Ok(None)
    }

    fn stream(&self, stream: StreamRequest) -> Result<Box<dyn Stream>> {
        self.check_epoch(stream.epoch)?;
        stream.ranges.iter().try_for_each(|range| self.info.check(*range))?;
        let (streaming, handle) = Streaming::start(&self.session, (self.block, self.longest), stream)?;
        let mut streams = self.streams.lock().expect("no holder panics");
        streams.retain(|known| known.strong_count() > 0);
        streams.push(Arc::downgrade(&streaming));
        Ok(Box::new(handle))
    }

    fn round_trip(&self) -> Duration {
        self.session.lock().round_trip
    }

    fn refresh(&self) -> Result<Info> {
        match self.session.failure() {
            Some(error) => Err(error),
            None => Ok(self.info),
        }
    }
}

impl NbdStore {
    fn check_epoch(&self, epoch: u64) -> Result<()> {
        if epoch == STAGED || epoch == self.info.epoch { Ok(()) } else { Err(stale(epoch, self.info.epoch)) }
    }

    fn check_writable(&self) -> Result<()> {
        if self.info.writable {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, format!("{} is open for reading", self.session.address)))
    }

    /// Leaves out of the streams what somebody waits for.
    fn skip(&self, range: ByteRange) {
        let streams: Vec<_> =
            self.streams.lock().expect("no holder panics").iter().filter_map(Weak::upgrade).collect();
        streams.iter().for_each(|stream| stream.skip(range));
    }
}

impl Drop for NbdStore {
    fn drop(&mut self) {
        self.session.close();
    }
}
