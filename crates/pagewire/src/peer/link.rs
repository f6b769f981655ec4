//! One connection of a session: its handshake, and what is received on it until it is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pagewire_core::pack::Agreed;
use pagewire_core::wire::{
    Class, Hello, HelloReply, Leased, Malformed, OLDEST_VERSION, OpenMode, RegionInfo, Reply, Request, Role,
    SessionToken, VERSION,
};

use super::frame::{FrameError, FrameReader};
use super::{AGENT, SessionOptions};
use crate::address::PeerAddress;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{Connection, Meter, Packer, refused};

/// A primary connection's answers are a chunk and its header at most times; one system call is to
/// fetch them whole.
const PRIMARY_EAGER: usize = 80 << 10;

/// On a bulk connection a frame is long: its header is fetched with as little as possible of what
/// follows, which has to be moved when it is the beginning of the next frame.
const BULK_EAGER: usize = 64;

/// The version of the protocol that knows migration.
const MOVES: u16 = 4;

/// A connection that has shaken hands.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) generation: u64,
    /// Compresses what carries bulk.
    pub(super) packer: Packer,
    scratch: Mutex<Vec<u8>>,
    alive: AtomicBool,
}

/// What a handshake brought.
pub(super) struct Greeting {
    pub(super) link: Link,
    pub(super) reader: FrameReader,
    pub(super) hello: HelloReply,
    pub(super) round_trip: Duration,
}

/// What a handshake that opened a region brought besides.
pub(super) struct Opened {
    pub(super) handle: u32,
    pub(super) info: RegionInfo,
    /// Where it was opened for writing.
    pub(super) leased: Option<Leased>,
}

impl Link {
    pub(super) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Ends the link: its thread comes back from receiving, and nobody sends on it any more.
    pub(super) fn kill(&self) {
        self.alive.store(false, Ordering::Release);
        self.connection.shutdown();
    }

    /// Sends the frames that `write` appends. Where that fails the link is lost, which its own
    /// thread finds out.
    pub(super) fn send(&self, write: impl FnOnce(&mut Vec<u8>)) {
        self.send_with(write, &[]);
    }

    /// The same with `payload` behind what `write` appends.
    pub(super) fn send_with(&self, write: impl FnOnce(&mut Vec<u8>), payload: &[u8]) {
        let mut scratch = self.scratch.lock().expect("no holder panics");
        scratch.clear();
        write(&mut scratch);
        if self.connection.send(&[&scratch, payload], false).is_err() {
            self.kill();
        }
    }
}

/// Connects to `peer` and shakes hands; for a primary connection, opens a region in the same round
/// trip.
pub(super) fn greet(
    peer: &PeerAddress,
    role: Role,
    session: SessionToken,
    generation: u64,
    open: Option<&Request>,
    options: &SessionOptions,
    meter: &Arc<Meter>,
) -> Result<(Greeting, Option<Opened>)> {
    let patience = options.connect_timeout;
    let connection = Connection::connect(peer, &options.tls, patience)?.with_meter(meter);
    let failed = |error: FrameError| match error {
        FrameError::Io(error) => refused(peer, &error),
        FrameError::Malformed(error) => Error::from(error).context(peer),
    };
    let io = |error: std::io::Error| failed(error.into());
    connection.set_timeouts(Some(patience), Some(patience)).map_err(io)?;
    let mut bytes = Vec::new();
    let offered = options.compression.offered();
    let features = offered.features();
    Hello { oldest: OLDEST_VERSION, newest: VERSION, features, session, role, agent: AGENT.into() }
        .encode(0, &mut bytes);
    if let Some(open) = open {
        open.encode(1, &mut bytes);
    }
    let asked = Instant::now();
    connection.send(&[&bytes], false).map_err(io)?;
    let mut reader = FrameReader::new(if role == Role::Primary { PRIMARY_EAGER } else { BULK_EAGER });
    reader.set_deadline(Some(asked + patience));
    let hello = match expect_reply(&mut reader, &connection, 0).map_err(failed)? {
        Reply::Hello(hello) if (OLDEST_VERSION..=VERSION).contains(&hello.version) => hello,
        Reply::Error(error) => return Err(Error::from_wire(error).context(peer)),
        _ => return Err(Error::new(ErrorKind::Protocol, format!("{peer} does not speak our version"))),
    };
    let round_trip = asked.elapsed();
    if matches!(open, Some(Request::Open { mode: OpenMode::Move { .. }, .. })) && hello.version < MOVES {
        let text = format!("{peer} is too old: regions can be moved from version {MOVES} of the protocol on");
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let opened = match open {
        None => None,
        Some(_) => match expect_reply(&mut reader, &connection, 1).map_err(failed)? {
            Reply::Opened { handle, info } => Some(Opened { handle, info, leased: None }),
            Reply::Leased(leased) => {
                Some(Opened { handle: leased.handle, info: leased.info, leased: Some(leased) })
            }
            Reply::Error(error) => return Err(Error::from_wire(error).context(peer)),
            _ => return Err(Error::new(ErrorKind::Protocol, format!("{peer} does not answer OPEN"))),
        },
    };
    connection.set_timeouts(Some(patience), None).map_err(io)?;
    reader.set_deadline(None);
    let packer = Packer::new(Agreed::from_features(hello.features).with(offered));
    let link =
        Link { connection, generation, packer, scratch: Mutex::default(), alive: AtomicBool::new(true) };
    Ok((Greeting { link, reader, hello, round_trip }, opened))
}

/// The reply to request `id`, which must be the next frame, but for notifications.
fn expect_reply(reader: &mut FrameReader, connection: &Connection, id: u64) -> Result<Reply, FrameError> {
    loop {
        let (header, body) = reader.next(connection)?;
        match header.kind.class() {
            Class::Reply => {
                let reply = Reply::decode(&header, body)?;
                // An error that comes unasked, with no request's id, is the answer to whatever was asked.
                if header.id == id || matches!(reply, Reply::Error(_)) {
                    return Ok(reply);
                }
            }
            Class::Notification => {}
            // To pass over it would be to lose bytes that somebody counts on.
            Class::Request | Class::Data | Class::Invalid => {
                let reason = "it comes before the reply".into();
                return Err(Malformed { frame: header.kind.name(), reason }.into());
            }
        }
    }
}

/// Asks a peer one thing on a connection of its own.
///
/// # Errors
///
/// As connecting; whatever the peer answers.
pub(crate) fn ask(peer: &PeerAddress, request: &Request, options: &SessionOptions) -> Result<Reply> {
    let (mut greeting, _) =
        greet(peer, Role::Primary, super::random_id(), 0, None, options, &Arc::default())?;
    let (connection, patience) = (&greeting.link.connection, options.connect_timeout);
    let failed = |error| refused(peer, &error);
    connection.set_timeouts(Some(patience), Some(patience)).map_err(failed)?;
    let mut bytes = Vec::new();
    request.encode(1, &mut bytes);
    connection.send(&[&bytes], false).map_err(failed)?;
    greeting.reader.set_deadline(Some(Instant::now() + patience));
    match expect_reply(&mut greeting.reader, connection, 1) {
        Ok(Reply::Error(error)) => Err(Error::from_wire(error).context(peer)),
        Ok(reply) => Ok(reply),
        Err(FrameError::Io(error)) => Err(failed(error)),
        Err(FrameError::Malformed(error)) => Err(Error::from(error).context(peer)),
    }
}
