//! Anonymous memory that is owned: mapped on creation, unmapped on drop.
//!
//! It is where userfaultfd regions live. Pages are absent until somebody touches or places them. The bytes are
//! reached in three ways: by an application through the raw pointer, by the kernel on our behalf
//! ([`Mapping::copy_out`], [`Mapping::copy_in`]), and by a slice for readers of memory that nobody writes
//! ([`Mapping::as_slice`]).

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

#[cfg(feature = "sqlite")]
use crate::gate::Lent;
use crate::gate::{Gate, Write};
use crate::syscall::{check, file_offset, invalid, retry_count};
use crate::{HUGE_PAGE_SIZE, PAGE_SIZE};

/// Ranges that one process_vm call takes: the kernel's `UIO_MAXIOV`.
const RANGES_PER_CALL: usize = 1024;

/// What programs may do with a mapping. userfaultfd places pages in either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Loads only; a store is a SIGSEGV.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// Private anonymous memory of this process, unmapped on drop.
///
/// Dropping it also ends its registration with any userfaultfd; a later mapping at the same address is not
/// registered. With the event features of a userfaultfd, dropping and discarding wait until somebody has read the event:
/// then they are not for the thread that reads events.
#[derive(Debug)]
pub struct Mapping {
    /// Page-aligned; dangling when `len` is 0.
    address: NonNull<u8>,
    /// Whole pages.
    len: usize,
    protection: Protection,
    huge: bool,
    /// Who may write by safe calls.
    gate: Gate,
}

// SAFETY: a Mapping gives safe code no access to its bytes but through the kernel, which orders such accesses
// itself; the unsafe `as_slice` has its caller promise that nobody writes.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; no method changes the fields but the gate, which is atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, rounded up to whole pages ([`Mapping::len`] is the result). Length 0 maps nothing.
    ///
    /// The memory is not inherited by `fork` (absent pages would read as zeroes in the child) and has no
    /// transparent huge pages (they would defeat change tracking by page). It is not reserved, so that a region may
    /// be larger than memory. With `huge`, it is of 2 MiB hugetlb pages; these are reserved here, because a
    /// shortage that shows only at a fault is a SIGBUS.
    ///
    /// # Errors
    ///
    /// What mmap and madvise answer; out of memory when too few huge pages are free (`vm.nr_hugepages`).
    pub fn anonymous(len: usize, protection: Protection, huge: bool) -> io::Result<Mapping> {
        let page_size = if huge { HUGE_PAGE_SIZE } else { PAGE_SIZE };
        let len =
            len.checked_next_multiple_of(page_size).ok_or_else(|| invalid("mapping length overflows"))?;
        if len == 0 {
            return Ok(Mapping {
                address: NonNull::dangling(),
                len,
                protection,
                huge,
                gate: Gate::default(),
            });
        }
        let access = match protection {
            Protection::Read => libc::PROT_READ,
            Protection::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let kind = if huge { libc::MAP_HUGETLB | libc::MAP_HUGE_2MB } else { libc::MAP_NORESERVE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | kind;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast::<u8>()).ok_or_else(|| invalid("mapped at address zero"))?;
        let mapping = Mapping { address, len, protection, huge, gate: Gate::default() };
        mapping.advise(libc::MADV_DONTFORK)?;
        if !huge {
            match mapping.advise(libc::MADV_NOHUGEPAGE) {
                // A kernel without transparent huge pages does not know the advice, nor needs it.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                result => result?,
            }
        }
        Ok(mapping)
    }

    /// Where the mapping begins; some non-zero number when its length is 0.
    pub fn address(&self) -> usize {
        self.address.as_ptr().addr()
    }

    /// Bytes that are mapped: whole pages.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of a page of this mapping: the unit in which pages can be placed.
    pub fn page_size(&self) -> usize {
        if self.huge { HUGE_PAGE_SIZE } else { PAGE_SIZE }
    }

    /// What programs may do with it.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// The first byte, for programs that read.
    pub fn as_ptr(&self) -> *const u8 {
        self.address.as_ptr()
    }

    /// The first byte, for programs that write (with [`Protection::ReadWrite`]).
    ///
    /// Who dereferences it makes sure that these accesses do not race: neither with other programs' nor with
    /// those of an SQLite database that writes this memory (`sqlite::WritableDatabase`).
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// The first `len` bytes as a slice. Reading an absent page of a registered mapping waits until it is placed;
    /// reading a poisoned one is a SIGBUS.
    ///
    /// # Safety
    ///
    /// While the slice lives nobody writes these bytes or discards their pages: not through
    /// [`Mapping::as_mut_ptr`], [`Mapping::copy_in`], [`Mapping::discard_shared`], what a
    /// [`TrackedMapping`](crate::tracked::TrackedMapping) or a database in it offers, nor another process.
    /// The one exception is the first placement of an absent page by userfaultfd: until it is done nobody can
    /// have read the page, so that no reader can observe it as a change.
    ///
    /// # Panics
    ///
    /// When `len` is greater than [`Mapping::len`].
    pub unsafe fn as_slice(&self, len: usize) -> &[u8] {
        assert!(len <= self.len, "slice of {len} bytes of a mapping of {}", self.len);
        // SAFETY: the range is mapped readable until drop, which the lifetime forbids; the caller promises that
        // nobody writes. For a length of 0 a dangling pointer is valid.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), len) }
    }

    /// The address of byte `offset`, when `len` bytes from there lie in the mapping.
    pub fn range_address(&self, offset: usize, len: usize) -> Option<usize> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| self.address() + offset)
    }

    /// Makes whole pages absent again. In a registered mapping the next access faults; elsewhere it reads zeroes.
    ///
    /// # Errors
    ///
    /// Invalid input when the range is not of whole pages within the mapping.
    pub fn discard(&mut self, offset: usize, len: usize) -> io::Result<()> {
        // SAFETY: `&mut self` shows that no slice of this mapping lives.
        unsafe { self.discard_shared(offset, len) }
    }

    /// [`Mapping::discard`] for a mapping that is shared between threads.
    ///
    /// # Safety
    ///
    /// No slice of the range lives: its bytes would change under it. Programs that use the range through raw
    /// pointers expect to lose what they wrote.
    pub unsafe fn discard_shared(&self, offset: usize, len: usize) -> io::Result<()> {
        let address =
            self.range_address(offset, len).ok_or_else(|| invalid("range outside of the mapping"))?;
        if !offset.is_multiple_of(self.page_size()) || !len.is_multiple_of(self.page_size()) {
            return Err(invalid("range is not of whole pages"));
        }
        if len == 0 {
            return Ok(());
        }
        let pointer = ptr::with_exposed_provenance_mut(address);
        // SAFETY: the range lies in this mapping, and the caller promises that no reference sees it change.
        check(unsafe { libc::madvise(pointer, len, libc::MADV_DONTNEED) }).map(drop)
    }

    /// Copies bytes out of memory that somebody else may be writing.
    ///
    /// The kernel copies (`process_vm_readv` of this very process), for two reasons: a plain load that races with
    /// a store is undefined behaviour in Rust, and a poisoned or unmapped page is an error here instead of a signal.
    /// Each page is copied at one moment, the whole range is not. An absent page of a registered mapping is
    /// waited for, as any access does; but when its userfaultfd is for user mode only, it is an error at once.
    ///
    /// # Errors
    ///
    /// Invalid input outside of the mapping; `EFAULT` for poison. The buffer then holds a part.
    pub fn copy_out(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        self.range_address(offset, buffer.len()).ok_or_else(|| invalid("range outside of the mapping"))?;
        let mut done = 0;
        while done < buffer.len() {
            let rest = &mut buffer[done..];
            let local = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
            let remote = self.remote(offset + done, rest.len());
            // SAFETY: the kernel writes only `rest`, which is borrowed mutably, and checks the other range itself.
            done += transferred(unsafe { libc::process_vm_readv(own_pid(), &local, 1, &remote, 1, 0) })?;
        }
        Ok(())
    }

    /// Copies the bytes of many ranges out, one after the other into the buffer: [`Mapping::copy_out`] with
    /// one call to the kernel for up to 1024 ranges.
    ///
    /// # Errors
    ///
    /// As [`Mapping::copy_out`]; invalid input when the buffer has not the length of the ranges together.
    pub fn copy_out_ranges(&self, ranges: &[Range<usize>], buffer: &mut [u8]) -> io::Result<()> {
        self.check_ranges(ranges, buffer.len())?;
        let mut ranges = ranges.iter().filter(|range| !range.is_empty()).cloned();
        let mut remote: Vec<libc::iovec> = Vec::new();
        // Index of the first range in `remote` that is not done.
        let mut next = 0;
        let mut done = 0;
        while done < buffer.len() {
            if next == remote.len() {
                let more = ranges.by_ref().take(RANGES_PER_CALL);
                remote.clear();
                remote.extend(more.map(|range| self.remote(range.start, range.len())));
                next = 0;
            }
            let wanted: usize = remote[next..].iter().map(|range| range.iov_len).sum();
            let rest = &mut buffer[done..done + wanted];
            let local = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
            let count = (remote.len() - next) as libc::c_ulong;
            // SAFETY: the kernel writes only `rest`, which is borrowed mutably, and checks the other ranges
            // itself.
            let moved = transferred(unsafe {
                libc::process_vm_readv(own_pid(), &local, 1, remote[next..].as_ptr(), count, 0)
            })?;
            done += moved;
            let mut moved = moved;
            while moved > 0 {
                let first = &mut remote[next];
                let part = moved.min(first.iov_len);
                first.iov_base = first.iov_base.wrapping_byte_add(part);
                first.iov_len -= part;
                moved -= part;
                next += usize::from(first.iov_len == 0);
            }
        }
        Ok(())
    }

    /// [`Mapping::copy_out_ranges`] by this processor's own loads, for pages that are known to be there: at a
    /// quarter of the price where ranges are scattered, since the kernel has to find and hold each page.
    ///
    /// The loads are no accesses of Rust's memory model but a machine instruction's, as those of the kernel are:
    /// others may be writing, and what is copied of a page that is written just then is some of the old and some of
    /// the new. A page that is absent after all is waited for. **One that is poisoned is a SIGBUS**, and no error.
    ///
    /// # Errors
    ///
    /// Invalid input outside of the mapping, and when the buffer has not the length of the ranges together.
    pub fn load_ranges(&self, ranges: &[Range<usize>], buffer: &mut [u8]) -> io::Result<()> {
        self.check_ranges(ranges, buffer.len())?;
        let mut rest = buffer;
        for range in ranges {
            let (these, behind) = rest.split_at_mut(range.len());
            // SAFETY: the range was checked to lie in the mapping, which is mapped readable until drop.
            unsafe { load(self.address.as_ptr().wrapping_add(range.start), these) };
            rest = behind;
        }
        Ok(())
    }

    /// Whether the ranges lie in the mapping and are as long as a buffer.
    fn check_ranges(&self, ranges: &[Range<usize>], room: usize) -> io::Result<()> {
        let mut total = 0usize;
        for range in ranges {
            let len =
                range.end.checked_sub(range.start).ok_or_else(|| invalid("range ends before it starts"))?;
            self.range_address(range.start, len).ok_or_else(|| invalid("range outside of the mapping"))?;
            total = total.checked_add(len).ok_or_else(|| invalid("ranges overflow"))?;
        }
        if total != room {
            return Err(invalid("the buffer has not the length of the ranges"));
        }
        Ok(())
    }

    /// Copies bytes into the mapping, in the same way as [`Mapping::copy_out`] and for the same reasons. For
    /// change tracking this is a write as any other.
    ///
    /// # Errors
    ///
    /// Permission denied for a [`Protection::Read`] mapping; busy while it is lent to a database that writes
    /// it; invalid input outside of it; `EFAULT` for poison. A part is then written.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.copy_in_noting(offset, bytes, |_| {})
    }

    /// The same, which tells `note` of each part of the mapping when it is written.
    pub(crate) fn copy_in_noting(
        &self,
        offset: usize,
        bytes: &[u8],
        mut note: impl FnMut(Range<usize>),
    ) -> io::Result<()> {
        self.range_address(offset, bytes.len()).ok_or_else(|| invalid("range outside of the mapping"))?;
        if self.protection == Protection::Read {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let _write = self.gate.write()?;
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let local = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
            let remote = self.remote(offset + done, rest.len());
            // SAFETY: the kernel only reads `rest`. It writes within this mapping, of which no slice lives: who
            // made one has promised that `copy_in` is not called.
            let count = transferred(unsafe { libc::process_vm_writev(own_pid(), &local, 1, &remote, 1, 0) })?;
            note(offset + done..offset + done + count);
            done += count;
        }
        Ok(())
    }

    /// Has the kernel read `len` bytes of a file into the mapping, from `at` in the file on: by `pread`, without
    /// a copy in between. Answers how many there were: fewer at the end of the file.
    ///
    /// # Errors
    ///
    /// As [`Mapping::copy_in`]; what the file answers. A part is then written.
    pub fn read_from(&self, file: BorrowedFd<'_>, at: u64, offset: usize, len: usize) -> io::Result<usize> {
        self.range_address(offset, len).ok_or_else(|| invalid("range outside of the mapping"))?;
        if self.protection == Protection::Read {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let _write = self.gate.write()?;
        let mut done = 0;
        while done < len {
            let from = file_offset(at.saturating_add(done as u64))?;
            let room = self.remote(offset + done, len - done);
            // SAFETY: the kernel writes at most as many bytes as `room` has, which lie within this mapping; no slice
            // of it lives: who made one has promised that nothing of this type changes the bytes.
            match retry_count(|| unsafe { libc::pread(file.as_raw_fd(), room.iov_base, room.iov_len, from) })?
            {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    /// Begins a change of bytes by somebody who is not lent the mapping; an error while it is lent.
    pub(crate) fn begin_write(&self) -> io::Result<Write<'_>> {
        self.gate.write()
    }

    /// Whether atomics of the bytes may be handed out, from now on for as long as the mapping lives.
    pub(crate) fn hand_out_atomics(&self) -> bool {
        self.protection == Protection::ReadWrite && self.gate.hand_out_atomics()
    }

    /// Lends the bytes: until the answer is dropped no safe call changes bytes that are present.
    #[cfg(feature = "sqlite")]
    pub(crate) fn lend(&self) -> io::Result<Lent<'_>> {
        self.gate.lend()
    }

    fn remote(&self, offset: usize, len: usize) -> libc::iovec {
        libc::iovec { iov_base: self.address.as_ptr().wrapping_add(offset).cast(), iov_len: len }
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is this mapping; DONTFORK and NOHUGEPAGE, the advices given here, change no byte.
        check(unsafe { libc::madvise(self.address.as_ptr().cast(), self.len, advice) }).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range was mapped by `anonymous` and is unmapped here only; slices cannot outlive `self`.
            unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
        }
    }
}

/// Copies bytes that others may be writing.
///
/// # Safety
///
/// The bytes at `from`, as many as `to` has, are mapped readable, and none of them is in `to`.
pub(crate) unsafe fn load(from: *const u8, to: &mut [u8]) {
    // SAFETY: the instruction reads what the caller promises and writes `to`, which is borrowed mutably. It is
    // no access of the memory model, so that a race is none of it either.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") to.len() => _,
            inout("rsi") from => _,
            inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for (at, byte) in to.iter_mut().enumerate() {
        // SAFETY: as the caller promises. Volatile, so that each byte is loaded once, whatever it is.
        *byte = unsafe { from.add(at).read_volatile() };
    }
}

fn own_pid() -> libc::pid_t {
    std::process::id() as libc::pid_t
}

/// Bytes that one process_vm call moved; it stops short of a page it cannot have, and the next call names why.
fn transferred(count: isize) -> io::Result<usize> {
    match count {
        -1 => Err(io::Error::last_os_error()),
        0 => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        count => Ok(count as usize),
    }
}
