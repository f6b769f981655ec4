//! The requests of those who write.
//!
//! A WRITE is carried out by the thread that has received it, on a bulk connection as a rule; what may
//! wait for a disk and comes on the primary connection gets a thread of its own, so that reads which
//! somebody waits for go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pagewire_core::chunk::ByteRange;
use pagewire_core::wire::{Leased, Reply, WriteHeader};

use super::Shared;
use super::outgoing::Outgoing;
use super::permissions::Access;
use super::session::{Session, Writing};
use crate::engine::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Completion, Flush};

/// Takes the lease of a region, or goes on with the one that `token` names.
pub(super) fn open(
    shared: &Shared,
    session: &Session,
    region: &Arc<Region>,
    token: u64,
    owner: &str,
) -> Result<Leased> {
    if shared.options.read_only {
        let text = format!("'{}' can only be read through this server", region.name());
        return Err(Error::new(ErrorKind::Denied, text));
    }
    let writer = match token {
        0 => region.writer(owner)?,
        token => region.resume_writer(token, owner)?,
    };
    let (pin, stage, token) = (writer.pin(), writer.stage(), writer.token());
    let info = shared.to_wire(&pin.info(), Access::Write);
    let writing = Writing { writer, stage: AtomicU64::new(stage.number) };
    let handle = session.open(pin, Some(writing))?;
    let lapse = u32::try_from(shared.options.lapse.as_millis()).unwrap_or(u32::MAX);
    Ok(Leased { handle, token, lapse, stage: stage.number, flushed: stage.flushed, info })
}

/// Carries out a WRITE.
pub(super) fn write(session: &Session, outgoing: &Arc<Outgoing>, id: u64, write: &WriteHeader, bytes: &[u8]) {
    match session.writer(write.handle) {
        Ok(writing) => writing.writer.write(&write.ranges, bytes, respond(outgoing, id)),
        Err(error) => outgoing.fail(id, &error, 0),
    }
}

pub(super) fn zero(
    session: &Arc<Session>,
    outgoing: &Arc<Outgoing>,
    id: u64,
    handle: u32,
    ranges: Vec<ByteRange>,
) -> Result<()> {
    let (writing, done) = (session.writer(handle)?, respond(outgoing, id));
    session.aside(move || writing.writer.zero(&ranges, done))
}

pub(super) fn set_length(
    session: &Arc<Session>,
    outgoing: &Arc<Outgoing>,
    id: u64,
    handle: u32,
    length: u64,
) -> Result<()> {
    let (writing, done) = (session.writer(handle)?, respond(outgoing, id));
    session.aside(move || writing.writer.set_length(length, done))
}

pub(super) fn discard(session: &Arc<Session>, outgoing: &Arc<Outgoing>, id: u64, handle: u32) -> Result<()> {
    let (writing, done) = (session.writer(handle)?, respond(outgoing, id));
    session.aside(move || done(writing.discard()))
}

pub(super) fn flush(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    outgoing: &Arc<Outgoing>,
    id: u64,
    handle: u32,
    number: u64,
) -> Result<()> {
    let (writing, outgoing, shared) = (session.writer(handle)?, outgoing.clone(), shared.clone());
    session.aside(move || {
        let stage = writing.stage.load(Ordering::Acquire);
        let flushed = crate::store::wait(|done| writing.writer.flush(Flush { number, stage, done }));
        let reply = match flushed {
            Ok(info) => Reply::Flushed(shared.to_wire(&info, Access::Write)),
            Err(error) => {
                writing.give_up();
                // Only a connection that is lost leaves it open what has become of a flush.
                let kind = match error.kind() {
                    ErrorKind::Unavailable => ErrorKind::Io,
                    kind => kind,
                };
                Reply::Error(Error::new(kind, error.to_string()).with_retry(error.can_retry()).to_wire(0))
            }
        };
        outgoing.respond(id, &reply);
    })
}

impl Writing {
    /// A flush has failed: the client writes everything again.
    fn give_up(&self) {
        match self.discard() {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Err(error) => tracing::debug!(%error, "what was staged may still be"),
        }
    }

    /// Gives up what is staged. What is written from now on belongs to whatever stage the store is at then.
    fn discard(&self) -> Result<()> {
        let result = self.writer.discard();
        self.stage.store(self.writer.stage().number, Ordering::Release);
        result
    }
}

/// Tells the peer that its request was carried out.
fn respond(outgoing: &Arc<Outgoing>, id: u64) -> Completion {
    let outgoing = outgoing.clone();
    Box::new(move |result| {
        let reply = match result {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Error(error.to_wire(0)),
        };
        outgoing.respond(id, &reply);
    })
}
