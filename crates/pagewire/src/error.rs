//! The one error of the library: what failed, on what, why, and whether trying again can help.

use std::fmt;
use std::io;

use pagewire_core::wire::{Malformed, RemoteError, RemoteErrorKind};

/// What the library's operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An address, a size or an option that makes no sense.
    Usage,
    /// There is no such file, region or peer.
    NotFound,
    /// Not permitted, by the system or by a peer.
    Denied,
    /// The store failed.
    Io,
    /// A range passes the end of the region.
    OutOfRange,
    /// The epoch that was asked for cannot be given any more.
    Stale,
    /// The region is not the one that it was: another identity, or changed behind its server's back.
    Changed,
    /// The peer or the store cannot be reached, or does not answer.
    Unavailable,
    /// A peer broke the protocol.
    Protocol,
    /// This store, peer or kernel cannot do that.
    Unsupported,
    /// Too many of something at once, or somebody else holds it.
    Busy,
    /// Given up by the caller, or because the region was closed.
    Cancelled,
    /// Somebody else has the lease of the region now: whoever is told so writes no more.
    Fenced,
    /// There is no room left: in the store, or past the capacity of the region.
    NoSpace,
}

impl ErrorKind {
    /// The kind that a peer is told.
    pub(crate) fn to_wire(self) -> RemoteErrorKind {
        match self {
            ErrorKind::Usage | ErrorKind::Protocol => RemoteErrorKind::Protocol,
            ErrorKind::NotFound => RemoteErrorKind::NotFound,
            ErrorKind::Denied => RemoteErrorKind::Denied,
            ErrorKind::Io => RemoteErrorKind::Io,
            ErrorKind::OutOfRange => RemoteErrorKind::OutOfRange,
            ErrorKind::Stale => RemoteErrorKind::Stale,
            ErrorKind::Changed => RemoteErrorKind::Changed,
            ErrorKind::Unavailable => RemoteErrorKind::Unavailable,
            ErrorKind::Unsupported => RemoteErrorKind::Unsupported,
            ErrorKind::Busy => RemoteErrorKind::Busy,
            ErrorKind::Cancelled => RemoteErrorKind::Cancelled,
            ErrorKind::Fenced => RemoteErrorKind::Fenced,
            ErrorKind::NoSpace => RemoteErrorKind::NoSpace,
        }
    }

    /// The kind that a peer told.
    pub(crate) fn from_wire(kind: RemoteErrorKind) -> Self {
        match kind {
            RemoteErrorKind::Protocol | RemoteErrorKind::Version => ErrorKind::Protocol,
            RemoteErrorKind::Unsupported => ErrorKind::Unsupported,
            RemoteErrorKind::NotFound => ErrorKind::NotFound,
            RemoteErrorKind::Stale => ErrorKind::Stale,
            RemoteErrorKind::Changed => ErrorKind::Changed,
            RemoteErrorKind::OutOfRange => ErrorKind::OutOfRange,
            RemoteErrorKind::Busy => ErrorKind::Busy,
            RemoteErrorKind::Denied => ErrorKind::Denied,
            RemoteErrorKind::Unavailable => ErrorKind::Unavailable,
            RemoteErrorKind::Cancelled => ErrorKind::Cancelled,
            RemoteErrorKind::Fenced => ErrorKind::Fenced,
            RemoteErrorKind::NoSpace => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        }
    }
}

/// What failed, on what, why, and whether trying again can help.
///
/// It clones cheaply enough for one failure to be told to everybody who waited for the same bytes.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    retry: bool,
    what: String,
    cause: Option<String>,
}

impl Error {
    /// An error that says `what` failed, on what.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        let retry = matches!(kind, ErrorKind::Unavailable | ErrorKind::Busy);
        Self { kind, retry, what: what.into(), cause: None }
    }

    /// The same with the cause that a lower layer gave.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// The same, with the word on trying again that somebody who knows better gave.
    #[must_use]
    pub fn with_retry(mut self, retry: bool) -> Self {
        self.retry = retry;
        self
    }

    /// The same failure seen from further out: `context` stands before what failed.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.what = format!("{context}: {}", self.what);
        self
    }

    /// An error of the operating system while doing `what`.
    pub fn io(what: impl Into<String>, cause: &io::Error) -> Self {
        let kind = match cause.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            io::ErrorKind::WouldBlock | io::ErrorKind::AddrInUse | io::ErrorKind::ResourceBusy => {
                ErrorKind::Busy
            }
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::TimedOut => ErrorKind::Unavailable,
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                ErrorKind::NoSpace
            }
            _ => ErrorKind::Io,
        };
        Self::new(kind, what).because(cause)
    }

    /// What sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same may succeed if it is tried again later.
    pub fn can_retry(&self) -> bool {
        self.retry
    }

    /// The error as a peer is told.
    pub(crate) fn to_wire(&self, epoch: u64) -> RemoteError {
        RemoteError { kind: self.kind.to_wire(), retry: self.retry, epoch, text: self.to_string() }
    }

    /// The error that a peer told.
    pub(crate) fn from_wire(error: RemoteError) -> Self {
        Self { kind: ErrorKind::from_wire(error.kind), retry: error.retry, what: error.text, cause: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => write!(f, "{}: {cause}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.kind)
    }
}

impl std::error::Error for Error {}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Error::new(ErrorKind::Protocol, malformed.to_string())
    }
}
