//! What a program is told of an error.

use fuser::Errno;

use crate::error::{Error, ErrorKind};

/// The number that stands for an error.
pub(super) fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::Denied => Errno::EROFS,
        ErrorKind::OutOfRange | ErrorKind::Usage => Errno::EINVAL,
        ErrorKind::Busy => Errno::EBUSY,
        ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        ErrorKind::NoSpace => Errno::ENOSPC,
        // Somebody else writes now: what this mount has is not the region any more.
        ErrorKind::Fenced => Errno::ESTALE,
        ErrorKind::Io
        | ErrorKind::Stale
        | ErrorKind::Changed
        | ErrorKind::Unavailable
        | ErrorKind::Protocol
        | ErrorKind::Cancelled => Errno::EIO,
    }
}
