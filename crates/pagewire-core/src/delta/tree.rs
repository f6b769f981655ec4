//! The hashes of one window of a region, all levels of them.

use super::{FAN_OUT, Node, Scheme, TOP, span};
use crate::chunk::{ByteRange, PAGE_SIZE};

/// The hashes of one window: a node of the topmost level, and all that are below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    start: u64,
    /// From the pages up to the one at the top. What is behind the last of a level is zeroes.
    levels: Vec<Vec<Node>>,
}

impl Tree {
    /// The tree of the window that begins at `start`, a multiple of the topmost level's span, over the hashes of its
    /// pages. Pages behind those given are zeroes.
    ///
    /// # Panics
    ///
    /// If a window has no such beginning, or not so many pages.
    pub fn new(scheme: &Scheme, start: u64, leaves: Vec<Node>) -> Self {
        assert!(start.is_multiple_of(span(TOP)), "no window begins there");
        assert!(leaves.len() as u64 <= span(TOP) / PAGE_SIZE, "a window has fewer pages");
        let mut levels = vec![leaves];
        for level in 0..usize::from(TOP) {
            let above =
                levels[level].chunks(FAN_OUT as usize).map(|children| scheme.inner(children)).collect();
            levels.push(above);
        }
        Self { start, levels }
    }

    /// The window.
    pub fn window(&self) -> ByteRange {
        ByteRange::new(self.start, self.start + span(TOP))
    }

    /// The nodes of a level that stand for `range`, which lies within the window and begins and ends where nodes do.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn nodes(&self, level: u8, range: ByteRange) -> impl Iterator<Item = Node> + '_ {
        assert!(self.window().contains(range) && range.is_aligned(span(level)), "nodes of another range");
        let nodes = &self.levels[usize::from(level)];
        let index = move |at: u64| (at - self.start) / span(level);
        (index(range.start)..index(range.end))
            .map(move |index| nodes.get(index as usize).copied().unwrap_or(Node::ZERO))
    }
}
