//! Whole migrations with a fake clock, a model of a writer and a model of a link.

use proptest::prelude::*;

use super::*;
use crate::bitmap::BitSet;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MB: f64 = 1e6;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A writer at one moment: bytes per second, one page at a time, at random among the first so many pages.
#[derive(Clone, Copy, Debug)]
struct Writing {
    rate: f64,
    pages: u64,
}

struct Model<'a> {
    goals: Goals,
    size: u64,
    round_trip: Duration,
    /// Bytes per second at a time in seconds.
    link: &'a dyn Fn(f64) -> f64,
    writer: &'a dyn Fn(f64) -> Writing,
}

#[derive(Debug)]
struct Result {
    end: Next,
    reason: Reason,
    downtime: Duration,
    /// Until everything was there.
    took: Duration,
    sent: u64,
    rounds: u64,
}

/// A migration under way.
struct Run<'a> {
    model: &'a Model<'a>,
    now: f64,
    random: u64,
    /// Fractions of a page that were not written yet.
    owed: f64,
    dirty: BitSet,
    looked: BitSet,
    looked_at: f64,
    missing: BitSet,
    sent: u64,
    controller: Controller,
}

const COSTS: Costs = Costs {
    suspend: Duration::from_micros(300),
    record: Duration::from_micros(500),
    resume: Duration::from_micros(200),
};

impl Model<'_> {
    fn run(&self) -> Result {
        let pages = self.size / PAGE;
        let mut run = Run {
            model: self,
            now: 0.0,
            random: 1,
            owed: 0.0,
            dirty: BitSet::new(pages),
            looked: BitSet::new(pages),
            looked_at: 0.0,
            missing: BitSet::full(pages),
            sent: 0,
            controller: Controller::new(self.goals, COSTS),
        };
        run.controller.handle_round_trip(self.round_trip);
        let decision = run.copy();
        let reason = decision.reason;
        let rounds = run.controller.rounds();
        let mut result = Result { end: decision.next, reason, downtime: ms(0), took: ms(0), sent: 0, rounds };
        if let Next::Switch(last) = decision.next {
            // SWITCH is on its way.
            run.pass(self.round_trip.as_secs_f64() / 2.0);
            let suspended = run.now;
            run.now += (COSTS.suspend + self.round_trip / 2).as_secs_f64();
            run.take_set();
            if last == Last::Send && !run.missing.is_empty() {
                run.now += self.round_trip.as_secs_f64();
                run.send_all();
            }
            run.now += (COSTS.record + COSTS.resume).as_secs_f64();
            result.downtime = Duration::from_secs_f64(run.now - suspended);
            run.send_all();
        }
        result.took = Duration::from_secs_f64(run.now);
        result.sent = run.sent;
        result
    }
}

impl Run<'_> {
    /// Everything until the switch, or until it is given up.
    fn copy(&mut self) -> Decision {
        self.controller.handle_begun(self.at());
        loop {
            let decision = self.controller.decide(self.at(), self.missing.count() * PAGE, 0);
            match decision.next {
                Next::Pull => {
                    if let Some(decision) = self.pull() {
                        return decision;
                    }
                }
                Next::Round => {
                    self.pass(self.model.round_trip.as_secs_f64() / 2.0);
                    let bytes = self.take_set();
                    self.controller.handle_round(self.at(), bytes);
                    self.pass(self.model.round_trip.as_secs_f64() / 2.0);
                }
                Next::Witness => panic!("there is none"),
                Next::Switch(_) | Next::Abort => return decision,
            }
            assert!(self.controller.rounds() < 1000, "it goes on and on");
        }
    }

    fn at(&self) -> Duration {
        Duration::from_secs_f64(self.now)
    }

    /// Time passes, in which the application writes.
    fn pass(&mut self, seconds: f64) {
        let Writing { rate, pages } = (self.model.writer)(self.now);
        self.now += seconds;
        self.owed += rate * seconds / PAGE as f64;
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let page = ((self.random >> 33) * pages) >> 31;
            self.dirty.insert(page);
            self.looked.insert(page);
        }
    }

    fn take_set(&mut self) -> u64 {
        let bytes = self.dirty.count() * PAGE;
        self.missing.insert_all(&self.dirty);
        self.dirty.clear();
        bytes
    }

    fn pull(&mut self) -> Option<Decision> {
        self.pass(self.model.round_trip.as_secs_f64());
        let mut from = 0;
        while !self.missing.is_empty() {
            let rate = (self.model.link)(self.now);
            let slice = 0.002_f64.min((self.missing.count() * PAGE) as f64 / rate);
            self.pass(slice);
            let mut pages = ((rate * slice) as u64).div_ceil(PAGE);
            while pages > 0
                && let Some(run) = self.missing.take_run(from, pages)
            {
                from = run.end;
                pages -= run.end - run.start;
                let bytes = (run.end - run.start) * PAGE;
                self.sent += bytes;
                self.controller.handle_sent(bytes, Duration::from_secs_f64(bytes as f64 / rate));
            }
            if self.now - self.looked_at > 0.1 {
                let over = Duration::from_secs_f64(self.now - self.looked_at);
                self.controller.handle_look(self.at(), self.looked.count() * PAGE, over);
                self.looked.clear();
                self.looked_at = self.now;
            }
            if let Some(decision) = self.controller.interrupt(self.at(), self.missing.count() * PAGE, 0) {
                return Some(decision);
            }
        }
        None
    }

    /// What is missing arrives, while the application writes elsewhere, or not at all.
    fn send_all(&mut self) {
        let bytes = self.missing.count() * PAGE;
        self.now += bytes as f64 / (self.model.link)(self.now);
        self.sent += bytes;
        self.missing.clear();
    }
}

fn hot(rate: f64, mib: u64) -> impl Fn(f64) -> Writing {
    move |_| Writing { rate, pages: mib * MIB / PAGE }
}

#[test]
fn on_loopback_the_downtime_is_a_few_milliseconds_and_little_is_sent_twice() {
    let (link, writer) = (|_| 2.5e9, hot(100.0 * MB, 64));
    for mode in [Mode::Auto, Mode::PreCopy, Mode::Hybrid] {
        let goals = Goals { mode, ..Goals::default() };
        let result =
            Model { goals, size: GIB, round_trip: Duration::from_micros(50), link: &link, writer: &writer }
                .run();
        let expected = if mode == Mode::Hybrid { Last::Leave } else { Last::Send };
        assert_eq!(result.end, Next::Switch(expected), "{result:?}");
        assert!(result.downtime <= ms(5), "{mode}: {result:?}");
        assert!(result.sent <= GIB * 13 / 10, "{mode}: {result:?}");
    }
}

#[test]
fn over_a_long_way_the_downtime_is_two_round_trips_and_a_little() {
    let writer = hot(100.0 * MB, 64);
    for rate in [0.5e9, 1.3e9] {
        for mode in [Mode::Auto, Mode::PreCopy, Mode::Hybrid] {
            let goals = Goals { mode, ..Goals::default() };
            let result =
                Model { goals, size: GIB, round_trip: ms(25), link: &|_| rate, writer: &writer }.run();
            assert!(matches!(result.end, Next::Switch(_)), "{result:?}");
            let most = if mode == Mode::Hybrid { ms(25 + 10) } else { ms(2 * 25 + 10) };
            assert!(result.downtime <= most, "{mode} at {rate}: {result:?}");
            assert!(result.sent <= GIB * 13 / 10, "{mode} at {rate}: {result:?}");
        }
    }
}

#[test]
fn a_writer_that_is_faster_than_the_link_ends_by_hybrid_before_the_deadline() {
    let (link, writer) = (|_| 0.9e9, hot(1.2e9, 512));
    for deadline in [None, Some(ms(4000)), Some(ms(2000))] {
        let goals = Goals { deadline, ..Goals::default() };
        let result = Model { goals, size: GIB, round_trip: ms(1), link: &link, writer: &writer }.run();
        assert_eq!(result.end, Next::Switch(Last::Leave), "{result:?}");
        assert!(result.downtime <= ms(3), "{result:?}");
        assert!(deadline.is_none_or(|deadline| result.took <= deadline), "{result:?}");
        assert!(result.sent <= 3 * GIB, "{result:?}");
    }
    let goals = Goals::default();
    let result = Model { goals, size: GIB, round_trip: ms(1), link: &link, writer: &hot(6e9, 1024) }.run();
    assert!(matches!(result.reason, Reason::CannotConverge { .. }), "{result:?}");
    // The first time that all of it is sent shows as much as a round would.
    assert!(result.rounds == 0 && result.sent <= 2 * GIB, "{result:?}");
}

#[test]
fn a_flow_that_has_just_begun_says_nothing_of_how_long_all_takes() {
    let link = |now: f64| if now < 0.2 { 3e7 } else { 1.25e8 };
    let goals = Goals { deadline: Some(ms(30_000)), ..Goals::default() };
    let model = Model { goals, size: GIB, round_trip: ms(25), link: &link, writer: &hot(10.0 * MB, 16) };
    let result = model.run();
    assert_eq!(result.end, Next::Switch(Last::Send), "{result:?}");
    // Where there is no time to find out, it is of account.
    let goals = Goals { deadline: Some(ms(500)), ..Goals::default() };
    let result = Model { goals, ..model }.run();
    assert_eq!(result.end, Next::Switch(Last::Leave), "{result:?}");
    assert!(matches!(result.reason, Reason::Deadline { .. }), "{result:?}");
}

#[test]
fn strict_pre_copy_fails_rather_than_to_break_its_word() {
    let (link, writer) = (|_| 0.9e9, hot(1.2e9, 512));
    let strict = Goals { mode: Mode::PreCopy, max_downtime: Some(ms(50)), ..Goals::default() };
    let model = |goals| Model { goals, size: GIB, round_trip: ms(1), link: &link, writer: &writer };
    let result = model(strict).run();
    assert_eq!(result.end, Next::Abort);
    assert!(result.rounds <= 6 * u64::from(STRICT_PATIENCE) && result.took <= 3 * STRICT_TIME, "{result:?}");
    let result = model(Goals { deadline: Some(ms(8000)), ..strict }).run();
    assert_eq!(result.end, Next::Abort);
    assert!(matches!(result.reason, Reason::Deadline { .. }), "{result:?}");
    assert!(result.took >= ms(8000) && result.took <= ms(9000), "{result:?}");
    let result = model(Goals { max_bytes: Some(2 * GIB), ..strict }).run();
    assert_eq!(result.end, Next::Abort);
    assert!(result.sent <= 2 * GIB, "{result:?}");
    // Who asks for no downtime gets what there is.
    let result = model(Goals { mode: Mode::PreCopy, ..Goals::default() }).run();
    assert_eq!(result.end, Next::Switch(Last::Send));
}

#[test]
fn strict_pre_copy_outlasts_a_burst() {
    // In the burst, what is left takes a little longer than the downtime that was asked for, dozens of rounds long.
    let burst =
        |now: f64| Writing { rate: if now < 4.0 { 500.0 * MB } else { 20.0 * MB }, pages: 8 * MIB / PAGE };
    let goals = Goals { mode: Mode::PreCopy, max_downtime: Some(ms(3)), ..Goals::default() };
    let result = Model { goals, size: GIB, round_trip: ms(1), link: &|_| 5.5e8, writer: &burst }.run();
    assert_eq!(result.end, Next::Switch(Last::Send), "{result:?}");
    assert!(result.took <= ms(4500) && result.rounds > u64::from(STRICT_PATIENCE), "{result:?}");
}

#[test]
fn a_downtime_that_was_asked_for_ends_it_as_soon_as_it_can_be_had() {
    let (link, writer) = (|_| 1e9, hot(100.0 * MB, 256));
    let run = |max_downtime| {
        let goals = Goals { max_downtime, ..Goals::default() };
        Model { goals, size: GIB, round_trip: ms(1), link: &link, writer: &writer }.run()
    };
    let (patient, hasty) = (run(None), run(Some(ms(200))));
    assert!(matches!(hasty.reason, Reason::WithinGoal { .. }), "{hasty:?}");
    assert!(hasty.downtime <= ms(220), "{hasty:?}");
    assert!(hasty.rounds < patient.rounds && hasty.downtime > patient.downtime, "{hasty:?} {patient:?}");
}

#[test]
fn a_downtime_that_nothing_can_bring_about_is_refused_or_taken_for_the_shortest() {
    let (link, writer) = (|_| 1e9, hot(100.0 * MB, 64));
    let run = |mode| {
        let goals = Goals { mode, max_downtime: Some(Duration::from_micros(500)), ..Goals::default() };
        Model { goals, size: 64 * MIB, round_trip: ms(2), link: &link, writer: &writer }.run()
    };
    let refused = run(Mode::PreCopy);
    assert_eq!(refused.end, Next::Abort);
    let text = "suspending and resuming alone take 2.0ms, and a downtime of 500µs was asked for";
    assert_eq!(refused.reason.to_string(), text);
    let shortest = run(Mode::Auto);
    assert_eq!(shortest.end, Next::Switch(Last::Send), "{shortest:?}");
    assert!(shortest.downtime <= ms(6), "{shortest:?}");
}

#[test]
fn post_copy_sends_each_byte_once() {
    let goals = Goals { mode: Mode::PostCopy, ..Goals::default() };
    let (link, writer) = (|_| 1e9, hot(100.0 * MB, 64));
    let result = Model { goals, size: GIB, round_trip: ms(10), link: &link, writer: &writer }.run();
    assert_eq!((result.end, result.sent), (Next::Switch(Last::Leave), GIB));
    assert!(result.downtime <= ms(7), "{result:?}");
}

#[test]
fn what_may_be_sent_is_not_passed() {
    let (link, writer) = (|_| 0.9e9, hot(1.2e9, 512));
    for most in [GIB * 11 / 10, GIB * 3 / 2, 2 * GIB] {
        let goals = Goals { max_bytes: Some(most), ..Goals::default() };
        let result = Model { goals, size: GIB, round_trip: ms(1), link: &link, writer: &writer }.run();
        assert_eq!(result.end, Next::Switch(Last::Leave), "{result:?}");
        // What is written between two looks is known after the second one.
        assert!(result.sent <= most + most / 50, "{most}: {result:?}");
    }
}

#[test]
fn bursts_and_links_that_change_are_met() {
    // A third of the time at full speed.
    let bursts =
        |now: f64| Writing { rate: if now % 0.9 < 0.3 { 2e9 } else { 5e6 }, pages: 256 * MIB / PAGE };
    let result =
        Model { goals: Goals::default(), size: GIB, round_trip: ms(1), link: &|_| 1e9, writer: &bursts }
            .run();
    assert!(matches!(result.end, Next::Switch(_)) && result.downtime <= ms(300), "{result:?}");
    assert!(result.sent <= 3 * GIB, "{result:?}");
    // The link loses nine tenths of its rate in the middle; then the writer is too fast for it.
    let goals = Goals { deadline: Some(ms(12_000)), ..Goals::default() };
    let writer = hot(150.0 * MB, 1024);
    let link = |now: f64| if now < 1.0 { 1e9 } else { 1e8 };
    let result = Model { goals, size: GIB, round_trip: ms(1), link: &link, writer: &writer }.run();
    assert!(matches!(result.end, Next::Switch(_)), "{result:?}");
    assert!(result.took <= ms(13_000), "{result:?}");
    // A writer that becomes quiet is sent in time to be moved without anything left.
    let writer = |now: f64| Writing { rate: if now < 2.0 { 3e9 } else { 1e6 }, pages: 512 * MIB / PAGE };
    let goals = Goals { mode: Mode::PreCopy, max_downtime: Some(ms(20)), ..Goals::default() };
    let result = Model { goals, size: GIB, round_trip: ms(1), link: &|_| 1e9, writer: &writer }.run();
    assert_eq!(result.end, Next::Switch(Last::Send), "{result:?}");
    assert!(result.downtime <= ms(20), "{result:?}");
}

#[test]
fn an_idle_application_is_moved_after_one_pass() {
    let idle = |_| Writing { rate: 0.0, pages: 1 };
    let goals = Goals::default();
    let result = Model { goals, size: 64 * MIB, round_trip: ms(25), link: &|_| 1e9, writer: &idle }.run();
    assert_eq!((result.end, result.sent), (Next::Switch(Last::Send), 64 * MIB));
    assert!(result.rounds <= 1 && result.downtime <= ms(14), "{result:?}");
}

#[test]
fn reasons_are_sentences() {
    let reason = Reason::CannotConverge { written: 1_200_000_000, link: 900_000_000 };
    let text = "the writer dirties 1.2 GB/s, the link carries 900 MB/s: pre-copy cannot converge";
    assert_eq!(reason.to_string(), text);
    let reason = Reason::Deadline { deadline: Duration::from_secs(10), left: ms(2345) };
    assert_eq!(reason.to_string(), "what is left takes 2.3s, and everything should be there after 10s");
    let reason = Reason::Shrinking { from: 999_999, to: 12 };
    assert_eq!(reason.to_string(), "another round brings what is left from 1.0 MB to 12 B");
    assert_eq!("hybrid".parse(), Ok(Mode::Hybrid));
    let unknown = "fast".parse::<Mode>().unwrap_err().to_string();
    assert_eq!(unknown, "\"fast\" is no way to migrate: it is auto, pre-copy, post-copy or hybrid");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is measured, and however wrong: it ends, in a way that the mode allows.
    #[test]
    fn it_always_ends_as_the_mode_allows(
        mode in prop_oneof![Just(Mode::Auto), Just(Mode::PreCopy), Just(Mode::PostCopy), Just(Mode::Hybrid)],
        max_downtime in prop::option::of(1u64..500), deadline in prop::option::of(10u64..3000),
        max_bytes in prop::option::of(32u64..200), round_trip in 0u64..50,
        rates in prop::collection::vec((1e7..2e9, 0.0..2e9, 1u64..32), 1..4),
    ) {
        let goals = Goals {
            mode,
            max_downtime: max_downtime.map(ms),
            deadline: deadline.map(ms),
            max_bytes: max_bytes.map(|mib| mib * MIB),
        };
        let at = |now: f64| rates[(now * 3.0) as usize % rates.len()];
        let link = |now| at(now).0;
        let writer = |now| Writing { rate: at(now).1, pages: at(now).2 * MIB / PAGE };
        let result =
            Model { goals, size: 32 * MIB, round_trip: ms(round_trip), link: &link, writer: &writer }.run();
        match mode {
            Mode::Auto => prop_assert!(matches!(result.end, Next::Switch(_))),
            Mode::PreCopy => prop_assert!(matches!(result.end, Next::Switch(Last::Send) | Next::Abort)),
            Mode::PostCopy | Mode::Hybrid => prop_assert_eq!(result.end, Next::Switch(Last::Leave)),
        }
        prop_assert!(result.end != Next::Abort || max_downtime.is_some() || max_bytes.is_some(), "{:?}", result);
        if rates.len() == 1 && result.end == Next::Switch(Last::Send) && let Some(goal) = goals.max_downtime {
            prop_assert!(result.downtime <= goal * 3 / 2 + ms(5), "{:?}", result);
        }
    }
}

#[test]
fn no_more_is_expected_to_be_written_than_there_is() {
    let mut controller = Controller::new(Goals::default(), COSTS);
    controller.handle_length(GIB);
    controller.handle_begun(Duration::ZERO);
    controller.handle_sent(512 * MIB, ms(500));
    controller.handle_look(ms(500), 200 * MIB, ms(500));
    controller.handle_look(ms(8000), 3 * GIB, ms(7500));
    let decision = controller.decide(ms(8000), 512 * MIB, 0);
    assert_eq!((decision.missing, decision.set), (512 * MIB, 512 * MIB));
}
