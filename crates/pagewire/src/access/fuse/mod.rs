//! FUSE: a region as a file that any program can open and map; or all regions of a peer as the files of a directory.
//!
//! The kernel's page cache is the local copy. What it does not have it asks for, and the answer is sent to it from
//! the buffer in which it came from the store, by the thread that received it. The background pull has
//! the kernel read ahead ([`warm`]). What programs write is written back by the kernel, kept until it is flushed,
//! and pushed and flushed by the engine's [`Pusher`](crate::engine::Pusher): all that is
//! [`RegionFile`]'s, in which there is no FUSE.
//!
//! - [`entries`]: the files of a mount, and what they have besides their bytes.
//! - [`filesystem`]: translates the kernel's requests.
//! - [`live`]: a file that is moved to another host while it is in use.
//! - [`passthrough`]: opens files straight on their caches.
//! - [`session`]: making a mount, and taking it down.
//! - [`upkeep`]: moves files that are read on to newer epochs, and notices that the mount is gone.
//! - [`write_back`]: has the kernel write back what programs have written.

mod entries;
mod errno;
mod filesystem;
mod live;
mod passthrough;
mod session;
mod upkeep;
mod warm;
mod write_back;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pagewire_core::chunk::ChunkSize;
use pagewire_core::pull::PullOrder;
use serde::{Deserialize, Serialize};

use crate::access::region_file::{Counters, RegionFile};
use crate::engine::PushOptions;
use crate::error::{Error, ErrorKind, Result};
use entries::{Entries, Entry};
use passthrough::Passthrough;
use warm::{Warmers, Warming};
use write_back::WriteBacks;

pub use session::Mount;

/// The longest request, in bytes.
const REQUEST: u32 = 1 << 20;

/// How far the kernel reads ahead of programs, in bytes: what is best for pages here and there, and for what is read
/// in order.
const READ_AHEAD: (u64, u64) = (16 << 10, 2 << 20);

/// How a mount behaves.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Whether programs may write. The mount has the region's lease then.
    pub writable: bool,
    /// Whether there is no local copy: every read and write goes to the mount, but for those of maps.
    pub direct: bool,
    /// Whether what is flushed becomes visible to other readers at once, and only by the flushes of programs. The
    /// mount otherwise flushes by itself when much was written; with this it keeps all of it in memory until then.
    pub atomic: bool,
    /// Whether readers move on to newer epochs; they stay at the one that was mounted otherwise.
    pub follow: bool,
    /// What is pulled without being asked for, and in which order.
    pub order: PullOrder,
    /// In which units that order is, and traces are.
    pub chunk: ChunkSize,
    /// Where to record the order in which programs need the region.
    pub trace: Option<PathBuf>,
    /// How far the kernel reads ahead of programs, in bytes. Where none is given: 2 MiB beside a background pull, or
    /// where a round trip takes long; else 16 KiB, so that a page here and there costs little. Only root can change it.
    pub read_ahead: Option<u64>,
    /// How many threads take the kernel's requests.
    pub threads: usize,
    /// Whether other users may use the mount.
    pub allow_other: bool,
    /// How what is written is pushed.
    pub push: PushOptions,
    /// Who writes, for a second writer to be told; this process, where none is named.
    pub owner: Option<String>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            writable: false,
            direct: false,
            atomic: false,
            follow: true,
            order: PullOrder::Sequential,
            chunk: ChunkSize::DEFAULT,
            trace: None,
            read_ahead: None,
            threads: 2,
            allow_other: false,
            push: PushOptions { interval: Some(Duration::from_millis(500)), ..PushOptions::default() },
            owner: None,
        }
    }
}

/// How a mounted file is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The region.
    pub region: String,
    /// The epoch that readers see.
    pub epoch: u64,
    /// Its length, in bytes.
    pub length: u64,
    /// Whether it can be written to.
    pub writable: bool,
    /// The way of a read: `page-cache`; `passthrough` where the kernel reads the cache's file itself; or `direct`.
    pub path: String,
    /// How many bytes the kernel was given since they changed last. It may have dropped some of them.
    pub cached_bytes: u64,
    /// How many bytes programs waited for.
    pub demand_bytes: u64,
    /// How many reads these were.
    pub demand_reads: u64,
    /// How many bytes the background pull brought.
    pub background_bytes: u64,
    /// How many bytes were written and are not flushed.
    pub unflushed_bytes: u64,
    /// What the last push or flush ran into, if none has succeeded since.
    pub last_error: Option<String>,
}

/// How the mounted file at `path` is doing: asks the mount, in whichever process it is. None where there is no such
/// file, or it is none of ours.
///
/// # Errors
///
/// If the file cannot be asked.
pub fn mount_status(path: &Path) -> Result<Option<Status>> {
    let failed = |error| Error::io(format!("cannot ask {}", path.display()), &error);
    match pagewire_sys::file::extended_attribute(path, filesystem::STATUS) {
        Ok(Some(json)) => serde_json::from_slice(&json).map(Some).map_err(|error| {
            let text = format!("{} answers what this version does not know", path.display());
            Error::new(ErrorKind::Unsupported, text).because(error)
        }),
        Ok(None) => Ok(None),
        // Nothing is there, or something that has no attributes: an address, or somebody else's file.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Unsupported) => {
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// What the parts of a mount share.
struct Shared {
    entries: Entries,
    options: MountOptions,
    warmers: Arc<Warmers>,
    write_backs: Arc<WriteBacks>,
    passthrough: Passthrough,
    place: std::sync::OnceLock<Place>,
}

/// Where a mount is.
struct Place {
    path: PathBuf,
    device: pagewire_sys::mount::DeviceId,
    notifier: fuser::Notifier,
}

impl Shared {
    /// Ends what uses the mount besides programs.
    fn stop(&self) {
        self.warmers.stop();
        self.write_backs.stop();
    }

    /// The file of an entry, opened now if it was not.
    fn open(&self, entry: &Entry) -> Result<Arc<RegionFile>> {
        let listed = entry.length();
        let (file, is_new) = self.entries.open(entry)?;
        if is_new {
            if !file.is_writable() {
                self.forget_attributes(entry);
            } else if file.length() != listed {
                self.tell_length(entry, file.length())?;
            }
            self.warm(entry, &file);
        }
        Ok(file)
    }

    /// Tells the kernel the length of a file that is written to. With its writeback cache the kernel knows it
    /// better than the mount from the moment that it knows the file; and the root of a file system it knows, as an
    /// empty file, before anybody is asked.
    fn tell_length(&self, entry: &Entry, length: u64) -> Result<()> {
        let Some(place) = self.place.get() else { return Ok(()) };
        let path = warm::join(&place.path, self.entries.path_of(entry).as_ref());
        let now = std::time::SystemTime::now();
        let tell = || {
            let file = std::fs::File::options().write(true).open(&path)?;
            file.set_len(length)?;
            file.set_times(std::fs::FileTimes::new().set_accessed(now).set_modified(now))
        };
        apart(tell).map_err(|error| Error::io(format!("cannot set the length of {}", path.display()), &error))
    }

    /// Has the kernel ask anew for the length of a file that is read: what it knows may be from before it was opened.
    fn forget_attributes(&self, entry: &Entry) {
        let Some(place) = self.place.get() else { return };
        // A kernel that does not know the file has nothing to forget.
        if let Err(error) = place.notifier.inval_inode(fuser::INodeNo(entry.ino), -1, 0) {
            tracing::debug!(region = entry.region, %error, "the kernel forgets nothing of a file");
        }
    }

    /// How far the kernel reads ahead of programs, in bytes.
    fn read_ahead(&self) -> u64 {
        let is_pulled = !matches!(self.options.order, PullOrder::None);
        let is_far =
            self.entries.opened().iter().any(|(_, file)| file.region().round_trip() >= warm::LONG_WAY);
        self.options.read_ahead.unwrap_or(if is_pulled || is_far { READ_AHEAD.1 } else { READ_AHEAD.0 })
    }

    /// Begins the background pull of a file.
    fn warm(&self, entry: &Entry, file: &Arc<RegionFile>) {
        let Some(place) = self.place.get() else { return };
        if self.options.direct || matches!(self.options.order, PullOrder::None) {
            return;
        }
        let read_ahead = pagewire_sys::mount::ReadAhead::of(place.device);
        let warming = Warming {
            file: file.clone(),
            mount: place.path.clone(),
            path: self.entries.path_of(entry).into(),
            order: self.options.order.clone(),
            chunk: self.options.chunk,
            read_ahead: (read_ahead, self.read_ahead()),
            ends: self.passthrough.is_for(file),
        };
        if let Err(error) = self.warmers.start(warming) {
            tracing::warn!(%error, "there is no background pull");
        }
    }

    /// The way that a read takes now, or would take where the file is not open.
    fn path_of(&self, entry: &Entry, file: Option<&RegionFile>) -> &'static str {
        let is_ready = || file.is_some_and(|file| self.passthrough.is_ready(file));
        match self.options.direct {
            true => "direct",
            false if entry.opens.is_straight().unwrap_or_else(is_ready) => "passthrough",
            false => "page-cache",
        }
    }

    fn status_of(&self, entry: &Entry) -> Status {
        let file = entry.file();
        let push = file.as_ref().and_then(|file| file.push_progress());
        let count = |counter: fn(&Counters) -> &std::sync::atomic::AtomicU64| {
            file.as_ref().map_or(0, |file| counter(&file.counters).load(std::sync::atomic::Ordering::Relaxed))
        };
        Status {
            region: entry.region.clone(),
            epoch: file.as_ref().map_or(0, |file| file.epoch()),
            length: entry.length(),
            writable: file.as_ref().is_some_and(|file| file.is_writable()),
            path: self.path_of(entry, file.as_deref()).into(),
            cached_bytes: file.as_ref().map_or(0, |file| file.read_bytes()),
            demand_bytes: count(|counters| &counters.demand_bytes),
            demand_reads: count(|counters| &counters.demand_reads),
            background_bytes: count(|counters| &counters.background_bytes),
            unflushed_bytes: file.as_ref().map_or(0, |file| file.unflushed_bytes()),
            last_error: push.and_then(|push| push.last_error),
        }
    }

    fn status(&self, entry: &Entry) -> String {
        serde_json::to_string(&self.status_of(entry)).unwrap_or_default()
    }
}

/// Does what opens files of the mount, which this process answers for: on a thread with descriptors of its own, so that
/// the process can be killed meanwhile.
fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let work = || pagewire_sys::thread::leave_descriptors().and_then(|()| work());
        let thread = std::thread::Builder::new().name("pw-fuse-apart".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Has the calling thread, which the kernel's requests come to, take short turns: somebody waits for each.
fn schedule_once() {
    thread_local! {
        static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    if !DONE.replace(true) {
        crate::schedule::demand();
    }
}
