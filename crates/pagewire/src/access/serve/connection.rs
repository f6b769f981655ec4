//! One connection, from the handshake to its end.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_core::chunk::ByteRange;
use pagewire_core::pack::Agreed;
use pagewire_core::wire::{
    Class, FrameType, HelloReply, Malformed, Notification, OLDEST_VERSION, PackedWriteHeader, Reply, Request,
    Role, VERSION, WriteHeader,
};

use super::Shared;
use super::outgoing::Outgoing;
use super::request::answer_request;
use super::session::Session;
use super::writing;
use crate::error::{Error, ErrorKind};
use crate::peer::AGENT;
use crate::peer::frame::{FrameError, FrameReader};
use crate::transport::{is_closed, refused, unpack};

/// Requests are short, and several may come at once.
const EAGER: usize = 4 << 10;

/// How long a peer that was refused may take to hear why.
const LINGER: Duration = Duration::from_secs(1);

/// Serves a connection until it ends.
pub(super) fn run(shared: &Arc<Shared>, outgoing: &Arc<Outgoing>) {
    outgoing.own();
    let peer = outgoing.peer();
    let deadline = Instant::now() + shared.options.handshake_timeout;
    if let Err(error) = outgoing.connection().secure(deadline) {
        return turn_away(outgoing, &error);
    }
    let mut reader = FrameReader::new(EAGER);
    reader.set_deadline(Some(deadline));
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
        session.leave(role, outgoing, &shared.sessions, shared.options.lapse);
    }
    outgoing.close();
}

/// Ends a connection whose TLS could not begin. The peer has been told why by then, but for one that does
/// not speak TLS.
fn turn_away(outgoing: &Outgoing, error: &io::Error) {
    let connection = outgoing.connection();
    let refused = refused("a client", error);
    tracing::info!(peer = outgoing.peer(), %error, "a connection is refused");
    if refused.kind() == ErrorKind::Protocol {
        let text = "TLS is spoken here: write pw+tls:// in the address instead of pw://";
        let mut frame = Vec::new();
        Reply::Error(Error::new(ErrorKind::Protocol, text).to_wire(0)).encode(0, &mut frame);
        // Whoever it is may have gone.
        let _ = connection.send_in_clear(&frame);
    }
    connection.linger(LINGER);
    outgoing.close();
}

/// The handshake. None where the peer was refused.
fn greet(
    shared: &Shared,
    outgoing: &Arc<Outgoing>,
    reader: &mut FrameReader,
) -> Result<Option<(Arc<Session>, Role)>, FrameError> {
    let options = &shared.options;
    outgoing.connection().set_timeouts(Some(options.send_timeout), Some(options.handshake_timeout))?;
    let (header, body) = reader.next(outgoing.connection())?;
    let Request::Hello(hello) = Request::decode(&header, body)? else {
        let reason = "the first frame is no HELLO".into();
        return Err(Malformed { frame: header.kind.name(), reason }.into());
    };
    let Some(version) = hello.common_version() else {
        let (oldest, newest) = (hello.oldest, hello.newest);
        let text = format!(
            "versions {oldest} to {newest} are not spoken here, but {OLDEST_VERSION} to {VERSION} are"
        );
        let mut error = Error::new(ErrorKind::Protocol, text).to_wire(0);
        error.kind = pagewire_core::wire::RemoteErrorKind::Version;
        outgoing.reply(header.id, &Reply::Error(error));
        return Ok(None);
    };
    let session = Session::join(&shared.sessions, hello.session, hello.role, outgoing)?;
    let agreed = Agreed::from_features(hello.features).with(options.compression.offered());
    outgoing.agree(agreed);
    let features = agreed.features();
    let reply = HelloReply { version, features, instance: shared.instance, agent: AGENT.into() };
    outgoing.reply(header.id, &Reply::Hello(reply));
    Ok(Some((session, hello.role)))
}

fn serve(
    shared: &Arc<Shared>,
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
            Class::Request if header.kind == FrameType::WRITE => {
                let (write, bytes) = WriteHeader::decode(body)?;
                writing::write(session, outgoing, header.id, &write, bytes);
            }
            Class::Request if header.kind == FrameType::PACKED_WRITE && !outgoing.agreed().is_none() => {
                let (PackedWriteHeader { write, codec }, packed) = PackedWriteHeader::decode(body)?;
                let length = ByteRange::total(&write.ranges) as usize;
                unpack(outgoing.agreed(), codec, packed, length, |bytes| {
                    writing::write(session, outgoing, header.id, &write, bytes);
                })?;
            }
            Class::Request => {
                let request = Request::decode(&header, body)?;
                let kind = request.kind();
                if let Err(error) = answer_request(shared, session, role, outgoing, header.id, request) {
                    tracing::debug!(peer = outgoing.peer(), request = kind.name(), %error, "refused");
                    outgoing.fail(header.id, &error, 0);
                }
            }
            Class::Notification => match Notification::decode(&header, body)? {
                Notification::Credit { stream, limit } => session.streams().credit(stream, limit),
                Notification::Steer { stream, ranges } => session.streams().steer(stream, &ranges),
                Notification::Cancel { request } => session.streams().cancel(request, outgoing),
                Notification::Goodbye { .. } | Notification::Epoch { .. } | Notification::Unknown(_) => {}
            },
            // Nothing was asked of the peer.
            Class::Reply | Class::Data | Class::Invalid => {}
        }
    }
}
