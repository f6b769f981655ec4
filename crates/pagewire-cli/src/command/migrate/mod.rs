//! `pagewire migrate`: moves regions that are in use to another host, with the application that uses them.
//!
//! Both sides end up alike: [`resident`] has files mounted that an application uses, and offers them to be taken over.
//! [`out`] begins there; [`arrive`] brings the regions here first. [`hooks`] suspends the application and has it go on,
//! [`witnesses`] are what else has the regions, [`record`] is about what either side keeps on its disk, and [`look_after`] is for when something went wrong.

mod arrive;
mod hooks;
mod look_after;
mod out;
mod record;
mod resident;
mod witnesses;

use std::sync::Arc;

use anyhow::Result;
use pagewire_sys::event::EventFd;

use super::Termination;
use crate::args::{Migrate, MigrateStep};

pub(super) fn run(args: &Migrate, quiet: bool) -> Result<()> {
    match &args.step {
        MigrateStep::Out(args) => out::run(args),
        MigrateStep::In(args) => arrive::run(args, quiet),
        MigrateStep::Status(args) => look_after::status(args),
        MigrateStep::Resume(args) => look_after::resume(args),
        MigrateStep::Abort(args) => look_after::abort(args),
    }
}

/// Becomes readable when the process is told to end, after `first` was called. Who tells it twice does not wait for what
/// the first signal waits for.
fn when_told(termination: Termination, first: impl FnOnce() + Send + 'static) -> Result<Arc<EventFd>> {
    let told = Arc::new(EventFd::new()?);
    let event = told.clone();
    std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        if termination.wait().is_err() {
            return;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // An event that cannot be signalled is one that is signalled already.
                let _ = event.signal();
                first();
            });
            if termination.wait().is_ok() {
                std::process::exit(130);
            }
        });
    })?;
    Ok(told)
}
