//! Frames that nobody answers.

use super::super::cursor::{Fields, put_ranges, put_string};
use super::super::{FrameType, Header, Malformed};
use super::put_frame;
use crate::chunk::ByteRange;

const MAX_REASON: usize = 1024;

/// A frame that nobody answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// How far a stream may go.
    Credit {
        /// The id of the STREAM request.
        stream: u64,
        /// How many bytes of payload the stream may have sent in all, since it began. It never shrinks.
        limit: u64,
    },
    /// What a stream is to send next: of these ranges, in this order, what it has not sent; then
    /// the rest in the order that it had.
    Steer {
        /// The id of the STREAM request.
        stream: u64,
        /// The ranges that go first.
        ranges: Vec<ByteRange>,
    },
    /// A READ or STREAM is not wanted any more. It ends soon, by END or by an error.
    Cancel {
        /// The id of the request.
        request: u64,
    },
    /// The sender is about to close the connection.
    Goodbye {
        /// Why, for logs.
        reason: String,
    },
    /// A region that is open has a newer epoch than the one that is pinned.
    Epoch {
        /// The handle that OPENED gave.
        handle: u32,
        /// The newest epoch.
        epoch: u64,
    },
    /// A notification of a later version, which means nothing to this one.
    Unknown(FrameType),
}

impl Notification {
    /// Appends the frame. [`Notification::Unknown`] cannot be sent and appends nothing.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Notification::Credit { stream, limit } => put_frame(out, FrameType::CREDIT, 0, |out| {
                out.extend_from_slice(&stream.to_le_bytes());
                out.extend_from_slice(&limit.to_le_bytes());
            }),
            Notification::Steer { stream, ranges } => put_frame(out, FrameType::STEER, 0, |out| {
                out.extend_from_slice(&stream.to_le_bytes());
                put_ranges(out, ranges);
            }),
            Notification::Cancel { request } => put_frame(out, FrameType::CANCEL, 0, |out| {
                out.extend_from_slice(&request.to_le_bytes());
            }),
            Notification::Goodbye { reason } => put_frame(out, FrameType::GOODBYE, 0, |out| {
                put_string(out, reason, MAX_REASON);
            }),
            Notification::Epoch { handle, epoch } => put_frame(out, FrameType::EPOCH, 0, |out| {
                out.extend_from_slice(&handle.to_le_bytes());
                out.extend_from_slice(&epoch.to_le_bytes());
            }),
            Notification::Unknown(_) => debug_assert!(false, "an unknown notification cannot be sent"),
        }
    }

    /// The notification with this header and body.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where a known one does not have its fields. An unknown one is no error.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(header.kind.name(), body);
        let message = match header.kind {
            FrameType::CREDIT => Notification::Credit { stream: fields.u64()?, limit: fields.u64()? },
            FrameType::STEER => Notification::Steer { stream: fields.u64()?, ranges: fields.ranges()? },
            FrameType::CANCEL => Notification::Cancel { request: fields.u64()? },
            FrameType::GOODBYE => Notification::Goodbye { reason: fields.string(MAX_REASON)? },
            FrameType::EPOCH => Notification::Epoch { handle: fields.u32()?, epoch: fields.u64()? },
            other => return Ok(Notification::Unknown(other)),
        };
        fields.end()?;
        Ok(message)
    }
}
