//! A set shared between threads without a lock.
//!
//! # Orderings
//!
//! A mark stands for bytes: "this chunk is filled", "this page was written". Whoever sees the mark must see
//! the bytes. So adding and removing a member is a read-modify-write with `AcqRel` on the member's word, also
//! when it changes nothing, and looking is a load with `Acquire`.
//!
//! # Summary
//!
//! A dirty set is mostly empty and large, so a search must skip what is empty. A summary of one *bit* per
//! word would have to be cleared by whoever removes the last member of the word, and that race has no good
//! end: an insertion between "the word is empty" and "clear its bit" would be lost to every search until the
//! remover has looked again. The summary here is a *counter* per group of words instead, raised before a bit
//! is set and lowered after a bit was cleared. A counter is thus never below the number of members in its
//! group: a search that reads zero skips a group that was empty, and a search that reads too much only looks
//! in vain. The counters need no ordering of their own. Every lowering is for one earlier raise and happens
//! after it, since the remover acquired the word that the inserter released; and modifications of one counter
//! have one order. So a zero that is read after an insertion means that this member was removed again.

use std::fmt;
use std::ops::Range;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use super::{BitSet, WORD_BITS, locate, locate_range, words_for};

/// A set of numbers below a fixed length that any thread may change at any time.
///
/// An insertion that has returned is found by every later search, and taken by exactly one
/// [`take_all`](Self::take_all) or removal, whatever happens at the same time.
///
/// ```
/// use pagewire_core::bitmap::AtomicBitSet;
///
/// let dirty = AtomicBitSet::new(1 << 20);
/// dirty.insert_range(10..12);
/// let taken = dirty.take_all();
/// assert_eq!(taken.iter().collect::<Vec<_>>(), [10, 11]);
/// assert_eq!(dirty.count(), 0);
/// dirty.put_back(&taken);
/// assert_eq!(dirty.next_member(0), Some(10));
/// ```
///
/// Methods that take members panic when one is not below the length; see the [module](super).
pub struct AtomicBitSet {
    /// Bits at and above `len` are always clear.
    words: Vec<AtomicU64>,
    /// For each `GROUP` words: at least the number of members in them.
    summary: Vec<AtomicU64>,
    /// Members, up to operations under way: changed after the bit was. Removing a member that is not counted
    /// yet takes it below zero for a moment, so it is read as a signed number.
    count: AtomicU64,
    len: u64,
}

/// Words per counter of the summary: 4096 members, so that the summary costs 1.6 % of the set and the search
/// of an empty set of 2^28 members (1 TiB in pages) reads 512 KiB.
const GROUP: usize = 64;

impl AtomicBitSet {
    /// An empty set of numbers below `len`.
    pub fn new(len: u64) -> Self {
        let words = words_for(len);
        let zeroes = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self { words: zeroes(words), summary: zeroes(words.div_ceil(GROUP)), count: AtomicU64::new(0), len }
    }

    /// The length: members are below it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Members, in constant time: exact when nothing is under way, otherwise off by at most what is.
    pub fn count(&self) -> u64 {
        let count = self.count.load(Ordering::Acquire).cast_signed();
        count.max(0).cast_unsigned().min(self.len)
    }

    /// Whether there is no member, by a search: a member whose insertion has returned is never missed.
    pub fn is_empty(&self) -> bool {
        self.next_member(0).is_none()
    }

    /// Whether every number below the length is a member.
    ///
    /// Constant time while it is false. The count alone can mislead while members are removed at the same
    /// time, so a full count is confirmed by a look at every word: true means that each number was seen as a
    /// member during the call.
    pub fn is_full(&self) -> bool {
        self.count() == self.len && self.next_gap(0).is_none()
    }

    /// Whether `index` is a member. What happened before its insertion is visible to the caller.
    #[track_caller]
    pub fn contains(&self, index: u64) -> bool {
        let (word, bit) = locate(index, self.len);
        self.words[word].load(Ordering::Acquire) & bit != 0
    }

    /// Adds a member; true if it was not one. Of several threads that add the same one, one is told true.
    #[track_caller]
    pub fn insert(&self, index: u64) -> bool {
        let (word, bit) = locate(index, self.len);
        self.set_bits(word, bit) == 1
    }

    /// Removes a member; true if it was one. Of several threads that remove the same one, one is told true.
    #[track_caller]
    pub fn remove(&self, index: u64) -> bool {
        let (word, bit) = locate(index, self.len);
        self.clear_bits(word, bit) != 0
    }

    /// Adds all numbers of the range, word by word; answers how many were no members before.
    #[track_caller]
    pub fn insert_range(&self, range: Range<u64>) -> u64 {
        locate_range(range, self.len).map(|(word, mask)| self.set_bits(word, mask)).sum()
    }

    /// Removes all numbers of the range, word by word; answers how many were members.
    #[track_caller]
    pub fn remove_range(&self, range: Range<u64>) -> u64 {
        locate_range(range, self.len).map(|(word, mask)| ones(self.clear_bits(word, mask))).sum()
    }

    /// The first member at or after `from`.
    pub fn next_member(&self, from: u64) -> Option<u64> {
        if from >= self.len {
            return None;
        }
        let mut word = (from / WORD_BITS) as usize;
        let mut mask = u64::MAX << (from % WORD_BITS);
        while word < self.words.len() {
            if self.group_is_empty(word / GROUP) {
                word = (word / GROUP + 1) * GROUP;
            } else {
                let bits = self.words[word].load(Ordering::Acquire) & mask;
                if bits != 0 {
                    return Some(first_of(word, bits));
                }
                word += 1;
            }
            mask = u64::MAX;
        }
        None
    }

    /// The first number at or after `from`, below the length, that is no member.
    pub fn next_gap(&self, from: u64) -> Option<u64> {
        let first = (from / WORD_BITS) as usize;
        let mut mask = u64::MAX << (from % WORD_BITS);
        for (word, bits) in self.words.iter().enumerate().skip(first) {
            let gaps = !bits.load(Ordering::Acquire) & mask;
            if gaps != 0 {
                return Some(first_of(word, gaps)).filter(|&index| index < self.len);
            }
            mask = u64::MAX;
        }
        None
    }

    /// Removes all members and answers them, each word in one step: a member that is added at the same time is
    /// in the answer or stays in the set.
    pub fn take_all(&self) -> BitSet {
        self.collect(|word| {
            if self.words[word].load(Ordering::Relaxed) == 0 { 0 } else { self.clear_bits(word, u64::MAX) }
        })
    }

    /// The members as they are now, each word at its own moment.
    pub fn snapshot(&self) -> BitSet {
        self.collect(|word| self.words[word].load(Ordering::Acquire))
    }

    /// Adds the members of `set`, as after a failed push of what was taken.
    ///
    /// # Panics
    /// If its length is not that of this set.
    #[track_caller]
    pub fn put_back(&self, set: &BitSet) {
        assert_eq!(self.len, set.len(), "sets of different lengths");
        for (word, &bits) in set.words().iter().enumerate().filter(|(_, bits)| **bits != 0) {
            self.set_bits(word, bits);
        }
    }

    /// Sets bits of a word; answers how many were clear.
    fn set_bits(&self, word: usize, mask: u64) -> u64 {
        // The summary first: from here on searches look into the group. The release of the word below keeps
        // this before it.
        let group = &self.summary[word / GROUP];
        group.fetch_add(ones(mask), Ordering::Relaxed);
        let already = ones(self.words[word].fetch_or(mask, Ordering::AcqRel) & mask);
        if already > 0 {
            group.fetch_sub(already, Ordering::Relaxed);
        }
        let added = ones(mask) - already;
        if added > 0 {
            self.count.fetch_add(added, Ordering::AcqRel);
        }
        added
    }

    /// Clears bits of a word; answers those that were set.
    fn clear_bits(&self, word: usize, mask: u64) -> u64 {
        let removed = self.words[word].fetch_and(!mask, Ordering::AcqRel) & mask;
        if removed != 0 {
            // The summary last; the acquire of the word keeps this after it.
            self.summary[word / GROUP].fetch_sub(ones(removed), Ordering::Relaxed);
            self.count.fetch_sub(ones(removed), Ordering::AcqRel);
        }
        removed
    }

    fn group_is_empty(&self, group: usize) -> bool {
        self.summary[group].load(Ordering::Relaxed) == 0
    }

    /// The set of the words that `read` gives, which is asked only about groups that may have members.
    fn collect(&self, read: impl Fn(usize) -> u64) -> BitSet {
        let mut words = vec![0; self.words.len()];
        for (group, chunk) in
            words.chunks_mut(GROUP).enumerate().filter(|(group, _)| !self.group_is_empty(*group))
        {
            for (offset, word) in chunk.iter_mut().enumerate() {
                *word = read(group * GROUP + offset);
            }
        }
        BitSet::from_words(words, self.len)
    }
}

impl fmt::Debug for AtomicBitSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

fn ones(word: u64) -> u64 {
    u64::from(word.count_ones())
}

fn first_of(word: usize, bits: u64) -> u64 {
    word as u64 * WORD_BITS + u64::from(bits.trailing_zeros())
}

#[cfg(all(test, not(loom)))]
#[path = "atomic_tests.rs"]
mod tests;

#[cfg(all(test, loom))]
#[path = "atomic_loom.rs"]
mod loom_tests;
