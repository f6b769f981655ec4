//! The real binary, driven as its users drive it.

mod commands;
mod driving;
mod guests;
mod mounts;
mod nbd_stores;
#[cfg(feature = "tls")]
mod tls;
