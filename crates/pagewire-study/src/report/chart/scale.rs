//! From values to places: linear from zero, or logarithmic where values differ by much.

/// From how much on values are put on a logarithmic scale.
const WIDE: f64 = 12.0;

/// What a logarithmic scale has beyond what is on it, as a factor.
const ROOM: f64 = 1.2;

/// How many marks are enough on a logarithmic scale.
const ENOUGH: usize = 4;

/// A scale of values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    is_log: bool,
    /// Where it has marks.
    pub(super) ticks: Vec<f64>,
}

impl Scale {
    /// One on which all of these have a place. Logarithmic only where all of them are more than zero.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Scale {
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.into_iter().filter(|value| value.is_finite()) {
            (least, most) = (least.min(value), most.max(value));
        }
        if least > most {
            (least, most) = (0.0, 1.0);
        }
        match least > 0.0 && most / least >= WIDE {
            true => Scale::logarithmic(least, most),
            false => Scale::linear(least.min(0.0), most.max(0.0)),
        }
    }

    fn linear(least: f64, most: f64) -> Scale {
        let span = if most > least { most - least } else { 1.0 };
        let step = round_up(span / 5.0);
        let low = (least / step).floor() * step;
        let count = ((most - low) / step).ceil().max(1.0) as u32;
        let ticks = (0..=count).map(|at| low + f64::from(at) * step).collect();
        Scale { low, high: low + f64::from(count) * step, is_log: false, ticks }
    }

    fn logarithmic(least: f64, most: f64) -> Scale {
        // Marks do not lie on what ends the scale.
        let (low, high) = (least / ROOM, most * ROOM);
        let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let marks = |steps: &[f64]| -> Vec<f64> {
            let all = powers.clone().flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
            all.filter(|tick| (low..=high).contains(tick)).collect()
        };
        // The fewest that are enough to read by.
        let ticks = [&[1.0][..], &[1.0, 3.0], &[1.0, 2.0, 5.0]].map(marks);
        let ticks = ticks.into_iter().reduce(|few, more| if few.len() >= ENOUGH { few } else { more });
        Scale { low, high, is_log: true, ticks: ticks.unwrap_or_default() }
    }

    /// Whether it is logarithmic.
    pub(super) fn is_log(&self) -> bool {
        self.is_log
    }

    /// Where a value is: 0 at the low end, 1 at the high end.
    pub(super) fn place(&self, value: f64) -> f64 {
        let place = match self.is_log {
            true => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        place.clamp(0.0, 1.0)
    }
}

/// The next of 1, 2, 2.5 and 5 with a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    let step = steps.into_iter().find(|step| step * power >= value * 0.999_999).unwrap_or(10.0);
    step * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_near_each_other_are_linear_from_zero() {
        let scale = Scale::of([3.0, 7.0]);
        assert_eq!((scale.is_log(), &*scale.ticks), (false, &[0.0, 2.0, 4.0, 6.0, 8.0][..]));
        assert_eq!(scale.place(4.0), 0.5);
        assert_eq!(Scale::of([-1.0, 4.0]).ticks, [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn values_that_are_far_from_each_other_are_logarithmic() {
        let scale = Scale::of([0.003, 40.0]);
        assert!(scale.is_log());
        let are = |scale: &Scale, expected: &[f64]| {
            let pairs = scale.ticks.iter().zip(expected);
            scale.ticks.len() == expected.len()
                && pairs.into_iter().all(|(tick, one)| (tick / one - 1.0).abs() < 1e-9)
        };
        assert!(are(&scale, &[0.01, 0.1, 1.0, 10.0]), "{scale:?}");
        let between = (scale.place(0.1) + scale.place(10.0)) / 2.0;
        assert!((scale.place(1.0) - between).abs() < 1e-9);
        let scale = Scale::of([2.0, 50.0]);
        assert!(are(&scale, &[2.0, 5.0, 10.0, 20.0, 50.0]), "{scale:?}");
        assert!(!Scale::of([0.0, 1000.0]).is_log(), "zero has no place on a logarithmic scale");
    }

    #[test]
    fn there_is_a_scale_for_everything() {
        for values in [vec![], vec![0.0], vec![5.0], vec![f64::NAN], vec![1e-12, 1e12], vec![-3.0]] {
            let scale = Scale::of(values.clone());
            assert!(scale.ticks.len() >= 2 && scale.ticks.len() < 40, "{values:?}: {scale:?}");
            assert!(values.iter().all(|value| (0.0..=1.0).contains(&scale.place(*value)) || value.is_nan()));
        }
    }
}
