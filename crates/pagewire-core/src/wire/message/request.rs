//! What one side asks of the other.

use super::super::cursor::{Fields, put_ranges, put_string};
use super::super::{FrameType, Header, MAX_NAME, Malformed, RegionId};
use super::{Hello, put_frame};
use crate::chunk::ByteRange;

const MAX_PING: usize = 64;

/// What a region is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading.
    Read,
    /// Reserved: reading and writing, which takes the region's lease.
    Write,
}

/// What one side asks of the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The first frame of a connection.
    Hello(Hello),
    /// Is the other side there?
    Ping(Vec<u8>),
    /// The names of the regions that are offered, in their order as bytes, from the first that comes
    /// after this one.
    List {
        /// The last name that the asking side knows; empty to begin.
        after: String,
    },
    /// Opens a region and pins an epoch of it.
    Open {
        /// The region's name.
        name: String,
        /// What for.
        mode: OpenMode,
        /// The epoch and the identity that the region must have, for a session that goes on after a
        /// lost connection; none for a new one, which gets the newest epoch.
        resume: Option<(RegionId, u64)>,
    },
    /// Gives an open region back.
    Close {
        /// The handle that OPENED gave.
        handle: u32,
    },
    /// What is known of a region, without opening it.
    Info {
        /// The region's name.
        name: String,
    },
    /// The bytes of some ranges.
    Read {
        /// The handle that OPENED gave.
        handle: u32,
        /// The epoch that the bytes must belong to.
        epoch: u64,
        /// Which bytes: each starts at a multiple of 4096 and ends at one, or at the region's end.
        ranges: Vec<ByteRange>,
    },
    /// The bytes of many ranges, striped over the session's bulk connections.
    Stream {
        /// The handle that OPENED gave.
        handle: u32,
        /// The epoch that the bytes must belong to.
        epoch: u64,
        /// How many bytes of payload may be sent before the first CREDIT.
        credit: u64,
        /// Which bytes, in which order; aligned as in READ.
        ranges: Vec<ByteRange>,
    },
    /// Moves an open region to its newest epoch.
    Refresh {
        /// The handle that OPENED gave.
        handle: u32,
    },
    /// A request of a later version, or one that is reserved: to be answered UNSUPPORTED.
    Unknown(FrameType),
}

impl Request {
    /// The type of the request's frame.
    pub fn kind(&self) -> FrameType {
        match self {
            Request::Hello(_) => FrameType::HELLO,
            Request::Ping(_) => FrameType::PING,
            Request::List { .. } => FrameType::LIST,
            Request::Open { .. } => FrameType::OPEN,
            Request::Close { .. } => FrameType::CLOSE,
            Request::Info { .. } => FrameType::INFO,
            Request::Read { .. } => FrameType::READ,
            Request::Stream { .. } => FrameType::STREAM,
            Request::Refresh { .. } => FrameType::REFRESH,
            Request::Unknown(kind) => *kind,
        }
    }

    /// Appends the frame; an unknown request goes without a body.
    pub fn encode(&self, id: u64, out: &mut Vec<u8>) {
        if let Request::Hello(hello) = self {
            return hello.encode(id, out);
        }
        put_frame(out, self.kind(), id, |out| match self {
            Request::Hello(_) | Request::Unknown(_) => {}
            Request::Ping(body) => out.extend_from_slice(&body[..body.len().min(MAX_PING)]),
            Request::List { after } => put_string(out, after, MAX_NAME),
            Request::Open { name, mode, resume } => {
                put_string(out, name, MAX_NAME);
                out.push(match mode {
                    OpenMode::Read => 0,
                    OpenMode::Write => 1,
                });
                out.push(u8::from(resume.is_some()));
                if let Some((id, epoch)) = resume {
                    out.extend_from_slice(id);
                    out.extend_from_slice(&epoch.to_le_bytes());
                }
            }
            Request::Close { handle } | Request::Refresh { handle } => {
                out.extend_from_slice(&handle.to_le_bytes());
            }
            Request::Info { name } => put_string(out, name, MAX_NAME),
            Request::Read { handle, epoch, ranges } => {
                out.extend_from_slice(&handle.to_le_bytes());
                out.extend_from_slice(&epoch.to_le_bytes());
                put_ranges(out, ranges);
            }
            Request::Stream { handle, epoch, credit, ranges } => {
                out.extend_from_slice(&handle.to_le_bytes());
                out.extend_from_slice(&epoch.to_le_bytes());
                out.extend_from_slice(&credit.to_le_bytes());
                put_ranges(out, ranges);
            }
        });
    }

    /// The request with this header and body.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where a known one does not have its fields. An unknown one is no error.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(header.kind.name(), body);
        let message = match header.kind {
            FrameType::HELLO => return Hello::decode(body).map(Request::Hello),
            FrameType::PING => {
                if body.len() > MAX_PING {
                    return Err(fields.bad(format!("{} bytes, where {MAX_PING} are allowed", body.len())));
                }
                return Ok(Request::Ping(body.to_vec()));
            }
            FrameType::LIST => Request::List { after: fields.string(MAX_NAME)? },
            FrameType::OPEN => Request::Open {
                name: fields.string(MAX_NAME)?,
                mode: match fields.u8()? {
                    0 => OpenMode::Read,
                    1 => OpenMode::Write,
                    other => return Err(fields.bad(format!("mode {other}"))),
                },
                resume: if fields.flag()? { Some((fields.array()?, fields.u64()?)) } else { None },
            },
            FrameType::CLOSE => Request::Close { handle: fields.u32()? },
            FrameType::INFO => Request::Info { name: fields.string(MAX_NAME)? },
            FrameType::READ => {
                Request::Read { handle: fields.u32()?, epoch: fields.u64()?, ranges: fields.ranges()? }
            }
            FrameType::STREAM => Request::Stream {
                handle: fields.u32()?,
                epoch: fields.u64()?,
                credit: fields.u64()?,
                ranges: fields.ranges()?,
            },
            FrameType::REFRESH => Request::Refresh { handle: fields.u32()? },
            other => return Ok(Request::Unknown(other)),
        };
        fields.end()?;
        Ok(message)
    }
}
