//! Requests of the transmission phase, as they are on the wire.

use super::fields::Fields;
use super::numbers::{NBD_EXTENDED_REQUEST_MAGIC, NBD_REQUEST_MAGIC};
use super::{CommandFlags, CommandType, Malformed};

/// A request, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// How it is to be carried out.
    pub flags: CommandFlags,
    /// What it asks for.
    pub command: CommandType,
    /// What replies name it by.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How many bytes: of the export, or of payload.
    pub length: u64,
}

impl Request {
    /// The length of a compact request, in bytes.
    pub const LEN: usize = 28;

    /// The length of an extended request, in bytes.
    pub const EXTENDED_LEN: usize = 32;

    /// How long a request is, in bytes, by whether extended headers were negotiated.
    pub const fn len(extended: bool) -> usize {
        if extended { Self::EXTENDED_LEN } else { Self::LEN }
    }

    /// Appends it.
    ///
    /// # Panics
    ///
    /// If a compact request is to have more than 32 bits of length.
    pub fn encode(&self, extended: bool, out: &mut Vec<u8>) {
        let magic = if extended { NBD_EXTENDED_REQUEST_MAGIC } else { NBD_REQUEST_MAGIC };
        out.extend_from_slice(&magic.to_be_bytes());
        out.extend_from_slice(&self.flags.0.to_be_bytes());
        out.extend_from_slice(&self.command.0.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        if extended {
            out.extend_from_slice(&self.length.to_be_bytes());
        } else {
            let length = u32::try_from(self.length).expect("compact requests have 32 bits of length");
            out.extend_from_slice(&length.to_be_bytes());
        }
    }

    /// From the first [`Request::len`] bytes.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if there are fewer, or without the magic number.
    pub fn decode(extended: bool, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("request", bytes);
        fields.magic32(if extended { NBD_EXTENDED_REQUEST_MAGIC } else { NBD_REQUEST_MAGIC })?;
        Ok(Self {
            flags: CommandFlags(fields.u16()?),
            command: CommandType(fields.u16()?),
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: if extended { fields.u64()? } else { fields.u32()?.into() },
        })
    }

    /// How many bytes of payload follow.
    ///
    /// The specification demands `NBD_CMD_FLAG_PAYLOAD_LEN` of an extended WRITE. The client of qemu 10 sends it
    /// without, and with its payload all the same; a WRITE without a payload would make no sense.
    pub fn payload(&self, extended: bool) -> u64 {
        let said = extended && self.flags.contains(CommandFlags::PAYLOAD_LEN);
        if said || self.command == CommandType::WRITE { self.length } else { 0 }
    }
}

/// The payload of a BLOCK_STATUS request that chooses among the contexts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusPayload {
    /// How many bytes of the export the request is about.
    pub length: u64,
    /// Which contexts.
    pub contexts: Vec<u32>,
}

impl StatusPayload {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.length.to_be_bytes());
        self.contexts.iter().for_each(|id| out.extend_from_slice(&id.to_be_bytes()));
    }

    /// From bytes, which take up four for each context and eight.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where they do not.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("payload of NBD_CMD_BLOCK_STATUS", bytes);
        let length = fields.u64()?;
        let mut contexts = Vec::with_capacity(fields.left() / 4);
        while fields.left() > 0 {
            contexts.push(fields.u32()?);
        }
        Ok(Self { length, contexts })
    }
}
