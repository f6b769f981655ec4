//! The calls under way on one export, and the links that they go by.
//!
//! A call stays known from its submission to its end, whatever happens to the links meanwhile. When a link is
//! lost, what was sent on it and not answered is sent again on another one, or waits for one; what has
//! waited for longer than the patience fails. Whether a server that was lost still carries out an unanswered
//! write nobody can tell: the protocol has no word for it. It is sent again all the same, with the same
//! bytes.
//!
//! What is acknowledged and not flushed a server may lose: [`Unflushed`] knows when that has to be feared, and
//! the store is at another [stage](crate::store::Stage) then.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pagewire_core::chunk::ByteRange;
use pagewire_core::nbd::{ExportInfo, TransmissionFlags};

use super::call::{Call, Command, Ending};
use super::link::Link;
use super::unflushed::Unflushed;
use crate::address::NbdAddress;
use crate::error::{Error, ErrorKind, Result};
use crate::store::pool::Pool;
use crate::store::{RemoteOptions, given_up};

/// Which of a session's links a call goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// The one that carries no bulk, where there are several.
    Demand,
    /// One of those that do.
    Bulk,
}

/// An export that is in use.
pub(super) struct Session {
    pub(super) address: NbdAddress,
    pub(super) options: RemoteOptions,
    pub(super) export: ExportInfo,
    /// Whether it is used for writing, too.
    pub(super) writable: bool,
    pub(super) pool: Pool,
    state: Mutex<State>,
    /// The session was closed, or a link was made.
    pub(super) changed: Condvar,
}

pub(super) struct State {
    pub(super) closed: bool,
    links: Vec<Option<Arc<Link>>>,
    turn: usize,
    /// What there was no link for.
    waiting: VecDeque<Arc<Call>>,
    /// Why the export cannot be used again, where that is not just a matter of time.
    failure: Option<Error>,
    /// What went wrong last.
    trouble: Option<String>,
    pub(super) round_trip: Duration,
    unflushed: Unflushed,
    /// The greatest number of a flush that is done, of the newest writer.
    pub(super) flushed: u64,
}

impl State {
    /// A link of a lane, if there is one.
    fn link(&mut self, lane: Lane) -> Option<Arc<Link>> {
        let (demand, bulk) = self.links.split_first()?;
        let bulk_link = || {
            let count = bulk.len();
            let turns = (0..count).filter_map(|step| bulk[(self.turn + step) % count].as_ref());
            turns.min_by_key(|link| link.owed())
        };
        let link = match lane {
            Lane::Demand => demand.as_ref().or_else(bulk_link),
            Lane::Bulk => bulk_link().or(demand.as_ref()),
        };
        let link = link.cloned();
        self.turn += 1;
        link
    }

    /// How many links there are for bulk.
    pub(super) fn bulk_links(&self) -> usize {
        self.links.iter().skip(1).flatten().count()
    }

    /// Whether the server says what is a hole.
    pub(super) fn knows_holes(&self) -> bool {
        self.links.iter().flatten().any(|link| link.allocation.is_some())
    }

    pub(super) fn stage(&self) -> u64 {
        self.unflushed.stage()
    }

    /// Another stage begins where nothing can tell any more that what was not flushed is still there.
    fn check_cover(&mut self) -> bool {
        let is_covered = self.links.iter().flatten().any(|link| self.unflushed.is_covered_by(link.born));
        if self.unflushed.is_any() && !is_covered {
            self.unflushed.lose();
            return true;
        }
        false
    }
}

impl Session {
    pub(super) fn new(
        address: &NbdAddress,
        options: &RemoteOptions,
        export: ExportInfo,
        writable: bool,
    ) -> Arc<Self> {
        // One that goes by itself is for everything.
        let several = export.flags.contains(TransmissionFlags::CAN_MULTI_CONN);
        let links = if several { 1 + options.connections } else { 1 };
        let state = State {
            closed: false,
            links: vec![None; links],
            turn: 0,
            waiting: VecDeque::new(),
            failure: None,
            trouble: None,
            round_trip: Duration::ZERO,
            unflushed: Unflushed::new(),
            flushed: 0,
        };
        Arc::new(Self {
            address: address.clone(),
            options: options.clone(),
            export,
            writable,
            pool: Pool::new(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Why the export cannot be used again, where that is not just a matter of time.
    pub(super) fn failure(&self) -> Option<Error> {
        self.lock().failure.clone()
    }

    /// How many links there are to be.
    pub(super) fn wanted_links(&self) -> usize {
        self.lock().links.len()
    }

    /// When something that is submitted now has to be done.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Some(Instant::now() + self.options.patience)
    }

    /// Submits calls of one lane, which go out together.
    pub(super) fn submit(&self, mut calls: Vec<Arc<Call>>) {
        while let Some(lane) = calls.first().map(|call| call.lane) {
            let link = {
                let mut state = self.lock();
                let link = state.link(lane);
                if link.is_none() && !state.closed && state.failure.is_none() {
                    return state.waiting.extend(calls);
                }
                let failure = state.failure.clone().unwrap_or_else(|| self.cancelled());
                drop(state);
                match link {
                    Some(link) => link,
                    None => return calls.iter().for_each(|call| call.end(Err(failure.clone()))),
                }
            };
            match link.send(calls) {
                Ok(()) => return,
                Err(back) => {
                    // Its own thread has not said yet that it is lost.
                    self.forget(&link);
                    calls = back;
                }
            }
        }
    }

    /// Submits a flush of what was written at `stage`.
    pub(super) fn flush(self: &Arc<Self>, number: u64, stage: u64, done: Box<dyn FnOnce(Result<()>) + Send>) {
        let sent = {
            let mut state = self.lock();
            if stage != state.stage() {
                drop(state);
                return done(Err(given_up()));
            }
            let sent = state.unflushed.tick();
            let is_known = self.export.flags.contains(TransmissionFlags::SEND_FLUSH);
            if number <= state.flushed || !state.unflushed.is_any() || !is_known {
                state.flushed = state.flushed.max(number);
                if !is_known {
                    state.unflushed.flushed(sent);
                }
                drop(state);
                return done(Ok(()));
            }
            sent
        };
        let session = self.clone();
        let ending = Ending::Done(Box::new(move |result| {
            let mut state = session.lock();
            let result = match result {
                Ok(()) if state.stage() == stage => {
                    state.unflushed.flushed(sent);
                    state.flushed = state.flushed.max(number);
                    Ok(())
                }
                Ok(()) => Err(given_up()),
                Err(error) => {
                    // What a server that has failed to flush still has nobody knows.
                    if state.stage() == stage {
                        state.unflushed.lose();
                    }
                    Err(error)
                }
            };
            drop(state);
            done(result);
        }));
        self.submit_flush(&Call::new(Command::Flush(stage), Lane::Demand, self.deadline(), ending));
    }

    fn submit_flush(&self, call: &Arc<Call>) {
        let Command::Flush(stage) = call.command else { return };
        loop {
            let covering = {
                let state = self.lock();
                // Where nothing covers what is to be flushed, it is another stage.
                let is_there = state.stage() == stage;
                let covering = state.links.iter().flatten().filter(|_| is_there);
                covering
                    .filter(|link| state.unflushed.is_covered_by(link.born))
                    .min_by_key(|link| link.born)
                    .cloned()
            };
            let Some(link) = covering else { return call.end(Err(given_up())) };
            if link.send(vec![call.clone()]).is_ok() {
                return;
            }
            self.forget(&link);
        }
    }

    /// A write is acknowledged.
    pub(super) fn acknowledged(&self) {
        let mut state = self.lock();
        state.unflushed.acknowledged();
        // It was acknowledged on a link that is lost.
        state.check_cover();
    }

    /// A link is there. Sends what has waited for one, on a thread of its own: who receives must not be held
    /// up by sending. None where the session was closed.
    pub(super) fn link_is_ready(
        self: &Arc<Self>,
        round_trip: Duration,
        link: impl FnOnce(u64) -> Link,
    ) -> Option<Arc<Link>> {
        let (link, waiting) = {
            let mut state = self.lock();
            if state.closed {
                return None;
            }
            let link = Arc::new(link(state.unflushed.tick()));
            state.links[link.index] = Some(link.clone());
            state.failure = None;
            state.trouble = None;
            state.round_trip = round_trip;
            (link, std::mem::take(&mut state.waiting))
        };
        self.changed.notify_all();
        if !waiting.is_empty() {
            let session = self.clone();
            self.pool.run(Box::new(move || session.submit_again(waiting)));
        }
        Some(link)
    }

    /// The link is lost. Sends again what was sent on it.
    pub(super) fn link_is_lost(&self, link: &Arc<Link>, cause: &dyn std::fmt::Display) {
        link.kill();
        let is_first = self.forget(link);
        let calls = link.close();
        {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            state.trouble = Some(cause.to_string());
        }
        if is_first {
            tracing::warn!(export = %self.address, error = %cause, "lost a connection; making it again");
        }
        self.submit_again(calls);
    }

    fn submit_again(&self, calls: impl IntoIterator<Item = Arc<Call>>) {
        for call in calls {
            match call.command {
                _ if call.has_ended() => {}
                Command::Flush(_) => self.submit_flush(&call),
                _ => self.submit(vec![call]),
            }
        }
    }

    /// Nothing is sent on the link any more. Answers whether that is news.
    fn forget(&self, link: &Arc<Link>) -> bool {
        let mut state = self.lock();
        let place = &mut state.links[link.index];
        if !place.as_ref().is_some_and(|known| Arc::ptr_eq(known, link)) {
            return false;
        }
        *place = None;
        if state.check_cover() && !state.closed {
            tracing::warn!(
                export = %self.address,
                "what was written and not flushed may be lost with the server, and is to be written again"
            );
        }
        true
    }

    /// The export cannot be used again as it is.
    pub(super) fn has_failed(&self, error: &Error) {
        let waiting = {
            let mut state = self.lock();
            state.trouble = Some(error.to_string());
            if error.can_retry() {
                return;
            }
            state.failure = Some(error.clone());
            std::mem::take(&mut state.waiting)
        };
        waiting.iter().for_each(|call| call.end(Err(error.clone())));
    }

    /// Waits. Answers whether the session was closed meanwhile.
    pub(super) fn pause(&self, duration: Duration) -> bool {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, duration, |state| !state.closed);
        waited.expect("no holder panics").0.closed
    }

    /// Fails what has waited for longer than the patience, and gives up links on which nothing is heard.
    pub(super) fn keep_patience(&self) {
        let patience = self.options.patience;
        let tick = (patience / 8).clamp(Duration::from_millis(5), Duration::from_millis(500));
        while !self.pause(tick) {
            let now = Instant::now();
            let (links, waiting, trouble) = {
                let mut state = self.lock();
                let links: Vec<_> = state.links.iter().flatten().cloned().collect();
                state.waiting.retain(|call| !call.has_ended());
                (links, state.waiting.iter().cloned().collect::<Vec<_>>(), state.trouble.clone())
            };
            let late =
                |call: &Arc<Call>| call.deadline.is_some_and(|deadline| deadline < now) && !call.has_ended();
            let mut calls = waiting;
            for link in links {
                let sent = link.waiting();
                // A server that does not answer for so long may still carry a write out: at least nothing
                // more comes by this link.
                if link.silence() > patience || sent.iter().any(|call| call.changes() && late(call)) {
                    link.kill();
                }
                if let Some(round_trip) = link.connection.round_trip().filter(|_| link.index == 0) {
                    self.lock().round_trip = round_trip;
                }
                calls.extend(sent);
            }
            for call in calls.iter().filter(|call| late(call)) {
                let text = format!("no answer from {} within {patience:?}", self.address);
                let error = Error::new(ErrorKind::Unavailable, text);
                call.end(Err(match &trouble {
                    Some(trouble) => error.because(trouble),
                    None => error,
                }));
            }
        }
    }

    /// Ends the session: everything that waits is told.
    pub(super) fn close(&self) {
        let (links, waiting) = {
            let mut state = self.lock();
            state.closed = true;
            let links: Vec<_> = state.links.iter_mut().filter_map(Option::take).collect();
            (links, std::mem::take(&mut state.waiting))
        };
        self.changed.notify_all();
        let mut calls: Vec<_> = waiting.into();
        for link in links {
            calls.extend(link.close());
            link.say_goodbye();
            link.kill();
        }
        calls.iter().for_each(|call| call.end(Err(self.cancelled())));
    }

    pub(super) fn cancelled(&self) -> Error {
        Error::new(ErrorKind::Cancelled, format!("{} was closed", self.address))
    }

    /// Whether `range` lies within the export.
    pub(super) fn check(&self, range: ByteRange) -> Result<()> {
        if range.end <= self.export.size {
            return Ok(());
        }
        let text = format!("bytes {range} of an export of {} bytes", self.export.size);
        Err(Error::new(ErrorKind::OutOfRange, text))
    }
}
