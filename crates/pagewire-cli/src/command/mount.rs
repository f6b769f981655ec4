//! `pagewire mount REGION PATH`.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use pagewire::access::fuse::{Mount, MountOptions};
use pagewire::address::{PeerAddress, StoreAddress};
use pagewire::engine::Region;
use pagewire::{ErrorKind, PullOrder, store};

use super::Termination;
use crate::{args, output};

pub(super) fn run(args: &args::Mount) -> Result<()> {
    if args.background {
        return in_background();
    }
    let termination = Termination::watch()?;
    let mount = mount(args)?;
    output::line(format!("mounted {}", mount.path().display()))?;
    if !termination.wait_or(mount.taken_down())? {
        return finish(&mount, false);
    }
    // A second signal does not wait for what the first one waits for.
    std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        if termination.wait().and_then(|()| termination.wait()).is_ok() {
            std::process::exit(130);
        }
    })?;
    finish(&mount, true)
}

fn mount(args: &args::Mount) -> Result<Mount> {
    let mut options = MountOptions {
        writable: args.writable,
        direct: args.direct,
        atomic: args.atomic,
        follow: !args.stay,
        trace: args.trace.clone(),
        read_ahead: Some(args.read_ahead),
        allow_other: args.allow_other,
        ..MountOptions::default()
    };
    options.order = match &args.pull {
        Some(order) => order.read(options.chunk)?,
        // What the background brings is not asked for by programs, and is in no trace.
        None if args.trace.is_some() => PullOrder::None,
        None => PullOrder::Sequential,
    };
    let remote = args.remote.options();
    options.push.patience = remote.patience;
    if let Ok(peer) = args.region.parse::<PeerAddress>() {
        return Ok(Mount::peer(&peer, &args.path, options, &remote)?);
    }
    let address: StoreAddress = args.region.parse()?;
    let store = store::open(&address, args.writable, &remote)?;
    Ok(Mount::region(&Region::at(&address, store)?, &args.path, options)?)
}

/// Flushes what is left, and ends.
fn finish(mount: &Mount, force: bool) -> Result<()> {
    match mount.unmount(force) {
        Err(error) if error.kind() == ErrorKind::Busy && !force => mount.unmount(true).map_err(Into::into),
        result => result.map_err(Into::into),
    }
}

/// Has another process do it, and returns when that has mounted.
fn in_background() -> Result<()> {
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--background");
    let mut command = Command::new(std::env::current_exe()?);
    // Away from the terminal's signals.
    command.args(arguments).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start a process in the background")?;
    let mut line = String::new();
    if let Some(said) = child.stdout.take() {
        BufReader::new(said).read_line(&mut line)?;
    }
    if line.starts_with("mounted ") {
        output::line(line.trim_end())?;
        return Ok(());
    }
    // It has said why.
    let status = child.wait()?;
    match status.code() {
        Some(code) if code != 0 => std::process::exit(code),
        _ => bail!("the process in the background ended with {status}"),
    }
}
