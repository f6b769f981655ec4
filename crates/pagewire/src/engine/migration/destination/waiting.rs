//! The wait for a good moment to begin.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use pagewire_core::migrate::moment::{Moment, Plan, STEP, Verdict, Why};

use super::copying::Looked;
use super::driving::Inner;
use super::report::Saved;
use super::{When, not_now};
use crate::error::Result;

/// How many bytes are pulled at most to find out what the link carries: before anything is known of the application, which may write
/// to just these again, and when it has been watched for some cycles, so that it is asked for what it does not write to.
const PROBE: (u64, u64) = (16 << 20, 64 << 20);

/// How long that may take.
const PROBE_TIME: Duration = Duration::from_millis(500);

impl Inner {
    /// Waits for a good moment to begin, where that is wanted.
    pub(super) fn wait_for_moment(&self) -> Result<()> {
        let When::Best { within } = self.options.when else { return Ok(()) };
        let started = Instant::now();
        let Looked { length: mut region, mut written, .. } = self.look()?;
        let mut plan = Plan {
            region,
            working_set: region,
            bandwidth: self.probe(PROBE.0)?,
            downtime: self.options.goals.max_downtime.unwrap_or(Duration::from_millis(5)),
        };
        tracing::debug!(?plan, "a good moment is waited for");
        let mut moment = Moment::new(plan);
        moment.ask(started.elapsed(), within);
        let mut told: Option<Why> = None;
        let mut knows_cycle = false;
        loop {
            if region != plan.region {
                (plan.region, plan.working_set) = (region, region);
                moment.replan(plan);
            }
            let now = started.elapsed();
            moment.look(now, written);
            let is_new = moment.cycle().is_some() && !knows_cycle;
            knows_cycle |= is_new;
            // The best moment hangs on whether all fits into a quiet time. Of a small region there would be little left.
            if is_new && self.missing() >= 4 * PROBE.1 {
                self.bring_set()?;
                plan.bandwidth = self.probe(PROBE.1)?;
                tracing::debug!(?plan, "the link is known better");
                moment.replan(plan);
                Looked { length: region, written, .. } = self.look()?;
                continue;
            }
            let cycle = moment.cycle().map(|cycle| (cycle.period(), cycle.phase()));
            tracing::trace!(written, ?cycle, "a look");
            let (why, verdict) = match moment.decide(now) {
                Verdict::Now { why } => (why, None),
                Verdict::Wait { until, why } => (why, Some(until)),
            };
            if told != Some(why) {
                let what = if verdict.is_none() { "begin" } else { "wait" };
                let text = format!("{:.1} s: {what}: {why}", now.as_secs_f64());
                tracing::info!("{text}");
                self.lock().report.decisions.push(text);
                told = Some(why);
            }
            let Some(until) = verdict else { break };
            let pause = STEP.min(until.saturating_sub(now)).max(Duration::from_millis(1));
            self.rest(pause)?;
            Looked { length: region, written, .. } = self.look()?;
        }
        // What was written while it waited is read with everything else: the next set is that of the copying alone.
        self.bring_set()?;
        let mut state = self.lock();
        state.times.waited = started.elapsed();
        state.report.saved =
            moment.saved().map(|saved| Saved { seconds: saved.seconds(), bytes: saved.bytes() });
        Ok(())
    }

    /// Learns what was written.
    fn bring_set(&self) -> Result<()> {
        let number = self.with(|machine| machine.start_round()).map_err(|_| not_now())?;
        self.wait_for(|state| (state.round() == Some(number)).then_some(()))
    }

    /// What the link carries, in bytes per second: pulls so much of the regions, which has to come anyway, and first of it what was not
    /// seen to be written. A flow is slow at first, so it is the later half of it that tells.
    fn probe(&self, most: u64) -> Result<u64> {
        let (started, before) = (Instant::now(), self.moved());
        let seen = RefCell::new(vec![(Duration::ZERO, 0)]);
        let is_over = || {
            let (time, moved) = (started.elapsed(), self.moved() - before);
            seen.borrow_mut().push((time, moved));
            moved >= most || time >= PROBE_TIME || self.is_over()
        };
        for one in self.incoming() {
            let plan = one.frequency().plan(&one.arriving.absent(), None);
            one.carry(&plan.send, &is_over)?;
        }
        is_over();
        Ok(later_rate(&seen.into_inner()))
    }

    /// Rests for a while, unless the migration is over.
    pub(super) fn rest(&self, pause: Duration) -> Result<()> {
        std::thread::sleep(pause);
        self.failure().map_or(Ok(()), Err)
    }
}

/// Bytes a second in the later half of what has come, by how much had come when.
fn later_rate(seen: &[(Duration, u64)]) -> u64 {
    // A call that has ended the flow may come long after its last byte.
    let last = seen.iter().map(|(_, moved)| *moved).max().unwrap_or(0);
    let at = |bytes: u64| seen.iter().find(|(_, moved)| *moved >= bytes).copied().unwrap_or_default();
    let ((from, before), (to, after)) = (at(last / 2), at(last));
    // Where all of it has come at once, that is all that is known.
    let (from, before) = if from < to { (from, before) } else { (Duration::ZERO, 0) };
    ((after - before) as f64 / (to - from).as_secs_f64().max(1e-6)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_a_flow_that_has_begun() {
        let seen = |samples: &[(u64, u64)]| -> Vec<(Duration, u64)> {
            samples.iter().map(|(millis, bytes)| (Duration::from_millis(*millis), *bytes)).collect()
        };
        let slow_start = seen(&[(0, 0), (20, 100), (40, 1000), (60, 5000), (80, 9000), (900, 9000)]);
        assert_eq!(later_rate(&slow_start), 200_000);
        assert_eq!(later_rate(&seen(&[(0, 0), (10, 5000)])), 500_000);
        assert_eq!(later_rate(&seen(&[(0, 0), (500, 0)])), 0);
        assert_eq!(later_rate(&[]), 0);
    }
}
