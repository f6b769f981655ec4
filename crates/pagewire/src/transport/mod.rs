//! Byte streams between two processes: TCP, UNIX sockets and socket pairs inside one process.
//!
//! A [`Connection`] is what `peer` and `access::serve` see; it can be used from two threads at once,
//! one that sends and one that receives. All their I/O goes through it, so a layer such as TLS
//! becomes another kind of connection, and nothing else changes: [`Connection::send_file`] is the
//! one operation that such a layer answers with "not without looking at the bytes".

mod connection;
mod listener;

pub(crate) use connection::{Connection, is_closed, lost};
pub(crate) use listener::{Incoming, Listener, bind_unix};
