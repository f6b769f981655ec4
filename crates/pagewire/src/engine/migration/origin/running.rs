//! The thread that carries out what the machine of an origin wants done, and those who wait for its answers.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use pagewire_core::migrate::{Answer, MigrationId, OriginEffect, Reply, Request};

use super::{AGAIN, Inner, State, refused};
use crate::error::{Error, ErrorKind, Result};

/// How long to wait, after the application has moved, for a destination that has everything already.
const KEEP_AFTER: Duration = Duration::from_millis(200);

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Waits until the machine has moved.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).expect("no holder panics")
    }

    /// Hands a request to the machine until it is answered.
    pub(super) fn ask(&self, request: Request) -> Result<(Reply, MutexGuard<'_, State>)> {
        let mut state = self.lock();
        loop {
            match state.machine.handle_request(request) {
                Answer::Done(reply) => return Ok((reply, state)),
                Answer::Refused(refusal) => return Err(refused(&refusal)),
                Answer::Wait if state.closed => {
                    return Err(Error::new(ErrorKind::Cancelled, "the origin is closed").with_retry(true));
                }
                Answer::Wait => {
                    self.changed.notify_all();
                    state = self.wait(state);
                }
            }
        }
    }

    /// A session of the destination has closed a region, or is gone.
    pub(super) fn leave(&self, id: MigrationId, index: usize) {
        let mut state = self.lock();
        let joined = &mut state.joined;
        if joined.id != id {
            return;
        }
        joined.places[index] -= 1;
        if joined.places.iter().all(|places| *places == 0) {
            joined.lapses = Some(Instant::now() + self.options.lapse);
            self.changed.notify_all();
        }
    }

    /// The life of the thread.
    pub(super) fn run(&self) {
        let mut state = self.lock();
        while !state.closed {
            let now = Instant::now();
            if state.joined.lapses.is_some_and(|lapses| lapses <= now) {
                state.joined.lapses = None;
                let id = state.joined.id;
                state.machine.handle_departure(id);
                self.changed.notify_all();
            }
            if state.again.is_some_and(|again| again <= now) {
                state.again = None;
                state.machine.handle_retry();
                self.changed.notify_all();
            }
            if let Some(effect) = state.machine.poll_effect() {
                drop(state);
                tracing::debug!(?effect, "a migration's origin goes on");
                let result = self.carry_out(&effect);
                if let Err(error) = &result {
                    tracing::warn!(?effect, %error, "a step of a migration fails");
                }
                state = self.lock();
                state.machine.handle_result(result.map_err(|error| error.to_string()));
                state.again = state.machine.failure().map(|_| Instant::now() + AGAIN);
                self.changed.notify_all();
                continue;
            }
            let next = [state.joined.lapses, state.again].into_iter().flatten().min();
            state = match next {
                None => self.wait(state),
                Some(next) => {
                    let left = next.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(state, left).expect("no holder panics").0
                }
            };
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Whether the destination has everything: then nobody needs what would be kept for it, which may take long.
    fn completes_soon(&self) -> bool {
        let waits = |state: &mut State| !state.machine.keeps_for_nobody() && !state.closed;
        let waited = self.changed.wait_timeout_while(self.lock(), KEEP_AFTER, waits);
        waited.expect("no holder panics").0.machine.keeps_for_nobody()
    }

    fn carry_out(&self, effect: &OriginEffect) -> Result<()> {
        let mut regions = self.regions.iter();
        match effect {
            OriginEffect::Track => regions.try_for_each(|region| region.track()),
            OriginEffect::TakeRound { .. } => regions.try_for_each(|region| region.take_set()),
            OriginEffect::Record(phase) => self.record.as_ref().map_or(Ok(()), |record| record.write(*phase)),
            OriginEffect::Suspend => {
                regions.try_for_each(|region| region.prepare())?;
                self.lock().suspended = Some(Instant::now());
                self.application.suspend()
            }
            OriginEffect::Freeze { confirmed, .. } => {
                regions.try_for_each(|region| {
                    region.live.freeze()?;
                    tracing::debug!(region = region.name, "it is frozen");
                    region.take_last(*confirmed)?;
                    tracing::debug!(region = region.name, "its last set is taken");
                    region.begin_to_seal();
                    Ok::<_, Error>(())
                })?;
                self.regions.iter().try_for_each(|region| region.sealed())
            }
            OriginEffect::Thaw => {
                regions.for_each(|region| region.live.thaw());
                Ok(())
            }
            OriginEffect::Resume => {
                self.application.resume();
                Ok(())
            }
            OriginEffect::Untrack => {
                regions.for_each(|region| region.untrack());
                Ok(())
            }
            OriginEffect::Keep => {
                for region in regions.clone() {
                    let strays = region.strays();
                    if strays > 0 {
                        tracing::error!(
                            region = region.name,
                            bytes = strays,
                            "the application has written though it was suspended; that is lost"
                        );
                    }
                }
                self.application.moved();
                match self.completes_soon() {
                    true => Ok(()),
                    false => regions.try_for_each(|region| region.live.keep()),
                }
            }
            OriginEffect::Release => {
                regions.for_each(|region| region.let_go_of_witness());
                self.application.released();
                Ok(())
            }
        }
    }
}
