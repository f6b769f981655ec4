//! Series with cycles, and series that only seem to have one.

use proptest::prelude::*;

use super::*;
use crate::migrate::moment::simulation::Random;

/// Samples with these rates, in MB/s.
fn samples(rates: impl IntoIterator<Item = f64>) -> Samples {
    let mut samples = Samples::default();
    samples.look(Duration::ZERO, 0);
    for (rate, at) in rates.into_iter().zip(1..) {
        samples.look(STEP * at, (rate * 1e6 * STEP_SECONDS) as u64);
    }
    samples
}

fn bursts(count: usize, period: usize, length: usize) -> impl Iterator<Item = f64> + Clone {
    (0..count).map(move |at| if at % period >= period - length { 500.0 } else { 20.0 })
}

#[test]
fn bursts_are_found_after_a_few_periods_with_their_period() {
    for (period, length) in [(30, 10), (30, 2), (7, 3), (100, 70), (600, 60)] {
        let found =
            Cycle::find(&samples(bursts((period * 7 / 2).max(40), period, length))).expect("there is one");
        let wrong = (found.period / STEP_SECONDS - period as f64).abs();
        assert!(wrong < 1.0, "{period}, {length}: {found:?}");
        assert!(found.confidence() > 0.9, "{found:?}");
        assert!(Cycle::find(&samples(bursts(period * 2 - 1, period, length))).is_none(), "not seen twice");
    }
}

#[test]
fn the_phase_goes_round_with_the_cycle() {
    // The bursts are the last 10 of each 30: the fundamental is highest in the middle of a burst.
    for extra in 0..60 {
        let found = Cycle::find(&samples(bursts(300 + extra, 30, 10))).expect("there is one");
        let expected = ((extra as f64 + 5.0) / 30.0).rem_euclid(1.0);
        let wrong = (found.phase() - expected + 0.5).rem_euclid(1.0) - 0.5;
        assert!(wrong.abs() < 0.04, "{extra}: {} and not {expected}", found.phase());
    }
}

#[test]
fn the_outlook_is_what_came_after() {
    for extra in 0..30 {
        let samples = samples(bursts(300 + extra, 30, 10));
        let found = Cycle::find(&samples).expect("there is one");
        let ahead = found.ahead(&samples);
        for (rate, expected) in ahead.iter().zip(bursts(1000, 30, 10).skip(extra)) {
            assert!((rate / 1e6 - expected).abs() < 1.0, "{extra}: {ahead:?}");
        }
    }
}

#[test]
fn a_cycle_under_noise_is_found() {
    let mut random = Random::new(7);
    let noisy: Vec<f64> = bursts(900, 30, 10).map(|rate| rate + 300.0 * random.unit()).collect();
    let found = Cycle::find(&samples(noisy)).expect("there is one");
    assert!((found.period / STEP_SECONDS - 30.0).abs() < 0.5, "{found:?}");
    assert!(found.confidence() < 0.95, "{found:?}");
}

#[test]
fn a_cycle_on_a_trend_is_found() {
    let found = Cycle::find(&samples(bursts(600, 30, 10).zip(0..).map(|(rate, at)| rate + f64::from(at))));
    assert!((found.expect("there is one").period / STEP_SECONDS - 30.0).abs() < 0.5);
}

#[test]
fn one_look_that_is_out_of_all_proportion_hides_no_cycle() {
    let found = Cycle::find(&samples(
        bursts(600, 30, 10).zip(0..).map(|(rate, at)| if at == 333 { 50_000.0 } else { rate }),
    ));
    assert!((found.expect("there is one").period / STEP_SECONDS - 30.0).abs() < 0.5);
}

#[test]
fn a_cycle_that_begins_after_long_noise_is_found_and_one_that_has_ended_is_none() {
    let mut random = Random::new(3);
    let noise: Vec<f64> = (0..2000).map(|_| 500.0 * random.unit()).collect();
    let cycle: Vec<f64> = bursts(300, 30, 10).collect();
    let begun = Cycle::find(&samples(noise.iter().chain(&cycle).copied())).expect("it has begun");
    assert!((begun.period / STEP_SECONDS - 30.0).abs() < 0.5, "{begun:?}");
    assert_eq!(Cycle::find(&samples(cycle.iter().chain(&[20.0; 90]).copied())), None);
    assert_eq!(Cycle::find(&samples(cycle.iter().chain(&[500.0; 90]).copied())), None);
}

#[test]
fn constants_and_trends_have_none() {
    assert_eq!(Cycle::find(&samples([])), None);
    for series in [
        (0..1000).map(|_| 0.0).collect::<Vec<_>>(),
        (0..1000).map(|_| 300.0).collect(),
        (0..1000).map(f64::from).collect(),
        (0..1000).map(|at| 2000.0 - f64::from(at)).collect(),
        (0..1000).map(|at| f64::from(at) * f64::from(at) / 1000.0).collect(),
        (0..1000).map(|at| 1e4 * (-f64::from(at) / 100.0).exp()).collect(),
        (0..1000).map(|at| if at < 500 { 20.0 } else { 500.0 }).collect(),
        (0..1000).map(|at| if at == 500 { 500.0 } else { 0.0 }).collect(),
    ] {
        assert_eq!(Cycle::find(&samples(series.iter().copied())), None, "{series:?}");
    }
}

/// In how many of 100 series a cycle is found.
fn found_in(seed: u64, count: usize, series: impl Fn(&mut Random, usize) -> Vec<f64>) -> usize {
    let mut random = Random::new(seed);
    (0..100).filter(|_| Cycle::find(&samples(series(&mut random, count))).is_some()).count()
}

#[test]
fn noise_has_none_but_by_a_rare_chance() {
    for count in [60, 400] {
        let white = found_in(1, count, |random, count| (0..count).map(|_| 500.0 * random.unit()).collect());
        assert!(white <= 1, "white noise of {count}: {white} of 100");
        for memory in [0.5, 0.9, 0.98] {
            let red = found_in(2, count, |random, count| {
                let mut rate = 0.0;
                let mut next = || {
                    rate = memory * rate + random.normal();
                    f64::max(0.0, 300.0 + 100.0 * rate * (1.0f64 - memory * memory).sqrt())
                };
                (0..count).map(|_| next()).collect()
            });
            assert!(red <= 4, "noise with a memory of {memory}, {count}: {red} of 100");
        }
        let walk = found_in(3, count, |random, count| {
            let mut rate = 1000.0;
            let mut next = || {
                rate = f64::max(0.0, rate + 20.0 * random.normal());
                rate
            };
            (0..count).map(|_| next()).collect()
        });
        assert!(walk <= 4, "a random walk of {count}: {walk} of 100");
        // Bursts of a second that come whenever they like, two seconds after the last in the mean.
        let poisson = found_in(4, count, |random, count| {
            let mut series = Vec::new();
            while series.len() < count {
                let pause = (-20.0 * (1.0 - random.unit()).ln()) as usize;
                series.extend(std::iter::repeat_n(20.0, pause).chain([500.0; 10]));
            }
            series.truncate(count);
            series
        });
        assert!(poisson <= 6, "bursts at random in {count}: {poisson} of 100");
    }
}

proptest! {
    #[test]
    fn whatever_is_seen_the_answers_are_in_their_ranges(
        rates in prop::collection::vec(prop_oneof![Just(0u64), Just(u64::MAX), 0u64..1000, any::<u64>()], 0..300),
        repeat in 1usize..4,
    ) {
        let mut samples = Samples::default();
        let all = rates.len() * repeat;
        for (bytes, at) in rates.iter().cycle().take(all).zip(0..) {
            samples.look(STEP * at, *bytes);
        }
        if let Some(cycle) = Cycle::find(&samples) {
            prop_assert!((0.0..1.0).contains(&cycle.phase()), "{cycle:?}");
            prop_assert!((0.0..=1.0).contains(&cycle.confidence()), "{cycle:?}");
            prop_assert!(cycle.period() * 2 <= samples.span() + STEP, "{cycle:?}");
            let ahead = cycle.ahead(&samples);
            prop_assert!(ahead.iter().all(|rate| rate.is_finite() && *rate >= 0.0), "{ahead:?}");
        }
    }
}
