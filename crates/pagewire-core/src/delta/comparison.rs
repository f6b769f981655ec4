//! The comparison of one window of two regions, as questions to both sides and what their answers tell.

use super::{FAN_OUT, Node, TOP, span};
use crate::chunk::ByteRange;

/// What both sides are to be asked for next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Nodes of which level.
    pub level: u8,
    /// Which nodes, by the bytes that they stand for: in order, apart from each other, and from node to node. The last
    /// may pass the region's end.
    pub ranges: Vec<ByteRange>,
}

impl Question {
    /// How many nodes answer it.
    pub fn nodes(&self) -> usize {
        (ByteRange::total(&self.ranges) / span(self.level)) as usize
    }
}

/// How two regions differ in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Difference {
    /// Each page of it differs, and neither is all zeroes.
    Bytes,
    /// The target holds zeroes and the source does not, or not everywhere.
    Fill,
    /// The source holds zeroes and the target does not, or not everywhere.
    Clear,
}

/// A range in which two regions differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Differing {
    /// The pages.
    pub range: ByteRange,
    /// How.
    pub how: Difference,
}

/// A side that has answered with another number of nodes than it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{got} hashes answer a question for {asked}")]
pub struct WrongAnswer {
    /// How many were asked for.
    pub asked: usize,
    /// How many came.
    pub got: usize,
}

/// The comparison of one window of a source with a target.
#[derive(Debug, Clone)]
pub struct Comparison {
    length: u64,
    level: u8,
    /// What is still to be compared at this level: in order, apart from each other.
    ranges: Vec<ByteRange>,
    differing: Vec<Differing>,
}

impl Comparison {
    /// The comparison of `window`, one of [`windows`](super::windows), of two regions that are to have `length` bytes.
    pub fn new(window: ByteRange, length: u64) -> Self {
        // A region that is shorter than a window needs fewer rounds.
        let covers = |level: &u8| window.start == 0 && span(*level) >= window.end;
        let level = (0..=TOP).find(covers).unwrap_or(TOP);
        let ranges = if window.is_empty() { Vec::new() } else { vec![window.align_out(span(level))] };
        Self { length, level, ranges, differing: Vec::new() }
    }

    /// What to ask both sides for; none when it is known what differs.
    pub fn question(&self) -> Option<Question> {
        (!self.ranges.is_empty()).then(|| Question { level: self.level, ranges: self.ranges.clone() })
    }

    /// The answers to the question, the source's and the target's: the nodes of each range, one range after the other.
    ///
    /// # Errors
    ///
    /// [`WrongAnswer`] where there are more or fewer than were asked for; nothing has changed then.
    pub fn answer(&mut self, source: &[Node], target: &[Node]) -> Result<(), WrongAnswer> {
        let span = span(self.level);
        let asked = (ByteRange::total(&self.ranges) / span) as usize;
        for got in [source.len(), target.len()] {
            if got != asked {
                return Err(WrongAnswer { asked, got });
            }
        }
        let ranges = std::mem::take(&mut self.ranges);
        let starts = ranges.iter().flat_map(|range| (range.start..range.end).step_by(span as usize));
        for (start, (source, target)) in starts.zip(source.iter().zip(target)) {
            let range = ByteRange::new(start, start + span);
            if source == target {
                continue;
            }
            let how = match (*source, *target) {
                (Node::ZERO, _) => Difference::Clear,
                (_, Node::ZERO) => Difference::Fill,
                _ if self.level == 0 => Difference::Bytes,
                _ => {
                    push(&mut self.ranges, range);
                    continue;
                }
            };
            let range = range.clamp_to(self.length);
            if !range.is_empty() {
                self.differing.push(Differing { range, how });
            }
        }
        if self.level > 0 {
            self.level -= 1;
            self.clamp();
        }
        Ok(())
    }

    /// What differs, in order, as far as is known by now: all of it when there is no question left.
    pub fn differing(&self) -> Vec<Differing> {
        let mut found = self.differing.clone();
        found.sort_by_key(|differing| differing.range.start);
        let mut joined: Vec<Differing> = Vec::with_capacity(found.len());
        for next in found {
            match joined.last_mut() {
                Some(last) if last.range.end == next.range.start && last.how == next.how => {
                    last.range.end = next.range.end;
                }
                _ => joined.push(next),
            }
        }
        joined
    }

    /// Leaves out nodes that stand for nothing but what is behind the end.
    fn clamp(&mut self) {
        let end = self.length.next_multiple_of(span(self.level));
        self.ranges.iter_mut().for_each(|range| *range = range.clamp_to(end));
        self.ranges.retain(|range| !range.is_empty());
        debug_assert!(self.ranges.iter().all(|range| range.len() / span(self.level) >= 1));
        debug_assert!(self.ranges.len() as u64 <= FAN_OUT.pow(u32::from(TOP)));
    }
}

fn push(ranges: &mut Vec<ByteRange>, range: ByteRange) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
