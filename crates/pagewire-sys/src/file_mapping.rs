//! A file that is mapped shared: loads and stores reach it as those of any program that maps it do.
//!
//! Others may change the bytes at any time, so no reference to them is handed out. They are copied by this
//! processor's own loads and stores, and not by the kernel on our behalf, so that the faults are those of a program.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use crate::mapping::{Protection, load};
use crate::syscall::{check, invalid};

/// The first bytes of a file, mapped shared until it is dropped.
#[derive(Debug)]
pub struct FileMapping {
    /// Page-aligned.
    address: NonNull<u8>,
    len: usize,
    protection: Protection,
}

// SAFETY: its bytes are reached by machine instructions alone, which are no accesses of the memory model, and no
// reference to them is handed out.
unsafe impl Send for FileMapping {}
// SAFETY: as for Send; no method changes a field.
unsafe impl Sync for FileMapping {}

impl FileMapping {
    /// Maps the first `len` bytes of the file, which may be shorter. It has to be open for writing where the
    /// mapping is to be written.
    ///
    /// # Errors
    ///
    /// What mmap answers; invalid input for a length of 0.
    pub fn new(file: BorrowedFd<'_>, len: usize, protection: Protection) -> io::Result<Self> {
        if len == 0 {
            return Err(invalid("a mapping of no bytes"));
        }
        let access = match protection {
            Protection::Read => libc::PROT_READ,
            Protection::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let address =
            unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast::<u8>()).ok_or_else(|| invalid("mapped at address zero"))?;
        Ok(Self { address, len, protection })
    }

    /// Bytes that are mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped: never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Loads bytes. **A page that is behind the end of the file, or that cannot be read, is a SIGBUS.**
    ///
    /// # Errors
    ///
    /// Invalid input outside of the mapping.
    pub fn copy_out(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        let from = self.at(offset, buffer.len())?;
        // SAFETY: the range lies in the mapping, which is mapped readable until drop; the buffer is other memory.
        unsafe { load(from, buffer) };
        Ok(())
    }

    /// Loads bytes up to a page that is behind the end of the file, or that cannot be read; answers how many. Who wants to know
    /// why there are no more reads the file. On processors other than x86-64 it is always none.
    ///
    /// It takes a handler of SIGBUS, which is put in place the first time and hands on what is not its own.
    ///
    /// # Errors
    ///
    /// Invalid input outside of the mapping.
    pub fn load_available(&self, offset: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let from = self.at(offset, buffer.len())?;
        // SAFETY: the range lies in the mapping, of a file, which is mapped readable until drop; the buffer is other memory.
        Ok(unsafe { crate::guarded::load(from, buffer) })
    }

    /// Stores bytes. **A page that is behind the end of the file, or that cannot be read, is a SIGBUS.**
    ///
    /// # Errors
    ///
    /// Permission denied for a [`Protection::Read`] mapping; invalid input outside of it.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let to = self.at(offset, bytes.len())?;
        if self.protection == Protection::Read {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        // SAFETY: the range lies in the mapping, which is mapped writable until drop, and to whose bytes there are
        // no references.
        unsafe { store(to, bytes) };
        Ok(())
    }

    /// Waits until what was stored in the pages of a range is in the file, durably (`msync` with `MS_SYNC`).
    ///
    /// # Errors
    ///
    /// What msync answers; invalid input outside of the mapping.
    pub fn sync(&self, offset: usize, len: usize) -> io::Result<()> {
        let start = offset / crate::PAGE_SIZE * crate::PAGE_SIZE;
        let len = len.checked_add(offset - start).ok_or_else(|| invalid("range outside of the mapping"))?;
        let from = self.at(start, len)?;
        // SAFETY: the range lies in the mapping; no byte of it changes.
        check(unsafe { libc::msync(from.cast(), len, libc::MS_SYNC) }).map(drop)
    }

    /// Loads the eight bytes at a multiple of eight, as a program does: an absent page is a fault.
    ///
    /// **Behind the end of a file that has shrunk, and where the file cannot be read, that is a SIGBUS**, which ends the
    /// process; [`FileMapping::copy_out`] is an error then.
    ///
    /// # Panics
    ///
    /// Outside of the mapping, and for an offset that is no multiple of eight.
    #[inline]
    pub fn load_u64(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8) && offset < self.len / 8 * 8, "offset {offset} of {}", self.len);
        // SAFETY: the offset lies in the mapping, which begins at a page, so that the address is aligned; volatile,
        // since others may be writing.
        unsafe { self.address.as_ptr().add(offset).cast::<u64>().read_volatile() }
    }

    fn at(&self, offset: usize, len: usize) -> io::Result<*mut u8> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.address.as_ptr().wrapping_add(offset)),
            _ => Err(invalid("range outside of the mapping")),
        }
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and is unmapped here only.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
    }
}

/// Copies bytes to where others may be reading and writing.
///
/// # Safety
///
/// As many bytes as `from` has are mapped writable at `to`; none of them is in `from`, or behind any reference.
unsafe fn store(to: *mut u8, from: &[u8]) {
    // SAFETY: the instruction reads `from` and writes what the caller promises. It is no access of the memory
    // model, so that a race is none of it either.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") from.len() => _,
            inout("rsi") from.as_ptr() => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for (at, byte) in from.iter().enumerate() {
        // SAFETY: as the caller promises. Volatile, so that each byte is stored once, whatever it is.
        unsafe { to.add(at).write_volatile(*byte) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::PAGE_SIZE;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_file_that_is_cut_ends_a_load_and_not_the_process() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[7; 4 * PAGE_SIZE], 0).expect("it is written");
        let mapping = FileMapping::new(file.as_fd(), 8 * PAGE_SIZE, Protection::Read).expect("it is mapped");
        let mut buffer = vec![0; 3 * PAGE_SIZE];
        assert_eq!(mapping.load_available(100, &mut buffer).expect("in the mapping"), buffer.len());
        assert!(buffer.iter().all(|byte| *byte == 7));
        let load = |file: &File, pages: usize| {
            file.set_len((pages * PAGE_SIZE) as u64).expect("it is cut");
            let mut buffer = vec![1; 3 * PAGE_SIZE];
            let got = mapping.load_available(PAGE_SIZE, &mut buffer).expect("in the mapping");
            assert!(buffer[got..].iter().all(|byte| *byte == 1), "what is not loaded is left alone");
            got
        };
        assert_eq!(load(&file, 2), PAGE_SIZE);
        assert_eq!(load(&file, 1), 0);
        assert_eq!(load(&file, 4), 3 * PAGE_SIZE);
        assert!(mapping.load_available(8 * PAGE_SIZE, &mut buffer).is_err());
    }
}
