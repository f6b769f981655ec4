//! Waiting for connections, until told to stop.

use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use pagewire_sys::event::{EventFd, PollItem, poll};

use super::{Acceptor, Connection};
use crate::address::PeerAddress;
use crate::error::{Error, ErrorKind, Result};

/// A socket that connections come to.
pub(crate) struct Listener {
    socket: Socket,
    address: PeerAddress,
    /// Where connections go through TLS.
    tls: Option<Acceptor>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// What [`Listener::accept`] saw.
pub(crate) enum Incoming {
    /// A connection.
    Connection(Connection),
    /// The event that means stop.
    Stop,
}

impl Listener {
    /// Listens at `address`, where port 0 is any free one. A UNIX socket that a dead process left there is taken over.
    /// Connections to a TLS address go through `tls`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] where somebody else listens there; [`ErrorKind::Usage`] for a TLS address
    /// without `tls`.
    pub(crate) fn bind(address: &PeerAddress, tls: Option<&Acceptor>) -> Result<Self> {
        Self::bind_named(address, tls, address)
    }

    /// The same, for somebody who writes the address in another way.
    ///
    /// # Errors
    ///
    /// As [`Listener::bind`].
    pub(crate) fn bind_named(
        address: &PeerAddress,
        tls: Option<&Acceptor>,
        name: &impl std::fmt::Display,
    ) -> Result<Self> {
        let failed = |error: io::Error| Error::io(format!("cannot listen on {name}"), &error);
        match address {
            PeerAddress::Tcp(place) => {
                let (socket, bound) = bind_tcp(place).map_err(failed)?;
                Ok(Self { socket: Socket::Tcp(socket), address: PeerAddress::Tcp(bound), tls: None })
            }
            PeerAddress::Tls(place) => {
                let tls = tls.cloned().ok_or_else(|| {
                    let text = format!("a server at {address} needs a certificate (--tls-cert, --tls-key)");
                    Error::new(ErrorKind::Usage, text)
                })?;
                let (socket, bound) = bind_tcp(place).map_err(failed)?;
                // Its name is what its certificate is for; only the port may not be known.
                let host = place.rsplit_once(':').map_or(&**place, |(host, _)| host);
                let port = bound.rsplit_once(':').map_or("", |(_, port)| port);
                let address = PeerAddress::Tls(format!("{host}:{port}"));
                Ok(Self { socket: Socket::Tcp(socket), address, tls: Some(tls) })
            }
            PeerAddress::Unix(path) => {
                let socket = bind_unix(path)?;
                Ok(Self { socket: Socket::Unix(socket), address: address.clone(), tls: None })
            }
        }
    }

    /// Where it listens, with the real port.
    pub(crate) fn address(&self) -> &PeerAddress {
        &self.address
    }

    /// Waits for a connection, or until `stop` is signalled.
    ///
    /// # Errors
    ///
    /// As the socket, for instance where the process has no descriptors left; the next call may
    /// succeed.
    pub(crate) fn accept(&self, stop: &EventFd) -> io::Result<Incoming> {
        let (tcp, unix);
        let socket = match &self.socket {
            Socket::Tcp(socket) => {
                tcp = socket.as_fd();
                tcp
            }
            Socket::Unix(socket) => {
                unix = socket.listener.as_fd();
                unix
            }
        };
        loop {
            if !wait_readable(socket, stop.as_fd())? {
                return Ok(Incoming::Stop);
            }
            let accepted = match &self.socket {
                Socket::Tcp(socket) => socket.accept().and_then(|(stream, _)| {
                    stream.set_nonblocking(false)?;
                    Connection::tcp(stream)
                }),
                Socket::Unix(socket) => socket.accept().map(Connection::from),
            };
            match accepted {
                Ok(connection) => {
                    // The handshake waits for the peer, and so is not for this thread.
                    let connection = match &self.tls {
                        Some(tls) => connection.with_tls(tls.layer()),
                        None => connection,
                    };
                    return Ok(Incoming::Connection(connection));
                }
                Err(error) if has_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn bind_tcp(place: &str) -> io::Result<(TcpListener, String)> {
    let addresses: Vec<_> = place.to_socket_addrs()?.collect();
    let socket = TcpListener::bind(&addresses[..])?;
    let bound = socket.local_addr()?.to_string();
    socket.set_nonblocking(true)?;
    Ok((socket, bound))
}

/// Waits until `socket` can be accepted from (true) or `stop` is signalled (false).
fn wait_readable(socket: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> io::Result<bool> {
    let mut items = [PollItem::readable(socket), PollItem::readable(stop)];
    poll(&mut items, None)?;
    Ok(!items[1].is_ready())
}

/// Whether the other side has gone again before we looked.
fn has_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
}

/// A UNIX socket that connections come to; its file goes with it.
pub(crate) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// Listens at `path`. A socket that a dead process left there is taken over.
///
/// # Errors
///
/// [`ErrorKind::Busy`] where somebody listens there, or where something else is.
pub(crate) fn bind_unix(path: &Path) -> Result<UnixSocket> {
    let failed = |error: io::Error| Error::io(format!("cannot listen on {}", path.display()), &error);
    remove_dead_socket(path)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(UnixSocket { listener, path: path.into() })
}

impl UnixSocket {
    fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// Calls `begin` with each connection, until `stop` is readable.
    pub(crate) fn accept_until(&self, stop: BorrowedFd<'_>, begin: impl Fn(UnixStream)) {
        loop {
            match wait_readable(self.listener.as_fd(), stop) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return tracing::error!(%error, "cannot wait for connections"),
            }
            match self.accept() {
                Ok(stream) => begin(stream),
                Err(error) if has_gone(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
            }
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Somebody may have removed it before.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes a socket that nobody listens on any more, and nothing else.
fn remove_dead_socket(path: &Path) -> Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(Error::new(ErrorKind::Busy, format!("{} exists and is no socket", path.display())));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|error| Error::io(format!("cannot remove the dead socket {}", path.display()), &error)),
        _ => Err(Error::new(ErrorKind::Busy, format!("somebody listens on {} already", path.display()))),
    }
}
