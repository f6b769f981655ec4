//! The order of the background pull.

use crate::bitmap::BitSet;
use crate::chunk::{ByteRange, ChunkIndex, Geometry};

/// In which order the background pulls what nobody has asked for yet.
///
/// ```
/// use pagewire_core::bitmap::BitSet;
/// use pagewire_core::chunk::{ByteRange, ChunkIndex, ChunkSize, Geometry};
/// use pagewire_core::pull::PullOrder;
///
/// let geometry = Geometry::new(4 * 4096, ChunkSize::PAGE);
/// let mut present = BitSet::new(geometry.chunk_count());
/// present.insert(1);
/// let order = PullOrder::List(vec![ChunkIndex(2), ChunkIndex(3)]);
/// assert_eq!(order.plan(geometry, &present), [ByteRange::new(8192, 16384), ByteRange::new(0, 4096)]);
/// ```
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum PullOrder {
    /// No background pull: only what is demanded is pulled.
    None,
    /// From the first chunk to the last.
    #[default]
    Sequential,
    /// First these chunks, as a trace of an earlier run gives them, then all others from first to last.
    /// Repeated chunks and chunks that the region does not have are passed over.
    List(Vec<ChunkIndex>),
}

impl PullOrder {
    /// The bytes of the absent chunks, each once, in the order in which to pull them; chunks that follow each
    /// other in the order and in the region are one range.
    ///
    /// # Panics
    /// If `present` is not a set of the chunks of the region.
    pub fn plan(&self, geometry: Geometry, present: &BitSet) -> Vec<ByteRange> {
        assert_eq!(present.len(), geometry.chunk_count(), "a set of other chunks");
        let listed: &[ChunkIndex] = match self {
            Self::None => return Vec::new(),
            Self::Sequential => &[],
            Self::List(chunks) => chunks,
        };
        let mut planned = present.clone();
        let mut ranges = Vec::new();
        for &chunk in listed {
            if chunk.0 < planned.len() && planned.insert(chunk.0) {
                geometry.range_of(chunk).append_to(&mut ranges);
            }
        }
        for gap in planned.gaps() {
            geometry.range_of_chunks(gap).append_to(&mut ranges);
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::ChunkSize;

    /// The plan as chunks, one by one, by the definition.
    fn expected(order: &PullOrder, present: &BitSet) -> Vec<u64> {
        let mut chunks: Vec<u64> = match order {
            PullOrder::None => return Vec::new(),
            PullOrder::Sequential => Vec::new(),
            PullOrder::List(list) => list.iter().map(|chunk| chunk.0).collect(),
        };
        chunks.extend(0..present.len());
        let mut plan = Vec::new();
        for chunk in chunks {
            if chunk < present.len() && !present.contains(chunk) && !plan.contains(&chunk) {
                plan.push(chunk);
            }
        }
        plan
    }

    proptest! {
        #[test]
        fn plans_each_absent_chunk_once_in_order(
            length in 0u64..100_000,
            held in prop::collection::vec(0u64..25, 0..20),
            list in prop::option::of(prop::collection::vec(0u64..40, 0..20)),
        ) {
            let geometry = Geometry::new(length, ChunkSize::PAGE);
            let mut present = BitSet::new(geometry.chunk_count());
            for chunk in held.into_iter().filter(|&chunk| chunk < geometry.chunk_count()) {
                present.insert(chunk);
            }
            let order = list.map_or(PullOrder::Sequential, |list| {
                PullOrder::List(list.into_iter().map(ChunkIndex).collect())
            });
            let plan = order.plan(geometry, &present);
            let chunks: Vec<u64> = plan.iter().flat_map(|range| geometry.within(*range)).collect();
            prop_assert_eq!(chunks, expected(&order, &present));
            prop_assert_eq!(
                plan.iter().map(|range| range.len()).sum::<u64>(),
                present.gaps().map(|gap| geometry.range_of_chunks(gap).len()).sum::<u64>()
            );
            prop_assert!(plan.windows(2).all(|pair| pair[0].end != pair[1].start), "not merged: {:?}", plan);
        }
    }

    #[test]
    fn the_whole_region_is_one_range_and_its_short_end_is_not_forgotten() {
        let geometry = Geometry::new(10_000, ChunkSize::PAGE);
        let absent = BitSet::new(3);
        assert_eq!(PullOrder::Sequential.plan(geometry, &absent), [ByteRange::new(0, 10_000)]);
        assert_eq!(PullOrder::None.plan(geometry, &absent), []);
        assert_eq!(
            PullOrder::List(vec![ChunkIndex(2), ChunkIndex(u64::MAX)]).plan(geometry, &absent),
            [ByteRange::new(8192, 10_000), ByteRange::new(0, 8192)]
        );
    }
}
