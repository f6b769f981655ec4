//! The bytes of one extent of a stream, from the store to a bulk connection.
//!
//! Where the store lends its file, they are not looked at ([`lent`](super::lent)). Else they are read, looked at,
//! and sent.

use std::sync::Arc;

use pagewire_core::pack::Codec;
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
    let codec = outgoing.choose();
    let Some(lent) = extent.pin.region().lend().filter(|_| codec.is_none()) else {
        return send_read(outgoing, extent, codec);
    };
    let Extent { pin, holes, range, stream: id, .. } = extent;
    let piece = Piece { pin, file: lent.file, holes, range: *range, id: *id, last: false };
    let payload = piece.send(&outgoing.turn())?;
    outgoing.has_sent(payload);
    Ok(payload)
}

/// Sends an extent whose bytes are to be looked at: of a store that lends nothing, or compressed.
fn send_read(outgoing: &Outgoing, extent: &Extent, codec: Option<Codec>) -> Result<u64> {
    let (pin, range) = (&extent.pin, extent.range);
    let bytes = Gather::wait(range, |sink| {
        let (epoch, urgency) = (pin.epoch(), Urgency::Background);
        pin.region().read(Read { ranges: vec![range], epoch, urgency, sink });
    })?;
    let encoding = Encoding::for_bytes(&bytes);
    let header = DataHeader { range, epoch: pin.epoch(), encoding, last: false, trailer: false };
    if encoding == Encoding::Zero {
        send_zero(&outgoing.turn(), &header, extent.stream)?;
        return Ok(0);
    }
    let packed = codec.and_then(|codec| Some((codec, outgoing.pack(codec, &bytes)?)));
    let (header, payload) = match &packed {
        Some((codec, packed)) => {
            (DataHeader { encoding: Encoding::Packed(*codec, packed.len() as u32), ..header }, packed)
        }
        None => (header, &bytes),
    };
    let prefix = header.encode(extent.stream);
    outgoing.turn().send(&[&prefix, payload], false).map_err(not_sent)?;
    outgoing.has_sent(payload.len() as u64);
    Ok(payload.len() as u64)
}
