//! One connection, from the handshake to its end.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::wire::{
    Class, Header, HelloReply, ListReply, Malformed, Notification, OpenMode, RegionInfo, Reply, Request, Role,
};

use super::Shared;
use super::answer;
use super::outgoing::Outgoing;
use super::session::Session;
use crate::engine::{Pin, Region};
use crate::error::{Error, ErrorKind, Result};
use crate::peer::AGENT;
use crate::peer::frame::{FrameError, FrameReader};
use crate::store::{Info, Urgency};
use crate::transport::is_closed;

/// How many bytes one READ may ask for. A stream is for more.
const MAX_READ: u64 = 16 << 20;

/// Requests are short, and several may come at once.
const EAGER: usize = 4 << 10;

/// Serves a connection until it ends.
pub(super) fn run(shared: &Arc<Shared>, outgoing: &Arc<Outgoing>) {
    outgoing.own();
    let peer = outgoing.peer();
    let mut reader = FrameReader::new(EAGER);
    let greeted = greet(shared, outgoing, &mut reader);
    let (joined, end) = match greeted {
        Ok(Some((session, role))) => {
            tracing::debug!(peer, ?role, "connected");
            reader.set_deadline(None);
            let end = serve(shared, &session, role, outgoing, &mut reader);
            (Some((session, role)), end)
        }
        Ok(None) => (None, Ok(())),
        Err(error) => (None, Err(error)),
    };
    // Told before the session is left, which closes the connection.
    match end {
        Ok(()) => {}
        Err(FrameError::Malformed(error)) => {
            tracing::info!(peer, %error, "a peer broke the protocol; its connection is closed");
            outgoing.fail(0, &Error::from(error), 0);
        }
        Err(FrameError::Io(error)) if is_closed(&error) => tracing::debug!(peer, "disconnected"),
        Err(FrameError::Io(error)) => tracing::info!(peer, %error, "a connection failed"),
    }
    if let Some((session, role)) = joined {
        session.leave(role, outgoing, &shared.sessions);
    }
    outgoing.close();
}

/// The handshake. None where the peer was refused.
fn greet(
    shared: &Shared,
    outgoing: &Arc<Outgoing>,
    reader: &mut FrameReader,
) -> Result<Option<(Arc<Session>, Role)>, FrameError> {
    reader.set_deadline(Some(Instant::now() + shared.options.handshake_timeout));
    let (header, body) = reader.next(outgoing.connection())?;
    let Request::Hello(hello) = Request::decode(&header, body)? else {
        let reason = "the first frame is no HELLO".into();
        return Err(Malformed { frame: header.kind.name(), reason }.into());
    };
    let Some(version) = hello.common_version() else {
        let (oldest, newest) = (hello.oldest, hello.newest);
        let text = format!("versions {oldest} to {newest} are not spoken here, but version 1 is");
        let mut error = Error::new(ErrorKind::Protocol, text).to_wire(0);
        error.kind = pagewire_core::wire::RemoteErrorKind::Version;
        outgoing.reply(header.id, &Reply::Error(error));
        return Ok(None);
    };
    let session = Session::join(&shared.sessions, hello.session, hello.role, outgoing)?;
    let reply = HelloReply { version, features: 0, instance: shared.instance, agent: AGENT.into() };
    outgoing.reply(header.id, &Reply::Hello(reply));
    Ok(Some((session, hello.role)))
}

fn serve(
    shared: &Shared,
    session: &Arc<Session>,
    role: Role,
    outgoing: &Arc<Outgoing>,
    reader: &mut FrameReader,
) -> Result<(), FrameError> {
    let connection = outgoing.connection();
    // A primary connection may be silent for as long as it likes; one that waits for its session's
    // primary may not.
    if role == Role::Primary {
        crate::schedule::demand();
        connection.set_timeouts(Some(shared.options.send_timeout), None)?;
    } else {
        session.start_sending(outgoing)?;
    }
    loop {
        let (header, body) = match reader.next(connection) {
            Ok(frame) => frame,
            Err(FrameError::Io(error))
                if error.kind() == io::ErrorKind::WouldBlock && session.has_primary() =>
            {
                connection.set_timeouts(Some(shared.options.send_timeout), None)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        match header.kind.class() {
            // The client has lost its primary connection and does not know yet. What it asks here would
            // fail for want of a handle; a lost connection is what it knows how to live with.
            Class::Request if role == Role::Bulk && !session.has_primary() => {
                return Err(io::Error::from(io::ErrorKind::NotConnected).into());
            }
            Class::Request => {
                let request = Request::decode(&header, body)?;
                let kind = request.kind();
                if let Err(error) = answer_request(shared, session, role, outgoing, &header, request) {
                    tracing::debug!(peer = outgoing.peer(), request = kind.name(), %error, "refused");
                    outgoing.fail(header.id, &error, 0);
                }
            }
            Class::Notification => match Notification::decode(&header, body)? {
                Notification::Credit { stream, limit } => session.streams().credit(stream, limit),
                Notification::Steer { stream, ranges } => session.streams().steer(stream, &ranges),
                Notification::Cancel { request } => session.streams().cancel(request, outgoing),
                Notification::Goodbye { .. } | Notification::Unknown(_) => {}
            },
            // Nothing was asked of the peer.
            Class::Reply | Class::Data | Class::Invalid => {}
        }
    }
}

fn answer_request(
    shared: &Shared,
    session: &Arc<Session>,
    role: Role,
    outgoing: &Arc<Outgoing>,
    header: &Header,
    request: Request,
) -> Result<()> {
    let id = header.id;
    match request {
        Request::Ping(body) => outgoing.reply(id, &Reply::Pong(body)),
        Request::List { after } => outgoing.reply(id, &Reply::List(list(shared, &after))),
        Request::Info { name } => outgoing.reply(id, &Reply::Info(to_wire(&find(shared, &name)?.refresh()?))),
        Request::Open { name, mode, resume } => {
            let pin = open(find(shared, &name)?, mode, resume)?;
            let info = to_wire(&pin.info());
            let handle = session.open(pin)?;
            outgoing.reply(id, &Reply::Opened { handle, info });
        }
        Request::Refresh { handle } => {
            let region = session.pin(handle)?.region().clone();
            region.refresh()?;
            let pin = region.pin();
            let info = to_wire(&pin.info());
            session.replace(handle, pin)?;
            outgoing.reply(id, &Reply::Opened { handle, info });
        }
        Request::Close { handle } => {
            session.close(handle)?;
            outgoing.reply(id, &Reply::Closed);
        }
        Request::Read { handle, epoch, ranges } => {
            let pin = pinned(session, handle, epoch)?;
            check_ranges(&pin.info(), &ranges)?;
            if ByteRange::total(&ranges) > MAX_READ {
                let text = format!("one READ may ask for {MAX_READ} bytes; a STREAM is for more");
                return Err(Error::new(ErrorKind::Usage, text));
            }
            let urgency = if role == Role::Primary { Urgency::Demand } else { Urgency::Background };
            answer::read(outgoing, id, &pin, ranges.clone(), urgency);
            // What an application waits for now, nobody needs to be sent again later.
            session.streams().skip(handle, &ranges);
        }
        Request::Stream { handle, epoch, credit, ranges } => {
            let pin = pinned(session, handle, epoch)?;
            check_ranges(&pin.info(), &ranges)?;
            if ByteRange::total(&ranges) > pin.info().length {
                return Err(Error::new(ErrorKind::Protocol, "the ranges of a STREAM overlap"));
            }
            session.streams().begin(id, handle, pin, &ranges, credit)?;
        }
        Request::Hello(_) => return Err(Error::new(ErrorKind::Protocol, "a second HELLO")),
        Request::Unknown(kind) => {
            let text = format!("{kind:?} is not supported");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
    }
    Ok(())
}

fn find<'a>(shared: &'a Shared, name: &str) -> Result<&'a Arc<Region>> {
    shared
        .regions
        .get(name)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no region '{name}' here")))
}

fn list(shared: &Shared, after: &str) -> ListReply {
    use std::ops::Bound;
    let mut names = shared.regions.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
    let regions = names
        .by_ref()
        .take(ListReply::MOST)
        .map(|(name, region)| (name.clone(), to_wire(&region.info())))
        .collect();
    ListReply { regions, more: names.next().is_some() }
}

fn open(region: &Arc<Region>, mode: OpenMode, resume: Option<([u8; 16], u64)>) -> Result<Pin> {
    if mode == OpenMode::Write {
        let text = format!("'{}' can only be read through this server", region.name());
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let info = region.refresh()?;
    match resume {
        None => Ok(region.pin()),
        Some((id, _)) if id != *info.id.as_bytes() => {
            let text = format!("'{}' is another region now: its identity has changed", region.name());
            Err(Error::new(ErrorKind::Changed, text))
        }
        Some((_, epoch)) => region.pin_epoch(epoch),
    }
}

fn pinned(session: &Session, handle: u32, epoch: u64) -> Result<Arc<Pin>> {
    let pin = session.pin(handle)?;
    if pin.epoch() != epoch {
        let text = format!("epoch {epoch} is not the pinned one, {}", pin.epoch());
        return Err(Error::new(ErrorKind::Stale, text));
    }
    Ok(pin)
}

fn check_ranges(info: &Info, ranges: &[ByteRange]) -> Result<()> {
    for range in ranges {
        info.check(*range)?;
        let ends_well = range.end.is_multiple_of(PAGE_SIZE) || range.end == info.length;
        if !range.start.is_multiple_of(PAGE_SIZE) || !ends_well || range.is_empty() {
            return Err(Error::new(ErrorKind::Protocol, format!("bytes {range} are not whole pages")));
        }
    }
    Ok(())
}

/// What is known of a region, in the words of the protocol. A region that can be written to here
/// cannot be written to through this server.
fn to_wire(info: &Info) -> RegionInfo {
    RegionInfo {
        id: *info.id.as_bytes(),
        epoch: info.epoch,
        length: info.length,
        capacity: info.capacity,
        granularity: info.granularity,
        read_only: true,
    }
}
