//! Reads that are too large for one request: several are made, and their answers are one.

use std::sync::{Arc, Mutex};

use pagewire_core::chunk::ByteRange;
use pagewire_core::wire::MAX_RANGES;

use crate::error::{Error, Result};
use crate::store::{Part, Sink};

/// The most that one request asks for, in bytes: below what a server answers, and much more than what
/// the cost of a request can be seen in.
const LONGEST: u64 = 8 << 20;

/// The ranges of each request that together ask for `ranges`.
pub(super) fn requests(ranges: Vec<ByteRange>) -> Vec<Vec<ByteRange>> {
    let total = ByteRange::total(&ranges);
    if total <= LONGEST && ranges.len() <= MAX_RANGES {
        return vec![ranges];
    }
    let mut requests = vec![Vec::new()];
    let mut room = LONGEST;
    for piece in ranges.iter().flat_map(|range| range.split(LONGEST)) {
        if piece.len() > room || requests.last().is_some_and(|request| request.len() == MAX_RANGES) {
            requests.push(Vec::new());
            room = LONGEST;
        }
        room -= piece.len();
        requests.last_mut().expect("there is one from the beginning").push(piece);
    }
    requests
}

/// The sink of several requests, whose end is the last of theirs.
pub(super) struct Joined {
    state: Mutex<State>,
    sink: Arc<dyn Sink>,
}

struct State {
    left: usize,
    error: Option<Error>,
}

impl Joined {
    pub(super) fn new(requests: usize, sink: Arc<dyn Sink>) -> Self {
        Self { state: Mutex::new(State { left: requests, error: None }), sink }
    }
}

impl Sink for Joined {
    fn part(&self, part: Part<'_>) {
        self.sink.part(part);
    }

    fn done(&self, result: Result<()>) {
        let end = {
            let mut state = self.state.lock().expect("no holder panics");
            state.left -= 1;
            if let Err(error) = result {
                state.error.get_or_insert(error);
            }
            if state.left > 0 {
                return;
            }
            state.error.take().map_or(Ok(()), Err)
        };
        self.sink.done(end);
    }
}
