//! Signals as something to wait for, instead of handlers that interrupt any thread anywhere.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

pub use libc::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::syscall::{check, invalid, new_descriptor, retry_count};

/// Signals that are blocked and delivered through a descriptor, readable when one is pending.
pub struct Signals {
    fd: OwnedFd,
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks the signals in the calling thread, and in those that it starts from now on, and watches them.
    ///
    /// Call it before any other thread starts: a thread that does not block a signal takes it in the usual way, which
    /// for most ends the process. Blocking outlasts the value, and processes that are started inherit it, unless one
    /// asks otherwise ([`Signals::unblock_in`]).
    ///
    /// # Errors
    ///
    /// Invalid input for a number that is no signal.
    pub fn block_and_watch(signals: &[i32]) -> io::Result<Signals> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set; it cannot fail.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in signals {
            // SAFETY: changes the set, which is initialised; checks the number.
            check(unsafe { libc::sigaddset(&mut set, *signal) })?;
        }
        // SAFETY: reads the set and changes the calling thread's mask only.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        // SAFETY: reads the set and returns a new descriptor.
        let fd = unsafe { new_descriptor(|| libc::signalfd(-1, &set, libc::SFD_CLOEXEC)) }?;
        Ok(Signals { fd, set })
    }

    /// Has the process that the command starts take these signals as usual, so that it can be ended with them.
    pub fn unblock_in<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let set = self.set;
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                match libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) {
                    0 => Ok(()),
                    error => Err(io::Error::from_raw_os_error(error)),
                }
            })
        }
    }

    /// Waits for one of the signals and returns its number.
    ///
    /// # Errors
    ///
    /// What read answers.
    pub fn wait(&self) -> io::Result<i32> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel writes at most `size` bytes to the struct.
        let read =
            retry_count(|| unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) })?;
        if read != size {
            return Err(invalid("a signalfd gave part of a signal"));
        }
        // SAFETY: filled by the kernel; the struct is of integers.
        let info = unsafe { info.assume_init() };
        Ok(info.ssi_signo as i32)
    }
}

/// Has the process that the command starts take all signals as usual, whatever the one that starts it blocks.
pub fn unblock_all_in(command: &mut Command) -> &mut Command {
    let unblock = || {
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: initialises the set; it cannot fail.
        unsafe { libc::sigemptyset(none.as_mut_ptr()) };
        // SAFETY: reads the set and changes the mask of the calling thread, the only one of a new process.
        match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(unblock) }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").field("fd", &self.fd).finish_non_exhaustive()
    }
}
