//! What a sender of many ranges sends next.

use std::collections::VecDeque;

use crate::bitmap::BitSet;
use crate::chunk::{ByteRange, ChunkSize, Geometry, round_up};

/// The ranges of a stream that are still to be sent, in the order in which the receiver wants them.
///
/// Each page is sent once: what the receiver has moved to the front ([`SendOrder::steer`]), or got
/// in another way ([`SendOrder::skip`]), is left out where it comes again later. The cost is a bit a
/// page and the list of ranges.
///
/// ```
/// use pagewire_core::chunk::ByteRange;
/// use pagewire_core::pull::SendOrder;
///
/// let mut order = SendOrder::new(5 * 4096, &[ByteRange::new(0, 5 * 4096)]);
/// order.steer(&[ByteRange::new(3 * 4096, 4 * 4096)]);
/// order.skip(ByteRange::new(0, 4096));
/// let sent: Vec<u64> = std::iter::from_fn(|| order.next(4096)).map(|range| range.start / 4096).collect();
/// assert_eq!(sent, [3, 1, 2, 4]);
/// ```
#[derive(Debug, Clone)]
pub struct SendOrder {
    geometry: Geometry,
    remaining: BitSet,
    queue: VecDeque<ByteRange>,
}

impl SendOrder {
    /// The pages of `ranges` of a region of `length` bytes, in this order.
    pub fn new(length: u64, ranges: &[ByteRange]) -> Self {
        let geometry = Geometry::new(length, ChunkSize::PAGE);
        let mut remaining = BitSet::new(geometry.page_count());
        let queue: VecDeque<ByteRange> = ranges.iter().map(|range| range.clamp_to(length)).collect();
        for range in &queue {
            remaining.insert_range(geometry.pages_touching(*range));
        }
        Self { geometry, remaining, queue }
    }

    /// The next range: at most `longest` bytes (a multiple of the page size), and not across a
    /// multiple of `longest`, so that ranges of a size stay aligned to it.
    pub fn next(&mut self, longest: u64) -> Option<ByteRange> {
        while let Some(front) = self.queue.front_mut() {
            let pages = self.geometry.pages_touching(*front);
            let Some(first) = self.remaining.next_member(pages.start).filter(|page| *page < pages.end) else {
                self.queue.pop_front();
                continue;
            };
            let start = self.geometry.range_of_pages(first..first + 1).start;
            let border = self.geometry.pages_touching(
                ByteRange::new(start, round_up(start + 1, longest)).clamp_to(self.geometry.length()),
            );
            let most = pages.end.min(border.end) - first;
            let run = self.remaining.take_run(first, most)?;
            let range = self.geometry.range_of_pages(run);
            front.start = range.end.min(front.end);
            return Some(range);
        }
        None
    }

    /// Puts what is still to be sent of `ranges` at the front, in this order.
    pub fn steer(&mut self, ranges: &[ByteRange]) {
        // A receiver that steers without end must not make the list grow without end: pieces whose
        // pages have gone are dropped when there are many.
        if self.queue.len() + ranges.len() > 2 * crate::wire::MAX_RANGES {
            let (geometry, remaining) = (self.geometry, &self.remaining);
            self.queue.retain(|range| remaining.count_range(geometry.pages_touching(*range)) > 0);
        }
        let room = (4 * crate::wire::MAX_RANGES).saturating_sub(self.queue.len());
        for range in ranges.iter().take(room).rev() {
            let range = range.clamp_to(self.geometry.length());
            if !range.is_empty() {
                self.queue.push_front(range);
            }
        }
    }

    /// Takes what is still to be sent of `range` out of its turn: the whole pages of it, in order.
    pub fn take(&mut self, range: ByteRange) -> Vec<ByteRange> {
        let pages = self.geometry.pages_within(range.clamp_to(self.geometry.length()));
        let mut taken = Vec::new();
        let mut from = pages.start;
        while let Some(first) = self.remaining.next_member(from).filter(|page| *page < pages.end)
            && let Some(run) = self.remaining.take_run(first, pages.end - first)
        {
            from = run.end;
            taken.push(self.geometry.range_of_pages(run));
        }
        taken
    }

    /// Leaves `range` out.
    pub fn skip(&mut self, range: ByteRange) {
        let range = range.clamp_to(self.geometry.length());
        self.remaining.remove_range(self.geometry.pages_within(range));
    }

    /// Whether everything was sent or skipped.
    pub fn is_empty(&self) -> bool {
        self.remaining.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Next(u64),
        Steer(Vec<(u64, u64)>),
        Skip(u64, u64),
        Take(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let range = (0u64..70, 0u64..20);
        let step = prop_oneof![
            3 => (0u32..5).prop_map(|shift| Step::Next(4096 << shift)),
            1 => proptest::collection::vec(range.clone(), 0..4).prop_map(Step::Steer),
            1 => range.clone().prop_map(|(start, pages)| Step::Skip(start, pages)),
            1 => range.prop_map(|(start, pages)| Step::Take(start, pages)),
        ];
        proptest::collection::vec(step, 0..60)
    }

    fn bytes((start, pages): (u64, u64)) -> ByteRange {
        ByteRange::new(start * 4096, (start + pages) * 4096)
    }

    proptest! {
        /// Against a list of single pages, which is searched for everything.
        #[test]
        fn each_page_goes_once_and_in_the_order_that_was_asked_for(
            length in 0u64..70 * 4096, ranges in proptest::collection::vec((0u64..70, 0u64..30), 0..6), steps in steps()
        ) {
            let pages = length.div_ceil(4096);
            let list = |ranges: &[(u64, u64)]| -> Vec<u64> {
                ranges.iter().flat_map(|(start, count)| *start..start + count).filter(|page| *page < pages).collect()
            };
            let mut model = list(&ranges);
            let mut seen = std::collections::HashSet::new();
            model.retain(|page| seen.insert(*page));
            let byte_ranges: Vec<ByteRange> = ranges.iter().map(|range| bytes(*range)).collect();
            let mut order = SendOrder::new(length, &byte_ranges);
            for step in steps {
                match step {
                    Step::Steer(ranges) => {
                        let first: Vec<u64> = list(&ranges).into_iter().filter(|page| model.contains(page)).collect();
                        let rest = std::mem::take(&mut model);
                        let mut seen = std::collections::HashSet::new();
                        model = first.into_iter().chain(rest).filter(|page| seen.insert(*page)).collect();
                        order.steer(&ranges.iter().map(|range| bytes(*range)).collect::<Vec<_>>());
                    }
                    Step::Skip(start, count) => {
                        model.retain(|page| !(start..start + count).contains(page));
                        order.skip(bytes((start, count)));
                    }
                    Step::Take(start, count) => {
                        let whole = bytes((start, count)).clamp_to(length);
                        let mut taken: Vec<u64> = Vec::new();
                        for range in order.take(bytes((start, count))) {
                            prop_assert!(whole.contains(range) && !range.is_empty());
                            taken.extend(range.start / 4096..range.end.div_ceil(4096));
                        }
                        let mut expected: Vec<u64> =
                            list(&[(start, count)]).into_iter().filter(|page| model.contains(page)).collect();
                        expected.sort_unstable();
                        prop_assert_eq!(&taken, &expected);
                        model.retain(|page| !taken.contains(page));
                    }
                    Step::Next(longest) => match order.next(longest) {
                        None => prop_assert!(model.is_empty()),
                        Some(range) => {
                            prop_assert!(range.len() <= longest && !range.is_empty() && range.end <= length);
                            prop_assert_eq!(range.start / longest, (range.end - 1) / longest);
                            for page in range.start / 4096..range.end.div_ceil(4096) {
                                prop_assert_eq!(model.remove(0), page);
                            }
                        }
                    },
                }
                prop_assert_eq!(order.is_empty(), model.is_empty());
            }
        }
    }
}
