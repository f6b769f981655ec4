//! The answer to a READ.
//!
//! Nothing is called good before it is at hand: in a simple reply, and in a chunk that is marked as the last, the
//! bytes stand behind a header that says that all is well. Only where a file is lent that nobody writes to, and
//! chunks can be followed by others, bytes leave before they are known to be good; the last chunk says whether they
//! were.

use std::sync::{Arc, Mutex};

use pagewire_core::chunk::ByteRange;
use pagewire_core::nbd::{Chunk, ReplyFlags};
use pagewire_core::wire::Encoding;

use super::attachment::Attachment;
use super::errno;
use super::outgoing::{Outgoing, UnderWay, encode_hole};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{AtOnce, Gather, Part, Read, Sink, Urgency};
use crate::transport::is_closed;

/// Up to this size bytes are read into the batch of replies; larger ones into a buffer of their own.
const SMALL: u64 = 16 << 10;

/// How many bytes are read at once of a read that may be answered in pieces. They stay in the processor's cache on
/// their way.
const PIECE: u64 = 256 << 10;

/// From this size on the bytes of a file that is lent are handed to the network without being looked at.
const LENT: u64 = 32 << 10;

/// How many zeroes are worth a chunk of their own, in bytes.
const GRAIN: u64 = 32 << 10;

/// How large a buffer is kept.
const KEPT: usize = 1 << 20;

/// A READ.
#[derive(Clone, Copy)]
pub(super) struct ReadRequest {
    pub(super) cookie: u64,
    pub(super) range: ByteRange,
    /// Whether one chunk is wanted.
    pub(super) whole: bool,
}

/// What answers the READs of one connection.
pub(super) struct Reader<'a> {
    attachment: &'a Arc<Attachment>,
    outgoing: &'a Arc<Outgoing>,
    buffer: Vec<u8>,
    /// Whether a file that is lent is in memory by its nature.
    in_memory: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(attachment: &'a Arc<Attachment>, outgoing: &'a Arc<Outgoing>) -> Self {
        let lent = attachment.region().lend();
        let in_memory = lent.is_some_and(|lent| pagewire_sys::file::is_in_memory(lent.file).unwrap_or(false));
        Self { attachment, outgoing, buffer: Vec::new(), in_memory }
    }

    /// Answers a READ. An error is one of the connection.
    pub(super) fn answer(&mut self, request: ReadRequest) -> std::io::Result<()> {
        let ReadRequest { cookie, range, whole } = request;
        let chunked = self.outgoing.headers.chunked();
        if range.is_empty() {
            // No chunk may be empty.
            self.outgoing.put(|out| self.outgoing.encode_done_of_read(cookie, range.start, out));
            return Ok(());
        }
        if range.len() <= SMALL {
            return self.answer_small(request);
        }
        if !chunked || whole {
            return self.answer_piece(request, range, true).map(|left| self.read_rest(request, left));
        }
        if range.len() >= LENT && self.lends(range) {
            return self.answer_lent(request);
        }
        let mut left = range;
        while !left.is_empty() {
            let piece = left.clamp_to(left.start + PIECE);
            let not_now = self.answer_piece(request, piece, piece.end == range.end)?;
            if not_now.is_some() {
                self.read_rest(request, Some(left));
                return Ok(());
            }
            left.start = piece.end;
        }
        Ok(())
    }

    /// Answers from the batch.
    fn answer_small(&self, request: ReadRequest) -> std::io::Result<()> {
        let ReadRequest { cookie, range, whole } = request;
        let outgoing = self.outgoing;
        let chunked = outgoing.headers.chunked();
        let mut batch = outgoing.batch();
        let start = batch.bytes.len();
        if chunked {
            batch.put_data_header(cookie, range.start, range, true);
        } else {
            outgoing.encode_done(cookie, range.start, &mut batch.bytes);
        }
        let at = batch.bytes.len();
        batch.bytes.resize(at + range.len() as usize, 0);
        let (region, epoch) = (self.attachment.region(), self.attachment.epoch());
        let got = region.read_at_once(range, epoch, &mut batch.bytes[at..]);
        let zeroes = match &got {
            Ok(AtOnce::Zeroes) => true,
            Ok(AtOnce::Bytes) => Encoding::for_bytes(&batch.bytes[at..]) == Encoding::Zero,
            Ok(AtOnce::NotNow) | Err(_) => {
                batch.bytes.truncate(start);
                drop(batch);
                self.read_rest(request, Some(range));
                return Ok(());
            }
        };
        if zeroes && chunked && !whole {
            batch.bytes.truncate(start);
            batch.put_hole(cookie, range.start, range, true);
        } else if got.is_ok_and(|got| got == AtOnce::Zeroes) {
            // The buffer was not touched.
            batch.bytes[at..].fill(0);
        }
        batch.flush_if_large()
    }

    /// Answers a piece of a READ, or all of it. Answers with the piece where it cannot be had at once.
    fn answer_piece(
        &mut self,
        request: ReadRequest,
        piece: ByteRange,
        last: bool,
    ) -> std::io::Result<Option<ByteRange>> {
        let ReadRequest { cookie, range, whole } = request;
        let length = piece.len() as usize;
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
        let bytes = &mut self.buffer[..length];
        let (region, epoch) = (self.attachment.region(), self.attachment.epoch());
        let chunked = self.outgoing.headers.chunked();
        let got = match region.read_at_once(piece, epoch, bytes) {
            // Why is for the read to find out.
            Ok(AtOnce::NotNow) | Err(_) => return Ok(Some(piece)),
            Ok(got) => got,
        };
        let mut batch = self.outgoing.batch();
        if chunked && !whole {
            let runs = if got == AtOnce::Zeroes { vec![(piece, true)] } else { runs(piece, bytes) };
            for (run, zeroes) in runs {
                let last = last && run.end == piece.end;
                if zeroes {
                    batch.put_hole(cookie, range.start, run, last);
                    continue;
                }
                batch.put_data_header(cookie, range.start, run, last);
                let from = (run.start - piece.start) as usize;
                batch.send_with(&[&bytes[from..from + run.len() as usize]], run.end < piece.end)?;
            }
            return batch.flush_if_large().map(|()| None);
        }
        if got == AtOnce::Zeroes {
            bytes.fill(0);
        }
        if chunked {
            batch.put_data_header(cookie, range.start, piece, last);
        } else {
            self.outgoing.encode_done(cookie, range.start, &mut batch.bytes);
        }
        batch.send_with(&[bytes], false)?;
        drop(batch);
        if length > KEPT {
            self.buffer = Vec::new();
        }
        Ok(None)
    }

    /// Whether the region lends its file, and the page cache is likely to have the range.
    fn lends(&self, range: ByteRange) -> bool {
        let Some(lent) = self.attachment.region().lend() else { return false };
        let mut byte = [0];
        let mut is_there = |at| matches!(pagewire_sys::file::pread_nowait(lent.file, &mut byte, at), Ok(1));
        self.in_memory
            || (is_there(range.start) && is_there(range.end - 1) && is_there(range.start + range.len() / 2))
    }

    /// Answers with the bytes of a file that is lent.
    fn answer_lent(&self, request: ReadRequest) -> std::io::Result<()> {
        let ReadRequest { cookie, range, .. } = request;
        let region = self.attachment.region();
        let Some(lent) = region.lend() else {
            self.read_rest(request, Some(range));
            return Ok(());
        };
        let holes = region.holes(range, self.attachment.epoch()).unwrap_or_default();
        let mut batch = self.outgoing.batch();
        let mut failed = None;
        let mut at = range.start;
        // One more, empty and behind the end, for what follows the last one.
        for hole in holes.into_iter().chain([ByteRange::new(range.end, range.end)]) {
            let data = ByteRange::new(at, hole.start.max(at));
            if !data.is_empty() {
                batch.put_data_header(cookie, range.start, data, false);
                let (sent, result) = batch.send_file(lent.file, data);
                match result {
                    Ok(()) if sent == data.len() => {}
                    Err(error) if is_socket_error(&error) => return Err(error),
                    result => {
                        let error = match result {
                            Ok(()) => Error::new(ErrorKind::Changed, "the file has become shorter"),
                            Err(error) => Error::io("cannot read the file", &error),
                        };
                        batch.fill_up(data.len() - sent)?;
                        failed = Some(error);
                        break;
                    }
                }
            }
            if !hole.is_empty() {
                batch.put_hole(cookie, range.start, hole, false);
            }
            at = hole.end;
        }
        // Looked at after the bytes were taken, so that what is good is what was sent.
        match region.check_lent().err().or(failed) {
            None => Chunk::None.encode(
                self.outgoing.headers,
                cookie,
                range.start,
                ReplyFlags::DONE,
                &mut batch.bytes,
            ),
            Some(error) => {
                let (number, text) = (errno::to_number(&error), error.to_string());
                self.outgoing.encode_failure(cookie, range.start, number, &text, &mut batch.bytes);
            }
        }
        batch.flush_if_large()
    }

    /// Submits a read of what is left of a request, if anything is: it is answered when it is there.
    fn read_rest(&self, request: ReadRequest, left: Option<ByteRange>) {
        let Some(left) = left else { return };
        let (region, epoch) = (self.attachment.region(), self.attachment.epoch());
        let under_way = self.outgoing.begin(self.attachment, left.len() as usize);
        let answer = Answer { request, under_way };
        if self.outgoing.headers.chunked() && !request.whole {
            let sink = Arc::new(Chunks { answer, ended: Mutex::new(false) });
            return region.read(Read { ranges: vec![left], epoch, urgency: Urgency::Demand, sink });
        }
        // A store may be held up by a read of the bytes that it is to replace; the client cannot hold up the read.
        let sink = Gather::new(left, move |result| answer.end_whole(result));
        region.read(Read { ranges: vec![left], epoch, urgency: Urgency::Demand, sink });
    }
}

/// An answer that is under way.
struct Answer {
    request: ReadRequest,
    under_way: UnderWay,
}

impl Answer {
    fn outgoing(&self) -> &Arc<Outgoing> {
        self.under_way.outgoing()
    }

    fn fail(&self, error: &Error) {
        let ReadRequest { cookie, range, .. } = self.request;
        tracing::warn!(%range, %error, "an NBD client cannot be given what it reads");
        let (outgoing, number, text) = (self.outgoing(), errno::to_number(error), error.to_string());
        outgoing.put(|out| outgoing.encode_failure(cookie, range.start, number, &text, out));
    }

    /// Answers with all bytes at once.
    fn end_whole(&self, result: Result<Vec<u8>>) {
        let ReadRequest { cookie, range, .. } = self.request;
        let outgoing = self.outgoing();
        match result {
            Err(error) => self.fail(&error),
            Ok(bytes) if outgoing.headers.chunked() => {
                let data = Chunk::OffsetData { offset: range.start, data: &bytes };
                outgoing.put(|out| data.encode(outgoing.headers, cookie, range.start, ReplyFlags::DONE, out));
            }
            Ok(bytes) => outgoing.put(|out| {
                outgoing.encode_done(cookie, range.start, out);
                out.extend_from_slice(&bytes);
            }),
        }
    }
}

/// Answers with a chunk for each part.
struct Chunks {
    answer: Answer,
    ended: Mutex<bool>,
}

impl Sink for Chunks {
    fn part(&self, part: Part<'_>) {
        let ReadRequest { cookie, range, .. } = self.answer.request;
        let outgoing = self.answer.outgoing();
        let headers = outgoing.headers;
        outgoing.put(|out| match part {
            Part::Bytes { offset, bytes } if Encoding::for_bytes(bytes) != Encoding::Zero => {
                Chunk::OffsetData { offset, data: bytes }.encode(
                    headers,
                    cookie,
                    range.start,
                    ReplyFlags::NONE,
                    out,
                );
            }
            part => encode_hole(headers, cookie, range.start, part.range(), false, out),
        });
    }

    fn done(&self, result: Result<()>) {
        let mut ended = self.ended.lock().expect("no holder panics");
        if std::mem::replace(&mut *ended, true) {
            return;
        }
        let ReadRequest { cookie, range, .. } = self.answer.request;
        let outgoing = self.answer.outgoing();
        match result {
            Ok(()) => outgoing.put(|out| outgoing.encode_done_of_read(cookie, range.start, out)),
            Err(error) => self.answer.fail(&error),
        }
    }
}

/// `range` cut where its bytes begin and end to be zeroes for so long that it is worth a chunk.
fn runs(range: ByteRange, bytes: &[u8]) -> Vec<(ByteRange, bool)> {
    let mut runs: Vec<(ByteRange, bool)> = Vec::new();
    for piece in range.split(GRAIN) {
        let from = (piece.start - range.start) as usize;
        let zeroes = Encoding::for_bytes(&bytes[from..from + piece.len() as usize]) == Encoding::Zero;
        match runs.last_mut() {
            Some((last, are_zeroes)) if *are_zeroes == zeroes => last.end = piece.end,
            _ => runs.push((piece, zeroes)),
        }
    }
    runs
}

/// `sendfile` fails for either of its ends.
fn is_socket_error(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    is_closed(error) || matches!(error.kind(), Kind::WouldBlock | Kind::TimedOut)
}
