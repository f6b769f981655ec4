//! A few threads for reads that would hold up somebody who must not wait.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

/// How many reads may wait for the device at once: enough for a disk to order them, few enough to
/// cost nothing.
const THREADS: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that are started when they are first needed, and end when the pool is dropped.
pub(crate) struct Pool {
    name: &'static str,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self::named("pw-file")
    }

    /// One whose threads have this name.
    pub(crate) fn named(name: &'static str) -> Self {
        Self { name, shared: Arc::default() }
    }

    pub(crate) fn run(&self, job: Job) {
        let mut state = self.shared.state.lock().expect("jobs run without the lock");
        state.jobs.push_back(job);
        if state.idle < state.jobs.len() && state.threads < THREADS {
            let shared = self.shared.clone();
            let started = std::thread::Builder::new().name(self.name.into()).spawn(move || shared.serve());
            match started {
                Ok(_) => state.threads += 1,
                // The threads that there are get to it; if there is none, the caller has to.
                Err(_) if state.threads > 0 => {}
                Err(_) => {
                    let job = state.jobs.pop_back();
                    drop(state);
                    return job.into_iter().for_each(|job| job());
                }
            }
        }
        drop(state);
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn serve(&self) {
        let mut state = self.state.lock().expect("jobs run without the lock");
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock().expect("jobs run without the lock");
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).expect("jobs run without the lock");
                state.idle -= 1;
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.lock().expect("jobs run without the lock").closed = true;
        self.shared.work.notify_all();
    }
}
