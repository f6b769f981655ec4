//! The threads of a session: each connection's, which makes it again when it is lost, and the one that
//! sees to the patience.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use pagewire_core::wire::{InstanceId, OpenMode, Request, Role, SessionToken};

use super::write::Lease;
use super::{Ask, Entry, RegionAddress, Shared, State};
use crate::error::{Error, ErrorKind, Result};
use crate::peer::frame::FrameError;
use crate::peer::link::{Greeting, Link, Opened, greet};
use crate::transport::lost;

/// The shortest and the longest pause before a lost connection is made again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What a process can address. A longer region would cost its sets alone more memory than there is.
const MAX_LENGTH: u64 = 1 << 47;

impl Shared {
    pub(super) fn greet_primary(&self, generation: u64, token: SessionToken) -> Result<(Greeting, Opened)> {
        let RegionAddress { peer, name } = &self.region;
        let (was, mode, moves_on) = {
            let state = self.lock();
            let mode = match &state.moving {
                Some((id, owner)) => OpenMode::Move { id: *id, owner: owner.clone() },
                None => state.lease.as_ref().map_or(OpenMode::Read, Lease::mode),
            };
            ((state.info.id != [0; 16]).then_some(state.info), mode, state.moves_on)
        };
        let resume = was.filter(|_| !moves_on).map(|was| (was.id, was.epoch));
        let writes = matches!(mode, OpenMode::Write { .. });
        let open = Request::Open { name: name.clone(), mode, resume };
        let (greeting, opened) =
            greet(peer, Role::Primary, token, generation, Some(&open), &self.options, &self.meter)
                .map_err(|error| error.context(format!("'{name}'")))?;
        match opened {
            Some(Opened { info, .. })
                if was.is_some_and(|was| {
                    was.id != info.id
                        // A writer makes epochs, and may not have heard of its last one.
                        || (!writes && !moves_on && (was.epoch, was.length) != (info.epoch, info.length))
                }) =>
            {
                let text = format!("{peer} opened another region, or another epoch, than '{name}' was");
                Err(Error::new(ErrorKind::Changed, text))
            }
            Some(Opened { info, .. }) if info.length > MAX_LENGTH => {
                let text = format!("{} has {} bytes, more than can be mapped", self.region, info.length);
                Err(Error::new(ErrorKind::Unsupported, text))
            }
            Some(opened) if opened.leased.is_some() == writes => Ok((greeting, opened)),
            _ => Err(Error::new(ErrorKind::Protocol, format!("{peer} does not answer OPEN"))),
        }
    }

    /// The life of the primary connection, again and again until the session is closed.
    pub(super) fn keep_primary(&self, first: (Greeting, Opened), ready: &mpsc::SyncSender<()>) {
        crate::schedule::demand();
        let mut next = Some(first);
        let mut pause = BACKOFF.0;
        loop {
            let (generation, token) = {
                let state = self.lock();
                if state.closed {
                    return;
                }
                (state.generation, state.token)
            };
            let greeted = match next.take() {
                Some(first) => Ok(first),
                None => self.greet_primary(generation, token),
            };
            match greeted {
                Ok((greeting, opened)) => {
                    let begun = Instant::now();
                    let Some(link) = self.primary_is_ready(
                        &greeting.hello.instance,
                        &opened,
                        greeting.link,
                        greeting.round_trip,
                    ) else {
                        return;
                    };
                    // Only the first time somebody waits for it.
                    let _ = ready.try_send(());
                    self.send_waiting();
                    let end = self.receive(&link, greeting.reader);
                    self.primary_is_lost(&link, &end);
                    if self.pause_after(begun, &mut pause) {
                        return;
                    }
                }
                Err(error) => {
                    if error.kind() == ErrorKind::Fenced && self.lock().fenced(&error) {
                        tracing::error!(region = %self.region, %error, "nothing more can be written");
                    } else if !error.can_retry() {
                        tracing::warn!(region = %self.region, %error, "the region cannot be opened again");
                        self.lock().failure = Some(error.clone());
                        self.fail_calls(|_| true, || error.clone());
                    }
                    {
                        // The server may know this token already: its answer may have been lost.
                        let mut state = self.lock();
                        if error.kind() == ErrorKind::Stale {
                            // Whoever follows the region is to find out which one there is instead.
                            state.newest = state.newest.max(state.info.epoch + 1);
                        }
                        state.failed = state.failed.saturating_add(1);
                        state.generation += 1;
                        state.token = crate::peer::random_id();
                    }
                    self.changed.notify_all();
                    if self.pause(pause) {
                        return;
                    }
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
    }

    pub(super) fn primary_is_ready(
        &self,
        instance: &InstanceId,
        opened: &Opened,
        link: Link,
        round_trip: Duration,
    ) -> Option<Arc<Link>> {
        let link = Arc::new(link);
        {
            let mut state = self.lock();
            if state.closed {
                return None;
            }
            if state.instance != *instance && state.instance != [0; 16] {
                tracing::warn!(region = %self.region, "the server was restarted; going on where it was");
            }
            state.primary = Some(link.clone());
            state.handle = opened.handle;
            state.info = opened.info;
            state.newest = match state.moves_on {
                // What was taken for one may have been the word that ours is gone.
                true => opened.info.epoch,
                false => state.newest.max(opened.info.epoch),
            };
            state.leased(*instance, opened.leased.as_ref());
            state.instance = *instance;
            (state.failure, state.failed) = (None, 0);
            state.moves_on = false;
            state.round_trip = round_trip;
        }
        self.changed.notify_all();
        Some(link)
    }

    pub(super) fn primary_is_lost(&self, link: &Link, cause: &FrameError) {
        link.kill();
        self.begin_anew(link.generation, cause);
    }

    /// Begins the session anew, if it is still of this generation: nothing more is sent on its links, so that
    /// nothing that the peer still carries out can come behind what is sent from now on.
    pub(super) fn begin_anew(&self, generation: u64, cause: &dyn std::fmt::Display) {
        let links: Vec<Arc<Link>> = {
            let mut state = self.lock();
            if state.closed || state.generation != generation {
                return;
            }
            state.generation += 1;
            state.token = crate::peer::random_id();
            let State { primary, bulk, .. } = &mut *state;
            primary.take().into_iter().chain(bulk.iter_mut().filter_map(Option::take)).collect()
        };
        tracing::warn!(region = %self.region, error = %cause, "lost the connection; making it again");
        self.changed.notify_all();
        links.iter().for_each(|link| link.kill());
        self.fail_unrepeatable(cause);
    }

    /// Ends the calls that are not sent again on another link.
    pub(super) fn fail_unrepeatable(&self, cause: &dyn std::fmt::Display) {
        let unrepeatable = |entry: &Entry| !matches!(entry.call.ask, Ask::Read { .. } | Ask::Tree(_));
        self.fail_calls(unrepeatable, || lost(&self.region, cause));
    }

    /// The life of one bulk connection, again and again until the session is closed.
    pub(super) fn keep_bulk(&self, index: usize) {
        crate::schedule::bulk();
        let mut pause = BACKOFF.0;
        loop {
            let (generation, token) = {
                let state = self.lock();
                if state.closed {
                    return;
                }
                (state.generation, state.token)
            };
            let peer = &self.region.peer;
            let greeted = greet(peer, Role::Bulk, token, generation, None, &self.options, &self.meter);
            match greeted {
                Ok((greeting, _)) => {
                    let begun = Instant::now();
                    let Some(link) = self.bulk_is_ready(index, greeting.link) else { continue };
                    self.send_waiting();
                    let end = self.receive(&link, greeting.reader);
                    self.bulk_is_lost(index, &link, &end);
                    if self.pause_after(begun, &mut pause) {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(region = %self.region, %error, "a bulk connection failed");
                    if self.pause(pause) {
                        return;
                    }
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
    }

    /// Waits until the primary link of the same generation is there. None where that is over.
    pub(super) fn bulk_is_ready(&self, index: usize, link: Link) -> Option<Arc<Link>> {
        let mut state = self.lock();
        while !state.closed && state.generation == link.generation && state.primary.is_none() {
            state = self.changed.wait(state).expect("no holder panics");
        }
        if state.closed || state.generation != link.generation {
            return None;
        }
        let link = Arc::new(link);
        state.bulk[index] = Some(link.clone());
        Some(link)
    }

    pub(super) fn bulk_is_lost(&self, index: usize, link: &Arc<Link>, cause: &FrameError) {
        link.kill();
        {
            let mut state = self.lock();
            if state.closed || state.generation != link.generation {
                return;
            }
            state.bulk[index] = None;
        }
        tracing::warn!(region = %self.region, error = %cause, "lost a bulk connection; making it again");
        let of_link = |entry: &Entry| {
            entry.changes
                && std::ptr::eq(entry.sent_on.lock().expect("no holder panics").as_ptr(), &raw const **link)
        };
        if self.calls().values().any(|entry| of_link(entry)) {
            // Nobody knows whether the peer still carries them out.
            return self.begin_anew(link.generation, cause);
        }
        // What was on its way on this connection is lost; only who pulls can say what that was. The
        // peer hears of the end of a stream when who pulls lets go of it.
        self.fail_calls(|entry| matches!(entry.call.ask, Ask::Stream { .. }), || lost(&self.region, cause));
        self.send_waiting();
    }

    /// Waits before a lost connection is made again: not at all if it has lived for long, and longer
    /// and longer for a peer that lets connections begin and drops them. Answers whether the session
    /// was closed meanwhile.
    pub(super) fn pause_after(&self, begun: Instant, pause: &mut Duration) -> bool {
        if begun.elapsed() >= BACKOFF.1 {
            *pause = BACKOFF.0;
            return false;
        }
        let now = *pause;
        *pause = (now * 2).min(BACKOFF.1);
        self.pause(now)
    }

    /// Waits. Answers whether the session was closed meanwhile.
    pub(super) fn pause(&self, duration: Duration) -> bool {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, duration, |state| !state.closed);
        waited.expect("no holder panics").0.closed
    }

    /// Fails what has waited for longer than the patience.
    pub(super) fn keep_patience(&self) {
        let tick = (self.options.patience / 8).clamp(Duration::from_millis(5), Duration::from_millis(500));
        while !self.pause(tick) {
            let now = Instant::now();
            let late = |entry: &Entry| entry.call.deadline.is_some_and(|deadline| deadline < now);
            let generation = self.lock().generation;
            if self.calls().values().any(|entry| entry.changes && late(entry)) {
                // As for a connection that is lost; it is not known of which generation they are.
                self.begin_anew(generation, &"there is no answer");
            }
            self.fail_calls(late, || {
                let text = format!("no answer from {} within {:?}", self.region.peer, self.options.patience);
                Error::new(ErrorKind::Unavailable, text)
            });
            if let Ok((link, _)) = self.primary()
                && let Some(round_trip) = link.connection.round_trip()
            {
                self.lock().round_trip = round_trip;
            }
        }
    }
}
