//! The calls under way on one region of a peer, and the links that they go by.
//!
//! A call stays here from its submission to its end, whatever happens to the links meanwhile: reads
//! are sent again on the next link, streams end with an error that can be retried (who pulls knows
//! best what is missing), and what has waited for longer than the patience fails.
//!
//! [`calls`] is their table; [`upkeep`] makes the links and makes them again; [`receive`] deals with what
//! comes on them; [`write`] is for those who have the region's lease, [`moving`] for those who take it over.
//!
//! When the primary link is lost, the session begins anew under another token: a new *generation*.
//! So nothing of the old one, here or at the peer, can be mixed up with the new one.

mod calls;
mod moving;
mod receive;
mod upkeep;
mod write;

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak, mpsc};
use std::time::{Duration, Instant};

use pagewire_core::chunk::ByteRange;
use pagewire_core::delta::Node;
use pagewire_core::pack::Compression;
use pagewire_core::wire::{InstanceId, Notification, RegionInfo, Reply, Request, SessionToken, TreeRequest};

use super::call::{Answer, Ask, Call, ReplyTo};
use super::flow::Flow;
use super::link::Link;
use crate::address::RegionAddress;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::Sink;
use crate::transport::{ClientTls, Meter, lost};
use calls::Entry;
use write::Lease;
pub(crate) use write::Written;

/// How a session behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// How many connections carry bulk, besides the primary one: 1 to 64. One connection is bound
    /// by its window on a long link, and by one core on a short one; four are enough for 10 Gbit/s
    /// at 25 ms.
    pub connections: usize,
    /// How long something may take before it fails: from the moment it is asked for, through lost
    /// connections and restarted servers, to its answer.
    pub patience: Duration,
    /// How long one attempt to connect may take.
    pub connect_timeout: Duration,
    /// Whether to compress, and how. Bytes that somebody waits for never are.
    pub compression: Compression,
    /// How peers that are reached through TLS are known, and who this side is to them.
    pub tls: ClientTls,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            connections: 4,
            patience: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            compression: Compression::Auto,
            tls: ClientTls::default(),
        }
    }
}

/// Which of a session's connections a call goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// The one that never carries bulk.
    Primary,
    /// One of those that do.
    Bulk,
}

/// A lease that was taken in an earlier life of this writer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EarlierLease {
    /// The region that has given it.
    pub(crate) region: [u8; 16],
    pub(crate) token: u64,
}

/// What a region is opened for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose<'a> {
    /// Reading.
    Read,
    /// Writing, by this owner, who goes on with an earlier lease where there is one.
    Write(&'a str, Option<EarlierLease>),
    /// Taking it over by this migration, which this owner carries out.
    Move([u8; 16], &'a str),
}

/// A region of a peer, opened, and the calls on it.
pub(crate) struct Session {
    shared: Arc<Shared>,
}

struct Shared {
    region: RegionAddress,
    options: SessionOptions,
    next_id: AtomicU64,
    calls: Mutex<HashMap<u64, Arc<Entry>>>,
    state: Mutex<State>,
    changed: Condvar,
    /// The bytes of all connections, also of those that are lost.
    meter: Arc<Meter>,
}

struct State {
    closed: bool,
    generation: u64,
    token: SessionToken,
    /// Links that can be sent on.
    primary: Option<Arc<Link>>,
    bulk: Vec<Option<Arc<Link>>>,
    turn: usize,
    handle: u32,
    info: RegionInfo,
    /// The newest epoch that the peer has told of.
    newest: u64,
    /// Whether to open the newest epoch, since the one that was open is gone.
    moves_on: bool,
    /// Where the region is open for writing.
    lease: Option<Lease>,
    /// Where it is open to be moved: the migration, and who carries it out.
    moving: Option<([u8; 16], String)>,
    instance: InstanceId,
    /// How many attempts to come back have failed since the primary link was there.
    failed: u32,
    /// Why the region cannot be opened again, where that is not just a matter of time.
    failure: Option<Error>,
    round_trip: Duration,
}

impl Session {
    /// Connects to the peer and opens the region.
    pub(crate) fn connect(
        region: &RegionAddress,
        options: &SessionOptions,
        purpose: Purpose<'_>,
    ) -> Result<Self> {
        if options.connections == 0 || options.connections > 64 {
            let text = format!("{} connections: 1 to 64 are possible", options.connections);
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let (owner, earlier, moving) = match purpose {
            Purpose::Read => (None, None, None),
            Purpose::Write(owner, earlier) => (Some(owner), earlier, None),
            Purpose::Move(id, owner) => (None, None, Some((id, owner.to_owned()))),
        };
        let token = super::random_id();
        let state = State {
            closed: false,
            generation: 1,
            token,
            primary: None,
            bulk: vec![None; options.connections],
            turn: 0,
            handle: 0,
            info: RegionInfo {
                // Another region may have given a lease of the same number to somebody else.
                id: earlier.map_or([0; 16], |earlier| earlier.region),
                epoch: 0,
                length: 0,
                capacity: 0,
                granularity: 0,
                read_only: true,
                commit: false,
                hash: false,
            },
            newest: 0,
            moves_on: false,
            lease: owner.map(|owner| Lease::wanted(owner, earlier.map_or(0, |earlier| earlier.token))),
            moving,
            instance: [0; 16],
            failed: 0,
            failure: None,
            round_trip: Duration::ZERO,
        };
        let shared = Arc::new(Shared {
            region: region.clone(),
            options: options.clone(),
            next_id: AtomicU64::new(2),
            calls: Mutex::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            meter: Arc::default(),
        });
        // Made first, so that threads that are already connecting end when it is dropped.
        let session = Self { shared: shared.clone() };
        // The bulk connections are made while the primary one is, so that they cost no time.
        for index in 0..options.connections {
            let shared = shared.clone();
            spawn(format!("pw-bulk-{index}"), move || shared.keep_bulk(index))?;
        }
        let first = shared.greet_primary(1, token)?;
        let (ready, started) = mpsc::sync_channel(1);
        let primary = shared.clone();
        spawn("pw-primary".into(), move || primary.keep_primary(first, &ready))?;
        started.recv().map_err(|_| Error::new(ErrorKind::Cancelled, "the session ended at once"))?;
        spawn("pw-patience".into(), move || shared.keep_patience())?;
        Ok(session)
    }

    /// What is known of the region at the epoch that is pinned.
    pub(crate) fn info(&self) -> RegionInfo {
        self.shared.lock().info
    }

    /// The shortest round trip that was seen lately on the primary connection.
    pub(crate) fn round_trip(&self) -> Duration {
        self.shared.lock().round_trip
    }

    /// Whether the connection was lost, and does not come back at once.
    pub(crate) fn is_gone(&self) -> bool {
        let state = self.shared.lock();
        state.primary.is_none() && state.failed >= GONE
    }

    /// How many bytes have gone out, and how many have come in.
    pub(crate) fn traffic(&self) -> (u64, u64) {
        self.shared.meter.bytes()
    }

    /// Reads `ranges`, over whatever happens to the connections.
    pub(crate) fn read(&self, ranges: Vec<ByteRange>, epoch: u64, lane: Lane, sink: Arc<dyn Sink>) {
        let deadline = Some(Instant::now() + self.shared.options.patience);
        let call = Call::new(Ask::Read { ranges, epoch }, Answer::Sink(sink), deadline);
        self.shared.submit(call, lane);
    }

    /// Asks for hashes, over whatever happens to the connections; the request's handle is the session's own.
    pub(crate) fn tree(&self, tree: TreeRequest, done: impl FnOnce(Result<Vec<Node>>) + Send + 'static) {
        let deadline = Some(Instant::now() + self.shared.options.patience);
        let asked = tree.nodes();
        let reply: ReplyTo = Box::new(move |reply| {
            done(match reply {
                Ok(Reply::Nodes(nodes)) if nodes.len() as u64 == asked => Ok(nodes),
                Ok(Reply::Nodes(nodes)) => {
                    let text = format!("{} hashes answer a request for {asked}", nodes.len());
                    Err(Error::new(ErrorKind::Protocol, text))
                }
                Ok(_) => Err(unexpected("TREE")),
                Err(error) => Err(error),
            });
        });
        let call = Call::new(Ask::Tree(tree), Answer::Reply(Mutex::new(Some(reply))), deadline);
        self.shared.submit(call, Lane::Bulk);
    }

    /// Begins a stream.
    pub(crate) fn stream(&self, ranges: &[ByteRange], epoch: u64, sink: Arc<dyn Sink>) -> Result<StreamCall> {
        let flow = Flow::new(Instant::now());
        let credit = flow.initial();
        let call = Call::new(Ask::Stream { epoch, flow }, Answer::Sink(sink), None);
        let asked = self.shared.lock().epoch_of(epoch);
        let request = |handle| Request::Stream { handle, epoch: asked, credit, ranges: ranges.to_vec() };
        let id = self.shared.ask_once(call, request)?;
        Ok(StreamCall { shared: Arc::downgrade(&self.shared), id })
    }

    /// The newest epoch that is known of.
    pub(crate) fn newest(&self) -> u64 {
        let state = self.shared.lock();
        state.newest.max(state.info.epoch)
    }

    /// Which bytes differ between the epoch `since` and the newest, if the peer knows.
    pub(crate) fn changes(&self, since: u64) -> Result<Option<Vec<ByteRange>>> {
        match self.shared.control(|handle| Request::Changes { handle, since })? {
            Reply::Changed { ranges, .. } => Ok(ranges),
            _ => Err(unexpected("CHANGES")),
        }
    }

    /// Moves the open region to its newest epoch.
    pub(crate) fn refresh(&self) -> Result<RegionInfo> {
        let shared = &self.shared;
        if shared.lock().lease.is_some() {
            // A writer is at its own epoch.
            return Ok(self.info());
        }
        match shared.control(|handle| Request::Refresh { handle }) {
            Ok(Reply::Opened { info, .. }) => {
                shared.lock().info = info;
                Ok(info)
            }
            Ok(_) => Err(unexpected("REFRESH")),
            // The connection was lost, and the epoch went before it was made again.
            Err(error) if error.kind() == ErrorKind::Stale => shared.move_on(error),
            Err(error) => Err(error),
        }
    }
}

/// After so many attempts that have failed, a peer is taken to be gone: one may meet a server that is just being started.
const GONE: u32 = 2;

fn unexpected(request: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("{request} was answered by something else"))
}

impl Drop for Session {
    fn drop(&mut self) {
        self.give_lease_back();
        let shared = &self.shared;
        let links: Vec<Arc<Link>> = {
            let mut state = shared.lock();
            state.closed = true;
            let State { primary, bulk, .. } = &mut *state;
            primary.take().into_iter().chain(bulk.iter_mut().filter_map(Option::take)).collect()
        };
        shared.changed.notify_all();
        links.iter().for_each(|link| link.kill());
        shared.fail_calls(|_| true, || cancelled(&shared.region));
    }
}

/// A stream under way.
pub(crate) struct StreamCall {
    shared: Weak<Shared>,
    id: u64,
}

impl StreamCall {
    pub(crate) fn steer(&self, ranges: &[ByteRange]) {
        self.notify(&Notification::Steer { stream: self.id, ranges: ranges.to_vec() });
    }

    pub(crate) fn cancel(&self) {
        let Some(shared) = self.shared.upgrade() else { return };
        // Told even if the stream has failed here: the peer may not know. It ignores what it does not know.
        self.notify(&Notification::Cancel { request: self.id });
        shared.finish(self.id, |call| call.fail(cancelled(&shared.region)));
    }

    fn notify(&self, notification: &Notification) {
        if let Some(shared) = self.shared.upgrade()
            && let Ok((link, _)) = shared.primary()
        {
            link.send(|out| notification.encode(out));
        }
    }
}

impl Drop for StreamCall {
    fn drop(&mut self) {
        self.cancel();
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name)
        .spawn(run)
        .map(drop)
        .map_err(|error| Error::io("cannot start a thread", &error))
}

fn is_stale(error: &Error) -> bool {
    error.kind() == ErrorKind::Stale
}

fn cancelled(region: &RegionAddress) -> Error {
    Error::new(ErrorKind::Cancelled, format!("{region} was closed"))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        self.calls.lock().expect("no holder panics")
    }

    /// The primary link and the handle of the region on it.
    fn primary(&self) -> Result<(Arc<Link>, u32)> {
        let state = self.lock();
        match (&state.primary, &state.failure) {
            (Some(link), _) => Ok((link.clone(), state.handle)),
            (None, Some(failure)) => Err(failure.clone()),
            (None, None) if state.closed => Err(cancelled(&self.region)),
            (None, None) => Err(lost(&self.region, "it is being made again")),
        }
    }

    /// Has the newest epoch opened in place of one that is gone, and waits for that; answers `stale` where it
    /// takes longer than the patience.
    fn move_on(&self, stale: Error) -> Result<RegionInfo> {
        let mut state = self.lock();
        state.moves_on = true;
        let waited = self.changed.wait_timeout_while(state, self.options.patience, |state| {
            !state.closed && state.moves_on && state.failure.as_ref().is_none_or(is_stale)
        });
        state = waited.expect("no holder panics").0;
        match &state.failure {
            _ if state.closed => Err(cancelled(&self.region)),
            Some(failure) if !is_stale(failure) => Err(failure.clone()),
            _ if state.moves_on => Err(stale),
            _ => Ok(state.info),
        }
    }
}
