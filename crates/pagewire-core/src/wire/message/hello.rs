//! The first frame of either side of a connection. Its fields stay where they are in every version;
//! later versions may append, so bytes behind the last known field are ignored, here alone.

use super::super::cursor::{Fields, put_string};
use super::super::{FrameType, InstanceId, Malformed, SessionToken};
use super::put_frame;

/// What every connection begins with, so that a stranger is recognised at once.
pub const MAGIC: [u8; 8] = *b"PAGEWIRE";

const MAX_AGENT: usize = 128;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The session's first connection: control messages and demand reads; never bulk.
    Primary,
    /// A further connection of the session, which carries bulk: streams, and reads that nobody waits for.
    Bulk,
}

/// The client's first frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The oldest version that the client speaks.
    pub oldest: u16,
    /// The newest version that the client speaks.
    pub newest: u16,
    /// The optional features that the client knows, a bit each. Version 1 has none.
    pub features: u64,
    /// The session that the connection belongs to.
    pub session: SessionToken,
    /// What the connection is for.
    pub role: Role,
    /// Which program the client is, for logs.
    pub agent: String,
}

/// The server's first frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloReply {
    /// The version that both sides speak from now on.
    pub version: u16,
    /// The features that both sides know.
    pub features: u64,
    /// Which process the server is.
    pub instance: InstanceId,
    /// Which program the server is, for logs.
    pub agent: String,
}

impl Hello {
    /// Appends the frame.
    pub fn encode(&self, id: u64, out: &mut Vec<u8>) {
        put_frame(out, FrameType::HELLO, id, |out| {
            out.extend_from_slice(&MAGIC);
            out.extend_from_slice(&self.oldest.to_le_bytes());
            out.extend_from_slice(&self.newest.to_le_bytes());
            out.extend_from_slice(&self.features.to_le_bytes());
            out.extend_from_slice(&self.session);
            out.push(match self.role {
                Role::Primary => 0,
                Role::Bulk => 1,
            });
            put_string(out, &self.agent, MAX_AGENT);
        });
    }

    /// The hello whose body is `body`.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where it is none.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("HELLO", body);
        if fields.array()? != MAGIC {
            return Err(fields.bad("does not begin with PAGEWIRE"));
        }
        Ok(Self {
            oldest: fields.u16()?,
            newest: fields.u16()?,
            features: fields.u64()?,
            session: fields.array()?,
            role: match fields.u8()? {
                0 => Role::Primary,
                1 => Role::Bulk,
                other => return Err(fields.bad(format!("role {other}"))),
            },
            agent: fields.string(MAX_AGENT)?,
        })
    }

    /// The newest version that the client and this codec have in common.
    pub fn common_version(&self) -> Option<u16> {
        let newest = self.newest.min(super::super::VERSION);
        (newest >= self.oldest.max(super::super::OLDEST_VERSION)).then_some(newest)
    }
}

impl HelloReply {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.features.to_le_bytes());
        out.extend_from_slice(&self.instance);
        put_string(out, &self.agent, MAX_AGENT);
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("HELLO_REPLY", body);
        if fields.array()? != MAGIC {
            return Err(fields.bad("does not begin with PAGEWIRE"));
        }
        Ok(Self {
            version: fields.u16()?,
            features: fields.u64()?,
            instance: fields.array()?,
            agent: fields.string(MAX_AGENT)?,
        })
    }
}
