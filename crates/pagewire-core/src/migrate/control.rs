//! Which step of a migration comes next: goals instead of knobs.
//!
//! A user says what matters, in [`Goals`]; what to do about it follows from what is measured on the way. After each
//! step the engine asks [`Controller::decide`], and while it pulls [`Controller::interrupt`]; whatever it
//! measures it says as it comes.
//!
//! ```text
//! loop {
//!     match controller.decide(now, missing).next {
//!         Pull => pull what is missing; ask interrupt() meanwhile, handle_sent() as it comes
//!         Round => ask for the next round, handle_round(); what is in its set is missing from now on
//!         Switch(Send) => SWITCH, pull everything that is missing, accept
//!         Switch(Leave) => SWITCH, accept, pull
//!         Witness => rest for a while, handle_witness()
//!         Abort => abort
//!     }
//! }
//! ```
//!
//! # What is predicted
//!
//! `U(t)`, the bytes of different pages that are written in a time `t`, from the sizes of sets and the times
//! that they cover. It grows ever more slowly, since what is written twice counts once: so a set of `u` bytes
//! in a time `τ` says that `U(t) <= u * max(1, t / τ)`. The least of what the latest samples say is taken; for
//! a time that is shorter than all of them, their rate. What was written since the last round is known better,
//! from the looks since then.
//!
//! The **downtime** is what suspending and resuming take, the destination's record, half a round trip for the
//! offer to arrive, and, where the last set is sent before, a round trip and the time that its bytes take on
//! the link. (The origin's record and SWITCH's own way are over before the application stops.)
//!
//! # Modes
//!
//! - [`Mode::PreCopy`] is strict: the application is never resumed before all of it is there. Where the
//!   downtime that was asked for cannot be had, by the deadline or at all, the migration is aborted rather than
//!   that it is broken. Who asks for no downtime gets the least that rounds bring.
//! - [`Mode::Auto`] does the same as long as that works, and goes hybrid where it does not: what cannot be had
//!   by sending more is had by leaving it for later.
//! - [`Mode::Hybrid`] makes rounds as long as each halves what is left, and then leaves the last set for later,
//!   always: the downtime is as short as it can be, and the application waits for pages a little afterwards.
//! - [`Mode::PostCopy`] switches first, and sends each byte once.
//!
//! Without a downtime asked for, "as short as it can be" counts: rounds go on while each at least halves what
//! is left. Then Auto sends the last set if that takes no longer than [`TOLERABLE`], since an application that
//! is resumed without its most-written pages would wait for them one by one.
//!
//! # Witnesses
//!
//! Where an origin streams to [witnesses](witness), every switch waits until they have so much that the downtime can
//! be kept.
//!
//! # It always ends
//!
//! A round counts as progress if its set is half of the smallest so far or less, which can be only so often; of
//! others there may be [`PATIENCE`] in a row; PreCopy goes on until its deadline, or for [`STRICT_PATIENCE`] and
//! [`STRICT_TIME`].

mod decision;
mod goals;
mod witness;

use std::collections::VecDeque;
use std::time::Duration;

pub use decision::{Decision, Last, Next, Reason};
pub use goals::{Goals, Mode, UnknownMode};
pub use witness::LAGS;

/// The longest downtime that Auto makes by sending the last set, where no downtime was asked for: what a person
/// hardly notices, and no protocol's timeout does.
pub const TOLERABLE: Duration = Duration::from_millis(300);

/// How many rounds without progress there may be: writers come in bursts, and one round may have met one.
pub const PATIENCE: u32 = 3;

/// The same for PreCopy without a deadline, where the other way out is to fail.
pub const STRICT_PATIENCE: u32 = 12;

/// For how long at least: longer than the bursts of a garbage collector, in which a fast link makes a dozen rounds.
pub const STRICT_TIME: Duration = Duration::from_secs(10);

/// By which part more the rest may take than the link's rate says: what is pulled makes way for what is touched.
const MARGIN: u32 = 4;

/// After so much sending, and some round trips, the rate of a link is known well enough to be decided by.
const SETTLED: Duration = Duration::from_millis(250);

/// How many decisions are kept for the report.
const KEPT: usize = 1024;

/// How many samples of what was written count.
const SAMPLES: usize = 3;

/// Half of what is known of the link's rate is forgotten over so much time of sending.
const RATE_MEMORY: f64 = 0.25;

/// What a switch takes besides bytes: measured where that was possible, else as expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Costs {
    /// From the begin of the suspension until the regions are frozen and the last set is taken.
    pub suspend: Duration,
    /// The destination's record.
    pub record: Duration,
    /// From the record until the application runs.
    pub resume: Duration,
}

/// Decides on the steps of one migration. Times are counted from its beginning.
#[derive(Debug, Clone)]
pub struct Controller {
    goals: Goals,
    costs: Costs,
    /// The lowest that was measured.
    round_trip: Duration,
    /// How many bytes there are in all; more can never be written, nor missing.
    length: u64,
    sent: u64,
    /// Bytes and seconds of sending, the latest counting most.
    rate: (f64, f64),
    /// For how long there was sending in all.
    sending: Duration,
    /// What was written in how long, the newest last.
    samples: VecDeque<(u64, Duration)>,
    /// When the last set was taken, or the tracking began.
    taken: Duration,
    /// What the looks since then have found: all together, the most at once, and until when.
    looked: (u64, u64, Duration),
    /// The last round's set, and the time that it covers.
    round: Option<(u64, Duration)>,
    /// The smallest set of a round so far, and when it was taken; the last one, and how many have come since that were
    /// not half of it.
    smallest: Option<u64>,
    progressed: Duration,
    last_set: u64,
    stalls: u32,
    rounds: u64,
    log: VecDeque<Decision>,
    /// How far the witnesses are, where there are any.
    witness: Option<witness::Witness>,
}

impl Controller {
    /// For a migration that begins now.
    pub fn new(goals: Goals, costs: Costs) -> Self {
        Self {
            goals,
            costs,
            round_trip: Duration::ZERO,
            length: u64::MAX,
            sent: 0,
            rate: (0.0, 0.0),
            sending: Duration::ZERO,
            samples: VecDeque::new(),
            taken: Duration::ZERO,
            looked: (0, 0, Duration::ZERO),
            round: None,
            smallest: None,
            progressed: Duration::ZERO,
            last_set: 0,
            stalls: 0,
            rounds: 0,
            log: VecDeque::new(),
            witness: None,
        }
    }

    /// A round trip was measured.
    pub fn handle_round_trip(&mut self, round_trip: Duration) {
        if self.round_trip.is_zero() || round_trip < self.round_trip {
            self.round_trip = round_trip;
        }
    }

    /// The regions have so many bytes.
    pub fn handle_length(&mut self, length: u64) {
        self.length = length;
    }

    /// What a switch takes is known better than at the beginning.
    pub fn handle_costs(&mut self, costs: Costs) {
        self.costs = costs;
    }

    /// The tracking has begun: what is written from now on is in the first round.
    pub fn handle_begun(&mut self, now: Duration) {
        self.taken = now;
        self.looked = (0, 0, now);
    }

    /// So many bytes have arrived in so much time: as parts of a longer flow, or from when the first of them
    /// came. The way there and back is not in it, nor a time in which nothing was wanted.
    pub fn handle_sent(&mut self, bytes: u64, took: Duration) {
        self.sent = self.sent.saturating_add(bytes);
        self.sending = self.sending.saturating_add(took);
        let took = took.as_secs_f64();
        let keep = RATE_MEMORY / (RATE_MEMORY + took);
        self.rate = (self.rate.0 * keep + bytes as f64, self.rate.1 * keep + took);
    }

    /// LOOK has answered: so many bytes of different pages were written in so much time.
    pub fn handle_look(&mut self, now: Duration, bytes: u64, over: Duration) {
        let (all, most, _) = self.looked;
        self.looked = (all.saturating_add(bytes), most.max(bytes), now);
        self.sample(bytes, over);
    }

    /// A round was made: its set has so many bytes, and was taken at this time.
    pub fn handle_round(&mut self, now: Duration, bytes: u64) {
        let over = now.saturating_sub(self.taken);
        self.sample(bytes, over);
        self.round = Some((bytes, over));
        self.handle_begun(now);
        self.rounds += 1;
        self.last_set = bytes;
        match self.smallest {
            Some(smallest) if bytes > smallest / 2 => self.stalls += 1,
            _ => {
                self.smallest = Some(bytes);
                self.progressed = now;
                self.stalls = 0;
            }
        }
    }

    /// What to do, with so many bytes known to be missing, all of which could be pulled now; `held` more are
    /// missing, and are kept for the last set.
    pub fn decide(&mut self, now: Duration, missing: u64, held: u64) -> Decision {
        let view = self.view(now, missing.saturating_add(held));
        let (next, reason) = self.choose(&view, missing);
        let kept = if let Next::Switch(last) = next { self.kept(&view, last) } else { None };
        let (next, reason) = kept.unwrap_or((next, reason));
        self.decided(&view, next, reason)
    }

    /// While what is missing is being pulled: whether to stop that and switch, or give up. Answers nothing if not.
    pub fn interrupt(&mut self, now: Duration, missing: u64, held: u64) -> Option<Decision> {
        let view = self.view(now, missing.saturating_add(held));
        let (next, reason) = self.limits(&view, 0)?;
        Some(self.decided(&view, next, reason))
    }

    /// The latest decisions, the oldest first.
    pub fn log(&self) -> impl Iterator<Item = &Decision> {
        self.log.iter()
    }

    /// Bytes that were sent in all.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Rounds that were made.
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// What is expected to be written in a time, in bytes of different pages; none if nothing was measured.
    pub fn expected_set(&self, time: Duration) -> Option<u64> {
        let time = time.as_secs_f64();
        let shortest = self.samples.iter().min_by_key(|(_, over)| *over)?;
        let over = shortest.1.as_secs_f64();
        if time <= over {
            return Some((shortest.0 as f64 * time / over) as u64);
        }
        self.samples
            .iter()
            .map(|(bytes, over)| (*bytes as f64 * (time / over.as_secs_f64()).max(1.0)) as u64)
            .min()
    }

    fn decided(&mut self, view: &View, next: Next, reason: Reason) -> Decision {
        let without = if next == Next::Switch(Last::Leave) { view.leaving } else { view.sending };
        let downtime = without.saturating_add(self.witness.as_ref().map_or(Duration::ZERO, |w| w.adds()));
        let written = self.samples.back().map(|(bytes, over)| (*bytes as f64 / over.as_secs_f64()) as u64);
        let decision = Decision {
            at: view.now,
            next,
            reason,
            missing: view.missing,
            set: view.set,
            downtime,
            written,
            link: view.link.map(|rate| rate as u64),
        };
        if next == Next::Witness && self.log.back().is_some_and(|last| last.next == next) {
            self.log.pop_back();
        }
        if self.log.len() == KEPT {
            self.log.pop_front();
        }
        self.log.push_back(decision);
        decision
    }

    fn sample(&mut self, bytes: u64, over: Duration) {
        if over.is_zero() {
            return;
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((bytes, over));
    }

    /// What the last set would have, were it taken at a time. What looks have found since the last one is in
    /// it, though pages that they have found twice count once; so no more than the round before says, unless a
    /// look has found more.
    fn pending(&self, at: Duration) -> u64 {
        let (all, most, looked_at) = self.looked;
        let expected = |time| self.expected_set(time).unwrap_or(0);
        if all == 0 {
            return expected(at.saturating_sub(looked_at));
        }
        let found = all.saturating_add(expected(at.saturating_sub(looked_at)));
        let age = at.saturating_sub(self.taken).as_secs_f64();
        let most_so_far = self.round.map_or(u64::MAX, |(bytes, over)| {
            (bytes as f64 * (age / over.as_secs_f64().max(1e-9)).max(1.0)) as u64
        });
        found.min(most_so_far).max(most)
    }

    fn view(&self, now: Duration, missing: u64) -> View {
        // A page that is missing and written counts once.
        let set = self.pending(now + self.round_trip / 2 + self.costs.suspend);
        let set = set.min(self.length.saturating_sub(missing));
        let link = (self.rate.1 > 0.0 && self.rate.0 > 0.0).then(|| self.rate.0 / self.rate.1);
        let leaving = self.costs.suspend + self.round_trip / 2 + self.costs.record + self.costs.resume;
        let last = missing.saturating_add(set);
        let sending = match last {
            0 => leaving,
            _ => leaving + self.round_trip + time_of(last, link),
        };
        View { now, missing, set, last, link, leaving, sending }
    }

    fn choose(&self, view: &View, missing: u64) -> (Next, Reason) {
        let mode = self.goals.mode;
        if mode == Mode::PostCopy {
            return (Next::Switch(Last::Leave), Reason::Asked(mode));
        }
        if missing > 0 {
            return self.limits(view, 0).unwrap_or((Next::Pull, Reason::Missing { bytes: missing }));
        }
        match self.goals.max_downtime {
            Some(goal) if mode == Mode::PreCopy && view.leaving > goal => {
                return (Next::Abort, Reason::OutOfReach { goal, least: view.leaving });
            }
            Some(goal) if mode != Mode::Hybrid && view.sending <= goal && !self.samples.is_empty() => {
                return (Next::Switch(Last::Send), Reason::WithinGoal { goal });
            }
            _ => {}
        }
        // What a round would leave, and how long that would take to be there.
        let round =
            self.round_trip + time_of(view.last, view.link) + self.round_trip / 2 + self.costs.suspend;
        let after = self.expected_set(round);
        if let Some(decided) = self.limits(view, after.unwrap_or(0)) {
            return decided;
        }
        let Some(after) = after else {
            return (Next::Round, Reason::Shrinking { from: view.last, to: 0 });
        };
        // Less than a tenth of what the switch takes anyway is not worth a round.
        let gain = time_of(view.last, view.link).saturating_sub(time_of(after, view.link));
        if after <= view.last / 2 && self.stalls == 0 && gain > view.leaving / 10 {
            return (Next::Round, Reason::Shrinking { from: view.last, to: after });
        }
        self.settle(view, after)
    }

    /// Rounds bring nothing more: what is made of what there is.
    fn settle(&self, view: &View, after: u64) -> (Next, Reason) {
        let hopeless = (self.stalls > 0 || self.outpaces(view.link)) && after >= view.last;
        let written = self.samples.back().map_or(0.0, |(bytes, over)| *bytes as f64 / over.as_secs_f64());
        let why = match view.link {
            Some(link) if written >= link => {
                Reason::CannotConverge { written: written as u64, link: link as u64 }
            }
            _ => Reason::NoProgress { rounds: self.stalls, bytes: self.last_set },
        };
        // What cannot be had by any means is as good as not asked for.
        let goal = self.goals.max_downtime.filter(|goal| view.leaving <= *goal);
        match (self.goals.mode, goal) {
            (Mode::Hybrid | Mode::PostCopy, _) => (Next::Switch(Last::Leave), Reason::Asked(self.goals.mode)),
            (Mode::Auto, None) if view.sending <= TOLERABLE => {
                (Next::Switch(Last::Send), Reason::Shortest { bytes: after })
            }
            (Mode::PreCopy, None) => (Next::Switch(Last::Send), Reason::Shortest { bytes: after }),
            (Mode::Auto, _) if hopeless || self.stalls >= PATIENCE => (Next::Switch(Last::Leave), why),
            (Mode::PreCopy, Some(_))
                if self.goals.deadline.is_none() && self.is_out_of_patience(view.now) =>
            {
                (Next::Abort, why)
            }
            (Mode::Auto | Mode::PreCopy, _) => (Next::Round, Reason::MayPass { rounds: self.stalls }),
        }
    }

    /// Whether PreCopy has gone on for long enough without progress.
    fn is_out_of_patience(&self, now: Duration) -> bool {
        self.stalls >= STRICT_PATIENCE && now.saturating_sub(self.progressed) >= STRICT_TIME
    }

    /// Whether all that was measured lately says that more is written than the link carries: the first time that all of
    /// it is pulled is as long as a round, and shows as much.
    fn outpaces(&self, link: Option<f64>) -> bool {
        let faster =
            |link: f64| self.samples.iter().all(|(bytes, over)| *bytes as f64 >= link * over.as_secs_f64());
        self.samples.len() == SAMPLES && link.is_some_and(faster)
    }

    /// Whether a limit leaves no time or bytes for another step, which would make `more` bytes necessary.
    fn limits(&self, view: &View, more: u64) -> Option<(Next, Reason)> {
        let left = view.leaving + time_of(view.last, view.link);
        let is_late = |deadline: &Duration| {
            // A flow that has just begun is slower than it will be, which is of no account while there is time.
            let is_known = self.sending >= SETTLED + self.round_trip * 8 || view.now >= *deadline / 4;
            is_known && view.now + left + left / MARGIN >= *deadline
        };
        let late = self.goals.deadline.filter(is_late);
        let expected = self.sent.saturating_add(view.last).saturating_add(more);
        let too_many = self.goals.max_bytes.filter(|most| expected > *most);
        let (reason, hard) = match (late, too_many) {
            (Some(deadline), _) => (Reason::Deadline { deadline, left }, view.now >= deadline),
            (None, Some(most)) => (Reason::Bytes { most, expected }, true),
            (None, None) => return None,
        };
        let fits = match self.goals.max_downtime {
            Some(goal) => view.sending <= goal,
            None => self.goals.mode == Mode::PreCopy || view.sending <= TOLERABLE,
        };
        // Nothing is promised before anything was measured.
        let send = fits && !self.samples.is_empty();
        match self.goals.mode {
            Mode::PreCopy | Mode::Auto if send => Some((Next::Switch(Last::Send), reason)),
            Mode::Auto | Mode::Hybrid | Mode::PostCopy => Some((Next::Switch(Last::Leave), reason)),
            Mode::PreCopy if hard => Some((Next::Abort, reason)),
            Mode::PreCopy => None,
        }
    }
}

/// What can be said at one moment.
struct View {
    now: Duration,
    /// Missing, with what is held back.
    missing: u64,
    /// What is expected in the last set, if it were taken now.
    set: u64,
    /// Both.
    last: u64,
    link: Option<f64>,
    /// The downtime if all of this is left for later, and if it is sent before.
    leaving: Duration,
    sending: Duration,
}

fn time_of(bytes: u64, link: Option<f64>) -> Duration {
    match link {
        Some(rate) if bytes > 0 => {
            Duration::try_from_secs_f64(bytes as f64 / rate).unwrap_or(Duration::MAX / 16)
        }
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests;
