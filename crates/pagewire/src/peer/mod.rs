//! A session with another Pagewire process, seen from the side that asks.
//!
//! A session is one *primary* connection, for control and for reads that somebody waits for, and a
//! few *bulk* connections. Each has a thread that connects it, receives on it, and connects it again
//! when it is lost; a further thread sees to it that nothing waits longer than the patience.
//!
//! - [`frame`]: frames on a connection.
//! - [`call`]: one request under way, until its one and only end.
//! - [`flow`]: how much of a stream may be in flight.
//! - [`session`]: the calls under way and the links they go by.
//! - [`link`]: one connection's life, from the handshake to its loss.

pub(crate) mod call;
mod flow;
pub(crate) mod frame;
mod link;
mod session;

pub(crate) use link::ask;
pub use session::SessionOptions;
pub(crate) use session::{EarlierLease, Lane, Purpose, Session, StreamCall, Written};

/// What this library calls itself in a handshake.
pub(crate) const AGENT: &str = concat!("pagewire/", env!("CARGO_PKG_VERSION"));

/// 128 bits that nobody can guess.
///
/// # Panics
///
/// If the kernel has no randomness, which it has from early boot on.
pub(crate) fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    getrandom::fill(&mut id).expect("the kernel gives random bytes");
    id
}
