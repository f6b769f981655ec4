//! A set with one owner.

use std::fmt;
use std::ops::Range;

use super::{WORD_BITS, locate, locate_range, words_for};

/// A set of numbers below a fixed length, with the number of its members at hand.
///
/// ```
/// use pagewire_core::bitmap::BitSet;
///
/// let mut present = BitSet::new(100);
/// assert_eq!(present.insert_range(10..20), 10);
/// assert!(!present.insert(12));
/// assert_eq!(present.gaps().collect::<Vec<_>>(), [0..10, 20..100]);
/// assert_eq!(present.take_run(0, 4), Some(10..14));
/// assert_eq!(present.count(), 6);
/// ```
///
/// Methods that take members panic when one is not below the length; see the [module](super).
#[derive(Clone, PartialEq, Eq)]
pub struct BitSet {
    /// Bits at and above `len` are always clear.
    words: Vec<u64>,
    len: u64,
    count: u64,
}

impl BitSet {
    /// An empty set of numbers below `len`.
    pub fn new(len: u64) -> Self {
        Self { words: vec![0; words_for(len)], len, count: 0 }
    }

    /// The set of all numbers below `len`.
    pub fn full(len: u64) -> Self {
        let mut set = Self::new(len);
        set.insert_range(0..len);
        set
    }

    pub(super) fn from_words(words: Vec<u64>, len: u64) -> Self {
        let count = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Self { words, len, count }
    }

    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    /// The length: members are below it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Members. Takes constant time.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether every number below the length is a member.
    pub fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// Whether `index` is a member.
    #[track_caller]
    pub fn contains(&self, index: u64) -> bool {
        let (word, bit) = locate(index, self.len);
        self.words[word] & bit != 0
    }

    /// Members in the range.
    #[track_caller]
    pub fn count_range(&self, range: Range<u64>) -> u64 {
        locate_range(range, self.len).map(|(word, mask)| ones(self.words[word] & mask)).sum()
    }

    /// Adds a member; true if it was not one.
    #[track_caller]
    pub fn insert(&mut self, index: u64) -> bool {
        let (word, bit) = locate(index, self.len);
        let added = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(added);
        added
    }

    /// Removes a member; true if it was one.
    #[track_caller]
    pub fn remove(&mut self, index: u64) -> bool {
        let (word, bit) = locate(index, self.len);
        let removed = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        self.count -= u64::from(removed);
        removed
    }

    /// Adds all numbers of the range; answers how many were no members before.
    #[track_caller]
    pub fn insert_range(&mut self, range: Range<u64>) -> u64 {
        let mut added = 0;
        for (word, mask) in locate_range(range, self.len) {
            added += ones(mask & !self.words[word]);
            self.words[word] |= mask;
        }
        self.count += added;
        added
    }

    /// Removes all numbers of the range; answers how many were members.
    #[track_caller]
    pub fn remove_range(&mut self, range: Range<u64>) -> u64 {
        let mut removed = 0;
        for (word, mask) in locate_range(range, self.len) {
            removed += ones(mask & self.words[word]);
            self.words[word] &= !mask;
        }
        self.count -= removed;
        removed
    }

    /// Adds all members of another set of the same length; answers how many were none of this one before.
    ///
    /// # Panics
    /// If the lengths differ.
    #[track_caller]
    pub fn insert_all(&mut self, other: &Self) -> u64 {
        assert_eq!(self.len, other.len, "sets of different lengths");
        let before = self.count;
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            self.count += ones(more & !*word);
            *word |= more;
        }
        self.count - before
    }

    /// Removes all members.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.count = 0;
    }

    /// The first member at or after `from`.
    pub fn next_member(&self, from: u64) -> Option<u64> {
        if self.count == 0 { None } else { self.search(from, |word| word) }
    }

    /// The first number at or after `from`, below the length, that is no member.
    pub fn next_gap(&self, from: u64) -> Option<u64> {
        self.search(from, |word| !word).filter(|&index| index < self.len)
    }

    /// The members in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.runs().flatten()
    }

    /// The runs of consecutive members, in order, each as long as can be.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next_member(from)?;
            from = self.next_gap(start).unwrap_or(self.len);
            Some(start..from)
        })
    }

    /// The runs of consecutive numbers that are no members, in order, each as long as can be.
    pub fn gaps(&self) -> impl Iterator<Item = Range<u64>> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next_gap(from)?;
            from = self.next_member(start).unwrap_or(self.len);
            Some(start..from)
        })
    }

    /// Removes and answers the first run of members at or after `from`, or its first `max` members if it is
    /// longer. `None` if there is no member, or `max` is 0.
    pub fn take_run(&mut self, from: u64, max: u64) -> Option<Range<u64>> {
        let start = self.next_member(from).filter(|_| max > 0)?;
        let end = self.next_gap(start).unwrap_or(self.len).min(start.saturating_add(max));
        self.remove_range(start..end);
        Some(start..end)
    }

    /// The first bit at or after `from` that is set in the words as `view` shows them.
    fn search(&self, from: u64, view: impl Fn(u64) -> u64) -> Option<u64> {
        if from >= self.len {
            return None;
        }
        let first = (from / WORD_BITS) as usize;
        let mut bits = view(self.words[first]) & (u64::MAX << (from % WORD_BITS));
        let mut word = first;
        while bits == 0 {
            word += 1;
            bits = view(*self.words.get(word)?);
        }
        Some(word as u64 * WORD_BITS + u64::from(bits.trailing_zeros()))
    }
}

impl fmt::Debug for BitSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} ", self.count, self.len)?;
        f.debug_list().entries(self.runs()).finish()
    }
}

fn ones(word: u64) -> u64 {
    u64::from(word.count_ones())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64),
        Remove(u64),
        InsertRange(u64, u64),
        RemoveRange(u64, u64),
        TakeRun(u64, u64),
        Clear,
    }

    fn any_op(len: u64) -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0..len).prop_map(Op::Insert),
            4 => (0..len).prop_map(Op::Remove),
            4 => (0..=len, 0..=len).prop_map(|(a, b)| Op::InsertRange(a.min(b), a.max(b))),
            3 => (0..=len, 0..=len).prop_map(|(a, b)| Op::RemoveRange(a.min(b), a.max(b))),
            3 => (0..len + 5, 0..len).prop_map(|(from, max)| Op::TakeRun(from, max)),
            1 => Just(Op::Clear),
        ]
    }

    fn any_case() -> impl Strategy<Value = (u64, Vec<Op>)> {
        (1u64..300).prop_flat_map(|len| (Just(len), prop::collection::vec(any_op(len), 0..24)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn agrees_with_an_ordered_set((len, ops) in any_case()) {
            let mut set = BitSet::new(len);
            let mut model = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Insert(i) => prop_assert_eq!(set.insert(i), model.insert(i)),
                    Op::Remove(i) => prop_assert_eq!(set.remove(i), model.remove(&i)),
                    Op::InsertRange(a, b) => {
                        let added = (a..b).filter(|&i| model.insert(i)).count() as u64;
                        prop_assert_eq!(set.insert_range(a..b), added);
                    }
                    Op::RemoveRange(a, b) => {
                        prop_assert_eq!(set.count_range(a..b), model.range(a..b).count() as u64);
                        let removed = (a..b).filter(|i| model.remove(i)).count() as u64;
                        prop_assert_eq!(set.remove_range(a..b), removed);
                    }
                    Op::TakeRun(from, max) => {
                        let first = model.range(from..).next().copied().filter(|_| max > 0);
                        let expected = first.map(|first| {
                            let mut end = first;
                            while end - first < max && model.remove(&end) {
                                end += 1;
                            }
                            first..end
                        });
                        prop_assert_eq!(set.take_run(from, max), expected);
                    }
                    Op::Clear => {
                        set.clear();
                        model.clear();
                    }
                }
                prop_assert_eq!(set.count(), model.len() as u64);
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
            for from in 0..len + 2 {
                prop_assert_eq!(set.next_member(from), model.range(from..).next().copied());
                prop_assert_eq!(set.next_gap(from), (from..len).find(|i| !model.contains(i)));
            }
            let mut covered = BitSet::new(len);
            for run in set.runs() {
                prop_assert_eq!(covered.insert_range(run.clone()), set.count_range(run.clone()));
                prop_assert!(run.start == 0 || !set.contains(run.start - 1));
                prop_assert!(run.end == len || !set.contains(run.end));
            }
            prop_assert_eq!(&covered, &set);
            for gap in set.gaps() {
                prop_assert_eq!(covered.insert_range(gap.clone()), gap.end - gap.start);
            }
            prop_assert!(covered.is_full());
        }
    }

    #[test]
    fn full_and_empty_sets() {
        for len in [0, 1, 63, 64, 65, 128, 1000] {
            let full = BitSet::full(len);
            assert!(full.is_full());
            assert_eq!((full.count(), full.next_gap(0)), (len, None));
            assert_eq!(BitSet::new(len).next_member(0), None);
        }
    }

    #[test]
    fn a_union_counts_what_is_new() {
        let mut set = BitSet::new(200);
        set.insert_range(0..70);
        let mut other = BitSet::new(200);
        other.insert_range(60..80);
        assert_eq!(set.insert_all(&other), 10);
        assert_eq!(set.runs().collect::<Vec<_>>(), vec![0..80]);
    }

    #[test]
    #[should_panic(expected = "index 64 is outside a set of 64")]
    fn an_index_past_the_end_is_a_bug() {
        BitSet::new(64).insert(64);
    }

    #[test]
    #[should_panic(expected = "range 60..65 is outside a set of 64")]
    fn a_range_past_the_end_is_a_bug() {
        BitSet::new(64).insert_range(60..65);
    }
}
