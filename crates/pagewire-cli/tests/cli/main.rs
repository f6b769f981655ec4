//! The real binary, driven as its users drive it.

mod commands;
mod deltas;
mod driving;
mod guests;
mod mirrors;
mod mounts;
mod nbd_stores;
#[cfg(feature = "tls")]
mod studies;
mod tls;
