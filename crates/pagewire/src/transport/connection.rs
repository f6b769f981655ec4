//! One byte stream, in both directions.

use std::io;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_sys::pipe::Pipe;
use pagewire_sys::socket;

use super::meter::Meter;
use super::tls::{self, Layer};
use super::{Acceptor, ClientTls, Protocol};
use crate::address::PeerAddress;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::{self, Wait};

/// How long the kernel may try to deliver bytes, or a silent peer's keep-alives, before it gives a
/// TCP connection up. A host that has vanished is noticed within this time.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// A byte stream to another process, in both directions.
pub(crate) struct Connection {
    socket: Socket,
    /// Through which everything goes, where there is one.
    tls: Option<Box<Layer>>,
    meter: Arc<Meter>,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    /// Connects to a peer, through TLS where its address says so.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] where nobody answers within `patience`; [`ErrorKind::Denied`] where one
    /// side does not accept the other's certificate, which trying again does not mend.
    pub(crate) fn connect(peer: &PeerAddress, tls: &ClientTls, patience: Duration) -> Result<Self> {
        let failed =
            |error: io::Error| Error::io(format!("cannot connect to {peer}"), &error).with_retry(true);
        let deadline = Instant::now() + patience;
        match peer {
            PeerAddress::Unix(path) => Ok(UnixStream::connect(path).map_err(failed)?.into()),
            PeerAddress::Tcp(place) => Self::connect_tcp(place, patience).map_err(failed),
            PeerAddress::Tls(place) => {
                // Files that are of no use are told before anybody is called.
                let layer =
                    Layer::to_server(place, tls, Protocol::Pw).map_err(|error| error.context(peer))?;
                let connection = Self::connect_tcp(place, patience).map_err(failed)?.with_tls(layer);
                connection.secure(deadline).map_err(|error| refused(peer, &error))?;
                Ok(connection)
            }
        }
    }

    pub(super) fn connect_tcp(place: impl ToSocketAddrs, patience: Duration) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in place.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, patience) {
                Ok(stream) => return Self::tcp(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The same with TLS, which has to shake hands first.
    pub(super) fn with_tls(self, layer: Layer) -> Self {
        Self { tls: Some(Box::new(layer)), ..self }
    }

    /// The same, whose bytes are counted by `meter`.
    pub(crate) fn with_meter(self, meter: &Arc<Meter>) -> Self {
        Self { meter: meter.clone(), ..self }
    }

    /// The same with TLS as a server, in the middle of what was spoken in clear. Nothing that belongs to TLS may have
    /// been received.
    #[cfg_attr(not(feature = "nbd"), expect(dead_code, reason = "only NBD begins TLS in the middle"))]
    pub(crate) fn accept_tls(self, acceptor: &Acceptor) -> Self {
        self.with_tls(acceptor.layer())
    }

    /// Shakes hands where there is TLS; nothing can be sent or received before. The timeouts are changed.
    ///
    /// # Errors
    ///
    /// Where the peer is refused or refuses, or is not done by the deadline.
    pub(crate) fn secure(&self, deadline: Instant) -> io::Result<()> {
        self.tls.as_ref().map_or(Ok(()), |layer| layer.shake_hands(self, deadline))
    }

    /// The names in the certificate that a client has shown, in small letters; none where it has shown no
    /// certificate.
    pub(crate) fn names(&self) -> Option<&[String]> {
        self.tls.as_ref()?.names()
    }

    /// Two ends of a byte stream inside this process.
    ///
    /// # Errors
    ///
    /// If the process has no descriptors left.
    #[cfg(test)]
    pub(crate) fn pair() -> Result<(Self, Self)> {
        let (one, other) =
            UnixStream::pair().map_err(|error| Error::io("cannot make a socket pair", &error))?;
        Ok((one.into(), other.into()))
    }

    pub(super) fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        socket::set_user_timeout(stream.as_fd(), DEAD_AFTER)?;
        socket::set_keepalive(stream.as_fd(), DEAD_AFTER / 2, DEAD_AFTER / 6, 3)?;
        Ok(Self { socket: Socket::Tcp(stream), tls: None, meter: Arc::default() })
    }

    /// Sends all of `parts`, one after another. With `more`, the kernel may wait for what is sent
    /// next before it makes a packet.
    ///
    /// # Errors
    ///
    /// As the socket; part of the bytes may have gone out.
    pub(crate) fn send(&self, parts: &[&[u8]], more: bool) -> io::Result<()> {
        self.meter.sent(parts.iter().map(|part| part.len() as u64).sum());
        match &self.tls {
            Some(layer) => layer.send(self.fd(), parts, more),
            None => socket::send_all_vectored(self.fd(), parts, more),
        }
    }

    /// Sends `bytes` around TLS, where the handshake has failed since the peer does not speak it.
    ///
    /// # Errors
    ///
    /// As the socket.
    pub(crate) fn send_in_clear(&self, bytes: &[u8]) -> io::Result<()> {
        socket::send_all_vectored(self.fd(), &[bytes], false)
    }

    /// Sends up to `length` bytes of `file` from `offset` on, without looking at them where there is no
    /// TLS; what they are followed by is to be sent at once. Answers how many were sent, and what went
    /// wrong, if anything did: less than asked for without an error is the end of the file.
    pub(crate) fn send_file(&self, file: BorrowedFd<'_>, offset: u64, length: u64) -> (u64, io::Result<()>) {
        self.meter.sent(length);
        if let Some(layer) = &self.tls {
            return layer.send_file(self.fd(), file, offset, length);
        }
        let mut sent = 0;
        while sent < length {
            match socket::send_file(self.fd(), file, offset + sent, length - sent) {
                Ok(0) => break,
                Ok(more) => sent += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (sent, Err(error)),
            }
        }
        (sent, Ok(()))
    }

    /// Receives what there is, at least one byte; 0 is the end of the stream.
    ///
    /// # Errors
    ///
    /// As the socket.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let received = match &self.tls {
            Some(layer) => layer.receive(self.fd(), buffer),
            None => receive(self.fd(), buffer),
        };
        received.inspect(|bytes| self.meter.received(*bytes as u64))
    }

    /// Receives until `buffer` is full, with as few wake-ups as the kernel allows.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` where the stream ends first.
    pub(crate) fn receive_exact(&self, buffer: &mut [u8]) -> io::Result<()> {
        self.meter.received(buffer.len() as u64);
        match &self.tls {
            Some(layer) => layer.receive_exact(self.fd(), buffer),
            None => socket::receive_exact(self.fd(), buffer),
        }
    }

    /// Whether [`Connection::receive_into`] can be had, and is faster: from another process of this host, all that was
    /// sent lies in pages of its own. What a network card has received lies scattered, and TLS has to look at it.
    #[cfg_attr(not(feature = "nbd"), expect(dead_code, reason = "only NBD has the kernel move what comes"))]
    pub(crate) fn moves(&self) -> bool {
        self.tls.is_none() && matches!(self.socket, Socket::Unix(_))
    }

    /// Receives what there is into a pipe, `most` bytes at most and at least one; 0 is the end of the stream.
    ///
    /// # Errors
    ///
    /// `WouldBlock` where the pipe is full; else as the socket.
    #[cfg_attr(not(feature = "nbd"), expect(dead_code, reason = "only NBD has the kernel move what comes"))]
    pub(crate) fn receive_into(&self, pipe: &mut Pipe, most: u64) -> io::Result<u64> {
        pipe.receive(self.fd(), most).inspect(|bytes| self.meter.received(*bytes))
    }

    /// How long a send or a receive may take before it fails with `WouldBlock`; none is for ever.
    ///
    /// # Errors
    ///
    /// As the socket.
    pub(crate) fn set_timeouts(&self, send: Option<Duration>, receive: Option<Duration>) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(stream) => {
                stream.set_write_timeout(send)?;
                stream.set_read_timeout(receive)
            }
            Socket::Unix(stream) => {
                stream.set_write_timeout(send)?;
                stream.set_read_timeout(receive)
            }
        }
    }

    /// Ends the connection in both directions: whoever is blocked in it on either side comes back.
    pub(crate) fn shutdown(&self) {
        if let Some(layer) = &self.tls {
            layer.close(self.fd());
        }
        self.shutdown_socket(Shutdown::Both);
    }

    /// Nothing more is received: whoever is blocked in that comes back with the end of the stream.
    #[cfg_attr(not(feature = "nbd"), expect(dead_code, reason = "only NBD lets what has come be answered"))]
    pub(crate) fn end_receiving(&self) {
        self.shutdown_socket(Shutdown::Read);
    }

    /// Ends the sending side, and waits until the peer has ended its own, or has sent more than a little,
    /// or `patience` is over. A socket that is closed while something lies in it takes back what was said
    /// last: why the peer was refused.
    pub(crate) fn linger(&self, patience: Duration) {
        self.shutdown_socket(Shutdown::Write);
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 4096];
        for _ in 0..64 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.set_timeouts(Some(left), Some(left)).is_err() {
                return;
            }
            match socket::receive(self.fd(), &mut buffer) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }

    fn shutdown_socket(&self, how: Shutdown) {
        // It fails where the connection has ended already.
        let _ = match &self.socket {
            Socket::Tcp(stream) => stream.shutdown(how),
            Socket::Unix(stream) => stream.shutdown(how),
        };
    }

    /// The shortest round-trip time that the kernel has measured lately, where it measures one.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        match &self.socket {
            Socket::Tcp(stream) => Some(socket::tcp_info(stream.as_fd()).ok()?.min_rtt),
            Socket::Unix(_) => None,
        }
    }

    /// How many bytes have reached the other host, and how long the link has taken for that: not while nothing was on
    /// its way, nor while the other side had no room for more. None where there is no link: within this host.
    pub(crate) fn delivered(&self) -> Option<(u64, Duration)> {
        match &self.socket {
            Socket::Tcp(stream) if !stream.peer_addr().ok()?.ip().to_canonical().is_loopback() => {
                let info = socket::tcp_info(stream.as_fd()).ok()?;
                Some((info.bytes_acknowledged, info.busy.saturating_sub(info.receiver_full)))
            }
            Socket::Tcp(_) | Socket::Unix(_) => None,
        }
    }

    /// Who is on the other side, for logs.
    pub(crate) fn peer_name(&self) -> String {
        match &self.socket {
            Socket::Tcp(stream) => {
                stream.peer_addr().map_or_else(|_| "a lost connection".into(), |address| address.to_string())
            }
            Socket::Unix(stream) => socket::peer_pid(stream.as_fd())
                .map_or_else(|_| "a local process".into(), |pid| format!("process {pid}")),
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Receives what there is, at least one byte. A thread that serves those who wait may wait awake.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    schedule::wait(|how| match how {
        Wait::Look => socket::receive_now(socket, buffer),
        Wait::Sleep => socket::receive(socket, buffer),
    })
}

impl From<UnixStream> for Connection {
    fn from(stream: UnixStream) -> Self {
        Self { socket: Socket::Unix(stream), tls: None, meter: Arc::default() }
    }
}

/// Whether a failed send or receive means that the connection was closed, rather than broken.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
    )
}

/// The error that a failed connection is: where TLS has refused one of the sides, trying again does not
/// help; else the connection is lost.
pub(crate) fn refused(peer: impl std::fmt::Display, error: &io::Error) -> Error {
    match tls::failure(error) {
        Some((kind, text)) => Error::new(kind, format!("cannot talk to {peer}")).because(text),
        None => lost(peer, error),
    }
}

/// The error that a lost connection is to those who still wait for something.
pub(crate) fn lost(peer: impl std::fmt::Display, cause: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, format!("lost the connection to {peer}"))
        .because(cause)
        .with_retry(true)
}
