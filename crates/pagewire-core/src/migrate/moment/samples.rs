//! How fast a workload writes, as evenly spaced samples.
//!
//! Whoever looks does so at irregular times. What was written between two looks is spread over the time between them, so
//! that a late look moves a burst a little and a gap is flat at its own mean; each sample stays where it belongs on the
//! clock, and a cycle keeps its phase across a gap.

use std::collections::VecDeque;
use std::time::Duration;

/// How long a sample is, and how often to look at best: a cycle that is worth waiting for has dozens of them.
pub const STEP: Duration = Duration::from_millis(100);

/// How many samples are kept: nearly seven minutes, so that cycles of up to three are found.
pub const CAPACITY: usize = 4096;

pub(super) const STEP_SECONDS: f64 = 0.1;

const STEP_NANOS: u64 = STEP.as_nanos() as u64;

/// A ring of the last [`CAPACITY`] samples.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// Bytes a second.
    rates: VecDeque<f64>,
    /// Where the last of them ends, in nanoseconds.
    end: u64,
    /// When somebody looked last.
    last: Option<u64>,
    /// Bytes that belong to the sample that is not over yet.
    open: f64,
}

impl Samples {
    /// Adds that so many bytes were written since the last look, at `now` since any fixed moment. Answers how many samples
    /// are over by it.
    ///
    /// The first look begins the time that is known of; its bytes are not counted, since nobody can say how long they took.
    /// Where time has not gone on since the last look, or has gone back, the bytes are taken for those of the present. After a
    /// gap that is longer than all that is kept, everything begins anew. It takes time for each sample that is over.
    pub fn look(&mut self, now: Duration, bytes: u64) -> usize {
        // Half of what fits: nothing overflows, and that is 292 years.
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 2);
        let Some(last) = self.last else {
            (self.end, self.last) = (now, Some(now));
            return 0;
        };
        if now <= last {
            self.open += bytes as f64;
            return 0;
        }
        self.last = Some(now);
        if now - last >= STEP_NANOS * CAPACITY as u64 {
            self.rates.clear();
            (self.end, self.open) = (now, 0.0);
            return 0;
        }
        let rate = bytes as f64 / (now - last) as f64;
        let (mut from, mut over) = (last, 0);
        while self.end + STEP_NANOS <= now {
            self.end += STEP_NANOS;
            self.open += rate * (self.end - from) as f64;
            if self.rates.len() == CAPACITY {
                self.rates.pop_front();
            }
            self.rates.push_back(self.open / STEP_SECONDS);
            (from, over) = (self.end, over + 1);
            self.open = 0.0;
        }
        self.open += rate * (now - from) as f64;
        over
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rates.len()
    }

    /// Whether there are none yet.
    pub fn is_empty(&self) -> bool {
        self.rates.is_empty()
    }

    /// How long a time they cover.
    pub fn span(&self) -> Duration {
        STEP * self.rates.len() as u32
    }

    /// Where the last one ends.
    pub fn end(&self) -> Duration {
        Duration::from_nanos(self.end)
    }

    /// Bytes a second, the oldest first.
    pub fn rates(&self) -> impl DoubleEndedIterator<Item = f64> + ExactSizeIterator {
        self.rates.iter().copied()
    }

    /// The sample that ended so many before the last one.
    pub(super) fn back(&self, steps: usize) -> Option<f64> {
        Some(self.rates[self.rates.len().checked_sub(steps + 1)?])
    }

    /// The mean of the last so many, or of as many as there are; 0 of none.
    pub(super) fn recent_mean(&self, steps: usize) -> f64 {
        let count = steps.min(self.rates.len());
        if count == 0 { 0.0 } else { self.rates().rev().take(count).sum::<f64>() / count as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn looks_at_irregular_times_make_even_samples() {
        let mut samples = Samples::default();
        samples.look(at(30), 1 << 40);
        for now in [90, 250, 260, 490, 530] {
            let last = samples.last.expect("it has begun") / 1_000_000;
            samples.look(at(now), (now - last) * 1000);
        }
        let rates: Vec<_> = samples.rates().collect();
        assert_eq!(rates.len(), 5);
        assert!(rates.iter().all(|rate| (rate - 1e6).abs() < 1.0), "{rates:?}");
        assert_eq!((samples.end(), samples.span()), (at(530), at(500)));
    }

    #[test]
    fn a_gap_is_flat_and_no_byte_is_lost() {
        let mut samples = Samples::default();
        samples.look(at(0), 0);
        samples.look(at(100), 100);
        assert_eq!(samples.look(at(2100), 4000), 20);
        assert_eq!(samples.rates().sum::<f64>().round(), 41_000.0);
        assert_eq!(samples.back(0), samples.back(19));
    }

    #[test]
    fn time_that_stands_still_or_goes_back_counts_for_the_present() {
        let mut samples = Samples::default();
        samples.look(at(1000), 0);
        samples.look(at(1000), 30);
        samples.look(at(400), 30);
        samples.look(at(1100), 40);
        assert_eq!(samples.rates().map(f64::round).collect::<Vec<_>>(), [1000.0]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_a_long_gap_begins_anew() {
        let mut samples = Samples::default();
        for look in 0..6000 {
            samples.look(STEP * look, 1);
        }
        assert_eq!(samples.len(), CAPACITY);
        assert_eq!(samples.look(Duration::MAX, u64::MAX), 0);
        assert!(samples.is_empty());
        assert_eq!(samples.look(Duration::MAX, u64::MAX), 0);
    }
}
