//! Where a lent file holds data and where holes, found by `SEEK_HOLE`.
//!
//! To look a run up can take long: on tmpfs the kernel walks the pages up to the next hole. So a file
//! that takes as much room as it has bytes is not looked at at all, and a run is looked up once.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, OnceLock};

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

/// What is known of the holes of a lent file.
#[derive(Default)]
pub(super) struct Holes {
    /// Whether it has none.
    dense: OnceLock<bool>,
    /// The last run that was looked up, and whether it holds data.
    last: Mutex<Option<(ByteRange, bool)>>,
}

impl Holes {
    /// The run that begins at `at` or before: where it ends, and whether it holds data.
    fn run_at(&self, file: BorrowedFd<'_>, at: u64, length: u64) -> io::Result<(u64, bool)> {
        let mut last = self.last.lock().expect("no holder panics");
        if let Some((range, data)) = *last
            && range.start <= at
            && at < range.end
        {
            return Ok((range.end, data));
        }
        let found = match pagewire_sys::file::seek_data(file, at)? {
            None => (length, false),
            Some(data) if data > at => (data.min(length), false),
            Some(_) => (pagewire_sys::file::seek_hole(file, at)?.min(length), true),
        };
        *last = Some((ByteRange::new(at, found.0), found.1));
        Ok(found)
    }

    /// `range` cut where holes begin and end; a page that holds any data is data.
    pub(super) fn runs(
        &self,
        file: BorrowedFd<'_>,
        range: ByteRange,
        length: u64,
    ) -> io::Result<Vec<(ByteRange, bool)>> {
        // Block devices and some file systems cannot be asked for holes.
        let dense = || {
            let full = pagewire_sys::file::allocated(file).is_ok_and(|bytes| bytes >= length);
            full || pagewire_sys::file::seek_data(file, 0).is_err()
        };
        if *self.dense.get_or_init(dense) {
            return Ok(vec![(range, true)]);
        }
        let mut runs = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (end, data) = self.run_at(file, at, length)?;
            let end = if data {
                end.next_multiple_of(PAGE_SIZE).min(range.end)
            } else if end >= range.end {
                range.end
            } else {
                end / PAGE_SIZE * PAGE_SIZE
            };
            // A hole that ends within its first page is no hole to us.
            let (end, data) = if end <= at { ((at + PAGE_SIZE).min(range.end), true) } else { (end, data) };
            runs.push((ByteRange::new(at, end), data));
            at = end;
        }
        Ok(runs)
    }
}
