//! The payloads of chunks.
//!
//! The bytes of an OFFSET_DATA chunk are long and never copied by the codec: a sender writes what stands
//! before them ([`data_header`]), a receiver reads that ([`DATA_PREFIX`] bytes) and then the bytes to where
//! they belong.

use super::fields::{Fields, cut};
use super::{
    ChunkType, ErrorNumber, Headers, MAX_DESCRIPTORS, MAX_STRING, Malformed, ReplyFlags, ReplyHeader,
};

/// How many bytes of an OFFSET_DATA chunk's payload stand before the bytes of the export: their offset.
pub const DATA_PREFIX: usize = 8;

/// A chunk's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// `NBD_REPLY_TYPE_NONE`: nothing but the end.
    None,
    /// `NBD_REPLY_TYPE_OFFSET_DATA`: bytes.
    OffsetData {
        /// Where in the export.
        offset: u64,
        /// One at least.
        data: &'a [u8],
    },
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`: zeroes.
    OffsetHole {
        /// Where in the export.
        offset: u64,
        /// How many: one at least.
        length: u32,
    },
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`: what a metadata context says.
    BlockStatus {
        /// The context.
        context: u32,
        /// From the request's offset on, one behind the other; one at least.
        descriptors: Vec<Descriptor>,
    },
    /// `NBD_REPLY_TYPE_BLOCK_STATUS_EXT`: the same in 64 bits.
    BlockStatusExt {
        /// The context.
        context: u32,
        /// From the request's offset on, one behind the other; one at least.
        descriptors: Vec<DescriptorExt>,
    },
    /// `NBD_REPLY_TYPE_ERROR`: the request has failed. One of a type that is not known reads as this.
    Error {
        /// Why.
        error: ErrorNumber,
        /// The same for people; may be empty.
        message: String,
    },
    /// `NBD_REPLY_TYPE_ERROR_OFFSET`: the request has failed somewhere.
    ErrorOffset {
        /// Why.
        error: ErrorNumber,
        /// The same for people; may be empty.
        message: String,
        /// Where in the export.
        offset: u64,
    },
}

/// An extent in a metadata context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// How many bytes: one at least.
    pub length: u32,
    /// What the context says of them.
    pub flags: u32,
}

/// An extent in a metadata context, in 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorExt {
    /// How many bytes: one at least.
    pub length: u64,
    /// What the context says of them.
    pub flags: u64,
}

/// Appends what stands before the bytes of an OFFSET_DATA chunk: `length` bytes of the export from
/// `at` on, for the request of this cookie and offset.
pub fn data_header(
    headers: Headers,
    cookie: u64,
    request_offset: u64,
    at: u64,
    length: u64,
    flags: ReplyFlags,
    out: &mut Vec<u8>,
) {
    let (kind, length) = (ChunkType::OFFSET_DATA, length + DATA_PREFIX as u64);
    ReplyHeader::Chunk { flags, kind, cookie, offset: request_offset, length }.encode(headers, out);
    out.extend_from_slice(&at.to_be_bytes());
}

impl Chunk<'_> {
    /// What type it is.
    pub fn kind(&self) -> ChunkType {
        match self {
            Chunk::None => ChunkType::NONE,
            Chunk::OffsetData { .. } => ChunkType::OFFSET_DATA,
            Chunk::OffsetHole { .. } => ChunkType::OFFSET_HOLE,
            Chunk::BlockStatus { .. } => ChunkType::BLOCK_STATUS,
            Chunk::BlockStatusExt { .. } => ChunkType::BLOCK_STATUS_EXT,
            Chunk::Error { .. } => ChunkType::ERROR,
            Chunk::ErrorOffset { .. } => ChunkType::ERROR_OFFSET,
        }
    }

    /// Appends it, header and payload, for the request of this cookie and offset. Messages are cut where
    /// they are too long.
    pub fn encode(
        &self,
        headers: Headers,
        cookie: u64,
        request_offset: u64,
        flags: ReplyFlags,
        out: &mut Vec<u8>,
    ) {
        let length = self.payload_len();
        let kind = self.kind();
        ReplyHeader::Chunk { flags, kind, cookie, offset: request_offset, length }.encode(headers, out);
        match self {
            Chunk::None => {}
            Chunk::OffsetData { offset, data } => {
                out.extend_from_slice(&offset.to_be_bytes());
                out.extend_from_slice(data);
            }
            Chunk::OffsetHole { offset, length } => {
                out.extend_from_slice(&offset.to_be_bytes());
                out.extend_from_slice(&length.to_be_bytes());
            }
            Chunk::BlockStatus { context, descriptors } => {
                out.extend_from_slice(&context.to_be_bytes());
                for Descriptor { length, flags } in descriptors {
                    out.extend_from_slice(&length.to_be_bytes());
                    out.extend_from_slice(&flags.to_be_bytes());
                }
            }
            Chunk::BlockStatusExt { context, descriptors } => {
                out.extend_from_slice(&context.to_be_bytes());
                out.extend_from_slice(&(descriptors.len() as u32).to_be_bytes());
                for DescriptorExt { length, flags } in descriptors {
                    out.extend_from_slice(&length.to_be_bytes());
                    out.extend_from_slice(&flags.to_be_bytes());
                }
            }
            Chunk::Error { error, message } => put_error(*error, message, out),
            Chunk::ErrorOffset { error, message, offset } => {
                put_error(*error, message, out);
                out.extend_from_slice(&offset.to_be_bytes());
            }
        }
    }

    fn payload_len(&self) -> u64 {
        match self {
            Chunk::None => 0,
            Chunk::OffsetData { data, .. } => (DATA_PREFIX + data.len()) as u64,
            Chunk::OffsetHole { .. } => 12,
            Chunk::BlockStatus { descriptors, .. } => 4 + 8 * descriptors.len() as u64,
            Chunk::BlockStatusExt { descriptors, .. } => 8 + 16 * descriptors.len() as u64,
            Chunk::Error { message, .. } => 6 + cut(message).len() as u64,
            Chunk::ErrorOffset { message, .. } => 14 + cut(message).len() as u64,
        }
    }

    /// The longest payload that a chunk of this type may have, in bytes, given how long one with data may be:
    /// what a receiver checks before it reads the payload.
    pub fn longest(kind: ChunkType, longest_data: u64) -> u64 {
        match kind {
            ChunkType::NONE => 0,
            ChunkType::OFFSET_DATA => DATA_PREFIX as u64 + longest_data,
            ChunkType::OFFSET_HOLE => 12,
            ChunkType::BLOCK_STATUS => 4 + 8 * MAX_DESCRIPTORS as u64,
            ChunkType::BLOCK_STATUS_EXT => 8 + 16 * MAX_DESCRIPTORS as u64,
            // An error of an unknown type may have fields of its own behind the message.
            _ => 6 + MAX_STRING as u64 + 256,
        }
    }
}

impl<'a> Chunk<'a> {
    /// The chunk of this type with this payload, which is no longer than [`Chunk::longest`].
    ///
    /// # Errors
    ///
    /// [`Malformed`] where the payload is not what the type demands, or the type is none and no error.
    pub fn decode(kind: ChunkType, payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(kind.name().unwrap_or("chunk"), payload);
        match kind {
            ChunkType::NONE => fields.end().map(|()| Chunk::None),
            ChunkType::OFFSET_DATA => {
                let offset = fields.u64()?;
                if fields.left() == 0 {
                    return Err(fields.bad("no byte of data"));
                }
                Ok(Chunk::OffsetData { offset, data: fields.rest() })
            }
            ChunkType::OFFSET_HOLE => {
                let (offset, length) = (fields.u64()?, fields.u32()?);
                if length == 0 {
                    return Err(fields.bad("a hole of no byte"));
                }
                fields.end().map(|()| Chunk::OffsetHole { offset, length })
            }
            ChunkType::BLOCK_STATUS => {
                let context = fields.u32()?;
                let count = descriptors(&fields, 8)?;
                let next = |_| {
                    let length = fields.u32()?;
                    (length > 0).then_some(()).ok_or_else(|| fields.bad("an extent of no byte"))?;
                    Ok(Descriptor { length, flags: fields.u32()? })
                };
                Ok(Chunk::BlockStatus {
                    context,
                    descriptors: (0..count).map(next).collect::<Result<_, _>>()?,
                })
            }
            ChunkType::BLOCK_STATUS_EXT => {
                let (context, said) = (fields.u32()?, fields.u32()?);
                let count = descriptors(&fields, 16)?;
                if said != 0 && said as usize != count {
                    return Err(fields.bad(format!("says that {count} extents are {said}")));
                }
                let next = |_| {
                    let length = fields.u64()?;
                    (length > 0).then_some(()).ok_or_else(|| fields.bad("an extent of no byte"))?;
                    Ok(DescriptorExt { length, flags: fields.u64()? })
                };
                Ok(Chunk::BlockStatusExt {
                    context,
                    descriptors: (0..count).map(next).collect::<Result<_, _>>()?,
                })
            }
            _ if kind.is_error() => {
                let error = ErrorNumber(fields.u32()?);
                if error.0 == 0 {
                    return Err(fields.bad("an error that is none"));
                }
                let length = usize::from(fields.u16()?);
                // Only for people: what is wrong with it is no reason to lose the error.
                let message = String::from_utf8_lossy(fields.bytes(length)?);
                let message = cut(&message).to_owned();
                match kind {
                    ChunkType::ERROR_OFFSET => {
                        Ok(Chunk::ErrorOffset { error, message, offset: fields.u64()? })
                    }
                    _ => Ok(Chunk::Error { error, message }),
                }
            }
            _ => Err(fields.bad(format!("{kind} is no type of chunk"))),
        }
    }
}

/// How many descriptors are left, of so many bytes each.
fn descriptors(fields: &Fields<'_>, each: usize) -> Result<usize, Malformed> {
    let (count, left) = (fields.left() / each, fields.left() % each);
    if count == 0 || left != 0 || count > MAX_DESCRIPTORS {
        return Err(fields.bad(format!("{} bytes of extents", fields.left())));
    }
    Ok(count)
}

fn put_error(error: ErrorNumber, message: &str, out: &mut Vec<u8>) {
    let message = cut(message);
    out.extend_from_slice(&error.0.to_be_bytes());
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message.as_bytes());
}
