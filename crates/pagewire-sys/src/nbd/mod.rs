//! NBD devices of the kernel: handing it connected sockets, over which it then speaks NBD to make a block device of
//! what answers.
//!
//! By generic netlink ([`Control`]) a device is configured with one message, and goes on without the process that has
//! sent it. Where the kernel does not have that (before Linux 4.12), it is done by ioctl ([`Bound`]), which takes a
//! thread for as long as the device is there.
//!
//! Who may configure devices has `CAP_SYS_ADMIN`; the module `nbd` has to be loaded.

mod ioctl;
mod message;
mod netlink;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

pub use ioctl::{Bound, disconnect};
pub use netlink::{Control, Deaths};

/// What a device is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Its length, in bytes: a multiple of the block size.
    pub length: u64,
    /// The least that it is read and written by, in bytes: a power of two from 512 to the size of a page.
    pub block_size: u64,
    /// What is said of the export: the transmission flags of the protocol.
    pub flags: u16,
    /// After how long without an answer a connection is given up, and what was asked for on it is asked for on
    /// another one, or fails where there is none. Whole seconds, rounded up; never, where there is none.
    pub timeout: Option<Duration>,
    /// For how long requests wait for another connection once all are lost; zero fails them at once. Whole seconds,
    /// rounded up.
    pub dead_connection_timeout: Duration,
    /// By what the device is told from those of others, in /sys: for Linux 5.14 and later.
    pub backend: String,
}

/// Whether the kernel itself uses the device at `path`: it is mounted, in whichever namespace, a part of another device,
/// or swapped to.
///
/// # Errors
///
/// What open answers.
pub fn is_claimed(path: &Path) -> io::Result<bool> {
    // Of a device, O_EXCL asks for it alone, as the kernel itself does.
    match File::options().read(true).custom_flags(libc::O_EXCL).open(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
