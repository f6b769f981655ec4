//! The real binary, driven as its users drive it.

mod commands;
mod deltas;
mod driving;
mod guests;
mod mirrors;
mod mounts;
#[cfg(feature = "tls")]
mod tls;
