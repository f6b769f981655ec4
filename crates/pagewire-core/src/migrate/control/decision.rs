//! What was decided, and why, for the engine and for people.

use std::fmt;
use std::time::Duration;

use super::Mode;

/// What there is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Next {
    /// Pull what is missing.
    Pull,
    /// Ask for what was written meanwhile.
    Round,
    /// Wait until the witness has more.
    Witness,
    /// Switch.
    Switch(Last),
    /// Give up: the goals cannot be reached.
    Abort,
}

impl Next {
    /// The name in JSON and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Round => "round",
            Self::Witness => "witness",
            Self::Switch(Last::Send) => "switch-send",
            Self::Switch(Last::Leave) => "switch-leave",
            Self::Abort => "abort",
        }
    }
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
    /// What a switch takes besides bytes is more than was asked for.
    OutOfReach {
        /// What was asked for.
        goal: Duration,
        /// What it takes at least.
        least: Duration,
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
    /// The witness lacks more than the application can wait for.
    Unwitnessed {
        /// How much.
        bytes: u64,
    },
    /// The witness comes no nearer to what the application writes.
    WitnessLags {
        /// How much it lacks.
        bytes: u64,
        /// How fast it takes something.
        rate: u64,
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

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.next {
            Next::Pull => "pull",
            Next::Round => "another round",
            Next::Witness => "wait for the witness",
            Next::Switch(Last::Send) => "switch, and send the rest before",
            Next::Switch(Last::Leave) => "switch, and leave the rest for later",
            Next::Abort => "give up",
        };
        write!(f, "{:.3} s: {what}: {} (", self.at.as_secs_f64(), self.reason)?;
        write!(f, "{} missing, {} expected to be written", Bytes(self.missing), Bytes(self.set))?;
        if let Some(link) = self.link {
            write!(f, ", {}/s carried", Bytes(link))?;
        }
        write!(f, ", downtime {:.1?} expected)", self.downtime)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Missing { bytes } => write!(f, "{} are missing", Bytes(bytes)),
            Self::Shrinking { from, to } => {
                write!(f, "another round brings what is left from {} to {}", Bytes(from), Bytes(to))
            }
            Self::MayPass { rounds: 0 } => {
                f.write_str("another round may bring more than was measured so far says")
            }
            Self::MayPass { rounds } => {
                write!(f, "{rounds} rounds brought nothing, which may have been a burst")
            }
            Self::WithinGoal { goal } => write!(f, "the downtime is within the {goal:?} that were asked for"),
            Self::OutOfReach { goal, least } => write!(
                f,
                "suspending and resuming alone take {least:.1?}, and a downtime of {goal:?} was asked for"
            ),
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
            Self::Unwitnessed { bytes } => write!(f, "the witness lacks {}", Bytes(bytes)),
            Self::WitnessLags { bytes, rate } => write!(
                f,
                "the witness takes {}/s and still lacks {}: what is written does not get there fast enough",
                Bytes(rate),
                Bytes(bytes)
            ),
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
