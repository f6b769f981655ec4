//! A naive Bayes classifier of moments: was this one favourable for a migration?
//!
//! It learns on line. Each feature is taken for normal in each class, with a mean and a variance that follow the last
//! [`MEMORY`] moments (Welford's method, with a bounded count, so that what drifts is followed). A moment's posterior
//! is that of features which do not depend on each other; they do, so it is sure of itself too soon, but on the right side
//! (Domingos and Pazzani, "On the Optimality of the Simple Bayesian Classifier", 1997).

/// How many moments the means follow: nearly two minutes.
const MEMORY: f64 = 1024.0;

/// How many moments of each class are needed before anything is said.
const LEAST: f64 = 8.0;

/// No standard deviation is taken for less: features are logarithms and parts of a unit circle, which are not told apart
/// any finer.
const LEAST_DEVIATION: f64 = 0.05;

/// The logarithm of the most that a feature can speak for a class: one that has hardly varied yet does not decide alone.
const MOST_ODDS: f64 = 6.0;

/// No value is farther from a mean than this, in standard deviations.
const FARTHEST: f64 = 1e3;

/// How many features there are.
pub(super) const FEATURES: usize = 5;

/// What is known of a moment. What is not known is left out.
pub(super) type Features = [Option<f64>; FEATURES];

/// Two classes, and what was seen of each.
#[derive(Debug, Clone, Default)]
pub(super) struct Classifier {
    favourable: Class,
    unfavourable: Class,
}

#[derive(Debug, Clone, Default)]
struct Class {
    count: f64,
    features: [Normal; FEATURES],
}

#[derive(Debug, Clone, Copy, Default)]
struct Normal {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Classifier {
    /// A moment turned out to be favourable, or not to be.
    pub(super) fn learn(&mut self, features: &Features, favourable: bool) {
        let (class, other) = if favourable {
            (&mut self.favourable, &mut self.unfavourable)
        } else {
            (&mut self.unfavourable, &mut self.favourable)
        };
        class.count += 1.0;
        if class.count + other.count > MEMORY {
            let scale = MEMORY / (class.count + other.count);
            (class.count, other.count) = (class.count * scale, other.count * scale);
        }
        for (normal, value) in class.features.iter_mut().zip(features) {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                normal.learn(value);
            }
        }
    }

    /// How likely a moment is favourable, from 0 to 1. None before some of each class were seen.
    pub(super) fn favourable(&self, features: &Features) -> Option<f64> {
        let (yes, no) = (&self.favourable, &self.unfavourable);
        if yes.count < LEAST || no.count < LEAST {
            return None;
        }
        let mut odds = (yes.count / no.count).ln();
        for ((yes, no), value) in yes.features.iter().zip(&no.features).zip(features) {
            let Some(value) = value.filter(|value| value.is_finite()) else { continue };
            if yes.count >= LEAST && no.count >= LEAST {
                odds += (yes.log_density(value) - no.log_density(value)).clamp(-MOST_ODDS, MOST_ODDS);
            }
        }
        Some(1.0 / (1.0 + (-odds).exp()))
    }
}

impl Normal {
    fn learn(&mut self, value: f64) {
        self.count = (self.count + 1.0).min(MEMORY);
        let before = value - self.mean;
        self.mean += before / self.count;
        self.variance += (before * (value - self.mean) - self.variance) / self.count;
    }

    fn log_density(&self, value: f64) -> f64 {
        let deviation = self.variance.sqrt().max(LEAST_DEVIATION);
        let distance = ((value - self.mean) / deviation).clamp(-FARTHEST, FARTHEST);
        -deviation.ln() - distance * distance / 2.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(value: f64) -> Features {
        [Some(value), None, None, None, None]
    }

    #[test]
    fn two_classes_are_told_apart() {
        let mut classifier = Classifier::default();
        assert_eq!(classifier.favourable(&one(1.0)), None);
        for n in 0..50 {
            let spread = f64::from(n % 5) / 10.0;
            classifier.learn(&one(1.0 + spread), true);
            classifier.learn(&one(5.0 + spread), false);
        }
        assert!(classifier.favourable(&one(1.1)).expect("it has learnt") > 0.95);
        assert!(classifier.favourable(&one(5.1)).expect("it has learnt") < 0.05);
        // Nothing is known of this moment but how many there were of each.
        assert!((classifier.favourable(&[None; FEATURES]).expect("it has learnt") - 0.5).abs() < 1e-9);
    }

    #[test]
    fn the_rarer_class_is_the_less_likely() {
        let mut classifier = Classifier::default();
        (0..90).for_each(|_| classifier.learn(&one(1.0), true));
        (0..10).for_each(|_| classifier.learn(&one(1.0), false));
        assert!((classifier.favourable(&one(1.0)).expect("it has learnt") - 0.9).abs() < 0.01);
    }

    #[test]
    fn what_drifts_is_followed() {
        let mut classifier = Classifier::default();
        for n in 0..20_000 {
            let base = f64::from(n) / 1000.0;
            classifier.learn(&one(base), true);
            classifier.learn(&one(base + 3.0), false);
        }
        assert!(classifier.favourable(&one(20.0)).expect("it has learnt") > 0.75);
        assert!(classifier.favourable(&one(23.0)).expect("it has learnt") < 0.1);
    }

    proptest! {
        #[test]
        fn it_is_a_probability(
            learnt in prop::collection::vec((prop::array::uniform5(prop::option::of(any::<f64>())), any::<bool>()), 0..60),
            asked in prop::array::uniform5(prop::option::of(any::<f64>())),
        ) {
            let mut classifier = Classifier::default();
            for (features, favourable) in &learnt {
                let bounded = features.map(|value| value.map(|value| value.clamp(-1e9, 1e9)));
                classifier.learn(&bounded, *favourable);
            }
            if let Some(likely) = classifier.favourable(&asked) {
                prop_assert!((0.0..=1.0).contains(&likely), "{likely}");
            }
        }
    }
}
