//! One connection to a server: its handshake, and what is sent on it and not answered.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pagewire_core::nbd::client::{Agreed, ClientHandshake, HandshakeError, Next, Outcome, Wanted};
use pagewire_core::nbd::{CommandFlags, Headers, Request};

use super::call::Call;
use crate::address::NbdAddress;
use crate::error::{Error, ErrorKind, Result};
use crate::store::RemoteOptions;
use crate::transport::{Connection, refused};

/// How many bytes of requests are sent with one system call, about.
const BATCH: usize = 16 << 10;

/// A connection in transmission.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) index: usize,
    /// When it was made, as the session counts.
    pub(super) born: u64,
    pub(super) headers: Headers,
    pub(super) allocation: Option<u32>,
    sending: Mutex<Vec<u8>>,
    calls: Mutex<Calls>,
    /// How many bytes of answers were asked for and have not come.
    owed: AtomicU64,
    begun: Instant,
    /// When something was heard last, in microseconds since it began.
    heard: AtomicU64,
    /// Whether what has come is being placed: then nothing is listened to.
    placing: AtomicBool,
}

#[derive(Default)]
struct Calls {
    closed: bool,
    next: u64,
    waiting: HashMap<u64, Arc<Call>>,
}

/// What a handshake has brought.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) agreed: Agreed,
    pub(super) round_trip: Duration,
}

/// Connects to a server, and asks for what is wanted. The third answer is how long the last question took.
pub(super) fn greet(
    address: &NbdAddress,
    wanted: Wanted,
    options: &RemoteOptions,
) -> Result<(Connection, Outcome, Duration)> {
    let deadline = Instant::now() + options.connect_timeout;
    let mut connection = Connection::connect_nbd(address, options.connect_timeout)?;
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            let text = format!("no answer from {address} within {:?}", options.connect_timeout);
            Error::new(ErrorKind::Unavailable, text)
        }
        _ => refused(address, &error),
    };
    let mut handshake = ClientHandshake::new(wanted, address.tls.is_some());
    let mut asked = Instant::now();
    let mut bytes = Vec::new();
    loop {
        let out = handshake.poll_send();
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io(std::io::ErrorKind::TimedOut.into()));
        }
        connection.set_timeouts(Some(left), Some(left)).map_err(io)?;
        if !out.is_empty() {
            asked = Instant::now();
            connection.send(&[&out], false).map_err(io)?;
        }
        match handshake.poll_next() {
            Next::Receive(count) => {
                bytes.resize(count, 0);
                receive(&connection, &mut bytes, deadline).map_err(io)?;
                if let Err(error) = handshake.handle_bytes(&bytes) {
                    // The server is told, if it is one that can be told.
                    let _ = connection.send(&[&handshake.poll_send()], false);
                    return Err(failed(address, &error));
                }
            }
            Next::BeginTls => {
                connection = connection.begin_nbd_tls(address, &options.tls, deadline)?;
                handshake.handle_tls();
            }
            Next::Done => {
                let outcome = handshake.into_outcome().expect("a handshake that is over has an outcome");
                return Ok((connection, outcome, asked.elapsed()));
            }
        }
    }
}

/// Receives until `bytes` is full, or the deadline: however little comes at a time.
fn receive(connection: &Connection, bytes: &mut [u8], deadline: Instant) -> std::io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        connection.set_timeouts(Some(left), Some(left))?;
        match connection.receive(&mut bytes[done..])? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            came => done += came,
        }
    }
    Ok(())
}

fn failed(address: &NbdAddress, error: &HandshakeError) -> Error {
    let (kind, retry) = match error {
        HandshakeError::NoServer(_) | HandshakeError::Malformed(_) => (ErrorKind::Protocol, false),
        HandshakeError::Oldstyle | HandshakeError::NoTls(_) | HandshakeError::NoList(_) => {
            (ErrorKind::Unsupported, false)
        }
        HandshakeError::TlsDemanded(_) => (ErrorKind::Denied, false),
        HandshakeError::NoExport { .. } => (ErrorKind::NotFound, false),
        HandshakeError::Refused { kind, .. } => match *kind {
            pagewire_core::nbd::OptionReplyType::ERR_SHUTDOWN => (ErrorKind::Unavailable, true),
            pagewire_core::nbd::OptionReplyType::ERR_POLICY => (ErrorKind::Denied, false),
            _ => (ErrorKind::Unsupported, false),
        },
    };
    Error::new(kind, format!("cannot use {address}")).because(error).with_retry(retry)
}

/// Connects to an export.
pub(super) fn open(address: &NbdAddress, options: &RemoteOptions) -> Result<Opened> {
    match greet(address, Wanted::Export(address.export.clone()), options)? {
        (connection, Outcome::Export(agreed), round_trip) => {
            let set = connection.set_timeouts(Some(options.patience), None);
            set.map_err(|error| refused(address, &error))?;
            Ok(Opened { connection, agreed, round_trip })
        }
        (_, Outcome::List(_), _) => unreachable!("an export was asked for"),
    }
}

impl Link {
    pub(super) fn new(opened: Opened, index: usize, born: u64) -> Self {
        let Agreed { headers, allocation, .. } = opened.agreed;
        Self {
            connection: opened.connection,
            index,
            born,
            headers,
            allocation,
            sending: Mutex::default(),
            calls: Mutex::new(Calls { next: 1, ..Calls::default() }),
            owed: AtomicU64::new(0),
            begun: Instant::now(),
            heard: AtomicU64::new(0),
            placing: AtomicBool::new(false),
        }
    }

    /// Sends calls, which belong to the link from then on until they are answered or the link is lost. Where
    /// sending fails, the link is lost, which its own thread finds out.
    ///
    /// # Errors
    ///
    /// The calls, where the link is lost already.
    pub(super) fn send(&self, calls: Vec<Arc<Call>>) -> Result<(), Vec<Arc<Call>>> {
        let cookies = {
            let mut table = self.calls();
            if table.closed {
                return Err(calls);
            }
            if table.waiting.is_empty() {
                self.hear();
            }
            let first = table.next;
            table.next += calls.len() as u64;
            table.waiting.extend((first..).zip(calls.iter().cloned()));
            first..
        };
        let mut out = self.sending.lock().expect("no holder panics");
        out.clear();
        let mut sent = Ok(());
        for (cookie, call) in cookies.zip(&calls) {
            let Some((request, payload)) = call.request(cookie) else {
                // It has ended meanwhile, and is not sent.
                self.calls().waiting.remove(&cookie);
                continue;
            };
            self.owed.fetch_add(call.owed(), Ordering::Relaxed);
            self.encode(request, &mut out);
            if !payload.is_empty() || out.len() >= BATCH {
                sent = sent.and_then(|()| self.connection.send(&[&out, payload], false));
                out.clear();
            }
        }
        if !out.is_empty() {
            sent = sent.and_then(|()| self.connection.send(&[&out], false));
        }
        drop(out);
        if sent.is_err() {
            self.kill();
        }
        Ok(())
    }

    fn encode(&self, request: Request, out: &mut Vec<u8>) {
        let extended = self.headers.extended();
        let has_payload = request.command == pagewire_core::nbd::CommandType::WRITE;
        let flags = request.flags.with_if(CommandFlags::PAYLOAD_LEN, extended && has_payload);
        Request { flags, ..request }.encode(extended, out);
    }

    /// Tells the server that this was all.
    pub(super) fn say_goodbye(&self) {
        let command = pagewire_core::nbd::CommandType::DISC;
        let request = Request { flags: CommandFlags::NONE, command, cookie: 0, offset: 0, length: 0 };
        // Who is sending is cut off; then the server finds the connection cut. Nobody waits for one that does
        // not read.
        let patience = Some(Duration::from_millis(100));
        if let Ok(mut out) = self.sending.try_lock()
            && self.connection.set_timeouts(patience, patience).is_ok()
        {
            out.clear();
            self.encode(request, &mut out);
            let _ = self.connection.send(&[&out], false);
        }
    }

    /// The call of a cookie.
    pub(super) fn call(&self, cookie: u64) -> Option<Arc<Call>> {
        self.calls().waiting.get(&cookie).cloned()
    }

    /// The call of a cookie is answered: nothing more comes of it.
    pub(super) fn finish(&self, cookie: u64) {
        let call = self.calls().waiting.remove(&cookie);
        self.came(call.map_or(0, |call| call.owed()));
    }

    /// Bytes that were asked for have come.
    pub(super) fn came(&self, bytes: u64) {
        self.owed.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// How many bytes of answers were asked for and have not come, about.
    pub(super) fn owed(&self) -> u64 {
        self.owed.load(Ordering::Relaxed)
    }

    /// What was sent and is not answered.
    pub(super) fn waiting(&self) -> Vec<Arc<Call>> {
        self.calls().waiting.values().cloned().collect()
    }

    /// Nothing is sent any more. Gives what was sent and is not answered.
    pub(super) fn close(&self) -> Vec<Arc<Call>> {
        let mut table = self.calls();
        table.closed = true;
        let mut calls: Vec<_> = table.waiting.drain().collect();
        calls.sort_by_key(|(cookie, _)| *cookie);
        calls.into_iter().map(|(_, call)| call).collect()
    }

    /// Ends the link: its thread comes back from receiving.
    pub(super) fn kill(&self) {
        self.connection.shutdown();
    }

    /// Something is heard of the server.
    pub(super) fn hear(&self) {
        self.heard.store(self.begun.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// Runs `place`, during which the server is not listened to.
    pub(super) fn while_placing(&self, place: impl FnOnce()) {
        self.placing.store(true, Ordering::Relaxed);
        place();
        self.hear();
        self.placing.store(false, Ordering::Relaxed);
    }

    /// For how long the server has said nothing though something is to be said.
    pub(super) fn silence(&self) -> Duration {
        if self.placing.load(Ordering::Relaxed) || self.calls().waiting.is_empty() {
            return Duration::ZERO;
        }
        let heard = Duration::from_micros(self.heard.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(heard)
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().expect("no holder panics")
    }
}
