//! Stores around stores: each adds one behaviour to any store and passes the rest on.
//!
//! - [`Retry`] tries again what can be tried again.
//! - [`Chaos`] fails, delays, cuts and shortens on purpose, for tests.

mod chaos;
mod retry;

pub use chaos::{Chaos, Faults};
pub use retry::Retry;
