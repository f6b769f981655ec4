//! Where a test has a process stop, for it to be killed there: before each thing that is done to a file.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Before which step the process stops: it says so on standard output, and does nothing more to a file.
pub(crate) const STOP_AT: &str = "PAGEWIRE_TEST_STOP_AT";

/// What it says then.
pub(crate) const STOPPED: &str = "stopped before a step";

static STEPS: AtomicUsize = AtomicUsize::new(0);

/// A step is about to be done.
pub(super) fn step() {
    static STOP: OnceLock<Option<usize>> = OnceLock::new();
    let stop = STOP.get_or_init(|| std::env::var(STOP_AT).ok().map(|step| step.parse().unwrap()));
    let Some(stop) = *stop else { return };
    let step = STEPS.fetch_add(1, Ordering::SeqCst);
    if step == stop {
        println!("\n{STOPPED}");
    }
    if step >= stop {
        loop {
            std::thread::park();
        }
    }
}
