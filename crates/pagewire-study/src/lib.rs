//! What Pagewire is measured with, and against.
//!
//! # Layout
//!
//! - [`bench`](mod@bench): what the benchmarks share.
//! - [`link`](mod@link): a link between two network namespaces with a true round-trip time.
//! - [`limits`]: what the bare system calls reach on this machine: the baselines.
//! - [`server`]: a Pagewire server in a process of its own.
//! - [`mount`]: a mounted region, in a process of its own.
//! - [`origin`]: an application that writes to its memory, and can be moved, in a process of its own.
//! - [`nbd`]: regions as NBD exports, and copies between stores, in processes of their own.
//! - [`usage`]: processor time and memory of processes.
//! - [`scatter`]: offsets that no readahead foresees.
//! - [`report`]: what the raw data of a study says.
//! - [`study`](mod@study): the comparative study of the access methods.
//! - `child`: this very program, started again as a server; `log`: what all of them log.
//!
//! The benchmarks are in `benches`: `cargo bench -p pagewire-study --bench read_path`,
//! `write_path`, `mounts`, `delta`, `mirror`, `nbd` and `migrate`.
#![forbid(unsafe_code)]

pub mod bench;
pub mod limits;
pub mod link;
pub mod mount;
pub mod nbd;
pub mod origin;
pub mod report;
pub mod scatter;
pub mod server;
pub mod study;
pub mod usage;

mod child;
mod log;
