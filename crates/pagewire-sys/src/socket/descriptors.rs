//! Passing open descriptors over UNIX sockets (SCM_RIGHTS).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::syscall::{invalid, retry_count};

/// Descriptors that one message can carry: the kernel's limit.
pub const MAX_DESCRIPTORS: usize = 253;

/// Sends bytes (at least one, to carry the descriptors) and copies of descriptors. Returns how many bytes were sent;
/// the descriptors go with the first of them.
///
/// # Errors
///
/// Invalid input for no bytes or more than [`MAX_DESCRIPTORS`]; what sendmsg answers.
pub fn send_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if bytes.is_empty() {
        return Err(invalid("descriptors travel with at least one byte"));
    }
    if fds.len() > MAX_DESCRIPTORS {
        return Err(invalid("too many descriptors for one message"));
    }
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut control = control_buffer(fds.len());
    // SAFETY: zeroes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let payload = size_of_val(numbers.as_slice());
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control_space(fds.len()) as _;
        // SAFETY: the control buffer is aligned for a header and has room for it and for all numbers behind it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload as libc::c_uint) as _;
            std::ptr::copy_nonoverlapping(numbers.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), payload);
        }
    }
    // SAFETY: the message points to the bytes and the control buffer, both alive; the kernel only reads them.
    retry_count(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) })
}

/// Receives bytes and up to `max_fds` descriptors, which are close-on-exec. 0 bytes: the peer has closed.
///
/// # Errors
///
/// Invalid data when the peer sent more descriptors than that (or this process may not open so many): all that came
/// are closed. Else what recvmsg answers.
pub fn receive_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    max_fds: usize,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let max_fds = max_fds.min(MAX_DESCRIPTORS);
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = control_buffer(max_fds);
    // SAFETY: zeroes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    if max_fds > 0 {
        message.msg_control = control.as_mut_ptr().cast();
        // Without the padding at the end: there another descriptor would fit, which was not asked for.
        message.msg_controllen = control_len(max_fds) as _;
    }
    // SAFETY: the kernel writes at most the given lengths into the buffer and the control buffer.
    let received =
        retry_count(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) })?;
    // SAFETY: the kernel filled the message just now, and this is the only time that it is looked at.
    let fds = unsafe { take_descriptors(&message) };
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors came than were expected"));
    }
    Ok((received, fds))
}

/// The descriptors in a message's control data.
///
/// # Safety
///
/// recvmsg filled the message, its control buffer lives, and nobody took the descriptors yet.
unsafe fn take_descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel wrote well-formed headers within msg_controllen, which these macros walk.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(current) = header.as_ref() {
            if current.cmsg_level == libc::SOL_SOCKET && current.cmsg_type == libc::SCM_RIGHTS {
                #[allow(clippy::unnecessary_cast)] // a u32 with musl
                let payload = current.cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..payload / size_of::<RawFd>() {
                    // The kernel installed each of these for us.
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    fds
}

/// Room for the control data of `count` descriptors, aligned as its headers must be.
fn control_buffer(count: usize) -> Vec<u64> {
    vec![0; control_space(count).div_ceil(size_of::<u64>())]
}

fn control_space(count: usize) -> usize {
    // SAFETY: only computes a size.
    unsafe { libc::CMSG_SPACE((count * size_of::<RawFd>()) as libc::c_uint) as usize }
}

fn control_len(count: usize) -> usize {
    // SAFETY: only computes a size.
    unsafe { libc::CMSG_LEN((count * size_of::<RawFd>()) as libc::c_uint) as usize }
}
