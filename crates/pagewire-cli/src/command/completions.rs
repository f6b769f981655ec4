//! `pagewire completions SHELL`.

use anyhow::Result;
use clap::CommandFactory;

use crate::args::{Args, Completions};

pub(super) fn run(args: &Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "pagewire", &mut script);
    crate::output::line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(())
}
