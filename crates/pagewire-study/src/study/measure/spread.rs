//! Percentiles and samples of single measurements.

use crate::study::record::Samples;

/// Single measurements, sorted.
pub(in crate::study) struct Spread(Vec<f64>);

impl Spread {
    /// Of measurements in any order.
    pub(in crate::study) fn of(mut all: Vec<f64>) -> Self {
        all.sort_unstable_by(f64::total_cmp);
        Self(all)
    }

    /// The smallest measurement that this share of all is not greater than (the nearest-rank percentile). None
    /// where nothing was measured.
    pub(in crate::study) fn quantile(&self, share: f64) -> Option<f64> {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).copied()
    }

    /// As many as are kept, evenly spaced.
    pub(in crate::study) fn samples(&self) -> Vec<f64> {
        let count = self.0.len();
        if count <= Samples::MOST {
            return self.0.clone();
        }
        (0..Samples::MOST).map(|index| self.0[index * (count - 1) / (Samples::MOST - 1)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measurements_and_samples_have_both_ends() {
        let spread = Spread::of((1..=1000).rev().map(f64::from).collect());
        assert_eq!(spread.quantile(0.5), Some(500.0));
        assert_eq!(spread.quantile(0.99), Some(990.0));
        assert_eq!(spread.quantile(1.0), Some(1000.0));
        assert_eq!(spread.quantile(0.0), Some(1.0));
        let samples = spread.samples();
        assert_eq!((samples.len(), samples[0], samples[Samples::MOST - 1]), (Samples::MOST, 1.0, 1000.0));
        assert!(samples.is_sorted());
        let few = Spread::of(vec![2.0, 1.0]);
        assert_eq!(few.samples(), [1.0, 2.0]);
        assert_eq!(few.quantile(0.99), Some(2.0));
        assert_eq!(Spread::of(Vec::new()).quantile(0.5), None);
    }
}
