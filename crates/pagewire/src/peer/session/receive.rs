//! What is received on a session's connections, and whose call it belongs to.

use std::time::Instant;

use pagewire_core::chunk::PAGE_SIZE;
use pagewire_core::wire::{
    Class, DataHeader, Encoding, Notification, RemoteError, RemoteErrorKind, Reply, Request, Trailer,
};

use super::{Ask, Call, Shared};
use crate::error::{Error, ErrorKind};
use crate::peer::frame::{FrameError, FrameReader};
use crate::peer::link::Link;
use crate::sink::Part;
use crate::transport::unpack;

impl Shared {
    /// Receives on a link until it is lost, and says why.
    pub(super) fn receive(&self, link: &Link, mut reader: FrameReader) -> FrameError {
        loop {
            match self.receive_one(link, &mut reader) {
                Ok(()) => {}
                Err(error) => return error,
            }
        }
    }

    pub(super) fn receive_one(&self, link: &Link, reader: &mut FrameReader) -> Result<(), FrameError> {
        let (header, body) = reader.next(&link.connection)?;
        match header.kind.class() {
            Class::Data => {
                let (data, payload, trailer) = DataHeader::decode(body)?;
                match data.encoding {
                    Encoding::Packed(codec, cost) => {
                        let (agreed, length) = (link.packer.agreed(), data.range.len() as usize);
                        let raw = DataHeader { encoding: Encoding::Raw, ..data };
                        unpack(agreed, codec, payload, length, |bytes| {
                            self.data(header.id, &raw, bytes, u64::from(cost), None);
                        })?;
                    }
                    _ => self.data(header.id, &data, payload, payload.len() as u64, trailer),
                }
            }
            Class::Reply => {
                let reply = Reply::decode(&header, body)?;
                self.reply(header.id, reply);
            }
            Class::Notification => match Notification::decode(&header, body)? {
                Notification::Goodbye { reason } => {
                    tracing::info!(region = %self.region, reason, "the server says good-bye");
                }
                Notification::Epoch { epoch, .. } => {
                    let mut state = self.lock();
                    state.newest = state.newest.max(epoch);
                }
                _ => {}
            },
            Class::Request => {
                let reply = match Request::decode(&header, body)? {
                    Request::Ping(body) => Reply::Pong(body),
                    request => Reply::Error(RemoteError {
                        kind: RemoteErrorKind::Unsupported,
                        retry: false,
                        epoch: 0,
                        text: format!("{} is not for this side", request.kind().name()),
                    }),
                };
                link.send(|out| reply.encode(header.id, out));
            }
            Class::Invalid => {}
        }
        Ok(())
    }

    /// Bytes of a region, which have cost so many on the wire.
    pub(super) fn data(
        &self,
        id: u64,
        data: &DataHeader,
        payload: &[u8],
        cost: u64,
        trailer: Option<Trailer>,
    ) {
        // A call that has ended may still have bytes on their way.
        let Some(entry) = self.calls().get(&id).cloned() else { return };
        let epoch = match &entry.call.ask {
            Ask::Read { epoch, .. } | Ask::Stream { epoch, .. } => *epoch,
            Ask::Tree(_) | Ask::Control => data.epoch,
        };
        if let Some(Trailer::Failed(kind)) = trailer {
            let text = format!("{} failed while it sent bytes {}", self.region.peer, data.range);
            return self.finish(id, |call| call.fail(Error::new(ErrorKind::from_wire(kind), text)));
        }
        let part = match data.encoding {
            Encoding::Raw | Encoding::Packed(..) => Part::Bytes { offset: data.range.start, bytes: payload },
            Encoding::Zero => Part::Zero(data.range),
        };
        let (range, is_read) = (data.range, matches!(entry.call.ask, Ask::Read { .. }));
        let (length, epoch) = {
            let state = self.lock();
            (state.info.length, state.epoch_of(epoch))
        };
        let is_whole = range.end.is_multiple_of(PAGE_SIZE) || range.end == length;
        let delivered = if data.epoch != epoch {
            let text = format!("bytes of epoch {} answer a request for epoch {epoch}", data.epoch);
            Err(Error::new(ErrorKind::Protocol, text))
        } else if range.end > length || !is_whole {
            let text = format!("bytes {range} are not whole pages of a region of {length} bytes");
            Err(Error::new(ErrorKind::Protocol, text))
        } else {
            entry.call.deliver(part)
        };
        match delivered {
            Ok(true) => drop(self.calls().remove(&id)),
            // The last of a read that has left something out.
            Ok(false) if data.last && is_read && entry.call.sent_all(0) => drop(self.calls().remove(&id)),
            Ok(false) => self.grant(id, &entry.call, cost),
            Err(error) => self.finish(id, |call| call.fail(error.context(&self.region.peer))),
        }
    }

    /// Gives a stream credit for what was placed.
    pub(super) fn grant(&self, id: u64, call: &Call, payload: u64) {
        let Ask::Stream { flow, .. } = &call.ask else { return };
        let round_trip = || self.primary().ok().and_then(|(link, _)| link.connection.round_trip());
        if let Some(limit) = flow.consumed(payload, Instant::now(), round_trip)
            && let Ok((link, _)) = self.primary()
        {
            link.send(|out| Notification::Credit { stream: id, limit }.encode(out));
        }
    }

    pub(super) fn reply(&self, id: u64, reply: Reply) {
        let Some(entry) = self.calls().get(&id).cloned() else { return };
        match reply {
            Reply::End { sent } => {
                if entry.call.sent_all(sent) {
                    self.calls().remove(&id);
                }
            }
            Reply::Error(error) => {
                self.finish(id, |call| call.fail(Error::from_wire(error).context(&self.region)));
            }
            reply => self.finish(id, |call| call.reply(Ok(reply))),
        }
    }
}
