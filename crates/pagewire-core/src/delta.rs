//! What differs between two regions that nobody wants to carry to one place: hashes of fixed blocks, in a tree.
//!
//! A region is hashed page by page; 16 hashes make one of the next level, up to 256 MiB. Two regions whose
//! topmost hashes are equal are equal there, and that is all that has to travel: 16 bytes for 256 MiB. Where they
//! are not, their children are compared, and so on down to the pages. [`Comparison`] says what to ask both sides
//! for and learns from the answers; [`Tree`] gives the answers of one side; neither knows where the other is.
//!
//! A region is taken to go on with zeroes for ever behind its end, so regions of different lengths compare, and
//! a length that is no multiple of a page is no case of its own. Zeroes have a hash of their own,
//! [`Node::ZERO`], on every level: holes are told without being read, and a side that has zeroes where the
//! other has not is not asked any further.
//!
//! # Why 16
//!
//! If one page in a hundred has changed, at random, then most spans of 256 pages hold a change, and a tree of
//! that fan-out would give all hashes of pages away: 4 MiB for a region of 1 GiB. With 16, one span in seven
//! does; that costs 0.9 MB in all, where the changes are 10.7 MB. With 4 it would be as much again, in twice as
//! many round trips.
//!
//! # Whole hashes
//!
//! Hashes of 16 bytes travel whole. Half of that would save 4 % of the bytes in this case, and for that every
//! equality would have to be proven by the level above it.

mod comparison;
mod tree;

pub use comparison::{Comparison, Difference, Differing, Question, WrongAnswer};
pub use tree::Tree;

use twox_hash::XxHash3_128;

use crate::chunk::{ByteRange, PAGE_SIZE};

/// How many nodes make one of the next level.
pub const FAN_OUT: u64 = 16;

/// The topmost level: a node stands for 256 MiB. So a side keeps no more than 1.1 MiB of hashes for each piece
/// that is compared at once, however long the region is.
pub const TOP: u8 = 4;

/// How many bytes of a region a node of this level stands for; the pages are level 0.
///
/// # Panics
///
/// If there is no such level.
pub const fn span(level: u8) -> u64 {
    assert!(level <= TOP, "no such level");
    PAGE_SIZE << (4 * level as u32)
}

/// The hash of a span of a region: 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node(pub [u8; 16]);

impl Node {
    /// That of zeroes, on every level and by every algorithm.
    pub const ZERO: Self = Self([0; 16]);

    /// How many bytes a node takes.
    pub const LEN: usize = 16;

    /// What an algorithm has made of bytes that are not all zeroes.
    fn of_bytes(hash: [u8; 16]) -> Self {
        // Were it that of zeroes by chance, they would be taken for zeroes.
        if hash == [0; 16] { Self([0xff; 16]) } else { Self(hash) }
    }
}

/// How hashes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// XXH3 of 128 bits: as fast as memory. It finds every change but one in 2^128 that comes about by itself;
    /// it is not made to withstand somebody who looks for two pages with the same hash.
    Xxh3,
    /// BLAKE3 with a key, cut to 128 bits: a tenth of that speed. Who does not know the key finds no two
    /// pages with the same hash by any means that is better than chance.
    Blake3,
}

/// How the hashes of one comparison are made. The key is chosen at random for each, so that nobody who writes to
/// a region can know beforehand which pages will have the same hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheme {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The key.
    pub key: [u8; 16],
}

impl Scheme {
    /// The hash of a page. One that ends early is that with zeroes behind it.
    ///
    /// # Panics
    ///
    /// If there are more bytes than a page has.
    pub fn leaf(&self, bytes: &[u8]) -> Node {
        if is_zero(bytes) {
            return Node::ZERO;
        }
        if bytes.len() == PAGE_SIZE as usize {
            return self.hash(bytes);
        }
        let mut page = [0; PAGE_SIZE as usize];
        page[..bytes.len()].copy_from_slice(bytes);
        self.hash(&page)
    }

    /// The hash above up to 16 others; those that are not there are zeroes.
    ///
    /// # Panics
    ///
    /// If there are more.
    pub fn inner(&self, children: &[Node]) -> Node {
        if children.iter().all(|child| *child == Node::ZERO) {
            return Node::ZERO;
        }
        let mut bytes = [0; Node::LEN * FAN_OUT as usize];
        for (place, child) in bytes.chunks_exact_mut(Node::LEN).zip(children) {
            place.copy_from_slice(&child.0);
        }
        assert!(children.len() <= FAN_OUT as usize, "no node has so many children");
        self.hash(&bytes)
    }

    /// Pages and inner nodes have different lengths, so that none of one sort stands for one of the other.
    fn hash(&self, bytes: &[u8]) -> Node {
        Node::of_bytes(match self.algorithm {
            Algorithm::Xxh3 => {
                let key = u128::from_le_bytes(self.key);
                XxHash3_128::oneshot_with_seed((key as u64) ^ ((key >> 64) as u64), bytes).to_le_bytes()
            }
            Algorithm::Blake3 => {
                let mut key = [0; blake3::KEY_LEN];
                key[..16].copy_from_slice(&self.key);
                let hash = blake3::keyed_hash(&key, bytes);
                let mut cut = [0; 16];
                cut.copy_from_slice(&hash.as_bytes()[..16]);
                cut
            }
        })
    }
}

/// The pieces that a region of `length` bytes is compared in: one node of the topmost level each.
pub fn windows(length: u64) -> impl Iterator<Item = ByteRange> {
    (0..length.div_ceil(span(TOP))).map(move |index| {
        let start = index * span(TOP);
        ByteRange::new(start, start + span(TOP)).clamp_to(length)
    })
}

/// One hash for a whole region, from those of its pages: two regions of one length that have the same are equal.
pub fn root(scheme: &Scheme, leaves: &[Node]) -> Node {
    let windows = leaves.chunks((span(TOP) / PAGE_SIZE) as usize).zip((0..).step_by(span(TOP) as usize));
    windows.fold(Node::ZERO, |root, (leaves, start)| {
        let tree = Tree::new(scheme, start, leaves.to_vec());
        tree.nodes(TOP, tree.window()).fold(root, |root, top| scheme.inner(&[root, top]))
    })
}

fn is_zero(bytes: &[u8]) -> bool {
    // Each is like the one before it, and the first is zero: `memcmp` finds that out at the speed of memory.
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && bytes[..rest.len()] == *rest,
    }
}

#[cfg(test)]
mod tests;
