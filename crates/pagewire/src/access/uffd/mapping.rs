//! A region in this process's memory, as bytes.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_core::chunk::ByteRange;
use pagewire_sys::pulled::PulledMapping;
use pagewire_sys::uffd::{Event, EventBuffer, Features};

use super::own::OwnMemory;
use super::resolver::{Resolve, Resolver, Soon};
use crate::address::StoreAddress;
use crate::engine::{Progress, PullOptions, Puller, Region};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{self, RemoteOptions};

/// How many events are read at once: as many as threads are likely to fault at the same time.
const EVENTS: usize = 32;

/// How a region is mapped.
#[derive(Debug, Clone, Default)]
pub struct MapOptions {
    /// How it is pulled.
    pub pull: PullOptions,
    /// Do without the right to resolve faults that the kernel takes on the program's behalf; an
    /// ordinary user has no other choice, and falls back to it anyway. A system call that is given
    /// an absent page then fails with EFAULT: see [`Mapping::prefault`].
    pub user_mode_only: bool,
}

/// A region in memory, pinned to one epoch: bytes that are there at once and arrive as they are
/// touched, and in the background.
///
/// It derefs to `[u8]`, and is `Send` and `Sync`. To touch a byte that has not arrived waits for it.
/// A byte that cannot be had within the patience is a SIGBUS for the thread that touches it, never
/// a zero; it heals when the store comes back. A child process after `fork` does not have the
/// mapping.
///
/// ```no_run
/// use pagewire::access::uffd::{MapOptions, Mapping};
///
/// let model = Mapping::open("pw://10.0.0.7:7070/model", &MapOptions::default())?;
/// println!("the first byte of {} is {}", model.len(), model[0]);
/// # Ok::<(), pagewire::Error>(())
/// ```
pub struct Mapping {
    // Dropped in this order: the thread that submits, what places, and the memory when the last
    // thread that is placing has let go of it.
    resolver: Option<Resolver>,
    puller: Arc<Puller>,
    memory: Arc<OwnMemory>,
    region: Arc<Region>,
    options: MapOptions,
    epoch: u64,
}

impl Mapping {
    /// Maps the region at `address`.
    ///
    /// # Errors
    ///
    /// As [`store::open`] and [`Mapping::map`].
    pub fn open(address: &str, options: &MapOptions) -> Result<Self> {
        Self::open_with(&address.parse()?, options, &RemoteOptions::default())
    }

    /// The same with a say in how a peer is talked to.
    ///
    /// # Errors
    ///
    /// As [`store::open`] and [`Mapping::map`].
    pub fn open_with(address: &StoreAddress, options: &MapOptions, remote: &RemoteOptions) -> Result<Self> {
        let store = store::open(address, false, remote)?;
        Self::map(&Region::at(address, store)?, options)
    }

    /// Maps the newest epoch of a region that is open.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`] where this process may not use userfaultfd at all;
    /// [`ErrorKind::Io`] where the address space is too small.
    pub fn map(region: &Arc<Region>, options: &MapOptions) -> Result<Self> {
        let pin = region.pin()?;
        let (epoch, length) = (pin.epoch(), pin.info().length);
        let length = usize::try_from(length)
            .map_err(|_| Error::new(ErrorKind::Unsupported, format!("{length} bytes of address space")))?;
        let memory = PulledMapping::new(length, Features::POISON, options.user_mode_only)
            .map_err(|error| Error::io(format!("cannot map {length} bytes by userfaultfd"), &error))?;
        let memory = Arc::new(OwnMemory { memory });
        let puller = Arc::new(Puller::start(pin, memory.clone(), options.pull.clone())?);
        let resolver = if length == 0 {
            None
        } else {
            let faults = Faults {
                puller: puller.clone(),
                memory: memory.clone(),
                events: EventBuffer::new(EVENTS),
                soon: Soon::default(),
            };
            Some(Resolver::start("pw-fault", faults)?)
        };
        Ok(Self { resolver, puller, memory, region: region.clone(), options: options.clone(), epoch })
    }

    /// The epoch whose bytes these are.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Moves on to the newest epoch of the region. Answers whether there was a newer one; if so, the
    /// bytes are at another address now, and arrive anew.
    ///
    /// A region of a peer moves as a whole: other mappings of the same [`Region`] keep the bytes that
    /// have arrived, and what has not is an error for them from then on. [`Mapping::open`] opens a
    /// region for one mapping alone.
    ///
    /// # Errors
    ///
    /// If the store cannot be reached; the mapping is then what it was. As [`Mapping::map`]; what has
    /// not arrived in the mapping is then an error.
    pub fn refresh(&mut self) -> Result<bool> {
        if self.region.refresh()?.epoch == self.epoch {
            return Ok(false);
        }
        *self = Self::map(&self.region, &self.options)?;
        Ok(true)
    }

    /// Waits until the bytes of `range` are there: for those whose system calls must not be given
    /// absent pages, and for those who want an error instead of a SIGBUS.
    ///
    /// # Errors
    ///
    /// Whatever keeps one of the bytes from being had within the patience.
    pub fn prefault(&self, range: ByteRange) -> Result<()> {
        self.puller.prefault(range)
    }

    /// Whether system calls that are given absent pages fail with EFAULT.
    pub fn is_user_mode_only(&self) -> bool {
        self.memory.memory.uffd().user_mode_only()
    }

    /// How far the pull is.
    pub fn progress(&self) -> Progress {
        self.puller.progress()
    }

    /// Progress at each `interval`, until everything is there.
    pub fn updates(&self, interval: Duration) -> impl Iterator<Item = Progress> + '_ {
        self.puller.updates(interval)
    }

    /// Waits until everything is there.
    ///
    /// # Errors
    ///
    /// As [`Puller::wait`].
    pub fn wait(&self) -> Result<Progress> {
        self.puller.wait()
    }

    /// Waits until everything is there, or until `deadline`: then the answer is none.
    ///
    /// # Errors
    ///
    /// As [`Puller::wait`].
    pub fn wait_until(&self, deadline: Instant) -> Result<Option<Progress>> {
        self.puller.wait_until(deadline)
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.memory.bytes()
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let served = self.resolver.is_some();
        f.debug_struct("Mapping")
            .field("region", &self.region.name())
            .field("length", &self.memory.memory.len())
            .field("epoch", &self.epoch)
            .field("served", &served)
            .finish()
    }
}

struct Faults {
    puller: Arc<Puller>,
    memory: Arc<OwnMemory>,
    events: EventBuffer,
    soon: Soon,
}

impl Resolve for Faults {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.memory.uffd().as_fd()
    }

    fn end(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn resolve(&mut self) -> io::Result<bool> {
        let base = self.memory.memory.mapping().address() as u64;
        match self.memory.memory.uffd().read_events(&mut self.events) {
            Ok(events) => {
                for event in events {
                    if let Event::PageFault { address, .. } = event {
                        self.soon.fault(&self.puller, address - base);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(self.soon.check(&self.puller))
    }
}
