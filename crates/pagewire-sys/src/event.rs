//! Descriptors to wait on: eventfd, pidfd, and poll(2) over them and any other.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::syscall::{check, new_descriptor, retry_count};

/// A counter that is readable while it is not zero: wakes a thread that polls.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// Zero, close-on-exec, never blocking.
    ///
    /// # Errors
    ///
    /// What eventfd answers: too many open files.
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: takes numbers and returns a new descriptor.
        let fd = unsafe { new_descriptor(|| libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) }?;
        Ok(EventFd { fd })
    }

    /// Adds one.
    ///
    /// # Errors
    ///
    /// What write answers. A counter that is full stays as it is: it signals already.
    pub fn signal(&self) -> io::Result<()> {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the kernel reads the 8 bytes.
        match retry_count(|| unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) }) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result.map(drop),
        }
    }

    /// Sets the counter to zero and returns what it was.
    ///
    /// # Errors
    ///
    /// What read answers.
    pub fn drain(&self) -> io::Result<u64> {
        let mut count = [0; 8];
        // SAFETY: the kernel writes at most the 8 bytes.
        match retry_count(|| unsafe {
            libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len())
        }) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result.map(|_| u64::from_ne_bytes(count)),
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A process: readable once it has ended. Unlike a number, it never becomes another process.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
}

impl PidFd {
    /// The process that has this number now.
    ///
    /// # Errors
    ///
    /// `ESRCH` when there is none; invalid input for a thread that is no process.
    pub fn open(pid: u32) -> io::Result<PidFd> {
        // SAFETY: takes numbers and returns a new descriptor, which is close-on-exec.
        let fd = unsafe { new_descriptor(|| libc::syscall(libc::SYS_pidfd_open, pid, 0) as libc::c_int) }?;
        Ok(PidFd { fd })
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One descriptor for [`poll`], what is asked of it, and what poll found.
#[repr(transparent)]
pub struct PollItem<'fd> {
    raw: libc::pollfd,
    fd: std::marker::PhantomData<BorrowedFd<'fd>>,
}

impl<'fd> PollItem<'fd> {
    /// Asks whether something can be read.
    pub fn readable(fd: BorrowedFd<'fd>) -> PollItem<'fd> {
        PollItem::new(fd, true, false)
    }

    /// Asks whether something can be written.
    pub fn writable(fd: BorrowedFd<'fd>) -> PollItem<'fd> {
        PollItem::new(fd, false, true)
    }

    /// Asks whether something out of the ordinary has happened: to a table of mounts, that it has changed.
    pub fn exceptional(fd: BorrowedFd<'fd>) -> PollItem<'fd> {
        let raw = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
        PollItem { raw, fd: std::marker::PhantomData }
    }

    /// Asks for both, either or neither; errors and hang-up are always reported.
    pub fn new(fd: BorrowedFd<'fd>, read: bool, write: bool) -> PollItem<'fd> {
        let events = if read { libc::POLLIN } else { 0 } | if write { libc::POLLOUT } else { 0 };
        let raw = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        PollItem { raw, fd: std::marker::PhantomData }
    }

    /// Reading would not wait.
    pub fn is_readable(&self) -> bool {
        self.raw.revents & libc::POLLIN != 0
    }

    /// Writing would not wait.
    pub fn is_writable(&self) -> bool {
        self.raw.revents & libc::POLLOUT != 0
    }

    /// The other side is gone; there may still be bytes to read.
    pub fn is_hung_up(&self) -> bool {
        self.raw.revents & libc::POLLHUP != 0
    }

    /// The descriptor has an error (also: a userfaultfd that was not opened as nonblocking).
    pub fn is_error(&self) -> bool {
        self.raw.revents & (libc::POLLERR | libc::POLLNVAL) != 0
    }

    /// Poll found anything at all.
    pub fn is_ready(&self) -> bool {
        self.raw.revents != 0
    }
}

impl std::fmt::Debug for PollItem<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PollItem(fd {}, {:#x} of {:#x})", self.raw.fd, self.raw.revents, self.raw.events)
    }
}

/// Waits until one of the items is ready, or for `timeout` (for ever without one). Returns how many are ready; 0
/// when the time is over.
///
/// # Errors
///
/// What poll answers.
pub fn poll(items: &mut [PollItem<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    // A time beyond what a clock holds is for ever.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())).map(|rest| {
            libc::timespec {
                tv_sec: rest.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                tv_nsec: rest.subsec_nanos().into(),
            }
        });
        let time = rest.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let count = items.len() as libc::nfds_t;
        // SAFETY: a PollItem is a pollfd (repr transparent), whose descriptor is borrowed; the kernel writes
        // `revents` only. No signal mask is given.
        let found = check(unsafe { libc::ppoll(items.as_mut_ptr().cast(), count, time, std::ptr::null()) });
        match found {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|found| found as usize),
        }
    }
}
