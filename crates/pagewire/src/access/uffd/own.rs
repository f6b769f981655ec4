//! The local copy that is a mapping of this process.

use pagewire_core::chunk::{ByteRange, PAGE_SIZE, round_up};
use pagewire_sys::pulled::PulledMapping;
use pagewire_sys::uffd::{CopyMode, PlaceError};

use super::{place_error, poisoned};
use crate::engine::LocalCopy;
use crate::error::{Error, ErrorKind, Result};

/// Memory of this process that is read while it is filled.
pub(super) struct OwnMemory {
    pub(super) memory: PulledMapping,
}

impl OwnMemory {
    /// The address of a range that has been rounded up to whole pages: the region's last page may be
    /// short, the memory's is not.
    fn address(&self, range: ByteRange) -> Result<(usize, usize)> {
        let length = (round_up(range.end, PAGE_SIZE) - range.start) as usize;
        let address = self.memory.mapping().range_address(range.start as usize, length);
        let outside = || Error::new(ErrorKind::OutOfRange, format!("bytes {range} of a mapping"));
        Ok((address.ok_or_else(outside)?, length))
    }

    /// Places again from where the kernel asked for patience: mappings of this process were changing.
    fn repeat(&self, length: usize, place: impl Fn(usize) -> Result<(), PlaceError>) -> Result<()> {
        let mut at = 0;
        while at < length {
            match place(at) {
                Ok(()) => break,
                Err(PlaceError::Again { done }) => {
                    at += done;
                    std::thread::yield_now();
                }
                Err(error) => return Err(place_error(&error)),
            }
        }
        Ok(())
    }

    fn copy(&self, address: usize, bytes: &[u8]) -> Result<()> {
        let uffd = self.memory.uffd();
        self.repeat(bytes.len(), |at| uffd.copy_all(address + at, &bytes[at..], CopyMode::default()))
    }
}

impl LocalCopy for OwnMemory {
    fn place(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let range = ByteRange::new(offset, offset + bytes.len() as u64);
        let (address, _) = self.address(range)?;
        let whole = bytes.len() / PAGE_SIZE as usize * PAGE_SIZE as usize;
        self.copy(address, &bytes[..whole])?;
        if whole < bytes.len() {
            // Past the end of the region its last page holds zeroes, as a mapped file's does.
            let mut page = [0; PAGE_SIZE as usize];
            page[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.copy(address + whole, &page)?;
        }
        Ok(())
    }

    fn place_zero(&self, range: ByteRange) -> Result<()> {
        let (address, length) = self.address(range)?;
        self.repeat(length, |at| self.memory.uffd().zero_all(address + at, length - at, false))
    }

    fn wake(&self, range: ByteRange) -> Result<bool> {
        let (address, length) = self.address(range)?;
        self.memory.uffd().wake(address, length).map_err(|error| place_error(&error))?;
        Ok(true)
    }

    fn fail(&self, range: ByteRange) -> Result<()> {
        let (address, length) = self.address(range)?;
        let uffd = self.memory.uffd();
        self.repeat(length, |at| poisoned(uffd.poison_all(address + at, length - at, PAGE_SIZE as usize)))
    }

    fn evict(&self, _: ByteRange) -> Result<()> {
        let text = "bytes that are lent out cannot be taken back; a refreshed mapping is a new one";
        Err(Error::new(ErrorKind::Unsupported, text))
    }

    fn read_back(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let failed = |error| Error::io("cannot read the mapping", &error);
        self.memory.mapping().copy_out(offset as usize, bytes).map_err(failed)
    }

    fn take_dirty(&self, _: &mut Vec<ByteRange>) -> Result<()> {
        // It cannot be written to.
        Ok(())
    }

    fn count_dirty(&self) -> Result<u64> {
        Ok(0)
    }
}
