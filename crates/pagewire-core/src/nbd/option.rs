//! Options: what a client asks for in the handshake.

use super::fields::{Fields, put_counted_string};
use super::numbers::IHAVEOPT;
use super::{InfoType, MAX_STRING, Malformed, OptionType};

/// What stands before the data of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub option: OptionType,
    /// How many bytes of data follow.
    pub length: u32,
}

/// The most queries for metadata contexts that one option may carry. They also have to fit in
/// [`MAX_OPTION`](super::MAX_OPTION).
const MAX_QUERIES: u32 = 1024;

impl OptionHeader {
    /// Its length, in bytes.
    pub const LEN: usize = 16;

    /// As bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&IHAVEOPT.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.0.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// From bytes. How much data is too much is for the receiver to say.
    ///
    /// # Errors
    ///
    /// [`Malformed`] without the magic number.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("option", bytes);
        fields.magic64(IHAVEOPT)?;
        Ok(Self { option: OptionType(fields.u32()?), length: fields.u32()? })
    }
}

/// An option with its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionRequest {
    /// `NBD_OPT_EXPORT_NAME`: to use the export of this name.
    ExportName(String),
    /// `NBD_OPT_ABORT`: to end the handshake.
    Abort,
    /// `NBD_OPT_LIST`: the names of the exports.
    List,
    /// `NBD_OPT_STARTTLS`: TLS.
    StartTls,
    /// `NBD_OPT_INFO`: what there is to know of an export.
    Info(InfoRequest),
    /// `NBD_OPT_GO`: the same, and to use it.
    Go(InfoRequest),
    /// `NBD_OPT_STRUCTURED_REPLY`: structured replies.
    StructuredReply,
    /// `NBD_OPT_LIST_META_CONTEXT`: which metadata contexts there are.
    ListMetaContext(MetaContextRequest),
    /// `NBD_OPT_SET_META_CONTEXT`: to have metadata contexts.
    SetMetaContext(MetaContextRequest),
    /// `NBD_OPT_EXTENDED_HEADERS`: extended headers.
    ExtendedHeaders,
    /// One that is not known.
    Unknown(OptionType),
}

/// What is to be known of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    /// Its name; an empty one is the default export's.
    pub name: String,
    /// What the client would like to know besides size and flags.
    pub wanted: Vec<InfoType>,
}

/// Metadata contexts of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContextRequest {
    /// The export's name.
    pub name: String,
    /// Which contexts, by name or by what the namespace has for a pattern.
    pub queries: Vec<String>,
}

impl OptionRequest {
    /// Which option it is.
    pub fn option(&self) -> OptionType {
        match self {
            Self::ExportName(_) => OptionType::EXPORT_NAME,
            Self::Abort => OptionType::ABORT,
            Self::List => OptionType::LIST,
            Self::StartTls => OptionType::STARTTLS,
            Self::Info(_) => OptionType::INFO,
            Self::Go(_) => OptionType::GO,
            Self::StructuredReply => OptionType::STRUCTURED_REPLY,
            Self::ListMetaContext(_) => OptionType::LIST_META_CONTEXT,
            Self::SetMetaContext(_) => OptionType::SET_META_CONTEXT,
            Self::ExtendedHeaders => OptionType::EXTENDED_HEADERS,
            Self::Unknown(option) => *option,
        }
    }

    /// Appends the option, header and data. Strings are cut where they are longer than [`MAX_STRING`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; OptionHeader::LEN]);
        match self {
            Self::ExportName(name) => out.extend_from_slice(super::fields::cut(name).as_bytes()),
            Self::Info(request) | Self::Go(request) => {
                put_counted_string(out, &request.name);
                out.extend_from_slice(&(request.wanted.len() as u16).to_be_bytes());
                request.wanted.iter().for_each(|info| out.extend_from_slice(&info.0.to_be_bytes()));
            }
            Self::ListMetaContext(request) | Self::SetMetaContext(request) => {
                put_counted_string(out, &request.name);
                out.extend_from_slice(&(request.queries.len() as u32).to_be_bytes());
                request.queries.iter().for_each(|query| put_counted_string(out, query));
            }
            Self::Abort
            | Self::List
            | Self::StartTls
            | Self::StructuredReply
            | Self::ExtendedHeaders
            | Self::Unknown(_) => {}
        }
        let length = (out.len() - start - OptionHeader::LEN) as u32;
        let header = OptionHeader { option: self.option(), length }.encode();
        out[start..start + OptionHeader::LEN].copy_from_slice(&header);
    }

    /// The option of a header and its data. Data of an unknown option are not looked at.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where the data are not what the option demands; the next option can be read.
    pub fn decode(option: OptionType, data: &[u8]) -> Result<Self, Malformed> {
        let fields = Fields::new(option.name().unwrap_or("option"), data);
        match option {
            OptionType::EXPORT_NAME => Ok(Self::ExportName(fields.rest_as_string()?)),
            // To be ignored, whatever comes with it.
            OptionType::ABORT => Ok(Self::Abort),
            OptionType::LIST => fields.end().map(|()| Self::List),
            OptionType::STARTTLS => fields.end().map(|()| Self::StartTls),
            OptionType::STRUCTURED_REPLY => fields.end().map(|()| Self::StructuredReply),
            OptionType::EXTENDED_HEADERS => fields.end().map(|()| Self::ExtendedHeaders),
            OptionType::INFO => InfoRequest::decode(fields).map(Self::Info),
            OptionType::GO => InfoRequest::decode(fields).map(Self::Go),
            OptionType::LIST_META_CONTEXT => MetaContextRequest::decode(fields).map(Self::ListMetaContext),
            OptionType::SET_META_CONTEXT => MetaContextRequest::decode(fields).map(Self::SetMetaContext),
            _ => Ok(Self::Unknown(option)),
        }
    }
}

impl InfoRequest {
    fn decode(mut fields: Fields<'_>) -> Result<Self, Malformed> {
        let name = fields.counted_string()?;
        let count = usize::from(fields.u16()?);
        if count * 2 != fields.left() {
            let left = fields.left();
            return Err(fields.bad(format!("{count} information requests in {left} bytes")));
        }
        let wanted = (0..count).map(|_| fields.u16().map(InfoType)).collect::<Result<_, _>>()?;
        Ok(Self { name, wanted })
    }
}

impl MetaContextRequest {
    fn decode(mut fields: Fields<'_>) -> Result<Self, Malformed> {
        let name = fields.counted_string()?;
        let count = fields.u32()?;
        if count > MAX_QUERIES {
            return Err(fields.bad(format!("{count} queries, where {MAX_QUERIES} are allowed")));
        }
        // Each takes its length at least, so that a count never makes the reader reserve more than came.
        if fields.left() < count as usize * 4 || fields.left() > count as usize * (4 + MAX_STRING) {
            let left = fields.left();
            return Err(fields.bad(format!("{count} queries in {left} bytes")));
        }
        let queries = (0..count).map(|_| fields.counted_string()).collect::<Result<_, _>>()?;
        fields.end()?;
        Ok(Self { name, queries })
    }
}
