//! The right moment for a live migration: in the part of the workload's cycle in which little is written.
//!
//! Pre-copy sends what is written meanwhile again. Many workloads write in bursts that recur: a garbage collector, a checkpoint,
//! a batch. To begin just after a burst costs less than to begin at any moment, and often it is worth to wait for that. The
//! method is that of Baruchi, Midorikawa and Sato, "Reducing Virtual Machine Live Migration Overhead via Workload
//! Analysis" (IEEE Latin America Transactions 13(4), 2015): find the cycle, tell moments that are favourable from others by
//! naive Bayes, and postpone the migration to one of them.
//!
//! ```text
//!   look: bytes written      Samples ----> Cycle ----> Outlook of the next period ----+
//!   since the last look  -->    |                                                    +--> decide: Verdict
//!                               +----> features ----> Classifier --------------------+
//!                               |                        ^
//!                               +--> what it would have cost, some time later
//! ```
//!
//! - [`Samples`] of the rate are kept for some minutes, and a [`Cycle`] is looked for in them once a second.
//! - The next period's rates give the [`Cost`] of a migration for each moment to begin it ([`Plan`]: how much there is, over
//!   what link): pre-copy round by round. So it is known how long a quiet time lasts, against how long the migration
//!   takes, and the best begin is the one whose rounds lie in quiet time as far as they can.
//! - The classifier learns by hindsight: when as much time has gone by as a migration takes, it is known what that would have
//!   cost, with the rates that there really were. A moment was favourable if that was nearer to the cheapest of the last ones
//!   than to the dearest. The features are the rate, its change, its mean of late, and the phase in the cycle. It has a say where the
//!   outlook is not clear: it lets a migration begin a little before the outlook's best moment, or holds it for a part of
//!   a period, if what is seen now is what favourable moments look like, or is not.
//! - Nothing is waited for without a cycle. To find out takes a while where nobody has looked before, and [`Moment::decide`] says
//!   for how long; it never waits past what it was allowed.
//!
//! All times are durations since any one moment, the same for all calls. What one look takes is bounded: a few milliseconds in
//! a second in which a cycle is looked for in as many samples as are kept, else microseconds.

mod classifier;
mod cost;
mod cycle;
mod samples;
mod spectrum;
mod verdict;

use std::collections::VecDeque;
use std::time::Duration;

pub use cost::{Cost, Plan};
pub use cycle::Cycle;
pub use samples::{CAPACITY, STEP, Samples};
pub use verdict::{Saved, Verdict, Why};

use classifier::{Classifier, Features};
use cost::Outlook;
use samples::STEP_SECONDS;

/// How often a cycle is looked for, in samples.
const SEARCH: usize = 10;

/// Samples that the last mean is of, and those that a change is from.
const RECENT: usize = 10;
const JUST_BEFORE: usize = 5;

/// How many moments a moment's cost is compared with: that of a few cycles.
const COMPARED: usize = 512;

/// Where the dearest moments cost no more than this times the cheapest, there is nothing to learn.
const ALIKE: f64 = 1.02;

/// How many samples hindsight looks at, at most: a minute. What a migration would have taken longer is taken to go on like that.
const HINDSIGHT: usize = 600;

/// Rates below this are all alike to a migration; in bytes a second.
const NOTHING: f64 = 65_536.0;

/// What decides when a migration begins.
///
/// ```
/// use std::time::Duration;
/// use pagewire_core::migrate::moment::{Moment, Plan, Verdict};
///
/// let gib = 1 << 30;
/// let plan = Plan {
///     region: gib,
///     working_set: gib / 2,
///     bandwidth: 562_500_000,
///     downtime: Duration::from_millis(300),
/// };
/// let mut moment = Moment::new(plan);
/// let mut began = None;
/// // Ten times in a second: bursts of one second after two quiet ones.
/// for tick in 0..600 {
///     let now = Duration::from_millis(tick * 100);
///     moment.look(now, if tick % 30 >= 20 { 50_000_000 } else { 2_000_000 });
///     if tick == 315 {
///         moment.ask(now, Duration::from_secs(10));
///     }
///     if let (true, Verdict::Now { .. }) = (tick >= 315, moment.decide(now)) {
///         began = Some(tick);
///         break;
///     }
/// }
/// // As the burst that it was asked in is just over or nearly.
/// assert!((329..=332).contains(&began.expect("it is never too late")));
/// ```
#[derive(Debug, Clone)]
pub struct Moment {
    plan: Plan,
    samples: Samples,
    cycle: Option<Cycle>,
    /// Samples until a cycle is looked for again.
    search_in: usize,
    classifier: Classifier,
    /// The moments that hindsight does not know of yet; the last one is that of the last sample. Those in a gap are none.
    pending: VecDeque<Option<Features>>,
    /// What the last ones would have cost.
    costs: VecDeque<f64>,
    asked: Option<Asked>,
    saved: Option<Saved>,
}

/// Somebody wants a migration to begin.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Duration,
    bound: Duration,
    /// Since when the classifier has held it.
    held: Option<Duration>,
}

impl Moment {
    /// Nothing was seen yet.
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            samples: Samples::default(),
            cycle: None,
            search_in: SEARCH,
            classifier: Classifier::default(),
            pending: VecDeque::new(),
            costs: VecDeque::new(),
            asked: None,
            saved: None,
        }
    }

    /// More is known of the region, or of the link. What was learnt stays; hindsight begins anew.
    pub fn replan(&mut self, plan: Plan) {
        if plan != self.plan {
            self.plan = plan;
            self.pending.clear();
            self.costs.clear();
        }
    }

    /// So many bytes were written since the last look: see [`Samples::look`]. To be called every [`STEP`], or about that.
    pub fn look(&mut self, now: Duration, bytes: u64) {
        let over = self.samples.look(now, bytes);
        if self.samples.is_empty() {
            // It has begun anew.
            self.cycle = None;
            self.pending.clear();
        }
        if over == 0 {
            return;
        }
        if self.search_in <= over {
            self.search_in = SEARCH;
            self.cycle = Cycle::find(&self.samples);
        } else {
            self.search_in -= over;
            if let Some(cycle) = &mut self.cycle {
                cycle.follow(&self.samples);
            }
        }
        self.pending.extend((1..over).map(|_| None));
        self.pending.push_back(Some(self.features()));
        self.look_back();
    }

    /// Somebody wants to begin a migration at the best moment, from `now` on for as long as `within`.
    pub fn ask(&mut self, now: Duration, within: Duration) {
        self.asked = Some(Asked { at: now, bound: now.saturating_add(within), held: None });
        self.saved = None;
    }

    /// Whether to begin now. It is to be asked again after each look, and when the wait that it has answered is over. Without
    /// an [`ask`](Self::ask) nothing is waited for.
    pub fn decide(&mut self, now: Duration) -> Verdict {
        let verdict = self.judge(now);
        if let Verdict::Now { .. } = verdict {
            self.saved = Some(self.compare(now));
        }
        verdict
    }

    /// What the last decision to begin has saved, as far as can be told then.
    pub fn saved(&self) -> Option<Saved> {
        self.saved
    }

    /// The cycle, if there is one.
    pub fn cycle(&self) -> Option<Cycle> {
        self.cycle
    }

    /// The samples.
    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// How likely the classifier takes the moment of the last sample for favourable, from 0 to 1. None before it has seen
    /// enough of both.
    pub fn favourable(&self) -> Option<f64> {
        self.classifier.favourable(&self.features())
    }

    fn features(&self) -> Features {
        let log = |rate: f64| (1.0 + rate / NOTHING).ln();
        let now = log(self.samples.back(0).unwrap_or(0.0));
        let before = (1..=JUST_BEFORE).filter_map(|back| self.samples.back(back)).map(log);
        let (count, sum) = before.fold((0.0, 0.0), |(count, sum), rate| (count + 1.0, sum + rate));
        let turn = self.cycle.map(|cycle| (cycle.phase() * std::f64::consts::TAU).sin_cos());
        [
            Some(now),
            (count > 0.0).then(|| now - sum / count),
            Some(log(self.samples.recent_mean(RECENT))),
            turn.map(|(sin, _)| sin),
            turn.map(|(_, cos)| cos),
        ]
    }

    /// Learns from the moments that are as long ago as a migration takes.
    fn look_back(&mut self) {
        let horizon = (self.plan.pass() * 1.5 / STEP_SECONDS).ceil().clamp(5.0, HINDSIGHT as f64) as usize;
        while self.pending.len() > horizon {
            let Some(features) = self.pending.pop_front().flatten() else { continue };
            let since = self.pending.len();
            let mut rates: Vec<f64> = self.samples.rates().rev().take(since).collect();
            rates.reverse();
            rates.truncate(horizon);
            let seen = rates.len();
            let cost = Outlook::new(rates, seen).cost(&self.plan, 0.0).weight(&self.plan);
            if self.costs.len() == COMPARED {
                self.costs.pop_front();
            }
            self.costs.push_back(cost);
            // All but the tenth at either end, which may be odd ones.
            let mut sorted: Vec<f64> = self.costs.iter().copied().collect();
            sorted.sort_unstable_by(f64::total_cmp);
            let (cheap, dear) = (sorted[sorted.len() / 10], sorted[sorted.len() - 1 - sorted.len() / 10]);
            if dear > cheap * ALIKE {
                self.classifier.learn(&features, cost <= cheap.midpoint(dear));
            }
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
