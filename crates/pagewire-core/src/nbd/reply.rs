//! What stands before the payload of a reply.

use super::fields::Fields;
use super::numbers::{NBD_EXTENDED_REPLY_MAGIC, NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC};
use super::{ChunkType, ErrorNumber, Malformed, ReplyFlags};

/// Which headers both sides use in the transmission phase, as the handshake has left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Headers {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests; replies are simple or structured.
    Structured,
    /// Extended requests and replies.
    Extended,
}

impl Headers {
    /// Whether requests are extended.
    pub const fn extended(self) -> bool {
        matches!(self, Headers::Extended)
    }

    /// Whether replies come in chunks.
    pub const fn chunked(self) -> bool {
        !matches!(self, Headers::Simple)
    }

    /// The length of a request, in bytes.
    pub const fn request_len(self) -> usize {
        super::Request::len(self.extended())
    }

    /// The length of what stands before the payload of a chunk, in bytes.
    pub const fn chunk_len(self) -> usize {
        match self {
            Headers::Extended => ReplyHeader::EXTENDED_LEN,
            _ => ReplyHeader::STRUCTURED_LEN,
        }
    }
}

/// What stands before the payload of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A whole reply; behind that to a READ that has not failed are the bytes that were asked for.
    Simple {
        /// Why the request has failed; 0 where it has not.
        error: ErrorNumber,
        /// That of the request.
        cookie: u64,
    },
    /// A chunk.
    Chunk {
        /// Whether it is the last.
        flags: ReplyFlags,
        /// What it is.
        kind: ChunkType,
        /// That of the request.
        cookie: u64,
        /// That of the request, in extended headers; else 0.
        offset: u64,
        /// How many bytes of payload follow.
        length: u64,
    },
}

impl ReplyHeader {
    /// The length of a simple reply's header, in bytes.
    pub const SIMPLE_LEN: usize = 16;

    /// The length of a structured chunk's header, in bytes.
    pub const STRUCTURED_LEN: usize = 20;

    /// The length of an extended chunk's header, in bytes.
    pub const EXTENDED_LEN: usize = 32;

    /// A simple reply that says that all is well.
    pub const fn done(cookie: u64) -> Self {
        ReplyHeader::Simple { error: ErrorNumber(0), cookie }
    }

    /// Appends it.
    ///
    /// # Panics
    ///
    /// If the payload of a structured chunk is to have more than 32 bits of length.
    pub fn encode(&self, headers: Headers, out: &mut Vec<u8>) {
        match *self {
            ReplyHeader::Simple { error, cookie } => {
                out.extend_from_slice(&NBD_SIMPLE_REPLY_MAGIC.to_be_bytes());
                out.extend_from_slice(&error.0.to_be_bytes());
                out.extend_from_slice(&cookie.to_be_bytes());
            }
            ReplyHeader::Chunk { flags, kind, cookie, offset, length } => {
                let extended = headers.extended();
                let magic = if extended { NBD_EXTENDED_REPLY_MAGIC } else { NBD_STRUCTURED_REPLY_MAGIC };
                out.extend_from_slice(&magic.to_be_bytes());
                out.extend_from_slice(&flags.0.to_be_bytes());
                out.extend_from_slice(&kind.0.to_be_bytes());
                out.extend_from_slice(&cookie.to_be_bytes());
                if extended {
                    out.extend_from_slice(&offset.to_be_bytes());
                    out.extend_from_slice(&length.to_be_bytes());
                } else {
                    let length = u32::try_from(length).expect("a chunk has 32 bits of length");
                    out.extend_from_slice(&length.to_be_bytes());
                }
            }
        }
    }

    /// How many bytes a header has that begins with these, of which there must be 4 at least.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where it begins like none that the server may send.
    pub fn len(headers: Headers, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut fields = Fields::new("reply", bytes);
        let magic = fields.u32()?;
        match (magic, headers) {
            (NBD_SIMPLE_REPLY_MAGIC, Headers::Simple | Headers::Structured) => Ok(Self::SIMPLE_LEN),
            (NBD_STRUCTURED_REPLY_MAGIC, Headers::Structured) => Ok(Self::STRUCTURED_LEN),
            (NBD_EXTENDED_REPLY_MAGIC, Headers::Extended) => Ok(Self::EXTENDED_LEN),
            _ => Err(fields.bad(format!("begins with 0x{magic:08x}"))),
        }
    }

    /// From its bytes, of which there are [`ReplyHeader::len`] at least. How long a payload may be is for
    /// the receiver to say, who knows the request.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where there are fewer, or for one that the server may not send.
    pub fn decode(headers: Headers, bytes: &[u8]) -> Result<Self, Malformed> {
        Self::len(headers, bytes)?;
        let mut fields = Fields::new("reply", bytes);
        let magic = fields.u32()?;
        if magic == NBD_SIMPLE_REPLY_MAGIC {
            return Ok(ReplyHeader::Simple { error: ErrorNumber(fields.u32()?), cookie: fields.u64()? });
        }
        let (flags, kind, cookie) = (ReplyFlags(fields.u16()?), ChunkType(fields.u16()?), fields.u64()?);
        let (offset, length) = match headers {
            Headers::Extended => (fields.u64()?, fields.u64()?),
            _ => (0, fields.u32()?.into()),
        };
        Ok(ReplyHeader::Chunk { flags, kind, cookie, offset, length })
    }
}
