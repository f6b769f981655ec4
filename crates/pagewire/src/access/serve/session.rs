//! What the connections of one client share: open regions and streams.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use pagewire_core::wire::{Malformed, Role, SessionToken};

use super::extent;
use super::outgoing::Outgoing;
use super::stream::Streams;
use crate::engine::Pin;
use crate::error::{Error, ErrorKind, Result};

/// How many regions one session may have open.
const MAX_OPEN: usize = 1024;

/// How many connections one session may have.
const MAX_BULK: usize = 64;

/// The connections of one client, and what they share.
pub(super) struct Session {
    token: SessionToken,
    state: Mutex<State>,
    streams: Streams,
}

#[derive(Default)]
struct State {
    primary: Option<Arc<Outgoing>>,
    bulk: Vec<Arc<Outgoing>>,
    open: HashMap<u32, Arc<Pin>>,
    next_handle: u32,
    closed: bool,
}

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
        let session = sessions.entry(token).or_insert_with(|| {
            Arc::new(Self { token, state: Mutex::default(), streams: Streams::default() })
        });
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

    /// A connection has ended. The session ends with its primary connection.
    pub(super) fn leave(&self, role: Role, outgoing: &Arc<Outgoing>, sessions: &Sessions) {
        let mut all = sessions.lock().expect("no holder panics");
        let mut state = self.lock();
        state.bulk.retain(|bulk| !Arc::ptr_eq(bulk, outgoing));
        if role == Role::Primary {
            state.closed = true;
            state.primary = None;
            state.open.clear();
            state.bulk.iter().for_each(|bulk| bulk.close());
            self.streams.close();
        }
        let is_this = all.get(&self.token).is_some_and(|known| std::ptr::eq(&raw const **known, self));
        if is_this && state.primary.is_none() && state.bulk.is_empty() {
            all.remove(&self.token);
        }
        drop(state);
        // Its sending thread looks whether it is still wanted.
        outgoing.close();
        self.streams.wake();
    }

    pub(super) fn has_primary(&self) -> bool {
        self.lock().primary.is_some()
    }

    pub(super) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Gives an open region a handle.
    pub(super) fn open(&self, pin: Pin) -> Result<u32> {
        let mut state = self.lock();
        if state.open.len() >= MAX_OPEN || state.closed {
            return Err(Error::new(ErrorKind::Busy, "too many open regions"));
        }
        state.next_handle = state.next_handle.wrapping_add(1);
        let handle = state.next_handle;
        state.open.insert(handle, Arc::new(pin));
        Ok(handle)
    }

    pub(super) fn pin(&self, handle: u32) -> Result<Arc<Pin>> {
        self.lock().open.get(&handle).cloned().ok_or_else(|| no_handle(handle))
    }

    /// Puts another epoch of the same region under a handle.
    pub(super) fn replace(&self, handle: u32, pin: Pin) -> Result<()> {
        self.lock().open.get_mut(&handle).map(|open| *open = Arc::new(pin)).ok_or_else(|| no_handle(handle))
    }

    pub(super) fn close(&self, handle: u32) -> Result<()> {
        let closed = self.lock().open.remove(&handle);
        closed.map(drop).ok_or_else(|| no_handle(handle))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

fn no_handle(handle: u32) -> Error {
    Error::new(ErrorKind::NotFound, format!("handle {handle} names no open region"))
}
