//! What one side answers.

use super::super::cursor::{Fields, put_string};
use super::super::{FrameType, Header, MAX_NAME, Malformed, RegionId};
use super::{HelloReply, RemoteError, put_frame};

/// The most names in one [`ListReply`].
const MAX_NAMES: usize = 1024;

const READ_ONLY: u32 = 1;

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
}

impl RegionInfo {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id);
        for value in [self.epoch, self.length, self.capacity] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&self.granularity.to_le_bytes());
        out.extend_from_slice(&if self.read_only { READ_ONLY } else { 0 }.to_le_bytes());
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let info = Self {
            id: fields.array()?,
            epoch: fields.u64()?,
            length: fields.u64()?,
            capacity: fields.u64()?,
            granularity: fields.u32()?,
            // Other flags tell of abilities that this version does not use.
            read_only: fields.u32()? & READ_ONLY != 0,
        };
        if info.length > info.capacity {
            return Err(fields.bad("the length exceeds the capacity"));
        }
        if info.capacity > 1 << 62 {
            return Err(fields.bad("no memory is that large"));
        }
        Ok(info)
    }
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
            Reply::Closed | Reply::Unknown(_) => {}
            Reply::Info(info) => info.put(out),
            Reply::End { sent } => out.extend_from_slice(&sent.to_le_bytes()),
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
            other => return Ok(Reply::Unknown(other)),
        };
        fields.end()?;
        Ok(message)
    }
}
