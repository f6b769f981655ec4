//! What one side asks of the other.

use super::super::cursor::{Fields, put_ranges, put_string};
use super::super::{FrameType, Header, MAX_NAME, MAX_OWNER, Malformed, RegionId};
use super::{Hello, put_frame};
use crate::chunk::ByteRange;

const MAX_PING: usize = 64;

/// What a region is opened for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading.
    Read,
    /// Reading and writing, which takes the region's lease.
    Write {
        /// The token of the lease to go on with; 0 for a new one.
        token: u64,
        /// Who writes, for those who are told that somebody does.
        owner: String,
    },
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
    /// Which bytes differ between an epoch and the newest.
    Changes {
        /// The handle that OPENED gave.
        handle: u32,
        /// The epoch.
        since: u64,
    },
    /// Zeroes for some ranges.
    Zero {
        /// The handle that LEASED gave.
        handle: u32,
        /// Which bytes.
        ranges: Vec<ByteRange>,
    },
    /// Changes the region's length.
    SetLength {
        /// The handle that LEASED gave.
        handle: u32,
        /// The new length, in bytes.
        length: u64,
    },
    /// Makes everything that was written durable, as a new epoch.
    Flush {
        /// The handle that LEASED gave.
        handle: u32,
        /// Numbers the flushes of one lease, from 1 on: a repeated one does nothing.
        number: u64,
    },
    /// Gives up what was written and not flushed.
    Discard {
        /// The handle that LEASED gave.
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
            Request::Changes { .. } => FrameType::CHANGES,
            Request::Zero { .. } => FrameType::ZERO,
            Request::SetLength { .. } => FrameType::SET_LENGTH,
            Request::Flush { .. } => FrameType::FLUSH,
            Request::Discard { .. } => FrameType::DISCARD,
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
                out.push(u8::from(*mode != OpenMode::Read));
                out.push(u8::from(resume.is_some()));
                if let Some((id, epoch)) = resume {
                    out.extend_from_slice(id);
                    out.extend_from_slice(&epoch.to_le_bytes());
                }
                if let OpenMode::Write { token, owner } = mode {
                    out.extend_from_slice(&token.to_le_bytes());
                    put_string(out, owner, MAX_OWNER);
                }
            }
            Request::Changes { handle, since: number }
            | Request::SetLength { handle, length: number }
            | Request::Flush { handle, number } => {
                out.extend_from_slice(&handle.to_le_bytes());
                out.extend_from_slice(&number.to_le_bytes());
            }
            Request::Zero { handle, ranges } => {
                out.extend_from_slice(&handle.to_le_bytes());
                put_ranges(out, ranges);
            }
            Request::Close { handle } | Request::Refresh { handle } | Request::Discard { handle } => {
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
            FrameType::OPEN => {
                let name = fields.string(MAX_NAME)?;
                let writes = fields.flag()?;
                let resume = if fields.flag()? { Some((fields.array()?, fields.u64()?)) } else { None };
                let mode = if writes {
                    OpenMode::Write { token: fields.u64()?, owner: fields.string(MAX_OWNER)? }
                } else {
                    OpenMode::Read
                };
                Request::Open { name, mode, resume }
            }
            FrameType::CHANGES => Request::Changes { handle: fields.u32()?, since: fields.u64()? },
            FrameType::ZERO => Request::Zero { handle: fields.u32()?, ranges: fields.ranges()? },
            FrameType::SET_LENGTH => Request::SetLength { handle: fields.u32()?, length: fields.u64()? },
            FrameType::FLUSH => Request::Flush { handle: fields.u32()?, number: fields.u64()? },
            FrameType::DISCARD => Request::Discard { handle: fields.u32()? },
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
