//! The contract of a local copy: what a managed access method fills and writes back.
//!
//! Each access method implements it for its kind of memory: userfaultfd mappings do in
//! `access::uffd`, plain memory does here. Pull, push and migration are written against it, once.

mod plain;

use std::ops::Range;
use std::sync::Arc;

use pagewire_core::chunk::ByteRange;

use crate::error::Result;

pub use plain::PlainMemory;

/// Bytes that stay what they are for as long as somebody has them.
pub type Lent = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// What is filled. Ranges are aligned to pages, but for the end of the region. Calls come from any
/// thread, and for different ranges at once.
pub trait LocalCopy: Send + Sync {
    /// Puts bytes where nothing is. What is there already stays: a page that came twice, or that an
    /// application wrote before it came. Whoever waits for the bytes goes on.
    ///
    /// # Errors
    ///
    /// If the memory is gone, for instance with the process that it belonged to.
    fn place(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// The same with zeroes.
    ///
    /// # Errors
    ///
    /// As [`LocalCopy::place`].
    fn place_zero(&self, range: ByteRange) -> Result<()>;

    /// Wakes whoever waits for bytes that were placed: an access may have begun just before they
    /// came. Answers whether they are there; memory of huge pages is not before a page is whole.
    ///
    /// # Errors
    ///
    /// As [`LocalCopy::place`].
    fn wake(&self, range: ByteRange) -> Result<bool>;

    /// Makes what is absent in `range` an error for whoever waits for it or touches it, until it is
    /// placed after all.
    ///
    /// # Errors
    ///
    /// As [`LocalCopy::place`].
    fn fail(&self, range: ByteRange) -> Result<()>;

    /// Makes `range` absent. Nobody may be looking at it.
    ///
    /// # Errors
    ///
    /// As [`LocalCopy::place`].
    fn evict(&self, range: ByteRange) -> Result<()>;

    /// Copies out what is there now, while others may write to it: each page is as it was at one
    /// moment, or torn where it was written just then (then it is dirty again, and read again).
    ///
    /// # Errors
    ///
    /// If part of the range is absent.
    fn read_back(&self, offset: u64, bytes: &mut [u8]) -> Result<()>;

    /// The same for ranges that [`LocalCopy::take_dirty`] has answered: their bytes, one range after the
    /// other.
    ///
    /// # Errors
    ///
    /// As [`LocalCopy::read_back`].
    fn read_back_ranges(&self, ranges: &[ByteRange], bytes: &mut [u8]) -> Result<()> {
        let mut rest = bytes;
        for range in ranges {
            let (these, behind) = rest.split_at_mut(range.len() as usize);
            self.read_back(range.start, these)?;
            rest = behind;
        }
        Ok(())
    }

    /// The same for one range, where its bytes lie together and need not be copied.
    fn lend(&self, range: ByteRange) -> Option<Lent> {
        let _ = range;
        None
    }

    /// Appends the ranges that were written since they were placed or taken last, in order; from now on
    /// they count as clean. A write that comes meanwhile is in this answer or in the next one.
    ///
    /// # Errors
    ///
    /// As [`LocalCopy::place`].
    fn take_dirty(&self, ranges: &mut Vec<ByteRange>) -> Result<()>;

    /// What was taken as dirty of these pages is flushed, and nothing of it is asked for any more. For copies
    /// that keep pages until then only.
    fn flushed(&self, pages: &[Range<u64>]) {
        let _ = pages;
    }

    /// How many bytes of pages were written since they were placed or taken last.
    ///
    /// # Errors
    ///
    /// As [`LocalCopy::place`].
    fn count_dirty(&self) -> Result<u64>;
}
