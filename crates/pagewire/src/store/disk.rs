//! What journals and caches need of a file, so that a test can put a disk in its place that loses what was not
//! synced.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use pagewire_core::chunk::ByteRange;
use pagewire_core::journal::Stamp;

#[cfg(test)]
use super::steps::step;

/// Before something is done to a file; a test may have it go no further.
#[cfg(not(test))]
fn step() {}

/// The longest piece that is written at once, in bytes.
const PIECE: u64 = 256 << 10;

/// A file, or what a test has in its place.
pub(crate) trait Disk: Send + Sync {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;
    /// Reads what there is without waiting for a disk: `WouldBlock` where that is nothing.
    fn read_nowait(&self, bytes: &mut [u8], at: u64) -> io::Result<usize>;
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes everything that was written durable.
    fn sync(&self) -> io::Result<()>;
    /// The same, and what the file looks like from outside.
    fn sync_all(&self) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Makes a range zeroes, which take no room where the file system can do that.
    fn punch(&self, range: ByteRange) -> io::Result<()>;
    /// What the file looks like from outside.
    fn stamp(&self) -> io::Result<Stamp>;
}

impl Disk for File {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, at)
    }

    fn read_nowait(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        pagewire_sys::file::pread_nowait(self.as_fd(), bytes, at)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        step();
        FileExt::write_all_at(self, bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        step();
        self.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        step();
        File::sync_all(self)
    }

    fn len(&self) -> io::Result<u64> {
        self.metadata().map(|found| found.len())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        step();
        File::set_len(self, length)
    }

    fn punch(&self, range: ByteRange) -> io::Result<()> {
        if range.is_empty() {
            // The kernel refuses to punch a hole of no bytes.
            return Ok(());
        }
        step();
        match pagewire_sys::file::punch_hole(self.as_fd(), range.start, range.len()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeroes(self, range),
            result => result,
        }
    }

    fn stamp(&self) -> io::Result<Stamp> {
        let (size, modified) = pagewire_sys::file::size_and_modified(self.as_fd())?;
        Ok(Stamp { size, modified: nanoseconds(modified) })
    }
}

fn write_zeroes(disk: &dyn Disk, range: ByteRange) -> io::Result<()> {
    let zeroes = vec![0; range.len().min(PIECE) as usize];
    range.split(PIECE).try_for_each(|piece| disk.write_all_at(&zeroes[..piece.len() as usize], piece.start))
}

/// A time in nanoseconds since 1970.
pub(crate) fn nanoseconds((seconds, nanoseconds): (i64, u32)) -> u64 {
    (seconds.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(u64::from(nanoseconds))
}
