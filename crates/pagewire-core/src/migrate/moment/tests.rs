//! What holds whatever is seen.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Event {
    Look { after: Duration, bytes: u64 },
    Ask { within: Duration },
    Decide { after: Duration },
}

fn time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(STEP),
        Just(Duration::MAX),
        (0u64..2000).prop_map(Duration::from_millis),
        (0u64..1_000_000).prop_map(Duration::from_secs),
        any::<u64>().prop_map(Duration::from_nanos),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let bytes = || prop_oneof![Just(0), Just(u64::MAX), 0u64..100_000_000, any::<u64>()];
    prop_oneof![
        8 => (Just(STEP), bytes()).prop_map(|(after, bytes)| Event::Look { after, bytes }),
        1 => (time(), bytes()).prop_map(|(after, bytes)| Event::Look { after, bytes }),
        1 => time().prop_map(|within| Event::Ask { within }),
        3 => time().prop_map(|after| Event::Decide { after }),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let size = || prop_oneof![Just(0), Just(1 << 30), Just(u64::MAX), any::<u64>()];
    (size(), size(), size(), time()).prop_map(|(region, working_set, bandwidth, downtime)| Plan {
        region,
        working_set,
        bandwidth,
        downtime,
    })
}

fn finite(cost: &Cost) -> bool {
    [cost.bytes, cost.seconds, cost.downtime].iter().all(|value| value.is_finite() && *value >= 0.0)
}

proptest! {
    #[test]
    fn it_never_waits_past_the_bound_and_says_nothing_absurd(
        plan in plan(),
        other in plan(),
        events in prop::collection::vec(event(), 1..120),
        period in prop::collection::vec(0u64..50_000_000, 1..20),
    ) {
        let mut moment = Moment::new(plan);
        // Some cycle first, so that there is one to decide by.
        let mut now = Duration::ZERO;
        for bytes in period.iter().cycle().take(period.len() * 5) {
            moment.look(now, *bytes);
            now += STEP;
        }
        let mut bound = Duration::ZERO;
        for (event, at) in events.into_iter().zip(0..) {
            match event {
                Event::Look { after, bytes } => {
                    now = now.saturating_add(after);
                    moment.look(now, bytes);
                }
                Event::Ask { within } => {
                    bound = now.saturating_add(within);
                    moment.ask(now, within);
                }
                Event::Decide { after } => {
                    let now = now.saturating_add(after);
                    match moment.decide(now) {
                        Verdict::Wait { until, .. } => {
                            prop_assert!(until > now && until <= bound, "{now:?} {until:?} {bound:?}");
                        }
                        Verdict::Now { .. } => {
                            let saved = moment.saved().expect("it begins");
                            let costs = [saved.chosen, saved.at_once, saved.at_random];
                            prop_assert!(costs.iter().all(finite), "{saved:?}");
                        }
                    }
                }
            }
            if at == 60 {
                moment.replan(other);
            }
            if let Some(likely) = moment.favourable() {
                prop_assert!((0.0..=1.0).contains(&likely), "{likely}");
            }
            prop_assert!(moment.pending.len() <= HINDSIGHT && moment.costs.len() <= COMPARED);
            prop_assert!(moment.samples.len() <= CAPACITY);
        }
    }
}

#[test]
fn without_being_asked_or_with_no_time_it_begins() {
    let plan = Plan { region: 1 << 30, working_set: 1 << 30, bandwidth: 1 << 29, downtime: STEP };
    let mut moment = Moment::new(plan);
    assert_eq!(moment.decide(Duration::ZERO), Verdict::Now { why: Why::Bound });
    moment.ask(Duration::ZERO, Duration::ZERO);
    assert_eq!(moment.decide(Duration::ZERO), Verdict::Now { why: Why::Bound });
}

#[test]
fn the_classifier_learns_which_moments_are_favourable() {
    let plan = Plan { region: 1 << 30, working_set: 1 << 29, bandwidth: 562_500_000, downtime: STEP * 3 };
    let mut moment = Moment::new(plan);
    let (mut good, mut bad) = (0.0, 0.0);
    for tick in 0..900 {
        // The sample that ends now is the tick's.
        moment.look(STEP * tick, if (tick + 29) % 30 >= 20 { 50_000_000 } else { 2_000_000 });
        if tick > 600 {
            let likely = moment.favourable().expect("it has seen enough of both");
            match tick % 30 {
                // The quiet time has begun, and is as long as a migration; or a burst is about to come.
                1 | 2 => good += likely,
                18 | 19 => bad += likely,
                _ => {}
            }
        }
    }
    assert!(good > 17.0 && bad < 3.0, "{good} and {bad} of 20");
}
