//! Migrations of simulated workloads, begun at random moments and at those that are decided on.

use super::*;

const MB: f64 = 1e6;
const MIB: u64 = 1 << 20;

/// 4.5 Gbit/s, 1 GiB, of which half is hot.
const PLAN: Plan = Plan {
    region: 1024 * MIB,
    working_set: 512 * MIB,
    bandwidth: 562_500_000,
    downtime: Duration::from_millis(300),
};

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// From 0 to 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// What is written when: rates that last for a while, in bytes a second and milliseconds.
struct Workload {
    /// A rate for each millisecond.
    rates: Vec<f32>,
}

impl Workload {
    /// From pieces of so many seconds and MB/s.
    fn of(pieces: impl IntoIterator<Item = (f64, f64)>, seconds: f64) -> Self {
        let mut rates = Vec::new();
        let mut until = 0.0;
        for (length, rate) in pieces {
            until += length;
            rates.resize((until * 1000.0) as usize, (rate * MB) as f32);
            if until >= seconds {
                break;
            }
        }
        Self { rates }
    }

    /// Bursts of a second at 500 MB/s after two at 20 MB/s; each part up to `jitter` longer or shorter.
    fn bursts(seed: u64, jitter: f64) -> Self {
        let mut random = Random::new(seed);
        let pieces = (0..).map(move |at| {
            let (length, rate) = if at % 2 == 0 { (2.0, 20.0) } else { (1.0, 500.0) };
            (length * (1.0 + jitter * (2.0 * random.unit() - 1.0)), rate)
        });
        Self::of(pieces, 400.0)
    }

    fn rate(&self, millis: u64) -> f64 {
        self.rates[(millis as usize).min(self.rates.len() - 1)].into()
    }

    fn written(&self, from: u64, to: u64) -> f64 {
        (from..to).map(|at| self.rate(at) / 1000.0).sum()
    }

    /// Pre-copy, millisecond by millisecond: bytes and seconds.
    fn migrate(&self, plan: &Plan, start: u64) -> (f64, f64) {
        let link = plan.bandwidth as f64 / 1000.0;
        let (mut at, mut sent, mut left, mut dirty) = (start, 0.0, plan.region as f64, 0.0);
        for round in 0.. {
            while left > 0.0 {
                sent += left.min(link);
                left -= link;
                dirty = f64::min(dirty + self.rate(at) / 1000.0, plan.working_set as f64);
                at += 1;
            }
            (left, dirty) = (dirty, 0.0);
            let allowed = plan.downtime.as_secs_f64() * 1000.0 * link;
            if left <= allowed || round >= 28 || sent > 3.0 * plan.region as f64 {
                break;
            }
        }
        (sent + left, (at - start) as f64 / 1000.0 + left / link / 1000.0)
    }

    /// Observes from `from` on, asks at `ask`, and answers when it was decided to begin, and why.
    fn best(&self, plan: &Plan, random: &mut Random, from: u64, ask: u64, within: Duration) -> Begun {
        let mut moment = Moment::new(*plan);
        let millis = Duration::from_millis;
        let (mut last, mut asked) = (from, false);
        moment.look(millis(from), 0);
        loop {
            let now = last + 80 + (40.0 * random.unit()) as u64;
            moment.look(millis(now), self.written(last, now).min(plan.working_set as f64) as u64);
            last = now;
            if now < ask {
                continue;
            }
            if !asked {
                moment.ask(millis(now), within);
                asked = true;
            }
            let mut at = now;
            loop {
                match moment.decide(millis(at)) {
                    Verdict::Now { why } => {
                        return Begun {
                            at,
                            waited: at - ask,
                            why,
                            saved: moment.saved().expect("it begins"),
                        };
                    }
                    // Nobody looks before the wait is over.
                    Verdict::Wait { until, .. } if until < millis(now + 80) => {
                        assert!(until > millis(at), "it has to go on");
                        at = until.as_millis() as u64 + 1;
                    }
                    Verdict::Wait { until, .. } => {
                        assert!(until <= millis(ask + 200) + within);
                        break;
                    }
                }
            }
        }
    }
}

struct Begun {
    at: u64,
    waited: u64,
    why: Why,
    saved: Saved,
}

/// The means of begins at random and of those decided on. Observations begin at any moment of `begins` seconds, and last for
/// `observed` before the question.
struct Outcome {
    random: (f64, f64),
    best: (f64, f64),
    /// What was said to be saved against at once, in bytes.
    saved: f64,
    begun: Vec<Begun>,
}

impl Outcome {
    fn of(
        plan: &Plan,
        seed: u64,
        begins: u64,
        observed: u64,
        within: u64,
        workload: impl Fn(u64) -> Workload,
    ) -> Self {
        let mut random = Random::new(seed);
        let mut outcome = Self { random: (0.0, 0.0), best: (0.0, 0.0), saved: 0.0, begun: Vec::new() };
        const RUNS: u64 = 20;
        for run in 0..RUNS {
            let workload = workload(seed * 1000 + run);
            let from = 10_000 + random.next() % (begins * 1000);
            let ask = from + observed * 1000 + random.next() % 6000;
            let begun = workload.best(plan, &mut random, from, ask, Duration::from_secs(within));
            for (sum, start) in [(&mut outcome.random, ask), (&mut outcome.best, begun.at)] {
                let (bytes, seconds) = workload.migrate(plan, start);
                (sum.0, sum.1) = (sum.0 + bytes / RUNS as f64, sum.1 + seconds / RUNS as f64);
            }
            outcome.saved += begun.saved.bytes() / RUNS as f64;
            outcome.begun.push(begun);
        }
        println!(
            "seed {seed}: bytes {:.2} of {:.2} GB ({:.2}), seconds {:.2} of {:.2} ({:.2}), said to save {:.2} GB; {:?}",
            outcome.best.0 / 1e9,
            outcome.random.0 / 1e9,
            outcome.best.0 / outcome.random.0,
            outcome.best.1,
            outcome.random.1,
            outcome.best.1 / outcome.random.1,
            outcome.saved / 1e9,
            outcome.begun.iter().map(|begun| (begun.waited, begun.why)).collect::<Vec<_>>(),
        );
        outcome
    }

    /// At least so much less than at random moments, in bytes and in time.
    fn saves(&self, part: f64) {
        assert!(self.best.0 <= self.random.0 * (1.0 - part), "bytes");
        assert!(self.best.1 <= self.random.1 * (1.0 - part), "time");
    }
}

#[test]
fn bursts_are_avoided() {
    for seed in 1..=3 {
        let outcome = Outcome::of(&PLAN, seed, 10, 30, 60, |run| Workload::bursts(run, 0.0));
        outcome.saves(0.2);
        assert!(outcome.begun.iter().all(|begun| begun.why == Why::Favourable && begun.waited < 6000));
        // And what it says of that is true.
        let saved = outcome.random.0 - outcome.best.0;
        assert!((outcome.saved - saved).abs() < saved * 0.35, "{} and not {saved}", outcome.saved);
    }
}

#[test]
fn bursts_whose_period_varies_are_avoided() {
    for seed in 1..=2 {
        Outcome::of(&PLAN, seed, 10, 40, 60, |run| Workload::bursts(run, 0.1)).saves(0.15);
    }
}

#[test]
fn an_observation_that_begins_with_the_question_is_enough() {
    for seed in 1..=3 {
        let outcome = Outcome::of(&PLAN, seed, 10, 0, 60, |run| Workload::bursts(run, 0.0));
        outcome.saves(0.2);
        assert!(outcome.begun.iter().all(|begun| begun.waited < 20_000));
    }
}

#[test]
fn rates_that_drift_are_followed() {
    for seed in 1..=1 {
        let drifting = |_| {
            // From 500 to 250 MB/s and from 20 to 60.
            let pieces = (0..).map(|at| {
                let part = f64::from(at) / 100.0;
                if at % 2 == 0 { (2.0, 20.0 + 40.0 * part) } else { (1.0, 500.0 - 250.0 * part) }
            });
            Workload::of(pieces.take(100), 150.0)
        };
        Outcome::of(&PLAN, seed, 10, 60, 60, drifting).saves(0.1);
    }
}

#[test]
fn without_a_cycle_it_begins_at_once() {
    for seed in 1..=1 {
        let noise = |run| {
            let mut random = Random::new(run);
            let pieces = std::iter::repeat_with(move || (0.1, 500.0 * random.unit()));
            Workload::of(pieces, 150.0)
        };
        let outcome = Outcome::of(&PLAN, seed, 10, 60, 60, noise);
        // One in two hundred may look like a cycle for a while.
        let at_once = outcome.begun.iter().filter(|begun| begun.waited <= 200).count();
        assert!(at_once >= 19, "{at_once}");
        let steady = Outcome::of(&PLAN, seed, 10, 60, 60, |_| Workload::of([(200.0, 150.0)], 200.0));
        assert!(steady.begun.iter().all(|begun| begun.waited <= 200 && begun.why == Why::Steady));
        // Where nobody has looked before, it takes a moment to see that.
        let cold = Outcome::of(&PLAN, seed, 10, 0, 60, |_| Workload::of([(200.0, 5.0)], 200.0));
        assert!(cold.begun.iter().all(|begun| begun.waited <= 8000 && begun.why == Why::Steady));
        let noisy = Outcome::of(&PLAN, seed, 10, 0, 40, noise);
        assert!(noisy.begun.iter().all(|begun| begun.waited <= 20_300));
    }
}

#[test]
fn of_a_cycle_that_is_longer_than_the_bound_the_best_that_can_be_reached_is_taken() {
    // Ten seconds of writing after ten of rest, and four to wait for.
    let slow = |_| Workload::of([(10.0, 20.0), (10.0, 500.0)].repeat(8), 160.0);
    let outcome = Outcome::of(&PLAN, 1, 20, 70, 4, slow);
    for begun in &outcome.begun {
        assert!(begun.waited <= 4200, "{}", begun.waited);
        // Whoever can reach quiet time begins in it, and whoever is in it at once.
        let asked = (begun.at - begun.waited) % 20_000;
        if !(7000..16_500).contains(&asked) {
            // A sample or two early are none too many.
            assert!((begun.at + 200) % 20_000 < 8700, "asked at {asked}, begun at {}", begun.at % 20_000);
        }
    }
    assert!(outcome.best.0 < outcome.random.0 * 0.95);
}

#[test]
fn a_cycle_that_ends_is_not_waited_for() {
    for seed in 1..=1 {
        // Asked for when it has just ended.
        let ended = |_| {
            let pieces = (0..20).map(|at| if at % 2 == 0 { (2.0, 20.0) } else { (1.0, 500.0) });
            Workload::of(pieces.chain([(200.0, 500.0)]), 230.0)
        };
        let outcome = Outcome::of(&PLAN, seed, 10, 15, 60, ended);
        assert!(outcome.begun.iter().all(|begun| begun.waited < 30_000), "it was given up");
    }
}

#[test]
fn there_is_nothing_to_gain_where_a_migration_takes_many_periods() {
    // 64 GiB take two minutes.
    let plan = Plan { region: 64 << 30, ..PLAN };
    let outcome = Outcome::of(&plan, 1, 10, 30, 60, |run| Workload::bursts(run, 0.0));
    assert!(outcome.begun.iter().all(|begun| begun.waited <= 200 && begun.why == Why::NothingToGain));
}

#[test]
fn a_short_quiet_time_is_used_as_far_as_it_goes() {
    // The quiet time is half as long as the migration: it begins so that the first pass has all of it.
    let short = |_| Workload::of([(1.0, 5.0), (5.0, 400.0)].repeat(40), 240.0);
    for seed in 1..=1 {
        let outcome = Outcome::of(&PLAN, seed, 10, 60, 60, short);
        assert!(outcome.best.0 < outcome.random.0 * 1.005, "it is no worse");
        assert!(outcome.begun.iter().all(|begun| begun.waited < 15_000));
    }
}

#[test]
fn where_a_migration_just_fits_into_the_quiet_time_it_does_not_begin_late() {
    // 50 ms of standstill end no round in a burst.
    let plan = Plan { working_set: PLAN.region, downtime: Duration::from_millis(50), ..PLAN };
    for seed in 1..=2 {
        let outcome = Outcome::of(&plan, seed, 10, 0, 20, |run| Workload::bursts(run, 0.0));
        outcome.saves(0.2);
        // The link carries 4 % less than was thought: it takes 1.99 of 2 seconds.
        let slower = Plan { bandwidth: 540_000_000, ..plan };
        let late = outcome.begun.iter().filter(|begun| {
            let (bytes, _) = Workload::bursts(0, 0.0).migrate(&slower, begun.at % 3000 + 3000);
            bytes > plan.region as f64 * 1.2
        });
        assert!(late.count() <= 1);
    }
}
