//! Metadata contexts: what BLOCK_STATUS can tell of a region.
//!
//! | context | what its flags say |
//! | --- | --- |
//! | `base:allocation` | which bytes are zeroes that take no room |
//! | `qemu:dirty-bitmap:unflushed` | 1: written through this export, and not flushed |
//! | `qemu:dirty-bitmap:since-EPOCH` | 1: not the same as at that epoch, or not known to be |
//!
//! The names are those of qemu's dirty bitmaps, which clients know how to read. An epoch is chosen by whoever
//! asks: a backup asks for what has changed since the last one.

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::nbd::AllocationState;

use super::attachment::Attachment;

/// Where qemu's clients look for bitmaps.
const BITMAP: &str = "qemu:dirty-bitmap:";

const ALLOCATION: &str = "base:allocation";
const UNFLUSHED: &str = "qemu:dirty-bitmap:unflushed";

/// In a dirty bitmap: the extent is dirty.
const DIRTY: u64 = 1;

/// The most bytes that are looked at for one request: more would take long to look at.
const LONGEST: u64 = 4 << 30;

/// What a metadata context tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    Allocation,
    Unflushed,
    Since(u64),
}

impl Context {
    /// The context of this name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            ALLOCATION => Some(Context::Allocation),
            UNFLUSHED => Some(Context::Unflushed),
            _ => {
                let epoch = name.strip_prefix(BITMAP)?.strip_prefix("since-")?;
                let is_plain = epoch == "0" || !epoch.starts_with(['0', '+']);
                epoch.parse().ok().filter(|_| is_plain).map(Context::Since)
            }
        }
    }

    /// The names of the contexts that a query finds, or of all without one.
    pub(super) fn find(query: Option<&str>, listing: bool) -> Vec<String> {
        let all = [ALLOCATION, UNFLUSHED];
        let names: Vec<&str> = match query {
            None => all.into(),
            // Whatever stands behind the colon of a namespace, or of what qemu has for one.
            Some(query @ ("base:" | "qemu:" | BITMAP)) if listing => {
                all.into_iter().filter(|name| name.starts_with(query)).collect()
            }
            Some(query) => Self::parse(query).map(|_| query).into_iter().collect(),
        };
        names.into_iter().map(String::from).collect()
    }
}

/// An extent, and what a context says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) length: u64,
    pub(super) flags: u64,
}

impl Attachment {
    /// What `context` says of `range`, which is not empty, from its start on: `most` extents at most, and one at
    /// least. They need not reach its end.
    pub(super) fn status(&self, context: Context, range: ByteRange, most: usize) -> Vec<Extent> {
        let range = range.clamp_to(range.start.saturating_add(LONGEST));
        let (marked, flags) = match context {
            Context::Allocation => {
                let holes = self.region().holes(range, self.epoch()).unwrap_or_default();
                // What is no whole page is not worth a request of its own.
                let whole = |hole: ByteRange| {
                    let end = if hole.end == range.end { hole.end } else { hole.end / PAGE_SIZE * PAGE_SIZE };
                    let start =
                        if hole.start == range.start { hole.start } else { hole.align_in(PAGE_SIZE).start };
                    (start < end).then(|| ByteRange::new(start, end))
                };
                let flags = AllocationState::HOLE.with(AllocationState::ZERO).0;
                (holes.into_iter().filter_map(whole).collect(), u64::from(flags))
            }
            Context::Unflushed => (self.unflushed(range, most), DIRTY),
            Context::Since(epoch) => {
                let changed = match self.region().changes(epoch) {
                    Some(changed) => ByteRange::union([changed, self.unflushed(range, most)].concat()),
                    // Too old: nothing is known to be the same.
                    None => vec![range],
                };
                (changed, DIRTY)
            }
        };
        extents(range, &marked, flags, most)
    }
}

/// Cuts `range` where one of `marked` begins or ends, which are in order; these have `flags`, the others
/// none.
fn extents(range: ByteRange, marked: &[ByteRange], flags: u64, most: usize) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut push = |length: u64, flags: u64| {
        if length == 0 {
            return true;
        }
        if let Some(last) = extents.last_mut().filter(|last| last.flags == flags) {
            last.length += length;
            return true;
        }
        let is_room = extents.len() < most;
        if is_room {
            extents.push(Extent { length, flags });
        }
        is_room
    };
    let mut at = range.start;
    for mark in marked.iter().map(|mark| mark.intersect(range)).filter(|mark| !mark.is_empty()) {
        if !push(mark.start - at, 0) || !push(mark.len(), flags) {
            return extents;
        }
        at = mark.end;
    }
    push(range.end - at, 0);
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_found() {
        assert_eq!(Context::parse("base:allocation"), Some(Context::Allocation));
        assert_eq!(Context::parse("qemu:dirty-bitmap:unflushed"), Some(Context::Unflushed));
        assert_eq!(Context::parse("qemu:dirty-bitmap:since-17"), Some(Context::Since(17)));
        for wrong in ["base:", "base:other", "qemu:dirty-bitmap:", "qemu:dirty-bitmap:since-", "x:y"] {
            assert_eq!(Context::parse(wrong), None, "{wrong}");
        }
        for wrong in ["since-x", "since-+1", "since-01", "since--1", "since-99999999999999999999"] {
            assert_eq!(Context::parse(&format!("{BITMAP}{wrong}")), None, "{wrong}");
        }
        assert_eq!(Context::find(None, true).len(), 2);
        assert_eq!(Context::find(Some("base:"), true), ["base:allocation"]);
        assert_eq!(Context::find(Some("qemu:dirty-bitmap:"), true), [UNFLUSHED]);
        assert!(Context::find(Some("qemu:dirty-bitmap:"), false).is_empty(), "a pattern selects nothing");
        assert_eq!(Context::find(Some("qemu:dirty-bitmap:since-3"), false), ["qemu:dirty-bitmap:since-3"]);
        assert!(Context::find(Some("other:thing"), true).is_empty());
    }

    #[test]
    fn extents_cover_the_range_from_its_start() {
        let range = ByteRange::new(10, 100);
        let mark = ByteRange::new;
        let lengths = |marked: &[ByteRange], most| -> Vec<(u64, u64)> {
            extents(range, marked, 1, most).iter().map(|extent| (extent.length, extent.flags)).collect()
        };
        assert_eq!(lengths(&[], 9), [(90, 0)]);
        assert_eq!(lengths(&[mark(0, 200)], 9), [(90, 1)]);
        assert_eq!(lengths(&[mark(0, 20), mark(30, 40)], 9), [(10, 1), (10, 0), (10, 1), (60, 0)]);
        assert_eq!(lengths(&[mark(0, 20), mark(30, 40)], 2), [(10, 1), (10, 0)]);
        assert_eq!(
            lengths(&[mark(20, 30), mark(30, 40), mark(90, 100)], 9),
            [(10, 0), (20, 1), (50, 0), (10, 1)]
        );
        assert_eq!(lengths(&[mark(20, 30)], 1), [(10, 0)]);
    }
}
