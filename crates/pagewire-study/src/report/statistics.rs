//! Medians and quartiles.

/// The median of some values, with the least and the greatest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// The median: of an even count, the mean of both in the middle.
    pub(super) median: f64,
    /// The least.
    pub(super) min: f64,
    /// The greatest.
    pub(super) max: f64,
    /// How many there are.
    pub(super) count: usize,
}

impl Spread {
    /// That of `values`; none where there are none. What is no number does not count.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let values = sorted(values);
        let (min, max) = (*values.first()?, *values.last()?);
        Some(Spread { median: quantile(&values, 0.5), min, max, count: values.len() })
    }
}

/// A distribution in a few numbers, as box plots show it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Distribution {
    /// One of a hundred is less.
    pub(super) p1: f64,
    /// A quarter is less.
    pub(super) p25: f64,
    /// Half are less.
    pub(super) p50: f64,
    /// Three quarters are less.
    pub(super) p75: f64,
    /// 99 of a hundred are less.
    pub(super) p99: f64,
    /// The greatest.
    pub(super) max: f64,
}

impl Distribution {
    /// That of `values`; none where there are none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Distribution> {
        let values = sorted(values);
        let max = *values.last()?;
        let at = |share| quantile(&values, share);
        Some(Distribution { p1: at(0.01), p25: at(0.25), p50: at(0.5), p75: at(0.75), p99: at(0.99), max })
    }
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// The value below which `share` of the sorted values are, by linear interpolation between the two next to it. (Type 7 of
/// Hyndman and Fan, as most programs have it.)
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len() - 1;
    let at = share * last as f64;
    let (below, rest) = (at.floor() as usize, at.fract());
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN]), None);
        let odd = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!(odd, Spread { median: 2.0, min: 1.0, max: 3.0, count: 3 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([7.0]).unwrap(), Spread { median: 7.0, min: 7.0, max: 7.0, count: 1 });
    }

    #[test]
    fn quartiles_are_between() {
        let all = Distribution::of((0..=100).map(f64::from)).unwrap();
        let expected = Distribution { p1: 1.0, p25: 25.0, p50: 50.0, p75: 75.0, p99: 99.0, max: 100.0 };
        assert_eq!(all, expected);
        let few = Distribution::of([1.0, 2.0]).unwrap();
        assert_eq!((few.p25, few.p50, few.p75), (1.25, 1.5, 1.75));
        assert_eq!(Distribution::of([]), None);
    }
}
