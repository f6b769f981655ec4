//! What a migration has come to, as its destination sees it.

use std::time::{Duration, Instant};

use serde::Serialize;

/// What a migration has come to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// The migration, in hexadecimal digits.
    pub migration: String,
    /// Where it stands, as [`Phase::name`](pagewire_core::migrate::Phase::name) has it.
    pub phase: String,
    /// How it was done: `pre-copy`, `post-copy` or `hybrid`.
    pub mode: String,
    /// How long the application was suspended, in seconds: from the moment at which the origin began to suspend it until it
    /// might run here. The way of the origin's answer is half a round trip of it.
    pub downtime: f64,
    /// From the beginning until the application might run here, in seconds, without the wait for a good moment.
    pub switch_after: f64,
    /// From the beginning until everything was here, in seconds, without that wait; until now, before that.
    pub seconds: f64,
    /// How long a good moment was waited for, in seconds.
    pub waited: f64,
    /// What that wait is thought to have saved, in seconds of copying and in bytes.
    pub saved: Option<Saved>,
    /// How many rounds there were before the switch.
    pub rounds: u32,
    /// How many bytes the regions have.
    pub region_bytes: u64,
    /// How many bytes of pages came from the origin, those that came more than once counted as often. Pages of zeroes cost
    /// nothing.
    pub moved_bytes: u64,
    /// Of these, how many after the application ran here.
    pub moved_after: u64,
    /// The witnesses, where there are any.
    pub witness: Option<WitnessReport>,
    /// Whether everything is here, and the origin could not be told of that yet: it is told as soon as it is there, for as
    /// long as this process lives, or when it is started again.
    pub untold: bool,
    /// What was decided and why, in order.
    pub decisions: Vec<String>,
}

/// How it is with the witnesses of a migration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WitnessReport {
    /// Which are known here.
    pub named: Vec<String>,
    /// How many bytes the origin has written to them.
    pub sent_bytes: u64,
    /// How many bytes they lack, as the origin has said last.
    pub missing_bytes: u64,
    /// Whether they have all of the regions that have one, and are there for this side: the loss of the origin loses
    /// nothing of those then.
    pub protects: bool,
    /// How many bytes came from them.
    pub moved_bytes: u64,
}

/// What the wait for a good moment is thought to have saved, against beginning at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Saved {
    /// Seconds until the switch.
    pub seconds: f64,
    /// Bytes that were not moved.
    pub bytes: f64,
}

/// When what has happened.
#[derive(Debug, Clone)]
pub(super) struct Times {
    pub(super) began: Instant,
    pub(super) waited: Duration,
    /// When the origin began to suspend the application, as far as can be told from here.
    pub(super) suspended: Option<Instant>,
    pub(super) running: Option<Instant>,
    pub(super) ended: Option<Instant>,
}

impl Times {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), waited: Duration::ZERO, suspended: None, running: None, ended: None }
    }

    /// Since the beginning, without the wait.
    fn until(&self, then: Instant) -> f64 {
        then.saturating_duration_since(self.began).saturating_sub(self.waited).as_secs_f64()
    }

    pub(super) fn fill(&self, report: &mut Report) {
        report.waited = self.waited.as_secs_f64();
        report.seconds = self.until(self.ended.unwrap_or_else(Instant::now));
        if let Some(running) = self.running {
            report.switch_after = self.until(running);
            let suspended = self.suspended.unwrap_or(running);
            report.downtime = running.saturating_duration_since(suspended).as_secs_f64();
        }
    }
}
