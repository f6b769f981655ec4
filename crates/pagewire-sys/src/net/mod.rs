//! What it takes to emulate a link between two hosts within one process: network namespaces, and TUN devices whose
//! packets a thread carries from one to the other.
//!
//! Everything lives as long as its descriptors: nothing is left behind when the process dies.

mod interface;
mod tun;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub use self::interface::{configure, loopback_up};
pub use self::tun::{Tun, VNET_HEADER_LEN};
use crate::syscall::check;

/// A network namespace without a name. It exists as long as this, a thread, a socket or a device in it does.
#[derive(Debug)]
pub struct NetNamespace {
    fd: OwnedFd,
}

impl NetNamespace {
    /// A fresh namespace, with nothing in it but a loopback device that is down. The calling thread stays where it
    /// is.
    ///
    /// # Errors
    ///
    /// Permission denied without `CAP_SYS_ADMIN`.
    pub fn create() -> io::Result<NetNamespace> {
        let make = || {
            // SAFETY: takes a number only. It changes where the new sockets of this thread are, and this thread
            // ends at once.
            check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
            File::open("/proc/thread-self/ns/net")
        };
        let file = on_new_thread(make)??;
        Ok(NetNamespace { fd: file.into() })
    }

    /// Runs `work` on a new thread inside the namespace and returns its result; a panic of it goes on here.
    /// Threads that it starts are inside, too.
    ///
    /// # Errors
    ///
    /// When the thread cannot start or enter.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_new_thread(|| {
            enter_namespace(self.as_fd())?;
            Ok(work())
        })?
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Moves the calling thread into a network namespace. Sockets that it has stay in theirs.
///
/// # Errors
///
/// Invalid input for a descriptor that is none; permission denied without `CAP_SYS_ADMIN`.
pub fn enter_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes numbers only; it changes where the new sockets of this thread are.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// What enters a namespace does so on a thread of its own, as there may be no way back.
fn on_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
