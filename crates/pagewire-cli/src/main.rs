//! The command `pagewire`. Everything it does is in the library; here are its words.

mod args;
mod command;
mod output;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A study starts this program again as its servers, clients and mounts.
    pagewire_study::study::run::run_if_asked();
    let args = args::Args::parse();
    output::start_logging(&args.output);
    match command::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::failed(&error),
    }
}
