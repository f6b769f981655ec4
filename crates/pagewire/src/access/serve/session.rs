//! What the connections of one client share: open regions and streams.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pagewire_core::delta::Scheme;
use pagewire_core::wire::{Malformed, Notification, Role, SessionToken, TreeRequest};

use super::extent;
use super::holes::Holes;
use super::outgoing::Outgoing;
use super::stream::Streams;
use super::tree::TREES;
use crate::engine::hash::Hashes;
use crate::engine::migration::Place;
use crate::engine::{Pin, Region, Watch, Writer};
use crate::error::{Error, ErrorKind, Result};

/// How many regions one session may have open.
const MAX_OPEN: usize = 1024;

/// How many connections one session may have.
const MAX_BULK: usize = 64;

/// How many requests of one session may be carried out on threads of their own at once.
const MAX_ASIDE: usize = 8;

/// How many comparisons of one session keep their trees.
const MAX_HASHES: usize = 2;

/// The connections of one client, and what they share.
pub(super) struct Session {
    token: SessionToken,
    /// The names in the client's certificate, where it has shown one.
    names: Option<Vec<String>>,
    state: Mutex<State>,
    streams: Streams,
}

#[derive(Default)]
struct State {
    primary: Option<Arc<Outgoing>>,
    bulk: Vec<Arc<Outgoing>>,
    open: HashMap<u32, Open>,
    next_handle: u32,
    /// The hashes of what is compared, the oldest first.
    hashes: VecDeque<(Compared, Arc<Hashes>)>,
    /// How many requests are carried out on threads of their own.
    aside: usize,
    closed: bool,
}

/// A region that is open.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) pin: Arc<Pin>,
    /// Of a file that is lent.
    holes: Arc<Holes>,
    /// Where it is open for writing.
    pub(super) writer: Option<Arc<Writing>>,
    /// Where it is open to be moved.
    place: Option<Arc<Place>>,
}

/// A region that is open for writing.
pub(super) struct Writing {
    pub(super) writer: Writer,
    /// The store's stage that what the client has written and not flushed belongs to.
    pub(super) stage: AtomicU64,
}

/// What is compared: an open region, its epoch, how it is hashed, and how much of it.
type Compared = (u32, u64, Scheme, u64);

type Sessions = Mutex<HashMap<SessionToken, Arc<Session>>>;

impl Session {
    /// Joins the session that the token names, or begins it.
    pub(super) fn join(
        sessions: &Sessions,
        token: SessionToken,
        role: Role,
        outgoing: &Arc<Outgoing>,
    ) -> Result<Arc<Self>, Malformed> {
        let refused = |reason: &str| Malformed { frame: "HELLO", reason: reason.into() };
        let mut sessions = sessions.lock().expect("no holder panics");
        // One whose primary connection has ended is over, though its bulk connections are still leaving.
        if sessions.get(&token).is_some_and(|session| session.lock().closed) {
            sessions.remove(&token);
        }
        let names = outgoing.connection().names();
        let session = sessions.entry(token).or_insert_with(|| {
            let names = names.map(<[_]>::to_vec);
            Arc::new(Self { token, names, state: Mutex::default(), streams: Streams::default() })
        });
        if session.names.as_deref() != names {
            return Err(refused("the session is that of somebody with another certificate"));
        }
        let mut state = session.lock();
        match role {
            Role::Primary if state.primary.is_some() => {
                return Err(refused("the session has a primary connection already"));
            }
            Role::Primary => {
                state.primary = Some(outgoing.clone());
                session.streams.set_primary(outgoing);
            }
            Role::Bulk if state.bulk.len() >= MAX_BULK => return Err(refused("too many bulk connections")),
            Role::Bulk => state.bulk.push(outgoing.clone()),
        }
        drop(state);
        Ok(session.clone())
    }

    /// Begins to send streams on a bulk connection, whose handshake must be over: its reply is the
    /// first frame that a client expects.
    pub(super) fn start_sending(self: &Arc<Self>, outgoing: &Arc<Outgoing>) -> std::io::Result<()> {
        let (session, outgoing) = (self.clone(), outgoing.clone());
        let sender = std::thread::Builder::new().name("pw-stream".into());
        sender.spawn(move || extent::send_extents(&session.streams, &outgoing)).map(drop)
    }

    /// A connection has ended. The session ends with its primary connection; its leases wait for it to come
    /// back for as long as `lapse`.
    pub(super) fn leave(&self, role: Role, outgoing: &Arc<Outgoing>, sessions: &Sessions, lapse: Duration) {
        let mut open = HashMap::new();
        let mut all = sessions.lock().expect("no holder panics");
        let mut state = self.lock();
        state.bulk.retain(|bulk| !Arc::ptr_eq(bulk, outgoing));
        if role == Role::Primary {
            state.closed = true;
            state.primary = None;
            open = std::mem::take(&mut state.open);
            state.bulk.iter().for_each(|bulk| bulk.close());
            self.streams.close();
        }
        let is_this = all.get(&self.token).is_some_and(|known| std::ptr::eq(&raw const **known, self));
        if is_this && state.primary.is_none() && state.bulk.is_empty() {
            all.remove(&self.token);
        }
        drop(state);
        drop(all);
        // Its sending thread looks whether it is still wanted.
        outgoing.close();
        self.streams.wake();
        // Waits for writes that are being carried out.
        open.values().filter_map(|open| open.writer.as_ref()).for_each(|writing| writing.writer.lose(lapse));
    }

    /// The names in the client's certificate, where it has shown one.
    pub(super) fn names(&self) -> Option<&[String]> {
        self.names.as_deref()
    }

    pub(super) fn has_primary(&self) -> bool {
        self.lock().primary.is_some()
    }

    pub(super) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Gives an open region a handle.
    pub(super) fn open(&self, pin: Pin, writer: Option<Writing>) -> Result<u32> {
        self.open_as(pin, writer.map(Arc::new), None)
    }

    /// The same for a region that is open to be moved.
    pub(super) fn open_to_move(&self, pin: Pin, place: Place) -> Result<u32> {
        self.open_as(pin, None, Some(Arc::new(place)))
    }

    fn open_as(&self, pin: Pin, writer: Option<Arc<Writing>>, place: Option<Arc<Place>>) -> Result<u32> {
        let mut state = self.lock();
        if state.open.len() >= MAX_OPEN || state.closed {
            return Err(Error::new(ErrorKind::Busy, "too many open regions"));
        }
        state.next_handle = state.next_handle.wrapping_add(1);
        let handle = state.next_handle;
        let (pin, holes) = (Arc::new(pin), Arc::default());
        state.open.insert(handle, Open { pin, holes, writer, place });
        Ok(handle)
    }

    pub(super) fn pin(&self, handle: u32) -> Result<Arc<Pin>> {
        self.lock().open.get(&handle).map(|open| open.pin.clone()).ok_or_else(|| no_handle(handle))
    }

    /// What is known of the holes of an open region.
    pub(super) fn holes(&self, handle: u32) -> Arc<Holes> {
        self.lock().open.get(&handle).map(|open| open.holes.clone()).unwrap_or_default()
    }

    /// The hashes that a request belongs to, with the trees that earlier ones have left.
    pub(super) fn hashes(&self, request: &TreeRequest) -> Arc<Hashes> {
        let TreeRequest { handle, epoch, scheme, length, .. } = *request;
        let compared = (handle, epoch, scheme, length);
        let mut state = self.lock();
        let known = state.hashes.iter().position(|(known, _)| *known == compared);
        let found = match known.and_then(|at| state.hashes.remove(at)) {
            Some((_, hashes)) => hashes,
            None => Arc::new(Hashes::new(epoch, scheme, length, TREES)),
        };
        while state.hashes.len() >= MAX_HASHES {
            state.hashes.pop_front();
        }
        state.hashes.push_back((compared, found.clone()));
        found
    }

    /// The place in a migration of a region that is open to be moved.
    pub(super) fn place(&self, handle: u32) -> Result<Arc<Place>> {
        let open = self.lock().open.get(&handle).cloned().ok_or_else(|| no_handle(handle))?;
        let text = || format!("handle {handle} is not open to be moved");
        open.place.ok_or_else(|| Error::new(ErrorKind::Unsupported, text()))
    }

    /// The writer of a region that is open for writing.
    pub(super) fn writer(&self, handle: u32) -> Result<Arc<Writing>> {
        let open = self.lock().open.get(&handle).cloned().ok_or_else(|| no_handle(handle))?;
        open.writer
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("handle {handle} is open for reading")))
    }

    /// Puts another epoch of the same region under a handle.
    pub(super) fn replace(&self, handle: u32, pin: Pin) -> Result<()> {
        let old = match self.lock().open.get_mut(&handle) {
            Some(open) => std::mem::replace(&mut open.pin, Arc::new(pin)),
            None => return Err(no_handle(handle)),
        };
        drop(old);
        Ok(())
    }

    pub(super) fn close(&self, handle: u32) -> Result<()> {
        let closed = self.lock().open.remove(&handle).ok_or_else(|| no_handle(handle))?;
        // The thread that has answered its last request may not have let go of it yet.
        if let Some(writing) = &closed.writer {
            writing.writer.give_back();
        }
        Ok(())
    }

    /// Runs `work` on a thread of its own: neither a read that somebody waits for nor another session is
    /// held up by it.
    pub(super) fn aside(self: &Arc<Self>, work: impl FnOnce() + Send + 'static) -> Result<()> {
        {
            let mut state = self.lock();
            if state.aside >= MAX_ASIDE {
                return Err(Error::new(ErrorKind::Busy, "too many requests at once").with_retry(true));
            }
            state.aside += 1;
        }
        let session = self.clone();
        let started = std::thread::Builder::new().name("pw-aside".into()).spawn(move || {
            work();
            session.lock().aside -= 1;
        });
        started.map(drop).map_err(|error| {
            self.lock().aside -= 1;
            Error::io("cannot start a thread", &error)
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl Watch for Session {
    fn epoch(&self, region: &Region, epoch: u64) {
        let (frames, primary) = {
            let state = self.lock();
            let Some(primary) = state.primary.clone() else { return };
            let mut frames = Vec::new();
            let reads =
                |open: &Open| open.writer.is_none() && std::ptr::eq(&raw const **open.pin.region(), region);
            for (&handle, _) in state.open.iter().filter(|(_, open)| reads(open)) {
                Notification::Epoch { handle, epoch }.encode(&mut frames);
            }
            (frames, primary)
        };
        if !frames.is_empty() {
            primary.defer(frames);
        }
    }
}

fn no_handle(handle: u32) -> Error {
    Error::new(ErrorKind::NotFound, format!("handle {handle} names no open region"))
}
