//! The bytes of one extent of a stream, from the store to a bulk connection.
//!
//! Where the store lends its file, the kernel hands the bytes from the page cache to the socket, and
//! holes are found by `SEEK_HOLE`. That is sound only while nobody writes to the file: what has been
//! sent is not copied before the receiver has it. Else the bytes are read, looked at, and sent.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use pagewire_core::chunk::ByteRange;
use pagewire_core::wire::{DataHeader, Encoding, Trailer};

use super::outgoing::{Outgoing, Turn};
use super::stream::{Extent, Streams};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Gather, Read, Urgency};
use crate::transport::{is_closed, lost};

/// The life of the thread that sends on a bulk connection.
pub(super) fn send_extents(streams: &Streams, outgoing: &Arc<Outgoing>) {
    crate::schedule::bulk();
    while let Some(extent) = streams.next(|| outgoing.is_closed()) {
        match send(outgoing, &extent) {
            Ok(payload) => streams.sent(&extent, payload),
            Err(error) => {
                let cannot_send = error.kind() == ErrorKind::Unavailable;
                tracing::debug!(peer = outgoing.peer(), %error, "a stream ends early");
                streams.fail(&extent, &error);
                if cannot_send {
                    return outgoing.close();
                }
            }
        }
    }
}

/// Sends an extent, and answers how many bytes of payload that took.
fn send(outgoing: &Outgoing, extent: &Extent) -> Result<u64> {
    let region = extent.pin.region();
    let Some(lent) = region.lend() else { return send_read(outgoing, extent) };
    let length = extent.pin.info().length;
    let runs = extent.holes.runs(lent.file, extent.range, length);
    let runs = runs.map_err(|error| Error::io("cannot look for holes", &error))?;
    let mut payload = 0;
    for (range, data) in runs {
        if data {
            send_lent(outgoing, extent, lent.file, range)?;
            payload += range.len();
        } else {
            region.check_lent()?;
            send_zero(&outgoing.turn(), extent, range)?;
        }
    }
    Ok(payload)
}

fn header(extent: &Extent, range: ByteRange, encoding: Encoding, trailer: bool) -> DataHeader {
    DataHeader { range, epoch: extent.pin.epoch(), encoding, last: false, trailer }
}

fn not_sent(error: io::Error) -> Error {
    lost("the client", error)
}

fn send_zero(turn: &Turn<'_>, extent: &Extent, range: ByteRange) -> Result<()> {
    let prefix = header(extent, range, Encoding::Zero, false).encode(extent.stream);
    turn.send(&[&prefix], false).map_err(not_sent)
}

fn send_lent(outgoing: &Outgoing, extent: &Extent, file: BorrowedFd<'_>, range: ByteRange) -> Result<()> {
    let turn = outgoing.turn();
    let prefix = header(extent, range, Encoding::Raw, true).encode(extent.stream);
    turn.send(&[&prefix], true).map_err(not_sent)?;
    let (sent, result) = turn.connection().send_file(file, range.start, range.len());
    let failed = match result {
        // Looked at after the bytes were taken, so that what is good is what was sent.
        Ok(()) if sent == range.len() => extent.pin.region().check_lent().err(),
        Ok(()) => {
            let shorter = Error::new(ErrorKind::Changed, "the file has become shorter");
            Some(extent.pin.region().check_lent().err().unwrap_or(shorter))
        }
        Err(error) if is_socket_error(&error) => return Err(not_sent(error)),
        Err(error) => Some(Error::new(ErrorKind::Io, "cannot read the file").because(error)),
    };
    let Some(error) = failed else {
        return turn.send(&[&Trailer::Good.encode()], false).map_err(not_sent);
    };
    fill_up(&turn, range.len() - sent)?;
    let trailer = Trailer::Failed(error.kind().to_wire()).encode();
    turn.send(&[&trailer], false).map_err(not_sent)?;
    Err(error)
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

/// Sends an extent of a store that lends nothing.
fn send_read(outgoing: &Outgoing, extent: &Extent) -> Result<u64> {
    let (pin, range) = (&extent.pin, extent.range);
    let bytes = Gather::wait(range, |sink| {
        let (epoch, urgency) = (pin.epoch(), Urgency::Background);
        pin.region().read(Read { ranges: vec![range], epoch, urgency, sink });
    })?;
    let turn = outgoing.turn();
    let encoding = Encoding::for_bytes(&bytes);
    if encoding == Encoding::Zero {
        send_zero(&turn, extent, range)?;
        return Ok(0);
    }
    let prefix = header(extent, range, encoding, false).encode(extent.stream);
    turn.send(&[&prefix, &bytes], false).map_err(not_sent)?;
    Ok(range.len())
}
