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
//!         Abort => abort
//!     }
//! }
//! ```
//!
//! # What is predicted
//!
//! `U(t)`, the bytes of different pages that are written in a time `t`, from the sizes of sets and the times that they
//! cover. It grows ever more slowly, since what is written twice counts once: so a set of `u` bytes in a time `τ` says that
//! `U(t) <= u * max(1, t / τ)`. The least of what the latest samples say is taken; for a time that is shorter
//! than all of them, their rate.
//!
//! The **downtime** is what suspending and resuming take, the destination's record, half a round trip for the offer to arrive,
//! and, where the last set is sent before, a round trip and the time that its bytes take on the link. (The origin's record and SWITCH's
//! own way are over before the application stops.) The last set is `U` of the time since the last round.
//!
//! # Modes
//!
//! - [`Mode::PreCopy`] is strict: the application is never resumed before all of it is there. Where the downtime that was asked for
//!   cannot be had, by the deadline or at all, the migration is aborted rather than that it is broken. Who asks for
//!   no downtime gets the least that rounds bring.
//! - [`Mode::Auto`] does the same as long as that works, and goes hybrid where it does not: what cannot be had
//!   by sending more is had by leaving it for later.
//! - [`Mode::Hybrid`] makes rounds as long as each halves what is left, and then leaves the last set for later,
//!   always: the downtime is as short as it can be, and the application waits for pages a little afterwards.
//! - [`Mode::PostCopy`] switches first, and sends each byte once.
//!
//! Without a downtime asked for, "as short as it can be" counts: rounds go on while each at least halves what is left. Then Auto sends the last set if
//! that takes no longer than [`TOLERABLE`], since an application that is resumed without its most-written pages would wait for
//! them one by one.
//!
//! # It always ends
//!
//! A round counts as progress if its set is half of the smallest so far or less, which can be only so often; of others
//! there may be [`PATIENCE`], or [`STRICT_PATIENCE`] where PreCopy has no deadline.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The longest downtime that Auto makes by sending the last set, where no downtime was asked for: what a person hardly
/// notices, and no protocol's timeout does.
pub const TOLERABLE: Duration = Duration::from_millis(300);

/// How many rounds without progress there may be: writers come in bursts, and one round may have met one.
pub const PATIENCE: u32 = 3;

/// The same for PreCopy without a deadline, where the other way out is to fail.
pub const STRICT_PATIENCE: u32 = 12;

/// How many decisions are kept for the report.
const KEPT: usize = 1024;

/// How many samples of what was written count.
const SAMPLES: usize = 3;

/// Half of what is known of the link's rate is forgotten over so much time of sending.
const RATE_MEMORY: f64 = 0.25;

/// How a region is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Whatever the measurements ask for.
    #[default]
    Auto,
    /// Everything before the switch, or not at all.
    PreCopy,
    /// Everything after the switch.
    PostCopy,
    /// Most of it before the switch, what was written last after it.
    Hybrid,
}

impl Mode {
    /// The name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::PreCopy => "pre-copy",
            Self::PostCopy => "post-copy",
            Self::Hybrid => "hybrid",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A mode that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to migrate: it is auto, pre-copy, post-copy or hybrid")]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        [Self::Auto, Self::PreCopy, Self::PostCopy, Self::Hybrid]
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or_else(|| UnknownMode(name.to_owned()))
    }
}

/// What matters to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Goals {
    /// How.
    pub mode: Mode,
    /// For how long the application may stand still; none for as short as it can be.
    pub max_downtime: Option<Duration>,
    /// When everything should be at the destination, from the beginning of the migration.
    pub deadline: Option<Duration>,
    /// How many bytes may be sent in all. Where each byte has to be sent once at least, this cannot be below the regions'.
    pub max_bytes: Option<u64>,
}

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

/// What there is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Next {
    /// Pull what is missing.
    Pull,
    /// Ask for what was written meanwhile.
    Round,
    /// Switch.
    Switch(Last),
    /// Give up: the goals cannot be reached.
    Abort,
}

/// What is done about what is missing at the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Last {
    /// It is sent before the application is resumed.
    Send,
    /// It is left for later.
    Leave,
}

/// Why; it prints as a sentence, without a full stop. Rates are in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason {
    /// Bytes are missing, and there is time to send them first.
    Missing {
        /// How many.
        bytes: u64,
    },
    /// The next round is expected to leave half of what is left, or less.
    Shrinking {
        /// What a switch would have to send now.
        from: u64,
        /// What it would have to send after a round.
        to: u64,
    },
    /// The last rounds were no smaller; that may have been a burst.
    MayPass {
        /// How many rounds in a row.
        rounds: u32,
    },
    /// The downtime is what was asked for.
    WithinGoal {
        /// What was asked for.
        goal: Duration,
    },
    /// The downtime is about as short as it can be.
    Shortest {
        /// What another round would leave.
        bytes: u64,
    },
    /// The mode says so.
    Asked(Mode),
    /// Pages are written faster than the link carries them.
    CannotConverge {
        /// How fast they are written.
        written: u64,
        /// What the link carries.
        link: u64,
    },
    /// Rounds do not become smaller.
    NoProgress {
        /// How many were made in vain.
        rounds: u32,
        /// What the last one had.
        bytes: u64,
    },
    /// If it went on, it would be late.
    Deadline {
        /// When everything should be there.
        deadline: Duration,
        /// What is left would take this long.
        left: Duration,
    },
    /// If it went on, it would send too much.
    Bytes {
        /// How many may be sent.
        most: u64,
        /// How many it would be.
        expected: u64,
    },
}

/// What was decided, and on what grounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// When, from the beginning of the migration.
    pub at: Duration,
    /// What to do.
    pub next: Next,
    /// Why.
    pub reason: Reason,
    /// Bytes that were known to be missing.
    pub missing: u64,
    /// Bytes that are expected to be in the last set, if it were taken now.
    pub set: u64,
    /// The downtime that is expected, if the switch were made now in the way that `next` says, or by sending.
    pub downtime: Duration,
    /// How fast pages are written, in bytes per second; none if that was not measured yet.
    pub written: Option<u64>,
    /// What the link carries, in bytes per second; none if that was not measured yet.
    pub link: Option<u64>,
}

/// Decides on the steps of one migration. Times are counted from its beginning.
#[derive(Debug, Clone)]
pub struct Controller {
    goals: Goals,
    costs: Costs,
    /// The lowest that was measured.
    round_trip: Duration,
    sent: u64,
    /// Bytes and seconds of sending, the latest counting most.
    rate: (f64, f64),
    /// What was written in how long, the newest last.
    samples: VecDeque<(u64, Duration)>,
    /// When the last set was taken, or the tracking began.
    taken: Duration,
    /// The smallest set of a round so far, the last one, and how many have come since that were not half of it.
    smallest: Option<u64>,
    last_set: u64,
    stalls: u32,
    rounds: u64,
    log: VecDeque<Decision>,
}

impl Controller {
    /// For a migration that begins now.
    pub fn new(goals: Goals, costs: Costs) -> Self {
        Self {
            goals,
            costs,
            round_trip: Duration::ZERO,
            sent: 0,
            rate: (0.0, 0.0),
            samples: VecDeque::new(),
            taken: Duration::ZERO,
            smallest: None,
            last_set: 0,
            stalls: 0,
            rounds: 0,
            log: VecDeque::new(),
        }
    }

    /// A round trip was measured.
    pub fn handle_round_trip(&mut self, round_trip: Duration) {
        if self.round_trip.is_zero() || round_trip < self.round_trip {
            self.round_trip = round_trip;
        }
    }

    /// What a switch takes is known better than at the beginning.
    pub fn handle_costs(&mut self, costs: Costs) {
        self.costs = costs;
    }

    /// The tracking has begun: what is written from now on is in the first round.
    pub fn handle_begun(&mut self, now: Duration) {
        self.taken = now;
    }

    /// So many bytes have arrived, in so much time from when they were asked for; a time in which nothing was asked for does not count.
    pub fn handle_sent(&mut self, bytes: u64, took: Duration) {
        self.sent = self.sent.saturating_add(bytes);
        // What is short is mostly the way there and back.
        let took = took.saturating_sub(self.round_trip).max(took / 8).as_secs_f64();
        let keep = RATE_MEMORY / (RATE_MEMORY + took);
        self.rate = (self.rate.0 * keep + bytes as f64, self.rate.1 * keep + took);
    }

    /// LOOK has answered: so many bytes of different pages were written in so much time.
    pub fn handle_look(&mut self, bytes: u64, over: Duration) {
        if over.is_zero() {
            return;
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((bytes, over));
    }

    /// A round was made: its set has so many bytes, and was taken at this time.
    pub fn handle_round(&mut self, now: Duration, bytes: u64) {
        self.handle_look(bytes, now.saturating_sub(self.taken));
        self.taken = now;
        self.rounds += 1;
        self.last_set = bytes;
        match self.smallest {
            Some(smallest) if bytes > smallest / 2 => self.stalls += 1,
            _ => {
                self.smallest = Some(bytes);
                self.stalls = 0;
            }
        }
    }

    /// What to do, with so many bytes known to be missing, all of which could be pulled now; `held` more are missing, and are
    /// kept for the last set.
    pub fn decide(&mut self, now: Duration, missing: u64, held: u64) -> Decision {
        let view = self.view(now, missing.saturating_add(held));
        let (next, reason) = self.choose(&view, missing);
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
        let downtime = if next == Next::Switch(Last::Leave) { view.leaving } else { view.sending };
        let Self { samples, .. } = &*self;
        let written = samples.back().map(|(bytes, over)| (*bytes as f64 / over.as_secs_f64()) as u64);
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
        if self.log.len() == KEPT {
            self.log.pop_front();
        }
        self.log.push_back(decision);
        decision
    }

    fn view(&self, now: Duration, missing: u64) -> View {
        let lead = self.round_trip / 2 + self.costs.suspend;
        let set = self.expected_set(now.saturating_sub(self.taken) + lead).unwrap_or(0);
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
        if let Some(goal) = self.goals.max_downtime
            && mode != Mode::Hybrid
            && view.sending <= goal
        {
            return (Next::Switch(Last::Send), Reason::WithinGoal { goal });
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
        let hopeless = self.stalls > 0 && after >= view.last;
        let written = self.samples.back().map_or(0.0, |(bytes, over)| *bytes as f64 / over.as_secs_f64());
        let why = match view.link {
            Some(link) if written >= link => {
                Reason::CannotConverge { written: written as u64, link: link as u64 }
            }
            _ => Reason::NoProgress { rounds: self.stalls, bytes: self.last_set },
        };
        match (self.goals.mode, self.goals.max_downtime) {
            (Mode::Hybrid | Mode::PostCopy, _) => (Next::Switch(Last::Leave), Reason::Asked(self.goals.mode)),
            (Mode::Auto, None) if view.sending <= TOLERABLE => {
                (Next::Switch(Last::Send), Reason::Shortest { bytes: after })
            }
            (Mode::PreCopy, None) => (Next::Switch(Last::Send), Reason::Shortest { bytes: after }),
            (Mode::Auto, _) if hopeless || self.stalls >= PATIENCE => (Next::Switch(Last::Leave), why),
            (Mode::PreCopy, Some(_)) if self.goals.deadline.is_none() && self.stalls >= STRICT_PATIENCE => {
                (Next::Abort, why)
            }
            (Mode::Auto | Mode::PreCopy, _) => (Next::Round, Reason::MayPass { rounds: self.stalls }),
        }
    }

    /// Whether a limit leaves no time or bytes for another step, which would make `more` bytes necessary.
    fn limits(&self, view: &View, more: u64) -> Option<(Next, Reason)> {
        let left = view.leaving + time_of(view.last, view.link);
        let late = self.goals.deadline.filter(|deadline| view.now + left + left / 8 >= *deadline);
        let expected = self.sent.saturating_add(view.last).saturating_add(more);
        let too_many = self.goals.max_bytes.filter(|most| expected > *most);
        let (reason, hard) = match (late, too_many) {
            (Some(deadline), _) => (Reason::Deadline { deadline, left }, view.now >= deadline),
            (None, Some(most)) => (Reason::Bytes { most, expected }, true),
            (None, None) => return None,
        };
        let send = match self.goals.max_downtime {
            Some(goal) => view.sending <= goal,
            None => self.goals.mode == Mode::PreCopy || view.sending <= TOLERABLE,
        };
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

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Missing { bytes } => write!(f, "{} are missing", Bytes(bytes)),
            Self::Shrinking { from, to } => {
                write!(f, "another round brings what is left from {} to {}", Bytes(from), Bytes(to))
            }
            Self::MayPass { rounds } => {
                write!(f, "{rounds} rounds brought nothing, which may have been a burst")
            }
            Self::WithinGoal { goal } => write!(f, "the downtime is within the {goal:?} that were asked for"),
            Self::Shortest { bytes } => {
                write!(f, "the downtime is as short as it can be: another round would leave {}", Bytes(bytes))
            }
            Self::Asked(mode) => write!(f, "{mode} was asked for"),
            Self::CannotConverge { written, link } => write!(
                f,
                "the writer dirties {}/s, the link carries {}/s: pre-copy cannot converge",
                Bytes(written),
                Bytes(link)
            ),
            Self::NoProgress { rounds, bytes } => {
                write!(f, "{rounds} rounds brought nothing, the last one had {}", Bytes(bytes))
            }
            Self::Deadline { deadline, left } => {
                write!(f, "what is left takes {left:.1?}, and everything should be there after {deadline:?}")
            }
            Self::Bytes { most, expected } => {
                write!(f, "going on would send {} in all, where {} are allowed", Bytes(expected), Bytes(most))
            }
        }
    }
}

/// Bytes for people, in powers of 1000 as rates are.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0 as f64, "B");
        for next in ["kB", "MB", "GB", "TB"] {
            if value < 999.5 {
                break;
            }
            value /= 1000.0;
            unit = next;
        }
        if value < 9.95 && unit != "B" {
            write!(f, "{value:.1} {unit}")
        } else {
            write!(f, "{value:.0} {unit}")
        }
    }
}
