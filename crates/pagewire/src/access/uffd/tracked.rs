//! The local copy that is written to: memory of this process whose changes are tracked.

use std::ops::Range;
use std::sync::RwLock;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE, round_up};
use pagewire_sys::tracked::{TrackedMapping, Tracking};

use super::{EINVAL, ENOMEM, ENOTTY};
use crate::engine::LocalCopy;
use crate::error::{Error, ErrorKind, Result};

/// Memory of this process that is read and written while it is filled. It has room for the region's
/// capacity.
pub(super) struct TrackedMemory {
    pub(super) memory: TrackedMapping,
    /// Where what is pulled ends: behind are zeroes, which nobody has to be asked for. Held for sharing
    /// while something is placed.
    pulled: RwLock<u64>,
}

fn failed(what: &str, error: &std::io::Error) -> Error {
    // No memory left, now; anything else is no better for being tried again.
    let again = error.raw_os_error() == Some(ENOMEM);
    Error::io(format!("cannot {what} the mapping"), error).with_retry(again)
}

fn offsets(range: ByteRange) -> Range<usize> {
    range.start as usize..range.end as usize
}

impl TrackedMemory {
    /// Memory of which the first `pulled` bytes are the region's.
    pub(super) fn new(memory: TrackedMapping, pulled: u64) -> Self {
        Self { memory, pulled: RwLock::new(pulled) }
    }

    /// Where what is pulled ends.
    pub(super) fn pulled(&self) -> u64 {
        *self.pulled.read().expect("no holder panics")
    }

    /// Whether the page at `offset` is the store's to give. One that is not is made zeroes.
    pub(super) fn is_pulled(&self, offset: u64) -> Result<bool> {
        let pulled = self.pulled.read().expect("no holder panics");
        if offset < round_up(*pulled, PAGE_SIZE) {
            return Ok(true);
        }
        let page = offset / PAGE_SIZE * PAGE_SIZE;
        let zeroed = self.memory.place_zero(page as usize, PAGE_SIZE as usize);
        zeroed.map_err(|error| failed("place zeroes in", &error))?;
        self.memory.wake(page as usize, PAGE_SIZE as usize).map_err(|error| failed("wake", &error))?;
        Ok(false)
    }

    /// The region ends at `end` now: what is behind is zeroes from now on.
    pub(super) fn cut(&self, end: u64) -> Result<()> {
        let mut pulled = self.pulled.write().expect("no holder panics");
        *pulled = end.min(*pulled);
        drop(pulled);
        self.clear(ByteRange::new(end, self.memory.len() as u64))
    }

    /// Makes `range`, which begins at the region's end, zeroes.
    pub(super) fn clear(&self, range: ByteRange) -> Result<()> {
        let first = round_up(range.start, PAGE_SIZE);
        let tail = ByteRange::new(range.start, first.min(self.memory.len() as u64));
        if !tail.is_empty() {
            let mut bytes = vec![0; tail.len() as usize];
            self.read_back(tail.start, &mut bytes)?;
            if bytes.iter().any(|byte| *byte != 0) {
                bytes.fill(0);
                let zeroed = self.memory.copy_in(tail.start as usize, &bytes);
                zeroed.map_err(|error| failed("write to", &error))?;
            }
        }
        let end = round_up(range.end, PAGE_SIZE).min(self.memory.mapping().len() as u64);
        if first < end {
            let discarded = self.memory.discard(first as usize, (end - first) as usize);
            discarded.map_err(|error| failed("discard pages of", &error))?;
        }
        Ok(())
    }
}

impl LocalCopy for TrackedMemory {
    fn place(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let pulled = self.pulled.read().expect("no holder panics");
        let range = ByteRange::new(offset, offset + bytes.len() as u64).clamp_to(*pulled);
        let bytes = &bytes[..range.len() as usize];
        let whole = bytes.len() / PAGE_SIZE as usize * PAGE_SIZE as usize;
        let place = |at: u64, bytes: &[u8]| {
            let placed = self.memory.place(at as usize, bytes);
            placed.map(drop).map_err(|error| failed("place pages in", &error))
        };
        place(offset, &bytes[..whole])?;
        if whole < bytes.len() {
            // Past the end of the region its last page holds zeroes.
            let mut page = [0; PAGE_SIZE as usize];
            page[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            place(offset + whole as u64, &page)?;
        }
        Ok(())
    }

    fn place_zero(&self, range: ByteRange) -> Result<()> {
        let pulled = self.pulled.read().expect("no holder panics");
        let range = range.clamp_to(round_up(*pulled, PAGE_SIZE));
        let length = round_up(range.end, PAGE_SIZE).saturating_sub(range.start);
        let placed = self.memory.place_zero(range.start as usize, length as usize);
        placed.map(drop).map_err(|error| failed("place zeroes in", &error))
    }

    fn wake(&self, range: ByteRange) -> Result<bool> {
        let length = round_up(range.end, PAGE_SIZE) - range.start;
        let woken = self.memory.wake(range.start as usize, length as usize);
        woken.map(|()| true).map_err(|error| failed("wake", &error))
    }

    fn fail(&self, range: ByteRange) -> Result<()> {
        let length = round_up(range.end, PAGE_SIZE) - range.start;
        match self.memory.poison(range.start as usize, length as usize) {
            Err(error) if matches!(error.raw_os_error(), Some(EINVAL | ENOTTY)) => {
                super::cannot_poison();
                Ok(())
            }
            result => result.map_err(|error| failed("poison pages of", &error)),
        }
    }

    fn evict(&self, range: ByteRange) -> Result<()> {
        let length = round_up(range.end, PAGE_SIZE) - range.start;
        let discarded = self.memory.discard(range.start as usize, length as usize);
        discarded.map_err(|error| failed("discard pages of", &error))
    }

    fn read_back(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.memory.copy_out(offset as usize, bytes).map_err(|error| failed("read", &error))
    }

    fn read_back_ranges(&self, ranges: &[ByteRange], bytes: &mut [u8]) -> Result<()> {
        let last = ranges.last().filter(|last| !last.end.is_multiple_of(PAGE_SIZE));
        let short = last.is_some() && self.memory.tracking() == Tracking::Hash;
        let whole = if short { ranges.len() - 1 } else { ranges.len() };
        let offsets: Vec<_> = ranges[..whole].iter().copied().map(offsets).collect();
        let (front, back) = bytes.split_at_mut(offsets.iter().map(Range::len).sum());
        self.memory.load_ranges(&offsets, front).map_err(|error| failed("read", &error))?;
        if let Some(last) = last.filter(|_| short) {
            // Where pages are told by their hashes, a page is copied out whole or not at all.
            let mut pages = vec![0; round_up(last.len(), PAGE_SIZE) as usize];
            self.read_back(last.start, &mut pages)?;
            back.copy_from_slice(&pages[..back.len()]);
        }
        Ok(())
    }

    fn take_dirty(&self, ranges: &mut Vec<ByteRange>) -> Result<()> {
        let mut written = Vec::new();
        let taken = self.memory.take_written(&mut written);
        // What was taken counts as clean also where the kernel failed in the middle.
        let range = |range: &Range<usize>| ByteRange::new(range.start as u64, range.end as u64);
        ranges.extend(written.iter().map(range));
        taken.map_err(|error| failed("find the changes of", &error))
    }

    fn count_dirty(&self) -> Result<u64> {
        let count = self.memory.count_written();
        count.map(|bytes| bytes as u64).map_err(|error| failed("count the changes of", &error))
    }
}

/// Why a range cannot be accessed.
pub(super) fn out_of_range(range: ByteRange, length: u64) -> Error {
    Error::new(ErrorKind::OutOfRange, format!("bytes {range} of a region of {length} bytes"))
}
