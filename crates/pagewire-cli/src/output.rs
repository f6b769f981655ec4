//! What is said, and where: results on standard output, everything else on standard error.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use pagewire::engine::Progress;
use serde::Serialize;

use crate::args::Output;

/// Sends the log to standard error. `PAGEWIRE_LOG` says more finely than the flags what is in it.
pub(crate) fn start_logging(output: &Output) {
    let level = match (output.quiet, output.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let filter = std::env::var("PAGEWIRE_LOG").unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Says in one line what failed, and answers with which status to exit.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    // Who reads our output has gone: nothing is left to be said, to nobody.
    let gone = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    if gone.into_iter().any(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let mut text = format!("{error:#}");
    let kind =
        error.chain().find_map(|cause| cause.downcast_ref::<pagewire::Error>()).map(pagewire::Error::kind);
    if let Some(hint) = kind.and_then(hint) {
        text.push_str(hint);
    }
    // A peer may have written a part of it; a terminal is not to obey that.
    let text = text.replace(char::is_control, " ");
    // Standard error may be closed; the status tells.
    let _ = writeln!(std::io::stderr(), "pagewire: {text}");
    if kind == Some(pagewire::ErrorKind::Usage) { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// What to do about an error of this kind, where that is the same for all.
fn hint(kind: pagewire::ErrorKind) -> Option<&'static str> {
    Some(match kind {
        pagewire::ErrorKind::Unavailable => " (is the server running, and the address right?)",
        pagewire::ErrorKind::Changed => " (start again to use the region as it is now)",
        pagewire::ErrorKind::Stale => " (start again to use the newest epoch)",
        _ => return None,
    })
}

/// Prints a line of result.
pub(crate) fn line(text: impl std::fmt::Display) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints one JSON object.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string(value)?)?;
    Ok(())
}

/// A bar that follows a pull, on a terminal; elsewhere nothing.
pub(crate) struct Bar(Option<ProgressBar>);

impl Bar {
    /// A bar for `length` bytes, unless `hidden`.
    pub(crate) fn new(length: u64, hidden: bool) -> Self {
        if hidden || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new(length);
        let style = "{bar:40} {binary_bytes:>10} of {binary_total_bytes} {binary_bytes_per_sec:>14} {eta:>4}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self(Some(bar))
    }

    /// Moves the bar to so many bytes.
    pub(crate) fn show(&self, bytes: u64) {
        if let Self(Some(bar)) = self {
            bar.set_position(bytes);
        }
    }

    /// Moves the bar to where a pull is.
    pub(crate) fn follow(&self, progress: &Progress) {
        // By chunks: the last one may be short, and bytes may come twice.
        let share = progress.chunks_present as f64 / progress.chunks.max(1) as f64;
        self.show((share * progress.length as f64) as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Self(Some(bar)) = self {
            bar.finish_and_clear();
        }
    }
}
