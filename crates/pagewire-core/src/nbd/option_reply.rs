//! Replies to options.

use super::fields::{Fields, cut, put_counted_string};
use super::numbers::NBD_OPTION_REPLY_MAGIC;
use super::{BlockSizes, InfoType, MAX_OPTION, Malformed, OptionReplyType, OptionType, TransmissionFlags};

/// What stands before the data of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that it answers.
    pub option: OptionType,
    /// How.
    pub kind: OptionReplyType,
    /// How many bytes of data follow.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Its length, in bytes.
    pub const LEN: usize = 20;

    /// As bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&NBD_OPTION_REPLY_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.0.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.kind.0.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// [`Malformed`] without the magic number, or with more data than [`MAX_OPTION`].
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("reply to an option", bytes);
        fields.magic64(NBD_OPTION_REPLY_MAGIC)?;
        let (option, kind) = (OptionType(fields.u32()?), OptionReplyType(fields.u32()?));
        let length = fields.u32()?;
        if length > MAX_OPTION {
            return Err(fields.bad(format!("{length} bytes of data, where {MAX_OPTION} are allowed")));
        }
        Ok(Self { option, kind, length })
    }
}

/// A reply to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionReply {
    /// `NBD_REP_ACK`: done.
    Ack,
    /// `NBD_REP_SERVER`: an export.
    Server {
        /// Its name.
        name: String,
        /// What it is, for people; may be empty.
        description: String,
    },
    /// `NBD_REP_INFO`: something about an export.
    Info(Info),
    /// `NBD_REP_META_CONTEXT`: a metadata context.
    MetaContext {
        /// What replies name it by, where it was selected.
        id: u32,
        /// Its name.
        name: String,
    },
    /// `NBD_REP_ERR_…`: the option has failed.
    Error {
        /// Why.
        kind: OptionReplyType,
        /// The same for people; may be empty.
        message: String,
    },
}

/// Something about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    /// `NBD_INFO_EXPORT`.
    Export {
        /// Its size, in bytes.
        size: u64,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// `NBD_INFO_NAME`: the server's own name for it.
    Name(String),
    /// `NBD_INFO_DESCRIPTION`: what it is, for people.
    Description(String),
    /// `NBD_INFO_BLOCK_SIZE`: the sizes of its blocks.
    BlockSize(BlockSizes),
    /// One that is not known, to be ignored.
    Unknown(InfoType),
}

impl OptionReply {
    /// What kind of reply it is.
    pub fn kind(&self) -> OptionReplyType {
        match self {
            Self::Ack => OptionReplyType::ACK,
            Self::Server { .. } => OptionReplyType::SERVER,
            Self::Info(_) => OptionReplyType::INFO,
            Self::MetaContext { .. } => OptionReplyType::META_CONTEXT,
            Self::Error { kind, .. } => *kind,
        }
    }

    /// Appends the reply to `option`, header and data. Strings are cut where they are too long.
    pub fn encode(&self, option: OptionType, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; OptionReplyHeader::LEN]);
        match self {
            Self::Ack => {}
            Self::Server { name, description } => {
                put_counted_string(out, name);
                out.extend_from_slice(cut(description).as_bytes());
            }
            Self::Info(info) => info.encode(out),
            Self::MetaContext { id, name } => {
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(cut(name).as_bytes());
            }
            Self::Error { message, .. } => out.extend_from_slice(cut(message).as_bytes()),
        }
        let length = (out.len() - start - OptionReplyHeader::LEN) as u32;
        let header = OptionReplyHeader { option, kind: self.kind(), length }.encode();
        out[start..start + OptionReplyHeader::LEN].copy_from_slice(&header);
    }

    /// The reply of a header and its data.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where the data are not what the kind demands, or the kind is none.
    pub fn decode(kind: OptionReplyType, data: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(kind.name().unwrap_or("reply to an option"), data);
        match kind {
            OptionReplyType::ACK => fields.end().map(|()| Self::Ack),
            OptionReplyType::SERVER => {
                let name = fields.counted_string()?;
                Ok(Self::Server { name, description: fields.rest_as_string()? })
            }
            OptionReplyType::INFO => Info::decode(fields).map(Self::Info),
            OptionReplyType::META_CONTEXT => {
                let id = fields.u32()?;
                Ok(Self::MetaContext { id, name: fields.rest_as_string()? })
            }
            _ if kind.is_error() => {
                // Only for people: what is wrong with it is no reason to lose the error.
                let message = String::from_utf8_lossy(fields.rest());
                Ok(Self::Error { kind, message: cut(&message).to_owned() })
            }
            _ => Err(fields.bad(format!("{kind} is no kind of reply"))),
        }
    }
}

impl Info {
    fn encode(&self, out: &mut Vec<u8>) {
        let kind = match self {
            Self::Export { .. } => InfoType::EXPORT,
            Self::Name(_) => InfoType::NAME,
            Self::Description(_) => InfoType::DESCRIPTION,
            Self::BlockSize(_) => InfoType::BLOCK_SIZE,
            Self::Unknown(kind) => *kind,
        };
        out.extend_from_slice(&kind.0.to_be_bytes());
        match self {
            Self::Export { size, flags } => {
                out.extend_from_slice(&size.to_be_bytes());
                out.extend_from_slice(&flags.0.to_be_bytes());
            }
            Self::Name(text) | Self::Description(text) => out.extend_from_slice(cut(text).as_bytes()),
            Self::BlockSize(BlockSizes { minimum, preferred, maximum }) => {
                for size in [minimum, preferred, maximum] {
                    out.extend_from_slice(&size.to_be_bytes());
                }
            }
            Self::Unknown(_) => {}
        }
    }

    fn decode(mut fields: Fields<'_>) -> Result<Self, Malformed> {
        match InfoType(fields.u16()?) {
            InfoType::EXPORT => {
                let (size, flags) = (fields.u64()?, TransmissionFlags(fields.u16()?));
                fields.end().map(|()| Self::Export { size, flags })
            }
            InfoType::NAME => Ok(Self::Name(fields.rest_as_string()?)),
            InfoType::DESCRIPTION => Ok(Self::Description(fields.rest_as_string()?)),
            InfoType::BLOCK_SIZE => {
                let (minimum, preferred, maximum) = (fields.u32()?, fields.u32()?, fields.u32()?);
                fields.end().map(|()| Self::BlockSize(BlockSizes { minimum, preferred, maximum }))
            }
            kind => Ok(Self::Unknown(kind)),
        }
    }
}
