//! Hashes of a region, for those who compare it with another: asked of the store where that can give them without the
//! bytes, else computed by reading.
//!
//! A window is read once and its whole tree kept, since who compares asks for the next level soon. How many trees are
//! kept is bounded; one that is gone is computed again.
//!
//! Reads are of 64 KiB: the kernel's copy and the hash then meet in the nearest caches. With 256 KiB the copy alone
//! takes three times as long (measured: 8.5 and 2.4 GB/s).

mod window;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use pagewire_core::chunk::ByteRange;
use pagewire_core::delta::{Node, Scheme, TOP, Tree, span};

use super::region::{Pin, Region};
use crate::error::Result;
use crate::store::{HashRequest, Read, Store, wait};

/// Whose hashes are wanted.
#[derive(Clone)]
pub enum Hashed {
    /// A region's.
    Region(Arc<Region>),
    /// A store's.
    Store(Arc<dyn Store>),
}

impl Hashed {
    /// Whether the store is asked, so that the bytes need not come here.
    pub fn is_asked(&self) -> bool {
        match self {
            Hashed::Region(region) => region.can_hash(),
            Hashed::Store(store) => store.info().capabilities.hash,
        }
    }

    /// Whether the bytes come over a network.
    pub(crate) fn is_remote(&self) -> bool {
        match self {
            Hashed::Region(region) => region.can_stream(),
            Hashed::Store(store) => store.info().capabilities.stream,
        }
    }

    fn hash(&self, hash: HashRequest) {
        match self {
            Hashed::Region(region) => region.submit_hash(hash),
            Hashed::Store(store) => store.hash(hash),
        }
    }

    fn read(&self, read: Read) {
        match self {
            Hashed::Region(region) => region.read(read),
            Hashed::Store(store) => store.read(read),
        }
    }
}

impl From<&Pin> for Hashed {
    fn from(pin: &Pin) -> Self {
        Hashed::Region(pin.region().clone())
    }
}

/// The hashes of one epoch by one scheme, and the trees that were computed of late.
pub struct Hashes {
    epoch: u64,
    scheme: Scheme,
    length: u64,
    /// The oldest first.
    kept: Mutex<VecDeque<Arc<Kept>>>,
    most: usize,
}

/// A tree that is kept, or just being computed.
struct Kept {
    window: ByteRange,
    tree: Mutex<Option<Arc<Tree>>>,
}

impl Hashes {
    /// Hashes of `epoch` by `scheme`, for which what is behind `length` bytes is zeroes; keeps `most` trees of 1.1 MiB.
    pub fn new(epoch: u64, scheme: Scheme, length: u64, most: usize) -> Self {
        Self { epoch, scheme, length, kept: Mutex::default(), most }
    }

    /// The nodes of a level that stand for `ranges`, which begin and end where nodes do. `has` is how many bytes the
    /// region has; `stop` is asked now and then whether anybody still wants them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) where nobody does; whatever the store says.
    pub fn nodes(
        &self,
        of: &Hashed,
        has: u64,
        level: u8,
        ranges: &[ByteRange],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<Node>> {
        if of.is_asked() {
            let (epoch, scheme, length) = (self.epoch, self.scheme, self.length);
            let ranges = ranges.to_vec();
            return wait(|done| of.hash(HashRequest { epoch, scheme, length, level, ranges, done }));
        }
        let has = has.min(self.length);
        let mut nodes = Vec::with_capacity((ByteRange::total(ranges) / span(level)) as usize);
        for piece in ranges.iter().flat_map(|range| range.split(span(TOP))) {
            if piece.start >= has {
                nodes.extend((0..piece.len() / span(level)).map(|_| Node::ZERO));
                continue;
            }
            let window = piece.align_out(span(TOP));
            nodes.extend(self.tree(of, window, has, stop)?.nodes(level, piece));
        }
        Ok(nodes)
    }

    /// The tree of a window. Who asks for one that is just being computed waits for it.
    fn tree(&self, of: &Hashed, window: ByteRange, has: u64, stop: &dyn Fn() -> bool) -> Result<Arc<Tree>> {
        let kept = {
            let mut all = self.kept.lock().expect("no holder panics");
            match all.iter().position(|kept| kept.window == window) {
                Some(at) => {
                    let kept = all.remove(at).expect("it was just found");
                    all.push_back(kept.clone());
                    kept
                }
                None => {
                    while all.len() >= self.most.max(1) {
                        all.pop_front();
                    }
                    let kept = Arc::new(Kept { window, tree: Mutex::default() });
                    all.push_back(kept.clone());
                    kept
                }
            }
        };
        let mut tree = kept.tree.lock().expect("no holder panics");
        if let Some(tree) = &*tree {
            return Ok(tree.clone());
        }
        let made = window::leaves(of, self.epoch, window.clamp_to(has), &self.scheme, stop)?;
        let made = Arc::new(Tree::new(&self.scheme, window.start, made));
        *tree = Some(made.clone());
        Ok(made)
    }
}

#[cfg(test)]
mod tests;
