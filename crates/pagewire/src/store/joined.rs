//! Requests that are made as several, and whose end is one.

use std::sync::{Arc, Mutex};

use super::{Completion, Part, Sink};
use crate::error::{Error, Result};

/// The sink of several reads, whose end is the last of theirs.
pub(super) struct JoinedReads {
    state: Mutex<State>,
    sink: Arc<dyn Sink>,
}

/// The completion of several requests.
pub(super) struct JoinedRequests(Mutex<(State, Option<Completion>)>);

struct State {
    left: usize,
    error: Option<Error>,
}

impl State {
    /// One of them is done. Answers the end of all, if it was the last one.
    fn done(&mut self, result: Result<()>) -> Option<Result<()>> {
        self.left -= 1;
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
        (self.left == 0).then(|| self.error.take().map_or(Ok(()), Err))
    }
}

impl JoinedReads {
    pub(super) fn new(reads: usize, sink: Arc<dyn Sink>) -> Self {
        Self { state: Mutex::new(State { left: reads, error: None }), sink }
    }
}

impl Sink for JoinedReads {
    fn part(&self, part: Part<'_>) {
        self.sink.part(part);
    }

    fn done(&self, result: Result<()>) {
        let end = self.state.lock().expect("no holder panics").done(result);
        if let Some(end) = end {
            self.sink.done(end);
        }
    }
}

impl JoinedRequests {
    pub(super) fn new(requests: usize, done: Completion) -> Arc<Self> {
        Arc::new(Self(Mutex::new((State { left: requests, error: None }, Some(done)))))
    }

    /// One of them is done.
    pub(super) fn done(&self, result: Result<()>) {
        let (end, done) = {
            let mut guard = self.0.lock().expect("no holder panics");
            let (state, done) = &mut *guard;
            let Some(end) = state.done(result) else { return };
            (end, done.take())
        };
        if let Some(done) = done {
            done(end);
        }
    }
}
