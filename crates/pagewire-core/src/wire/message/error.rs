//! The answer to a request that failed.

use super::super::cursor::{Fields, put_string};
use super::super::{FrameType, Malformed};

/// The longest text of an error, in bytes; a longer one is cut.
const MAX_TEXT: usize = 1024;

/// Why a request failed, and whether it may succeed later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {text}")]
pub struct RemoteError {
    /// What sort of failure it is.
    pub kind: RemoteErrorKind,
    /// Whether the same request may succeed if it is made again later.
    pub retry: bool,
    /// For [`RemoteErrorKind::Stale`], the region's newest epoch; 0 else.
    pub epoch: u64,
    /// What a person should know: at most 1024 bytes.
    pub text: String,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// What sort of failure an error is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum RemoteErrorKind {
            $($(#[$doc])* $name,)*
            /// A kind of a later version.
            Other(u16),
        }

        impl RemoteErrorKind {
            /// The kind's number on the wire.
            pub fn code(self) -> u16 {
                match self {
                    $(Self::$name => $code,)*
                    Self::Other(code) => code,
                }
            }

            /// The kind with this number.
            pub fn from_code(code: u16) -> Self {
                match code {
                    $($code => Self::$name,)*
                    other => Self::Other(other),
                }
            }
        }

        impl std::fmt::Display for RemoteErrorKind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $(Self::$name => f.write_str($text),)*
                    Self::Other(code) => write!(f, "error {code}"),
                }
            }
        }
    };
}

kinds! {
    /// The frame breaks the protocol.
    Protocol = 1, "protocol error";
    /// No common version.
    Version = 2, "no common version";
    /// The receiver does not know or does not do this.
    Unsupported = 3, "unsupported";
    /// There is no such region.
    NotFound = 4, "not found";
    /// The epoch that was named cannot be given any more.
    Stale = 5, "stale epoch";
    /// The region is not the one that it was: another identity, or changed behind the server's back.
    Changed = 6, "changed";
    /// The store failed.
    Io = 7, "I/O error";
    /// A range passes the end of the region.
    OutOfRange = 8, "out of range";
    /// Too many of something at once.
    Busy = 9, "busy";
    /// Not permitted.
    Denied = 10, "denied";
    /// What the server itself depends on cannot be reached now.
    Unavailable = 11, "unavailable";
    /// The request was cancelled.
    Cancelled = 12, "cancelled";
    /// The lease is somebody else's.
    Fenced = 13, "fenced";
    /// No space is left.
    NoSpace = 14, "no space left";
}

impl RemoteError {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.kind.code().to_le_bytes());
        out.push(u8::from(self.retry));
        out.extend_from_slice(&self.epoch.to_le_bytes());
        put_string(out, &self.text, MAX_TEXT);
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(FrameType::ERROR.name(), body);
        let kind = RemoteErrorKind::from_code(fields.u16()?);
        let retry = fields.flag()?;
        let epoch = fields.u64()?;
        let text = fields.string(MAX_TEXT)?;
        fields.end()?;
        Ok(Self { kind, retry, epoch, text })
    }
}
