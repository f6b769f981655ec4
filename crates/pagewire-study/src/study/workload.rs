//! What applications do, and what the bytes are that they do it with: pure, and the same in every run with the same seed.

use super::plan::shuffle;
use super::record::Pattern;
use crate::scatter::{fill, split_mix};

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;

/// The page that tells how long changes take: patterns that write leave it alone.
pub(super) const PROBE: u64 = 0;

/// How many pages are touched at random, or used by the mixed pattern: enough for a 99th percentile.
const TOUCHES: usize = 1024;

/// How many times pages are used by the pattern with a hot set.
const HOT_TOUCHES: usize = 8192;

/// One in so many pages is hot.
const HOT_SHARE: u64 = 16;

/// Of ten uses, how many are of hot pages.
const HOT_OF_TEN: u64 = 9;

/// One thing that an application does with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Reads all of it.
    Read(u64),
    /// Writes all of it: the content of this version.
    Write(u64, u32),
}

impl Operation {
    /// Which page.
    pub(super) fn page(self) -> u64 {
        match self {
            Self::Read(page) | Self::Write(page, _) => page,
        }
    }
}

/// What an application does.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Work {
    /// What it does, in order.
    pub(super) operations: Vec<Operation>,
    /// How many it does in a second; none is as fast as it can.
    pub(super) per_second: Option<f64>,
    /// Whether all of it has to be done: what stops by itself when its time is over is done as well.
    pub(super) whole: bool,
}

/// The work of a pattern on a region of so many pages. `seconds` is how long a steady rate lasts, `share` how many
/// per cent of the region are written in each of them.
pub(super) fn work(pattern: Pattern, pages: u64, share: Option<f64>, seconds: f64, seed: u64) -> Work {
    let mut state = seed;
    let (mut per_second, mut whole) = (None, false);
    let operations = match pattern {
        Pattern::InOrder => {
            whole = true;
            (0..pages).map(Operation::Read).collect()
        }
        Pattern::Random => {
            let mut order = others(pages, &mut state);
            order.truncate(TOUCHES);
            order.into_iter().map(Operation::Read).collect()
        }
        Pattern::HotSet => {
            let order = others(pages, &mut state);
            let (hot, cold) = order.split_at(((pages / HOT_SHARE) as usize).clamp(1, order.len()));
            let mut next = || {
                let is_hot = split_mix(&mut state) % 10 < HOT_OF_TEN || cold.is_empty();
                let from = if is_hot { hot } else { cold };
                Operation::Read(from[(split_mix(&mut state) % from.len() as u64) as usize])
            };
            (0..HOT_TOUCHES).map(|_| next()).collect()
        }
        Pattern::Fill => {
            whole = true;
            (PROBE + 1..pages).map(|page| Operation::Write(page, 1)).collect()
        }
        Pattern::Mixed => {
            let order = others(pages, &mut state);
            let mut next = |index: usize| {
                let page = order[(split_mix(&mut state) % order.len() as u64) as usize];
                if index % 5 == 4 { Operation::Write(page, index as u32 + 1) } else { Operation::Read(page) }
            };
            (0..TOUCHES).map(&mut next).collect()
        }
        Pattern::Write => {
            let order = others(pages, &mut state);
            let rate = (pages as f64 * share.unwrap_or(1.0) / 100.0).max(1.0);
            per_second = Some(rate);
            whole = true;
            let count = (rate * seconds).ceil() as usize;
            let pages = order.into_iter().cycle().take(count).enumerate();
            pages.map(|(index, page)| Operation::Write(page, index as u32 + 1)).collect()
        }
    };
    Work { operations, per_second, whole }
}

/// All pages but the probe's, in random order.
fn others(pages: u64, state: &mut u64) -> Vec<u64> {
    let mut order: Vec<u64> = (PROBE + 1..pages).collect();
    shuffle(&mut order, state);
    order
}

/// Makes `bytes` what a page holds: version 0 is what it held at first. Nothing compresses it.
pub(super) fn content(page: u64, version: u32, bytes: &mut [u8]) {
    let mut state = page << 32 | u64::from(version);
    // Neighbours would have words in common without it.
    state = split_mix(&mut state);
    fill(&mut state, bytes);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn pages(work: &Work) -> Vec<u64> {
        work.operations.iter().map(|operation| operation.page()).collect()
    }

    #[test]
    fn the_whole_region_is_read_in_order_and_random_pages_once_each() {
        let all = work(Pattern::InOrder, 1000, None, 1.0, 3);
        assert!(pages(&all).into_iter().eq(0..1000) && all.whole);
        let random = pages(&work(Pattern::Random, 4096, None, 1.0, 3));
        assert_eq!(random.iter().collect::<HashSet<_>>().len(), TOUCHES);
        assert!(random.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 8).count() < TOUCHES / 50);
        assert_eq!(random, pages(&work(Pattern::Random, 4096, None, 1.0, 3)));
        assert_ne!(random, pages(&work(Pattern::Random, 4096, None, 1.0, 4)));
    }

    #[test]
    fn a_hot_set_is_a_sixteenth_that_has_nine_of_ten_uses() {
        let used = pages(&work(Pattern::HotSet, 16_384, None, 1.0, 1));
        let mut counts = std::collections::HashMap::new();
        used.iter().for_each(|page| *counts.entry(*page).or_insert(0u32) += 1);
        let mut counts: Vec<u32> = counts.into_values().collect();
        counts.sort_unstable_by(|one, other| other.cmp(one));
        let hot: u32 = counts.iter().take(1024).sum();
        let share = f64::from(hot) / HOT_TOUCHES as f64;
        assert!((0.85..0.95).contains(&share), "{share}");
    }

    #[test]
    fn as_much_is_written_as_was_asked_for_and_never_the_probe() {
        for (share, count) in [(0.1, 33), (1.0, 328), (10.0, 3277), (100.0, 32_768)] {
            let writing = work(Pattern::Write, 16_384, Some(share), 2.0, 5);
            assert_eq!(writing.operations.len(), count, "{share} %");
            assert!((writing.per_second.unwrap() - 163.84 * share).abs() < 1e-6);
            assert!(
                writing.operations.iter().all(|operation| matches!(operation, Operation::Write(1.., 1..)))
            );
        }
        let fill = work(Pattern::Fill, 64, None, 2.0, 5);
        assert!(fill.operations.into_iter().eq((1..64).map(|page| Operation::Write(page, 1))));
        assert!(fill.whole && fill.per_second.is_none());
        let mixed = work(Pattern::Mixed, 16_384, None, 2.0, 5);
        let writes = mixed.operations.iter().filter(|operation| matches!(operation, Operation::Write(..)));
        assert_eq!(writes.count(), TOUCHES / 5);
    }

    #[test]
    fn pages_and_versions_have_contents_of_their_own() {
        let mut seen = HashSet::new();
        for page in 0..64 {
            for version in 0..4 {
                let mut bytes = vec![0; PAGE as usize];
                content(page, version, &mut bytes);
                for word in bytes.chunks_exact(8) {
                    assert!(
                        seen.insert(word.to_vec()),
                        "a word of page {page}, version {version} is there twice"
                    );
                }
            }
        }
    }
}
