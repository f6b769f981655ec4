//! Byte streams between two processes: TCP, TLS over it, UNIX sockets and socket pairs inside one process.
//!
//! A [`Connection`] is what `peer` and `access::serve` see; it can be used from two threads at once,
//! one that sends and one that receives. All their I/O goes through it, so that TLS is a matter of this
//! room: [`Connection::send_file`] is the one operation that costs more with it, since the bytes have to be
//! looked at.

mod connection;
mod credentials;
mod listener;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "tls_absent.rs"]
mod tls;

pub(crate) use connection::{Connection, is_closed, lost, refused};
pub(crate) use credentials::Protocol;
pub use credentials::{ClientTls, Identity, ServerTls};
pub(crate) use listener::{Incoming, Listener, bind_unix};
pub(crate) use tls::Acceptor;
