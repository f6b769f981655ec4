//! When a witness has enough of a region for the switch.
//!
//! What a witness lacks when the application is suspended is written to it before the switch is answered: so it is
//! part of the downtime, as what is sent to the destination is. The switch waits until that is little: until the
//! downtime is what was asked for with it, or, where nothing was asked for, until it is no more than a switch takes
//! anyway; a witness that comes no nearer is taken as it is where that is [`TOLERABLE`]. When everything should be there
//! soon, the switch waits no longer, but in pre-copy, which gives up rather than that it breaks what was asked for.
//! One that comes no nearer for [`LAGS`] ends the migration, where no deadline says until when to try.

use std::time::Duration;

use super::{Decision, Goals, Last, Mode, Next, RATE_MEMORY, Reason, TOLERABLE, View, time_of};

/// After so long without progress, what is left will not become less.
const SETTLED: Duration = Duration::from_secs(1);

/// For how long a witness may come no nearer.
pub const LAGS: Duration = Duration::from_secs(30);

/// What counts as progress, in bytes, where a witness lacks as much.
const PROGRESS: u64 = 4 << 20;

/// How far a witness is.
#[derive(Debug, Clone, Default)]
pub(super) struct Witness {
    missing: u64,
    /// When it was heard of last, and how many bytes it had taken then.
    seen: Option<(Duration, u64)>,
    /// Bytes and seconds of sending, the latest counting most.
    rate: (f64, f64),
    /// Since the switch waits for it: the least that it lacked, and since when.
    waited: Option<(u64, Duration)>,
}

impl Witness {
    pub(super) fn handle(&mut self, now: Duration, missing: u64, sent: u64) {
        if let Some((then, before)) = self.seen
            && self.missing > 0
        {
            let took = now.saturating_sub(then).as_secs_f64();
            let keep = RATE_MEMORY / (RATE_MEMORY + took);
            let bytes = sent.saturating_sub(before) as f64;
            self.rate = (self.rate.0 * keep + bytes, self.rate.1 * keep + took);
        }
        (self.missing, self.seen) = (missing, Some((now, sent)));
        if let Some((least, since)) = &mut self.waited
            && missing + PROGRESS.min(*least) <= *least
        {
            (*least, *since) = (missing, now);
        }
    }

    fn bytes_per_second(&self) -> Option<f64> {
        (self.rate.1 > 0.0 && self.rate.0 > 0.0).then(|| self.rate.0 / self.rate.1)
    }

    /// How long the application would wait for it; none where that is not known.
    fn time(&self) -> Option<Duration> {
        match (self.missing, self.bytes_per_second()) {
            (0, _) => Some(Duration::ZERO),
            (_, None) => None,
            (missing, rate) => Some(time_of(missing, rate)),
        }
    }

    /// What it adds to the downtime, as far as is known.
    pub(super) fn adds(&self) -> Duration {
        self.time().unwrap_or_default()
    }

    /// What keeps a switch from being made, with a downtime of `base` without the witness.
    pub(super) fn keeps(&mut self, now: Duration, base: Duration, goals: &Goals) -> Option<(Next, Reason)> {
        let bytes = self.missing;
        // What cannot be had by any means is as good as not asked for.
        let goal = goals.max_downtime.filter(|goal| base <= *goal);
        let time = self.time();
        let most = goal.map_or(base, |goal| goal - base);
        if time.is_some_and(|time| time <= most) {
            self.waited = None;
            return None;
        }
        if let Some(deadline) = goals.deadline.filter(|deadline| now + base + self.adds() >= *deadline) {
            let left = base + self.adds();
            return match goals.mode {
                Mode::PreCopy if goal.is_some() && now >= deadline => {
                    Some((Next::Abort, Reason::Deadline { deadline, left }))
                }
                Mode::PreCopy if goal.is_some() => Some((Next::Witness, Reason::Unwitnessed { bytes })),
                _ => None,
            };
        }
        let (_, since) = *self.waited.get_or_insert((bytes, now));
        let settled = now.saturating_sub(since);
        if goal.is_none() && settled >= SETTLED && time.is_some_and(|time| time <= TOLERABLE) {
            self.waited = None;
            return None;
        }
        if goals.deadline.is_none() && settled >= LAGS {
            let rate = self.bytes_per_second().map_or(0, |rate| rate as u64);
            return Some((Next::Abort, Reason::WitnessLags { bytes, rate }));
        }
        Some((Next::Witness, Reason::Unwitnessed { bytes }))
    }
}

impl super::Controller {
    /// The origin has said how far its witnesses are: so many bytes are missing there, so many were sent.
    pub fn handle_witness(&mut self, now: Duration, missing: u64, sent: u64) {
        self.witness.get_or_insert_default().handle(now, missing, sent);
    }

    /// Where a switch was decided on: what keeps it from being made yet, or at all, because of the witness; none where
    /// nothing does.
    pub fn witness(&mut self, now: Duration, missing: u64, last: Last) -> Option<Decision> {
        let view = self.view(now, missing);
        let (next, reason) = self.kept(&view, last)?;
        Some(self.decided(&view, next, reason))
    }

    pub(super) fn kept(&mut self, view: &View, last: Last) -> Option<(Next, Reason)> {
        let base = if last == Last::Leave { view.leaving } else { view.sending };
        self.witness.as_mut()?.keeps(view.now, base, &self.goals)
    }
}

#[cfg(test)]
mod tests;
