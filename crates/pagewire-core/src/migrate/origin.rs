//! The origin's machine: the side that has the application, and may have to give it up.
//!
//! ```text
//!            BEGIN          SWITCH                              ACCEPT           COMPLETE
//!   Idle ───────> Tracking ───────> Offering ───────> InDoubt ───────> Moved ───────> Released
//!    ^               │                 │                 │
//!    └─ Withdrawing ─┴─────────────────┴─────────────────┘
//!              ABORT, a failure,   ABORT, a failure,   ABORT, force
//!            operator, departure  operator, departure
//! ```
//!
//! What decides is who knows the offer's token. While the machine is offering, its record says *Offered*
//! already, but the token was told to nobody: so it can withdraw by itself when the hook fails. Once the
//! regions are frozen the token is told, and from then on only the destination's word counts.
//!
//! On the way back the application is resumed even where the record cannot be withdrawn: nobody can accept. A
//! restart would find it in doubt then, suspended, so the record is tried again until that works; no other
//! migration begins before. Force is another matter, since the destination may have accepted: the record comes
//! first, and only then the application is resumed, or the destination told.

mod requests;
mod steps;

use std::collections::VecDeque;

use super::record::OriginPhase;
use super::{Ending, MigrationId, Phase, Refusal, Reply, Request, Token};

/// What the engine is to do for the origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginEffect {
    /// Begin to track what is written to each region, from before this is answered.
    Track,
    /// Take what was written to each region since the last set, and keep it as that of this round. The set that
    /// was kept before was received, and can be dropped.
    TakeRound {
        /// The round.
        number: u64,
    },
    /// Make the record durable, in place of the one before.
    Record(OriginPhase),
    /// Suspend the application, so that it writes nothing any more. Where this fails the application
    /// counts as suspended in part: [`OriginEffect::Resume`] follows.
    Suspend,
    /// Freeze each region: nobody can write any more, and everything that was written can be read, by others
    /// too, and after a restart as far as the region's store is durable. Then take the last set, and see to it that the
    /// witness has all of it, where there is one.
    Freeze {
        /// The number of the last set.
        number: u64,
        /// Whether the set that is kept was received. Else it belongs to the last one too.
        confirmed: bool,
    },
    /// Regions can be written to again.
    Thaw,
    /// Let the application run.
    Resume,
    /// Put back the set that is kept, where it has a use beyond this migration, and track no more.
    Untrack,
    /// The application will never run here again: end what is left of it, and keep the frozen bytes, as long as the
    /// destination may need them.
    Keep,
    /// Nobody needs the frozen bytes any more.
    Release,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Not known yet: it is to be handed in again when a result was, and not to be forgotten.
    Wait,
    /// It is carried out.
    Done(Reply),
    /// It is not.
    Refused(Refusal),
}

/// The origin's side of migrations of one application. See the [module](super) for how to drive it.
#[derive(Debug, Clone)]
pub struct Origin {
    state: State,
    /// Whether an effect was given out whose result is not known.
    under_way: bool,
    /// Why what is under way is not to go on.
    ending: Option<Ending>,
    /// The latest migrations that have ended without a switch; the newest is the last.
    ended: VecDeque<(MigrationId, Ending)>,
    /// A migration whose record may still say that it was offered, and was not.
    stale: Option<MigrationId>,
    /// Why what has to be done could not be done; until a retry nothing is done.
    failed: Option<String>,
    /// What the next generation or token is.
    nonce: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// With a record to withdraw, where one is stale.
    Idle,
    Tracking {
        id: MigrationId,
        generation: u64,
        /// The last round that was taken; none until the tracking has begun.
        round: Option<u64>,
        /// Whether the next one is being taken.
        taking: bool,
    },
    Offering {
        id: MigrationId,
        generation: u64,
        token: Token,
        number: u64,
        confirmed: bool,
        step: Offering,
    },
    InDoubt {
        id: MigrationId,
        generation: u64,
        token: Token,
        /// The number of the last set; none after a restart, which loses it.
        number: Option<u64>,
    },
    Withdrawing {
        id: MigrationId,
        ending: Ending,
        step: Withdrawing,
        /// What there is to undo: of the application, of the regions.
        suspended: bool,
        frozen: bool,
    },
    /// ACCEPT was heard: from here on there is no way back, whether the record can be written or not.
    Accepting {
        id: MigrationId,
        generation: u64,
        token: Token,
    },
    Moved {
        id: MigrationId,
        generation: u64,
        token: Token,
        step: Moved,
    },
    Released {
        id: MigrationId,
        token: Token,
        /// Whether the bytes are still to be given up.
        pending: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Offering {
    Record,
    Suspend,
    Freeze,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Withdrawing {
    Record,
    Thaw,
    Resume,
    Untrack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moved {
    /// The application is to be ended, and the frozen bytes kept.
    Keep,
    /// The same, but that the destination has everything meanwhile.
    End,
    /// Nothing is to be done.
    Serve,
    /// The record is to say that everything can be given up.
    Record,
}

impl Origin {
    /// The machine of an application that runs, or that a record says something else about. `nonce` is random, so
    /// that no generation or token comes again after a restart.
    ///
    /// [`Origin::may_run`] then says whether the engine may let the application run, and with regions that are
    /// not frozen.
    pub fn new(record: Option<OriginPhase>, nonce: u64) -> Self {
        let generation = nonce;
        let state = match record {
            None | Some(OriginPhase::Withdrawn { .. }) => State::Idle,
            Some(OriginPhase::Offered { id, token }) => {
                State::InDoubt { id, generation, token, number: None }
            }
            Some(OriginPhase::Moved { id, token }) => {
                State::Moved { id, generation, token, step: Moved::Keep }
            }
            Some(OriginPhase::Released { id, token }) => State::Released { id, token, pending: true },
        };
        Self {
            state,
            under_way: false,
            ending: None,
            ended: VecDeque::new(),
            stale: None,
            failed: None,
            nonce: nonce.wrapping_add(1),
        }
    }

    /// The destination asks for something.
    pub fn handle_request(&mut self, request: Request) -> Answer {
        match request {
            Request::Begin { id } => self.begin(id),
            Request::Look { id } => match &self.state {
                State::Tracking { id: mine, round: Some(_), .. } if *mine == id => {
                    Answer::Done(Reply::Looked)
                }
                _ => Answer::Refused(self.refusal(id)),
            },
            Request::Round { id, generation, number } => self.round(id, generation, number),
            Request::Switch { id, generation, number } => self.switch(id, generation, number),
            Request::Accept { id, token } => self.accept(id, token),
            Request::Abort { id } => self.abort(id),
            Request::Complete { id, token } => self.complete(id, token),
        }
    }

    /// The sessions of this migration's destination have ended, and their lapse is over. Before the offer was
    /// told the application goes on as if nothing had been; afterwards it waits.
    pub fn handle_departure(&mut self, id: MigrationId) {
        if matches!(&self.state, State::Tracking { id: mine, .. } | State::Offering { id: mine, .. } if *mine == id)
        {
            self.end(Ending::Lapsed);
        }
    }

    /// An operator wants the application to go on here, without the migration. How that ends the
    /// [phase](Self::phase) tells, once nothing is [under way](Self::is_settled).
    ///
    /// In doubt this takes `force`, and the operator's own certainty that the destination does not own the
    /// application and never will: its record must be gone, or say that it was aborted. Else both run it, each
    /// with its own bytes. A destination that learns of it, by its ACCEPT being refused, suspends the
    /// application at once, and what it has written since is lost.
    ///
    /// # Errors
    /// [`Refusal::InDoubt`] without force; [`Refusal::Moved`] and [`Refusal::Released`] also with it, once
    /// ACCEPT was heard.
    pub fn handle_operator(&mut self, force: bool) -> Result<(), Refusal> {
        match &self.state {
            State::Idle => Ok(()),
            State::Tracking { .. } | State::Offering { .. } => {
                self.end(Ending::Operator);
                Ok(())
            }
            State::InDoubt { .. } if !force => Err(Refusal::InDoubt),
            State::InDoubt { id, .. } => {
                self.withdraw(*id, Ending::Forced, Withdrawing::Record, true, true);
                Ok(())
            }
            State::Withdrawing { .. } => {
                self.failed = None;
                Ok(())
            }
            State::Accepting { .. } | State::Moved { .. } => Err(Refusal::Moved),
            State::Released { .. } => Err(Refusal::Released),
        }
    }

    /// What has failed is to be tried again.
    pub fn handle_retry(&mut self) {
        self.failed = None;
    }

    /// What is to be done next; none while something is under way, or there is nothing.
    pub fn poll_effect(&mut self) -> Option<OriginEffect> {
        if self.under_way || self.failed.is_some() {
            return None;
        }
        let effect = self.wanted()?;
        self.under_way = true;
        Some(effect)
    }

    /// How the effect that was given out ended; an error says why, for people.
    ///
    /// # Panics
    /// If none was given out.
    pub fn handle_result(&mut self, result: Result<(), String>) {
        assert!(self.under_way, "nothing was to be done");
        self.under_way = false;
        if let Some(ending) = self.ending.take() {
            self.give_up(ending);
            return;
        }
        match result {
            Ok(()) => self.done(),
            Err(why) => self.not_done(why),
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Idle => Phase::Idle,
            State::Tracking { .. } => Phase::Tracking,
            State::Offering { .. } => Phase::Offering,
            State::InDoubt { .. } | State::Accepting { .. } => Phase::InDoubt,
            State::Withdrawing { step: Withdrawing::Thaw | Withdrawing::Resume, .. }
                if self.failed.is_some() =>
            {
                Phase::NotResumed
            }
            State::Withdrawing { .. } => Phase::Withdrawing,
            State::Moved { .. } => Phase::Moved,
            State::Released { .. } => Phase::Released,
        }
    }

    /// The migration that is under way, or that has moved the application.
    pub fn id(&self) -> Option<MigrationId> {
        match &self.state {
            State::Idle => None,
            State::Tracking { id, .. }
            | State::Offering { id, .. }
            | State::InDoubt { id, .. }
            | State::Withdrawing { id, .. }
            | State::Accepting { id, .. }
            | State::Moved { id, .. }
            | State::Released { id, .. } => Some(*id),
        }
    }

    /// Whether the destination has said that it has everything before [`OriginEffect::Keep`] was carried out.
    pub fn keeps_for_nobody(&self) -> bool {
        matches!(self.state, State::Moved { step: Moved::End, .. })
    }

    /// Why the last migration has ended that did so without a switch.
    pub fn last_ending(&self) -> Option<(MigrationId, &Ending)> {
        self.ended.back().map(|(id, ending)| (*id, ending))
    }

    /// What could not be done, and is tried again by [`Origin::handle_retry`].
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Whether nothing is under way, or to be done before somebody says something.
    pub fn is_settled(&self) -> bool {
        !self.under_way && (self.failed.is_some() || self.wanted().is_none())
    }

    /// Whether the application belongs here, beyond doubt. A program that starts asks this before anything else.
    pub fn may_run(&self) -> bool {
        matches!(self.state, State::Idle | State::Tracking { .. })
    }

    fn fresh(&mut self) -> u64 {
        let fresh = self.nonce;
        self.nonce = self.nonce.wrapping_add(1);
        fresh
    }
}

/// How many migrations that have ended are remembered, so that a request that was long on its way begins none anew.
const REMEMBERED: usize = 16;

#[cfg(test)]
mod tests;
