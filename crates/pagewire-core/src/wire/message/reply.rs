//! What one side answers.

use super::super::cursor::{Fields, put_ranges, put_string};
use super::super::{FrameType, Header, MAX_NAME, MAX_NODES, Malformed, RegionId};
use super::{HelloReply, Migrated, MigrationState, RemoteError, put_frame};
use crate::chunk::ByteRange;
use crate::delta::Node;

/// The most names in one [`ListReply`].
const MAX_NAMES: usize = 1024;

const READ_ONLY: u32 = 1;
const COMMIT: u32 = 2;
const HASH: u32 = 4;

/// What is known of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionInfo {
    /// The region's identity.
    pub id: RegionId,
    /// The epoch that the rest belongs to.
    pub epoch: u64,
    /// The region's length at that epoch, in bytes.
    pub length: u64,
    /// The length that the region can grow to, in bytes.
    pub capacity: u64,
    /// The length of ranges that the server likes best to be asked for, in bytes: a power of two.
    pub granularity: u32,
    /// Whether nobody may write to the region through this server.
    pub read_only: bool,
    /// Whether a flush is all or nothing, whatever is killed at whatever moment.
    pub commit: bool,
    /// Whether the server hashes the region for those who ask.
    pub hash: bool,
}

impl RegionInfo {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id);
        for value in [self.epoch, self.length, self.capacity] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&self.granularity.to_le_bytes());
        let flags = [(self.read_only, READ_ONLY), (self.commit, COMMIT), (self.hash, HASH)];
        let flags = flags.iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, bit)| flags | bit);
        out.extend_from_slice(&flags.to_le_bytes());
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let (id, epoch, length, capacity) = (fields.array()?, fields.u64()?, fields.u64()?, fields.u64()?);
        // Other flags tell of abilities that this version does not use.
        let (granularity, flags) = (fields.u32()?, fields.u32()?);
        let (read_only, commit, hash) = (flags & READ_ONLY != 0, flags & COMMIT != 0, flags & HASH != 0);
        let info = Self { id, epoch, length, capacity, granularity, read_only, commit, hash };
        if info.length > info.capacity {
            return Err(fields.bad("the length exceeds the capacity"));
        }
        if info.capacity > 1 << 62 {
            return Err(fields.bad("no memory is that large"));
        }
        Ok(info)
    }
}

/// What a writer is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leased {
    /// Names the open region in further requests of this session.
    pub handle: u32,
    /// Names the lease, also after a lost connection.
    pub token: u64,
    /// How long the lease waits for its holder after a lost connection, in milliseconds.
    pub lapse: u32,
    /// Stays what it is for as long as this server has all that was written under the lease and not
    /// flushed.
    pub stage: u64,
    /// The number of the last flush under this lease that is durable; 0 for none.
    pub flushed: u64,
    /// The region, with the length that it has for the writer.
    pub info: RegionInfo,
}

/// Names of regions, and whether there are more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListReply {
    /// The names with what is known of each, in the order of the names' bytes.
    pub regions: Vec<(String, RegionInfo)>,
    /// Whether more names come after the last one here.
    pub more: bool,
}

impl ListReply {
    /// How many regions fit in one reply for certain.
    pub const MOST: usize = MAX_NAMES;
}

/// What one side answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`super::Hello`].
    Hello(HelloReply),
    /// To a ping: its body.
    Pong(Vec<u8>),
    /// To a list request.
    List(ListReply),
    /// To open and refresh: the handle that names the region on this session, and what is known of
    /// the region at the epoch that is pinned.
    Opened {
        /// Names the open region in further requests of this session.
        handle: u32,
        /// The region at the pinned epoch.
        info: RegionInfo,
    },
    /// To close.
    Closed,
    /// To info.
    Info(RegionInfo),
    /// Everything that a READ or STREAM is going to send has been sent.
    End {
        /// How many bytes of ranges the data frames of this request gave in all. They may still be
        /// on their way on other connections.
        sent: u64,
    },
    /// To open for writing.
    Leased(Leased),
    /// To a request that has no other answer: it was done.
    Done,
    /// To flush: the region at the epoch that it made, or at the newest if there was nothing to flush.
    Flushed(RegionInfo),
    /// To changes.
    Changed {
        /// The newest epoch.
        epoch: u64,
        /// Which bytes differ, at most; none where that is not known any more.
        ranges: Option<Vec<ByteRange>>,
    },
    /// To tree: the hashes of each range, one range after the other.
    Nodes(Vec<Node>),
    /// To a step of a migration.
    Migrated(Migrated),
    /// To who asks how a migration is doing.
    Migration(MigrationState),
    /// The request failed.
    Error(RemoteError),
    /// A reply of a later version.
    Unknown(FrameType),
}

impl Reply {
    /// Appends the frame. [`Reply::Unknown`] cannot be sent and appends nothing.
    pub fn encode(&self, id: u64, out: &mut Vec<u8>) {
        let kind = match self {
            Reply::Hello(_) => FrameType::HELLO_REPLY,
            Reply::Pong(_) => FrameType::PONG,
            Reply::List(_) => FrameType::LIST_REPLY,
            Reply::Opened { .. } => FrameType::OPENED,
            Reply::Closed => FrameType::CLOSED,
            Reply::Info(_) => FrameType::INFO_REPLY,
            Reply::End { .. } => FrameType::END,
            Reply::Leased(_) => FrameType::LEASED,
            Reply::Done => FrameType::DONE,
            Reply::Flushed(_) => FrameType::FLUSHED,
            Reply::Changed { .. } => FrameType::CHANGED,
            Reply::Nodes(_) => FrameType::NODES,
            Reply::Migrated(_) => FrameType::MIGRATED,
            Reply::Migration(_) => FrameType::MIGRATION_STATE,
            Reply::Error(_) => FrameType::ERROR,
            Reply::Unknown(_) => return debug_assert!(false, "an unknown reply cannot be sent"),
        };
        put_frame(out, kind, id, |out| match self {
            Reply::Hello(hello) => hello.put(out),
            Reply::Pong(body) => out.extend_from_slice(body),
            Reply::List(list) => {
                out.push(u8::from(list.more));
                out.extend_from_slice(&(list.regions.len() as u32).to_le_bytes());
                for (name, info) in &list.regions {
                    put_string(out, name, MAX_NAME);
                    info.put(out);
                }
            }
            Reply::Opened { handle, info } => {
                out.extend_from_slice(&handle.to_le_bytes());
                info.put(out);
            }
            Reply::Closed | Reply::Done | Reply::Unknown(_) => {}
            Reply::Leased(leased) => {
                out.extend_from_slice(&leased.handle.to_le_bytes());
                out.extend_from_slice(&leased.token.to_le_bytes());
                out.extend_from_slice(&leased.lapse.to_le_bytes());
                out.extend_from_slice(&leased.stage.to_le_bytes());
                out.extend_from_slice(&leased.flushed.to_le_bytes());
                leased.info.put(out);
            }
            Reply::Changed { epoch, ranges } => {
                out.extend_from_slice(&epoch.to_le_bytes());
                out.push(u8::from(ranges.is_some()));
                put_ranges(out, ranges.as_deref().unwrap_or_default());
            }
            Reply::Nodes(nodes) => {
                debug_assert!(nodes.len() <= MAX_NODES);
                out.extend_from_slice(&(nodes.len() as u32).to_le_bytes());
                nodes.iter().for_each(|node| out.extend_from_slice(&node.0));
            }
            Reply::Info(info) | Reply::Flushed(info) => info.put(out),
            Reply::End { sent } => out.extend_from_slice(&sent.to_le_bytes()),
            Reply::Migrated(migrated) => migrated.put(out),
            Reply::Migration(state) => state.put(out),
            Reply::Error(error) => error.put(out),
        });
    }

    /// The reply with this header and body.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where a known one does not have its fields. An unknown one is no error.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(header.kind.name(), body);
        let message = match header.kind {
            FrameType::HELLO_REPLY => return HelloReply::decode(body).map(Reply::Hello),
            FrameType::PONG => return Ok(Reply::Pong(body.to_vec())),
            FrameType::ERROR => return RemoteError::decode(body).map(Reply::Error),
            FrameType::LIST_REPLY => {
                let more = fields.flag()?;
                let count = fields.count(2 + 48, MAX_NAMES)?;
                let regions = (0..count)
                    .map(|_| Ok((fields.string(MAX_NAME)?, RegionInfo::take(&mut fields)?)))
                    .collect::<Result<_, Malformed>>()?;
                Reply::List(ListReply { regions, more })
            }
            FrameType::OPENED => {
                Reply::Opened { handle: fields.u32()?, info: RegionInfo::take(&mut fields)? }
            }
            FrameType::CLOSED => Reply::Closed,
            FrameType::INFO_REPLY => Reply::Info(RegionInfo::take(&mut fields)?),
            FrameType::END => Reply::End { sent: fields.u64()? },
            FrameType::LEASED => Reply::Leased(Leased {
                handle: fields.u32()?,
                token: fields.u64()?,
                lapse: fields.u32()?,
                stage: fields.u64()?,
                flushed: fields.u64()?,
                info: RegionInfo::take(&mut fields)?,
            }),
            FrameType::DONE => Reply::Done,
            FrameType::FLUSHED => Reply::Flushed(RegionInfo::take(&mut fields)?),
            FrameType::CHANGED => {
                let (epoch, known, ranges) = (fields.u64()?, fields.flag()?, fields.ranges()?);
                if !known && !ranges.is_empty() {
                    return Err(fields.bad("ranges that are not known"));
                }
                Reply::Changed { epoch, ranges: known.then_some(ranges) }
            }
            FrameType::NODES => {
                let count = fields.count(Node::LEN, MAX_NODES)?;
                Reply::Nodes((0..count).map(|_| fields.array().map(Node)).collect::<Result<_, _>>()?)
            }
            FrameType::MIGRATED => Reply::Migrated(Migrated::take(&mut fields)?),
            FrameType::MIGRATION_STATE => Reply::Migration(MigrationState::take(&mut fields)?),
            other => return Ok(Reply::Unknown(other)),
        };
        fields.end()?;
        Ok(message)
    }
}
