//! The decision: whether to begin now, and what that has saved.

use std::fmt;
use std::time::Duration;

use super::cost::{Cost, Outlook};
use super::cycle::{Cycle, LONGEST};
use super::samples::{STEP, STEP_SECONDS};
use super::{Asked, Moment, Plan};

/// Whether to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Begin now.
    Now {
        /// Why.
        why: Why,
    },
    /// Not yet.
    Wait {
        /// When to ask again at the latest. After each look is better.
        until: Duration,
        /// Why.
        why: Why,
    },
}

/// Why a migration begins, or waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Begin: nobody has asked for a wait, or no longer one.
    Bound,
    /// Begin: it costs about as much at any moment.
    Steady,
    /// Begin: no cycle was found.
    NoCycle,
    /// Begin: there is a cycle, but a migration costs about as much wherever in it it begins.
    NothingToGain,
    /// Begin: this is a favourable moment, or as good as any within the bound.
    Favourable,
    /// Wait: it is not known yet whether there is a cycle.
    Observing,
    /// Wait: a moment will come that is better.
    Unfavourable,
}

impl fmt::Display for Why {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Why::Bound => "there is no more time to wait",
            Why::Steady => "the workload writes evenly",
            Why::NoCycle => "the workload has no cycle that was found",
            Why::NothingToGain => "no part of the workload's cycle is better",
            Why::Favourable => "this is a favourable moment of the workload's cycle",
            Why::Observing => "the workload is being observed",
            Why::Unfavourable => "a better moment of the workload's cycle will come",
        })
    }
}

/// What it has saved to wait, by the rates that were seen and the outlook when the wait was over. What it cost to wait
/// for nothing is negative.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Saved {
    /// For how long it has waited.
    pub waited: Duration,
    /// What the migration is expected to cost.
    pub chosen: Cost,
    /// What it would have cost at the moment that it was asked for.
    pub at_once: Cost,
    /// What it costs at a random moment, in the mean.
    pub at_random: Cost,
}

impl Saved {
    /// Bytes less than at once.
    pub fn bytes(&self) -> f64 {
        self.at_once.bytes - self.chosen.bytes
    }

    /// Seconds of migration less than at once; the wait is no part of it.
    pub fn seconds(&self) -> f64 {
        self.at_once.seconds - self.chosen.seconds
    }
}

/// A moment that costs so much more than the best one is as good; and how much more is accepted after a wait of two periods.
const AS_GOOD: f64 = 0.02;
const IMPATIENCE: f64 = 0.06;

/// What part of a period is soon, and how much less is worth it to wait for so long.
const SOON: f64 = 8.0;
const WORTH_IT: f64 = 0.005;

/// How exactly the best moment is looked for that is soon, in seconds, and in how many instants at most.
const INSTANT: f64 = 0.02;
const INSTANTS: f64 = 100.0;

/// A link may carry as much less than it seemed to, and a workload be ahead by so much, in seconds.
const SLOWER: f64 = 0.96;
const AHEAD: f64 = 0.05;

/// Where moments differ by less, there is nothing to gain.
const GAIN: f64 = 0.05;

/// Of moments that the classifier is sure of: how much more than the best may cost one that it takes for favourable, how
/// sure it has to be, and for what part of a period it can hold one.
const TRUSTED: f64 = 0.05;
const SURE: f64 = 0.9;
const HOLD: f64 = 0.25;

/// For how long to look before a workload is taken to be steady, and to have no cycle, in seconds, where that was not looked at
/// before: as long as some migrations take, within these bounds; and what part of the time allowed is spent on it at most.
const STEADY: (f64, f64) = (5.0, 20.0);
const ENOUGH: (f64, f64) = (30.0, LONGEST.as_secs() as f64);
const STEADY_PART: f64 = 0.25;
const ENOUGH_PART: f64 = 0.5;

impl Moment {
    pub(super) fn judge(&mut self, now: Duration) -> Verdict {
        let Some(asked) = self.asked.filter(|asked| now < asked.bound) else {
            return Verdict::Now { why: Why::Bound };
        };
        match self.cycle {
            Some(cycle) => self.judge_cycle(now, &asked, &cycle),
            None => self.judge_without(now, &asked),
        }
    }

    fn judge_cycle(&mut self, now: Duration, asked: &Asked, cycle: &Cycle) -> Verdict {
        let outlook = self.outlook();
        let start = self.since_last(now);
        let weight = |step: usize| self.expect(&outlook, start + step as f64 * STEP_SECONDS);
        let period: Vec<f64> = (0..=cycle.steps()).map(weight).collect();
        let (cheapest, dearest) = extremes(&period);
        if dearest <= cheapest * (1.0 + GAIN) {
            return Verdict::Now { why: Why::NothingToGain };
        }
        let left = (asked.bound - now).as_secs_f64();
        let reached = &period[..=((left / STEP_SECONDS) as usize).min(cycle.steps())];
        let (best, _) = extremes(reached);
        let waited = now.saturating_sub(asked.at).as_secs_f64();
        let impatience = (waited / (2.0 * cycle.period().as_secs_f64())).min(1.0);
        let good = best * (1.0 + AS_GOOD + IMPATIENCE * impatience);
        let mean = period.iter().sum::<f64>() / period.len() as f64;
        let likely = self.favourable();
        // Who is nearly there does not stop before it: a little later costs next to nothing.
        let soon = (cycle.period().as_secs_f64() / SOON).clamp(STEP_SECONDS, left.max(STEP_SECONDS));
        let instant = INSTANT.max(soon / INSTANTS);
        let instants = (1..).map(|at| f64::from(at) * instant).take_while(|ahead| *ahead <= soon);
        let weighed = instants.map(|ahead| (self.expect(&outlook, start + ahead), ahead));
        let better = weighed.min_by(|a, b| a.0.total_cmp(&b.0));
        let better = better.filter(|(weight, _)| reached[0] > weight * (1.0 + WORTH_IT));
        if let Some((weight, ahead)) = better
            && weight <= good
        {
            let until = now.saturating_add(Duration::from_secs_f64(ahead)).min(asked.bound);
            return Verdict::Wait { until, why: Why::Unfavourable };
        }
        let next = |step: usize| now.saturating_add(STEP.saturating_mul(step as u32)).min(asked.bound);
        if reached[0] <= good {
            let held = asked.held.unwrap_or(now);
            let may_hold = now.saturating_sub(held).as_secs_f64() < cycle.period().as_secs_f64() * HOLD;
            // Where no favourable moment can be reached, the best of the others it is.
            let claimed = reached[0] < mean;
            if claimed && likely.is_some_and(|likely| likely < 1.0 - SURE) && may_hold {
                self.asked = Some(Asked { held: Some(held), ..*asked });
                return Verdict::Wait { until: next(1), why: Why::Unfavourable };
            }
            return Verdict::Now { why: Why::Favourable };
        }
        if reached[0] <= best * (1.0 + TRUSTED)
            && better.is_none()
            && likely.is_some_and(|likely| likely > SURE)
        {
            return Verdict::Now { why: Why::Favourable };
        }
        let step = reached.iter().position(|weight| *weight <= good).unwrap_or(1);
        Verdict::Wait { until: next(step.max(1)), why: Why::Unfavourable }
    }

    /// What it is likely to cost to begin then: by what is known of the link and the rates, and if a link carries a little less
    /// or the workload is a little ahead. A migration whose last round meets a burst costs much more than one whose first
    /// round does.
    fn expect(&self, outlook: &Outlook, start: f64) -> f64 {
        let slower = Plan { bandwidth: (self.plan.bandwidth as f64 * SLOWER) as u64, ..self.plan };
        let costs = [(self.plan, start), (self.plan, start + AHEAD), (slower, start)];
        let weight = |(plan, start): (Plan, f64)| outlook.cost(&plan, start).weight(&plan);
        costs.map(weight).iter().sum::<f64>() / costs.len() as f64
    }

    fn judge_without(&self, now: Duration, asked: &Asked) -> Verdict {
        let seen = self.samples.span().as_secs_f64();
        let within = (asked.bound.saturating_sub(asked.at)).as_secs_f64();
        let waited = now.saturating_sub(asked.at).as_secs_f64();
        let steady = (3.0 * self.plan.pass()).clamp(STEADY.0, STEADY.1);
        if (seen >= steady || waited >= within * STEADY_PART) && self.is_steady(steady) {
            return Verdict::Now { why: Why::Steady };
        }
        let enough = (4.0 * self.plan.pass()).clamp(ENOUGH.0, ENOUGH.1);
        let left = (enough - seen).min(within * ENOUGH_PART - waited);
        if left <= 0.0 {
            return Verdict::Now { why: Why::NoCycle };
        }
        let until = now.saturating_add(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX));
        Verdict::Wait { until: until.min(asked.bound), why: Why::Observing }
    }

    /// Whether a migration would have cost about as much at any moment of the last seconds.
    fn is_steady(&self, seconds: f64) -> bool {
        let steps = (seconds / STEP_SECONDS) as usize;
        let recent: Vec<f64> = self.samples.rates().rev().take(steps).collect();
        if recent.is_empty() {
            return false;
        }
        // Means over the time that sending the region takes: what is shorter does not matter.
        let width = ((self.plan.pass() / STEP_SECONDS) as usize).clamp(1, recent.len().div_ceil(3));
        let means: Vec<f64> =
            recent.windows(width).map(|window| window.iter().sum::<f64>() / width as f64).collect();
        let (least, most) = extremes(&means);
        let weight = |rate| Outlook::flat(rate).cost(&self.plan, 0.0).weight(&self.plan);
        weight(most) <= weight(least) * (1.0 + GAIN)
    }

    /// From the end of the last sample on.
    fn outlook(&self) -> Outlook {
        let ahead = self.ahead();
        let steps = ahead.len();
        Outlook::new(ahead, steps)
    }

    fn ahead(&self) -> Vec<f64> {
        match self.cycle {
            Some(cycle) => cycle.ahead(&self.samples),
            None => vec![self.samples.recent_mean(self.samples.len())],
        }
    }

    /// Seconds since the end of the last sample.
    fn since_last(&self, now: Duration) -> f64 {
        now.saturating_sub(self.samples.end()).as_secs_f64()
    }

    pub(super) fn compare(&self, now: Duration) -> Saved {
        let outlook = self.outlook();
        let start = self.since_last(now);
        let chosen = outlook.cost(&self.plan, start);
        let asked = self.asked.map_or(now, |asked| asked.at.min(now));
        // What was seen since, and then the outlook.
        let ago = self.samples.end().saturating_sub(asked).as_secs_f64();
        let known = ((ago / STEP_SECONDS).ceil() as usize).min(self.samples.len());
        let mut rates: Vec<f64> = self.samples.rates().rev().take(known).collect();
        rates.reverse();
        let ahead = self.ahead();
        let steps = ahead.len();
        rates.extend(&ahead);
        let begin = known as f64 * STEP_SECONDS - ago + if ago > 0.0 { 0.0 } else { self.since_last(asked) };
        let at_once = Outlook::new(rates, steps).cost(&self.plan, begin.max(0.0));
        let mut at_random = Cost::default();
        for step in 0..steps {
            let cost = outlook.cost(&self.plan, step as f64 * STEP_SECONDS);
            at_random.bytes += cost.bytes / steps as f64;
            at_random.seconds += cost.seconds / steps as f64;
            at_random.downtime += cost.downtime / steps as f64;
        }
        Saved { waited: now - asked, chosen, at_once, at_random }
    }
}

/// The least and the most of some.
fn extremes(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| {
        (least.min(*value), most.max(*value))
    })
}
