//! The table of the calls under way: how each is sent, sent again on the next link, and ended.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::Instant;

use pagewire_core::wire::{Reply, Request, TreeRequest};

use super::{Ask, Lane, Shared, State, cancelled};
use crate::error::{Error, Result};
use crate::peer::call::{Answer, Call, ReplyTo};
use crate::peer::link::Link;
use crate::transport::lost;

/// A call under way.
pub(super) struct Entry {
    pub(super) call: Call,
    pub(super) lane: Lane,
    /// Whether it changes the region: then no one may be in doubt whether it still does later.
    pub(super) changes: bool,
    /// The link that the call was sent on last.
    pub(super) sent_on: Mutex<Weak<Link>>,
}

impl Shared {
    /// Asks on the primary link, once: a call that is not a read ends with the link.
    pub(super) fn ask_once(&self, call: Call, request: impl FnOnce(u32) -> Request) -> Result<u64> {
        let (link, handle) = self.primary()?;
        let request = request(handle);
        Ok(self.send_once(&link, call, false, |id, link| link.send(|out| request.encode(id, out))))
    }

    /// Sends a call on a link, once.
    pub(super) fn send_once(
        &self,
        link: &Arc<Link>,
        call: Call,
        changes: bool,
        send: impl FnOnce(u64, &Link),
    ) -> u64 {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { call, lane: Lane::Primary, changes, sent_on: Mutex::new(Arc::downgrade(link)) };
        self.calls().insert(id, Arc::new(entry));
        send(id, link);
        // A link that was lost before the call was in the table has not failed it.
        if !link.is_alive() {
            if changes {
                // It may have been sent all the same, and nobody else knows of it.
                self.begin_anew(link.generation, &"just now");
            }
            self.finish(id, |call| call.fail(lost(&self.region, "just now")));
        }
        id
    }

    /// Asks on the primary link, and waits for the reply.
    pub(super) fn control(&self, request: impl FnOnce(u32) -> Request) -> Result<Reply> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let reply: ReplyTo = Box::new(move |result| {
            // The asking thread waits for nothing else.
            let _ = sender.send(result);
        });
        self.ask_once(self.control_call(reply), request)?;
        receiver.recv().unwrap_or_else(|_| Err(cancelled(&self.region)))
    }

    /// A call that one reply ends, within the patience.
    pub(super) fn control_call(&self, reply: ReplyTo) -> Call {
        let deadline = Some(Instant::now() + self.options.patience);
        Call::new(Ask::Control, Answer::Reply(Mutex::new(Some(reply))), deadline)
    }

    pub(super) fn submit(&self, call: Call, lane: Lane) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry { call, lane, changes: false, sent_on: Mutex::new(Weak::new()) });
        self.calls().insert(id, entry.clone());
        let refused = {
            let state = self.lock();
            if state.closed { Some(cancelled(&self.region)) } else { state.failure.clone() }
        };
        match refused {
            Some(error) => self.finish(id, |call| call.fail(error)),
            None => self.send(id, &entry),
        }
    }

    /// Sends what may be asked again on a link of its lane, unless it is under way on one, or there is none now.
    pub(super) fn send(&self, id: u64, entry: &Entry) {
        let epoch = match &entry.call.ask {
            Ask::Read { epoch, .. } => *epoch,
            Ask::Tree(tree) => tree.epoch,
            Ask::Stream { .. } | Ask::Control => return,
        };
        let (link, handle, epoch) = {
            let mut state = self.lock();
            (state.link(entry.lane), state.handle, state.epoch_of(epoch))
        };
        let Some(link) = link else { return };
        {
            let mut sent_on = entry.sent_on.lock().expect("no holder panics");
            if sent_on.upgrade().is_some_and(|link| link.is_alive()) {
                return;
            }
            *sent_on = Arc::downgrade(&link);
        }
        if let Ask::Tree(tree) = &entry.call.ask {
            let tree = TreeRequest { handle, epoch, ..tree.clone() };
            return link.send(|out| Request::Tree(tree).encode(id, out));
        }
        let ranges = entry.call.missing();
        if !ranges.is_empty() {
            link.send(|out| Request::Read { handle, epoch, ranges }.encode(id, out));
        }
    }

    /// Sends what waits for a link.
    pub(super) fn send_waiting(&self) {
        let mut waiting: Vec<(u64, Arc<Entry>)> =
            self.calls().iter().map(|(id, entry)| (*id, entry.clone())).collect();
        waiting.sort_by_key(|(id, _)| *id);
        for (id, entry) in waiting {
            self.send(id, &entry);
        }
    }

    /// Takes a call out of the table and ends it.
    pub(super) fn finish(&self, id: u64, end: impl FnOnce(&Call)) {
        let entry = self.calls().remove(&id);
        if let Some(entry) = entry {
            end(&entry.call);
        }
    }

    pub(super) fn fail_calls(&self, which: impl Fn(&Entry) -> bool, error: impl Fn() -> Error) {
        let failed: Vec<Arc<Entry>> = {
            let mut calls = self.calls();
            let ids: Vec<u64> = calls.iter().filter(|(_, entry)| which(entry)).map(|(id, _)| *id).collect();
            ids.iter().filter_map(|id| calls.remove(id)).collect()
        };
        for entry in failed {
            entry.call.fail(error());
        }
    }
}

impl State {
    /// A link of a lane, if there is one now.
    pub(super) fn link(&mut self, lane: Lane) -> Option<Arc<Link>> {
        if lane == Lane::Primary {
            return self.primary.clone();
        }
        self.turn += 1;
        let count = self.bulk.len();
        let bulk = (0..count).find_map(|step| self.bulk[(self.turn + step) % count].clone());
        // A server that is full may let in no bulk connection for long.
        bulk.or_else(|| self.primary.clone())
    }
}
