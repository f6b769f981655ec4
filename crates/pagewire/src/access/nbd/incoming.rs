//! Requests as they come in: as many as there are with one system call, and the bytes of large writes straight to
//! where they are needed: on their way to a file they need not pass through this process at all.

use std::io;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::nbd::{Headers, Malformed, Request};
use pagewire_sys::pipe::Pipe;

use super::outgoing::Outgoing;

/// How many bytes are received at once: some hundreds of requests, or some small writes.
const EAGER: usize = 64 << 10;

/// A write of so many bytes or more is likely to be followed by another one like it, whose bytes should not be
/// received together with its header, and then copied.
const LARGE: u64 = 32 << 10;

/// How many bytes of a write are taken in at once: what a connection that writes keeps, and enough for the cost per call
/// to vanish.
pub(super) const PIECE: u64 = 1 << 20;

/// How many pages, or what came in one page, are on their way to a file at once: all that a UNIX socket holds.
const PLACES: usize = 64;

/// The receiving side of a connection.
pub(super) struct Incoming<'a> {
    outgoing: &'a Outgoing,
    buffer: Vec<u8>,
    /// What was received and not read yet.
    start: usize,
    end: usize,
    /// Whether the last request was a large write.
    large: bool,
    piece: Vec<u8>,
    /// What moves large writes to a file, once there was one.
    pipe: Option<Pipe>,
    /// Whether there can be one.
    moves: bool,
}

/// What has come of a write's payload.
pub(super) enum Payload<'a> {
    Bytes(&'a [u8]),
    /// So many bytes, which are the first in a pipe.
    Moved(&'a mut Pipe, u64),
}

/// Why no request comes any more.
pub(super) enum End {
    /// The client has closed the connection between two requests.
    Closed,
    Failed(io::Error),
    Malformed(Malformed),
}

impl<'a> Incoming<'a> {
    pub(super) fn new(outgoing: &'a Outgoing) -> Self {
        let (buffer, moves) = (vec![0; EAGER], outgoing.connection().moves());
        Self { outgoing, buffer, start: 0, end: 0, large: false, piece: Vec::new(), pipe: None, moves }
    }

    fn headers(&self) -> Headers {
        self.outgoing.headers
    }

    /// The next request. Where it has to be waited for, what was answered is sent first.
    pub(super) fn request(&mut self) -> Result<Request, End> {
        let length = self.headers().request_len();
        // A store may have answered a lot on the spot.
        self.outgoing.batch().flush_if_large().map_err(End::Failed)?;
        while self.end - self.start < length {
            self.outgoing.flush().map_err(End::Failed)?;
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let most = if self.large { length } else { EAGER };
            match self.outgoing.connection().receive(&mut self.buffer[self.end..most.max(self.end + 1)]) {
                Ok(0) if self.end == 0 => return Err(End::Closed),
                Ok(0) => return Err(End::Failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(came) => self.end += came,
                Err(error) => return Err(End::Failed(error)),
            }
        }
        let request = Request::decode(self.headers().extended(), &self.buffer[self.start..self.end]);
        let request = request.map_err(End::Malformed)?;
        self.start += length;
        self.large = request.payload(self.headers().extended()) >= LARGE;
        Ok(request)
    }

    /// What comes next of a write's payload, of which `left` was not given yet. Where `moves`, it may be in a pipe:
    /// whole pages of the region then, as long as they come in large parts.
    pub(super) fn of_write(&mut self, left: ByteRange, moves: bool) -> io::Result<Payload<'_>> {
        let is_under_way = self.pipe.as_ref().is_some_and(|pipe| !pipe.is_empty());
        if is_under_way || (moves && self.start == self.end && left.len() >= LARGE && self.has_pipe()) {
            return self.moved(left);
        }
        let piece = left.split(PIECE).next().map_or(0, ByteRange::len);
        self.payload(piece as usize).map(Payload::Bytes)
    }

    fn has_pipe(&mut self) -> bool {
        if self.moves && self.pipe.is_none() {
            self.pipe = Pipe::new(PLACES).inspect_err(|error| tracing::debug!(%error, "no pipe")).ok();
            self.moves = self.pipe.is_some();
        }
        self.moves
    }

    fn moved(&mut self, left: ByteRange) -> io::Result<Payload<'_>> {
        self.outgoing.flush()?;
        let connection = self.outgoing.connection();
        let pipe = self.pipe.as_mut().expect("there is one where bytes are moved");
        loop {
            let missing = left.len() - pipe.len();
            let is_full = match connection.receive_into(pipe, missing) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(came) if came == missing => return Ok(Payload::Moved(pipe, left.len())),
                Ok(_) => false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !pipe.is_empty() => true,
                Err(error) => return Err(error),
            };
            // A page that is written in two parts may have to be read for the first.
            let whole = ((left.start + pipe.len()) / PAGE_SIZE * PAGE_SIZE).saturating_sub(left.start);
            let length = if is_full && whole == 0 { pipe.len() } else { whole };
            if length > 0 {
                return Ok(Payload::Moved(pipe, length));
            }
        }
    }

    /// The next `length` bytes of the request's payload, [`PIECE`] at most.
    pub(super) fn payload(&mut self, length: usize) -> io::Result<&[u8]> {
        let have = self.end - self.start;
        if have >= length {
            self.start += length;
            return Ok(&self.buffer[self.start - length..self.start]);
        }
        if self.piece.len() < length {
            self.piece.resize(length, 0);
        }
        self.outgoing.flush()?;
        self.piece[..have].copy_from_slice(&self.buffer[self.start..self.end]);
        (self.start, self.end) = (0, 0);
        self.outgoing.connection().receive_exact(&mut self.piece[have..length])?;
        Ok(&self.piece[..length])
    }

    /// Throws the next `length` bytes away.
    pub(super) fn skip(&mut self, length: u64) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let piece = left.min(PIECE);
            self.payload(piece as usize)?;
            left -= piece;
        }
        Ok(())
    }
}
