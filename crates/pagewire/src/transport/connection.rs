//! One byte stream, in both directions.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pagewire_sys::socket;

use crate::address::PeerAddress;
use crate::error::{Error, ErrorKind, Result};

/// How long the kernel may try to deliver bytes, or a silent peer's keep-alives, before it gives a
/// TCP connection up. A host that has vanished is noticed within this time.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// A byte stream to another process, in both directions.
pub(crate) struct Connection {
    socket: Socket,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    /// Connects to a peer.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] where nobody answers within `patience`.
    pub(crate) fn connect(peer: &PeerAddress, patience: Duration) -> Result<Self> {
        let failed =
            |error: io::Error| Error::io(format!("cannot connect to {peer}"), &error).with_retry(true);
        match peer {
            PeerAddress::Unix(path) => Ok(UnixStream::connect(path).map_err(failed)?.into()),
            PeerAddress::Tcp(place) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in place.to_socket_addrs().map_err(failed)? {
                    match TcpStream::connect_timeout(&address, patience) {
                        Ok(stream) => return Self::tcp(stream).map_err(failed),
                        Err(error) => last = error,
                    }
                }
                Err(failed(last))
            }
        }
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
        Ok(Self { socket: Socket::Tcp(stream) })
    }

    /// Sends all of `parts`, one after another. With `more`, the kernel may wait for what is sent
    /// next before it makes a packet.
    ///
    /// # Errors
    ///
    /// As the socket; part of the bytes may have gone out.
    pub(crate) fn send(&self, parts: &[&[u8]], more: bool) -> io::Result<()> {
        socket::send_all_vectored(self.fd(), parts, more)
    }

    /// Sends up to `length` bytes of `file` from `offset` on, without looking at them. Answers how
    /// many were sent, and what went wrong, if anything did: less than asked for without an error is
    /// the end of the file.
    pub(crate) fn send_file(&self, file: BorrowedFd<'_>, offset: u64, length: u64) -> (u64, io::Result<()>) {
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
        socket::receive(self.fd(), buffer)
    }

    /// Receives until `buffer` is full, with as few wake-ups as the kernel allows.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` where the stream ends first.
    pub(crate) fn receive_exact(&self, buffer: &mut [u8]) -> io::Result<()> {
        socket::receive_exact(self.fd(), buffer)
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
        // It fails where the connection has ended already.
        let _ = match &self.socket {
            Socket::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
            Socket::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }

    /// The shortest round-trip time that the kernel has measured lately, where it measures one.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        match &self.socket {
            Socket::Tcp(stream) => Some(socket::tcp_info(stream.as_fd()).ok()?.min_rtt),
            Socket::Unix(_) => None,
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

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

impl From<UnixStream> for Connection {
    fn from(stream: UnixStream) -> Self {
        Self { socket: Socket::Unix(stream) }
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

/// The error that a lost connection is to those who still wait for something.
pub(crate) fn lost(peer: impl std::fmt::Display, cause: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, format!("lost the connection to {peer}"))
        .because(cause)
        .with_retry(true)
}
