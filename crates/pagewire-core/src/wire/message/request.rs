//! What one side asks of the other.

use super::super::cursor::{Fields, put_ranges, put_string};
use super::super::{FrameType, Header, MAX_NAME, MAX_NODES, MAX_OWNER, Malformed, RegionId};
use super::{Hello, MigrateRequest, MigrationAction, put_frame};
use crate::chunk::ByteRange;
use crate::delta::{Algorithm, Scheme, TOP, span};

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
    /// Taking the region over, with the application that uses it, by a migration.
    Move {
        /// The migration: 128 random bits, chosen by the destination.
        id: [u8; 16],
        /// Who takes over, for people.
        owner: String,
    },
}

/// Which hashes of a region are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeRequest {
    /// The handle that OPENED or LEASED gave.
    pub handle: u32,
    /// The epoch, as in READ.
    pub epoch: u64,
    /// How the hashes are made.
    pub scheme: Scheme,
    /// What is behind this many bytes counts as zeroes, whatever is there.
    pub length: u64,
    /// The level of the nodes.
    pub level: u8,
    /// The bytes that the nodes stand for: in order, apart from each other, from node to node.
    pub ranges: Vec<ByteRange>,
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
    /// Hashes of some spans of a region.
    Tree(TreeRequest),
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
    /// A step of a migration.
    Migrate(MigrateRequest),
    /// How the migration of a region is doing, or that it is to be given up: for people.
    Migration {
        /// The region's name.
        name: String,
        /// What to do.
        action: MigrationAction,
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
            Request::Tree(_) => FrameType::TREE,
            Request::Zero { .. } => FrameType::ZERO,
            Request::SetLength { .. } => FrameType::SET_LENGTH,
            Request::Flush { .. } => FrameType::FLUSH,
            Request::Discard { .. } => FrameType::DISCARD,
            Request::Migrate(_) => FrameType::MIGRATE,
            Request::Migration { .. } => FrameType::MIGRATION,
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
                    OpenMode::Write { .. } => 1,
                    OpenMode::Move { .. } => 2,
                });
                out.push(u8::from(resume.is_some()));
                if let Some((id, epoch)) = resume {
                    out.extend_from_slice(id);
                    out.extend_from_slice(&epoch.to_le_bytes());
                }
                match mode {
                    OpenMode::Read => {}
                    OpenMode::Write { token, owner } => {
                        out.extend_from_slice(&token.to_le_bytes());
                        put_string(out, owner, MAX_OWNER);
                    }
                    OpenMode::Move { id, owner } => {
                        out.extend_from_slice(id);
                        put_string(out, owner, MAX_OWNER);
                    }
                }
            }
            Request::Migrate(migrate) => migrate.put(out),
            Request::Migration { name, action } => action.put(name, out),
            Request::Changes { handle, since: number }
            | Request::SetLength { handle, length: number }
            | Request::Flush { handle, number } => {
                out.extend_from_slice(&handle.to_le_bytes());
                out.extend_from_slice(&number.to_le_bytes());
            }
            Request::Tree(tree) => tree.put(out),
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
                let mode = fields.u8()?;
                let resume = if fields.flag()? { Some((fields.array()?, fields.u64()?)) } else { None };
                let mode = match mode {
                    0 => OpenMode::Read,
                    1 => OpenMode::Write { token: fields.u64()?, owner: fields.string(MAX_OWNER)? },
                    2 => OpenMode::Move { id: fields.array()?, owner: fields.string(MAX_OWNER)? },
                    other => return Err(fields.bad(format!("mode {other} is none"))),
                };
                Request::Open { name, mode, resume }
            }
            FrameType::CHANGES => Request::Changes { handle: fields.u32()?, since: fields.u64()? },
            FrameType::TREE => Request::Tree(TreeRequest::take(&mut fields)?),
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
            FrameType::MIGRATE => Request::Migrate(MigrateRequest::take(&mut fields)?),
            FrameType::MIGRATION => {
                let (name, action) = MigrationAction::take(&mut fields)?;
                Request::Migration { name, action }
            }
            FrameType::REFRESH => Request::Refresh { handle: fields.u32()? },
            other => return Ok(Request::Unknown(other)),
        };
        fields.end()?;
        Ok(message)
    }
}

impl TreeRequest {
    /// How many nodes answer it.
    pub fn nodes(&self) -> u64 {
        ByteRange::total(&self.ranges) / span(self.level)
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.handle.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.push(match self.scheme.algorithm {
            Algorithm::Xxh3 => 1,
            Algorithm::Blake3 => 2,
        });
        out.extend_from_slice(&self.scheme.key);
        out.extend_from_slice(&self.length.to_le_bytes());
        out.push(self.level);
        put_ranges(out, &self.ranges);
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let (handle, epoch) = (fields.u32()?, fields.u64()?);
        let algorithm = match fields.u8()? {
            1 => Algorithm::Xxh3,
            2 => Algorithm::Blake3,
            other => return Err(fields.bad(format!("algorithm {other} is none"))),
        };
        let scheme = Scheme { algorithm, key: fields.array()? };
        let (length, level) = (fields.u64()?, fields.u8()?);
        if level > TOP {
            return Err(fields.bad(format!("level {level}, where {TOP} is the topmost")));
        }
        let tree = Self { handle, epoch, scheme, length, level, ranges: fields.ranges()? };
        let mut behind = 0;
        for range in &tree.ranges {
            if range.is_empty() || range.start < behind || !range.is_aligned(span(level)) {
                return Err(fields.bad(format!("range {range} is no node, or not behind the one before")));
            }
            behind = range.end;
        }
        match tree.nodes() {
            nodes if nodes > MAX_NODES as u64 => {
                Err(fields.bad(format!("{nodes} hashes, where {MAX_NODES} are allowed")))
            }
            _ => Ok(tree),
        }
    }
}
