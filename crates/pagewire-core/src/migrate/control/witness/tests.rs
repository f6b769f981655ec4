//! Switches that wait for a witness, with a fake clock, and models of a writer and of the way to the witness.

use super::*;
use crate::migrate::control::{Controller, Costs};

const MIB: u64 = 1 << 20;

const LOOK: Duration = Duration::from_millis(50);

const COSTS: Costs = Costs {
    suspend: Duration::from_millis(2),
    record: Duration::from_millis(1),
    resume: Duration::from_millis(1),
};

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// A witness that takes `rate` bytes a second, and a writer that dirties `dirties` of them, up to `most` at once.
struct Model {
    goals: Goals,
    size: u64,
    rate: f64,
    dirties: f64,
    most: u64,
}

impl Model {
    /// What was decided at last, and how much the witness lacked then.
    fn run(&self) -> (Decision, u64) {
        let mut controller = Controller::new(self.goals, COSTS);
        let (mut now, mut missing, mut sent) = (Duration::ZERO, self.size, 0);
        controller.handle_begun(now);
        loop {
            controller.handle_witness(now, missing, sent);
            let decision = controller.decide(now, self.size, 0);
            if decision.next != Next::Witness {
                return (decision, missing);
            }
            assert!(now < seconds(1000.0), "it waits for ever");
            now += LOOK;
            let took = ((self.rate * LOOK.as_secs_f64()) as u64).min(missing);
            sent += took;
            let dirtied = (self.dirties * LOOK.as_secs_f64()) as u64;
            // What is missing already is not missing twice.
            missing = (missing - took).max((missing - took + dirtied).min(self.most));
        }
    }
}

fn post_copy() -> Goals {
    Goals { mode: Mode::PostCopy, ..Goals::default() }
}

const LEAVE: Next = Next::Switch(Last::Leave);

#[test]
fn post_copy_switches_at_once_without_a_witness_and_with_one_when_that_has_everything() {
    let mut controller = Controller::new(post_copy(), COSTS);
    assert_eq!(controller.decide(Duration::ZERO, 512 * MIB, 0).next, LEAVE);
    let model = Model { goals: post_copy(), size: 512 * MIB, rate: 100e6, dirties: 0.0, most: 0 };
    let (decision, missing) = model.run();
    assert_eq!(decision.next, LEAVE);
    // No more than a switch takes anyway.
    assert!(missing <= 400_000, "{missing}");
    let expected = 512.0 * MIB as f64 / 100e6;
    assert!((expected - 0.1..expected + 0.1).contains(&decision.at.as_secs_f64()), "{decision:?}");
}

#[test]
fn the_downtime_that_was_asked_for_is_kept_with_what_is_left() {
    for goal in [0.05, 0.2, 1.0] {
        let goals = Goals { max_downtime: Some(seconds(goal)), ..post_copy() };
        let model = Model { goals, size: 512 * MIB, rate: 100e6, dirties: 0.0, most: 0 };
        let (decision, missing) = model.run();
        assert_eq!(decision.next, LEAVE);
        assert!(decision.downtime <= seconds(goal), "{decision:?}");
        let least = (goal - 0.06 - 0.004) * 100e6;
        assert!(missing as f64 >= least, "it waits no longer than it has to: {missing} for {goal} s");
    }
}

#[test]
fn a_witness_that_comes_no_nearer_is_taken_where_the_wait_is_tolerable() {
    // Some 100 ms of what is always dirty.
    let model = Model { goals: post_copy(), size: 64 * MIB, rate: 100e6, dirties: 1e9, most: 10_000_000 };
    let (decision, missing) = model.run();
    assert_eq!((decision.next, missing <= 30_000_000), (LEAVE, true), "{missing}: {decision:?}");
    assert!(decision.downtime <= TOLERABLE + COSTS.suspend + COSTS.record + COSTS.resume);
}

#[test]
fn a_writer_that_is_faster_than_the_way_to_the_witness_ends_it_with_a_reason() {
    let always = Model { goals: post_copy(), size: 512 * MIB, rate: 50e6, dirties: 1e9, most: 512 * MIB };
    let (decision, _) = always.run();
    assert_eq!(decision.next, Next::Abort);
    assert!(
        matches!(decision.reason, Reason::WitnessLags { rate: 40_000_000..60_000_000, .. }),
        "{decision:?}"
    );
    assert!(decision.reason.to_string().contains("the witness takes 50 MB/s"), "{}", decision.reason);
    assert!(decision.at >= LAGS && decision.at < LAGS * 2);
    // One that takes nothing at all ends it, too.
    let (decision, _) = Model { rate: 0.0, ..always }.run();
    assert!(matches!(decision.reason, Reason::WitnessLags { rate: 0, .. }), "{decision:?}");
}

#[test]
fn a_large_region_on_a_slow_way_is_waited_for() {
    let model = Model { goals: post_copy(), size: 1 << 33, rate: 10e6, dirties: 0.0, most: 0 };
    let (decision, _) = model.run();
    assert_eq!(decision.next, LEAVE);
    assert!(decision.at > seconds(850.0));
}

#[test]
fn at_the_deadline_it_waits_no_longer_but_pre_copy_gives_up_before_it_breaks_its_word() {
    let deadline = Some(seconds(20.0));
    let goals = Goals { deadline, ..post_copy() };
    let model = Model { goals, size: 512 * MIB, rate: 20e6, dirties: 1e9, most: 512 * MIB };
    let (decision, _) = model.run();
    assert_eq!(decision.next, LEAVE);
    assert!(decision.at <= seconds(20.0));
    let mut strict = Witness::default();
    let goals = Goals { mode: Mode::PreCopy, max_downtime: Some(seconds(0.1)), deadline, ..Goals::default() };
    strict.handle(seconds(1.0), 512 * MIB, 0);
    strict.handle(seconds(2.0), 512 * MIB, 20_000_000);
    let base = seconds(0.01);
    let early = strict.keeps(seconds(2.0), base, &goals);
    assert!(matches!(early, Some((Next::Witness, _))), "{early:?}");
    let late = strict.keeps(seconds(20.0), base, &goals);
    assert!(matches!(late, Some((Next::Abort, Reason::Deadline { .. }))), "{late:?}");
}

#[test]
fn what_was_decided_while_something_was_pulled_waits_for_the_witness_too() {
    let mut controller = Controller::new(Goals { mode: Mode::Hybrid, ..Goals::default() }, COSTS);
    controller.handle_begun(Duration::ZERO);
    assert_eq!(controller.witness(seconds(1.0), 0, Last::Leave), None, "there is none");
    controller.handle_witness(seconds(1.0), 512 * MIB, 0);
    let kept = controller.witness(seconds(1.0), 0, Last::Leave).unwrap();
    assert_eq!((kept.next, kept.reason), (Next::Witness, Reason::Unwitnessed { bytes: 512 * MIB }));
    controller.handle_witness(seconds(2.0), 0, 512 * MIB);
    assert_eq!(controller.witness(seconds(2.0), 0, Last::Leave), None);
}
