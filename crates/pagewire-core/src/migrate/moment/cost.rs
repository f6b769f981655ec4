//! What a migration by pre-copy would cost, if it began at a given moment and the workload wrote at given rates.

use std::time::Duration;

use super::samples::STEP_SECONDS;

/// What is to be moved, and over what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How many bytes the region has.
    pub region: u64,
    /// How many different bytes of it the workload writes to at most: no round of pre-copy has more to send again. Where
    /// nobody knows, as many as the region has.
    pub working_set: u64,
    /// Bytes a second that the link carries. 0 counts as 1.
    pub bandwidth: u64,
    /// For how long the workload may stand still: pre-copy ends when what is left is sent in that time.
    pub downtime: Duration,
}

impl Plan {
    fn bandwidth(&self) -> f64 {
        self.bandwidth.max(1) as f64
    }

    fn working_set(&self) -> f64 {
        self.working_set.min(self.region) as f64
    }

    /// How long it takes to send the region once, in seconds.
    pub(super) fn pass(&self) -> f64 {
        self.region as f64 / self.bandwidth()
    }
}

/// What a migration costs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Bytes sent.
    pub bytes: f64,
    /// Seconds from its begin to the switch.
    pub seconds: f64,
    /// Seconds that the workload stands still.
    pub downtime: f64,
}

impl Cost {
    /// Bytes, of which those that the workload waits for count twice: what two moments are compared by.
    pub(super) fn weight(&self, plan: &Plan) -> f64 {
        self.bytes + self.downtime * plan.bandwidth()
    }
}

/// Xen's limits of pre-copy (Clark et al., "Live Migration of Virtual Machines", NSDI 2005): so many rounds, and none after
/// three times the region.
const ROUNDS: usize = 29;
const MOST: f64 = 3.0;

/// The rates of a time that is looked ahead to: some that are known, and then the last of them again and again.
#[derive(Debug, Clone)]
pub(super) struct Outlook {
    /// How many bytes are written until each step's end.
    sums: Vec<f64>,
    /// How many of the steps, the last ones, recur.
    cycle: usize,
}

impl Outlook {
    /// `rates` are bytes a second, one for each step. The last `cycle` of them recur; without any, nothing is written.
    pub(super) fn new(rates: impl IntoIterator<Item = f64>, cycle: usize) -> Self {
        let mut sums = vec![0.0];
        for rate in rates {
            sums.push(sums[sums.len() - 1] + rate * STEP_SECONDS);
        }
        let cycle = cycle.clamp(1, sums.len().max(2) - 1);
        if sums.len() == 1 {
            sums.push(0.0);
        }
        Self { sums, cycle }
    }

    /// Always the same rate.
    pub(super) fn flat(rate: f64) -> Self {
        Self::new([rate], 1)
    }

    /// What it costs to begin so many seconds from the begin of these rates. It takes time for each round alone.
    pub(super) fn cost(&self, plan: &Plan, start: f64) -> Cost {
        let (bandwidth, region) = (plan.bandwidth(), plan.region as f64);
        let (mut at, mut bytes, mut send) = (start, 0.0, region);
        for _ in 0..ROUNDS {
            let end = at + send / bandwidth;
            let written = (self.written(end) - self.written(at)).clamp(0.0, plan.working_set());
            bytes += send;
            (at, send) = (end, written);
            if written / bandwidth <= plan.downtime.as_secs_f64() || bytes + written >= MOST * region {
                break;
            }
        }
        bytes += send;
        Cost { bytes, seconds: bytes / bandwidth, downtime: send / bandwidth }
    }

    /// Bytes written until then, in seconds.
    fn written(&self, until: f64) -> f64 {
        let (steps, known) = (until / STEP_SECONDS, (self.sums.len() - 1) as f64);
        if steps < known {
            let (whole, part) = (steps.floor() as usize, steps.fract());
            return self.sums[whole] + (self.sums[whole + 1] - self.sums[whole]) * part;
        }
        let base = self.sums.len() - 1 - self.cycle;
        let (behind, cycle) = (steps - base as f64, self.cycle as f64);
        let (times, rest) = ((behind / cycle).floor(), behind % cycle);
        let (whole, part) = ((rest.floor() as usize).min(self.cycle - 1), rest.fract());
        let (from, to) = (self.sums[base + whole], self.sums[base + whole + 1]);
        let once = self.sums[base + self.cycle] - self.sums[base];
        times * once + from + (to - from) * part
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAN: Plan =
        Plan { region: 1000, working_set: 500, bandwidth: 1000, downtime: Duration::from_millis(10) };

    #[test]
    fn who_writes_nothing_costs_one_pass() {
        let cost = Outlook::flat(0.0).cost(&PLAN, 7.0);
        assert_eq!(cost, Cost { bytes: 1000.0, seconds: 1.0, downtime: 0.0 });
    }

    #[test]
    fn rounds_shrink_by_the_share_of_the_bandwidth_that_is_written() {
        // 1000, 100, 10; the last ones in the time allowed.
        let cost = Outlook::flat(100.0).cost(&PLAN, 0.0);
        assert!((cost.bytes - 1110.0).abs() < 1e-6, "{cost:?}");
        assert!((cost.downtime - 0.01).abs() < 1e-6, "{cost:?}");
    }

    #[test]
    fn a_round_has_no_more_than_the_working_set_and_all_no_more_than_three_regions() {
        let cost = Outlook::flat(1e9).cost(&PLAN, 0.0);
        assert_eq!(cost, Cost { bytes: 3000.0, seconds: 3.0, downtime: 0.5 });
    }

    #[test]
    fn the_rates_recur() {
        let outlook = Outlook::new([5.0, 10.0, 0.0, 30.0], 3);
        for (until, expected) in [(0.0, 0.0), (0.1, 0.5), (0.2, 1.5), (0.4, 4.5), (0.45, 5.0), (1.0, 12.5)] {
            assert!((outlook.written(until) - expected).abs() < 1e-9, "{until}: {}", outlook.written(until));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_only_grows(
            rates in prop::collection::vec(0f64..1e12, 0..50), cycle in 0usize..60, times in prop::collection::vec(0f64..100.0, 2),
        ) {
            let outlook = Outlook::new(rates, cycle);
            let (a, b) = (times[0].min(times[1]), times[0].max(times[1]));
            prop_assert!(outlook.written(b) >= outlook.written(a) * (1.0 - 1e-9));
        }

        #[test]
        fn a_cost_is_always_finite(
            rate in 0f64..1e21, region: u64, working_set: u64, bandwidth: u64, millis: u64, start in 0f64..1e19,
        ) {
            let plan = Plan { region, working_set, bandwidth, downtime: Duration::from_millis(millis) };
            let cost = Outlook::new([rate, 0.0], 2).cost(&plan, start);
            prop_assert!(cost.bytes.is_finite() && cost.seconds.is_finite() && cost.downtime.is_finite());
            prop_assert!(cost.bytes >= region as f64 && cost.bytes <= 4.0 * region as f64, "{cost:?}");
        }
    }
}
