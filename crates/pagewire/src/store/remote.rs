//! `pw://HOST:PORT/NAME`: a region that a peer offers. The session with the peer does the work; this
//! file says it in the words of the [`Store`] contract.

use std::sync::Arc;
use std::time::Duration;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::wire::{
    ListReply, MigrateStep, Migrated, MigrationAction, MigrationState, RegionInfo, Reply, Request,
    TreeRequest,
};
use uuid::Uuid;

use super::cut::Cut;
use super::joined::{JoinedReads, JoinedRequests};
use super::{
    Capabilities, Completion, Flush, HashRequest, Info, Read, Sink, Stage, Store, Stream, StreamRequest,
    Traffic, Urgency,
};
use crate::address::{PeerAddress, RegionAddress};
use crate::error::{Error, ErrorKind, Result};
use crate::peer::{EarlierLease, Lane, Purpose, Session, Written, ask};

pub use crate::peer::SessionOptions as RemoteOptions;
pub use crate::transport::{ClientTls, Identity};

/// A region that a peer offers, pinned to one epoch; or open for writing, and at the newest.
pub struct RemoteStore {
    session: Session,
}

impl RemoteStore {
    /// Connects to the peer and opens the region, which takes two round trips.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] where nobody answers, [`ErrorKind::NotFound`] where there is no
    /// such region.
    pub fn connect(region: &RegionAddress, options: &RemoteOptions) -> Result<Self> {
        Ok(Self { session: Session::connect(region, options, Purpose::Read)? })
    }

    /// The same for writing too: takes the region's lease for `owner`, a text that others are told.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] while somebody else has the lease; [`ErrorKind::Denied`] where the peer lets
    /// nobody write.
    pub fn connect_writer(region: &RegionAddress, options: &RemoteOptions, owner: &str) -> Result<Self> {
        Ok(Self { session: Session::connect(region, options, Purpose::Write(owner, None))? })
    }

    /// The same for who was the writer before, and has died: goes on with the lease that `token` names, if this
    /// still is the region `id`. What was staged under it is given up.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] where somebody else had the lease since, [`ErrorKind::Changed`] where it is another
    /// region; as [`RemoteStore::connect_writer`].
    pub fn resume_writer(
        region: &RegionAddress,
        options: &RemoteOptions,
        owner: &str,
        (id, token): (Uuid, u64),
    ) -> Result<Self> {
        let earlier = EarlierLease { region: *id.as_bytes(), token };
        let session = Session::connect(region, options, Purpose::Write(owner, Some(earlier)))?;
        session.begin_anew()?;
        Ok(Self { session })
    }

    /// The same for who takes the region over: joins the migration `id`, which `owner` carries out, or begins it.
    /// What is read is what the application sees at that moment, up to the region's capacity.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] while another migration is under way; [`ErrorKind::Unsupported`] where the region is not in
    /// use by an application that can be moved; [`ErrorKind::Version`] where the peer is too old.
    pub(crate) fn connect_move(
        region: &RegionAddress,
        options: &RemoteOptions,
        id: [u8; 16],
        owner: &str,
    ) -> Result<Self> {
        Ok(Self { session: Session::connect(region, options, Purpose::Move(id, owner))? })
    }

    /// Asks for a step of the migration, once: a lost connection is an error that can be tried again.
    ///
    /// # Errors
    ///
    /// Whatever the origin answers.
    pub(crate) fn migrate(&self, step: MigrateStep) -> Result<Migrated> {
        self.session.migrate(step)
    }

    /// The same for a step that takes a set, whose pages follow the answer, into `sink`: the first may come before this
    /// returns.
    ///
    /// # Errors
    ///
    /// The same; the sink has its end then, or will have.
    pub(crate) fn migrate_with_pages(
        &self,
        step: MigrateStep,
        sink: Arc<dyn Sink>,
    ) -> Result<(Migrated, Box<dyn Stream>)> {
        let (migrated, stream) = self.session.migrate_with_pages(step, self.info().epoch, sink)?;
        Ok((migrated, Box::new(stream)))
    }

    /// Waits until what the peer has sent before is here, but for `limit` at most.
    pub(crate) fn drain(&self, limit: Duration) {
        self.session.drain(limit);
    }

    /// Whether the peer was lost, and does not come back at once.
    pub(crate) fn is_gone(&self) -> bool {
        self.session.is_gone()
    }

    /// What is known of the region, which can be written to by whoever has its lease.
    fn known(&self, info: &RegionInfo) -> Info {
        Info { writable: self.session.written().token != 0, ..info_from_wire(info) }
    }
}

/// What a peer offers, in the order of the names: each region's name and what is known of it.
///
/// # Errors
///
/// [`ErrorKind::Unavailable`] where nobody answers within the options' `connect_timeout`.
pub fn list(peer: &PeerAddress, options: &RemoteOptions) -> Result<Vec<(String, Info)>> {
    let mut regions: Vec<(String, Info)> = Vec::new();
    loop {
        let after = regions.last().map(|(name, _)| name.clone()).unwrap_or_default();
        let Reply::List(ListReply { regions: page, more }) = ask(peer, &Request::List { after }, options)?
        else {
            return Err(unexpected(peer, "LIST"));
        };
        // Names come in order and after the last one, or the asking would never end.
        let last = regions.last().map(|(name, _)| name.clone());
        if page.iter().zip(&page[1.min(page.len())..]).any(|(one, next)| one.0 >= next.0)
            || page.first().is_some_and(|(first, _)| last.as_ref().is_some_and(|last| first <= last))
            || (more && page.is_empty())
        {
            return Err(unexpected(peer, "LIST"));
        }
        regions.extend(page.into_iter().map(|(name, info)| (name, info_from_wire(&info))));
        if !more {
            return Ok(regions);
        }
    }
}

/// What is known of a region of a peer, without opening it.
///
/// # Errors
///
/// [`ErrorKind::Unavailable`] where nobody answers within the options' `connect_timeout`;
/// [`ErrorKind::NotFound`] where there is no such region.
pub fn describe(region: &RegionAddress, options: &RemoteOptions) -> Result<Info> {
    let request = Request::Info { name: region.name.clone() };
    match ask(&region.peer, &request, options)? {
        Reply::Info(info) => Ok(info_from_wire(&info)),
        _ => Err(unexpected(&region.peer, "INFO")),
    }
}

/// How the migration of a region of a peer is doing, or what came of giving it up.
///
/// # Errors
///
/// [`ErrorKind::Unavailable`] where nobody answers; [`ErrorKind::NotFound`] where there is no such region, or none that
/// can be moved; [`ErrorKind::Busy`] and [`ErrorKind::Fenced`] where it cannot be given up.
pub fn migration(
    region: &RegionAddress,
    action: MigrationAction,
    options: &RemoteOptions,
) -> Result<MigrationState> {
    let request = Request::Migration { name: region.name.clone(), action };
    match ask(&region.peer, &request, options)? {
        Reply::Migration(state) => Ok(state),
        _ => Err(unexpected(&region.peer, "MIGRATION")),
    }
}

fn unexpected(peer: &PeerAddress, request: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("{peer} does not answer {request} as it should"))
}

/// What is known of a region, from the words of the protocol.
pub(crate) fn info_from_wire(info: &RegionInfo) -> Info {
    Info {
        id: Uuid::from_bytes(info.id),
        epoch: info.epoch,
        length: info.length,
        capacity: info.capacity,
        granularity: info.granularity,
        writable: !info.read_only,
        capabilities: Capabilities {
            lend: false,
            stream: true,
            history: true,
            commit: info.commit,
            hash: info.hash,
        },
    }
}

impl Store for RemoteStore {
    fn info(&self) -> Info {
        self.known(&self.session.info())
    }

    fn read(&self, read: Read) {
        let info = self.info();
        if let Some(error) = read.ranges.iter().find_map(|&range| info.check(range).err()) {
            return read.sink.done(Err(error));
        }
        let aligned = |range: &ByteRange| {
            range.start.is_multiple_of(4096) && (range.end.is_multiple_of(4096) || range.end == info.length)
        };
        let ranges: Vec<ByteRange> = read.ranges.iter().copied().filter(|range| !range.is_empty()).collect();
        if ranges.is_empty() {
            return read.sink.done(Ok(()));
        }
        let lane = match read.urgency {
            Urgency::Demand => Lane::Primary,
            Urgency::Background => Lane::Bulk,
        };
        let (ranges, sink): (_, Arc<dyn Sink>) = if ranges.iter().all(aligned) {
            (ranges, read.sink)
        } else {
            let cut = Cut::new(&ranges, info.length, read.sink);
            (cut.widened(PAGE_SIZE), Arc::new(cut))
        };
        let mut requests = requests::requests(ranges);
        if requests.len() == 1 {
            return self.session.read(requests.remove(0), read.epoch, lane, sink);
        }
        let sink = Arc::new(JoinedReads::new(requests.len(), sink));
        for ranges in requests {
            self.session.read(ranges, read.epoch, lane, sink.clone());
        }
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        let frames = frames::frames(ranges, bytes);
        if frames.is_empty() {
            return done(Ok(()));
        }
        let joined = JoinedRequests::new(frames.len(), done);
        for (ranges, bytes) in frames {
            let joined = joined.clone();
            self.session.write(&ranges, bytes, move |result| joined.done(result));
        }
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        let ranges: Vec<ByteRange> = ranges.iter().copied().filter(|range| !range.is_empty()).collect();
        let requests: Vec<_> = ranges.chunks(pagewire_core::wire::MAX_RANGES).collect();
        if requests.is_empty() {
            return done(Ok(()));
        }
        let joined = JoinedRequests::new(requests.len(), done);
        for ranges in requests {
            let joined = joined.clone();
            let request = |handle| Request::Zero { handle, ranges: ranges.to_vec() };
            self.session.change(request, move |result| joined.done(result));
        }
    }

    fn set_length(&self, length: u64, done: Completion) {
        self.session.set_length(length, done);
    }

    fn flush(&self, flush: Flush) {
        if self.session.written().token == 0 {
            // Nothing can have been written.
            return (flush.done)(Ok(self.info()));
        }
        self.session.flush(flush.number, flush.stage, move |result| {
            (flush.done)(result.map(|info| Info { writable: true, ..info_from_wire(&info) }));
        });
    }

    fn stage(&self) -> Stage {
        let Written { token, stage, flushed } = self.session.written();
        Stage { number: stage, flushed, token, length: self.session.info().length, ..Stage::default() }
    }

    fn discard(&self) -> Result<()> {
        super::wait(|done| self.session.discard(done))
    }

    fn fence(&self) -> Result<Option<u64>> {
        // The lease was taken when the region was opened; of what an earlier writer in this process has
        // left the peer does not know that it is another's.
        match self.discard() {
            // What is written through cannot be taken back, and is not expected to be.
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            result => result?,
        }
        Ok(Some(self.session.written().token))
    }

    fn newest(&self) -> u64 {
        self.session.newest()
    }

    fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        // Not to know is an answer.
        self.session.changes(since).unwrap_or_default()
    }

    fn stream(&self, stream: StreamRequest) -> Result<Box<dyn Stream>> {
        if stream.ranges.len() > pagewire_core::wire::MAX_RANGES {
            let text = format!("a stream of {} ranges", stream.ranges.len());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Ok(Box::new(self.session.stream(&stream.ranges, stream.epoch, stream.sink)?))
    }

    fn hash(&self, hash: HashRequest) {
        let HashRequest { epoch, scheme, length, level, ranges, done } = hash;
        let pieces = trees::pieces(ranges, level);
        let joined = trees::Joined::new(pieces.len(), done);
        for (index, ranges) in pieces.into_iter().enumerate() {
            let joined = joined.clone();
            let tree = TreeRequest { handle: 0, epoch, scheme, length, level, ranges };
            self.session.tree(tree, move |result| joined.done(index, result));
        }
    }

    fn traffic(&self) -> Traffic {
        let (sent, received) = self.session.traffic();
        Traffic { sent, received }
    }

    fn round_trip(&self) -> Duration {
        self.session.round_trip()
    }

    fn refresh(&self) -> Result<Info> {
        Ok(self.known(&self.session.refresh()?))
    }
}

impl Stream for crate::peer::StreamCall {
    fn steer(&self, ranges: &[ByteRange]) {
        crate::peer::StreamCall::steer(self, ranges);
    }

    fn cancel(&self) {
        crate::peer::StreamCall::cancel(self);
    }
}

mod frames;
mod requests;
mod trees;
