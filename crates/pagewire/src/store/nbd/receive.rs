//! What is received on a link, and whose call it belongs to.
//!
//! Bytes go from the socket into one buffer, and from there to the call's sink, in pieces that stay in the
//! processor's cache. A server that breaks the protocol loses the link: the call at fault, if it is known,
//! fails, the others are asked for again.

use std::io;

use pagewire_core::chunk::ByteRange;
use pagewire_core::nbd::chunk::DATA_PREFIX;
use pagewire_core::nbd::{
    AllocationState, Chunk, ChunkType, ErrorNumber, Headers, Malformed, ReplyFlags, ReplyHeader,
};

use super::call::{Call, Command, Extent};
use super::incoming::Incoming;
use super::link::Link;
use super::session::{Lane, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::sink::Part;

/// The longest piece that is received and placed at once, in bytes.
const PIECE: u64 = 256 << 10;

/// The answer to a demand read is a chunk and its header at most times; one system call is to fetch them
/// whole.
const DEMAND_EAGER: usize = 80 << 10;

/// Why a link is lost.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// The connection has ended or failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came breaks the protocol.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The same, where the codec cannot tell.
    #[error("the server breaks the protocol: {0}")]
    Broken(String),
    /// The server says that it stops.
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl Session {
    /// Receives on a link until it is lost, and says why.
    pub(super) fn receive(&self, link: &Link, lane: Lane) -> Lost {
        let prefix = match link.headers {
            Headers::Simple => ReplyHeader::SIMPLE_LEN,
            headers => headers.chunk_len() + DATA_PREFIX,
        };
        let eager = if lane == Lane::Demand { DEMAND_EAGER } else { prefix };
        let mut incoming = Incoming::new(eager, prefix);
        loop {
            if let Err(lost) = self.receive_one(link, &mut incoming) {
                return lost;
            }
        }
    }

    fn receive_one(&self, link: &Link, incoming: &mut Incoming) -> Result<(), Lost> {
        let connection = &link.connection;
        let length = ReplyHeader::len(link.headers, incoming.peek(connection, 4)?)?;
        let header = ReplyHeader::decode(link.headers, incoming.take(connection, length)?)?;
        link.hear();
        let (ReplyHeader::Simple { cookie, .. } | ReplyHeader::Chunk { cookie, .. }) = header;
        let Some(call) = link.call(cookie) else {
            return Err(Lost::Broken(format!("it answers the request {cookie}, which there is not")));
        };
        let received = match header {
            ReplyHeader::Simple { error: ErrorNumber(0), .. } => self.simple(link, &call, incoming),
            ReplyHeader::Simple { error: ErrorNumber::ESHUTDOWN, .. } => Err(Lost::ShuttingDown),
            ReplyHeader::Simple { error, .. } => {
                call.end(Err(self.failed(&call, error, "")));
                Ok(())
            }
            ReplyHeader::Chunk { kind, length, .. } => self.chunk(link, &call, incoming, kind, length),
        };
        if let Err(lost @ (Lost::Malformed(_) | Lost::Broken(_))) = &received {
            let text =
                format!("{}: the answer to a request for bytes {}", self.address, call.command.range());
            call.end(Err(Error::new(ErrorKind::Protocol, text).because(lost)));
        }
        received?;
        match header {
            ReplyHeader::Simple { .. } => {
                link.finish(cookie);
                call.answered();
            }
            ReplyHeader::Chunk { flags, .. } if flags.contains(ReplyFlags::DONE) => {
                link.finish(cookie);
                call.answered();
            }
            ReplyHeader::Chunk { kind, .. } if kind == ChunkType::NONE => {
                return Err(Lost::Broken("a chunk of nothing is not the last one".into()));
            }
            ReplyHeader::Chunk { .. } => {}
        }
        Ok(())
    }

    /// A simple reply that says that all is well; behind one to a read are all its bytes.
    fn simple(&self, link: &Link, call: &Call, incoming: &mut Incoming) -> Result<(), Lost> {
        match call.command {
            Command::Read(_) if link.headers.chunked() => {
                Err(Lost::Broken("a read is answered without chunks".into()))
            }
            Command::Read(_) => self.data(link, call, incoming, call.owed_range()),
            Command::Status(_) => Err(Lost::Broken("nothing is said of holes".into())),
            _ => Ok(()),
        }
    }

    fn chunk(
        &self,
        link: &Link,
        call: &Call,
        incoming: &mut Incoming,
        kind: ChunkType,
        length: u64,
    ) -> Result<(), Lost> {
        let connection = &link.connection;
        if kind == ChunkType::OFFSET_DATA {
            let Some(length) = length.checked_sub(DATA_PREFIX as u64).filter(|length| *length > 0) else {
                return Err(Lost::Broken(format!("a chunk of data has {length} bytes")));
            };
            let mut offset = [0; DATA_PREFIX];
            offset.copy_from_slice(incoming.take(connection, DATA_PREFIX)?);
            return self.data(link, call, incoming, range(u64::from_be_bytes(offset), length)?);
        }
        if length > Chunk::longest(kind, 0) {
            return Err(Lost::Broken(format!("a chunk {kind} has {length} bytes")));
        }
        let mut payload = Vec::new();
        while (payload.len() as u64) < length {
            let piece = (length - payload.len() as u64).min(PIECE) as usize;
            payload.extend_from_slice(incoming.take(connection, piece)?);
        }
        match Chunk::decode(kind, &payload)? {
            Chunk::None => {}
            Chunk::OffsetData { .. } => unreachable!("it is received without the codec"),
            Chunk::OffsetHole { offset, length } => {
                let hole = range(offset, length.into())?;
                let is_whole = call.expect(hole).map_err(|error| Lost::Broken(error.to_string()))?;
                link.came(hole.len());
                link.while_placing(|| {
                    if is_whole {
                        call.deliver(Part::Zero(hole));
                    } else {
                        call.gather(Part::Zero(hole));
                    }
                });
            }
            Chunk::BlockStatus { context, descriptors } => {
                let extents = descriptors.iter().map(|one| extent(one.length.into(), one.flags.into()));
                self.extents(link, call, context, extents)?;
            }
            Chunk::BlockStatusExt { context, descriptors } => {
                let extents = descriptors.iter().map(|one| extent(one.length, one.flags));
                self.extents(link, call, context, extents)?;
            }
            Chunk::Error { error: ErrorNumber::ESHUTDOWN, .. }
            | Chunk::ErrorOffset { error: ErrorNumber::ESHUTDOWN, .. } => return Err(Lost::ShuttingDown),
            Chunk::Error { error, message } | Chunk::ErrorOffset { error, message, .. } => {
                call.end(Err(self.failed(call, error, &message)));
            }
        }
        Ok(())
    }

    /// Receives the bytes of `range`, and delivers them.
    fn data(&self, link: &Link, call: &Call, incoming: &mut Incoming, range: ByteRange) -> Result<(), Lost> {
        let is_whole = call.expect(range).map_err(|error| Lost::Broken(error.to_string()))?;
        for piece in range.split(PIECE) {
            let bytes = incoming.take(&link.connection, piece.len() as usize)?;
            link.came(piece.len());
            let part = Part::Bytes { offset: piece.start, bytes };
            link.while_placing(|| if is_whole { call.deliver(part) } else { call.gather(part) });
        }
        Ok(())
    }

    fn extents(
        &self,
        link: &Link,
        call: &Call,
        context: u32,
        extents: impl Iterator<Item = Extent>,
    ) -> Result<(), Lost> {
        if !matches!(call.command, Command::Status(_)) || link.allocation != Some(context) {
            return Err(Lost::Broken(format!("it tells of a context {context}, which was not asked for")));
        }
        call.extents(extents);
        Ok(())
    }

    /// The error that a server's word is.
    fn failed(&self, call: &Call, error: ErrorNumber, message: &str) -> Error {
        let kind = match error {
            ErrorNumber::EPERM => ErrorKind::Denied,
            ErrorNumber::ENOSPC => ErrorKind::NoSpace,
            ErrorNumber::ENOTSUP | ErrorNumber::EOVERFLOW => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        let range = call.command.range();
        let what = match call.command {
            Command::Read(_) => format!("cannot read bytes {range} of"),
            Command::Write(..) => format!("cannot write bytes {range} of"),
            Command::Zero(_) => format!("cannot write zeroes to bytes {range} of"),
            Command::Flush(_) => "cannot flush".to_owned(),
            Command::Status(_) => format!("cannot tell the holes of bytes {range} of"),
        };
        let text = Error::new(kind, format!("{what} {}", self.address));
        match message {
            "" => text.because(format!("the server says {error}")),
            // A terminal is not to obey it.
            _ => text.because(format!("the server says {error}: {}", message.escape_debug())),
        }
    }
}

fn range(offset: u64, length: u64) -> Result<ByteRange, Lost> {
    let range = ByteRange::checked(offset, length);
    range.ok_or_else(|| Lost::Broken("a chunk passes the end of the address space".into()))
}

fn extent(length: u64, flags: u64) -> Extent {
    Extent { length, is_zero: AllocationState(flags as u32).contains(AllocationState::ZERO) }
}
