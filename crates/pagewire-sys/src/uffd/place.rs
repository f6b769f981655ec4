//! Placing pages into registered memory: one ioctl at a time, and whole ranges.
//!
//! Why these calls are safe although they take a bare address: the kernel looks up the destination in the address
//! space of the descriptor and answers `ENOENT` unless it is registered with this very descriptor, and `EEXIST`
//! unless the page is absent. So a wrong address is an error, and never a change of unregistered memory nor of a
//! page that somebody could have read. What this process registers is [`Mapping`](crate::mapping::Mapping)s only;
//! in another process it is what that process registered.

use std::cell::RefCell;
use std::io;

use linux_raw_sys::general as raw;

use super::fill::{Step, Stop, advance, fill};
use super::{Uffd, range};
use crate::PAGE_SIZE;
use crate::syscall::ioctl;

const UFFDIO_WAKE: libc::Ioctl = libc::_IOR::<raw::uffdio_range>(raw::UFFDIO, raw::_UFFDIO_WAKE);
const UFFDIO_COPY: libc::Ioctl = libc::_IOWR::<raw::uffdio_copy>(raw::UFFDIO, raw::_UFFDIO_COPY);
const UFFDIO_ZEROPAGE: libc::Ioctl = libc::_IOWR::<raw::uffdio_zeropage>(raw::UFFDIO, raw::_UFFDIO_ZEROPAGE);
const UFFDIO_WRITEPROTECT: libc::Ioctl =
    libc::_IOWR::<raw::uffdio_writeprotect>(raw::UFFDIO, raw::_UFFDIO_WRITEPROTECT);
const UFFDIO_CONTINUE: libc::Ioctl = libc::_IOWR::<raw::uffdio_continue>(raw::UFFDIO, raw::_UFFDIO_CONTINUE);
const UFFDIO_POISON: libc::Ioctl = libc::_IOWR::<raw::uffdio_poison>(raw::UFFDIO, raw::_UFFDIO_POISON);

const COPY_DONTWAKE: u64 = raw::UFFDIO_COPY_MODE_DONTWAKE as u64;
const COPY_WP: u64 = raw::UFFDIO_COPY_MODE_WP as u64;
/// These two are the same in ZEROPAGE, CONTINUE and POISON, and in WRITEPROTECT.
const DONTWAKE: u64 = raw::UFFDIO_ZEROPAGE_MODE_DONTWAKE as u64;
const WRITEPROTECT_ON: u64 = 1;

/// How pages are copied in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyMode {
    /// They start write-protected: clean, for change tracking. The range must be registered for it.
    pub write_protect: bool,
    /// Who waits for them is not woken; call [`Uffd::wake`] later.
    pub dont_wake: bool,
}

/// Why a placement stopped. `done` is how many bytes from the start of the range were placed before.
#[derive(Debug)]
pub enum PlaceError {
    /// The page at `done` is not absent: present, swapped out, or (for zeroes and poison) marked.
    Exists {
        /// Bytes that were placed.
        done: usize,
    },
    /// The mappings are changing: read the events, then go on at `done`.
    Again {
        /// Bytes that were placed.
        done: usize,
    },
    /// The process is gone, or (a part of) the range is no longer registered.
    Gone,
    /// Anything else: `EINVAL` for what is not of whole pages, `EFAULT` for a source that cannot be read.
    Os(io::Error),
}

impl std::fmt::Display for PlaceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PlaceError::Exists { done } => write!(f, "the page after {done} bytes exists"),
            PlaceError::Again { done } => write!(f, "the mappings are changing, after {done} bytes"),
            PlaceError::Gone => f.write_str("the process or the registration of the range is gone"),
            PlaceError::Os(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PlaceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            PlaceError::Os(error) => Some(error),
            _ => None,
        }
    }
}

impl From<PlaceError> for io::Error {
    fn from(error: PlaceError) -> io::Error {
        let kind = match error {
            PlaceError::Exists { .. } => io::ErrorKind::AlreadyExists,
            PlaceError::Again { .. } => io::ErrorKind::WouldBlock,
            PlaceError::Gone => io::ErrorKind::NotFound,
            PlaceError::Os(error) => return error,
        };
        io::Error::new(kind, error)
    }
}

/// Passes a step on, and what it placed to `placed`.
fn noted(step: Step, at: usize, len: usize, placed: &mut impl FnMut(usize, usize)) -> Step {
    match step {
        Step::Done => placed(at, len),
        Step::Short { done } if done > 0 => placed(at, done),
        _ => {}
    }
    step
}

/// Whole ranges: on `Ok` every page is there.
impl Uffd {
    /// Copies `src` to `dst` so that in the end every page of the range is present, with `src`'s bytes or with those
    /// that it already had: pages that exist are left alone, and who waits for them is woken (unless
    /// [`CopyMode::dont_wake`]). Poisoned pages are healed. For pages of 4 KiB.
    ///
    /// # Errors
    ///
    /// [`PlaceError::Again`] after [`AGAIN_RETRIES`](super::AGAIN_RETRIES): everything before `done` is present. [`PlaceError::Gone`] when
    /// a part is not registered: what is registered is then present all the same. Never [`PlaceError::Exists`].
    pub fn copy_all(&self, dst: usize, src: &[u8], mode: CopyMode) -> Result<(), PlaceError> {
        self.copy_all_pages(dst, src, mode, PAGE_SIZE)
    }

    /// [`Uffd::copy_all`] for pages of `page_size` bytes: [`HUGE_PAGE_SIZE`](crate::HUGE_PAGE_SIZE) for hugetlb
    /// memory.
    ///
    /// # Errors
    ///
    /// As [`Uffd::copy_all`].
    pub fn copy_all_pages(
        &self,
        dst: usize,
        src: &[u8],
        mode: CopyMode,
        page_size: usize,
    ) -> Result<(), PlaceError> {
        self.copy_all_noting(dst, src, mode, page_size, |_, _| {})
    }

    /// [`Uffd::copy_all_pages`] that calls `placed(at, len)` for what was absent, at the time when it was placed.
    pub(crate) fn copy_all_noting(
        &self,
        dst: usize,
        src: &[u8],
        mode: CopyMode,
        page_size: usize,
        mut placed: impl FnMut(usize, usize),
    ) -> Result<(), PlaceError> {
        fill(
            dst,
            src.len(),
            page_size,
            |at, len| noted(self.copy_once(dst + at, &src[at..at + len], mode), at, len, &mut placed),
            // COPY replaces markers, so a page that exists is present.
            |at| if mode.dont_wake { Ok(()) } else { self.wake_some(dst + at, page_size) },
        )
    }

    /// Makes every page of the range present, zero where it was absent or poisoned. For pages of 4 KiB; hugetlb
    /// memory has no zero page: copy zeroes into it.
    ///
    /// # Errors
    ///
    /// As [`Uffd::copy_all`].
    pub fn zero_all(&self, dst: usize, len: usize, dont_wake: bool) -> Result<(), PlaceError> {
        self.zero_all_noting(dst, len, dont_wake, |_, _| {})
    }

    /// [`Uffd::zero_all`] that calls `placed(at, len)` for what was absent, at the time when it was placed.
    pub(crate) fn zero_all_noting(
        &self,
        dst: usize,
        len: usize,
        dont_wake: bool,
        placed: impl FnMut(usize, usize),
    ) -> Result<(), PlaceError> {
        let placed = RefCell::new(placed);
        fill(
            dst,
            len,
            PAGE_SIZE,
            |at, len| noted(self.zeropage_once(dst + at, len, dont_wake), at, len, &mut *placed.borrow_mut()),
            |at| {
                let step = self.copy_zeroes(dst + at, dont_wake)?;
                noted(step, at, PAGE_SIZE, &mut *placed.borrow_mut());
                Ok(())
            },
        )
    }

    /// Poisons every page of the range that is absent; touching one is a SIGBUS, for the kernel an `EFAULT`. Pages
    /// that exist stay. For pages of `page_size` bytes.
    ///
    /// # Errors
    ///
    /// As [`Uffd::copy_all`].
    pub fn poison_all(&self, dst: usize, len: usize, page_size: usize) -> Result<(), PlaceError> {
        self.poison_all_noting(dst, len, page_size, |_, _| {})
    }

    /// [`Uffd::poison_all`] that calls `poisoned(at, len)` for what was absent.
    pub(crate) fn poison_all_noting(
        &self,
        dst: usize,
        len: usize,
        page_size: usize,
        mut poisoned: impl FnMut(usize, usize),
    ) -> Result<(), PlaceError> {
        fill(
            dst,
            len,
            page_size,
            |at, len| noted(self.poison_once(dst + at, len), at, len, &mut poisoned),
            |at| self.wake_some(dst + at, page_size),
        )
    }

    /// Over a page that ZEROPAGE says exists: it answers so for markers (poison, write-protection of an absent
    /// page), too, behind which a reader would wait or die. COPY replaces these.
    ///
    /// Answers `Short` of nothing for a page that is present.
    fn copy_zeroes(&self, dst: usize, dont_wake: bool) -> Result<Step, Stop> {
        let zeroes = [0; PAGE_SIZE];
        // A zero page that nobody wrote counts as clean, so this one should, too, where changes are tracked.
        let mode = CopyMode { write_protect: true, dont_wake };
        let result = match self.copy_once(dst, &zeroes, mode) {
            Step::Stopped { why: Stop::Os(error) } if error.raw_os_error() == Some(libc::EINVAL) => {
                self.copy_once(dst, &zeroes, CopyMode { write_protect: false, ..mode })
            }
            step => step,
        };
        match result {
            // A single page is never done in part.
            Step::Done | Step::Short { .. } => Ok(Step::Done),
            Step::Stopped { why: Stop::Exists } if dont_wake => Ok(Step::Short { done: 0 }),
            Step::Stopped { why: Stop::Exists } => {
                self.wake_some(dst, PAGE_SIZE).map(|()| Step::Short { done: 0 })
            }
            Step::Stopped { why } => Err(why),
        }
    }
}

/// One kind of ioctl each. They go on after a short answer, and stop at the first page that is refused.
impl Uffd {
    /// Copies `src` to the absent pages at `dst`. Both are of whole pages.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`].
    pub fn copy(&self, dst: usize, src: &[u8], mode: CopyMode) -> Result<(), PlaceError> {
        advance(src.len(), |at, len| self.copy_once(dst + at, &src[at..at + len], mode))
    }

    /// Maps the zero page at the absent pages of the range. `EINVAL` for hugetlb memory, which has none.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`].
    pub fn zeropage(&self, dst: usize, len: usize, dont_wake: bool) -> Result<(), PlaceError> {
        advance(len, |at, len| self.zeropage_once(dst + at, len, dont_wake))
    }

    /// Marks the absent pages of the range as lost: touching one is a SIGBUS. [`Uffd::copy`] over it heals.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`].
    pub fn poison(&self, dst: usize, len: usize) -> Result<(), PlaceError> {
        advance(len, |at, len| self.poison_once(dst + at, len))
    }

    /// Maps pages that are in the page cache: the answer to a minor fault.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`]; `EFAULT` when a page is not in the page cache.
    pub fn continue_(&self, dst: usize, len: usize) -> Result<(), PlaceError> {
        advance(len, |at, len| {
            let mut argument = raw::uffdio_continue { range: range(dst + at, len), mode: 0, mapped: 0 };
            // SAFETY: maps only what a registered range of shared memory already holds; see the module.
            let result = unsafe { ioctl(self.fd(), UFFDIO_CONTINUE, &mut argument) };
            Step::of(result, argument.mapped)
        })
    }

    /// Wakes who waits for a page of the range; who finds it still absent waits again.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a range that is not of whole pages.
    pub fn wake(&self, dst: usize, len: usize) -> Result<(), PlaceError> {
        self.wake_some(dst, len).map_err(|why| why.into_error(0))
    }

    /// Protects the range's pages against writes, or lifts the protection and wakes the writers.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`]. `done` is always 0: the kernel does not say.
    pub fn write_protect(&self, dst: usize, len: usize, protect: bool) -> Result<(), PlaceError> {
        if len == 0 {
            return Ok(());
        }
        let mode = if protect { WRITEPROTECT_ON } else { 0 };
        let mut argument = raw::uffdio_writeprotect { range: range(dst, len), mode };
        // SAFETY: changes no byte, only whether writes to a registered range are reported; see the module.
        match unsafe { ioctl(self.fd(), UFFDIO_WRITEPROTECT, &mut argument) } {
            Ok(_) => Ok(()),
            Err(error) => Err(Stop::of(error).into_error(0)),
        }
    }

    fn copy_once(&self, dst: usize, src: &[u8], mode: CopyMode) -> Step {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        let mut argument = raw::uffdio_copy {
            dst: dst as u64,
            src: src.as_ptr().expose_provenance() as u64,
            len: src.len() as u64,
            mode: flag(mode.dont_wake, COPY_DONTWAKE) | flag(mode.write_protect, COPY_WP),
            copy: 0,
        };
        // SAFETY: the source is borrowed for the call; the kernel writes absent pages of registered memory only, see
        // the module.
        let result = unsafe { ioctl(self.fd(), UFFDIO_COPY, &mut argument) };
        Step::of(result, argument.copy)
    }

    fn zeropage_once(&self, dst: usize, len: usize, dont_wake: bool) -> Step {
        let mode = if dont_wake { DONTWAKE } else { 0 };
        let mut argument = raw::uffdio_zeropage { range: range(dst, len), mode, zeropage: 0 };
        // SAFETY: maps absent pages of registered memory only; see the module.
        let result = unsafe { ioctl(self.fd(), UFFDIO_ZEROPAGE, &mut argument) };
        Step::of(result, argument.zeropage)
    }

    fn poison_once(&self, dst: usize, len: usize) -> Step {
        let mut argument = raw::uffdio_poison { range: range(dst, len), mode: 0, updated: 0 };
        // SAFETY: marks absent pages of registered memory only; a reader gets a signal, not wrong bytes.
        let result = unsafe { ioctl(self.fd(), UFFDIO_POISON, &mut argument) };
        Step::of(result, argument.updated)
    }

    fn wake_some(&self, dst: usize, len: usize) -> Result<(), Stop> {
        if len == 0 {
            return Ok(());
        }
        let mut argument = range(dst, len);
        // SAFETY: waking changes no memory; the threads look at their page again.
        unsafe { ioctl(self.fd(), UFFDIO_WAKE, &mut argument) }.map(drop).map_err(Stop::of)
    }

    fn fd(&self) -> &std::os::fd::OwnedFd {
        &self.fd
    }
}
