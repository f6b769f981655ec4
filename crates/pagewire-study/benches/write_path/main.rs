//! The write path: what finding changes costs, and how fast they are pushed and flushed.
//!
//! `cargo bench -p pagewire-study --bench write_path [-- FILTER...] [--size 1GiB] [--rounds 5] [--json]`
//!
//! - [`collect`]: the changes of a mapping against hashing it, and what a program feels of it.
//! - [`push`]: flushes over loopback against writing the same pages to the same file system here.
//! - [`wan`]: a flush over a link with a round-trip time, and its bytes. Needs root.
#![forbid(unsafe_code)]

mod collect;
mod push;
mod wan;

use std::process::ExitCode;

use pagewire_study::bench::{self, Failure, Options, Row};
use pagewire_study::server;

const USAGE: &str = "usage: write_path [FILTER...] [--size 1GiB] [--rounds 5] [--json]
a row is measured if its name contains a FILTER: collect collect-vs-hash write-paced write-unpaced
push-tmpfs push-disk wan-flush wan-bytes";

/// How many pages are written before they are collected or pushed.
const DIRTY: u64 = 10_000;

fn main() -> ExitCode {
    server::serve_if_asked();
    bench::run("write_path", USAGE, measure)
}

fn measure(options: &Options) -> Result<Vec<Row>, Failure> {
    let mut rows = collect::run(options)?;
    rows.extend(push::run(options)?);
    rows.extend(wan::run(options)?);
    Ok(rows)
}

/// So many pages, scattered over a region of `size` bytes.
fn dirty_pages(size: u64, count: u64) -> Vec<u64> {
    let pages = size / pagewire_sys::PAGE_SIZE as u64;
    pagewire_study::scatter::scattered(pages).take(count.min(pages / 4) as usize).collect()
}
