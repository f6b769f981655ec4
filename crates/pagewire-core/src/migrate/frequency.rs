//! Which pages to send last, and which not to send yet: those that are written most often.
//!
//! What is sent and written again before the switch was sent in vain. So each chunk has a count of how often it
//! was in the rounds' sets, in which a round counts half as much as the one after it. What is sent is ordered
//! by that, the rarely written first: the later a page is sent, the less time there is to write to it before
//! the next set.
//!
//! And what was in both of the last two sets is likely to be in the next one too, if that covers about as much
//! time. It can be *held back*: it stays missing, and is sent once, after the last set was taken. That makes
//! the last set no smaller than it would have been, and the rounds before much smaller; but where the guess is
//! wrong the last set has a page that it need not have had, so [`Holding`] says how many bytes may be staked on
//! it. Nothing is held back once the application is suspended.

use std::time::Duration;

use crate::chunk::{ByteRange, Geometry};

/// How much a round counts for a chunk that is in its set; all before it together count for less.
const HIT: u8 = 128;

/// The least count of a chunk that was in both of the last two sets.
const BOTH: u8 = HIT + HIT / 2;

/// Counts are compared in eight classes, so that a count more or less does not cut ranges into chunks.
const CLASS_SHIFT: u32 = 5;

/// How often each chunk of a region was in the sets of rounds.
#[derive(Debug, Clone)]
pub struct WriteFrequency {
    geometry: Geometry,
    counts: Vec<u8>,
    /// What the last two sets cover, the newer first; none before there were two.
    last: Option<Duration>,
    last_but_one: Option<Duration>,
}

/// What is to be done about the pages that are missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What is to be sent, in this order.
    pub send: Vec<ByteRange>,
    /// What is to be left for the last set, in the region's order.
    pub held: Vec<ByteRange>,
}

/// How much may be held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// How long it will take until the next set is taken.
    pub next: Duration,
    /// How many bytes may be held back: what may be sent in vain while the application is suspended.
    pub most: u64,
}

impl WriteFrequency {
    /// Nothing is known of this region yet. Takes a byte a chunk.
    pub fn new(geometry: Geometry) -> Self {
        let counts = vec![0; geometry.chunk_count() as usize];
        Self { geometry, counts, last: None, last_but_one: None }
    }

    /// A round's set has come: the ranges that were written in so much time, in any order.
    pub fn handle_round(&mut self, set: &[ByteRange], over: Duration) {
        for count in &mut self.counts {
            *count /= 2;
        }
        for range in set {
            let chunks = self.geometry.touching(*range);
            for count in &mut self.counts[chunks.start as usize..chunks.end as usize] {
                // Ranges may share a chunk, which is counted once.
                *count |= HIT;
            }
        }
        self.last_but_one = self.last.replace(over);
    }

    /// In which order the ranges that are missing are sent, and what of them is held back; nothing without
    /// `holding`. Each byte of the region that is missing is in one of both lists, once.
    pub fn plan(&self, missing: &[ByteRange], holding: Option<Holding>) -> Plan {
        let length = self.geometry.length();
        let missing = ByteRange::union(missing.iter().map(|range| range.clamp_to(length)).collect());
        let mut classes: [Vec<ByteRange>; 8] = Default::default();
        let mut likely = Vec::new();
        let holding = holding.filter(|holding| self.is_like_before(holding.next));
        for piece in missing.iter().flat_map(|range| range.split(self.geometry.chunk_size().bytes())) {
            let count = self.geometry.chunk_at(piece.start).map_or(0, |chunk| self.counts[chunk.0 as usize]);
            if holding.is_some() && count >= BOTH {
                likely.push((count, piece));
            } else {
                piece.append_to(&mut classes[usize::from(count >> CLASS_SHIFT)]);
            }
        }
        // The most often written first.
        likely.sort_by_key(|(count, piece)| (std::cmp::Reverse(*count), piece.start));
        let mut room = holding.map_or(0, |holding| holding.most);
        let (mut held, mut rest) = (Vec::new(), Vec::new());
        for (count, piece) in likely {
            if piece.len() <= room {
                room -= piece.len();
                held.push(piece);
            } else {
                rest.push((count, piece));
            }
        }
        rest.sort_by_key(|(count, piece)| (count >> CLASS_SHIFT, piece.start));
        let mut send = classes.concat();
        // All that could have been held back is in the topmost classes.
        send.extend(rest.into_iter().map(|(_, piece)| piece));
        Plan { send, held: ByteRange::union(held) }
    }

    /// Whether the last two sets say something of a time like this: not if it is much shorter than theirs.
    fn is_like_before(&self, next: Duration) -> bool {
        match (self.last, self.last_but_one) {
            (Some(last), Some(before)) => next >= last.min(before) / 2,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::ChunkSize;

    const PAGE: u64 = 4096;
    const LENGTH: u64 = 100 * PAGE + 17;
    const SECOND: Duration = Duration::from_secs(1);

    fn frequency() -> WriteFrequency {
        WriteFrequency::new(Geometry::new(LENGTH, ChunkSize::new(4 * PAGE).unwrap()))
    }

    fn pages(pages: std::ops::Range<u64>) -> ByteRange {
        ByteRange::of_pages(pages)
    }

    fn ranges() -> impl Strategy<Value = Vec<ByteRange>> {
        let range =
            (0u64..110 * PAGE, 0u64..30 * PAGE).prop_map(|(start, len)| ByteRange::new(start, start + len));
        prop::collection::vec(range, 0..8)
    }

    fn bytes(ranges: &[ByteRange]) -> Vec<ByteRange> {
        ByteRange::union(ranges.iter().copied().filter(|range| !range.is_empty()).collect())
    }

    #[test]
    fn what_is_written_often_goes_last() {
        let mut frequency = frequency();
        frequency.handle_round(&[pages(0..8), pages(40..44)], SECOND);
        frequency.handle_round(&[pages(40..44), pages(42..43), pages(60..64)], SECOND);
        let plan = frequency.plan(&[pages(0..101)], None);
        let whole = pages(0..101).clamp_to(LENGTH);
        let expected = [
            pages(8..40),
            pages(44..60),
            pages(64..101).clamp_to(LENGTH),
            pages(0..8),
            pages(60..64),
            pages(40..44),
        ];
        assert_eq!(plan, Plan { send: expected.to_vec(), held: Vec::new() });
        assert_eq!(bytes(&plan.send), [whole]);
    }

    #[test]
    fn what_will_be_written_again_is_held_back_as_far_as_that_is_allowed() {
        let mut frequency = frequency();
        let hot = pages(20..40);
        let holding = |next, most| Some(Holding { next, most });
        frequency.handle_round(&[pages(0..100)], SECOND);
        assert_eq!(frequency.plan(&[hot], holding(SECOND, u64::MAX)).held, [], "one set tells nothing");
        frequency.handle_round(&[hot, pages(80..84)], SECOND);
        let plan = frequency.plan(&[hot, pages(50..54)], holding(SECOND, u64::MAX));
        assert_eq!(plan, Plan { send: vec![pages(50..54)], held: vec![hot] });
        assert_eq!(
            frequency.plan(&[hot], holding(SECOND / 3, u64::MAX)).held,
            [],
            "the next set covers less"
        );
        let plan = frequency.plan(&[hot], holding(SECOND, 9 * PAGE));
        assert_eq!(ByteRange::total(&plan.held), 8 * PAGE);
        assert_eq!(frequency.plan(&[hot], None), Plan { send: vec![hot], held: vec![] });
        frequency.handle_round(&[], SECOND);
        assert_eq!(frequency.plan(&[hot], holding(SECOND, u64::MAX)).held, [], "it has become cold");
    }

    proptest! {
        #[test]
        fn nothing_is_left_out_and_nothing_comes_twice(
            rounds in prop::collection::vec(ranges(), 0..6), missing in ranges(),
            next in 0u64..3, most in 0u64..200 * PAGE, last: bool,
        ) {
            let mut frequency = frequency();
            for set in &rounds {
                frequency.handle_round(set, SECOND);
            }
            let holding = (!last).then_some(Holding { next: Duration::from_secs(next), most });
            let plan = frequency.plan(&missing, holding);
            let all = [plan.send.clone(), plan.held.clone()].concat();
            let wanted: Vec<ByteRange> = missing.iter().map(|range| range.clamp_to(LENGTH)).collect();
            prop_assert_eq!(bytes(&all), bytes(&wanted));
            prop_assert_eq!(ByteRange::total(&all), ByteRange::total(&bytes(&wanted)), "something comes twice");
            prop_assert!(all.iter().all(|range| !range.is_empty()));
            prop_assert!(ByteRange::total(&plan.held) <= most);
            prop_assert!(!last || plan.held.is_empty(), "something is held back in the last round");
            let count = |at: u64| frequency.counts[(at / (4 * PAGE)) as usize] >> CLASS_SHIFT;
            for pair in plan.send.windows(2) {
                prop_assert!(count(pair[0].end - 1) <= count(pair[1].start), "{} before {}", pair[0], pair[1]);
            }
        }
    }
}
