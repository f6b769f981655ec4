//! What a request asks for, and whether it may: the rules of the transmission phase, as a server keeps
//! them.

use super::request::StatusPayload;
use super::{CommandFlags, CommandType, ErrorNumber, Headers, MAX_PAYLOAD, Request, TransmissionFlags};
use crate::chunk::ByteRange;

/// What was agreed on for one connection's transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The export's size, in bytes.
    pub size: u64,
    /// What it can do, as the client was told.
    pub flags: TransmissionFlags,
    /// Which headers are used.
    pub headers: Headers,
    /// What offsets and lengths must be multiples of, in bytes. The end of the export is allowed, too.
    pub minimum: u32,
    /// Whether the client has selected a metadata context.
    pub contexts: bool,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Bytes.
    Read {
        /// Which. May be empty.
        range: ByteRange,
        /// Whether they are wanted in one chunk.
        whole: bool,
    },
    /// To have the payload written.
    Write {
        /// Where. May be empty.
        range: ByteRange,
        /// Whether it is to be durable when it is answered.
        fua: bool,
    },
    /// To have zeroes written.
    WriteZeroes {
        /// Where. May be empty.
        range: ByteRange,
        /// Whether it is to be durable when it is answered.
        fua: bool,
        /// Whether they are to take up room.
        no_hole: bool,
        /// Whether they are to cost less than to write them, or fail.
        fast: bool,
    },
    /// To forget bytes.
    Trim {
        /// Which. May be empty.
        range: ByteRange,
        /// Whether it is to be durable when it is answered.
        fua: bool,
    },
    /// To have bytes ready.
    Cache(ByteRange),
    /// That what was written is durable.
    Flush,
    /// What the metadata contexts say.
    BlockStatus {
        /// Of which bytes: one at least.
        range: ByteRange,
        /// Whether one extent is enough.
        one: bool,
    },
    /// The end.
    Disconnect,
}

/// Why a request is refused. The connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The error that it is answered with.
    pub error: ErrorNumber,
    /// The same for people.
    pub reason: &'static str,
}

const fn refuse<T>(error: ErrorNumber, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { error, reason })
}

/// Whether a payload of so many bytes is taken in at all. Who sends a longer one is not listened to any
/// further.
pub const fn is_bearable(payload: u64) -> bool {
    payload <= MAX_PAYLOAD as u64
}

impl Request {
    /// What the request asks for. The length of a BLOCK_STATUS request with a payload is not known before
    /// that was read; it goes on with [`Terms::status`].
    ///
    /// # Errors
    ///
    /// [`Refusal`] for what the specification does not allow under these terms. Its payload must be read in
    /// any case.
    pub fn parse(&self, terms: &Terms) -> Result<Command, Refusal> {
        use CommandFlags as Flags;
        if self.flags.contains(Flags::PAYLOAD_LEN) {
            let may = match self.command {
                CommandType::WRITE => true,
                CommandType::BLOCK_STATUS => terms.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD),
                _ => false,
            };
            if !terms.headers.extended() || !may {
                return refuse(ErrorNumber::EINVAL, "the request has no payload");
            }
        }
        let fua = self.flags.contains(Flags::FUA);
        match self.command {
            CommandType::READ => {
                self.allow(terms, Flags::DF, "")?;
                let whole = self.flags.contains(Flags::DF);
                if self.length > u64::from(MAX_PAYLOAD) {
                    let error = if whole { ErrorNumber::EOVERFLOW } else { ErrorNumber::EINVAL };
                    return refuse(error, "more bytes than one read may ask for");
                }
                Ok(Command::Read { range: self.range(terms, ErrorNumber::EINVAL)?, whole })
            }
            CommandType::WRITE => {
                self.allow(terms, Flags::PAYLOAD_LEN, "the export cannot be written to")?;
                Ok(Command::Write { range: self.range(terms, ErrorNumber::ENOSPC)?, fua })
            }
            CommandType::WRITE_ZEROES if terms.offers(TransmissionFlags::SEND_WRITE_ZEROES) => {
                self.allow(terms, Flags::NO_HOLE.with(Flags::FAST_ZERO), "the export cannot be written to")?;
                let (no_hole, fast) =
                    (self.flags.contains(Flags::NO_HOLE), self.flags.contains(Flags::FAST_ZERO));
                Ok(Command::WriteZeroes {
                    range: self.range(terms, ErrorNumber::ENOSPC)?,
                    fua,
                    no_hole,
                    fast,
                })
            }
            CommandType::TRIM if terms.offers(TransmissionFlags::SEND_TRIM) => {
                self.allow(terms, Flags::NONE, "the export cannot be written to")?;
                Ok(Command::Trim { range: self.range(terms, ErrorNumber::EINVAL)?, fua })
            }
            CommandType::CACHE => {
                self.allow(terms, Flags::NONE, "")?;
                Ok(Command::Cache(self.range(terms, ErrorNumber::EINVAL)?))
            }
            CommandType::FLUSH => {
                self.allow(terms, Flags::NONE, "")?;
                if self.offset != 0 || self.length != 0 {
                    return refuse(ErrorNumber::EINVAL, "a flush has neither offset nor length");
                }
                Ok(Command::Flush)
            }
            CommandType::BLOCK_STATUS => {
                self.allow(terms, Flags::REQ_ONE.with(Flags::PAYLOAD_LEN), "")?;
                let one = self.flags.contains(Flags::REQ_ONE);
                if self.flags.contains(Flags::PAYLOAD_LEN) {
                    // The payload says how long.
                    let offset = self.offset.min(terms.size);
                    return Ok(Command::BlockStatus { range: ByteRange::new(offset, offset), one });
                }
                terms.status(self.offset, self.length, one)
            }
            CommandType::DISC => Ok(Command::Disconnect),
            _ => refuse(ErrorNumber::EINVAL, "the command is not known"),
        }
    }

    /// Refuses flags that the command does not have, and to write (what `writing` says then) where nobody can.
    fn allow(&self, terms: &Terms, flags: CommandFlags, writing: &'static str) -> Result<(), Refusal> {
        if !writing.is_empty() && terms.flags.contains(TransmissionFlags::READ_ONLY) {
            return refuse(ErrorNumber::EPERM, writing);
        }
        let mut allowed = flags;
        allowed = allowed.with_if(CommandFlags::FUA, terms.offers(TransmissionFlags::SEND_FUA));
        if !terms.offers(TransmissionFlags::SEND_DF) {
            allowed = allowed.without(CommandFlags::DF);
        }
        if !terms.offers(TransmissionFlags::SEND_FAST_ZERO) {
            allowed = allowed.without(CommandFlags::FAST_ZERO);
        }
        if !self.flags.is_within(allowed) {
            return refuse(ErrorNumber::EINVAL, "the command does not have these flags");
        }
        Ok(())
    }

    fn range(&self, terms: &Terms, beyond: ErrorNumber) -> Result<ByteRange, Refusal> {
        terms.range(self.offset, self.length, beyond)
    }
}

impl Terms {
    fn offers(&self, flag: TransmissionFlags) -> bool {
        self.flags.contains(flag)
    }

    /// What a BLOCK_STATUS request of `length` bytes from `offset` on asks for.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where no context is selected, and for bytes that there are not.
    pub fn status(&self, offset: u64, length: u64, one: bool) -> Result<Command, Refusal> {
        if !self.contexts {
            return refuse(ErrorNumber::EINVAL, "no metadata context is selected");
        }
        let range = self.range(offset, length, ErrorNumber::EINVAL)?;
        if range.is_empty() {
            return refuse(ErrorNumber::EINVAL, "no byte is asked about");
        }
        Ok(Command::BlockStatus { range, one })
    }

    /// The same for one whose payload says how many bytes and which contexts of `known` ones.
    ///
    /// # Errors
    ///
    /// [`Refusal`] besides for contexts that are not known or named twice.
    pub fn status_of(
        &self,
        offset: u64,
        payload: &StatusPayload,
        known: &[u32],
        one: bool,
    ) -> Result<Command, Refusal> {
        let ids = &payload.contexts;
        let twice = |at: usize| ids[..at].contains(&ids[at]);
        // No more than there are, so that this takes little.
        if ids.is_empty() || ids.len() > known.len() || !ids.iter().all(|id| known.contains(id)) {
            return refuse(ErrorNumber::EINVAL, "not contexts that are selected");
        }
        if (0..ids.len()).any(twice) {
            return refuse(ErrorNumber::EINVAL, "a context is named twice");
        }
        self.status(offset, payload.length, one)
    }

    fn range(&self, offset: u64, length: u64, beyond: ErrorNumber) -> Result<ByteRange, Refusal> {
        let range = match ByteRange::checked(offset, length) {
            Some(range) if range.end <= self.size => range,
            _ => return refuse(beyond, "bytes beyond the end of the export"),
        };
        let is_multiple = |at: u64| at.is_multiple_of(self.minimum.max(1).into()) || at == self.size;
        if !is_multiple(range.start) || !is_multiple(range.end) {
            return refuse(ErrorNumber::EINVAL, "not a multiple of the minimum block size");
        }
        Ok(range)
    }
}
