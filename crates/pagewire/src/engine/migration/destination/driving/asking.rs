//! What is asked of the origin, by a thread of its own: an answer may take long.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use pagewire_core::migrate::destination::Cause;
use pagewire_core::migrate::{MigrationId, Outcome, Phase, RefusalKind, Reply, Request, Token};
use pagewire_core::wire::{MigrateStep, Migrated, OriginState};

use super::super::not_now;
use super::{AGAIN, Inner, State};
use crate::engine::migration::incoming::{Incoming, PAUSE};
use crate::engine::migration::transfer::Transfer;
use crate::error::{Error, ErrorKind, Result};
use crate::store::RemoteStore;

impl Inner {
    /// The life of the thread that asks the origin.
    pub(super) fn ask(&self) {
        let mut state = self.lock();
        while !state.closed {
            let Some(request) = state.machine.poll_request() else {
                state = self.wait(state, None);
                continue;
            };
            drop(state);
            tracing::debug!(request = request.name(), "the origin is asked");
            let answered = self.carry_out_request(request);
            tracing::debug!(request = request.name(), "the origin has answered");
            state = self.lock();
            let outcome = match answered {
                Ok(reply) => {
                    state.lost = None;
                    Outcome::Done(reply)
                }
                Err(error) => {
                    tracing::debug!(request = request.name(), %error, "the origin does not do what it was asked for");
                    state.error = Some(error.clone());
                    match error.kind() {
                        // Not the answer of the origin, but that of who should have carried the question there.
                        ErrorKind::Unavailable | ErrorKind::Cancelled => Outcome::Lost,
                        _ if error.can_retry() => {
                            Outcome::Refused { kind: RefusalKind::Later, reason: error.to_string() }
                        }
                        _ => Outcome::Refused { kind: RefusalKind::Over, reason: error.to_string() },
                    }
                }
            };
            let is_lost = outcome == Outcome::Lost;
            state.machine.handle_outcome(request, outcome);
            self.changed.notify_all();
            if is_lost {
                state = self.after_loss(state);
            }
        }
    }

    /// Waits before a request that was lost is made again; gives the migration up where that has lasted for too long.
    fn after_loss<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let since = *state.lost.get_or_insert_with(Instant::now);
        let is_first = self.incoming.get().is_none() && state.machine.phase() == Phase::Preparing;
        if is_first || since.elapsed() > self.options.remote.patience {
            let error = state.error.clone().unwrap_or_else(not_now);
            // Once it is accepted there is no way back, and the origin is told as soon as it is there again.
            let _ = state.machine.handle_abort(Cause::Decided(error.to_string()));
            self.changed.notify_all();
        }
        let until = Instant::now() + if since.elapsed() > AGAIN { AGAIN } else { PAUSE };
        while !state.closed && Instant::now() < until {
            state = self.wait(state, Some(until));
        }
        state
    }

    fn carry_out_request(&self, request: Request) -> Result<Reply> {
        let id = request.id();
        match request {
            Request::Begin { .. } => Ok(Reply::Begun { generation: self.connect(id, false)? }),
            Request::Look { .. } => Ok(Reply::Looked),
            Request::Round { number, .. } => {
                self.step_all(MigrateStep::Round { number }, false)?;
                Ok(Reply::Taken { number })
            }
            Request::Switch { number, .. } => {
                let asked = Instant::now();
                let follow = self.lock().pages_follow;
                let migrated = self.step_all(MigrateStep::Switch { number }, follow)?;
                let since = Duration::from_micros(migrated.micros) + self.incoming()[0].round_trip() / 2;
                let suspended = Instant::now().checked_sub(since).unwrap_or(asked).max(asked);
                self.lock().times.suspended = Some(suspended);
                Ok(Reply::Offered { token: Token(migrated.token), number })
            }
            Request::Accept { token, .. } => {
                self.step_one(id, MigrateStep::Accept { token: token.0 })?;
                Ok(Reply::Accepted)
            }
            Request::Abort { .. } => {
                self.step_one(id, MigrateStep::Abort)?;
                Ok(Reply::Aborted)
            }
            Request::Complete { token, .. } => {
                self.step_one(id, MigrateStep::Complete { token: token.0 })?;
                Ok(Reply::Completed)
            }
        }
    }

    /// A step of the whole migration.
    fn step_one(&self, id: MigrationId, step: MigrateStep) -> Result<Migrated> {
        match self.incoming().first().filter(|one| one.origin.is_some()) {
            Some(one) => one.migrate(step),
            // After a restart, of what was given up, or of what came without the origin: nothing of it is wanted here.
            None => {
                let (address, _) = &self.targets[0];
                RemoteStore::connect_move(address, &self.options.remote, id.0, &self.owner)?.migrate(step)
            }
        }
    }

    /// A step that each region answers: what was written of it has not arrived. Its pages may follow the answer.
    fn step_all(&self, step: MigrateStep, follow: bool) -> Result<Migrated> {
        let incoming = self.incoming();
        let ask = |one: &Incoming| -> Result<(Migrated, Option<Transfer>)> {
            match follow {
                true => one.migrate_with_pages(step).map(|(migrated, pages)| (migrated, Some(pages))),
                false => Ok((one.migrate(step)?, None)),
            }
        };
        let answers: Vec<Result<_>> = match incoming {
            [one] => vec![ask(one)],
            all => std::thread::scope(|scope| {
                let asked: Vec<_> = all.iter().map(|one| scope.spawn(|| ask(one))).collect();
                let panicked = |panic| std::panic::resume_unwind(panic);
                asked.into_iter().map(|answer| answer.join().unwrap_or_else(panicked)).collect()
            }),
        };
        let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
        let (answers, pages): (Vec<Migrated>, Vec<Option<Transfer>>) = answers.into_iter().unzip();
        for (index, ((one, answer), pages)) in incoming.iter().zip(&answers).zip(pages).enumerate() {
            self.told_of_witness(index, answer)?;
            if matches!(step, MigrateStep::Switch { .. }) && answer.state < OriginState::Offered {
                return Err(Error::new(ErrorKind::Protocol, "the origin has not suspended the application"));
            }
            one.arriving.resize(answer.length)?;
            one.arriving.invalidate(&answer.ranges);
            one.follow(pages);
        }
        let mut state = self.lock();
        state.report.region_bytes = answers.iter().map(|answer| answer.length).sum();
        state.sets = answers.iter().map(|answer| answer.ranges.clone()).collect();
        let longest = answers.into_iter().max_by_key(|answer| answer.micros);
        longest.ok_or_else(not_now)
    }
}
