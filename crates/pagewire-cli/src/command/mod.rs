//! The commands, a file each.

mod completions;
mod copy;
mod demo;
mod doctor;
mod follow;
mod info;
mod list;
mod migrate;
mod mirror;
mod mount;
mod serve;
mod study;
mod uffd;

use anyhow::Result;

use crate::args::{Args, Command};

/// Does what was asked for.
pub(crate) fn run(args: Args) -> Result<()> {
    let quiet = args.output.quiet;
    match args.command {
        Command::Serve(args) => serve::run(&args),
        Command::List(args) => list::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Copy(args) => copy::run(&args, quiet),
        Command::Uffd(args) => uffd::run(&args),
        Command::Mount(args) => mount::run(&args),
        Command::Mirror(args) => mirror::run(&args),
        Command::Follow(args) => follow::run(&args),
        Command::Migrate(args) => migrate::run(&args, quiet),
        Command::Doctor(args) => doctor::run(&args),
        Command::Study(args) => study::run(&args, quiet),
        Command::Demo(args) => demo::run(&args, quiet),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Waits for the signal that ends a server. To be made before any thread is.
struct Termination(pagewire_sys::signals::Signals);

impl Termination {
    fn watch() -> Result<Self> {
        use pagewire_sys::signals::{SIGINT, SIGTERM, Signals};
        Ok(Self(Signals::block_and_watch(&[SIGINT, SIGTERM])?))
    }

    /// Waits for the signal, or until `other` is readable: false then.
    fn wait_or(&self, other: std::os::fd::BorrowedFd<'_>) -> Result<bool> {
        use pagewire_sys::event::{PollItem, poll};
        let mut items = [PollItem::readable(std::os::fd::AsFd::as_fd(&self.0)), PollItem::readable(other)];
        poll(&mut items, None)?;
        Ok(!items[1].is_ready())
    }

    /// Waits so long for the signal. Answers whether it has come.
    fn wait_for(&self, time: std::time::Duration) -> Result<bool> {
        use pagewire_sys::event::{PollItem, poll};
        let mut items = [PollItem::readable(std::os::fd::AsFd::as_fd(&self.0))];
        Ok(poll(&mut items, Some(time))? > 0)
    }

    fn wait(&self) -> Result<()> {
        let signal = self.0.wait()?;
        tracing::info!(signal, "ending");
        Ok(())
    }
}

/// Does `clean_up` when the process is told to end in the middle of its work, and ends it. To be
/// called before any thread is made.
fn on_interrupt(clean_up: impl Fn() + Send + 'static) -> Result<()> {
    let termination = Termination::watch()?;
    std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        if termination.wait().is_ok() {
            clean_up();
            // As a shell counts a process that SIGINT has ended.
            std::process::exit(130);
        }
    })?;
    Ok(())
}
