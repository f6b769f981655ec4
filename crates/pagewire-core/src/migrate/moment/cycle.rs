//! Whether a workload writes in cycles, and what it will write next if it does.
//!
//! The period is the shift at which the rates are most like themselves (the peak of their autocorrelation), of their whole
//! past or of its recent half, quarter and so on, so that an old habit does not hide a new one. It is believed if
//!
//! - the likeness is significant: by Fisher's transformation of a correlation coefficient, over as many values as
//!   there are independent ones, which are fewer the longer a series stays like itself (Bartlett). So white noise, noise that
//!   drifts, trends and constants have no cycle;
//! - at least two periods were seen, and
//! - the last two of them are as the ones before, so that a cycle that has ended is given up within two periods.
//!
//! What comes next is what came after the moments that were most like this one: the past is cut into periods from now
//! backwards, each of which may be up to an eighth longer or shorter, as it fits best. So a period that varies blurs the far end
//! of the outlook, not where in the cycle the workload is now.

use std::f64::consts::TAU;
use std::time::Duration;

use super::samples::{STEP, STEP_SECONDS, Samples};
use super::spectrum::autocorrelation;

/// A cycle that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cycle {
    /// Seconds.
    period: f64,
    phase: f64,
    confidence: f64,
}

/// The shortest period, and the fewest samples to look for one in.
const SHORTEST: usize = 4;
const FEWEST: usize = 32;

/// How far from chance a likeness has to be, in standard deviations, more than the best of as many as are looked at is
/// by chance.
const SIGNIFICANT: f64 = 2.2;

/// A cycle that explains less of what happens than this is of no use, however significant.
const USEFUL: f64 = 0.3;

/// Rates that deviate by less of their mean are constant.
const CONSTANT: f64 = 0.02;

/// The first peak that is nearly as high as the highest is the period; those at its multiples are so by chance.
const AS_HIGH: f64 = 0.88;

/// How many periods of the past the outlook is made of, and how much each counts of the one after it.
const PERIODS: usize = 8;
const FADING: f64 = 0.8;

impl Cycle {
    /// The period.
    pub fn period(&self) -> Duration {
        Duration::from_secs_f64(self.period)
    }

    /// How much of a period has gone by, from 0 to 1, at the end of the last sample, since the cycle's fundamental was
    /// highest: at 0.5 it is lowest.
    pub fn phase(&self) -> f64 {
        self.phase
    }

    /// How much the rates are like those of a period ago, from 0 to 1: their correlation.
    pub fn confidence(&self) -> f64 {
        self.confidence
    }

    /// Looks for a cycle. It takes O(n log n) of the samples: a millisecond for as many as are ever kept.
    pub fn find(samples: &Samples) -> Option<Self> {
        // Roots: a single outlier weighs less, and still more than noise.
        let roots: Vec<f64> = samples.rates().map(f64::sqrt).collect();
        let mut best: Option<Peak> = None;
        let mut count = roots.len();
        while count >= FEWEST {
            let found = Peak::find(&roots[roots.len() - count..]);
            best = best.into_iter().chain(found).max_by(|a, b| a.significance.total_cmp(&b.significance));
            count /= 2;
        }
        let best = best?;
        if !goes_on(&roots, best.shift.round() as usize) {
            return None;
        }
        let mut cycle = Self { period: best.shift * STEP_SECONDS, phase: 0.0, confidence: best.likeness };
        cycle.follow(samples);
        Some(cycle)
    }

    /// Brings the phase up to date. It takes time for each sample of a period.
    pub(super) fn follow(&mut self, samples: &Samples) {
        let steps = self.steps();
        let mean = samples.recent_mean(steps);
        let (mut re, mut im) = (0.0, 0.0);
        for (back, rate) in samples.rates().rev().take(steps).enumerate() {
            let (sin, cos) = ((back as f64 + 0.5) * STEP_SECONDS / self.period * TAU).sin_cos();
            (re, im) = (re + (rate - mean) * cos, im + (rate - mean) * sin);
        }
        let phase = (im.atan2(re) / TAU).rem_euclid(1.0);
        self.phase = if phase < 1.0 { phase } else { 0.0 };
    }

    /// Samples in a period.
    pub(super) fn steps(&self) -> usize {
        (self.period / STEP_SECONDS).round() as usize
    }

    /// The rates of the period that begins with the end of the last sample.
    pub(super) fn ahead(&self, samples: &Samples) -> Vec<f64> {
        let steps = self.steps();
        let seen: Vec<f64> = samples.rates().rev().take((PERIODS + 2) * steps).collect();
        let rates: Vec<f64> = seen.into_iter().rev().collect();
        let ends = alike(&rates, steps);
        (0..steps)
            .map(|step| {
                let (mut sum, mut weights, mut weight) = (0.0, 0.0, 1.0);
                for end in &ends {
                    if let Some(rate) = rates.get(end + step) {
                        (sum, weights) = (sum + rate * weight, weights + weight);
                    }
                    weight *= FADING;
                }
                let period_ago = (rates.len() + step).checked_sub(steps).and_then(|at| rates.get(at));
                if weights > 0.0 { sum / weights } else { period_ago.copied().unwrap_or(0.0) }
            })
            .collect()
    }
}

/// Where in the past the periods ended that are most like the last one: the latest first. It takes time for a few dozen
/// comparisons of each period.
fn alike(rates: &[f64], steps: usize) -> Vec<usize> {
    let count = rates.len();
    let mut ends = Vec::with_capacity(PERIODS);
    let Some(start) = count.checked_sub(steps) else { return ends };
    let (last, slack, stride) = (&rates[start..], steps / 8, (steps / 64).max(1));
    let mut end = count;
    while ends.len() < PERIODS {
        let (Some(earliest), Some(expected)) = (end.checked_sub(steps + slack), end.checked_sub(steps))
        else {
            break;
        };
        let unlike = |candidate: usize| -> f64 {
            let then = &rates[candidate - steps..candidate];
            // The nearer to the end, the more it says of where in the cycle that was.
            let each = last.iter().zip(then).zip(1..);
            each.map(|((now, then), at)| (now.sqrt() - then.sqrt()).powi(2) * f64::from(at)).sum()
        };
        // In doubt, the expected one.
        let candidates = std::iter::once(expected).chain((earliest..=expected + slack).step_by(stride));
        let best = candidates
            .filter(|candidate| *candidate >= steps && *candidate < count)
            .map(|candidate| (unlike(candidate), candidate))
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, found)) = best else { break };
        ends.push(found);
        end = found;
    }
    ends
}

/// A shift by which a series is like itself.
#[derive(Debug)]
struct Peak {
    /// Steps.
    shift: f64,
    likeness: f64,
    /// Standard deviations from what chance brings about.
    significance: f64,
}

impl Peak {
    fn find(values: &[f64]) -> Option<Self> {
        let count = values.len();
        let values = without_trend(values)?;
        let like = autocorrelation(&values, count / 2);
        let unlike = like.iter().position(|likeness| *likeness <= 0.0)?;
        let from = unlike.max(SHORTEST);
        let peaks =
            || (from..like.len() - 1).filter(|at| like[*at] >= like[at - 1] && like[*at] >= like[at + 1]);
        let highest = peaks().map(|at| like[at]).max_by(f64::total_cmp)?;
        let at = peaks().find(|at| like[*at] >= highest * AS_HIGH)?;
        let memory = 1.0 + 2.0 * like[1..unlike].iter().map(|likeness| likeness * likeness).sum::<f64>();
        let independent = (count - at) as f64 / memory;
        let by_chance = (2.0 * (like.len() as f64 / memory).max(1.0).ln()).sqrt();
        let significance = like[at].min(0.999).atanh() * (independent - 3.0).max(0.0).sqrt() - by_chance;
        if like[at] < USEFUL || significance < SIGNIFICANT {
            return None;
        }
        // The summit of the parabola through the three.
        let (before, after) = (like[at - 1], like[at + 1]);
        let bend = before - 2.0 * like[at] + after;
        let aside = if bend < 0.0 { ((before - after) / (2.0 * bend)).clamp(-0.5, 0.5) } else { 0.0 };
        Some(Self { shift: at as f64 + aside, likeness: like[at], significance })
    }
}

/// Values without their mean and their linear trend; none if they are constant then.
fn without_trend(values: &[f64]) -> Option<Vec<f64>> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let middle = (count - 1.0) / 2.0;
    let spread = count * (count * count - 1.0) / 12.0;
    let slope =
        values.iter().zip(0..).map(|(value, at)| (value - mean) * (f64::from(at) - middle)).sum::<f64>()
            / spread;
    let rest: Vec<f64> =
        values.iter().zip(0..).map(|(value, at)| value - mean - slope * (f64::from(at) - middle)).collect();
    let deviation = (rest.iter().map(|value| value * value).sum::<f64>() / count).sqrt();
    (deviation.is_finite() && deviation > mean * CONSTANT).then_some(rest)
}

/// Whether the last two periods are like the ones before them, give or take an eighth of a period.
fn goes_on(roots: &[f64], steps: usize) -> bool {
    let count = roots.len();
    let length = (2 * steps).min(count - count.min(steps + steps / 8));
    let (last, slack) = (&roots[count - length..], steps / 8);
    let shifts = (steps - slack..=steps + slack).filter(|shift| shift + length <= count);
    let best = shifts
        .map(|shift| correlation(last, &roots[count - length - shift..count - shift]))
        .max_by(f64::total_cmp);
    best.is_some_and(|likeness| likeness >= USEFUL)
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut product, mut square_a, mut square_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        (product, square_a, square_b) = (product + a * b, square_a + a * a, square_b + b * b);
    }
    let varies = |square: f64, mean: f64| (square / a.len() as f64).sqrt() > mean * CONSTANT;
    let found = product / (square_a * square_b).sqrt();
    if found.is_finite() && varies(square_a, mean_a) && varies(square_b, mean_b) { found } else { 0.0 }
}

/// The most a period can be.
pub(super) const LONGEST: Duration = STEP.saturating_mul((super::samples::CAPACITY / 2) as u32);

#[cfg(test)]
#[path = "cycle_tests.rs"]
mod tests;
