//! How a connection begins, and the answer to the one option that has a form of its own.

use super::fields::Fields;
use super::numbers::{IHAVEOPT, NBDMAGIC};
use super::{ClientFlags, ExportInfo, HandshakeFlags, Malformed, TransmissionFlags};

/// What a server says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// What the server can do.
    pub flags: HandshakeFlags,
}

impl Greeting {
    /// Its length, in bytes.
    pub const LEN: usize = 18;

    /// As bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&NBDMAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&IHAVEOPT.to_be_bytes());
        bytes[16..18].copy_from_slice(&self.flags.0.to_be_bytes());
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where no server speaks newstyle negotiation; oldstyle is not spoken any more.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("greeting", bytes);
        fields.magic64(NBDMAGIC)?;
        fields.magic64(IHAVEOPT)?;
        Ok(Self { flags: HandshakeFlags(fields.u16()?) })
    }
}

impl ClientFlags {
    /// The length of what a client says first, in bytes.
    pub const LEN: usize = 4;

    /// As bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        self.0.to_be_bytes()
    }

    /// From bytes, whatever they are.
    pub fn decode(bytes: [u8; Self::LEN]) -> Self {
        Self(u32::from_be_bytes(bytes))
    }
}

/// The answer to `NBD_OPT_EXPORT_NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportNameReply {
    /// The size of the export, in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl ExportNameReply {
    /// Its length without zeroes, in bytes.
    pub const LEN: usize = 10;

    /// How many zeroes follow unless `NBD_FLAG_C_NO_ZEROES` was negotiated.
    pub const ZEROES: usize = 124;

    /// Appends it as bytes.
    pub fn encode(self, no_zeroes: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.size.to_be_bytes());
        out.extend_from_slice(&self.flags.0.to_be_bytes());
        if !no_zeroes {
            out.extend_from_slice(&[0; Self::ZEROES]);
        }
    }

    /// From its bytes without the zeroes.
    ///
    /// # Errors
    ///
    /// [`Malformed`] as [`ExportInfo::check`] has it.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("reply to NBD_OPT_EXPORT_NAME", bytes);
        let (size, flags) = (fields.u64()?, TransmissionFlags(fields.u16()?));
        ExportInfo::new(size, flags).check()?;
        Ok(Self { size, flags })
    }
}
