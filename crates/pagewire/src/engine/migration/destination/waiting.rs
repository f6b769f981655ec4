//! The wait for a good moment to begin.

use std::time::{Duration, Instant};

use pagewire_core::migrate::moment::{Moment, Plan, STEP, Verdict, Why};

use super::copying::Looked;
use super::driving::Inner;
use super::report::Saved;
use super::{When, not_now};
use crate::error::Result;

/// How many bytes are pulled at most to find out what the link carries.
const PROBE: u64 = 32 << 20;

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
            bandwidth: self.probe()?,
            downtime: self.options.goals.max_downtime.unwrap_or(Duration::from_millis(5)),
        };
        let mut moment = Moment::new(plan);
        moment.ask(started.elapsed(), within);
        let mut told: Option<Why> = None;
        loop {
            let now = started.elapsed();
            moment.look(now, written);
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
            if region != plan.region {
                (plan.region, plan.working_set) = (region, region);
                moment.replan(plan);
            }
        }
        // What was written while it waited is read with everything else: the next set is that of the copying alone.
        let number = self.with(|machine| machine.start_round()).map_err(|_| not_now())?;
        self.wait_for(|state| (state.round() == Some(number)).then_some(()))?;
        let mut state = self.lock();
        state.times.waited = started.elapsed();
        state.report.saved =
            moment.saved().map(|saved| Saved { seconds: saved.seconds(), bytes: saved.bytes() });
        Ok(())
    }

    /// What the link carries, in bytes per second: pulls the beginning of the regions, which has to come anyway.
    fn probe(&self) -> Result<u64> {
        let (started, before) = (Instant::now(), self.moved());
        let is_over = || self.moved() - before >= PROBE || started.elapsed() >= PROBE_TIME || self.is_over();
        for one in self.incoming() {
            one.carry(&[], &is_over)?;
        }
        let seconds = started.elapsed().as_secs_f64().max(1e-6);
        Ok(((self.moved() - before) as f64 / seconds) as u64)
    }

    /// Rests for a while, unless the migration is over.
    pub(super) fn rest(&self, pause: Duration) -> Result<()> {
        std::thread::sleep(pause);
        self.failure().map_or(Ok(()), Err)
    }
}
