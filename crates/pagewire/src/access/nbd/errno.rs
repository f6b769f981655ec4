//! What a client is told of an error.

use pagewire_core::nbd::{ErrorNumber, OptionReplyType};

use crate::error::{Error, ErrorKind};

/// The number that a request is answered with that has failed like this.
pub(super) fn to_number(error: &Error) -> ErrorNumber {
    match error.kind() {
        ErrorKind::Denied | ErrorKind::Unsupported | ErrorKind::Fenced => ErrorNumber::EPERM,
        ErrorKind::OutOfRange | ErrorKind::Usage => ErrorNumber::EINVAL,
        ErrorKind::NoSpace => ErrorNumber::ENOSPC,
        _ => ErrorNumber::EIO,
    }
}

/// The reply to an option that has failed like this.
pub(super) fn to_reply(error: &Error) -> OptionReplyType {
    match error.kind() {
        ErrorKind::NotFound => OptionReplyType::ERR_UNKNOWN,
        ErrorKind::Unsupported => OptionReplyType::ERR_PLATFORM,
        _ => OptionReplyType::ERR_POLICY,
    }
}
