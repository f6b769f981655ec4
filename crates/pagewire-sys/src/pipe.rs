//! A pipe as the way from a socket to a file: the pages that the kernel has received change hands, and are copied
//! once, into the file.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::PAGE_SIZE;
use crate::event::{PollItem, poll};
use crate::syscall::{bytes_per_call, file_offset, invalid, retry, retry_count};

/// A pipe, both ends of which are this process's.
#[derive(Debug)]
pub struct Pipe {
    reader: PipeReader,
    writer: PipeWriter,
    /// How many bytes are in it.
    len: u64,
}

impl Pipe {
    /// A pipe with `places` for pages or parts of pages: a power of two.
    ///
    /// # Errors
    ///
    /// Where this process may have no more descriptors, or its user no more pages in pipes.
    pub fn new(places: usize) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let bytes = places.checked_mul(PAGE_SIZE).and_then(|bytes| libc::c_int::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| invalid("a pipe of more places than there are"))?;
        // SAFETY: takes numbers only.
        retry(|| unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) })?;
        Ok(Self { reader, writer, len: 0 })
    }

    /// How many bytes are in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes in what has come at a stream socket that blocks, `most` bytes at most; waits for the first. 0 means that
    /// the peer has closed.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is no place left, which parts of pages take as pages do; else what splice answers.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, most: u64) -> io::Result<u64> {
        // Where something is in it, whoever would empty it is the one who waits here.
        let flags = if self.is_empty() { 0 } else { libc::SPLICE_F_NONBLOCK };
        let received = match self.splice_in(socket, most, flags) {
            Err(error) if flags != 0 && error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollItem::readable(socket)], None)?;
                self.splice_in(socket, most, flags)?
            }
            result => result?,
        };
        self.len += received;
        Ok(received)
    }

    fn splice_in(&self, socket: BorrowedFd<'_>, most: u64, flags: libc::c_uint) -> io::Result<u64> {
        let (from, to) = (socket.as_raw_fd(), self.writer.as_raw_fd());
        let most = bytes_per_call(most);
        let none = std::ptr::null_mut();
        // SAFETY: without offsets the kernel accesses no memory of ours.
        retry_count(|| unsafe { libc::splice(from, none, to, none, most, flags) }).map(|moved| moved as u64)
    }

    /// Writes the first `length` bytes that are in it to a file, from `offset` on, and they are not in it any more.
    /// Returns how many that were, and what went wrong, if anything did: the rest is still in it.
    pub fn write_at(&mut self, file: BorrowedFd<'_>, offset: u64, length: u64) -> (u64, io::Result<()>) {
        let length = length.min(self.len);
        let mut written = 0;
        while written < length {
            match self.splice_out(file, offset + written, length - written) {
                Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
                Ok(more) => {
                    written += more;
                    self.len -= more;
                }
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }

    fn splice_out(&self, file: BorrowedFd<'_>, offset: u64, most: u64) -> io::Result<u64> {
        let start = file_offset(offset)?;
        let (from, to) = (self.reader.as_raw_fd(), file.as_raw_fd());
        let most = bytes_per_call(most);
        let moved = retry_count(|| {
            let mut position = start;
            // SAFETY: the kernel writes the position, a local, and no other memory of ours.
            unsafe { libc::splice(from, std::ptr::null_mut(), to, &mut position, most, 0) }
        })?;
        Ok(moved as u64)
    }

    /// Takes the first bytes that are in it out of it.
    ///
    /// # Errors
    ///
    /// Invalid input where it holds less.
    pub fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        if (buffer.len() as u64) > self.len {
            return Err(invalid("more bytes than are in the pipe"));
        }
        self.reader.read_exact(buffer)?;
        self.len -= buffer.len() as u64;
        Ok(())
    }
}
