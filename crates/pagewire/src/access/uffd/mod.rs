//! userfaultfd: a region mapped into memory, pulled on page faults and in the background.
//!
//! - [`mapping`]: a region in this process's memory, as bytes.
//! - [`writable`]: the same to write to, and [`tracked`], its memory.
//! - [`handler`]: page faults of other processes: VM monitors that restore snapshots.
//! - [`resolver`]: the thread that reads faults, which both use.
//!
//! The thread that reads faults only submits; it never touches the memory that it is responsible
//! for, or it would wait for itself. What comes back is placed by the thread that received it.

mod guest;
mod handler;
mod handshake;
mod live;
mod mapping;
mod own;
mod resolver;
mod tracked;
mod writable;

pub use handler::{Handler, HandlerOptions, OpenRegion};
pub use handshake::{GuestMapping, parse_mappings};
pub use mapping::{MapOptions, Mapping};
pub use writable::{Tracking, WritableMapping, WriteOptions};

use pagewire_sys::uffd::PlaceError;

use crate::error::{Error, ErrorKind};

/// What poisoning pages comes to on a kernel before 6.6, which cannot: whoever waits for them goes on
/// waiting until they can be had after all, and the log says so.
fn poisoned(result: Result<(), PlaceError>) -> Result<(), PlaceError> {
    match result {
        Err(PlaceError::Os(error)) if matches!(error.raw_os_error(), Some(EINVAL | ENOTTY)) => {
            cannot_poison();
            Ok(())
        }
        result => result,
    }
}

fn cannot_poison() {
    tracing::error!("this kernel cannot poison pages (Linux 6.6 can); whoever waits for them waits on");
}

const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;
const ENOTTY: i32 = 25;

/// The error that a placement's failure is to the engine.
fn place_error(error: &PlaceError) -> Error {
    match error {
        PlaceError::Gone => Error::new(ErrorKind::Cancelled, "the memory is gone"),
        // No memory left, now; anything else is no better for being tried again.
        PlaceError::Os(error) if error.raw_os_error() == Some(ENOMEM) => {
            Error::new(ErrorKind::Io, "there is no memory left to place pages in").with_retry(true)
        }
        error => Error::new(ErrorKind::Io, "cannot place pages").because(error),
    }
}
