//! Bytes of a file that a store lends, from the page cache to a socket: the kernel hands them over, and holes are
//! found by `SEEK_HOLE`.
//!
//! That is sound only while nobody writes to the file: what has been sent is not copied before the receiver has it.
//! Behind the bytes goes a trailer that says whether they are good, since they are on their way when that is known.

use std::io;
use std::os::fd::BorrowedFd;

use pagewire_core::chunk::ByteRange;
use pagewire_core::wire::{DataHeader, Encoding, MAX_PAYLOAD, Trailer};

use super::holes::Holes;
use super::outgoing::Turn;
use crate::engine::Pin;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{is_closed, lost};

/// What part of an answer is sent.
pub(super) struct Piece<'a> {
    pub(super) pin: &'a Pin,
    pub(super) file: BorrowedFd<'a>,
    pub(super) holes: &'a Holes,
    pub(super) range: ByteRange,
    /// The request that it answers.
    pub(super) id: u64,
    /// Whether the answer ends with it.
    pub(super) last: bool,
}

impl Piece<'_> {
    /// Sends it. Answers how many bytes of payload that took.
    ///
    /// An error of kind [`ErrorKind::Unavailable`] is one of the connection.
    pub(super) fn send(&self, turn: &Turn<'_>) -> Result<u64> {
        let length = self.pin.info().length;
        let runs = self.holes.runs(self.file, self.range, length);
        let runs = runs.map_err(|error| Error::io("cannot look for holes", &error))?;
        let mut payload = 0;
        for (run, data) in runs {
            // Cut from where the run begins: what was asked for with one frame in mind comes in one.
            let mut rest = run;
            while !rest.is_empty() {
                let range = rest.clamp_to(rest.start + u64::from(MAX_PAYLOAD));
                rest.start = range.end;
                let last = self.last && range.end == self.range.end;
                if data {
                    self.send_bytes(turn, range, last)?;
                    payload += range.len();
                } else {
                    self.pin.region().check_lent()?;
                    send_zero(turn, &self.header(range, Encoding::Zero, last), self.id)?;
                }
            }
        }
        Ok(payload)
    }

    fn header(&self, range: ByteRange, encoding: Encoding, last: bool) -> DataHeader {
        let trailer = encoding != Encoding::Zero;
        DataHeader { range, epoch: self.pin.epoch(), encoding, last, trailer }
    }

    fn send_bytes(&self, turn: &Turn<'_>, range: ByteRange, last: bool) -> Result<()> {
        let region = self.pin.region();
        let prefix = self.header(range, Encoding::Raw, last).encode(self.id);
        turn.send(&[&prefix], true).map_err(not_sent)?;
        let (sent, result) = turn.connection().send_file(self.file, range.start, range.len());
        let failed = match result {
            // Looked at after the bytes were taken, so that what is good is what was sent.
            Ok(()) if sent == range.len() => region.check_lent().err(),
            Ok(()) => {
                let shorter = Error::new(ErrorKind::Changed, "the file has become shorter");
                Some(region.check_lent().err().unwrap_or(shorter))
            }
            Err(error) if is_socket_error(&error) => return Err(not_sent(error)),
            Err(error) => Some(Error::new(ErrorKind::Io, "cannot read the file").because(error)),
        };
        let Some(error) = failed else {
            return turn.send(&[&Trailer::Good.encode()], false).map_err(not_sent);
        };
        fill_up(turn, range.len() - sent)?;
        let trailer = Trailer::Failed(error.kind().to_wire()).encode();
        turn.send(&[&trailer], false).map_err(not_sent)?;
        Err(error)
    }
}

/// The error for a client that does not get what it is sent.
pub(super) fn not_sent(error: io::Error) -> Error {
    lost("the client", error)
}

/// Sends the header of zeroes, which is all that there is to them.
pub(super) fn send_zero(turn: &Turn<'_>, header: &DataHeader, id: u64) -> Result<()> {
    turn.send(&[&header.encode(id)], false).map_err(not_sent)
}

/// `sendfile` fails for either of its ends.
fn is_socket_error(error: &io::Error) -> bool {
    is_closed(error) || matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn fill_up(turn: &Turn<'_>, mut count: u64) -> Result<()> {
    let filling = [0; 64 << 10];
    while count > 0 {
        let piece = count.min(filling.len() as u64);
        turn.send(&[&filling[..piece as usize]], true).map_err(not_sent)?;
        count -= piece;
    }
    Ok(())
}
