//! A region in this process's memory, to read and to write.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};

use pagewire_core::chunk::{ByteRange, round_up};
use pagewire_sys::tracked::TrackedMapping;
use pagewire_sys::uffd::{Event, EventBuffer};

use super::mapping::{EVENTS, MapOptions};
use super::resolver::{Resolve, Resolver, Soon};
use super::tracked::{TrackedMemory, out_of_range};
use crate::address::StoreAddress;
use crate::engine::{LocalCopy, Progress, Puller, PushOptions, PushProgress, Pusher, Region};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{self, Info, RemoteOptions};

pub use pagewire_sys::tracked::Tracking;

/// How a region is mapped to be written to.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// How it is mapped and pulled.
    pub map: MapOptions,
    /// How it is written back.
    pub push: PushOptions,
    /// How changes are found; the best way that the kernel has where none is named.
    pub tracking: Option<Tracking>,
    /// Who writes, for a second writer to be told; this process, where none is named.
    pub owner: Option<String>,
}

/// A region in memory that can be written to: bytes that are there at once, arrive as they are touched
/// and in the background, and are written back in the background and by [`WritableMapping::flush`].
///
/// It has the region's lease until it is dropped; what is not flushed then is given up, but for what is flushed
/// [locally](Self::flush_local). The memory has
/// room for the region's capacity, so that growing moves nothing.
///
/// # What is guaranteed
///
/// - A flush covers every write, by whichever way and thread, that happened before it was called. Of
///   writes that happen while it runs it covers some: each page as it was at one moment.
/// - Which pages were written is found by the kernel, to the page, whoever wrote: this program by any of
///   the ways below, a library, or a system call such as `read(2)` into the memory. The exception is who
///   takes hold of pages first and writes to them later: direct I/O, and the registered buffers of io_uring.
///   What comes in so while pages are pushed may be missed.
/// - There is no `&[u8]` or `&mut [u8]` of it: other threads write the bytes, and these types promise that
///   nobody does. [`read`](Self::read) and [`write`](Self::write) have the kernel copy; the atomics are
///   sound for any number of threads; [`as_mut_ptr`](Self::as_mut_ptr) is for those who keep Rust's rules
///   about data races themselves.
/// - To touch a byte that has not arrived waits for it. A byte that cannot be had within the patience is
///   a SIGBUS for the thread that touches it (an error from `read` and `write`), never a zero.
/// - Bytes behind the region's [`len`](Self::len) are memory, but not the region's: they are never pushed,
///   and zero when the region grows over them.
/// - When somebody else has taken the lease ([`ErrorKind::Fenced`]), the memory stays readable, and nothing
///   more is pushed.
///
/// The first write to a page after each push costs a fault that the kernel resolves, about a
/// microsecond. A program that writes pages at random as fast as it can, with nothing else to do, is slowed
/// down by a multiple while changes are tracked; one that is paced hardly notices.
///
/// ```no_run
/// use pagewire::access::uffd::{WritableMapping, WriteOptions};
///
/// let counters = WritableMapping::open("pw://10.0.0.7:7070/counters", &WriteOptions::default())?;
/// counters.write(4096, b"hello")?;
/// counters.atomic_u64(0).expect("aligned").fetch_add(1, std::sync::atomic::Ordering::Relaxed);
/// println!("flushed as epoch {}", counters.flush()?.epoch);
/// # Ok::<(), pagewire::Error>(())
/// ```
pub struct WritableMapping {
    // Dropped in this order: what reads the memory, the thread that submits, what places; and the memory
    // when the last thread that is placing has let go of it.
    pub(super) pusher: Pusher,
    _resolver: Option<Resolver>,
    pub(super) puller: Arc<Puller>,
    pub(super) memory: Arc<TrackedMemory>,
    region: Arc<Region>,
    /// The length of a chunk, in bytes.
    chunk: u64,
    /// Held while the length changes.
    resizing: Mutex<()>,
}

impl WritableMapping {
    /// Maps the region at `address`.
    ///
    /// # Errors
    ///
    /// As [`store::open_cached`] and [`WritableMapping::map`].
    pub fn open(address: &str, options: &WriteOptions) -> Result<Self> {
        Self::open_with(&address.parse()?, options, &RemoteOptions::default())
    }

    /// The same with a say in how a peer is talked to.
    ///
    /// # Errors
    ///
    /// As [`store::open_cached`] and [`WritableMapping::map`].
    pub fn open_with(address: &StoreAddress, options: &WriteOptions, remote: &RemoteOptions) -> Result<Self> {
        let owner = options.owner.clone().unwrap_or_else(store::this_process);
        let cache = options.map.cache.as_deref();
        let store = store::open_cached(address, Some(&owner), remote, cache)?;
        Self::map(&Region::at(address, store)?, options)
    }

    /// Maps the newest epoch of a region that is open for writing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] while somebody else has the lease, [`ErrorKind::Unsupported`] where the region
    /// cannot be written to; [`ErrorKind::Denied`] where this process may not use userfaultfd at all;
    /// [`ErrorKind::Io`] where the address space is too small.
    pub fn map(region: &Arc<Region>, options: &WriteOptions) -> Result<Self> {
        let owner = options.owner.clone().unwrap_or_else(store::this_process);
        let writer = region.writer(&owner)?;
        let pin = writer.pin();
        let Info { length, capacity, .. } = pin.info();
        let room = usize::try_from(capacity)
            .map_err(|_| Error::new(ErrorKind::Unsupported, format!("{capacity} bytes of address space")))?;
        let memory = TrackedMapping::new(room, options.tracking, options.map.user_mode_only)
            .map_err(|error| Error::io(format!("cannot map {room} bytes by userfaultfd"), &error))?;
        let memory = Arc::new(TrackedMemory::new(memory, length));
        let puller = Arc::new(Puller::start(pin, memory.clone(), options.map.pull.clone())?);
        let resolver = if room == 0 {
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
        let pusher = Pusher::start(writer, memory.clone(), capacity, options.push.clone())?;
        let (region, resizing, chunk) = (region.clone(), Mutex::default(), options.map.pull.chunk.bytes());
        Ok(Self { pusher, _resolver: resolver, puller, memory, region, chunk, resizing })
    }

    /// The region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The region's length as it is now, in bytes.
    pub fn len(&self) -> u64 {
        self.pusher.length()
    }

    /// Whether the region is empty now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The length that the region can grow to, in bytes: that of the memory.
    pub fn capacity(&self) -> u64 {
        self.memory.memory.len() as u64
    }

    /// How changes are found.
    pub fn tracking(&self) -> Tracking {
        self.memory.memory.tracking()
    }

    /// The newest epoch: the one that the last flush made, or the one that was mapped.
    pub fn epoch(&self) -> u64 {
        self.region.info().epoch
    }

    /// Copies bytes out, waiting for those that have not arrived. Each page is copied at one moment, the
    /// whole range is not.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfRange`]; whatever keeps one of the bytes from being had within the patience.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        self.prefault_for_system_calls(offset, bytes.len())?;
        self.memory.read_back(offset, bytes)
    }

    /// Copies bytes in, waiting for the pages that have not arrived.
    ///
    /// # Errors
    ///
    /// As [`WritableMapping::read`]; a part is written then. [`ErrorKind::Busy`] while a database has the
    /// memory.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        self.prefault_for_system_calls(offset, bytes.len())?;
        let written = self.memory.memory.copy_in(offset as usize, bytes);
        written.map_err(|error| Error::io("cannot write to the mapping", &error))
    }

    /// The byte at `offset` for access by several threads at once; none outside of the capacity. See
    /// [`TrackedMapping::atomic_u64`].
    pub fn atomic_u8(&self, offset: u64) -> Option<&AtomicU8> {
        self.memory.memory.atomic_u8(usize::try_from(offset).ok()?)
    }

    /// The same for two bytes, whose offset is a multiple of two.
    pub fn atomic_u16(&self, offset: u64) -> Option<&AtomicU16> {
        self.memory.memory.atomic_u16(usize::try_from(offset).ok()?)
    }

    /// The same for four bytes, whose offset is a multiple of four.
    pub fn atomic_u32(&self, offset: u64) -> Option<&AtomicU32> {
        self.memory.memory.atomic_u32(usize::try_from(offset).ok()?)
    }

    /// The same for eight bytes, whose offset is a multiple of eight.
    pub fn atomic_u64(&self, offset: u64) -> Option<&AtomicU64> {
        self.memory.memory.atomic_u64(usize::try_from(offset).ok()?)
    }

    /// The first byte, for those who keep Rust's rules about data races themselves. It stays where it is
    /// for as long as the mapping lives; there are [`WritableMapping::capacity`] bytes.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.memory.memory.as_mut_ptr()
    }

    /// The memory itself, for what can use it: an SQLite database that lies in it, for instance.
    pub fn memory(&self) -> &TrackedMapping {
        &self.memory.memory
    }

    /// Returns when everything that was written before the call is durable at the store. The answer is
    /// what the region is then: its epoch has grown by one, unless nothing was written.
    ///
    /// # Errors
    ///
    /// As [`Pusher::flush`].
    pub fn flush(&self) -> Result<Info> {
        self.pusher.flush()
    }

    /// Returns when everything that was written before the call, and is not flushed yet, is durable in the
    /// region's cache on this host ([`MapOptions::cache`]): all of it or nothing. It takes no network. The next
    /// mapping to be written to that is opened with this cache has these changes, and flushes them.
    ///
    /// The background push does it, too, at each [interval](PushOptions::interval).
    ///
    /// # Errors
    ///
    /// As [`Pusher::flush_local`].
    pub fn flush_local(&self) -> Result<()> {
        self.pusher.flush_local()
    }

    /// Changes the region's length, as part of the next flush. Bytes behind a new end are gone; those up to
    /// a later end are zeroes. Nobody may be accessing the bytes between the two.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSpace`] past the capacity; whatever the store says.
    pub fn set_length(&self, length: u64) -> Result<()> {
        let _one = self.resizing.lock().expect("no holder panics");
        let now = self.len();
        if length > self.capacity() {
            return Err(store::too_long(length, self.capacity()));
        }
        // What is asked for across an end that moves would be refused, and be an error for whoever waits for
        // another page of it: the chunk that an end is in is there before the store hears of another one.
        let pulled = self.puller.progress().length;
        let end = length.min(now).min(self.memory.pulled());
        self.puller.prefault(ByteRange::new(end / self.chunk * self.chunk, end))?;
        if length > now {
            self.prefault_for_system_calls(now, 0)?;
            self.memory.clear(ByteRange::new(now, length))?;
            return self.pusher.set_length(length);
        }
        self.puller.supersede(ByteRange::new(round_up(length, 4096).min(pulled), pulled));
        self.pusher.set_length(length)?;
        self.prefault_for_system_calls(length, 0)?;
        self.memory.cut(length)
    }

    /// Waits until the bytes of `range` have arrived, for those who want an error instead of a SIGBUS.
    ///
    /// # Errors
    ///
    /// Whatever keeps one of the bytes from being had within the patience.
    pub fn prefault(&self, range: ByteRange) -> Result<()> {
        self.puller.prefault(range.clamp_to(self.puller.progress().length))
    }

    /// How far the pull is.
    pub fn progress(&self) -> Progress {
        self.puller.progress()
    }

    /// Waits until everything has arrived.
    ///
    /// # Errors
    ///
    /// As [`Puller::wait`].
    pub fn wait(&self) -> Result<Progress> {
        self.puller.wait()
    }

    /// How far the writing back is.
    pub fn push_progress(&self) -> PushProgress {
        self.pusher.progress()
    }

    fn check(&self, offset: u64, length: usize) -> Result<()> {
        let range = ByteRange::new(offset, offset.saturating_add(length as u64));
        if range.end > self.len() {
            return Err(out_of_range(range, self.len()));
        }
        Ok(())
    }

    /// Where a system call that is given an absent page fails, the pages have to be there before.
    fn prefault_for_system_calls(&self, offset: u64, length: usize) -> Result<()> {
        if !self.memory.memory.uffd().user_mode_only() {
            return Ok(());
        }
        let page = |at: u64| at / 4096 * 4096;
        let range = ByteRange::new(page(offset), round_up(offset + length as u64, 4096).max(page(offset)));
        let pulled = range.clamp_to(self.puller.progress().length);
        self.puller.prefault(pulled)?;
        for at in (page(pulled.end)..range.end).step_by(4096) {
            self.memory.is_pulled(at)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for WritableMapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WritableMapping")
            .field("region", &self.region.name())
            .field("length", &self.len())
            .field("epoch", &self.epoch())
            .field("tracking", &self.tracking())
            .finish()
    }
}

struct Faults {
    puller: Arc<Puller>,
    memory: Arc<TrackedMemory>,
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
                    let Event::PageFault { address, write_protect, .. } = *event else { continue };
                    let offset = address - base;
                    if write_protect {
                        self.memory.memory.write_fault(offset as usize)?;
                    } else if self.memory.is_pulled(offset).map_err(io::Error::other)? {
                        self.soon.fault(&self.puller, offset);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(self.soon.check(&self.puller))
    }
}
