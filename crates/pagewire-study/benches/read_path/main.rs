//! The read path against what the bare system calls reach on the same machine in the same minute.
//!
//! `cargo bench -p pagewire-study --bench read_path [-- FILTER...] [--size 1GiB] [--rounds 5] [--json]`
//!
//! Each round measures Pagewire and then its baseline, so that what else the machine does meets both;
//! a row's ratio is the median of its rounds' ratios. The region is a file of random bytes in memory
//! without a name, the server is a process of its own, and both are gone however this one ends. The
//! rows over a long link need root.
//!
//! - [`setup`]: the region file, and what mappings are opened with.
//! - [`pull`]: whole regions: time, processor time, memory.
//! - [`tls`]: the same through TLS, against without.
//! - [`fault`]: single faults, on an idle mapping and on a busy one.
//! - [`wan`]: over a link with a round-trip time.
#![forbid(unsafe_code)]

mod fault;
mod pull;
mod setup;
mod tls;
mod wan;

use std::process::ExitCode;

use pagewire_study::bench::{self, Failure, Options, Row};
use pagewire_study::{limits, server};
use setup::Setup;

const USAGE: &str = "usage: read_path [FILTER...] [--size 1GiB] [--rounds 5] [--json]
a row is measured if its name contains a FILTER: pull-2 pull-4 cpu-2 cpu-4 memory-client memory-server
tls-pull-4 tls-cpu-4 fault-4k fault-64k fault-busy wan-pull wan-open wan-first-byte";

fn main() -> ExitCode {
    limits::serve_if_asked();
    server::serve_if_asked();
    bench::run("read_path", USAGE, measure)
}

fn measure(options: &Options) -> Result<Vec<Row>, Failure> {
    let setup = Setup::new(options)?;
    let mut rows = pull::run(&setup)?;
    rows.extend(tls::run(&setup)?);
    rows.extend(fault::run(&setup)?);
    rows.extend(wan::run(&setup)?);
    Ok(rows)
}
