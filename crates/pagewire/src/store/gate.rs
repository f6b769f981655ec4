//! Waiting for the reads that began before a moment, without holding up those that begin after it.
//!
//! The method is that of sleepable read-copy-update (McKenney, 2006): two counts of readers, of
//! which the newer ones use the one and the waiting writer watches the other.

use std::sync::{Arc, Condvar, Mutex};

/// Counts reads under way in two generations.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    /// Held by who waits: there are two generations only.
    waiting: Mutex<()>,
    left: Condvar,
}

#[derive(Default)]
struct State {
    reads: [usize; 2],
    generation: usize,
}

/// One read under way.
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    generation: usize,
}

impl Gate {
    /// A read begins.
    pub(crate) fn enter(self: &Arc<Self>) -> Ticket {
        let mut state = self.state.lock().expect("no holder panics");
        let generation = state.generation;
        state.reads[generation] += 1;
        Ticket { gate: self.clone(), generation }
    }

    /// Waits until the reads that are under way now have ended.
    pub(crate) fn wait(&self) {
        let _one = self.waiting.lock().expect("no holder panics");
        let mut state = self.state.lock().expect("no holder panics");
        let old = state.generation;
        state.generation = 1 - old;
        while state.reads[old] > 0 {
            state = self.left.wait(state).expect("no holder panics");
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock().expect("no holder panics");
        state.reads[self.generation] -= 1;
        if state.reads[self.generation] == 0 {
            self.gate.left.notify_all();
        }
    }
}
