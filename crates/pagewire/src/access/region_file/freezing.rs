//! Keeping a file as it is, from the moment at which whoever uses it is suspended until it is known on which host
//! that goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::RegionFile;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Completion;

/// Whether a file may change, and how many changes are under way.
#[derive(Default)]
pub(super) struct Freezing {
    /// The highest bit, and the number.
    state: AtomicU64,
    told: AtomicBool,
    lock: Mutex<()>,
    ended: Condvar,
}

const FROZEN: u64 = 1 << 63;

/// A change that is under way, until it goes.
pub(super) struct Change(Arc<RegionFile>);

impl RegionFile {
    /// Refuses changes from now on; returns when none is under way. Reads and flushes go on.
    pub(in crate::access) fn freeze(&self) {
        let Freezing { state, told, lock, ended } = &self.freezing;
        told.store(false, Ordering::Relaxed);
        state.fetch_or(FROZEN, Ordering::AcqRel);
        let mut guard = lock.lock().expect("no holder panics");
        while state.load(Ordering::Acquire) & !FROZEN != 0 {
            guard = ended.wait(guard).expect("no holder panics");
        }
    }

    /// Takes changes again.
    pub(in crate::access) fn thaw(&self) {
        self.freezing.state.fetch_and(!FROZEN, Ordering::AcqRel);
    }

    /// A change begins.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`] while it is frozen.
    pub(super) fn begin(self: &Arc<Self>) -> Result<Change> {
        let change = Change(self.clone());
        let Freezing { state, told, .. } = &self.freezing;
        if state.fetch_add(1, Ordering::AcqRel) & FROZEN == 0 {
            return Ok(change);
        }
        if !told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                region = self.region.name(),
                "a program writes though the region is being moved to another host; that is refused"
            );
        }
        Err(Error::new(ErrorKind::Denied, "the region is being moved to another host"))
    }
}

impl Change {
    /// It is under way until `done` was called.
    pub(super) fn until(self, done: Completion) -> Completion {
        Box::new(move |result| {
            done(result);
            drop(self);
        })
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let Freezing { state, lock, ended, .. } = &self.0.freezing;
        if state.fetch_sub(1, Ordering::AcqRel) == FROZEN | 1 {
            drop(lock.lock().expect("no holder panics"));
            ended.notify_all();
        }
    }
}
