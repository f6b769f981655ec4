//! The bytes of one extent of a stream, from the store to a bulk connection.
//!
//! Where the store lends its file, they are not looked at ([`lent`](super::lent)). Else they are read, looked at,
//! and sent.

use std::sync::Arc;

use pagewire_core::wire::{DataHeader, Encoding};

use super::lent::{Piece, not_sent, send_zero};
use super::outgoing::Outgoing;
use super::stream::{Extent, Streams};
use crate::error::{ErrorKind, Result};
use crate::store::{Gather, Read, Urgency};

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
    let Some(lent) = extent.pin.region().lend() else { return send_read(outgoing, extent) };
    let Extent { pin, holes, range, stream: id, .. } = extent;
    Piece { pin, file: lent.file, holes, range: *range, id: *id, last: false }.send(&outgoing.turn())
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
    let header = DataHeader { range, epoch: pin.epoch(), encoding, last: false, trailer: false };
    if encoding == Encoding::Zero {
        send_zero(&turn, &header, extent.stream)?;
        return Ok(0);
    }
    let prefix = header.encode(extent.stream);
    turn.send(&[&prefix, &bytes], false).map_err(not_sent)?;
    Ok(range.len())
}
