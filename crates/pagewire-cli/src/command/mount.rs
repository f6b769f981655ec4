//! `pagewire mount REGION PATH`, and `pagewire mount REGION [/dev/nbdN] --via nbd`.

mod device;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use pagewire::access::fuse::{Mount, MountOptions};
use pagewire::address::{PeerAddress, StoreAddress};
use pagewire::engine::Region;
use pagewire::{ErrorKind, store};

use super::Termination;
use crate::{args, output};

pub(super) fn run(args: &args::Mount) -> Result<()> {
    if args.background {
        return in_background("mounted ");
    }
    match (args.via, &args.path) {
        (args::Via::Nbd, path) => device::run(args, path.as_deref()),
        (args::Via::Fuse, Some(path)) => as_file(args, path),
        (args::Via::Fuse, None) => {
            let text =
                "name the PATH to mount at; --via nbd makes a block device, and finds one that is free";
            Err(pagewire::Error::new(ErrorKind::Usage, text).into())
        }
    }
}

fn as_file(args: &args::Mount, path: &Path) -> Result<()> {
    let termination = Termination::watch()?;
    let mount = Arc::new(mount(args, path)?);
    output::line(format!("mounted {}", mount.path().display()))?;
    let is_told = termination.wait_or(mount.taken_down())?;
    // Not held: what it has is given back when this function returns.
    let waited_for = Arc::downgrade(&mount);
    std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        if is_told {
            // A second signal does not wait for what the first one waits for.
            if termination.wait().and_then(|()| termination.wait()).is_ok() {
                std::process::exit(130);
            }
        } else if termination.wait().is_ok() {
            // Taken down out of sight, the mount lasts until its last user has gone; a signal does not wait for that.
            let Some(mount) = waited_for.upgrade() else { return };
            let flushed = mount.flush();
            if let Err(error) = &flushed {
                tracing::error!(%error, "what was written could not be flushed");
            }
            std::process::exit(i32::from(flushed.is_err()));
        }
    })?;
    finish(&mount, is_told)
}

fn mount(args: &args::Mount, path: &Path) -> Result<Mount> {
    let mut options = MountOptions {
        writable: args.writable,
        direct: args.direct,
        atomic: args.atomic,
        follow: !args.stay,
        trace: args.trace.clone(),
        read_ahead: args.read_ahead,
        allow_other: args.allow_other,
        ..MountOptions::default()
    };
    options.order = args::Order::or_default(args.pull.as_ref(), args.trace.is_some()).read(options.chunk)?;
    let remote = args.remote.options();
    options.push.patience = remote.patience;
    if let Ok(peer) = args.region.parse::<PeerAddress>() {
        if args.cache.is_some() {
            let text = "a cache is of one region: mount that alone";
            return Err(pagewire::Error::new(ErrorKind::Usage, text).into());
        }
        return Ok(Mount::peer(&peer, path, options, &remote)?);
    }
    let address: StoreAddress = args.region.parse()?;
    let owner = args.writable.then(store::this_process);
    let store = store::open_cached(&address, owner.as_deref(), &remote, args.cache.as_deref())?;
    Ok(Mount::region(&Region::at(&address, store)?, path, options)?)
}

/// Flushes what is left, and ends.
fn finish(mount: &Mount, force: bool) -> Result<()> {
    match mount.unmount(force) {
        Err(error) if error.kind() == ErrorKind::Busy && !force => mount.unmount(true).map_err(Into::into),
        result => result.map_err(Into::into),
    }
}

/// Has another process do it, and returns when that has said a line that begins so.
pub(super) fn in_background(expected: &str) -> Result<()> {
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--background");
    let mut command = Command::new(std::env::current_exe()?);
    // Away from the terminal's signals.
    command.args(arguments).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start a process in the background")?;
    let mut line = String::new();
    if let Some(said) = child.stdout.take() {
        BufReader::new(said).read_line(&mut line)?;
    }
    if line.starts_with(expected) {
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
