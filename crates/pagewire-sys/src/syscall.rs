//! Turns the C convention (-1 and errno) into [`io::Result`], and repeats what a signal interrupted.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The signed integers that system calls return.
pub(crate) trait Returned: Copy {
    /// Whether this is the failure value, -1.
    fn failed(self) -> bool;
}

impl Returned for libc::c_int {
    fn failed(self) -> bool {
        self == -1
    }
}

impl Returned for libc::c_long {
    fn failed(self) -> bool {
        self == -1
    }
}

/// The value, or errno as an error when it is -1.
pub(crate) fn check<T: Returned>(value: T) -> io::Result<T> {
    if value.failed() { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Calls until no signal interrupts.
pub(crate) fn retry<T: Returned>(mut call: impl FnMut() -> T) -> io::Result<T> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// [`retry`] for calls that return a count of bytes.
pub(crate) fn retry_count(call: impl FnMut() -> isize) -> io::Result<usize> {
    let mut call = call;
    // isize is c_long on every Linux that Rust knows.
    retry(|| call() as libc::c_long).map(|count| count as usize)
}

/// Takes ownership of a descriptor that a call returned.
///
/// # Safety
///
/// `call` must return a new descriptor that nobody else owns, or -1.
pub(crate) unsafe fn new_descriptor(call: impl FnMut() -> libc::c_int) -> io::Result<OwnedFd> {
    let raw: RawFd = retry(call)?;
    // SAFETY: the caller promises that the descriptor is new and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// One ioctl whose argument is a struct.
///
/// # Safety
///
/// For every kind of file that `fd` can be, `request` must not access more than `T` at the argument, and what it
/// does to the rest of this process's memory must be sound.
pub(crate) unsafe fn ioctl<T>(fd: &impl AsRawFd, request: libc::Ioctl, argument: &mut T) -> io::Result<i32> {
    let fd = fd.as_raw_fd();
    // SAFETY: the caller promises that the request fits the argument, which lives across the call.
    retry(|| unsafe { libc::ioctl(fd, request, std::ptr::from_mut(argument)) })
}

/// The error for arguments that make no sense.
pub(crate) fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// An offset, or a length, in a file as the kernel takes it.
pub(crate) fn file_offset(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| invalid("offset or length beyond any file"))
}

/// As many bytes of `length` as one call may be asked for: the kernel moves at most 2 GiB with one anyway.
pub(crate) fn bytes_per_call(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX).min(isize::MAX as usize)
}
