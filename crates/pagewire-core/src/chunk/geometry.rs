//! How one region is cut into chunks and pages.

use std::ops::Range;

use super::{ByteRange, ChunkIndex, ChunkSize, PAGE_SIZE, round_up};

/// The length of a region and the size of its chunks: everything that index arithmetic needs.
///
/// Ranges and indexes past the end of the region are clamped, never a panic. The last chunk and the last page
/// are short when the length is no multiple; they count like the others.
///
/// ```
/// use pagewire_core::chunk::{ByteRange, ChunkIndex, ChunkSize, Geometry};
///
/// let geometry = Geometry::new(100_000, ChunkSize::DEFAULT);
/// assert_eq!(geometry.chunk_count(), 2);
/// assert_eq!(geometry.range_of(ChunkIndex(1)), ByteRange::new(65_536, 100_000));
/// assert_eq!(geometry.touching(ByteRange::new(65_535, 65_537)), 0..2);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Geometry {
    length: u64,
    chunk: ChunkSize,
}

impl Geometry {
    /// The geometry of a region of `length` bytes in chunks of `chunk`.
    pub const fn new(length: u64, chunk: ChunkSize) -> Self {
        Self { length, chunk }
    }

    /// Bytes of the region.
    pub const fn length(self) -> u64 {
        self.length
    }

    /// The size of all chunks but a short last one.
    pub const fn chunk_size(self) -> ChunkSize {
        self.chunk
    }

    /// Chunks of the region, a short last one included.
    pub const fn chunk_count(self) -> u64 {
        self.length.div_ceil(self.chunk.bytes())
    }

    /// Pages of the region, a short last one included.
    pub const fn page_count(self) -> u64 {
        self.length.div_ceil(PAGE_SIZE)
    }

    /// The length rounded up to whole pages: what a mapping of the region takes.
    pub const fn mapped_len(self) -> u64 {
        round_up(self.length, PAGE_SIZE)
    }

    /// All bytes of the region.
    pub const fn whole(self) -> ByteRange {
        ByteRange { start: 0, end: self.length }
    }

    /// The bytes of a chunk. Past the end of the region: the empty range at its end.
    pub fn range_of(self, index: ChunkIndex) -> ByteRange {
        self.range_of_chunks(index.0..index.0.saturating_add(1))
    }

    /// The bytes of consecutive chunks by their numbers, clamped to the region.
    pub fn range_of_chunks(self, chunks: Range<u64>) -> ByteRange {
        let size = self.chunk.bytes();
        let start = chunks.start.saturating_mul(size);
        ByteRange { start, end: chunks.end.saturating_mul(size).max(start) }.clamp_to(self.length)
    }

    /// The chunk that holds the byte at `offset`; `None` past the end of the region.
    pub const fn chunk_at(self, offset: u64) -> Option<ChunkIndex> {
        if offset < self.length { Some(ChunkIndex(offset / self.chunk.bytes())) } else { None }
    }

    /// The chunk that a page lies in.
    pub const fn chunk_of_page(self, page: u64) -> ChunkIndex {
        ChunkIndex(page / self.chunk.pages())
    }

    /// The numbers of the chunks that have a byte of `range`.
    pub fn touching(self, range: ByteRange) -> Range<u64> {
        self.units_touching(range, self.chunk.bytes())
    }

    /// The numbers of the chunks that lie wholly in `range`. The short last chunk does when the range reaches
    /// the region's length.
    pub fn within(self, range: ByteRange) -> Range<u64> {
        self.units_within(range, self.chunk.bytes())
    }

    /// The numbers of the pages that have a byte of `range`.
    pub fn pages_touching(self, range: ByteRange) -> Range<u64> {
        self.units_touching(range, PAGE_SIZE)
    }

    /// The numbers of the pages that lie wholly in `range`, a short last page as in [`Geometry::within`].
    pub fn pages_within(self, range: ByteRange) -> Range<u64> {
        self.units_within(range, PAGE_SIZE)
    }

    /// The numbers of the pages of a chunk.
    pub fn pages_of(self, index: ChunkIndex) -> Range<u64> {
        self.pages_touching(self.range_of(index))
    }

    /// The bytes of consecutive pages by their numbers, clamped to the region.
    pub fn range_of_pages(self, pages: Range<u64>) -> ByteRange {
        ByteRange::of_pages(pages).clamp_to(self.length)
    }

    fn units_touching(self, range: ByteRange, unit: u64) -> Range<u64> {
        let range = range.clamp_to(self.length);
        let first = range.start / unit;
        if range.is_empty() { first..first } else { first..range.end.div_ceil(unit) }
    }

    fn units_within(self, range: ByteRange, unit: u64) -> Range<u64> {
        let range = range.clamp_to(self.length);
        let first = range.start.div_ceil(unit);
        let end = if range.end == self.length { range.end.div_ceil(unit) } else { range.end / unit };
        first..end.max(first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_geometry() -> impl Strategy<Value = Geometry> {
        (0u64..200_000, 12u32..17).prop_map(|(length, exponent)| {
            Geometry::new(length, ChunkSize::new(1 << exponent).expect("a chunk size"))
        })
    }

    proptest! {
        #[test]
        fn chunks_tile_the_region(geometry in any_geometry()) {
            let mut next = 0;
            for index in 0..geometry.chunk_count() {
                let range = geometry.range_of(ChunkIndex(index));
                prop_assert_eq!(range.start, next);
                prop_assert!(!range.is_empty() && range.len() <= geometry.chunk_size().bytes());
                prop_assert_eq!(geometry.chunk_at(range.start), Some(ChunkIndex(index)));
                prop_assert_eq!(geometry.chunk_at(range.end - 1), Some(ChunkIndex(index)));
                for page in geometry.pages_of(ChunkIndex(index)) {
                    prop_assert_eq!(geometry.chunk_of_page(page), ChunkIndex(index));
                    prop_assert!(range.contains(geometry.range_of_pages(page..page + 1)));
                }
                next = range.end;
            }
            prop_assert_eq!(next, geometry.length());
            prop_assert_eq!(geometry.chunk_at(next), None);
            prop_assert!(geometry.range_of(ChunkIndex(geometry.chunk_count())).is_empty());
            prop_assert_eq!(geometry.mapped_len(), geometry.page_count() * PAGE_SIZE);
        }

        #[test]
        fn touching_and_within_agree_with_each_chunk(
            geometry in any_geometry(), a in 0u64..220_000, b in 0u64..220_000,
        ) {
            let range = ByteRange::new(a.min(b), a.max(b));
            let (touching, within) = (geometry.touching(range), geometry.within(range));
            let (pages_touching, pages_within) = (geometry.pages_touching(range), geometry.pages_within(range));
            for index in 0..geometry.chunk_count() {
                let chunk = geometry.range_of(ChunkIndex(index));
                prop_assert_eq!(touching.contains(&index), chunk.overlaps(range));
                prop_assert_eq!(within.contains(&index), range.contains(chunk));
            }
            for index in 0..geometry.page_count() {
                let page = geometry.range_of_pages(index..index + 1);
                prop_assert_eq!(pages_touching.contains(&index), page.overlaps(range));
                prop_assert_eq!(pages_within.contains(&index), range.contains(page));
            }
            prop_assert!(touching.end <= geometry.chunk_count() && within.end <= geometry.chunk_count());
        }
    }

    #[test]
    fn an_empty_region_has_nothing() {
        let geometry = Geometry::new(0, ChunkSize::DEFAULT);
        assert_eq!((geometry.chunk_count(), geometry.page_count(), geometry.mapped_len()), (0, 0, 0));
        assert!(geometry.touching(ByteRange::new(0, 10)).is_empty());
        assert!(geometry.within(ByteRange::new(0, 10)).is_empty());
        assert_eq!(geometry.chunk_at(0), None);
    }

    #[test]
    fn the_largest_region_does_not_overflow() {
        let geometry = Geometry::new(u64::MAX, ChunkSize::DEFAULT);
        let last = ChunkIndex(geometry.chunk_count() - 1);
        assert_eq!(geometry.range_of(last).end, u64::MAX);
        assert_eq!(geometry.touching(geometry.whole()), 0..geometry.chunk_count());
        assert_eq!(geometry.within(geometry.whole()), 0..geometry.chunk_count());
        assert!(geometry.range_of(ChunkIndex(u64::MAX)).is_empty());
        assert_eq!(geometry.mapped_len(), u64::MAX);
    }
}
