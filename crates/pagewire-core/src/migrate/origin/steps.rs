//! What each state of the origin wants to be done, and what comes of that.

use super::{Moved, Offering, Origin, OriginEffect, REMEMBERED, State, Withdrawing};
use crate::migrate::record::OriginPhase;
use crate::migrate::{Ending, MigrationId};

impl Origin {
    pub(super) fn remember(&mut self, id: MigrationId, ending: Ending) {
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((id, ending));
    }

    /// Ends what is under way, at once or when the effect that is being carried out has ended.
    pub(super) fn end(&mut self, ending: Ending) {
        if !self.under_way {
            self.give_up(ending);
        } else if self.ending.is_none() {
            self.ending = Some(ending);
        }
    }

    /// Undoes as much as there is to undo, before the offer was told.
    pub(super) fn give_up(&mut self, ending: Ending) {
        match self.state {
            State::Tracking { id, .. } => self.withdraw(id, ending, Withdrawing::Untrack, false, false),
            State::Offering { id, step, .. } => {
                let (suspended, frozen) = (step >= Offering::Suspend, step >= Offering::Freeze);
                self.withdraw(id, ending, Withdrawing::Record, suspended, frozen);
            }
            _ => debug_assert!(false, "only what was not offered can be given up"),
        }
    }

    pub(super) fn withdraw(
        &mut self,
        id: MigrationId,
        ending: Ending,
        step: Withdrawing,
        suspended: bool,
        frozen: bool,
    ) {
        self.failed = None;
        self.state = State::Withdrawing { id, ending, step, suspended, frozen };
    }

    /// What the state asks for.
    pub(super) fn wanted(&self) -> Option<OriginEffect> {
        match self.state {
            State::Idle => {
                let id = self.stale?;
                Some(OriginEffect::Record(OriginPhase::Withdrawn { id }))
            }
            State::Tracking { round: None, .. } => Some(OriginEffect::Track),
            State::Tracking { round: Some(last), taking: true, .. } => {
                Some(OriginEffect::TakeRound { number: last + 1 })
            }
            State::Tracking { .. } | State::InDoubt { .. } => None,
            State::Offering { id, token, number, confirmed, step, .. } => Some(match step {
                Offering::Record => OriginEffect::Record(OriginPhase::Offered { id, token }),
                Offering::Suspend => OriginEffect::Suspend,
                Offering::Freeze => OriginEffect::Freeze { number, confirmed },
            }),
            State::Withdrawing { id, step, .. } => Some(match step {
                Withdrawing::Record => OriginEffect::Record(OriginPhase::Withdrawn { id }),
                Withdrawing::Thaw => OriginEffect::Thaw,
                Withdrawing::Resume => OriginEffect::Resume,
                Withdrawing::Untrack => OriginEffect::Untrack,
            }),
            State::Accepting { id, token, .. } => {
                Some(OriginEffect::Record(OriginPhase::Moved { id, token }))
            }
            State::Moved { id, token, step, .. } => match step {
                Moved::Keep | Moved::End => Some(OriginEffect::Keep),
                Moved::Serve => None,
                Moved::Record => Some(OriginEffect::Record(OriginPhase::Released { id, token })),
            },
            State::Released { pending, .. } => pending.then_some(OriginEffect::Release),
        }
    }

    /// What was wanted is done.
    pub(super) fn done(&mut self) {
        match &mut self.state {
            State::Idle => self.stale = None,
            State::Tracking { round, taking, .. } => {
                *round = Some(round.map_or(0, |last| last + 1));
                *taking = false;
            }
            State::Offering { id, generation, token, number, step, .. } => match step {
                Offering::Record => *step = Offering::Suspend,
                Offering::Suspend => *step = Offering::Freeze,
                Offering::Freeze => {
                    let (id, generation, token) = (*id, *generation, *token);
                    self.state = State::InDoubt { id, generation, token, number: Some(*number) };
                }
            },
            State::InDoubt { .. } => {}
            State::Withdrawing { .. } => self.withdrawn(),
            State::Accepting { id, generation, token } => {
                let (id, generation, token) = (*id, *generation, *token);
                self.state = State::Moved { id, generation, token, step: Moved::Keep };
            }
            State::Moved { id, token, step, .. } => match step {
                Moved::Keep | Moved::End | Moved::Serve => *step = Moved::Serve,
                Moved::Record => self.state = State::Released { id: *id, token: *token, pending: true },
            },
            State::Released { pending, .. } => *pending = false,
        }
    }

    /// A step of the withdrawal is done, or is to be tried again later.
    fn withdrawn(&mut self) {
        let State::Withdrawing { id, ending, step, suspended, frozen } = &mut self.state else {
            return;
        };
        *step = match step {
            Withdrawing::Record if *frozen => Withdrawing::Thaw,
            Withdrawing::Record | Withdrawing::Thaw if *suspended => Withdrawing::Resume,
            Withdrawing::Record | Withdrawing::Thaw | Withdrawing::Resume => Withdrawing::Untrack,
            Withdrawing::Untrack => {
                let (id, ending) = (*id, ending.clone());
                self.remember(id, ending);
                self.state = State::Idle;
                return;
            }
        };
    }

    /// What was wanted is not done, or nobody knows.
    pub(super) fn not_done(&mut self, why: String) {
        match &self.state {
            State::Tracking { .. } | State::Offering { .. } => self.give_up(Ending::Failed(why)),
            State::Withdrawing { id, step: Withdrawing::Record, ending, .. } if *ending != Ending::Forced => {
                self.stale = Some(*id);
                self.withdrawn();
            }
            State::Moved { step: Moved::Keep | Moved::End, .. } => self.done(),
            _ => self.failed = Some(why),
        }
    }
}
