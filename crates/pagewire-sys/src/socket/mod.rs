//! Stream sockets at the level of descriptors: sending many parts at once, sending a file without copying it,
//! receiving into place, options, and passing descriptors.
//!
//! No call here raises SIGPIPE but [`send_file`], for which the kernel has no flag; Rust programs ignore that signal
//! from their start.

mod descriptors;
mod options;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

pub use self::descriptors::{MAX_DESCRIPTORS, receive_with_fds, send_fds};
pub use self::options::{TcpInfo, peer_pid, queued_bytes, set_keepalive, set_user_timeout, tcp_info};
use crate::syscall::{bytes_per_call, file_offset, retry_count};

/// Parts that one system call takes here: a frame of headers and pages has some tens, and this fits on the stack.
const PARTS_PER_CALL: usize = 64;

/// Sends the parts one behind another with one call, and returns how many bytes the kernel took.
///
/// With `more`, the kernel may hold back a packet that is not full, as something follows at once. At most 64 parts
/// go out per call.
///
/// # Errors
///
/// What sendmsg answers: `BrokenPipe` or `ConnectionReset` when the peer is gone, `WouldBlock` when a socket that
/// does not block is full or the send timeout is over.
pub fn send_vectored(socket: BorrowedFd<'_>, parts: &[&[u8]], more: bool) -> io::Result<usize> {
    send_from(socket, parts, 0, more)
}

/// Sends all bytes of all parts.
///
/// # Errors
///
/// As [`send_vectored`], and `WriteZero`. How much was sent is then unknown: the stream is of no use any more. So it
/// is for sockets that block.
pub fn send_all_vectored(socket: BorrowedFd<'_>, parts: &[&[u8]], more: bool) -> io::Result<()> {
    let mut parts = parts;
    let mut skip = 0;
    loop {
        while let [first, rest @ ..] = parts
            && skip >= first.len()
        {
            skip -= first.len();
            parts = rest;
        }
        if parts.is_empty() {
            return Ok(());
        }
        let more = more || parts.len() > PARTS_PER_CALL;
        match send_from(socket, parts, skip, more)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            sent => skip += sent,
        }
    }
}

/// Sends the parts without the first `skip` bytes of the first of them.
fn send_from(socket: BorrowedFd<'_>, parts: &[&[u8]], skip: usize, more: bool) -> io::Result<usize> {
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PARTS_PER_CALL];
    let count = parts.len().min(PARTS_PER_CALL);
    for (index, (vector, part)) in vectors.iter_mut().zip(parts).enumerate() {
        let part = if index == 0 { &part[skip..] } else { part };
        *vector = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
    }
    // SAFETY: zeroes are a valid msghdr: no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = count as _;
    let flags = libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
    // SAFETY: every vector is a borrowed part, which the kernel only reads.
    retry_count(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) })
}

/// Sends up to `len` bytes of the file from `offset` with one call, without a copy through this process: to a socket,
/// or to anything else that can be written to. Returns how many; 0 is the end of the file. The file's own offset
/// stays.
///
/// # Errors
///
/// What sendfile answers; invalid input for an offset that no file has, or when the file cannot be sent in this way.
pub fn send_file(socket: BorrowedFd<'_>, file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<u64> {
    let (start, len) = (file_offset(offset)?, bytes_per_call(len));
    let sent = retry_count(|| {
        let mut position = start;
        // SAFETY: the kernel writes the position, a local, and no other memory of ours.
        unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &mut position, len) }
    })?;
    Ok(sent as u64)
}

/// Receives what there is, at most the buffer; waits for the first byte. 0 means that the peer has closed.
///
/// # Errors
///
/// What recv answers; `WouldBlock` when a socket that does not block has nothing or the receive timeout is over.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    receive_flagged(socket, buffer, 0)
}

/// The same without waiting: `WouldBlock` when there is nothing, whatever the socket does else.
///
/// # Errors
///
/// As [`receive`].
pub fn receive_now(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    receive_flagged(socket, buffer, libc::MSG_DONTWAIT)
}

/// Fills the buffer, with as few calls as the kernel allows (`MSG_WAITALL`).
///
/// # Errors
///
/// `UnexpectedEof` when the peer closes before the buffer is full; else as [`receive`]. How much was received is
/// then unknown.
pub fn receive_exact(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match receive_flagged(socket, &mut buffer[done..], libc::MSG_WAITALL)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => done += received,
        }
    }
    Ok(())
}

/// Fills the buffer with one call, but for what ends that before: the end of the stream, the receive timeout, a signal.
/// Returns how many bytes came; 0 means that the peer has closed.
///
/// # Errors
///
/// As [`receive`], when nothing came.
pub fn receive_most(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    receive_flagged(socket, buffer, libc::MSG_WAITALL)
}

fn receive_flagged(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the kernel writes at most the buffer's length into the buffer, which is borrowed mutably.
    retry_count(|| unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) })
}
