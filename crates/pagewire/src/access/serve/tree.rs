//! Hashes of a region for those who compare it with theirs.
//!
//! They are computed aside, by nice threads, as many at once as there are processors, for all sessions together: nobody
//! who waits for bytes is held up by somebody who compares. A session keeps the trees of what it compares just now.

use std::sync::{Arc, Condvar, Mutex};

use pagewire_core::wire::{Reply, TreeRequest};

use super::Shared;
use super::outgoing::Outgoing;
use super::session::Session;
use crate::engine::Pin;
use crate::engine::hash::{Hashed, Hashes};
use crate::error::Result;

/// How many trees one comparison keeps: those of the windows that our clients compare at once, and some. Each takes
/// 1.1 MiB.
pub(super) const TREES: usize = 6;

/// Answers a TREE.
pub(super) fn tree(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    outgoing: &Arc<Outgoing>,
    id: u64,
    request: TreeRequest,
    pin: Arc<Pin>,
) -> Result<()> {
    let hashes = session.hashes(&request);
    let (shared, outgoing) = (shared.clone(), outgoing.clone());
    session.aside(move || {
        let reply = match nodes(&shared, &outgoing, &request, &pin, &hashes) {
            Ok(nodes) => Reply::Nodes(nodes),
            Err(error) => Reply::Error(error.to_wire(pin.region().info().epoch)),
        };
        outgoing.respond(id, &reply);
    })
}

fn nodes(
    shared: &Shared,
    outgoing: &Outgoing,
    request: &TreeRequest,
    pin: &Pin,
    hashes: &Hashes,
) -> Result<Vec<pagewire_core::delta::Node>> {
    let (of, has) = (Hashed::from(pin), pin.info().length);
    let gone = || outgoing.is_closed();
    if of.is_asked() {
        return hashes.nodes(&of, has, request.level, &request.ranges, &gone);
    }
    let _turn = shared.hashing.turn();
    crate::schedule::bulk();
    hashes.nodes(&of, has, request.level, &request.ranges, &gone)
}

/// How many threads hash at once.
pub(super) struct Turns {
    free: Mutex<usize>,
    freed: Condvar,
}

/// The right to hash, until it is dropped.
struct Turn<'a>(&'a Turns);

impl Turns {
    /// As many as there are processors.
    pub(super) fn new() -> Self {
        let free = std::thread::available_parallelism().map_or(1, usize::from);
        Self { free: Mutex::new(free), freed: Condvar::new() }
    }

    fn turn(&self) -> Turn<'_> {
        let free = self.free.lock().expect("no holder panics");
        *self.freed.wait_while(free, |free| *free == 0).expect("no holder panics") -= 1;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().expect("no holder panics") += 1;
        self.0.freed.notify_one();
    }
}
