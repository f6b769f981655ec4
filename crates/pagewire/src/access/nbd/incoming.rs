//! Requests as they come in: as many as there are with one system call, and the bytes of large writes straight to
//! where they are needed.

use std::io;

use pagewire_core::nbd::{Headers, Malformed, Request};

use super::outgoing::Outgoing;

/// How many bytes are received at once: some hundreds of requests, or some small writes.
const EAGER: usize = 64 << 10;

/// A write of so many bytes or more is likely to be followed by another one like it, whose bytes should not be
/// received together with its header, and then copied.
const LARGE: u64 = 32 << 10;

/// How many bytes of a write are taken in at once: what a connection that writes keeps, and enough for the cost per call
/// to vanish.
pub(super) const PIECE: u64 = 1 << 20;

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
        Self { outgoing, buffer: vec![0; EAGER], start: 0, end: 0, large: false, piece: Vec::new() }
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
