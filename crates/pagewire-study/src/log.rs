//! What Pagewire logs while it is measured: on standard error, with the time in microseconds, so that the lines of several
//! processes make one time line.

use tracing_subscriber::EnvFilter;

/// Sends the log to standard error: warnings, or what `PAGEWIRE_LOG` asks for (`pagewire=debug`).
pub(crate) fn start() {
    let filter = std::env::var("PAGEWIRE_LOG").unwrap_or_else(|_| "warn".into());
    // Where the program has a log already, this goes there.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_thread_names(true)
        .try_init();
}
