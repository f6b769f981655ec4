//! Replies on their way out of one connection.
//!
//! What the connection's own thread answers is gathered in a *batch*, which leaves with one system call when no
//! request is left to be read, or when it is large. Threads that work for this connection alone send at once, with
//! whatever is in the batch. Those that serve others too must not be held up by a client that does not read:
//! what they have is *deferred* to a thread that is started when it is first needed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::ThreadId;
use std::time::Duration;

use pagewire_core::chunk::ByteRange;
use pagewire_core::nbd::{Chunk, ErrorNumber, Headers, ReplyFlags, ReplyHeader, chunk};

use super::attachment::Attachment;
use super::errno;
use crate::error::Error;
use crate::transport::Connection;

/// How many bytes of a batch are sent without waiting for more: the cost per call has vanished.
const BATCH: usize = 128 << 10;

/// How many bytes the requests under way on one connection may ask for in all, with those whose replies wait to be
/// sent. Whoever asks for more waits, unless nothing is under way.
const MAX_UNDER_WAY: usize = 48 << 20;

/// How many requests of one connection may be under way.
const MAX_REQUESTS: usize = 1024;

/// The sending side of a connection.
pub(super) struct Outgoing {
    connection: Connection,
    pub(super) headers: Headers,
    /// Replies that were not sent yet. Who sends holds it.
    batch: Mutex<Vec<u8>>,
    state: Mutex<State>,
    changed: Condvar,
    /// The thread that receives this connection's requests.
    own_thread: OnceLock<ThreadId>,
}

#[derive(Default)]
struct State {
    /// Replies for the thread that sends them.
    deferred: VecDeque<Vec<u8>>,
    deferred_bytes: usize,
    started: bool,
    /// How many requests are under way elsewhere, and how many bytes they ask for.
    requests: usize,
    bytes: usize,
    /// Whether somebody waits for one of them to end.
    awaited: bool,
    closed: bool,
}

impl Outgoing {
    pub(super) fn new(connection: Connection, headers: Headers) -> Self {
        Self {
            connection,
            headers,
            batch: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            own_thread: OnceLock::new(),
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The calling thread receives this connection's requests.
    pub(super) fn own(&self) {
        self.own_thread.get_or_init(|| std::thread::current().id());
    }

    fn is_own_thread(&self) -> bool {
        self.own_thread.get() == Some(&std::thread::current().id())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// The batch, to be added to by the connection's own thread.
    pub(super) fn batch(&self) -> Batch<'_> {
        Batch { outgoing: self, bytes: self.batch.lock().expect("no holder panics") }
    }

    /// Sends the batch.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.batch().flush()
    }

    /// Answers a request, from whichever thread.
    pub(super) fn put(self: &Arc<Self>, reply: impl FnOnce(&mut Vec<u8>)) {
        if self.is_own_thread() {
            let mut batch = self.batch();
            reply(&mut batch.bytes);
            return;
        }
        let mut bytes = Vec::new();
        reply(&mut bytes);
        self.defer(bytes);
    }

    /// Answers a request, from a thread that works for this connection alone.
    pub(super) fn send(&self, reply: impl FnOnce(&mut Vec<u8>)) {
        let mut batch = self.batch();
        reply(&mut batch.bytes);
        if batch.flush().is_err() {
            self.close();
        }
    }

    /// What says that a request was carried out.
    pub(super) fn encode_done(&self, cookie: u64, offset: u64, out: &mut Vec<u8>) {
        match self.headers {
            Headers::Extended => Chunk::None.encode(self.headers, cookie, offset, ReplyFlags::DONE, out),
            // The shortest that may be sent.
            _ => ReplyHeader::done(cookie).encode(self.headers, out),
        }
    }

    /// What says that a READ is answered, behind its chunks or without one.
    pub(super) fn encode_done_of_read(&self, cookie: u64, offset: u64, out: &mut Vec<u8>) {
        match self.headers {
            Headers::Simple => self.encode_done(cookie, offset, out),
            _ => Chunk::None.encode(self.headers, cookie, offset, ReplyFlags::DONE, out),
        }
    }

    /// What says that a request has failed.
    pub(super) fn encode_failure(
        &self,
        cookie: u64,
        offset: u64,
        error: ErrorNumber,
        message: &str,
        out: &mut Vec<u8>,
    ) {
        if self.headers == Headers::Simple {
            return ReplyHeader::Simple { error, cookie }.encode(self.headers, out);
        }
        let chunk = Chunk::Error { error, message: message.into() };
        chunk.encode(self.headers, cookie, offset, ReplyFlags::DONE, out);
    }

    /// What says how a request has ended that has no payload.
    pub(super) fn encode_result(
        &self,
        cookie: u64,
        offset: u64,
        result: &Result<(), Error>,
        out: &mut Vec<u8>,
    ) {
        match result {
            Ok(()) => self.encode_done(cookie, offset, out),
            Err(error) => {
                self.encode_failure(cookie, offset, errno::to_number(error), &error.to_string(), out);
            }
        }
    }

    /// A request of so many bytes is carried out elsewhere from now on, as soon as there is room for it. Until the
    /// answer is dropped.
    pub(super) fn begin(self: &Arc<Self>, attachment: &Arc<Attachment>, bytes: usize) -> UnderWay {
        let mut state = self.state();
        loop {
            let used = state.bytes + state.deferred_bytes;
            let room = used == 0 || used + bytes <= MAX_UNDER_WAY;
            if state.closed || (room && state.requests < MAX_REQUESTS) {
                break;
            }
            drop(state);
            // The client may wait for what is in there.
            if self.flush().is_err() {
                self.close();
            }
            state = self.wait(self.state());
        }
        state.requests += 1;
        state.bytes += bytes;
        drop(state);
        UnderWay { outgoing: self.clone(), attachment: Some(attachment.clone()), bytes }
    }

    /// Waits until nothing is under way, and everything is sent that can be.
    pub(super) fn finish(&self) {
        if self.flush().is_err() {
            self.close();
        }
        let mut state = self.state();
        while state.requests > 0 || (!state.closed && state.deferred_bytes > 0) {
            state = self.wait(state);
        }
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.awaited = true;
        // Longer than anything takes to be told: only to be safe from one that is missed.
        let mut state =
            self.changed.wait_timeout(state, Duration::from_millis(100)).expect("no holder panics").0;
        state.awaited = false;
        state
    }

    /// No further request is received.
    pub(super) fn end_receiving(&self) {
        self.connection.end_receiving();
    }

    /// Ends the connection: whoever waits for it comes back.
    pub(super) fn close(&self) {
        self.connection.shutdown();
        let mut state = self.state();
        state.closed = true;
        state.deferred.clear();
        state.deferred_bytes = 0;
        self.changed.notify_all();
    }

    fn defer(self: &Arc<Self>, bytes: Vec<u8>) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        state.deferred_bytes += bytes.len();
        state.deferred.push_back(bytes);
        if !state.started {
            let this = self.clone();
            match std::thread::Builder::new().name("nbd-deferred".into()).spawn(move || this.send_deferred())
            {
                Ok(_) => state.started = true,
                Err(error) => {
                    tracing::warn!(%error, "cannot start a thread for replies");
                    drop(state);
                    return self.close();
                }
            }
        }
        self.changed.notify_all();
    }

    fn send_deferred(&self) {
        let mut state = self.state();
        loop {
            if state.closed {
                return;
            }
            let Some(bytes) = state.deferred.pop_front() else {
                state = self.changed.wait(state).expect("no holder panics");
                continue;
            };
            drop(state);
            let sent = self.batch().send_with(&[&bytes], false);
            state = self.state();
            state.deferred_bytes = state.deferred_bytes.saturating_sub(bytes.len());
            if state.awaited {
                self.changed.notify_all();
            }
            if sent.is_err() {
                drop(state);
                return self.close();
            }
        }
    }
}

/// Replies that were not sent yet, and the right to send.
pub(super) struct Batch<'a> {
    outgoing: &'a Outgoing,
    pub(super) bytes: MutexGuard<'a, Vec<u8>>,
}

impl Batch<'_> {
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        self.send_with(&[], false)
    }

    /// Sends what is gathered, and `parts` behind it. With `more`, something follows at once.
    pub(super) fn send_with(&mut self, parts: &[&[u8]], more: bool) -> io::Result<()> {
        let connection = &self.outgoing.connection;
        let sent = match parts {
            [] => connection.send(&[&self.bytes], more),
            [part] => connection.send(&[&self.bytes, part], more),
            parts => connection.send(&[&[&self.bytes[..]], parts].concat(), more),
        };
        self.bytes.clear();
        sent
    }

    /// Sends what is gathered, and bytes of a file behind it, which something follows. Answers how many were sent,
    /// and what went wrong with either.
    pub(super) fn send_file(&mut self, file: BorrowedFd<'_>, range: ByteRange) -> (u64, io::Result<()>) {
        if let Err(error) = self.send_with(&[], true) {
            return (0, Err(error));
        }
        self.outgoing.connection.send_file(file, range.start, range.len())
    }

    /// Sends what is gathered if it is much.
    pub(super) fn flush_if_large(&mut self) -> io::Result<()> {
        if self.bytes.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Sends so many zeroes in place of bytes that could not be had.
    pub(super) fn fill_up(&mut self, mut count: u64) -> io::Result<()> {
        let filling = [0; 64 << 10];
        while count > 0 {
            let piece = count.min(filling.len() as u64);
            self.send_with(&[&filling[..piece as usize]], true)?;
            count -= piece;
        }
        Ok(())
    }

    /// Appends what stands before the bytes of `range`, in a chunk of a reply.
    pub(super) fn put_data_header(&mut self, cookie: u64, offset: u64, range: ByteRange, last: bool) {
        let flags = ReplyFlags::NONE.with_if(ReplyFlags::DONE, last);
        let headers = self.outgoing.headers;
        chunk::data_header(headers, cookie, offset, range.start, range.len(), flags, &mut self.bytes);
    }

    /// Appends a chunk that says that `range` is zeroes.
    pub(super) fn put_hole(&mut self, cookie: u64, offset: u64, range: ByteRange, last: bool) {
        encode_hole(self.outgoing.headers, cookie, offset, range, last, &mut self.bytes);
    }
}

/// Appends a chunk that says that `range` is zeroes, which has no more bytes than a read can ask for.
pub(super) fn encode_hole(
    headers: Headers,
    cookie: u64,
    offset: u64,
    range: ByteRange,
    last: bool,
    out: &mut Vec<u8>,
) {
    let hole = Chunk::OffsetHole { offset: range.start, length: range.len() as u32 };
    hole.encode(headers, cookie, offset, ReplyFlags::NONE.with_if(ReplyFlags::DONE, last), out);
}

/// A request that is carried out elsewhere. Its client stays until it is dropped.
pub(super) struct UnderWay {
    outgoing: Arc<Outgoing>,
    attachment: Option<Arc<Attachment>>,
    bytes: usize,
}

impl UnderWay {
    pub(super) fn outgoing(&self) -> &Arc<Outgoing> {
        &self.outgoing
    }

    pub(super) fn attachment(&self) -> &Attachment {
        self.attachment.as_ref().expect("it is there until this is dropped")
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // Before the connection's thread is told, which is to be the last that has one.
        self.attachment = None;
        let mut state = self.outgoing.state();
        state.requests -= 1;
        state.bytes -= self.bytes;
        // To wake somebody costs as much as a tenth of an answer, and rarely anybody waits.
        if state.awaited {
            self.outgoing.changed.notify_all();
        }
    }
}
