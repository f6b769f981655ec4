//! What each state of the destination wants to be done or answered, and what comes of that.

use super::{Aborting, Cause, Destination, DestinationEffect, Ousting, State};
use crate::migrate::record::DestinationPhase;
use crate::migrate::{Reply, Request};

impl Destination {
    /// What the state wants to be done.
    pub(super) fn wanted(&self) -> Option<DestinationEffect> {
        let id = self.id;
        let wanted = match self.state {
            State::Preparing => Some(DestinationEffect::Record(DestinationPhase::Begun { id })),
            State::Accepting { token } => {
                Some(DestinationEffect::Record(DestinationPhase::Accepted { id, token }))
            }
            State::Owner { token, told: false, home: true, kept: false } => {
                Some(DestinationEffect::Record(DestinationPhase::Home { id, token }))
            }
            State::Completing { token, recorded: false } => {
                Some(DestinationEffect::Record(DestinationPhase::Completed { id, token }))
            }
            State::Aborting { step: Aborting::Record, .. } | State::Ousting { step: Ousting::Record } => {
                Some(DestinationEffect::Record(DestinationPhase::Aborted { id }))
            }
            State::Aborting { step: Aborting::Discard, .. } => Some(DestinationEffect::Discard),
            State::Ousting { step: Ousting::Suspend } => Some(DestinationEffect::Suspend),
            _ => None,
        };
        let resume = self.may_run() && !self.resumed && self.resume_failed.is_none();
        wanted.filter(|_| self.failed.is_none()).or_else(|| resume.then_some(DestinationEffect::Resume))
    }

    /// The request that the state wants to be answered.
    pub(super) fn due(&self) -> Option<Request> {
        let id = self.id;
        match self.state {
            State::Beginning => Some(Request::Begin { id }),
            State::Rounding { generation, number } => Some(Request::Round { id, generation, number }),
            State::Switching { generation, number } => Some(Request::Switch { id, generation, number }),
            State::Owner { token, told: false, .. } => Some(Request::Accept { id, token }),
            State::Completing { token, recorded: true } => Some(Request::Complete { id, token }),
            State::Aborting { step: Aborting::Tell, .. } | State::Ousting { step: Ousting::Tell } => {
                Some(Request::Abort { id })
            }
            _ => None,
        }
    }

    pub(super) fn begun(&mut self, generation: u64) -> bool {
        match self.state {
            State::Beginning => {
                self.asked = None;
                self.state = State::Copying { generation, round: 0 };
                true
            }
            State::Copying { generation: known, .. }
            | State::Rounding { generation: known, .. }
            | State::Switching { generation: known, .. }
                if known != generation =>
            {
                self.give_up(Cause::Gap, false);
                true
            }
            _ => false,
        }
    }

    pub(super) fn answered(&mut self, reply: Reply) -> bool {
        match (self.state, reply) {
            (State::Rounding { generation, number }, Reply::Taken { number: taken }) if taken == number => {
                self.state = State::Copying { generation, round: number };
            }
            (State::Switching { number, .. }, Reply::Offered { token, number: last }) if last == number => {
                self.state = State::Held { token };
            }
            (State::Owner { token, home, kept, .. }, Reply::Accepted) => {
                self.state = State::Owner { token, told: true, home, kept };
                self.complete();
            }
            (State::Completing { .. }, Reply::Completed) => self.state = State::Completed,
            (State::Aborting { .. }, Reply::Aborted) => self.state = State::Aborted,
            (State::Ousting { .. }, Reply::Aborted) => self.state = State::Ousted,
            // An answer to something else: the request stays due.
            _ => {
                self.refused = Some("the origin's answer is to something else".to_owned());
                return false;
            }
        }
        true
    }

    /// The origin says that the request makes no sense any more.
    pub(super) fn over(&mut self, request: Request, reason: String) {
        match self.state {
            State::Owner { .. } => {
                self.cause = Some(Cause::Refused { request: request.name(), reason });
                self.state = State::Ousting { step: Ousting::Suspend };
            }
            State::Completing { .. } => {
                self.discord = Some(reason);
                self.state = State::Completed;
            }
            State::Aborting { .. } => {
                self.discord = Some(reason);
                self.state = State::Aborted;
            }
            State::Ousting { .. } => {
                self.discord = Some(reason);
                self.state = State::Ousted;
            }
            _ => self.give_up(Cause::Refused { request: request.name(), reason }, false),
        }
    }

    pub(super) fn recorded(&mut self, phase: DestinationPhase, result: Result<(), String>) {
        match (phase, self.state, result) {
            (DestinationPhase::Begun { .. }, State::Preparing, Ok(())) => self.state = State::Beginning,
            (DestinationPhase::Begun { .. }, State::Preparing, Err(why)) => {
                self.give_up(Cause::Record(why), false);
            }
            (DestinationPhase::Accepted { .. }, State::Accepting { token }, Ok(())) => {
                self.state = State::Owner { token, told: false, home: false, kept: false };
            }
            (DestinationPhase::Accepted { .. }, State::Accepting { .. }, Err(why)) => {
                self.give_up(Cause::Record(why), true);
            }
            (DestinationPhase::Home { .. }, State::Owner { token, told, home, .. }, Ok(())) => {
                self.state = State::Owner { token, told, home, kept: true };
                self.complete();
            }
            (DestinationPhase::Completed { .. }, State::Completing { token, .. }, Ok(())) => {
                self.state = State::Completing { token, recorded: true };
            }
            (DestinationPhase::Aborted { .. }, State::Ousting { .. }, Ok(())) => {
                self.state = State::Ousting { step: Ousting::Tell };
            }
            // A restart finds Begun, and says the same.
            (DestinationPhase::Aborted { .. }, State::Aborting { accepted, .. }, result)
                if result.is_ok() || !accepted =>
            {
                self.state = State::Aborting { step: Aborting::Discard, accepted };
            }
            (_, _, Err(why)) => self.failed = Some(why),
            // The result of what was under way when it was given up.
            (_, _, Ok(())) => {}
        }
    }

    pub(super) fn complete(&mut self) {
        if let State::Owner { token, told: true, home: true, .. } = self.state {
            self.state = State::Completing { token, recorded: false };
        }
    }

    /// `accepted` says whether the record may say so.
    pub(super) fn give_up(&mut self, cause: Cause, accepted: bool) {
        self.cause = Some(cause);
        self.failed = None;
        self.refused = None;
        self.asked = None;
        self.state = State::Aborting { step: Aborting::Record, accepted };
    }
}
