//! Memory that a program writes, that a userfaultfd fills, and whose written pages are found.
//!
//! A [`TrackedMapping`] is made absent. Pages are placed as they are needed ([`TrackedMapping::place`]) and
//! are clean then; the program reads and writes them through [`TrackedMapping::as_mut_ptr`], the atomics, or
//! system calls; and [`TrackedMapping::take_written`] answers, page by page, what was written since the last
//! time. How that is found depends on the kernel ([`Tracking`]); what is found does not.
//!
//! *No write is lost.* A take makes the pages clean before it answers, so that what it reports can be copied
//! out afterwards: a write that comes in between is in the copy, or makes the page written again, or both.
//!
//! There is no slice of such memory: see the rules of the crate. That is why [`TrackedMapping::discard`] is
//! safe.

mod access;
mod faults;
mod hashes;
mod pinned;
mod segments;
mod tracking;
mod widths;

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use self::faults::Faults;
use self::hashes::Hashes;
use self::pinned::{Pinned, union};
use self::segments::bits;
pub use self::tracking::Tracking;
use self::widths::Widths;
use crate::PAGE_SIZE;
use crate::mapping::{Mapping, Protection};
use crate::pagemap::{PagemapScan, ScanQuery, ScanRoom};
use crate::syscall::invalid;
use crate::uffd::{CopyMode, Features, OpenFlags, PlaceError, RegisterModes, Uffd};

/// Private memory that a program writes, filled by a userfaultfd of its own, with its changes tracked.
///
/// Offsets and lengths are of whole pages, but that a range may end at [`TrackedMapping::len`]: it then means
/// the whole last page, whose rest is zeroes until somebody writes it.
///
/// With a userfaultfd for user mode only (asked for, or all that this process may have), a system call that
/// is given an absent page answers `EFAULT`: so do [`TrackedMapping::copy_out`] and
/// [`TrackedMapping::copy_in`], and with [`Tracking::Sync`] also `copy_in` to a clean page.
///
/// The thread that reads the events of [`TrackedMapping::uffd`] calls nothing here that may touch an absent
/// page, nor (with [`Tracking::Sync`]) writes a clean one: it would wait for itself. Only what is placed,
/// poisoned and discarded here is tracked; the userfaultfd is for reading events.
#[derive(Debug)]
pub struct TrackedMapping {
    // Unmapped first, then the descriptor is closed: in the other order, a thread that waits for a page would
    // read zeroes.
    mapping: Mapping,
    uffd: Uffd,
    means: Means,
    widths: Widths,
    len: usize,
}

/// What each kind of tracking keeps.
#[derive(Debug)]
enum Means {
    Async { pagemap: PagemapScan, room: Mutex<ScanRoom>, pinned: Pinned },
    Sync(Faults),
    Hash(Hashes),
}

impl TrackedMapping {
    /// Maps `len` bytes, all absent, with this tracking or with the best that there is. The userfaultfd does
    /// not block.
    ///
    /// # Errors
    ///
    /// As [`Mapping::anonymous`], [`Uffd::open`] and [`Uffd::register`]; unsupported when the kernel lacks
    /// the tracking that was asked for.
    pub fn new(len: usize, tracking: Option<Tracking>, user_mode_only: bool) -> io::Result<Self> {
        Self::with_flags(len, tracking, OpenFlags { nonblocking: true, user_mode_only })
    }

    /// [`TrackedMapping::new`] whose userfaultfd is opened with these flags: one that blocks saves a poll per
    /// fault, to a thread that waits for nothing else.
    ///
    /// # Errors
    ///
    /// As [`TrackedMapping::new`].
    pub fn with_flags(len: usize, tracking: Option<Tracking>, flags: OpenFlags) -> io::Result<Self> {
        let tracking = tracking.map_or_else(Tracking::best, Ok)?;
        let mapping = Mapping::anonymous(len, Protection::ReadWrite, false)?;
        let needed = match tracking {
            Tracking::Async => Features::WP_ASYNC,
            Tracking::Sync => Features::PAGEFAULT_FLAG_WP,
            Tracking::Hash => Features::NONE,
        };
        let uffd = Uffd::open(needed.union(Features::POISON), flags)?;
        if !uffd.features().contains(needed) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("this kernel cannot track changes by {tracking}"),
            ));
        }
        let write_protect = tracking != Tracking::Hash;
        uffd.register(&mapping, RegisterModes { missing: true, write_protect, minor: false })?;
        let means = match tracking {
            Tracking::Async => Means::Async {
                pagemap: PagemapScan::open_self()?,
                room: Mutex::new(ScanRoom::new()),
                pinned: Pinned::default(),
            },
            Tracking::Sync => Means::Sync(Faults::new(mapping.len())),
            Tracking::Hash => Means::Hash(Hashes::new(mapping.len())),
        };
        Ok(Self { mapping, uffd, means, widths: Widths::default(), len })
    }

    /// How written pages are found.
    pub fn tracking(&self) -> Tracking {
        match self.means {
            Means::Async { .. } => Tracking::Async,
            Means::Sync(_) => Tracking::Sync,
            Means::Hash(_) => Tracking::Hash,
        }
    }

    /// How many bytes there are: as many as were asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory, in whole pages.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// What reports the faults.
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// The first byte, for programs that read and write. See [`Mapping::as_mut_ptr`].
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.mapping.as_mut_ptr()
    }
}

/// Filling. What is present is left as it is, and who waits is woken in any case.
impl TrackedMapping {
    /// Fills absent pages with `bytes`, clean. Answers how many bytes were placed; a last page counts whole.
    ///
    /// # Errors
    ///
    /// Invalid input for a range that is not of whole pages within the mapping; out of memory. A part may
    /// then be placed.
    pub fn place(&self, offset: usize, bytes: &[u8]) -> io::Result<usize> {
        let range = self.pages(offset, bytes.len())?;
        let whole = bytes.len() / PAGE_SIZE * PAGE_SIZE;
        let mut placed = self.place_pages(offset, &bytes[..whole])?;
        if whole < range.len() {
            let mut page = [0; PAGE_SIZE];
            page[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            placed += self.place_pages(offset + whole, &page)?;
        }
        Ok(placed)
    }

    fn place_pages(&self, offset: usize, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match &self.means {
            Means::Async { .. } => {
                let mode = CopyMode { write_protect: true, dont_wake: false };
                let mut placed = 0;
                patiently(|done| {
                    let address = self.mapping.address() + offset + done;
                    let note = |_, len| placed += len;
                    self.uffd.copy_all_noting(address, &bytes[done..], mode, PAGE_SIZE, note)
                })?;
                Ok(placed)
            }
            Means::Sync(faults) => faults.place(&self.mapping, &self.uffd, offset, bytes),
            Means::Hash(hashes) => hashes.place(&self.mapping, &self.uffd, offset, bytes),
        }
    }

    /// Fills absent pages with zeroes, clean. Answers how many bytes were placed. They cost no memory until
    /// they are written, but with [`Tracking::Sync`].
    ///
    /// # Errors
    ///
    /// As [`TrackedMapping::place`].
    pub fn place_zero(&self, offset: usize, len: usize) -> io::Result<usize> {
        let range = self.pages(offset, len)?;
        if range.is_empty() {
            return Ok(0);
        }
        match &self.means {
            // For the kernel they are written from the start, but they are told by being the shared page of
            // zeroes, which they cease to be when they are written: see ScanQuery::written.
            Means::Async { .. } => {
                let mut placed = 0;
                patiently(|done| {
                    let address = self.mapping.address() + range.start + done;
                    self.uffd.zero_all_noting(address, range.len() - done, false, |_, len| placed += len)
                })?;
                Ok(placed)
            }
            Means::Sync(faults) => faults.place_zero(&self.mapping, &self.uffd, range),
            Means::Hash(hashes) => hashes.place_zero(&self.mapping, &self.uffd, range),
        }
    }

    /// Marks absent pages as lost: touching one is a SIGBUS, for system calls an `EFAULT`. Placing heals.
    ///
    /// # Errors
    ///
    /// As [`TrackedMapping::place`]; `EINVAL` or `ENOTTY` before Linux 6.6.
    pub fn poison(&self, offset: usize, len: usize) -> io::Result<()> {
        let range = self.pages(offset, len)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut poisoned: Vec<Range<u64>> = Vec::new();
        let poison = |poisoned: &mut Vec<Range<u64>>| {
            patiently(|done| {
                let address = self.mapping.address() + range.start + done;
                self.uffd.poison_all_noting(address, range.len() - done, PAGE_SIZE, |at, len| {
                    poisoned.push((address + at) as u64..(address + at + len) as u64);
                })
            })
        };
        let Means::Async { pagemap, room, .. } = &self.means else { return poison(&mut poisoned) };
        // To the kernel, poison is a page that was written and swapped out. No take comes in between.
        let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
        let result = poison(&mut poisoned);
        for addresses in poisoned {
            pagemap.scan_runs(&mut room, addresses, ScanQuery::poisoned(), |_| {})?;
        }
        result
    }

    /// Wakes who waits for a page of the range; who finds it still absent faults again.
    ///
    /// # Errors
    ///
    /// As [`TrackedMapping::place`].
    pub fn wake(&self, offset: usize, len: usize) -> io::Result<()> {
        let range = self.pages(offset, len)?;
        Ok(self.uffd.wake(self.mapping.address() + range.start, range.len())?)
    }

    /// Makes pages absent and clean: they fault anew when touched, and what was written to them is gone.
    ///
    /// # Errors
    ///
    /// As [`TrackedMapping::place`]; busy while the memory is lent to a database that writes it.
    pub fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        let range = self.pages(offset, len)?;
        let _write = self.mapping.begin_write()?;
        let discard = |part: &Range<usize>| {
            // SAFETY: this type gives out no slice; the unsafe `Mapping::as_slice` has its caller promise
            // that nothing of this type changes the bytes. The memory is not lent. Who uses raw pointers or
            // atomics may see any bytes at any time.
            unsafe { self.mapping.discard_shared(part.start, part.len()) }
        };
        let segments = match &self.means {
            // What the kernel notes of a page is gone with it.
            Means::Async { pinned, .. } => {
                discard(&range)?;
                drop(pinned.take(self.mapping.len(), range));
                return Ok(());
            }
            Means::Sync(faults) => &faults.segments,
            Means::Hash(hashes) => &hashes.segments,
        };
        segments.visit(range, |segment, part| {
            discard(&part)?;
            segment.present &= !bits(&part);
            segment.written &= !bits(&part);
            Ok(())
        })
    }
}

/// What was written.
impl TrackedMapping {
    /// Appends the ranges (of whole pages, in order, those that touch as one) that were written since the
    /// last take, or since they were placed, and makes them clean in the same step. Absent pages are never
    /// among them. The last range may end behind [`TrackedMapping::len`].
    ///
    /// Copy the pages out afterwards, whole. A write that comes in between is in the copy or reported by the
    /// next take.
    ///
    /// # Errors
    ///
    /// What the kernel answers. What was appended to `out` is then clean all the same: copy it out.
    pub fn take_written(&self, out: &mut Vec<Range<usize>>) -> io::Result<()> {
        let known = out.len();
        self.take(0..self.mapping.len(), |run| match out[known..].last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => out.push(run),
        })
    }

    /// How many bytes a take would report now.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn count_written(&self) -> io::Result<usize> {
        match &self.means {
            Means::Async { pinned, .. } => {
                let (all, mut found) = (0..self.mapping.len(), Vec::new());
                self.scan(all.clone(), false, |run| found.push(run))?;
                Ok(union(found, pinned.look(all)).iter().map(Range::len).sum())
            }
            Means::Sync(faults) => faults.count(),
            Means::Hash(hashes) => hashes.count(&self.mapping),
        }
    }

    /// Resolves a write-protect fault of the page that holds byte `offset`: notes it as written, lifts the
    /// protection and wakes who waits. For the thread that reads events, with [`Tracking::Sync`].
    ///
    /// # Errors
    ///
    /// Invalid input outside of the mapping or with other tracking.
    pub fn write_fault(&self, offset: usize) -> io::Result<()> {
        let offset = offset / PAGE_SIZE * PAGE_SIZE;
        self.mapping
            .range_address(offset, PAGE_SIZE)
            .ok_or_else(|| invalid("range outside of the mapping"))?;
        match &self.means {
            Means::Sync(faults) => faults.note(&self.mapping, &self.uffd, offset),
            _ => Err(invalid("there are no write-protect faults with this tracking")),
        }
    }

    /// Makes pages clean without reporting them: their content equals the store's. A write that may not be
    /// forgotten must not happen meanwhile.
    ///
    /// # Errors
    ///
    /// As [`TrackedMapping::place`].
    pub fn forget(&self, offset: usize, len: usize) -> io::Result<()> {
        let range = self.pages(offset, len)?;
        self.take(range, |_| {})
    }

    fn take(&self, range: Range<usize>, mut each: impl FnMut(Range<usize>)) -> io::Result<()> {
        match &self.means {
            Means::Async { pinned, .. } => {
                // Before the scan, so that what is noted later is in the next take.
                let noted = pinned.take(self.mapping.len(), range.clone());
                if noted.is_empty() {
                    return self.scan(range, true, each);
                }
                let mut found = Vec::new();
                let scanned = self.scan(range, true, |run| found.push(run));
                union(found, noted).into_iter().for_each(each);
                scanned
            }
            Means::Sync(faults) => faults.take(&self.mapping, &self.uffd, range, &mut each),
            Means::Hash(hashes) => hashes.take(&self.mapping, range, &mut each),
        }
    }

    /// Asks the kernel for written pages, with [`Tracking::Async`].
    fn scan(&self, range: Range<usize>, rearm: bool, mut each: impl FnMut(Range<usize>)) -> io::Result<()> {
        let Means::Async { pagemap, room, .. } = &self.means else { return Ok(()) };
        let base = self.mapping.address();
        let addresses = (base + range.start) as u64..(base + range.end) as u64;
        let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
        pagemap.scan_runs(&mut room, addresses, ScanQuery::written(rearm), |run| {
            each(run.start as usize - base..run.end as usize - base);
        })
    }
}

/// Bounds.
impl TrackedMapping {
    /// The range in whole pages.
    fn pages(&self, offset: usize, len: usize) -> io::Result<Range<usize>> {
        let end = offset.checked_add(len).ok_or_else(|| invalid("range outside of the mapping"))?;
        let end = if end == self.len { self.mapping.len() } else { end };
        if !offset.is_multiple_of(PAGE_SIZE) || !end.is_multiple_of(PAGE_SIZE) {
            return Err(invalid("range is not of whole pages"));
        }
        if end > self.mapping.len() || offset > end {
            return Err(invalid("range outside of the mapping"));
        }
        Ok(offset..end)
    }
}

/// Goes on from where the kernel asked for patience (mappings of this process were changing), with how much
/// was done.
fn patiently(mut place: impl FnMut(usize) -> Result<(), PlaceError>) -> io::Result<()> {
    let mut at = 0;
    loop {
        match place(at) {
            Err(PlaceError::Again { done }) => {
                at += done;
                std::thread::yield_now();
            }
            result => return Ok(result?),
        }
    }
}
