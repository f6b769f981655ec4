//! How long to wait between two rounds.

use std::time::Duration;

/// The pauses of a mirror: short while the file changes, longer and longer while it does not; and long enough for hashing to
/// keep to its share of the processors.
pub(super) struct Pace {
    shortest: Duration,
    longest: Duration,
    cpu: Option<f64>,
    pause: Duration,
}

impl Pace {
    pub(super) fn new(shortest: Duration, longest: Duration, cpu: Option<f64>) -> Self {
        Self { shortest, longest: longest.max(shortest), cpu, pause: shortest }
    }

    /// The pause after a round that has found changes or not, and has taken so much time of processors.
    pub(super) fn after(&mut self, has_changed: bool, taken: Duration) -> Duration {
        self.pause = match has_changed {
            true => self.shortest,
            false => (self.pause * 2).clamp(self.shortest, self.longest),
        };
        match self.cpu {
            // With its pause, the round takes so long that what it has taken is that share of it.
            Some(share) if share > 0.0 => self.pause.max(taken.div_f64(share).saturating_sub(taken)),
            _ => self.pause,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_grow_while_nothing_changes() {
        let mut pace = Pace::new(10 * MS, 60 * MS, None);
        let quiet: Vec<_> = (0..5).map(|_| pace.after(false, MS)).collect();
        assert_eq!(quiet, [20 * MS, 40 * MS, 60 * MS, 60 * MS, 60 * MS]);
        assert_eq!(pace.after(true, MS), 10 * MS);
        assert_eq!(pace.after(false, MS), 20 * MS);
        assert_eq!(Pace::new(100 * MS, MS, None).after(false, MS), 100 * MS, "the longest is no shorter");
    }

    #[test]
    fn hashing_keeps_to_its_share() {
        let mut pace = Pace::new(10 * MS, 10 * MS, Some(0.25));
        assert_eq!(pace.after(true, 100 * MS), 300 * MS);
        assert_eq!(pace.after(true, MS), 10 * MS);
        assert_eq!(
            Pace::new(MS, MS, Some(2.0)).after(true, 100 * MS),
            MS,
            "two processors are more than it takes"
        );
    }
}
