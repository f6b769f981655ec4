//! What is known of an export's holes, for a stream that is to leave them out.
//!
//! It is asked for in spans ahead of where the stream is, one at a time. An answer may be short; one that is
//! very short comes from an export that is cut into small pieces, for which asking costs more than it
//! saves: then a stretch is read without asking.

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use super::call::Extent;

/// How much is asked for at once, in bytes: its answer is about as long as a read's, in the worst case.
const SPAN: u64 = 256 << 20;

/// An answer that reaches less far than this is short.
const SHORT: u64 = 8 << 20;

/// How much is read without asking behind a short answer.
const UNASKED: u64 = 64 << 20;

/// What is known of the holes.
pub(super) struct Holes {
    length: u64,
    /// What the server takes offsets and lengths in.
    block: u64,
    /// Whether it is asked at all.
    asks: bool,
    asked: Option<ByteRange>,
    known: Vec<ByteRange>,
}

impl Holes {
    pub(super) fn new(length: u64, block: u64, asks: bool) -> Self {
        Self { length, block, asks, asked: None, known: Vec::new() }
    }

    /// Up to where it is known what is there, from `offset` on.
    fn known_until(&self, offset: u64) -> u64 {
        let known = self.known.iter().find(|known| known.start <= offset && offset < known.end);
        known.map_or(offset, |known| known.end)
    }

    /// Whether the bytes at `offset` can be read without asking first.
    pub(super) fn is_known(&self, offset: u64) -> bool {
        !self.asks || self.known_until(offset) > offset
    }

    /// What to ask for, when the stream is at `offset`.
    pub(super) fn next_span(&mut self, offset: u64) -> Option<ByteRange> {
        let from = self.known_until(offset);
        if !self.asks || self.asked.is_some() || from >= self.length || from - offset >= SPAN / 2 {
            return None;
        }
        self.asked = Some(ByteRange::new(from, from + SPAN).align_out(self.block).clamp_to(self.length));
        self.asked
    }

    /// Whether an answer is waited for.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// The answer to what was asked for; none if there is none. Gives what is zero, in whole pages.
    pub(super) fn answer(&mut self, extents: Option<&[Extent]>) -> Vec<ByteRange> {
        let Some(asked) = self.asked.take() else { return Vec::new() };
        let mut zeroes = Vec::new();
        let mut at = asked.start;
        for extent in extents.unwrap_or_default() {
            let range = ByteRange::new(at, at.saturating_add(extent.length)).clamp_to(self.length);
            if extent.is_zero {
                range.append_to(&mut zeroes);
            }
            at = range.end;
        }
        if at == asked.start {
            // Who says nothing is not asked again.
            self.asks = false;
            return Vec::new();
        }
        let is_short = at < asked.end && at - asked.start < SHORT;
        let until = if is_short { (at + UNASKED).min(self.length) } else { at };
        self.known.push(ByteRange::new(asked.start, until));
        self.known = ByteRange::union(std::mem::take(&mut self.known));
        let whole_pages = |range: ByteRange| {
            let pages = range.align_in(PAGE_SIZE);
            // The last page may be short.
            let end = if range.end == self.length { range.end } else { pages.end };
            let start = range.start.next_multiple_of(PAGE_SIZE);
            ByteRange::new(start.min(end), end)
        };
        zeroes.into_iter().map(whole_pages).filter(|range| !range.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(list: &[(u64, bool)]) -> Vec<Extent> {
        list.iter().map(|&(length, is_zero)| Extent { length, is_zero }).collect()
    }

    #[test]
    fn it_is_asked_ahead_and_one_at_a_time() {
        let mut holes = Holes::new(1 << 30, 1, true);
        assert!(!holes.is_known(0));
        assert_eq!(holes.next_span(0), Some(ByteRange::new(0, SPAN)));
        assert_eq!(holes.next_span(0), None, "it is asked already");
        let zeroes = holes.answer(Some(&extents(&[(SPAN / 4, false), (SPAN / 4, true), (SPAN, false)])));
        assert_eq!(zeroes, [ByteRange::new(SPAN / 4, SPAN / 2)]);
        assert!(
            holes.is_known(0) && holes.is_known(SPAN),
            "an answer may reach further than it was asked to"
        );
        assert_eq!(holes.next_span(SPAN / 2), None, "there is enough for now");
        let until = SPAN / 2 + SPAN;
        assert_eq!(holes.next_span(SPAN + 1), Some(ByteRange::new(until, until + SPAN)));
        holes.answer(None);
        assert!(
            holes.is_known((1 << 30) - 1) && holes.next_span(until).is_none(),
            "nothing is asked any more"
        );
    }

    #[test]
    fn zeroes_are_whole_pages_and_the_end_may_be_short() {
        let mut holes = Holes::new(5 * 4096 + 100, 1, true);
        holes.next_span(0);
        let list = extents(&[(100, true), (512, true), (4000, true), (4096, false), (u64::MAX, true)]);
        let zeroes = holes.answer(Some(&list));
        assert_eq!(zeroes, [ByteRange::new(0, 4096), ByteRange::new(3 * 4096, 5 * 4096 + 100)]);
        let mut holes = Holes::new(8192, 1, true);
        holes.next_span(0);
        assert!(holes.answer(Some(&extents(&[(1, false), (4096, true), (1, false)]))).is_empty());
    }

    #[test]
    fn where_answers_are_short_it_is_read_without_asking() {
        let mut holes = Holes::new(1 << 30, 1, true);
        holes.next_span(0);
        holes.answer(Some(&extents(&[(4096, false)])));
        assert!(holes.is_known(4096) && holes.is_known(UNASKED));
        let next = holes.next_span(4096).unwrap();
        assert_eq!(next.start, 4096 + UNASKED);
        let mut none = Holes::new(1 << 30, 1, false);
        assert!(none.is_known(77) && none.next_span(0).is_none());
    }
}
