//! A region as a block device of this host: to be formatted, mounted, or mapped.
//!
//! The kernel has an NBD client of its own. It is given one end of each of some socket pairs, and this process serves
//! the other ends as it serves any NBD client, without a handshake. So the device goes with the process.
//!
//! - What the kernel writes is kept until it is flushed ([`kept`]), so that a peer that is restarted has lost nothing.
//! - Where the region is one of a peer, there is a cache in front of it, which is filled in the background
//!   ([`pull`]): in memory, unless a file is named.
//! - What cannot be had within the patience is an I/O error. The kernel itself waits longer for this process than that.
//! - [`kernel`]: making devices, and taking them down; [`whose`]: telling ours from others', and who uses them.
//!
//! A device shows one epoch, and nobody else writes: the file system on it would not know.

mod kept;
mod kernel;
mod pull;
mod whose;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pagewire_core::chunk::{ChunkSize, PAGE_SIZE};
use pagewire_core::nbd::{Headers, TransmissionFlags};
use pagewire_core::pull::PullOrder;
use pagewire_sys::event::EventFd;
use pagewire_sys::mount::ReadAhead;
use pagewire_sys::nbd::{self, Setup};
use serde::Serialize;

use super::{Attachment, Export, ExportOptions, serve_transmission};
use crate::access::region_file::RegionFile;
use crate::engine::{PushOptions, Region};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{self, CacheProgress, wait};
use kept::KeptStore;
use kernel::{Connected, in_words};
use pull::{Pull, Pulling};
use whose::{Number, Owner};

/// The least that a block device can be read and written by, in bytes.
const SECTOR: u64 = 512;

/// What the kernel's client makes use of. Not TRIM: it is a hint, and what is trimmed is pushed as zeroes, which `mkfs`
/// would have done with the whole of a device.
const KNOWN: TransmissionFlags = TransmissionFlags::HAS_FLAGS
    .with(TransmissionFlags::READ_ONLY)
    .with(TransmissionFlags::SEND_FLUSH)
    .with(TransmissionFlags::SEND_FUA)
    .with(TransmissionFlags::SEND_WRITE_ZEROES)
    .with(TransmissionFlags::CAN_MULTI_CONN);

/// How far the kernel reads ahead of programs, in bytes, where what is not here takes long.
const READ_AHEAD: u64 = 2 << 20;
const LONG_WAY: Duration = Duration::from_millis(1);

/// How much longer than twice the patience the kernel waits for an answer. A request may wait for another one's end
/// before its own, each for as long as the patience; then this process answers with an error. Should it not answer at
/// all, it has been stopped, and the kernel fails the request after this.
const GRACE: Duration = Duration::from_secs(30);

/// How a device behaves.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// Whether it can be written to. It has the region's lease then.
    pub writable: bool,
    /// What is pulled without being asked for, and in which order, where the region has a cache.
    pub order: PullOrder,
    /// In which units that order is.
    pub chunk: ChunkSize,
    /// How many connections the kernel has, each with a thread that answers.
    pub connections: usize,
    /// How far the kernel reads ahead of programs, in bytes. Where none is given: 2 MiB where a round trip takes long,
    /// else as far as it wants to.
    pub read_ahead: Option<u64>,
    /// How long a request may take before it is answered with an error: the patience with a peer.
    pub patience: Duration,
    /// How what is written is pushed.
    pub push: PushOptions,
    /// Who writes, for a second writer to be told; this process, where none is named.
    pub owner: Option<String>,
    /// Whether the device is made by ioctl though the kernel has generic netlink.
    pub ioctl: bool,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let push = PushOptions { interval: Some(Duration::from_millis(500)), ..PushOptions::default() };
        Self {
            writable: false,
            order: PullOrder::Sequential,
            chunk: ChunkSize::DEFAULT,
            connections: processors.clamp(1, 4),
            read_ahead: None,
            patience: push.patience,
            push,
            owner: None,
            ioctl: false,
        }
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceStatus {
    /// Who answers for it.
    #[serde(flatten)]
    pub owner: Owner,
    /// Its length, in bytes.
    pub length: u64,
    /// Whether it can be written to.
    pub writable: bool,
    /// Whether the process that has answered for it is gone: it answers with errors alone.
    pub dead: bool,
}

pub use whose::Owner as DeviceOwner;

/// What the block device at `path` is. None where it is none of ours.
pub fn device_status(path: &Path) -> Option<DeviceStatus> {
    let number = Number::at(path)?;
    let owner = number.owner().filter(|_| number.is_connected())?;
    let (length, read_only) = (number.length()?, number.is_read_only()?);
    Some(DeviceStatus { dead: owner.is_gone(), owner, length, writable: !read_only })
}

/// A region as a block device. Dropping it flushes, and takes the device down.
///
/// ```no_run
/// use pagewire::access::nbd::{Device, DeviceOptions};
/// use pagewire::engine::Region;
/// use pagewire::store::{self, RemoteOptions};
///
/// # fn main() -> pagewire::Result<()> {
/// let address = "pw://10.0.0.7:7070/disk".parse()?;
/// let store = store::open_in_memory(&address, None, &RemoteOptions::default())?;
/// let device = Device::make(&Region::at(&address, store)?, None, &DeviceOptions::default())?;
/// println!("mount -o ro {} /mnt", device.path().display());
/// # Ok(())
/// # }
/// ```
pub struct Device {
    path: PathBuf,
    number: Number,
    region: Arc<Region>,
    /// What is written, where it can be.
    file: Option<Arc<RegionFile>>,
    running: Mutex<Option<Running>>,
    ended: Arc<EventFd>,
}

/// What ends with the device.
struct Running {
    connected: Connected,
    pull: Option<Pull>,
    threads: Vec<JoinHandle<()>>,
}

impl Device {
    /// Makes a region the block device at `path`, `/dev/nbdN`, or any that is free. The region is open for writing
    /// where the device is writable.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] while somebody else has the region's lease, or uses the device; [`ErrorKind::Denied`] where
    /// this user may not; [`ErrorKind::Unsupported`] where the kernel has no such devices, and for a region whose length
    /// is not one of sectors of 512 bytes; [`ErrorKind::Usage`] where the path is none of such a device.
    pub fn make(region: &Arc<Region>, path: Option<&Path>, options: &DeviceOptions) -> Result<Self> {
        let place = path.map(number_at).transpose()?;
        let (served, file) = if options.writable {
            let owner = options.owner.clone().unwrap_or_else(store::this_process);
            let file = RegionFile::writable(region.writer(&owner)?, &options.push, false, None)?;
            let file = Arc::new(file);
            (Region::new(region.name(), Arc::new(KeptStore(file.clone())))?, Some(file))
        } else {
            (region.clone(), None)
        };
        let (setup, attachment, owner) = prepare(&served, region, options)?;
        let pull = match (&options.order, region.cache()) {
            (PullOrder::None, _) | (_, None) => None,
            (order, Some(_)) => {
                let pin = if options.writable { None } else { Some(region.pin()?) };
                let (region, file, chunk) = (region.clone(), file.clone(), options.chunk);
                Some(Pull::start(Pulling { region, pin, file, order: order.clone(), chunk })?)
            }
        };
        let ended = Arc::new(EventFd::new().map_err(|error| Error::io("cannot make an event", &error))?);
        let (sockets, threads) = serve(&Arc::new(attachment), options.connections.max(1), &ended)?;
        let connected = Connected::make(place, &setup, owner, sockets, options.ioctl)?;
        let (path, number) = (connected.path(), connected.number);
        let read_ahead = options.read_ahead.or((region.round_trip() >= LONG_WAY).then_some(READ_AHEAD));
        if let (Some(bytes), Some(device)) = (read_ahead, number.device())
            && let Err(error) = ReadAhead::of(device).set(bytes)
        {
            tracing::debug!(%error, "the kernel reads ahead as far as it wants to");
        }
        tracing::info!(path = %path.display(), region = region.name(), writable = options.writable, "a device");
        let running = Running { connected, pull, threads };
        Ok(Self { path, number, region: region.clone(), file, running: Mutex::new(Some(running)), ended })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who uses it, in words: those whom this process may know.
    pub fn users(&self) -> Vec<String> {
        self.number.users()
    }

    /// How much of the region is in its cache, if it has one.
    pub fn cache_progress(&self) -> Option<CacheProgress> {
        self.region.cache().map(store::CacheStore::progress)
    }

    /// How many bytes of pages were written and are not flushed to the region.
    pub fn unflushed_bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.unflushed_bytes())
    }

    /// Is readable as soon as the device was taken down by somebody else: [`Device::take_down`] then ends it.
    pub fn taken_down(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Has the kernel write back what programs have written to the device, and flushes it. What a file system keeps for
    /// itself is its own to write.
    ///
    /// # Errors
    ///
    /// Whatever the store says; a later flush does it.
    pub fn flush(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let failed = |error| Error::io(format!("cannot write back {}", self.path.display()), &error);
        let path = self.path.clone();
        let written_back = match self.number.is_connected() {
            true => apart(move || File::open(path)?.sync_all()).map_err(failed),
            false => Ok(()),
        };
        // What could be written back is flushed in any case.
        wait(|done| file.flush(done)).map(drop).and(written_back)
    }

    /// Flushes, and takes the device down. With `force` that is done also while somebody uses it, and when it cannot be
    /// flushed: what they do with it fails from then on.
    ///
    /// # Errors
    ///
    /// As [`Device::flush`]; [`ErrorKind::Busy`] while somebody uses it, who is named: it goes on then.
    pub fn take_down(&self, force: bool) -> Result<()> {
        let mut place = self.running.lock().expect("no holder panics");
        let Some(running) = place.as_ref() else { return Ok(()) };
        let is_there = !running.threads.iter().all(JoinHandle::is_finished);
        if is_there && !force {
            self.check_unused()?;
        }
        let flushed = self.flush();
        if let Err(error) = &flushed {
            if !force {
                return flushed;
            }
            tracing::error!(%error, "what was written could not be flushed");
        }
        let Some(Running { connected, pull, threads }) = place.take() else { return Ok(()) };
        drop(pull);
        let taken_down = connected.take_down();
        if taken_down.is_ok() {
            for thread in threads {
                // One that has panicked has ended, too.
                let _ = thread.join();
            }
        }
        let last = match &self.file {
            // What came in between.
            Some(file) if flushed.is_ok() => wait(|done| file.flush(done)).map(drop),
            _ => Ok(()),
        };
        flushed.and(taken_down).and(last)
    }

    fn check_unused(&self) -> Result<()> {
        let (users, path) = (self.users(), self.path.clone());
        let is_claimed = || apart(move || nbd::is_claimed(&path)).unwrap_or(false);
        if users.is_empty() && !is_claimed() {
            return Ok(());
        }
        let text = format!("{} is in use by {}", self.path.display(), in_words(&users));
        Err(Error::new(ErrorKind::Busy, text))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = self.take_down(true) {
            tracing::error!(path = %self.path.display(), %error, "taking a device down");
        }
    }
}

fn number_at(path: &Path) -> Result<Number> {
    Number::at(path).ok_or_else(|| {
        let text =
            format!("{} is no NBD device: write /dev/nbd0, or none for any that is free", path.display());
        Error::new(ErrorKind::Usage, text)
    })
}

/// What the kernel is to be told, and who answers.
fn prepare(
    served: &Arc<Region>,
    region: &Region,
    options: &DeviceOptions,
) -> Result<(Setup, Attachment, Owner)> {
    let export =
        Export::new(served.clone(), ExportOptions { read_only: !options.writable, lapse: Duration::ZERO });
    let attachment = export.attach(options.writable)?;
    // All connections are one client's, and so they show the same, and learn the same of what is lost.
    let flags = attachment.flags(Headers::Simple).with(TransmissionFlags::CAN_MULTI_CONN);
    let length = attachment.size();
    if length == 0 || !length.is_multiple_of(SECTOR) {
        let text = format!(
            "a block device has whole sectors of {SECTOR} bytes, and '{}' has {length} bytes; as a file it can be mounted",
            region.name()
        );
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let failed = |error| Error::io("cannot tell this process from others", &error);
    let owner = Owner::new(region.name()).map_err(failed)?;
    let setup = Setup {
        length,
        block_size: 1 << length.trailing_zeros().min(PAGE_SIZE.trailing_zeros()),
        flags: flags.0 & KNOWN.0,
        timeout: Some(options.patience * 2 + GRACE),
        dead_connection_timeout: Duration::ZERO,
        backend: owner.backend(),
    };
    Ok((setup, attachment, owner))
}

/// Starts a thread for each connection, and answers the ends that the kernel is to have. When the last one has ended,
/// `ended` is signalled.
fn serve(
    attachment: &Arc<Attachment>,
    connections: usize,
    ended: &Arc<EventFd>,
) -> Result<(Vec<UnixStream>, Vec<JoinHandle<()>>)> {
    let left = Arc::new(AtomicUsize::new(connections));
    let (mut sockets, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..connections {
        let pair = UnixStream::pair().map_err(|error| Error::io("cannot make a pair of sockets", &error))?;
        let (ours, theirs) = pair;
        let (attachment, left, ended) = (attachment.clone(), left.clone(), ended.clone());
        let thread = std::thread::Builder::new().name("nbd-serve".into()).spawn(move || {
            if let Err(error) = serve_transmission(attachment, ours, Headers::Simple) {
                tracing::debug!(%error, "a connection of a device has ended");
            }
            if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                // An event that cannot be signalled is one that is signalled already.
                let _ = ended.signal();
            }
        });
        threads.push(thread.map_err(|error| Error::io("cannot start a thread", &error))?);
        sockets.push(theirs);
    }
    Ok((sockets, threads))
}

/// Does what opens the device, for which this process answers: on a thread with descriptors of its own. When the process
/// is killed, the kernel writes the device back as it closes its last descriptor, and would wait for this process, had
/// that the connections still, in the same table.
fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let work = || pagewire_sys::thread::leave_descriptors().and_then(|()| work());
        let thread = std::thread::Builder::new().name("nbd-apart".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
