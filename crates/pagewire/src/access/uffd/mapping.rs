//! A region in this process's memory, as bytes.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_sys::pulled::PulledMapping;
use pagewire_sys::uffd::{Event, EventBuffer, Features};

use super::own::OwnMemory;
use super::resolver::{Resolve, Resolver, Soon};
use crate::address::StoreAddress;
use crate::engine::{LocalCopy, Pin, Progress, PullOptions, Puller, Region};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{self, RemoteOptions};

/// How many events are read at once: as many as threads are likely to fault at the same time.
pub(super) const EVENTS: usize = 32;

/// How a region is mapped.
#[derive(Debug, Clone, Default)]
pub struct MapOptions {
    /// How it is pulled.
    pub pull: PullOptions,
    /// Do without the right to resolve faults that the kernel takes on the program's behalf; an
    /// ordinary user has no other choice, and falls back to it anyway. A system call that is given
    /// an absent page then fails with EFAULT: see [`Mapping::prefault`].
    pub user_mode_only: bool,
    /// A file on this host that keeps what has arrived, and what was written and not pushed yet, across restarts:
    /// see [`store::cache`]. Mappings that are opened by address use it; a [`Region`] brings its own.
    pub cache: Option<PathBuf>,
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
    // Dropped first; then the memory, when the last thread that is placing has let go of it. None where
    // it could not be served again: what has not come by then is an error for good.
    served: Option<Served>,
    memory: Arc<OwnMemory>,
    region: Arc<Region>,
    options: MapOptions,
    epoch: u64,
}

/// What makes the bytes of a mapping come.
struct Served {
    // Dropped in this order: the thread that submits, and what places.
    resolver: Option<Resolver>,
    puller: Arc<Puller>,
}

impl Served {
    /// Begins to serve `memory`, which has some pages already.
    fn start(memory: &Arc<OwnMemory>, pin: Arc<Pin>, options: &MapOptions, present: &BitSet) -> Result<Self> {
        let is_empty = memory.memory.is_empty();
        let puller = Arc::new(Puller::resume(pin, memory.clone(), options.pull.clone(), present)?);
        if is_empty {
            return Ok(Self { resolver: None, puller });
        }
        let faults = Faults {
            puller: puller.clone(),
            memory: memory.clone(),
            events: EventBuffer::new(EVENTS),
            soon: Soon::default(),
        };
        let resolver = Some(Resolver::start("pw-fault", faults)?);
        Ok(Self { resolver, puller })
    }

    /// Ends it: nothing is placed any more. Answers which pages are there, and what they are of.
    fn stop(self) -> (BitSet, Arc<Pin>) {
        let Self { resolver, puller } = self;
        drop(resolver);
        puller.stop()
    }
}

impl Mapping {
    /// Maps the region at `address`.
    ///
    /// # Errors
    ///
    /// As [`store::open_cached`] and [`Mapping::map`].
    pub fn open(address: &str, options: &MapOptions) -> Result<Self> {
        Self::open_with(&address.parse()?, options, &RemoteOptions::default())
    }

    /// The same with a say in how a peer is talked to.
    ///
    /// # Errors
    ///
    /// As [`store::open_cached`] and [`Mapping::map`].
    pub fn open_with(address: &StoreAddress, options: &MapOptions, remote: &RemoteOptions) -> Result<Self> {
        let store = store::open_cached(address, None, remote, options.cache.as_deref())?;
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
        let pages = length.div_ceil(PAGE_SIZE as usize) as u64;
        let served = Some(Served::start(&memory, Arc::new(pin), options, &BitSet::new(pages))?);
        Ok(Self { served, memory, region: region.clone(), options: options.clone(), epoch })
    }

    /// The epoch whose bytes these are.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The newest epoch that is known of: one that is newer than [`Mapping::epoch`] can be had by
    /// [`Mapping::refresh`]. Asks nobody; a peer tells of its epochs.
    pub fn newest_epoch(&self) -> u64 {
        self.region.newest()
    }

    /// Moves on to the newest epoch of the region. Answers whether there was a newer one.
    ///
    /// Where the region has kept its length and the store knows what has changed, the bytes stay where
    /// they are, and only what has changed arrives anew; otherwise they are at another address now, and
    /// arrive anew.
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
        // Not while it is pulled: what is asked for at the old epoch would fail.
        let (present, pin) = match self.served.take() {
            Some(served) => served.stop(),
            None => return Err(not_served()),
        };
        let newer = self.region.refresh().and_then(|info| match info.epoch == self.epoch {
            true => Ok(None),
            false => self.region.pin().map(Some),
        });
        let newer = match newer {
            Ok(Some(newer)) => newer,
            nothing => {
                self.serve(pin, &present)?;
                return nothing.map(|_| false);
            }
        };
        let same_length = newer.info().length == self.memory.memory.len() as u64;
        match self.region.changes(self.epoch).filter(|_| same_length) {
            Some(changes) => self.move_to(newer, present, &changes)?,
            None => match Self::map(&self.region, &self.options) {
                Ok(mapping) => *self = mapping,
                Err(error) => {
                    self.give_up()?;
                    return Err(error);
                }
            },
        }
        Ok(true)
    }

    /// Moves on to the epoch of `pin`, which differs from this one in `changes` at most.
    fn move_to(&mut self, pin: Pin, mut present: BitSet, changes: &[ByteRange]) -> Result<()> {
        let length = self.memory.memory.len() as u64;
        for range in changes.iter().map(|range| range.clamp_to(length)) {
            present.remove_range(range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE));
        }
        let memory = loop {
            // Answers that are on their way hold it until they find that nobody wants them.
            match Arc::get_mut(&mut self.memory) {
                Some(memory) => break memory,
                None => std::thread::yield_now(),
            }
        };
        // With what is stale goes what could not be had: its pages hold an error, which may have healed.
        let discarded = present.gaps().try_for_each(|gap| {
            let (start, length) = (gap.start * PAGE_SIZE, (gap.end - gap.start) * PAGE_SIZE);
            memory.memory.discard(start as usize, length as usize)
        });
        self.epoch = pin.epoch();
        if let Err(error) = discarded {
            self.give_up()?;
            return Err(Error::io("cannot discard pages", &error));
        }
        self.serve(Arc::new(pin), &present)
    }

    fn serve(&mut self, pin: Arc<Pin>, present: &BitSet) -> Result<()> {
        match Served::start(&self.memory, pin, &self.options, present) {
            Ok(served) => self.served = Some(served),
            Err(error) => {
                self.give_up()?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Nobody serves it any more: whoever touches what is not there must not wait for ever.
    fn give_up(&self) -> Result<()> {
        self.memory.fail(ByteRange::new(0, self.memory.memory.len() as u64))
    }

    fn puller(&self) -> Result<&Puller> {
        self.served.as_ref().map(|served| &*served.puller).ok_or_else(not_served)
    }

    /// The region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Waits until the bytes of `range` are there: for those whose system calls must not be given
    /// absent pages, and for those who want an error instead of a SIGBUS.
    ///
    /// # Errors
    ///
    /// Whatever keeps one of the bytes from being had within the patience.
    pub fn prefault(&self, range: ByteRange) -> Result<()> {
        self.puller()?.prefault(range)
    }

    /// Whether system calls that are given absent pages fail with EFAULT.
    pub fn is_user_mode_only(&self) -> bool {
        self.memory.memory.uffd().user_mode_only()
    }

    /// How far the pull is.
    pub fn progress(&self) -> Progress {
        self.puller().map(Puller::progress).unwrap_or_default()
    }

    /// Progress at each `interval`, until everything is there.
    pub fn updates(&self, interval: Duration) -> impl Iterator<Item = Progress> + '_ {
        self.puller().into_iter().flat_map(move |puller| puller.updates(interval))
    }

    /// Waits until everything is there.
    ///
    /// # Errors
    ///
    /// As [`Puller::wait`].
    pub fn wait(&self) -> Result<Progress> {
        self.puller()?.wait()
    }

    /// Waits until everything is there, or until `deadline`: then the answer is none.
    ///
    /// # Errors
    ///
    /// As [`Puller::wait`].
    pub fn wait_until(&self, deadline: Instant) -> Result<Option<Progress>> {
        self.puller()?.wait_until(deadline)
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
        let served = self.served.is_some();
        f.debug_struct("Mapping")
            .field("region", &self.region.name())
            .field("length", &self.memory.memory.len())
            .field("epoch", &self.epoch)
            .field("served", &served)
            .finish()
    }
}

fn not_served() -> Error {
    Error::new(ErrorKind::Cancelled, "the mapping is not served any more")
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
