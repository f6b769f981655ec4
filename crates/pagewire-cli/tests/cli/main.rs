//! The real binary, driven as its users drive it.

mod commands;
mod deltas;
mod doctor;
mod driving;
mod guests;
mod migrations;
mod mirrors;
mod mounts;
mod nbd_stores;
mod reports;
#[cfg(feature = "tls")]
mod studies;
mod tls;
