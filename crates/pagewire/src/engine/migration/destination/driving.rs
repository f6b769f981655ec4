//! What drives the machine of a destination: the threads that carry out what it wants.

mod asking;
mod connecting;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pagewire_core::chunk::ByteRange;
use pagewire_core::migrate::destination::Cause;
use pagewire_core::migrate::{self as machine, DestinationEffect, DestinationPhase, MigrationId, Phase};

use super::protection::Protection;
use super::report::{Report, Times};
use super::{DestinationOptions, Witness, not_now};
use crate::address::RegionAddress;
use crate::engine::Region;
use crate::engine::migration::incoming::{Incoming, PAUSE};
use crate::engine::migration::record::DestinationFile;
use crate::engine::migration::witness;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{self, Store};

/// How long to wait before what has failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long to wait at the end until the origin knows that the migration is given up.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the threads of a destination share.
pub(super) struct Inner {
    targets: Vec<(RegionAddress, Arc<dyn Store>)>,
    pub(super) options: DestinationOptions,
    owner: String,
    pub(super) record: Option<DestinationFile>,
    /// The witness of each region, where it has one.
    pub(super) witnesses: Vec<Option<Witness>>,
    /// The regions, once the origin is reached.
    incoming: OnceLock<Vec<Arc<Incoming>>>,
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) struct State {
    machine: machine::Destination,
    /// Whether the application is to be resumed by who waits for that.
    resume: bool,
    /// The last thing that went wrong.
    error: Option<Error>,
    /// Since when the origin does not answer.
    lost: Option<Instant>,
    again: Option<Instant>,
    pub(super) closed: bool,
    /// Whether it was decided last to wait for the witnesses.
    pub(super) waits: bool,
    /// Whether what the switch answers is wanted at once.
    pub(super) pages_follow: bool,
    pub(super) times: Times,
    pub(super) report: Report,
    /// What the last round or the switch has answered, of each region.
    pub(super) sets: Vec<Vec<ByteRange>>,
    pub(super) protection: Protection,
}

/// What a thread does until it ends.
type Life = fn(&Inner);

impl Inner {
    pub(super) fn new(
        regions: &[(RegionAddress, Arc<dyn Store>)],
        options: DestinationOptions,
    ) -> Result<Self> {
        let names = regions.iter().map(|(address, _)| address.name.as_str());
        let witnesses = witness::of_each(names, &options.witnesses)?;
        let origin = regions[0].0.to_string();
        let record =
            options.record.as_deref().map(|path| DestinationFile::open(path, &origin)).transpose()?;
        let earlier = record.as_ref().map(DestinationFile::read).transpose()?.flatten();
        let machine = match earlier {
            Some(earlier) => {
                tracing::info!(phase = ?earlier.phase, "a migration was begun before");
                machine::Destination::from_record(earlier.phase)
            }
            None => machine::Destination::new(MigrationId(crate::peer::random_id())),
        };
        let owner = options.owner.clone().unwrap_or_else(store::this_process);
        let state = State {
            machine,
            resume: false,
            error: None,
            lost: None,
            again: None,
            closed: false,
            waits: false,
            pages_follow: false,
            times: Times::new(),
            report: Report::default(),
            sets: vec![Vec::new(); regions.len()],
            protection: Protection::default(),
        };
        Ok(Self {
            targets: regions.to_vec(),
            options,
            owner,
            record,
            witnesses,
            incoming: OnceLock::new(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// Starts the threads.
    pub(super) fn start(inner: &Arc<Self>) -> Result<Vec<JoinHandle<()>>> {
        let spawn = |name: &str, run: Life| {
            let inner = inner.clone();
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || run(&inner));
            thread.map_err(|error| Error::io("cannot start a thread", &error))
        };
        let mut lives: Vec<(&str, Life)> =
            vec![("pw-migrate", Self::carry_out_effects), ("pw-migrate-ask", Self::ask)];
        if inner.witnesses.iter().any(Option::is_some) {
            lives.push(("pw-migrate-look", Self::look_after_origin));
        }
        let mut threads = Vec::new();
        for (name, life) in lives {
            match spawn(name, life) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    inner.lock().closed = true;
                    inner.changed.notify_all();
                    for thread in threads {
                        // One that has panicked has stopped, too.
                        let _ = thread.join();
                    }
                    return Err(error);
                }
            }
        }
        Ok(threads)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        match until {
            None => self.changed.wait(state).expect("no holder panics"),
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(state, left).expect("no holder panics").0
            }
        }
    }

    /// Waits until `ready` answers something, or the migration is over.
    pub(super) fn wait_for<T>(&self, ready: impl Fn(&State) -> Option<T>) -> Result<T> {
        let mut state = self.lock();
        loop {
            if let Some(answer) = ready(&state) {
                return Ok(answer);
            }
            if state.closed {
                return Err(not_now());
            }
            if let Some(error) = state.over() {
                return Err(error);
            }
            state = self.wait(state, None);
        }
    }

    /// The regions; none before the origin is reached.
    pub(super) fn incoming(&self) -> &[Arc<Incoming>] {
        self.incoming.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// The regions, for the application.
    pub(super) fn regions(&self) -> Vec<(String, Arc<Region>)> {
        self.incoming().iter().map(|one| (one.name.clone(), one.region.clone())).collect()
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().machine.phase()
    }

    pub(super) fn may_run(&self) -> bool {
        self.lock().machine.may_run()
    }

    /// Whether the regions will not come here, or not any more.
    pub(super) fn is_over(&self) -> bool {
        let state = self.lock();
        state.closed || state.over().is_some()
    }

    /// Why the migration is over, if it is.
    pub(super) fn failure(&self) -> Option<Error> {
        self.lock().over()
    }

    pub(super) fn report(&self) -> Report {
        let state = self.lock();
        let mut report = state.report.clone();
        report.migration = state.machine.id().to_string();
        report.phase = state.machine.phase().name().into();
        state.times.fill(&mut report);
        report.untold = state.machine.has_everything() && state.machine.phase() != Phase::Completed;
        drop(state);
        report.witness = self.witness_report();
        let moved: u64 = self.incoming().iter().map(|one| one.moved()).sum();
        report.moved_bytes = moved;
        report.moved_after =
            if report.switch_after > 0.0 { moved - report.moved_after.min(moved) } else { 0 };
        report
    }

    /// Has the machine move, and tells everybody.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut machine::Destination) -> T) -> T {
        let answer = change(&mut self.lock().machine);
        self.changed.notify_all();
        answer
    }

    /// Gives the migration up for this reason, and waits until that is durable, and the origin was told once.
    pub(super) fn give_up(&self, error: &Error) {
        // Where it is over already, the error says so.
        let was_over = self.failure().is_some();
        let given_up = self.with(|machine| machine.handle_abort(Cause::Decided(error.to_string())));
        if given_up.is_ok() {
            let mut state = self.lock();
            if !was_over {
                state.error = Some(error.clone());
            }
            let deadline = Instant::now() + LAST_WORDS;
            while !state.machine.is_finished() && !state.closed && Instant::now() < deadline {
                state = self.wait(state, Some(deadline));
            }
        }
    }

    pub(super) fn abort(&self) -> Result<()> {
        let aborted = self.with(|machine| machine.handle_abort(Cause::Operator));
        aborted.map_err(|_| Error::new(ErrorKind::Fenced, "the regions are here already"))?;
        let mut state = self.lock();
        let deadline = Instant::now() + self.options.remote.patience;
        while !state.machine.is_finished() && !state.closed && Instant::now() < deadline {
            state = self.wait(state, Some(deadline));
        }
        match state.machine.is_finished() {
            true => Ok(()),
            false => {
                let text =
                    "it is given up, but the origin does not know yet; it is told when it is there again";
                Err(Error::new(ErrorKind::Unavailable, text))
            }
        }
    }

    /// Waits until the application is to be resumed.
    pub(super) fn wait_to_resume(&self) -> Result<()> {
        self.wait_for(|state| state.resume.then_some(()))?;
        let moved: u64 = self.incoming().iter().map(|one| one.moved()).sum();
        let mut state = self.lock();
        state.report.moved_after = moved;
        Ok(())
    }

    /// The application was resumed, or could not be.
    pub(super) fn resumed(&self, result: &Result<()>) {
        let mut state = self.lock();
        if result.is_ok() {
            state.times.running = Some(Instant::now());
        }
        state.resume = false;
        let result = result.as_ref().map(|_| ()).map_err(ToString::to_string);
        state.machine.handle_result(result);
        drop(state);
        self.changed.notify_all();
    }

    /// Everything is here, and durable: the origin is told, and not needed any more.
    pub(super) fn everything_is_home(&self) -> Result<()> {
        let home = self.with(machine::Destination::handle_everything_home);
        home.map_err(|_| self.failure().unwrap_or_else(not_now))?;
        let deadline = Instant::now() + self.options.remote.patience;
        let mut state = self.lock();
        while state.machine.phase() != Phase::Completed {
            drop(state);
            let alone = self.does_without_origin();
            state = self.lock();
            if state.machine.has_everything() && (alone || Instant::now() >= deadline) {
                tracing::warn!(
                    "everything is here, and the origin cannot be told; it is told when it is there again"
                );
                break;
            }
            if let Some(error) = state.over() {
                return Err(error);
            }
            if state.closed {
                return Err(not_now());
            }
            if Instant::now() >= deadline {
                let error = state.error.clone().unwrap_or_else(not_now);
                return Err(error.context("everything is here, which cannot be recorded"));
            }
            let soon = Instant::now() + PAUSE;
            state = self.wait(state, Some(deadline.min(soon)));
        }
        drop(state);
        for (index, one) in self.incoming().iter().enumerate() {
            one.arriving.complete();
            if let Some(record) = &self.record {
                record.sets(index).remove();
            }
        }
        let mut state = self.lock();
        state.times.ended.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Ends the threads; what was not accepted is given up.
    pub(super) fn close(&self) {
        self.give_up(&Error::new(ErrorKind::Cancelled, "the destination has gone"));
        self.end();
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until the end is carried out, if it has come: a command that suspends the application takes as long as it
    /// takes; what fails is tried again for as long as the patience lasts.
    fn end(&self) {
        let deadline = Instant::now() + self.options.remote.patience;
        let mut state = self.lock();
        while state.machine.is_ending() && !state.closed {
            let failure = state.machine.failure();
            if let Some(why) = failure.filter(|_| Instant::now() >= deadline) {
                tracing::error!(
                    "the migration is given up, but that could not be carried out here, and the record does not say it: {why}"
                );
                return;
            }
            let until = failure.is_some().then_some(deadline);
            state = self.wait(state, until);
        }
    }

    /// The life of the thread that carries out effects.
    fn carry_out_effects(&self) {
        let mut state = self.lock();
        while !state.closed {
            if state.again.is_some_and(|again| again <= Instant::now()) {
                state.again = None;
                state.machine.handle_retry();
                self.changed.notify_all();
            }
            match state.machine.poll_effect() {
                Some(DestinationEffect::Resume) => {
                    // Whoever waits for it does that.
                    state.resume = true;
                    self.changed.notify_all();
                }
                Some(effect) => {
                    drop(state);
                    tracing::debug!(?effect, "a migration's destination goes on");
                    let result = self.carry_out(effect);
                    if let Err(error) = &result {
                        tracing::warn!(?effect, %error, "a step of a migration fails");
                    }
                    state = self.lock();
                    if let Err(error) = &result {
                        state.error = Some(error.clone());
                    }
                    state.machine.handle_result(result.map_err(|error| error.to_string()));
                    self.changed.notify_all();
                }
                None => {
                    if state.machine.failure().is_some() && state.again.is_none() {
                        state.again = Some(Instant::now() + AGAIN);
                    }
                    let again = state.again;
                    state = self.wait(state, again);
                }
            }
        }
    }

    fn carry_out(&self, effect: DestinationEffect) -> Result<()> {
        match effect {
            DestinationEffect::Record(phase) => {
                let Some(record) = &self.record else { return Ok(()) };
                if let DestinationPhase::Accepted { .. } = phase {
                    for one in self.incoming() {
                        one.arriving.note()?;
                    }
                }
                record.write(phase)
            }
            DestinationEffect::Discard => {
                for one in self.incoming() {
                    // What is written through stays, and is nobody's.
                    let _ = one.arriving.home().discard();
                }
                Ok(())
            }
            DestinationEffect::Suspend => match &self.options.application {
                Some(application) => application.suspend(),
                None => {
                    tracing::error!(
                        "the application was taken back at the origin, by force: it must be suspended here"
                    );
                    Ok(())
                }
            },
            DestinationEffect::Resume => Ok(()),
        }
    }
}

impl State {
    pub(super) fn phase(&self) -> Phase {
        self.machine.phase()
    }

    /// The last round whose set has come.
    pub(super) fn round(&self) -> Option<u64> {
        self.machine.round()
    }

    /// Why the regions do not come here, if that is so.
    fn over(&self) -> Option<Error> {
        match self.machine.phase() {
            Phase::Aborting | Phase::Aborted => {
                let known = self.error.clone();
                let cause = self.machine.cause().map(ToString::to_string).unwrap_or_default();
                let error = known.unwrap_or_else(|| Error::new(ErrorKind::Cancelled, cause));
                Some(error.context("the migration is given up"))
            }
            Phase::Ousted => {
                let text =
                    "somebody at the origin has taken the application back by force; it must not run here";
                Some(Error::new(ErrorKind::Fenced, text))
            }
            _ => None,
        }
    }
}
