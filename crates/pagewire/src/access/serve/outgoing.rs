//! Frames on their way out of one connection, one at a time.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::ThreadId;

use pagewire_core::pack::{Agreed, Codec};
use pagewire_core::wire::{Notification, Reply};

use crate::error::Error;
use crate::transport::{Connection, Packer};

/// How many bytes of answers may wait for a peer that does not take them, beyond what the kernel
/// keeps. More makes the peer one that has stopped reading.
const MAX_DEFERRED: usize = 40 << 20;

/// How many bytes the reads under way on one connection may ask for in all, with those whose answers
/// wait to be sent. Whoever asks for more waits: a client that reads as fast as it can is held up by
/// the store and the network, and costs no more memory than this.
const MAX_UNDER_WAY: usize = 16 << 20;

/// The sending side of a connection.
pub(super) struct Outgoing {
    connection: Connection,
    /// Held while a frame is sent.
    turn: Mutex<Vec<u8>>,
    deferred: Mutex<Deferred>,
    arrived: Condvar,
    /// The thread that serves this connection alone.
    own_thread: OnceLock<ThreadId>,
    /// Compresses what carries bulk, once the handshake has agreed on how.
    packer: OnceLock<Packer>,
}

#[derive(Default)]
struct Deferred {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether the receiving thread waits for a read to end.
    read_waits: bool,
    /// How many bytes the reads under way ask for.
    under_way: usize,
    started: bool,
    closed: bool,
}

/// The right to send: nobody else does while it lives.
pub(super) struct Turn<'a> {
    connection: &'a Connection,
    scratch: MutexGuard<'a, Vec<u8>>,
}

impl Outgoing {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            turn: Mutex::default(),
            deferred: Mutex::default(),
            arrived: Condvar::new(),
            own_thread: OnceLock::new(),
            packer: OnceLock::new(),
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The handshake has agreed on how to compress.
    pub(super) fn agree(&self, agreed: Agreed) {
        self.packer.get_or_init(|| Packer::new(agreed));
    }

    /// What was agreed on.
    pub(super) fn agreed(&self) -> Agreed {
        self.packer.get().map_or(Agreed::NONE, Packer::agreed)
    }

    /// How to send the next frame of bulk.
    pub(super) fn choose(&self) -> Option<Codec> {
        self.packer.get()?.choose()
    }

    /// Compresses a frame of bulk. None where it is not worth sending so.
    pub(super) fn pack(&self, codec: Codec, bytes: &[u8]) -> Option<Vec<u8>> {
        self.packer.get()?.pack(codec, bytes)
    }

    /// So many bytes of bulk have gone into the socket.
    pub(super) fn has_sent(&self, bytes: u64) {
        if let Some(packer) = self.packer.get() {
            packer.sent(bytes, &self.connection);
        }
    }

    pub(super) fn peer(&self) -> String {
        self.connection.peer_name()
    }

    /// The calling thread serves this connection alone, so it may be held up by it.
    pub(super) fn own(&self) {
        self.own_thread.get_or_init(|| std::thread::current().id());
    }

    /// Whether the calling thread may be held up by this connection.
    pub(super) fn is_own_thread(&self) -> bool {
        self.own_thread.get() == Some(&std::thread::current().id())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.deferred.lock().expect("no holder panics").closed
    }

    /// Waits for the right to send.
    pub(super) fn turn(&self) -> Turn<'_> {
        let mut scratch = self.turn.lock().expect("no holder panics");
        scratch.clear();
        Turn { connection: &self.connection, scratch }
    }

    /// Sends a reply. A connection that fails is closed; its receiving thread finds that out.
    pub(super) fn reply(&self, id: u64, reply: &Reply) {
        let mut turn = self.turn();
        reply.encode(id, &mut turn.scratch);
        if turn.send_scratch().is_err() {
            self.connection.shutdown();
        }
    }

    /// Tells a request that it has failed.
    pub(super) fn fail(&self, id: u64, error: &Error, epoch: u64) {
        self.reply(id, &Reply::Error(error.to_wire(epoch)));
    }

    /// Sends the reply from whichever thread has it.
    pub(super) fn respond(self: &Arc<Self>, id: u64, reply: &Reply) {
        if self.is_own_thread() {
            return self.reply(id, reply);
        }
        let mut frame = Vec::new();
        reply.encode(id, &mut frame);
        self.defer(frame);
    }

    /// Tells a peer why it is not served, and closes the connection.
    pub(super) fn refuse(&self, error: &Error) {
        self.fail(0, error, 0);
        self.close();
    }

    /// Says why the connection is closed, and closes it.
    pub(super) fn goodbye(&self, reason: &str) {
        // Who is in the middle of a frame to a peer that does not read is not waited for.
        if let Ok(mut scratch) = self.turn.try_lock() {
            scratch.clear();
            Notification::Goodbye { reason: reason.into() }.encode(&mut scratch);
            // The connection is closed in any case.
            let _ = self.connection.send(&[&scratch], false);
        }
        self.close();
    }

    pub(super) fn close(&self) {
        self.connection.shutdown();
        let mut deferred = self.deferred.lock().expect("no holder panics");
        deferred.closed = true;
        deferred.frames.clear();
        self.arrived.notify_all();
    }

    /// A read of so many bytes begins, as soon as there is room for it.
    pub(super) fn begin_read(&self, bytes: usize) {
        let mut deferred = self.deferred.lock().expect("no holder panics");
        loop {
            let used = deferred.under_way + deferred.bytes;
            if deferred.closed || used == 0 || used + bytes <= MAX_UNDER_WAY {
                break;
            }
            deferred.read_waits = true;
            deferred = self.arrived.wait(deferred).expect("no holder panics");
        }
        deferred.read_waits = false;
        deferred.under_way += bytes;
    }

    /// A read of so many bytes has ended.
    pub(super) fn end_read(&self, bytes: usize) {
        let mut deferred = self.deferred.lock().expect("no holder panics");
        deferred.under_way -= bytes;
        // A call to wake somebody costs as much as a tenth of an answer, and rarely anybody waits.
        if deferred.read_waits {
            self.arrived.notify_all();
        }
    }

    /// Sends whole frames later, from a thread of this connection's own: the caller serves others
    /// too and must not be held up by a peer that does not read.
    pub(super) fn defer(self: &Arc<Self>, frames: Vec<u8>) {
        let mut deferred = self.deferred.lock().expect("no holder panics");
        if deferred.closed {
            return;
        }
        if deferred.bytes + frames.len() > MAX_DEFERRED {
            drop(deferred);
            tracing::warn!(peer = self.peer(), "a peer does not take its answers; its connection is closed");
            return self.close();
        }
        deferred.bytes += frames.len();
        deferred.frames.push_back(frames);
        if !deferred.started {
            let this = self.clone();
            match std::thread::Builder::new().name("pw-deferred".into()).spawn(move || this.send_deferred()) {
                Ok(_) => deferred.started = true,
                Err(error) => {
                    tracing::warn!(%error, "cannot start a thread for answers");
                    drop(deferred);
                    return self.close();
                }
            }
        }
        self.arrived.notify_all();
    }

    fn send_deferred(&self) {
        let mut deferred = self.deferred.lock().expect("no holder panics");
        loop {
            if deferred.closed {
                return;
            }
            let Some(frames) = deferred.frames.pop_front() else {
                deferred = self.arrived.wait(deferred).expect("no holder panics");
                continue;
            };
            drop(deferred);
            let sent = self.turn().send(&[&frames], false);
            deferred = self.deferred.lock().expect("no holder panics");
            deferred.bytes -= frames.len();
            if deferred.read_waits {
                self.arrived.notify_all();
            }
            if sent.is_err() {
                drop(deferred);
                return self.close();
            }
        }
    }
}

impl Turn<'_> {
    pub(super) fn connection(&self) -> &Connection {
        self.connection
    }

    pub(super) fn send(&self, parts: &[&[u8]], more: bool) -> io::Result<()> {
        self.connection.send(parts, more)
    }

    fn send_scratch(&mut self) -> io::Result<()> {
        self.connection.send(&[&self.scratch], false)
    }
}
