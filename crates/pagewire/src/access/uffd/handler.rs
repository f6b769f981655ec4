//! Page faults of VM monitors: a socket that they send their userfaultfd to.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pagewire_core::chunk::ChunkSize;
use pagewire_sys::event::EventFd;
use std::os::fd::AsFd;

use super::guest::Guest;
use super::handshake;
use crate::engine::{Progress, PullOptions, Region};
use crate::error::{Error, Result};
use crate::transport::bind_unix;

/// How a handler serves.
#[derive(Debug, Clone, Default)]
pub struct HandlerOptions {
    /// How each guest's memory is pulled. For guests with huge pages the chunk is at least one. A trace is of what
    /// any of them needs first.
    pub pull: PullOptions,
}

/// Opens the region for one guest. Each guest is pinned to the epoch that is the newest when it comes.
pub type OpenRegion = Arc<dyn Fn() -> Result<Arc<Region>> + Send + Sync>;

/// Serves the page faults of any number of VM monitors, until it is dropped.
///
/// A monitor connects, sends its mappings and its userfaultfd, and is served until it exits. When the
/// handler is dropped, its monitors keep what they have; a fault after that waits for ever, so end
/// them first.
pub struct Handler {
    shared: Arc<Shared>,
    path: PathBuf,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    open: OpenRegion,
    options: HandlerOptions,
    stop: EventFd,
    stopping: AtomicBool,
    next: AtomicU64,
    guests: Mutex<Vec<Serving>>,
    /// What guests that have exited had needed.
    finished: Mutex<Vec<Progress>>,
}

struct Serving {
    number: u64,
    progress: Box<dyn Fn() -> Progress + Send>,
    stopper: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl Handler {
    /// Listens on a UNIX socket at `path`.
    ///
    /// # Errors
    ///
    /// If the region cannot be opened, or somebody listens there already.
    pub fn listen(path: &Path, open: OpenRegion, options: HandlerOptions) -> Result<Self> {
        // Opened once now, so that what is wrong with it is said before a guest waits.
        drop(open()?);
        let listener = bind_unix(path)?;
        let stop = EventFd::new().map_err(|error| Error::io("cannot make an event", &error))?;
        let shared = Arc::new(Shared {
            open,
            options,
            stop,
            stopping: AtomicBool::new(false),
            next: AtomicU64::new(1),
            guests: Mutex::default(),
            finished: Mutex::default(),
        });
        let accepting = shared.clone();
        let accepting = std::thread::Builder::new()
            .name("pw-uffd-accept".into())
            .spawn(move || {
                let stop = accepting.stop.as_fd();
                listener.accept_until(stop, |stream| accepting.clone().begin(stream));
            })
            .map_err(|error| Error::io("cannot start a thread", &error))?;
        Ok(Self { shared, path: path.into(), accepting: Some(accepting) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the guests that are served now have needed so far.
    pub fn guests(&self) -> Vec<Progress> {
        let guests = self.shared.guests.lock().expect("no holder panics");
        guests.iter().map(|guest| (guest.progress)()).collect()
    }

    /// What the guests that have exited had needed.
    pub fn finished(&self) -> Vec<Progress> {
        self.shared.finished.lock().expect("no holder panics").clone()
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // An event that cannot be signalled is one that is signalled already.
        let _ = self.shared.stop.signal();
        if let Some(thread) = self.accepting.take() {
            // One that has panicked has ended, too.
            let _ = thread.join();
        }
        let guests = std::mem::take(&mut *self.shared.guests.lock().expect("no holder panics"));
        for guest in guests {
            let _ = guest.stopper.signal();
            let _ = guest.thread.join();
        }
    }
}

impl Shared {
    /// A VM monitor has connected. Its handshake is waited for in a thread of its own, so that one
    /// that says nothing holds up none of the others.
    fn begin(self: Arc<Self>, stream: UnixStream) {
        let started = std::thread::Builder::new().name("pw-uffd-hello".into()).spawn(move || {
            if let Err(error) = self.serve(&stream) {
                tracing::error!(%error, "a VM monitor is not served");
            }
        });
        if let Err(error) = started {
            tracing::error!(%error, "cannot start a thread for a VM monitor");
        }
    }

    fn serve(self: &Arc<Self>, stream: &UnixStream) -> Result<()> {
        let patience = Some(Duration::from_secs(10));
        stream.set_read_timeout(patience).map_err(|error| Error::io("cannot use a socket", &error))?;
        let handshake = handshake::receive(stream)?;
        let (pid, count) = (handshake.pid, handshake.mappings.len());
        let mut pull = self.options.pull.clone();
        let largest = handshake.mappings.iter().map(|mapping| mapping.page_size).max();
        if let Some(page) = largest.and_then(|page| ChunkSize::new(page).ok()) {
            pull.chunk = pull.chunk.max(page);
        }
        let region = (self.open)()?;
        let mut guest = Guest::start(&region, handshake, pull)?;
        tracing::info!(pid, mappings = count, "serving the page faults of a VM monitor");
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (progress, stopper) = (guest.progress_reader(), guest.stopper());
        let mut guests = self.guests.lock().expect("no holder panics");
        if self.stopping.load(Ordering::Acquire) {
            return Ok(());
        }
        let shared = Arc::downgrade(self);
        let thread = std::thread::Builder::new()
            .name("pw-uffd-guest".into())
            .spawn(move || {
                guest.wait();
                let needed = guest.progress();
                let (bytes, cached) = (needed.bytes(), needed.cached_bytes);
                tracing::info!(pid, faults = needed.faults, bytes, cached, "a VM monitor has gone");
                drop(guest);
                if let Some(shared) = shared.upgrade()
                    && !shared.stopping.load(Ordering::Acquire)
                {
                    shared.finished.lock().expect("no holder panics").push(needed);
                    shared.guests.lock().expect("no holder panics").retain(|guest| guest.number != number);
                }
            })
            .map_err(|error| Error::io("cannot start a thread", &error))?;
        guests.push(Serving { number, progress, stopper, thread });
        Ok(())
    }
}
