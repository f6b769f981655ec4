//! Pagewire makes a region of memory that lives on one Linux host usable on another: at once, while
//! it streams in behind.
//!
//! # Layout
//!
//! From the outside in; imports run this way only.
//!
//! | module | holds |
//! | --- | --- |
//! | [`access`] | how an application reaches a region, and how a region is offered to peers |
//! | [`engine`] | regions, local copies, and the pull that fills them |
//! | [`store`] | where a region's bytes live: memory, a file, a peer; and a cache in front of it |
//! | `peer` | a session with another Pagewire process |
//! | `transport` | byte streams between processes |
//! | `sink` | where the answer to a read goes |
//! | `schedule` | which of our threads go first |
//! | [`address`], [`error`] | the words for places, and for what went wrong |
#![forbid(unsafe_code)]

pub mod access;
pub mod address;
pub mod engine;
pub mod error;
pub mod store;

mod peer;
mod schedule;
mod sink;
mod transport;

pub use error::{Error, ErrorKind, Result};
pub use pagewire_core::advice;
pub use pagewire_core::chunk::{ByteRange, ChunkIndex, ChunkSize};
pub use pagewire_core::delta::{Algorithm, Node, Scheme};
pub use pagewire_core::pack::{Codec, Compression};
pub use pagewire_core::pull::PullOrder;

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
