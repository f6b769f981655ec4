//! What the bare system calls reach on this machine: nothing but the steps that must happen, without
//! a protocol, without anything that could fail and go on. Nothing that does more can be faster, so
//! these are what benchmarks compare with.
//!
//! - [`pull`]: how fast a cold region comes from a file, over TCP, into memory.
//! - [`fault`]: how long one page takes that is touched.
//!
//! The serving side is a process of its own: this program, started again. Its `main` begins with
//! [`serve_if_asked`].

mod fault;
mod pull;

use std::ffi::OsString;
use std::io;

pub use fault::{FaultLimit, fault};
pub use pull::{DEFAULT_BLOCK, PullLimit, pull};

use crate::child;

/// Becomes the server of a measurement if this process was started by one; else returns.
pub fn serve_if_asked() {
    for (role, serve) in [(pull::ROLE, pull::serve as fn(&[OsString]) -> _), (fault::ROLE, fault::serve)] {
        if let Some(arguments) = child::arguments_of(role) {
            child::run(|| serve(&arguments));
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// The number that the parent wrote as an argument.
fn number(argument: &OsString) -> io::Result<usize> {
    argument.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| invalid("an argument is no number"))
}
