//! What those requests do that write: WRITE, WRITE_ZEROES, TRIM and FLUSH.
//!
//! A write is carried out by the thread that has received it, in pieces as they come. What waits for a disk is
//! carried out by a thread of the connection's own pool, so that others of its requests go on meanwhile.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::nbd::ErrorNumber;

use super::attachment::Attachment;
use super::incoming::{Incoming, PIECE, Payload};
use super::outgoing::{Outgoing, UnderWay};
use crate::engine::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::store::pool::Pool;
use crate::store::{Completion, wait};

/// Up to so many bytes of zeroes are noted on the spot, where they are only noted.
const SHORT: u64 = 64 << 20;

/// What carries out the changes that one connection asks for.
pub(super) struct Changer {
    attachment: Arc<Attachment>,
    outgoing: Arc<Outgoing>,
    pool: Arc<Pool>,
}

/// Zeroes that are to be written.
#[derive(Clone, Copy)]
pub(super) struct Zeroes {
    pub(super) range: ByteRange,
    pub(super) fua: bool,
    /// Whether they are to take up room.
    pub(super) no_hole: bool,
    /// Whether they are to cost less than to write them, or fail.
    pub(super) fast: bool,
}

impl Changer {
    pub(super) fn new(attachment: Arc<Attachment>, outgoing: Arc<Outgoing>, pool: Arc<Pool>) -> Self {
        Self { attachment, outgoing, pool }
    }

    /// Carries out a WRITE, whose payload comes next. An error is one of the connection.
    pub(super) fn write(
        &self,
        cookie: u64,
        range: ByteRange,
        fua: bool,
        incoming: &mut Incoming<'_>,
    ) -> io::Result<()> {
        let writing = match self.attachment.writing() {
            Ok(writing) => writing,
            Err(error) => {
                incoming.skip(range.len())?;
                self.outgoing.put(|out| self.outgoing.encode_result(cookie, range.start, &Err(error), out));
                return Ok(());
            }
        };
        let under_way = self.begin(range.len().min(PIECE) as usize);
        let write = Arc::new(Write::new(self.change(cookie, range, fua, under_way)));
        let received = write.receive(&writing.writer, range, incoming);
        // Also what has come of one that breaks off is written, and is to be flushed.
        let lost = |error| Err(Error::io("lost the connection in the middle of a write", error));
        write.piece_done(received.as_ref().map_or_else(lost, |()| Ok(())));
        self.relieve();
        received
    }

    /// Has much that was written flushed, in the background.
    fn relieve(&self) {
        if self.attachment.writing().is_ok_and(|writing| writing.needs_relief()) {
            let under_way = self.begin(0);
            self.pool.run(Box::new(move || {
                if let Ok(writing) = under_way.attachment().writing() {
                    writing.relieve();
                }
            }));
        }
    }

    /// Carries out a WRITE_ZEROES.
    pub(super) fn zero(&self, cookie: u64, zeroes: Zeroes) {
        let Zeroes { range, fua, no_hole, fast } = zeroes;
        let noted = self.attachment.zeroes_are_fast() && !no_hole;
        if fast && !noted {
            let (error, text) = (ErrorNumber::ENOTSUP, "zeroes cost as much here as other bytes");
            return self.outgoing.put(|out| {
                self.outgoing.encode_failure(cookie, range.start, error, text, out);
            });
        }
        let under_way = self.begin(0);
        let change = self.change(cookie, range, fua, under_way);
        if range.is_empty() {
            return change.end(&Ok(()));
        }
        let work = move || {
            let result = change.attachment().writing().and_then(|writing| match no_hole {
                true => {
                    // One that finds zeroes in it makes no hole of them.
                    let bytes = vec![0; range.len().min(PIECE) as usize];
                    range.split(PIECE).try_for_each(|piece| {
                        wait(|done| writing.writer.write(&[piece], &bytes[..piece.len() as usize], done))
                    })
                }
                false => wait(|done| writing.writer.zero(&[range], done)),
            });
            change.end(&result);
        };
        if noted && range.len() <= SHORT { work() } else { self.pool.run(Box::new(work)) }
    }

    /// Carries out a TRIM: whole pages are forgotten, and read as zeroes.
    pub(super) fn trim(&self, cookie: u64, range: ByteRange, fua: bool) {
        let under_way = self.begin(0);
        let change = self.change(cookie, range, fua, under_way);
        let end =
            if range.end == self.attachment.size() { range.end } else { range.end / PAGE_SIZE * PAGE_SIZE };
        let start = range.start.next_multiple_of(PAGE_SIZE);
        if start >= end {
            // It is a hint.
            return change.end(&Ok(()));
        }
        let pages = ByteRange::new(start, end);
        let work = move || {
            let trimmed = change
                .attachment()
                .writing()
                .and_then(|writing| wait(|done| writing.writer.zero(&[pages], done)));
            change.end(&match trimmed {
                Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
                result => result,
            });
        };
        let noted = self.attachment.zeroes_are_fast() && pages.len() <= SHORT;
        if noted { work() } else { self.pool.run(Box::new(work)) }
    }

    /// Carries out a FLUSH.
    pub(super) fn flush(&self, cookie: u64) {
        let under_way = self.begin(0);
        self.pool.run(Box::new(move || {
            let (attachment, outgoing) = (under_way.attachment(), under_way.outgoing());
            let result = attachment.flush();
            tell_failure(attachment, &result);
            outgoing.send(|out| outgoing.encode_result(cookie, 0, &result, out));
        }));
    }

    fn change(&self, cookie: u64, range: ByteRange, fua: bool, under_way: UnderWay) -> Change {
        Change { pool: self.pool.clone(), cookie, range, fua, under_way }
    }

    fn begin(&self, bytes: usize) -> UnderWay {
        self.outgoing.begin(&self.attachment, bytes)
    }
}

/// A change that is under way.
struct Change {
    pool: Arc<Pool>,
    cookie: u64,
    range: ByteRange,
    /// Whether it is flushed before it is answered.
    fua: bool,
    under_way: UnderWay,
}

impl Change {
    fn attachment(&self) -> &Attachment {
        self.under_way.attachment()
    }

    /// Answers it. Called on whichever thread has carried it out.
    fn end(self, result: &Result<()>) {
        if let Ok(writing) = self.attachment().writing()
            && !self.range.is_empty()
        {
            writing.mark(self.range);
        }
        if self.fua && result.is_ok() {
            let pool = self.pool.clone();
            return pool.run(Box::new(move || {
                let result = self.attachment().flush();
                tell_failure(self.attachment(), &result);
                self.under_way.outgoing().send(|out| self.encode(&result, out));
            }));
        }
        self.under_way.outgoing().put(|out| self.encode(result, out));
    }

    fn encode(&self, result: &Result<()>, out: &mut Vec<u8>) {
        self.under_way.outgoing().encode_result(self.cookie, self.range.start, result, out);
    }
}

/// A WRITE in pieces.
struct Write {
    change: Mutex<Option<Change>>,
    /// How many pieces are under way, and one while there may be more.
    left: AtomicUsize,
    error: Mutex<Option<Error>>,
}

impl Write {
    fn new(change: Change) -> Self {
        Self { change: Mutex::new(Some(change)), left: AtomicUsize::new(1), error: Mutex::default() }
    }

    /// Submits what comes of its payload, piece after piece.
    fn receive(
        self: &Arc<Self>,
        writer: &Writer,
        range: ByteRange,
        incoming: &mut Incoming<'_>,
    ) -> io::Result<()> {
        let moves = writer.moves();
        let mut left = range;
        while !left.is_empty() {
            match incoming.of_write(left, moves)? {
                Payload::Bytes(bytes) => {
                    writer.write(&[left.take_front(bytes.len() as u64)], bytes, self.piece());
                }
                Payload::Moved(pipe, length) => {
                    writer.write_moved(left.take_front(length), pipe, self.piece());
                }
            }
        }
        Ok(())
    }

    /// What is to be called when another piece is done.
    fn piece(self: &Arc<Self>) -> Completion {
        self.left.fetch_add(1, Ordering::Relaxed);
        let write = self.clone();
        Box::new(move |result| write.piece_done(result))
    }

    fn piece_done(&self, result: Result<()>) {
        if let Err(error) = result {
            self.error.lock().expect("no holder panics").get_or_insert(error);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let error = self.error.lock().expect("no holder panics").take();
        let change = self.change.lock().expect("no holder panics").take();
        if let Some(change) = change {
            change.end(&error.map_or(Ok(()), Err));
        }
    }
}

fn tell_failure(attachment: &Attachment, result: &Result<()>) {
    if let Err(error) = result {
        tracing::error!(region = attachment.region().name(), %error, "what NBD clients have written cannot be flushed");
    }
}
