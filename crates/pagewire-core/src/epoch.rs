//! Before-images: how a reader of a past epoch goes on reading what it began with.
//!
//! Each flush takes a region from one epoch to the next and replaces some ranges. As long as somebody may
//! still read an older epoch, the replaced bytes are kept: the *before-image* of the transition. The value of a
//! byte at epoch E is then the before-image of the earliest transition after E that replaced it, or, if none did,
//! what the region holds now. Memory for this is bounded: the oldest transitions are given up first, and
//! a reader of an epoch that cannot be put together any more is told [`Stale`], never given a mix.
//!
//! Where the bytes are kept (memory, a journal) is the caller's business: it hands in a handle `T`.

use std::collections::VecDeque;

use crate::chunk::ByteRange;

/// The before-images of the latest transitions between epochs.
///
/// ```
/// use pagewire_core::chunk::ByteRange;
/// use pagewire_core::epoch::{BeforeImages, Piece};
///
/// let mut images = BeforeImages::new(1);
/// let replaced = ByteRange::new(100, 200);
/// images.commit(2, vec![(replaced, "bytes 100..200 of epoch 1")], 100);
///
/// let pieces = images.lookup(1, ByteRange::new(0, 150))?;
/// let part = ByteRange::new(100, 150);
/// assert_eq!(pieces, [
///     Piece::Current(ByteRange::new(0, 100)),
///     Piece::Image { range: part, of: replaced, image: "bytes 100..200 of epoch 1" },
/// ]);
/// assert_eq!(images.lookup(2, part)?, [Piece::Current(part)]);
///
/// images.trim(0);
/// assert!(images.lookup(1, part).is_err());
/// # Ok::<(), pagewire_core::epoch::Stale>(())
/// ```
#[derive(Clone, Debug)]
pub struct BeforeImages<T> {
    /// The oldest first.
    transitions: VecDeque<Transition<T>>,
    oldest: u64,
    current: u64,
    /// The sum of the transitions' costs: wide enough for any of them.
    cost: u128,
}

#[derive(Clone, Debug)]
struct Transition<T> {
    /// The epoch that it led to.
    epoch: u64,
    /// Disjoint and in order.
    images: Vec<Image<T>>,
    cost: u64,
}

#[derive(Clone, Debug)]
struct Image<T> {
    /// What it stands for: all of `of`, but for what an image before it in the same transition covers.
    range: ByteRange,
    of: ByteRange,
    image: T,
}

/// A part of a region as it was at a past epoch, and where its bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece<T> {
    /// In a before-image.
    Image {
        /// The part.
        range: ByteRange,
        /// All that the image holds; `range` lies in it.
        of: ByteRange,
        /// The handle that was given with the image.
        image: T,
    },
    /// In the region as it is now.
    Current(ByteRange),
}

impl<T> Piece<T> {
    /// The part of the region that this is.
    pub fn range(&self) -> ByteRange {
        match self {
            Self::Image { range, .. } | Self::Current(range) => *range,
        }
    }
}

/// An epoch cannot be read: it is too old, or has not come yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("epoch {epoch} is stale: epochs {oldest} to {current} can be read")]
pub struct Stale {
    /// The epoch that was asked for.
    pub epoch: u64,
    /// The oldest epoch that can still be read.
    pub oldest: u64,
    /// The latest epoch.
    pub current: u64,
}

impl<T: Clone> BeforeImages<T> {
    /// No images yet: a region that is at epoch `current`, the only one that can be read.
    pub fn new(current: u64) -> Self {
        Self { transitions: VecDeque::new(), oldest: current, current, cost: 0 }
    }

    /// The region went on to `new_epoch`, and `images` are the ranges that this replaced, with handles for the
    /// bytes that were there before. `cost` is what keeping them takes, in the unit of [`trim`](Self::trim),
    /// usually bytes. Where images overlap, the one that starts first counts: both hold the same bytes.
    ///
    /// # Panics
    /// If `new_epoch` is not after the current one.
    pub fn commit(&mut self, new_epoch: u64, images: Vec<(ByteRange, T)>, cost: u64) {
        assert!(new_epoch > self.current, "epoch {new_epoch} does not come after {}", self.current);
        let mut images: Vec<Image<T>> =
            images.into_iter().map(|(of, image)| Image { range: of, of, image }).collect();
        images.sort_by_key(|image| image.of.start);
        let mut covered = 0;
        images.retain_mut(|image| {
            image.range.start = image.range.start.max(covered);
            covered = covered.max(image.range.end);
            !image.range.is_empty()
        });
        self.transitions.push_back(Transition { epoch: new_epoch, images, cost });
        self.current = new_epoch;
        self.cost += u128::from(cost);
    }

    /// Where the bytes of `range` as they were at `epoch` are: pieces in order that cover it exactly.
    ///
    /// # Errors
    /// [`Stale`] if the epoch is older than [`oldest`](Self::oldest), or not there yet.
    pub fn lookup(&self, epoch: u64, range: ByteRange) -> Result<Vec<Piece<T>>, Stale> {
        if epoch < self.oldest || epoch > self.current {
            return Err(Stale { epoch, oldest: self.oldest, current: self.current });
        }
        let mut pieces = Vec::new();
        // What no transition so far has replaced, in order.
        let mut open = if range.is_empty() { Vec::new() } else { vec![range] };
        let first = self.transitions.partition_point(|transition| transition.epoch <= epoch);
        for transition in self.transitions.range(first..) {
            if open.is_empty() {
                break;
            }
            open = open.into_iter().flat_map(|gap| transition.fill(gap, &mut pieces)).collect();
        }
        pieces.extend(open.into_iter().map(Piece::Current));
        pieces.sort_by_key(|piece| piece.range().start);
        Ok(pieces)
    }

    /// The oldest epoch that can still be read.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// The latest epoch: the region as it is now.
    pub fn current(&self) -> u64 {
        self.current
    }

    /// What keeping all images takes: the sum of the costs they were given with, `u64::MAX` if it is more.
    pub fn cost(&self) -> u64 {
        u64::try_from(self.cost).unwrap_or(u64::MAX)
    }

    /// Gives up the oldest transitions until the cost is `max_cost` or less; answers how many.
    pub fn trim(&mut self, max_cost: u64) -> usize {
        self.drop_while(|images, _| images.cost > u128::from(max_cost))
    }

    /// Gives up what nobody needs who reads `epoch` or a later one; answers how many transitions that was.
    pub fn release_before(&mut self, epoch: u64) -> usize {
        self.drop_while(|_, oldest| oldest.epoch <= epoch)
    }

    fn drop_while(&mut self, surplus: impl Fn(&Self, &Transition<T>) -> bool) -> usize {
        let before = self.transitions.len();
        while self.transitions.front().is_some_and(|oldest| surplus(self, oldest)) {
            if let Some(dropped) = self.transitions.pop_front() {
                self.oldest = dropped.epoch;
                self.cost -= u128::from(dropped.cost);
            }
        }
        before - self.transitions.len()
    }
}

impl<T: Clone> Transition<T> {
    /// Adds the pieces of `gap` that this transition replaced; answers the rest of it, in order.
    fn fill(&self, gap: ByteRange, pieces: &mut Vec<Piece<T>>) -> Vec<ByteRange> {
        let mut rest = Vec::new();
        let mut next = gap.start;
        let first = self.images.partition_point(|image| image.range.end <= gap.start);
        for image in self.images[first..].iter().take_while(|image| image.range.start < gap.end) {
            let range = image.range.intersect(gap);
            ByteRange::new(next, range.start).append_to(&mut rest);
            pieces.push(Piece::Image { range, of: image.of, image: image.image.clone() });
            next = range.end;
        }
        ByteRange::new(next, gap.end).append_to(&mut rest);
        rest
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    const LENGTH: u64 = 120;

    #[derive(Clone, Debug)]
    enum Op {
        Commit { skip: u64, ranges: Vec<ByteRange> },
        Trim { max_cost: u64 },
        Release { back: u64 },
    }

    fn any_range() -> impl Strategy<Value = ByteRange> {
        (0..=LENGTH, 0..=LENGTH).prop_map(|(a, b)| ByteRange::new(a.min(b), a.max(b)))
    }

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (1u64..3, prop::collection::vec((0..LENGTH, 0u64..40), 0..5)).prop_map(|(skip, ranges)| {
                let ranges = ranges.into_iter().map(|(at, len)| ByteRange::new(at, (at + len).min(LENGTH)));
                Op::Commit { skip, ranges: ranges.collect() }
            }),
            1 => (0u64..400).prop_map(|max_cost| Op::Trim { max_cost }),
            1 => (0u64..6).prop_map(|back| Op::Release { back }),
        ]
    }

    fn slice(bytes: &[u8], range: ByteRange) -> &[u8] {
        &bytes[range.start as usize..range.end as usize]
    }

    /// The bytes of `range` at `epoch`, put together as a reader does it.
    fn read(
        images: &BeforeImages<Arc<[u8]>>,
        now: &[u8],
        epoch: u64,
        range: ByteRange,
    ) -> Result<Vec<u8>, Stale> {
        let mut bytes = Vec::new();
        let mut next = range.start;
        for piece in images.lookup(epoch, range)? {
            assert_eq!(piece.range().start, next);
            assert!(!piece.range().is_empty());
            next = piece.range().end;
            match piece {
                Piece::Current(part) => bytes.extend_from_slice(slice(now, part)),
                Piece::Image { range: part, of, image } => {
                    assert!(of.contains(part));
                    let at = ByteRange::new(part.start - of.start, part.end - of.start);
                    bytes.extend_from_slice(slice(&image, at));
                }
            }
        }
        assert_eq!(next, range.end);
        Ok(bytes)
    }

    proptest! {
        #[test]
        fn every_epoch_reads_as_it_was_or_is_stale(
            ops in prop::collection::vec(any_op(), 0..16), wanted in prop::collection::vec(any_range(), 1..4),
        ) {
            let start = 5;
            let mut images = BeforeImages::new(start);
            // The whole region at each epoch from `start` on.
            let mut history: Vec<Vec<u8>> = vec![vec![0; LENGTH as usize]];
            let mut oldest = start;
            for (step, op) in ops.into_iter().enumerate() {
                let current = start + history.len() as u64 - 1;
                match op {
                    Op::Commit { skip, ranges } => {
                        let now = history[history.len() - 1].clone();
                        let cost = ranges.iter().map(|range| range.len()).sum();
                        let before = ranges.iter().map(|&range| (range, slice(&now, range).into())).collect();
                        images.commit(current + skip, before, cost);
                        // Epochs that are skipped are as the one before.
                        history.extend((1..skip).map(|_| now.clone()));
                        let mut next = now;
                        for range in ranges {
                            next[range.start as usize..range.end as usize].fill(step as u8 + 1);
                        }
                        history.push(next);
                    }
                    Op::Trim { max_cost } => {
                        let fits = images.cost() <= max_cost;
                        prop_assert_eq!(images.trim(max_cost) == 0, fits);
                        prop_assert!(images.cost() <= max_cost);
                        prop_assert!(images.oldest() >= oldest);
                        oldest = images.oldest();
                    }
                    Op::Release { back } => {
                        let epoch = current.saturating_sub(back);
                        images.release_before(epoch);
                        prop_assert!(images.oldest() <= epoch.max(oldest), "a reader of {} was cut off", epoch);
                        oldest = images.oldest();
                    }
                }
                let current = start + history.len() as u64 - 1;
                prop_assert_eq!((images.current(), images.oldest()), (current, oldest));
                for epoch in start - 1..=current + 1 {
                    for &range in &wanted {
                        let bytes = read(&images, &history[history.len() - 1], epoch, range);
                        if (oldest..=current).contains(&epoch) {
                            let then = slice(&history[(epoch - start) as usize], range).to_vec();
                            prop_assert_eq!(bytes, Ok(then), "epoch {}", epoch);
                        } else {
                            prop_assert_eq!(bytes, Err(Stale { epoch, oldest, current }));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn releasing_keeps_exactly_what_a_reader_needs() {
        let mut images = BeforeImages::new(0);
        for epoch in 1..=4 {
            images.commit(epoch, vec![(ByteRange::new(0, 10), epoch)], 10);
        }
        assert_eq!(images.release_before(2), 2);
        assert_eq!((images.oldest(), images.cost()), (2, 20));
        assert_eq!(images.release_before(1), 0);
        assert_eq!(images.trim(19), 1);
        assert_eq!((images.oldest(), images.cost()), (3, 10));
    }

    #[test]
    fn stale_says_what_can_be_read() {
        let mut images = BeforeImages::<()>::new(3);
        images.commit(4, Vec::new(), 0);
        let stale = images.lookup(9, ByteRange::new(0, 1)).expect_err("not there yet");
        assert_eq!(stale.to_string(), "epoch 9 is stale: epochs 3 to 4 can be read");
    }
}
