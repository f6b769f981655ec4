//! `pagewire mount REGION [/dev/nbdN] --via nbd`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use pagewire::access::nbd::{Device, DeviceOptions};
use pagewire::address::{PeerAddress, StoreAddress};
use pagewire::engine::Region;
use pagewire::{Error, ErrorKind, store};

use crate::command::Termination;
use crate::{args, output};

/// How often to look whether a device that is to end is still in use.
const LOOK: Duration = Duration::from_millis(200);

pub(super) fn run(args: &args::Mount, path: Option<&Path>) -> Result<()> {
    check(args)?;
    let termination = Termination::watch()?;
    let device = make(args, path)?;
    output::line(format!("mounted {}", device.path().display()))?;
    if !termination.wait_or(device.taken_down())? {
        return Ok(device.take_down(true)?);
    }
    end(&device, termination)
}

/// What is said of files alone.
fn check(args: &args::Mount) -> Result<()> {
    let refused = [
        (args.atomic, "--atomic", "what is written is flushed as the file system on it says"),
        (args.allow_other, "--allow-other", "a device has an owner and a mode"),
        (args.trace.is_some(), "--trace", "what programs need is not seen from below a file system"),
        (args.direct && args.cache.is_some(), "--cache", "it is a local copy, and --direct is to have none"),
        (args.region.parse::<PeerAddress>().is_ok(), "the address of a peer", "name one of its regions"),
    ];
    match refused.into_iter().find(|(is_said, _, _)| *is_said) {
        Some((_, what, why)) => {
            let text = format!("{what} has no meaning for a block device: {why}");
            Err(Error::new(ErrorKind::Usage, text).into())
        }
        None => Ok(()),
    }
}

fn make(args: &args::Mount, path: Option<&Path>) -> Result<Device> {
    let remote = args.remote.options();
    let mut options = DeviceOptions {
        writable: args.writable,
        read_ahead: args.read_ahead,
        patience: remote.patience,
        ..DeviceOptions::default()
    };
    options.push.patience = remote.patience;
    options.order = args::Order::or_default(args.pull.as_ref(), false).read(options.chunk)?;
    let address: StoreAddress = args.region.parse()?;
    let owner = args.writable.then(store::this_process);
    let store = match &args.cache {
        None if args.direct => store::open_as(&address, owner.as_deref(), &remote)?,
        None => store::open_in_memory(&address, owner.as_deref(), &remote)?,
        cache => store::open_cached(&address, owner.as_deref(), &remote, cache.as_deref())?,
    };
    Ok(Device::make(&Region::at(&address, store)?, path, &options)?)
}

/// Flushes what is left and ends, when nobody uses the device any more or a second signal says not to wait for that.
fn end(device: &Device, termination: Termination) -> Result<()> {
    // The signal that was only seen to be there.
    termination.wait()?;
    let hurries = Arc::<AtomicBool>::default();
    let hurry = hurries.clone();
    std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        if termination.wait().is_ok() {
            hurry.store(true, Ordering::Release);
            // A third signal does not wait for what the second one waits for.
            if termination.wait().is_ok() {
                std::process::exit(130);
            }
        }
    })?;
    let mut is_told = false;
    loop {
        match device.take_down(hurries.load(Ordering::Acquire)) {
            Err(error) if error.kind() == ErrorKind::Busy => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(
                        "{error}: it ends when that is over; a second signal takes it down at once"
                    );
                }
                std::thread::sleep(LOOK);
            }
            // What cannot be flushed now will not be later: the device goes, and the error is told.
            Err(error) => {
                let _same = device.take_down(true);
                return Err(error.into());
            }
            Ok(()) => return Ok(()),
        }
    }
}
