//! The destination's machine: the side that pulls, and becomes the owner.
//!
//! ```text
//!                        start_switch                accept
//!   Preparing ──> Copying ──────────> Switching ──> Held ──────> Accepting ──> PostCopy ──> Completing ──> Completed
//!      │             │ start_round ↺       │          │              │             │ ACCEPT refused
//!      └─────────────┴──── Aborting ───────┴──────────┴──────────────┘           Ousted
//!                             └──> Aborted                a record that failed
//! ```
//!
//! The record *Begun* is durable before the first request, and *Aborted* before ABORT, so that a restart finds
//! what it has to tell the origin. *Accepted* is what makes it the owner. Where writing that has failed it may
//! be durable all the same: then the machine says nothing to anybody until *Aborted* is durable in its place.
//!
//! Where everything is at home and the origin has not heard of ACCEPT yet, the record says *Home*: nothing is needed of
//! the origin from then on, though it has to be told of both when it is there again.
//!
//! The engine pulls as it likes meanwhile. It tells the machine what it has decided, by
//! [`Destination::start_round`], [`Destination::start_switch`], [`Destination::accept`] and
//! [`Destination::handle_everything_home`], and sends LOOK whenever it wants, since that changes nothing.

mod steps;

use super::record::DestinationPhase;
use super::{MigrationId, Phase, RefusalKind, Reply, Request, Token};

/// What the engine is to do for the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DestinationEffect {
    /// Make the record durable, in place of the one before. With [`DestinationPhase::Accepted`] also which
    /// pages are at home durably, before it.
    Record(DestinationPhase),
    /// Let the application run. It comes again after a restart.
    Resume,
    /// Give up what was pulled.
    Discard,
    /// Suspend the application: it belongs to the origin again.
    Suspend,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out.
    Done(Reply),
    /// It was refused.
    Refused {
        /// What that means.
        kind: RefusalKind,
        /// Why, for people.
        reason: String,
    },
    /// The connection was lost before an answer came: the request is given out again.
    Lost,
}

/// Why the destination has given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// An operator of the destination wanted it.
    #[error("aborted by the operator")]
    Operator,
    /// The goals cannot be reached, or something else that the engine knows.
    #[error("{0}")]
    Decided(String),
    /// The origin does not go on.
    #[error("the origin refused {request}: {reason}")]
    Refused {
        /// What it was asked for.
        request: &'static str,
        /// What it said.
        reason: String,
    },
    /// The origin has begun anew, so that nobody knows what was written meanwhile.
    #[error("the origin was restarted and has lost track of what was written")]
    Gap,
    /// The destination was restarted before it had accepted.
    #[error("the destination was restarted before it had accepted")]
    Restarted,
    /// A record could not be written.
    #[error("the migration's record could not be written: {0}")]
    Record(String),
}

/// What was wanted does not fit the phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not now: {0}")]
pub struct OutOfTurn(pub Phase);

/// The destination's side of one migration. See the [module](super) for how to drive it.
#[derive(Debug, Clone)]
pub struct Destination {
    id: MigrationId,
    state: State,
    /// The effect that was given out and whose result is not known.
    under_way: Option<DestinationEffect>,
    /// The request that was given out last, as long as it is open.
    asked: Option<Request>,
    /// Whether the application was resumed since the start.
    resumed: bool,
    /// Why it could not be, until a retry.
    resume_failed: Option<String>,
    /// Why a record or something else could not be done, until a retry.
    failed: Option<String>,
    /// Why the request that is due was refused, until a retry.
    refused: Option<String>,
    /// Why it was given up.
    cause: Option<Cause>,
    /// What the origin has said at the end that it should not have.
    discord: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preparing,
    Beginning,
    Copying {
        generation: u64,
        round: u64,
    },
    Rounding {
        generation: u64,
        number: u64,
    },
    Switching {
        generation: u64,
        number: u64,
    },
    Held {
        token: Token,
    },
    Accepting {
        token: Token,
    },
    /// `home` is whether everything is at home, `kept` whether the record says so.
    Owner {
        token: Token,
        told: bool,
        home: bool,
        kept: bool,
    },
    Completing {
        token: Token,
        recorded: bool,
    },
    Completed,
    Aborting {
        step: Aborting,
        accepted: bool,
    },
    Aborted,
    Ousting {
        step: Ousting,
    },
    Ousted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aborting {
    Record,
    Discard,
    Tell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ousting {
    Suspend,
    Record,
    /// The origin may have to withdraw its record yet.
    Tell,
}

impl Destination {
    /// A migration that has not begun.
    pub fn new(id: MigrationId) -> Self {
        Self::with(id, State::Preparing)
    }

    /// The migration that a record tells of, after a restart. What was pulled before is gone unless it was
    /// accepted, and then it is what the [home sets](super::HomeSets) say.
    pub fn from_record(phase: DestinationPhase) -> Self {
        let accepted = false;
        match phase {
            DestinationPhase::Begun { id } => {
                let mut destination = Self::with(id, State::Aborting { step: Aborting::Record, accepted });
                destination.cause = Some(Cause::Restarted);
                destination
            }
            DestinationPhase::Aborted { id } => {
                Self::with(id, State::Aborting { step: Aborting::Discard, accepted })
            }
            DestinationPhase::Accepted { id, token } => {
                Self::with(id, State::Owner { token, told: false, home: false, kept: false })
            }
            DestinationPhase::Home { id, token } => {
                Self::with(id, State::Owner { token, told: false, home: true, kept: true })
            }
            DestinationPhase::Completed { id, token } => {
                Self::with(id, State::Completing { token, recorded: true })
            }
        }
    }

    fn with(id: MigrationId, state: State) -> Self {
        Self {
            id,
            state,
            under_way: None,
            asked: None,
            resumed: false,
            resume_failed: None,
            failed: None,
            refused: None,
            cause: None,
            discord: None,
        }
    }

    /// The next round is to be made; answers its number. Its set comes with the reply to the request that
    /// follows; it counts as received from then on, though its bytes have not been pulled.
    ///
    /// # Errors
    /// [`OutOfTurn`] where nothing is being copied, or a round is awaited already.
    pub fn start_round(&mut self) -> Result<u64, OutOfTurn> {
        let State::Copying { generation, round } = self.state else {
            return Err(OutOfTurn(self.phase()));
        };
        let number = round + 1;
        self.state = State::Rounding { generation, number };
        Ok(number)
    }

    /// The origin is to suspend the application, and to give the last set. A round that is awaited is given up;
    /// what would have been in its set is in the last one.
    ///
    /// # Errors
    /// [`OutOfTurn`] where nothing is being copied.
    pub fn start_switch(&mut self) -> Result<(), OutOfTurn> {
        self.state = match self.state {
            State::Copying { generation, round } => State::Switching { generation, number: round + 1 },
            State::Rounding { generation, number } => State::Switching { generation, number },
            _ => return Err(OutOfTurn(self.phase())),
        };
        Ok(())
    }

    /// As much as is wanted before the switch is here: the destination becomes the owner.
    ///
    /// # Errors
    /// [`OutOfTurn`] where the origin has not offered.
    pub fn accept(&mut self) -> Result<(), OutOfTurn> {
        let State::Held { token } = self.state else {
            return Err(OutOfTurn(self.phase()));
        };
        self.state = State::Accepting { token };
        Ok(())
    }

    /// Every page of every region is at home durably: the origin is not needed any more. It may be said again.
    ///
    /// # Errors
    /// [`OutOfTurn`] before the destination is the owner.
    pub fn handle_everything_home(&mut self) -> Result<(), OutOfTurn> {
        match &mut self.state {
            State::Owner { home, .. } => *home = true,
            State::Completing { .. } | State::Completed => {}
            _ => return Err(OutOfTurn(self.phase())),
        }
        self.complete();
        Ok(())
    }

    /// The migration is to be given up.
    ///
    /// # Errors
    /// [`OutOfTurn`] once the destination is the owner, or about to be.
    pub fn handle_abort(&mut self, cause: Cause) -> Result<(), OutOfTurn> {
        match self.state {
            State::Preparing
            | State::Beginning
            | State::Copying { .. }
            | State::Rounding { .. }
            | State::Switching { .. }
            | State::Held { .. } => {
                self.give_up(cause, false);
                Ok(())
            }
            State::Aborting { .. } | State::Aborted => Ok(()),
            _ => Err(OutOfTurn(self.phase())),
        }
    }

    /// What has failed or was refused is to be tried again.
    pub fn handle_retry(&mut self) {
        self.resume_failed = None;
        self.failed = None;
        self.refused = None;
    }

    /// What is to be done next; none while something is under way, or there is nothing.
    pub fn poll_effect(&mut self) -> Option<DestinationEffect> {
        if self.under_way.is_some() {
            return None;
        }
        self.under_way = self.wanted();
        self.under_way
    }

    /// How the effect that was given out ended; an error says why, for people.
    ///
    /// # Panics
    /// If none was given out.
    pub fn handle_result(&mut self, result: Result<(), String>) {
        let effect = self.under_way.take().expect("nothing was to be done");
        match (effect, result) {
            (DestinationEffect::Resume, Ok(())) => self.resumed = true,
            (DestinationEffect::Resume, Err(why)) => self.resume_failed = Some(why),
            (DestinationEffect::Record(phase), result) => self.recorded(phase, result),
            // What was pulled is not used either way.
            (DestinationEffect::Discard, _) => {
                if let State::Aborting { step, .. } = &mut self.state {
                    *step = Aborting::Tell;
                }
            }
            (DestinationEffect::Suspend, Ok(())) => {
                self.resumed = false;
                self.state = State::Ousting { step: Ousting::Record };
            }
            (DestinationEffect::Suspend, Err(why)) => self.failed = Some(why),
        }
    }

    /// What is to be asked of the origin now; none while that is under way. Another one may still be: its
    /// outcome does not matter any more.
    pub fn poll_request(&mut self) -> Option<Request> {
        let due = self.due()?;
        if self.asked == Some(due) || self.refused.is_some() {
            return None;
        }
        self.asked = Some(due);
        self.asked
    }

    /// The request that was given out and is still due: what a lost connection leaves open.
    pub fn awaited(&self) -> Option<Request> {
        self.asked.filter(|asked| self.due() == Some(*asked))
    }

    /// What came of a request, also of a BEGIN that the engine has sent by itself to come back after a lost
    /// connection.
    ///
    /// Answers whether it counts: then the set that came with it is to be used. What comes late, or twice, changes
    /// nothing.
    pub fn handle_outcome(&mut self, request: Request, outcome: Outcome) -> bool {
        if request.id() != self.id {
            return false;
        }
        if let Outcome::Done(Reply::Begun { generation }) = outcome {
            return self.begun(generation);
        }
        if self.due() != Some(request) {
            return false;
        }
        self.asked = None;
        match outcome {
            Outcome::Done(reply) => return self.answered(reply),
            Outcome::Refused { kind: RefusalKind::Later, reason } => self.refused = Some(reason),
            Outcome::Refused { kind: RefusalKind::Over, reason } => self.over(request, reason),
            Outcome::Lost => return false,
        }
        true
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Preparing | State::Beginning => Phase::Preparing,
            State::Copying { .. } | State::Rounding { .. } => Phase::Copying,
            State::Switching { .. } => Phase::Switching,
            State::Held { .. } => Phase::Held,
            State::Accepting { .. } => Phase::Accepting,
            State::Owner { kept: false, .. } => Phase::PostCopy,
            State::Owner { .. } => Phase::Completing,
            State::Completing { .. } => Phase::Completing,
            State::Completed => Phase::Completed,
            State::Aborting { .. } => Phase::Aborting,
            State::Aborted => Phase::Aborted,
            State::Ousting { .. } | State::Ousted => Phase::Ousted,
        }
    }

    /// Which migration it is.
    pub fn id(&self) -> MigrationId {
        self.id
    }

    /// The last round whose set was received, while it copies and none is awaited.
    pub fn round(&self) -> Option<u64> {
        match self.state {
            State::Copying { round, .. } => Some(round),
            _ => None,
        }
    }

    /// Whether the destination is the owner, durably, so that the application may run here.
    pub fn may_run(&self) -> bool {
        matches!(self.state, State::Owner { .. } | State::Completing { .. } | State::Completed)
    }

    /// Whether it is durable that everything is at home: nothing is needed of the origin any more, whether it can be
    /// told or not.
    pub fn has_everything(&self) -> bool {
        matches!(
            self.state,
            State::Owner { kept: true, .. } | State::Completing { recorded: true, .. } | State::Completed
        )
    }

    /// Whether the application was resumed here.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Whether nothing is left to do: the record can go.
    pub fn is_finished(&self) -> bool {
        match self.state {
            State::Completed => self.resumed,
            State::Aborted | State::Ousted => self.under_way.is_none(),
            _ => false,
        }
    }

    /// Whether it is given up, and that is not carried out here yet: the application is to be suspended where somebody has
    /// taken it back, and the record to be written. Who ends before that may find the application its own after a restart.
    pub fn is_ending(&self) -> bool {
        matches!(
            self.state,
            State::Ousting { step: Ousting::Suspend | Ousting::Record }
                | State::Aborting { step: Aborting::Record, .. }
        )
    }

    /// Why it was given up.
    pub fn cause(&self) -> Option<&Cause> {
        self.cause.as_ref()
    }

    /// What could not be done, or was refused, and is tried again by [`Destination::handle_retry`].
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref().or(self.resume_failed.as_deref()).or(self.refused.as_deref())
    }

    /// What the origin has said at the end and should not have, had both kept their records.
    pub fn discord(&self) -> Option<&str> {
        self.discord.as_deref()
    }
}

#[cfg(test)]
mod tests;
