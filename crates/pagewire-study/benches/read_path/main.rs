//! The read path against what the bare system calls reach on the same machine in the same minute.
//!
//! `cargo bench -p pagewire-study --bench read_path [-- FILTER...] [--size 1GiB] [--rounds 5] [--json]`
//!
//! Each round measures Pagewire and then its baseline, so that what else the machine does meets both;
//! a row's ratio is the median of its rounds' ratios. The region is a file of random bytes in memory
//! without a name, the server is a process of its own, and both are gone however this one ends. The
//! rows over a long link need root.
//!
//! - [`options`]: the command line.
//! - [`table`]: rows, targets, and how they are printed.
//! - [`setup`]: the region file, the machine, what mappings are opened with.
//! - [`pull`]: whole regions: time, processor time, memory.
//! - [`fault`]: single faults, on an idle mapping and on a busy one.
//! - [`wan`]: over a link with a round-trip time.
#![forbid(unsafe_code)]

mod fault;
mod options;
mod pull;
mod setup;
mod table;
mod wan;

use std::process::ExitCode;

use options::{Asked, Options};
use pagewire_study::{limits, server};
use setup::Setup;
use table::Row;

/// Whatever went wrong, for whoever reads the terminal.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    limits::serve_if_asked();
    server::serve_if_asked();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Asked::Run(options)) => options,
        Ok(Asked::Help) => {
            println!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match measure(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("read_path: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), Failure> {
    let machine = setup::machine();
    if !options.json {
        println!("{machine}");
        println!("a region of {}, {} rounds\n", pagewire::address::format_size(options.size), options.rounds);
    }
    let setup = Setup::new(options)?;
    let mut rows: Vec<Row> = Vec::new();
    rows.extend(pull::run(&setup)?);
    rows.extend(fault::run(&setup)?);
    rows.extend(wan::run(&setup)?);
    rows.retain(|row| options.wants(&row.name));
    if options.json {
        println!("{}", table::json(&rows, &machine, options)?);
    } else {
        print!("{}", table::text(&rows));
    }
    Ok(())
}
