//! Processes beside an application that make a region usable: a mount, a device, a mirror, a copy.
//!
//! A mount is never in the process that uses it: a process that waits for an answer of its own cannot be killed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pagewire::access::fuse::{Mount, MountOptions};
use pagewire::access::mirror::{Mirror, MirrorOptions};
use pagewire::access::nbd::{Device, DeviceOptions};
use pagewire::address::{FileAddress, JournalPlace, StoreAddress};
use pagewire::engine::Region;
use pagewire::engine::copy::{CopyOptions, copy};
use pagewire::store::{self, RemoteOptions};
use pagewire::{ChunkSize, Compression, PullOrder};
use serde::{Deserialize, Serialize};

use super::record::Mode;
use super::trouble::{Result, Trouble};
use crate::child::{self, Child};
use crate::usage::Memory;

/// The hidden argument.
const ROLE: &str = "--pagewire-study-sidecar";

/// How long a sidecar may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a sidecar says when it is of use, and when it never will be.
#[derive(Serialize, Deserialize)]
enum Said {
    /// Where the region is.
    Ready(PathBuf),
    Trouble(Trouble),
}

/// What a sidecar does.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Task {
    /// What.
    pub(super) kind: Kind,
    /// The region, as an address.
    pub(super) region: String,
    /// The file that it is to be at.
    pub(super) file: PathBuf,
    /// Whether the application writes.
    pub(super) writable: bool,
    /// With a local copy that fills itself or without, where there are both.
    pub(super) mode: Option<Mode>,
    /// Bytes that are pulled at once.
    pub(super) chunk_bytes: u64,
    /// How many connections.
    pub(super) connections: u32,
}

/// What a sidecar does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// Mounts the region at the file, by FUSE.
    Mount,
    /// Makes it a block device.
    Device,
    /// Copies the region to the file.
    Copy,
    /// Keeps the region in step with the file.
    Mirror,
}

/// Becomes a sidecar if this process was started as one; else returns.
pub(super) fn run_if_asked() {
    let Some(arguments) = child::arguments_of(ROLE) else { return };
    child::run(|| {
        let [task] = arguments.as_slice() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let task: Task = serde_json::from_str(&task.to_string_lossy())?;
        match carry_out(&task) {
            Ok(()) => Ok(()),
            // Whoever has asked knows what to do about it.
            Err(trouble) => child::listening(serde_json::to_string(&Said::Trouble(trouble))?),
        }
    });
}

/// How peers are talked to: nothing is compressed, since nothing here can be.
pub(super) fn remote(connections: u32) -> RemoteOptions {
    let connections = connections as usize;
    RemoteOptions { connections, compression: Compression::Off, ..RemoteOptions::default() }
}

/// What is pulled without being asked for.
pub(super) fn pull_order(mode: Option<Mode>) -> PullOrder {
    if mode == Some(Mode::Direct) { PullOrder::None } else { PullOrder::Sequential }
}

/// A chunk of so many bytes.
pub(super) fn chunk(bytes: u64) -> Result<ChunkSize> {
    ChunkSize::new(bytes).map_err(|error| Trouble::failed(error.to_string()))
}

fn carry_out(task: &Task) -> Result<()> {
    let address: StoreAddress = task.region.parse()?;
    let owner = task.writable.then(store::this_process);
    let (owner, remote) = (owner.as_deref(), remote(task.connections));
    match task.kind {
        Kind::Mount => {
            let region = Region::at(&address, store::open_as(&address, owner, &remote)?)?;
            let options = MountOptions {
                writable: task.writable,
                direct: task.mode == Some(Mode::Direct),
                order: pull_order(task.mode),
                ..MountOptions::default()
            };
            let mount = Mount::region(&region, &task.file, options)?;
            ready(mount.path())?;
            Ok(mount.unmount(true)?)
        }
        Kind::Device => {
            let store = match task.mode {
                Some(Mode::Direct) => store::open_as(&address, owner, &remote)?,
                _ => store::open_in_memory(&address, owner, &remote)?,
            };
            let options = DeviceOptions {
                writable: task.writable,
                order: pull_order(task.mode),
                ..DeviceOptions::default()
            };
            let device = Device::make(&Region::at(&address, store)?, None, &options)?;
            ready(device.path())?;
            Ok(device.take_down(true)?)
        }
        Kind::Copy => {
            let region = Region::at(&address, store::open_as(&address, None, &remote)?)?;
            let file = FileAddress {
                size: Some(region.info().length),
                journal: JournalPlace::Off,
                ..FileAddress::new(&task.file)
            };
            let target = store::open(&StoreAddress::File(file), true, &remote)?;
            let options = CopyOptions { target_is_zero: true, ..CopyOptions::default() };
            copy(&region, &target, &options, |_| ())?;
            ready(&task.file)
        }
        Kind::Mirror => mirror(task, &Region::at(&address, store::open_as(&address, owner, &remote)?)?),
    }
}

/// Makes rounds until the application has gone, and one more then.
fn mirror(task: &Task, region: &Arc<Region>) -> Result<()> {
    let mut mirror = Mirror::start(&task.file, region, &MirrorOptions::default())?;
    mirror.round()?;
    let over = Arc::new(AtomicBool::new(false));
    let run = {
        let over = over.clone();
        move || -> Result<()> {
            let pause = |pause: Duration| {
                std::thread::park_timeout(pause);
                !over.load(Ordering::Acquire)
            };
            mirror.run(|_| (), pause)?;
            mirror.round()?;
            Ok(())
        }
    };
    let rounds = std::thread::Builder::new().name("mirror".into()).spawn(run)?;
    ready(&task.file)?;
    over.store(true, Ordering::Release);
    rounds.thread().unpark();
    rounds.join().unwrap_or_else(|_| Err(Trouble::failed("the mirror panics")))
}

/// Says that the region is usable, and answers for what was used until the application has gone.
fn ready(path: &Path) -> Result<()> {
    let text = serde_json::to_string(&Said::Ready(path.into())).map_err(io::Error::from)?;
    Ok(child::listening(text)?)
}

/// A sidecar process that is ready.
pub(super) struct Sidecar {
    child: Child,
    path: PathBuf,
}

impl Sidecar {
    /// Starts it, and waits until it is ready.
    pub(super) fn start(task: &Task) -> Result<Self> {
        let argument = serde_json::to_string(task).map_err(io::Error::from)?;
        let mut child = Child::spawn(ROLE, &[argument.as_ref()], None)?;
        let line = child.hear(PATIENCE).map_err(|error| Trouble::from(error).of("a sidecar"))?;
        match serde_json::from_str(&line).map_err(io::Error::from)? {
            Said::Ready(path) => Ok(Self { child, path }),
            Said::Trouble(trouble) => Err(trouble),
        }
    }

    /// Where the region is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Processor time that it has used, and memory that it has.
    pub(super) fn usage(&mut self) -> Result<(Duration, u64)> {
        Ok((self.child.cpu()?, Memory::of(self.child.id())?.anonymous))
    }

    /// Has it end by itself, and waits for that.
    pub(super) fn end(self) -> Result<()> {
        Ok(self.child.end()?)
    }
}
