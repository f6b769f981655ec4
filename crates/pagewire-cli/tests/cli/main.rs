//! The real binary, driven as its users drive it.

mod commands;
mod driving;
mod guests;
#[cfg(feature = "tls")]
mod tls;
