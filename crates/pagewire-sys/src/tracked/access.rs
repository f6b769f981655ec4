//! Reading and writing tracked memory by safe calls: copies by the kernel, and atomics.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use super::{Means, TrackedMapping};
use crate::PAGE_SIZE;

/// Access. Absent pages are waited for.
impl TrackedMapping {
    /// Copies bytes out, by the kernel: [`Mapping::copy_out`](crate::mapping::Mapping::copy_out). With
    /// [`Tracking::Hash`](super::Tracking::Hash) the whole pages among them are hashed, so that what was copied and what is reported
    /// fit together.
    ///
    /// # Errors
    ///
    /// As [`Mapping::copy_out`](crate::mapping::Mapping::copy_out).
    pub fn copy_out(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        self.mapping.copy_out(offset, buffer)?;
        match &self.means {
            Means::Hash(hashes) => hashes.copied_out(offset, buffer),
            _ => Ok(()),
        }
    }

    /// Copies the bytes of many ranges out, one after the other into the buffer:
    /// [`Mapping::copy_out_ranges`](crate::mapping::Mapping::copy_out_ranges), and as
    /// [`TrackedMapping::copy_out`].
    ///
    /// # Errors
    ///
    /// As [`Mapping::copy_out_ranges`](crate::mapping::Mapping::copy_out_ranges).
    pub fn copy_out_ranges(&self, ranges: &[Range<usize>], buffer: &mut [u8]) -> io::Result<()> {
        self.mapping.copy_out_ranges(ranges, buffer)?;
        self.copied_out(ranges, buffer)
    }

    /// [`TrackedMapping::copy_out_ranges`] of what [`TrackedMapping::take_written`] has reported, whose pages are
    /// there: by loads, at a fraction of the price ([`crate::mapping::Mapping::load_ranges`], which says what is to
    /// be known of it).
    ///
    /// # Errors
    ///
    /// Invalid input outside of the mapping, and when the buffer has not the length of the ranges together.
    pub fn load_ranges(&self, ranges: &[Range<usize>], buffer: &mut [u8]) -> io::Result<()> {
        self.mapping.load_ranges(ranges, buffer)?;
        self.copied_out(ranges, buffer)
    }

    /// Takes note of what was copied out.
    fn copied_out(&self, ranges: &[Range<usize>], bytes: &[u8]) -> io::Result<()> {
        let Means::Hash(hashes) = &self.means else { return Ok(()) };
        let mut rest = bytes;
        for range in ranges {
            let (bytes, behind) = rest.split_at(range.len());
            hashes.copied_out(range.start, bytes)?;
            rest = behind;
        }
        Ok(())
    }

    /// Copies bytes in, by the kernel: [`Mapping::copy_in`](crate::mapping::Mapping::copy_in). It is a write
    /// as any other.
    ///
    /// # Errors
    ///
    /// As [`Mapping::copy_in`](crate::mapping::Mapping::copy_in).
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let mut noted = Ok(());
        let copied = self.mapping.copy_in_noting(offset, bytes, |part| {
            let pages = part.start / PAGE_SIZE * PAGE_SIZE..part.end.next_multiple_of(PAGE_SIZE);
            match &self.means {
                Means::Async { pinned, .. } => pinned.note(self.mapping.len(), pages),
                Means::Sync(faults) => noted = faults.written(pages),
                // Whose content has changed is found whenever it did.
                Means::Hash(_) => {}
            }
        });
        copied.and(noted)
    }

    /// Has the kernel read `len` bytes of a file into the memory, from `at` in the file on, without a copy in
    /// between. Answers how many there were: fewer at the end of the file. It is a write as any other, unless
    /// the file is open for direct I/O, whose writes a take that comes meanwhile may miss.
    ///
    /// # Errors
    ///
    /// As [`Mapping::read_from`](crate::mapping::Mapping::read_from).
    pub fn read_from(&self, file: BorrowedFd<'_>, at: u64, offset: usize, len: usize) -> io::Result<usize> {
        self.mapping.read_from(file, at, offset, len)
    }

    /// The byte at `offset`, for access by several threads at once; see [`TrackedMapping::atomic_u64`].
    pub fn atomic_u8(&self, offset: usize) -> Option<&AtomicU8> {
        // SAFETY: `atomic` checked bounds, alignment and width.
        self.atomic(offset, 1).map(|byte| unsafe { AtomicU8::from_ptr(byte) })
    }

    /// The two bytes at `offset`; see [`TrackedMapping::atomic_u64`].
    pub fn atomic_u16(&self, offset: usize) -> Option<&AtomicU16> {
        // SAFETY: `atomic` checked bounds, alignment and width.
        self.atomic(offset, 2).map(|bytes| unsafe { AtomicU16::from_ptr(bytes.cast()) })
    }

    /// The four bytes at `offset`; see [`TrackedMapping::atomic_u64`].
    pub fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
        // SAFETY: `atomic` checked bounds, alignment and width.
        self.atomic(offset, 4).map(|bytes| unsafe { AtomicU32::from_ptr(bytes.cast()) })
    }

    /// The eight bytes at `offset`, for loads and stores by several threads at once, in this machine's byte
    /// order.
    ///
    /// These accesses are sound together with each other and with all other safe functions: copies in and out
    /// are done by the kernel, which is another observer of the memory (each page at one moment, bytes of a
    /// word maybe not). Who writes through a raw pointer answers for races of that. Touching a poisoned page
    /// is a SIGBUS.
    ///
    /// None when it is misaligned or outside of the mapping; when an atomic of another width was handed out
    /// of the same 8 bytes before (racing accesses of different widths are outside of Rust's memory model);
    /// and while the memory is lent to a database that writes it. Once one was handed out, the memory is not
    /// lent any more.
    pub fn atomic_u64(&self, offset: usize) -> Option<&AtomicU64> {
        // SAFETY: `atomic` checked bounds, alignment and width.
        self.atomic(offset, 8).map(|bytes| unsafe { AtomicU64::from_ptr(bytes.cast()) })
    }

    /// Where an atomic of that width lies. The bytes are mapped for writing for as long as `self` lives, lie
    /// at a multiple of the width, and are accessed by safe code as atomics of this width only (and by the
    /// kernel).
    fn atomic(&self, offset: usize, width: u8) -> Option<*mut u8> {
        self.mapping.range_address(offset, width.into())?;
        let fits = offset.is_multiple_of(width.into())
            && self.mapping.hand_out_atomics()
            && self.widths.claim(self.mapping.len(), offset, width);
        fits.then(|| self.mapping.as_mut_ptr().wrapping_add(offset))
    }
}
