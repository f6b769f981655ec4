//! TLS on a connection: every byte that is sent leaves in records, and none is given before its record is
//! known to be whole and in its place.
//!
//! Two threads use a connection at once. Who sends has [`Sending`], so that records leave in the order of
//! their numbers; who receives has [`Receiving`]; both hold those across system calls. rustls itself is
//! behind a lock of its own, [`Layer::machine`], which is held while it encrypts or decrypts and never
//! while somebody waits for the socket: a peer that does not read holds up nobody who receives.
//!
//! Bytes go out in full records, several with one system call: what does not fill a record waits for what
//! is sent next, where the caller says that something is. What the kernel would take from a file by itself
//! is read and encrypted here.
//!
//! - [`machine`]: rustls, without I/O.
//! - [`config`]: what it is told, from files.
//! - [`failure`]: what its errors mean.

mod config;
mod failure;
mod machine;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use pagewire_sys::event::{PollItem, poll};
use pagewire_sys::{file, socket};

pub(crate) use self::config::Acceptor;
pub(crate) use self::failure::failure;
use self::machine::{Ciphertext, LARGEST, Machine, RECORD, RECORD_OVERHEAD, has_record};
use super::{ClientTls, Connection, Protocol};
use crate::error::Result;

/// How many bytes are encrypted before they are sent with one system call: the cost per call has vanished,
/// and what was encrypted is still in the processor's cache. So much is kept for each connection that sends
/// bulk, and as much again for what is read from files.
const BATCH: usize = 4 * RECORD;

/// How many bytes of records are received with one system call, at most.
const INCOMING: usize = 128 << 10;

/// How many bytes of a handshake are kept: the longest message that rustls takes, and a record.
const HANDSHAKE: usize = (64 << 10) + LARGEST;

/// The TLS of one connection.
pub(super) struct Layer {
    machine: Mutex<Machine>,
    sending: Mutex<Sending>,
    receiving: Mutex<Receiving>,
    protocol: Protocol,
    serves: bool,
    /// Whether the handshake is over. Before that nobody sends or receives.
    ready: AtomicBool,
    names: OnceLock<Vec<String>>,
}

#[derive(Default)]
struct Sending {
    /// What does not fill a record yet.
    staged: Vec<u8>,
    /// What was read from a file.
    read: Vec<u8>,
    out: Ciphertext,
    /// A part of what was encrypted is lost, and so nothing can come after it.
    broken: bool,
}

#[derive(Default)]
struct Receiving {
    incoming: Vec<u8>,
    /// Which of it are records that have come and were not decrypted.
    start: usize,
    end: usize,
    /// What was decrypted and not asked for yet, from `taken` on.
    plain: Vec<u8>,
    taken: usize,
    /// The peer has said that nothing more comes.
    ended: bool,
}

impl Layer {
    fn new(machine: Machine, protocol: Protocol, serves: bool) -> Self {
        Self {
            machine: Mutex::new(machine),
            sending: Mutex::default(),
            receiving: Mutex::default(),
            protocol,
            serves,
            ready: AtomicBool::new(false),
            names: OnceLock::new(),
        }
    }

    /// The TLS of a connection to the server at `place`, before its handshake.
    pub(super) fn to_server(place: &str, tls: &ClientTls, protocol: Protocol) -> Result<Self> {
        Ok(Self::new(config::client(place, tls, protocol)?, protocol, false))
    }

    /// The names in the certificate that a client has shown, in small letters.
    pub(super) fn names(&self) -> Option<&[String]> {
        self.names.get().map(Vec::as_slice)
    }

    /// Shakes hands on the socket of `connection`, whose timeouts are changed.
    pub(super) fn shake_hands(&self, connection: &Connection, deadline: Instant) -> io::Result<()> {
        let (mut sending, mut receiving) = (lock(&self.sending), lock(&self.receiving));
        let Receiving { incoming, start, end, plain, .. } = &mut *receiving;
        loop {
            let (used, over) = self.machine().shake_hands(&mut incoming[*start..*end], plain);
            *start += used;
            self.machine().take_owed(&mut sending.out);
            let sent = sending.flush(connection.fd(), false);
            if over.map_err(|error| failure::refused(&error))? {
                break;
            }
            sent?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            connection.set_timeouts(Some(left), Some(left))?;
            incoming.copy_within(*start..*end, 0);
            (*start, *end) = (0, *end - *start);
            if *end == HANDSHAKE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "TLS: a handshake without an end"));
            }
            incoming.resize((*end + LARGEST).min(HANDSHAKE), 0);
            match socket::receive(connection.fd(), &mut incoming[*end..])? {
                0 => {
                    let text = "the connection ended in the middle of the TLS handshake";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                came => *end += came,
            }
            // Told here, since rustls would answer with an alert, which who does not speak TLS cannot read.
            if !is_content_type(incoming[0]) {
                return Err(failure::not_tls());
            }
        }
        let machine = self.machine();
        let alpn = self.protocol.alpn();
        if alpn.is_some() && machine.state().alpn_protocol() != alpn {
            return Err(failure::not_pw());
        }
        let shown = machine.state().peer_certificates().and_then(<[_]>::first);
        if let Some(certificate) = shown.filter(|_| self.serves) {
            let certificate = webpki::EndEntityCert::try_from(certificate).map_err(io::Error::other)?;
            let names = certificate.valid_dns_names().map(str::to_ascii_lowercase).collect();
            // Nobody else shakes hands here.
            let _ = self.names.set(names);
        }
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Sends the parts one after another. With `more`, what does not fill a record waits for the next.
    pub(super) fn send(&self, fd: BorrowedFd<'_>, parts: &[&[u8]], more: bool) -> io::Result<()> {
        let mut sending = self.sending()?;
        for part in parts {
            let mut rest = *part;
            if !sending.staged.is_empty() {
                let (first, others) = rest.split_at(rest.len().min(RECORD - sending.staged.len()));
                sending.staged.extend_from_slice(first);
                rest = others;
                if sending.staged.len() == RECORD {
                    self.seal_staged(&mut sending, fd)?;
                }
            }
            while rest.len() >= RECORD {
                let (full, others) = rest.split_at(rest.len().min(BATCH) / RECORD * RECORD);
                self.seal(&mut sending, fd, full)?;
                rest = others;
            }
            sending.staged.extend_from_slice(rest);
        }
        if more {
            return Ok(());
        }
        self.seal_staged(&mut sending, fd)?;
        sending.flush(fd, false)
    }

    /// Sends up to `length` bytes of `from`. Answers how many, and what went wrong, if anything did.
    pub(super) fn send_file(
        &self,
        fd: BorrowedFd<'_>,
        from: BorrowedFd<'_>,
        offset: u64,
        length: u64,
    ) -> (u64, io::Result<()>) {
        let mut sending = match self.sending() {
            Ok(sending) => sending,
            Err(error) => return (0, Err(error)),
        };
        let mut read = std::mem::take(&mut sending.read);
        read.resize(BATCH, 0);
        let mut have = sending.staged.len();
        read[..have].copy_from_slice(&sending.staged);
        sending.staged.clear();
        let mut sent = 0;
        let result = loop {
            let most = (BATCH - have).min(usize::try_from(length - sent).unwrap_or(usize::MAX));
            match file::pread(from, &mut read[have..have + most], offset + sent) {
                Ok(0) => break Ok(()),
                Ok(came) => (sent, have) = (sent + came as u64, have + came),
                Err(error) => break Err(error),
            }
            let full = have / RECORD * RECORD;
            if full > 0 {
                if let Err(error) = self.seal(&mut sending, fd, &read[..full]) {
                    break Err(error);
                }
                read.copy_within(full..have, 0);
                have -= full;
            }
        };
        sending.staged.extend_from_slice(&read[..have]);
        sending.read = read;
        (sent, result)
    }

    /// Receives what there is, at least one byte; 0 where the peer has said that nothing more comes.
    pub(super) fn receive(&self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive_some(fd, buffer, false)
    }

    /// Receives until `buffer` is full.
    pub(super) fn receive_exact(&self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.receive_some(fd, &mut buffer[done..], true)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                came => done += came,
            }
        }
        Ok(())
    }

    /// Tells the peer that nothing more comes, or why, if that can be told without waiting. The socket is
    /// shut down after it.
    pub(super) fn close(&self, fd: BorrowedFd<'_>) {
        // Who is sending is cut off in the middle; then the end is not one that the peer may trust.
        if let Ok(mut sending) = self.sending.try_lock()
            && self.ready.load(Ordering::Acquire)
            && !sending.broken
        {
            let sending = &mut *sending;
            self.machine().end(&mut sending.out);
            sending.broken = true;
            let mut items = [PollItem::writable(fd)];
            if poll(&mut items, Some(Duration::ZERO)).is_ok() && items[0].is_writable() {
                // A peer that cannot be told finds the connection cut.
                let _ = socket::send_vectored(fd, &[sending.out.bytes()], false);
            }
        }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        lock(&self.machine)
    }

    fn sending(&self) -> io::Result<MutexGuard<'_, Sending>> {
        if !self.ready.load(Ordering::Acquire) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let sending = lock(&self.sending);
        if sending.broken { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(sending) }
    }

    fn seal_staged(&self, sending: &mut Sending, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut staged = std::mem::take(&mut sending.staged);
        let sealed = self.seal(sending, fd, &staged);
        staged.clear();
        sending.staged = staged;
        sealed
    }

    /// Encrypts `plain`, and sends what was encrypted once that is worth a system call.
    fn seal(&self, sending: &mut Sending, fd: BorrowedFd<'_>, plain: &[u8]) -> io::Result<()> {
        if let Err(error) = self.machine().encrypt(plain, &mut sending.out) {
            sending.broken = true;
            return Err(failure::lost(&error));
        }
        if sending.out.len() >= BATCH { sending.flush(fd, true) } else { Ok(()) }
    }

    /// Receives some bytes; with `all`, waits for as much as is missing at once.
    fn receive_some(&self, fd: BorrowedFd<'_>, buffer: &mut [u8], all: bool) -> io::Result<usize> {
        if !self.ready.load(Ordering::Acquire) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let mut receiving = lock(&self.receiving);
        let receiving = &mut *receiving;
        loop {
            let came = receiving.take(buffer);
            if came > 0 || receiving.ended || buffer.is_empty() {
                return Ok(came);
            }
            if !has_record(receiving.records()) {
                receiving.receive(fd, buffer.len(), all)?;
                continue;
            }
            let came = self.open(receiving, buffer).inspect_err(|_| self.close(fd))?;
            if came > 0 {
                return Ok(came);
            }
        }
    }

    /// Decrypts records until the buffer is full or no whole record is left.
    fn open(&self, receiving: &mut Receiving, buffer: &mut [u8]) -> io::Result<usize> {
        let Receiving { incoming, start, end, plain, taken, ended } = receiving;
        let mut filled = 0;
        let mut machine = self.machine();
        let (used, opened) = machine.decrypt(&mut incoming[*start..*end], |bytes| {
            let (first, others) = bytes.split_at(bytes.len().min(buffer.len() - filled));
            buffer[filled..filled + first.len()].copy_from_slice(first);
            filled += first.len();
            if !others.is_empty() {
                plain.clear();
                plain.extend_from_slice(others);
                *taken = 0;
            }
            filled < buffer.len()
        });
        *start += used;
        *ended = machine.peer_has_ended();
        match opened {
            Ok(()) => Ok(filled),
            // A client hears only now whether its certificate was good.
            Err(error @ rustls::Error::AlertReceived(_)) => Err(failure::refused(&error)),
            Err(error) => Err(failure::lost(&error)),
        }
    }
}

impl Sending {
    fn flush(&mut self, fd: BorrowedFd<'_>, more: bool) -> io::Result<()> {
        if self.out.len() == 0 {
            return Ok(());
        }
        let sent = socket::send_all_vectored(fd, &[self.out.bytes()], more);
        self.out.clear();
        self.broken |= sent.is_err();
        sent
    }
}

impl Receiving {
    fn records(&self) -> &[u8] {
        &self.incoming[self.start..self.end]
    }

    /// Takes what was decrypted before.
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let plain = &self.plain[self.taken..];
        let count = plain.len().min(buffer.len());
        buffer[..count].copy_from_slice(&plain[..count]);
        self.taken += count;
        count
    }

    /// Receives records, or a part of one. With `all`, as many as `missing` bytes take at least: fewer
    /// records cannot hold them, so this waits for nothing that does not come.
    fn receive(&mut self, fd: BorrowedFd<'_>, missing: usize, all: bool) -> io::Result<()> {
        let have = self.end - self.start;
        let least = missing + missing.div_ceil(RECORD) * RECORD_OVERHEAD;
        let wanted = if all { least.saturating_sub(have).max(1) } else { LARGEST };
        let room = wanted.min(INCOMING - have);
        if self.end + room > self.incoming.len() {
            self.incoming.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, have);
            if have + room > self.incoming.len() {
                self.incoming.resize((have + room).max(2 * LARGEST), 0);
            }
        }
        let came = if all && wanted > 1 {
            socket::receive_most(fd, &mut self.incoming[self.end..self.end + room])?
        } else {
            super::connection::receive(fd, &mut self.incoming[self.end..])?
        };
        if came == 0 {
            let text = "it was cut off: TLS has not said that nothing more comes";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.end += came;
        Ok(())
    }
}

/// Whether a record may begin with this byte.
fn is_content_type(byte: u8) -> bool {
    (20..=23).contains(&byte)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}
