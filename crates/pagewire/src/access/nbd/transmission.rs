//! One connection's requests, from the handshake to its end.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use pagewire_core::chunk::ByteRange;
use pagewire_core::nbd::command::is_bearable;
use pagewire_core::nbd::request::StatusPayload;
use pagewire_core::nbd::server::MAX_CONTEXTS;
use pagewire_core::nbd::{
    Chunk, Command, CommandType, Descriptor, DescriptorExt, ErrorNumber, Headers, Malformed, Refusal,
    ReplyFlags, Request, Terms,
};

use super::NbdOptions;
use super::attachment::Attachment;
use super::change::{Changer, Zeroes};
use super::contexts::{Context, Extent};
use super::incoming::{End, Incoming};
use super::outgoing::Outgoing;
use super::prefetch::Prefetch;
use super::read::{ReadRequest, Reader};
use crate::error::{Error, ErrorKind, Result};
use crate::store::pool::Pool;
use crate::transport::{Connection, lost};

/// The most extents that one context gives in one reply: 1 MiB.
const MAX_EXTENTS: usize = 1 << 16;

/// Serves a client on a socket that is past the handshake, or never had one: the other end may be given to the
/// kernel. Returns when the client has left, or is gone. Connections that share an attachment are those of one client.
///
/// # Errors
///
/// Where the client has broken the protocol; [`ErrorKind::Unavailable`] where its connection was lost in the middle
/// of something.
pub fn serve_transmission(
    attachment: impl Into<Arc<Attachment>>,
    socket: UnixStream,
    headers: Headers,
) -> Result<()> {
    let outgoing = Arc::new(Outgoing::new(Connection::from(socket), headers));
    let send_timeout = NbdOptions::default().send_timeout;
    run(&attachment.into(), &outgoing, Vec::new(), Some(send_timeout), &|| false)
}

/// Serves a client until it leaves. Its contexts have the numbers of their places, from 1 on.
pub(super) fn run(
    attachment: &Arc<Attachment>,
    outgoing: &Arc<Outgoing>,
    contexts: Vec<Context>,
    send_timeout: Option<Duration>,
    is_stopping: &dyn Fn() -> bool,
) -> Result<()> {
    outgoing.own();
    crate::schedule::demand();
    let gone = |error| lost("an NBD client", error);
    // It may be silent for as long as it likes.
    outgoing.connection().set_timeouts(send_timeout, None).map_err(gone)?;
    let headers = outgoing.headers;
    let terms = Terms {
        size: attachment.size(),
        flags: attachment.flags(headers),
        headers,
        minimum: 1,
        contexts: !contexts.is_empty(),
    };
    let pool = Arc::new(Pool::named("nbd-work"));
    let mut serving = Serving {
        terms,
        contexts,
        attachment,
        outgoing,
        reader: Reader::new(attachment, outgoing),
        changer: Changer::new(attachment.clone(), outgoing.clone(), pool.clone()),
        prefetch: Arc::default(),
        pool,
    };
    let ended = serving.run(is_stopping);
    serving.prefetch.close();
    if ended.is_err() {
        // Nobody is told any more.
        outgoing.close();
    }
    // What is under way is carried out in any case.
    outgoing.finish();
    outgoing.close();
    match ended {
        Ok(()) => Ok(()),
        Err(End::Closed) => Ok(()),
        Err(End::Failed(error)) => Err(gone(error)),
        Err(End::Malformed(error)) => Err(Error::new(ErrorKind::Protocol, error.to_string())),
    }
}

/// Metadata contexts with the numbers that the client has for them.
type Numbered = Vec<(u32, Context)>;

struct Serving<'a> {
    terms: Terms,
    contexts: Vec<Context>,
    attachment: &'a Arc<Attachment>,
    outgoing: &'a Arc<Outgoing>,
    reader: Reader<'a>,
    changer: Changer,
    prefetch: Arc<Prefetch>,
    pool: Arc<Pool>,
}

impl Serving<'_> {
    /// Carries out requests until the client disconnects as it should.
    fn run(&mut self, is_stopping: &dyn Fn() -> bool) -> Result<(), End> {
        let outgoing = self.outgoing;
        let mut incoming = Incoming::new(outgoing);
        loop {
            let request = match incoming.request() {
                // What it has asked for is answered all the same.
                Err(End::Closed) if is_stopping() => return Ok(()),
                request => request?,
            };
            let payload = request.payload(self.terms.headers.extended());
            if !is_bearable(payload) {
                let what = "request";
                return Err(End::Malformed(Malformed {
                    what,
                    reason: format!("a payload of {payload} bytes"),
                }));
            }
            let command = if is_stopping() && request.command != CommandType::DISC {
                Err(Refusal { error: ErrorNumber::ESHUTDOWN, reason: "the server stops" })
            } else {
                request.parse(&self.terms)
            };
            match command {
                Ok(Command::Disconnect) => return Ok(()),
                Ok(Command::Write { range, fua }) => {
                    let written = self.changer.write(request.cookie, range, fua, &mut incoming);
                    written.map_err(End::Failed)?;
                }
                Ok(Command::BlockStatus { one, .. }) if payload > 0 => {
                    let chosen = self.choose(&request, payload, one, &mut incoming).map_err(End::Failed)?;
                    match chosen {
                        Ok((range, contexts)) => self.status(&request, range, one, contexts),
                        Err(refusal) => self.refuse(&request, refusal),
                    }
                }
                Ok(command) => self.carry_out(&request, command).map_err(End::Failed)?,
                Err(refusal) => {
                    incoming.skip(payload).map_err(End::Failed)?;
                    self.refuse(&request, refusal);
                }
            }
        }
    }

    fn refuse(&self, request: &Request, refusal: Refusal) {
        let Refusal { error, reason } = refusal;
        tracing::debug!(?request, reason, "an NBD request is refused");
        let (outgoing, Request { cookie, offset, .. }) = (self.outgoing, *request);
        outgoing.put(|out| outgoing.encode_failure(cookie, offset, error, reason, out));
    }

    fn carry_out(&mut self, request: &Request, command: Command) -> io::Result<()> {
        let cookie = request.cookie;
        match command {
            Command::Read { range, whole } => {
                return self.reader.answer(ReadRequest { cookie, range, whole });
            }
            Command::WriteZeroes { range, fua, no_hole, fast } => {
                self.changer.zero(cookie, Zeroes { range, fua, no_hole, fast });
            }
            Command::Trim { range, fua } => self.changer.trim(cookie, range, fua),
            Command::Flush => self.changer.flush(cookie),
            Command::Cache(range) => {
                self.prefetch.start(self.attachment, self.outgoing, range, &self.pool);
                self.outgoing.put(|out| self.outgoing.encode_done(cookie, range.start, out));
            }
            Command::BlockStatus { range, one } => {
                let contexts = (1..).zip(self.contexts.iter().copied()).collect();
                self.status(request, range, one, contexts);
            }
            // They are seen to before.
            Command::Write { .. } | Command::Disconnect => {}
        }
        Ok(())
    }

    /// Reads the payload that says which bytes and contexts a BLOCK_STATUS is about.
    fn choose(
        &self,
        request: &Request,
        payload: u64,
        one: bool,
        incoming: &mut Incoming<'_>,
    ) -> io::Result<Result<(ByteRange, Numbered), Refusal>> {
        let invalid = |reason| Ok(Err(Refusal { error: ErrorNumber::EINVAL, reason }));
        if payload > (8 + 4 * MAX_CONTEXTS) as u64 {
            incoming.skip(payload)?;
            return invalid("more contexts than can be selected");
        }
        let Ok(payload) = StatusPayload::decode(incoming.payload(payload as usize)?) else {
            return invalid("the payload is no list of contexts");
        };
        let known: Vec<u32> = (1..).take(self.contexts.len()).collect();
        Ok(self.terms.status_of(request.offset, &payload, &known, one).map(|command| {
            let range = match command {
                Command::BlockStatus { range, .. } => range,
                _ => ByteRange::new(request.offset, request.offset),
            };
            let context = |id: &u32| (*id, self.contexts[*id as usize - 1]);
            (range, payload.contexts.iter().map(context).collect())
        }))
    }

    /// Answers a BLOCK_STATUS: to look for holes may take a while.
    fn status(&self, request: &Request, range: ByteRange, one: bool, contexts: Numbered) {
        let under_way = self.outgoing.begin(self.attachment, 0);
        let Request { cookie, offset, .. } = *request;
        self.pool.run(Box::new(move || {
            let (attachment, outgoing) = (under_way.attachment(), under_way.outgoing());
            let headers = outgoing.headers;
            let most = if one { 1 } else { MAX_EXTENTS };
            let count = contexts.len();
            for (n, (id, context)) in contexts.into_iter().enumerate() {
                let extents = attachment.status(context, range, most);
                let flags = ReplyFlags::NONE.with_if(ReplyFlags::DONE, n + 1 == count);
                let chunk = to_chunk(headers, id, &extents);
                outgoing.send(|out| chunk.encode(headers, cookie, offset, flags, out));
            }
        }));
    }
}

fn to_chunk(headers: Headers, context: u32, extents: &[Extent]) -> Chunk<'static> {
    if headers.extended() {
        let descriptor = |extent: &Extent| DescriptorExt { length: extent.length, flags: extent.flags };
        return Chunk::BlockStatusExt { context, descriptors: extents.iter().map(descriptor).collect() };
    }
    // Neither is more than a compact request asks for.
    let descriptor =
        |extent: &Extent| Descriptor { length: extent.length as u32, flags: extent.flags as u32 };
    Chunk::BlockStatus { context, descriptors: extents.iter().map(descriptor).collect() }
}
