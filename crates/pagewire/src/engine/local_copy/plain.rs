//! A local copy in plain memory of this process, for those who read and write it by calls. Pages
//! that are absent are errors, and changes are known because they are made here.

use std::sync::Mutex;

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, ChunkSize, Geometry};

use super::LocalCopy;
use crate::error::{Error, ErrorKind, Result};

/// A local copy in plain memory.
pub struct PlainMemory {
    geometry: Geometry,
    state: Mutex<State>,
}

struct State {
    bytes: Vec<u8>,
    present: BitSet,
    failed: BitSet,
    dirty: BitSet,
}

impl PlainMemory {
    /// An empty copy of a region of `length` bytes.
    pub fn new(length: u64) -> Self {
        let geometry = Geometry::new(length, ChunkSize::PAGE);
        let pages = geometry.page_count();
        let state = State {
            bytes: vec![0; length as usize],
            present: BitSet::new(pages),
            failed: BitSet::new(pages),
            dirty: BitSet::new(pages),
        };
        Self { geometry, state: Mutex::new(state) }
    }

    /// Writes whole pages, absent or not; they are dirty then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::OutOfRange`] past the end; [`ErrorKind::Usage`] where a page is written in part.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let range = ByteRange::new(offset, offset + bytes.len() as u64);
        let pages = self.pages(range)?;
        let mut state = self.state.lock().expect("no holder panics");
        state.bytes[offset as usize..range.end as usize].copy_from_slice(bytes);
        state.present.insert_range(pages.clone());
        state.failed.remove_range(pages.clone());
        state.dirty.insert_range(pages);
        Ok(())
    }

    /// The pages of an aligned range.
    fn pages(&self, range: ByteRange) -> Result<std::ops::Range<u64>> {
        if range.end > self.geometry.length() {
            return Err(Error::new(ErrorKind::OutOfRange, format!("bytes {range} of a local copy")));
        }
        let (touched, whole) = (self.geometry.pages_touching(range), self.geometry.pages_within(range));
        if touched != whole {
            return Err(Error::new(ErrorKind::Usage, format!("bytes {range} are not whole pages")));
        }
        Ok(whole)
    }

    fn fill(&self, range: ByteRange, copy: impl Fn(&mut [u8], ByteRange)) -> Result<()> {
        let pages = self.pages(range)?;
        let mut state = self.state.lock().expect("no holder panics");
        for page in pages {
            if state.present.insert(page) {
                let piece = self.geometry.range_of_pages(page..page + 1);
                copy(&mut state.bytes[piece.start as usize..piece.end as usize], piece);
                state.failed.remove(page);
            }
        }
        Ok(())
    }
}

impl LocalCopy for PlainMemory {
    fn place(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let range = ByteRange::new(offset, offset + bytes.len() as u64);
        self.fill(range, |to, piece| {
            let from = (piece.start - offset) as usize;
            to.copy_from_slice(&bytes[from..from + to.len()]);
        })
    }

    fn place_zero(&self, range: ByteRange) -> Result<()> {
        self.fill(range, |to, _| to.fill(0))
    }

    fn wake(&self, _: ByteRange) -> Result<bool> {
        Ok(true)
    }

    fn fail(&self, range: ByteRange) -> Result<()> {
        let pages = self.pages(range)?;
        let mut state = self.state.lock().expect("no holder panics");
        for page in pages {
            if !state.present.contains(page) {
                state.failed.insert(page);
            }
        }
        Ok(())
    }

    fn evict(&self, range: ByteRange) -> Result<()> {
        let pages = self.pages(range)?;
        let mut state = self.state.lock().expect("no holder panics");
        state.present.remove_range(pages.clone());
        state.failed.remove_range(pages.clone());
        state.dirty.remove_range(pages);
        Ok(())
    }

    fn read_back(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let range = ByteRange::new(offset, offset + bytes.len() as u64);
        if range.end > self.geometry.length() {
            return Err(Error::new(ErrorKind::OutOfRange, format!("bytes {range} of a local copy")));
        }
        let state = self.state.lock().expect("no holder panics");
        for page in self.geometry.pages_touching(range) {
            if !state.present.contains(page) {
                let what = if state.failed.contains(page) { "could not be had" } else { "is absent" };
                let range = self.geometry.range_of_pages(page..page + 1);
                return Err(Error::new(ErrorKind::Unavailable, format!("bytes {range}: the page {what}")));
            }
        }
        bytes.copy_from_slice(&state.bytes[offset as usize..range.end as usize]);
        Ok(())
    }

    fn take_dirty(&self, ranges: &mut Vec<ByteRange>) -> Result<()> {
        let mut state = self.state.lock().expect("no holder panics");
        ranges.extend(state.dirty.runs().map(|run| self.geometry.range_of_pages(run)));
        state.dirty.clear();
        Ok(())
    }

    fn count_dirty(&self) -> Result<u64> {
        let state = self.state.lock().expect("no holder panics");
        let ranges = state.dirty.runs().map(|run| self.geometry.range_of_pages(run));
        Ok(ranges.map(|range| range.len()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_fills_only_what_was_not_written() {
        let copy = PlainMemory::new(3 * 4096 + 5);
        copy.write(4096, &[9; 4096]).unwrap();
        copy.place(0, &[1; 3 * 4096 + 5]).unwrap();
        let mut bytes = vec![0; 3 * 4096 + 5];
        copy.read_back(0, &mut bytes).unwrap();
        assert_eq!((bytes[4095], bytes[4096], bytes[8191], bytes[8192]), (1, 9, 9, 1));
        assert_eq!(copy.count_dirty().unwrap(), 4096);
        let mut dirty = Vec::new();
        copy.take_dirty(&mut dirty).unwrap();
        copy.take_dirty(&mut dirty).unwrap();
        assert_eq!(dirty, [ByteRange::new(4096, 8192)], "once");
    }

    #[test]
    fn what_is_absent_is_an_error_and_what_failed_heals() {
        let copy = PlainMemory::new(8192);
        let mut bytes = [7; 4096];
        assert!(copy.read_back(0, &mut bytes).is_err());
        copy.fail(ByteRange::new(0, 4096)).unwrap();
        assert!(copy.read_back(0, &mut bytes).unwrap_err().to_string().contains("could not be had"));
        copy.place_zero(ByteRange::new(0, 4096)).unwrap();
        copy.read_back(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4096]);
        copy.evict(ByteRange::new(0, 4096)).unwrap();
        assert!(copy.read_back(0, &mut bytes).is_err());
        assert!(copy.place(0, &[1; 100]).is_err(), "half a page is nothing to place");
    }
}
