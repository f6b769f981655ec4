//! Decisions of Pagewire, and nothing else: no I/O, no clock, no thread. What time it is, what arrived and what
//! failed is passed in; what to do comes out. So everything here is tested without a kernel or a network.
//!
//! # Layout
//!
//! | module | decides |
//! | --- | --- |
//! | [`advice`] | which access method to use for what, and why |
//! | [`chunk`] | where chunks and pages begin and end: all alignment arithmetic |
//! | [`bitmap`] | which chunks or pages are in a set; one for one owner, one for threads without a lock |
//! | [`push`] | what of a local copy is present, dirty and staged, and what may happen to it |
//! | [`pull`] | what to pull next and how much of it may be in flight |
//! | [`journal`] | how a file keeps what was flushed and is not in place yet, as bytes |
//! | [`cache`] | how a persistent local copy is kept in files, as bytes |
//! | [`epoch`] | which old bytes a reader of a past epoch still sees |
//! | [`delta`] | in which pages two regions differ, by hashes in a tree |
//! | [`migrate`] | how an application moves to another host: phases, records, when to switch |
//! | [`pack`] | whether to compress what is sent next |
//! | [`wire`] | what two processes say to each other, as bytes |
//! | [`nbd`] | what an NBD server and its clients say to each other, as bytes |
#![forbid(unsafe_code)]

pub mod advice;
pub mod bitmap;
pub mod cache;
pub mod chunk;
pub mod delta;
pub mod epoch;
pub mod journal;
pub mod migrate;
pub mod nbd;
pub mod pack;
pub mod pull;
pub mod push;
pub mod wire;
