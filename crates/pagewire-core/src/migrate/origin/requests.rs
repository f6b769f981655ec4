//! What the origin answers to each request in each of its states.

use super::{Answer, Moved, Offering, Origin, State, Withdrawing};
use crate::migrate::{Ending, MigrationId, Refusal, Reply, Token};

impl Origin {
    pub(super) fn begin(&mut self, id: MigrationId) -> Answer {
        match &self.state {
            State::Idle if self.has_ended(id) => Answer::Refused(self.refusal(id)),
            State::Idle if self.stale.is_some() => self.wait_or_failure(),
            State::Idle => {
                let generation = self.fresh();
                self.state = State::Tracking { id, generation, round: None, taking: false };
                Answer::Wait
            }
            State::Tracking { .. } if self.ending.is_some() => Answer::Wait,
            State::Tracking { id: mine, round: None, .. } if *mine == id => Answer::Wait,
            State::Tracking { id: mine, generation, .. }
            | State::Offering { id: mine, generation, .. }
            | State::InDoubt { id: mine, generation, .. }
            | State::Accepting { id: mine, generation, .. }
            | State::Moved { id: mine, generation, .. }
                if *mine == id =>
            {
                Answer::Done(Reply::Begun { generation: *generation })
            }
            State::Withdrawing { id: mine, .. } if *mine != id => self.wait_or_failure(),
            _ => Answer::Refused(self.refusal(id)),
        }
    }

    pub(super) fn round(&mut self, id: MigrationId, generation: u64, number: u64) -> Answer {
        match &mut self.state {
            State::Tracking { id: mine, generation: known, .. } if *mine == id && *known != generation => {
                Answer::Refused(Refusal::Gap)
            }
            State::Tracking { id: mine, .. } if *mine == id && self.ending.is_some() => Answer::Wait,
            State::Tracking { id: mine, round: Some(last), taking, .. } if *mine == id => {
                let next = number.checked_sub(1) == Some(*last);
                match (next, *taking) {
                    (true, _) => {
                        *taking = true;
                        Answer::Wait
                    }
                    (false, false) if number == *last && number > 0 => Answer::Done(Reply::Taken { number }),
                    _ => Answer::Refused(Refusal::OutOfTurn("rounds come one by one")),
                }
            }
            _ => Answer::Refused(self.refusal(id)),
        }
    }

    pub(super) fn switch(&mut self, id: MigrationId, generation: u64, number: u64) -> Answer {
        match self.state {
            State::InDoubt { id: mine, number: None, .. } if mine == id => Answer::Refused(Refusal::SetLost),
            State::Tracking { id: mine, generation: known, .. }
            | State::Offering { id: mine, generation: known, .. }
            | State::InDoubt { id: mine, generation: known, .. }
                if mine == id && known != generation =>
            {
                Answer::Refused(Refusal::Gap)
            }
            State::Tracking { id: mine, taking: true, .. } if mine == id => Answer::Wait,
            State::Tracking { id: mine, .. } if mine == id && self.ending.is_some() => Answer::Wait,
            State::Tracking { id: mine, round: Some(last), .. } if mine == id => {
                let confirmed = number.checked_sub(1) == Some(last);
                if !confirmed && (number != last || number == 0) {
                    return Answer::Refused(Refusal::OutOfTurn("rounds come one by one"));
                }
                let token = Token(self.fresh());
                let step = Offering::Record;
                self.state = State::Offering { id, generation, token, number, confirmed, step };
                Answer::Wait
            }
            State::Offering { id: mine, number: last, .. } if mine == id && last == number => Answer::Wait,
            State::InDoubt { id: mine, token, number: Some(last), .. } if mine == id && last == number => {
                Answer::Done(Reply::Offered { token, number })
            }
            _ => Answer::Refused(self.refusal(id)),
        }
    }

    pub(super) fn accept(&mut self, id: MigrationId, token: Token) -> Answer {
        match self.state {
            State::InDoubt { id: mine, generation, token: offered, .. } if (mine, offered) == (id, token) => {
                self.state = State::Accepting { id, generation, token };
                Answer::Wait
            }
            State::Accepting { id: mine, token: offered, .. } if (mine, offered) == (id, token) => {
                self.wait_or_failure()
            }
            // A destination that is told that it was ousted must not hear anything else after a restart.
            State::Withdrawing { id: mine, step: Withdrawing::Record, .. } if mine == id => {
                self.wait_or_failure()
            }
            State::Moved { id: mine, token: offered, .. }
            | State::Released { id: mine, token: offered, .. }
                if (mine, offered) == (id, token) =>
            {
                Answer::Done(Reply::Accepted)
            }
            _ => Answer::Refused(self.refusal(id)),
        }
    }

    pub(super) fn abort(&mut self, id: MigrationId) -> Answer {
        match self.state {
            State::Tracking { id: mine, .. } | State::Offering { id: mine, .. } if mine == id => {
                self.end(Ending::Aborted);
                Answer::Wait
            }
            State::InDoubt { id: mine, .. } if mine == id => {
                self.withdraw(id, Ending::Aborted, Withdrawing::Record, true, true);
                Answer::Wait
            }
            State::Withdrawing { id: mine, .. } if mine == id => self.wait_or_failure(),
            State::Accepting { id: mine, .. }
            | State::Moved { id: mine, .. }
            | State::Released { id: mine, .. }
                if mine == id =>
            {
                Answer::Refused(self.refusal(id))
            }
            _ if self.stale == Some(id) => self.wait_or_failure(),
            _ => {
                // A BEGIN that comes late must not begin anything.
                if !self.has_ended(id) {
                    self.remember(id, Ending::Aborted);
                }
                Answer::Done(Reply::Aborted)
            }
        }
    }

    pub(super) fn complete(&mut self, id: MigrationId, token: Token) -> Answer {
        match &mut self.state {
            State::Moved { id: mine, token: offered, step, .. } if (*mine, *offered) == (id, token) => {
                match step {
                    Moved::Keep | Moved::End => *step = Moved::End,
                    Moved::Serve => *step = Moved::Record,
                    Moved::Record => return self.wait_or_failure(),
                }
                Answer::Wait
            }
            State::Released { id: mine, token: offered, .. } if (*mine, *offered) == (id, token) => {
                Answer::Done(Reply::Completed)
            }
            State::InDoubt { id: mine, .. } | State::Accepting { id: mine, .. } if *mine == id => {
                Answer::Refused(Refusal::OutOfTurn("it has to be accepted first"))
            }
            _ => Answer::Refused(self.refusal(id)),
        }
    }

    /// Why what was asked about `id` cannot be.
    pub(super) fn refusal(&self, id: MigrationId) -> Refusal {
        let ending = self.ended.iter().find(|(ended, _)| *ended == id).map(|(_, ending)| ending);
        match (&self.state, ending) {
            (State::Accepting { .. } | State::Moved { .. }, _) => Refusal::Moved,
            (State::Released { .. }, _) => Refusal::Released,
            (State::Withdrawing { id: mine, ending, .. }, _) if *mine == id => Refusal::Ended(ending.clone()),
            (_, Some(ending)) => Refusal::Ended(ending.clone()),
            (State::Idle, None) => Refusal::Unknown,
            (
                State::Tracking { id: mine, .. }
                | State::Offering { id: mine, .. }
                | State::InDoubt { id: mine, .. }
                | State::Withdrawing { id: mine, .. },
                None,
            ) if *mine != id => Refusal::Busy(*mine),
            (State::Tracking { .. }, None) => Refusal::OutOfTurn("nothing was offered yet"),
            (_, None) => Refusal::OutOfTurn("the application is suspended already"),
        }
    }

    fn has_ended(&self, id: MigrationId) -> bool {
        self.ended.iter().any(|(ended, _)| *ended == id)
    }

    fn wait_or_failure(&self) -> Answer {
        match &self.failed {
            Some(why) => Answer::Refused(Refusal::Failed(why.clone())),
            None => Answer::Wait,
        }
    }
}
