//! One request under way, from its submission to its one and only end.
//!
//! Parts of an answer may be delivered on several threads at once while another thread finds out
//! that the request has failed. [`Call`] sees to it that the sink's `done` is called once, and after
//! the last `part` has returned: whoever leaves last, of those who deliver and those who end, calls it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use pagewire_core::chunk::ByteRange;
use pagewire_core::wire::{Reply, TreeRequest};

use super::flow::Flow;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::{Part, Sink};

/// What a call asks for, as far as it has to be asked again after a lost connection.
pub(crate) enum Ask {
    /// The bytes of these ranges.
    Read {
        /// Which bytes.
        ranges: Vec<ByteRange>,
        /// Of which epoch.
        epoch: u64,
    },
    /// A stream, which is not asked for again: who wants the rest knows best what is missing.
    Stream {
        /// Of which epoch.
        epoch: u64,
        /// How much may be in flight.
        flow: Flow,
    },
    /// Hashes, by one reply. The same on whichever connection, but for the handle.
    Tree(TreeRequest),
    /// A request that one reply ends. It is not asked again either.
    Control,
}

/// Where the end of a call goes.
pub(crate) enum Answer {
    /// Parts and the end go to a sink.
    Sink(Arc<dyn Sink>),
    /// The reply goes to a function.
    Reply(Mutex<Option<ReplyTo>>),
}

/// What is called with the reply to a control request.
pub(crate) type ReplyTo = Box<dyn FnOnce(Result<Reply>) + Send>;

/// One request under way.
pub(crate) struct Call {
    pub(crate) ask: Ask,
    /// When the patience is over.
    pub(crate) deadline: Option<Instant>,
    answer: Answer,
    state: Mutex<State>,
}

struct State {
    /// How many threads are delivering a part just now.
    delivering: usize,
    /// What a read still lacks: which bytes, not how many, so that a piece that comes twice never
    /// stands for one that does not come.
    missing: VecDeque<ByteRange>,
    /// How many bytes of ranges have been delivered.
    received: u64,
    /// How many bytes there will be in all, once that is known.
    total: Option<u64>,
    outcome: Option<Result<()>>,
    told: bool,
}

impl Call {
    pub(crate) fn new(ask: Ask, answer: Answer, deadline: Option<Instant>) -> Self {
        let missing = match &ask {
            Ask::Read { ranges, .. } => ranges.iter().copied().collect(),
            Ask::Stream { .. } | Ask::Tree(_) | Ask::Control => VecDeque::new(),
        };
        let total = match &ask {
            Ask::Read { .. } => Some(ByteRange::total(&missing)),
            Ask::Stream { .. } | Ask::Tree(_) | Ask::Control => None,
        };
        let state = State { delivering: 0, missing, received: 0, total, outcome: None, told: false };
        Self { ask, deadline, answer, state: Mutex::new(state) }
    }

    /// Delivers a part of the answer, but for what has come before: a lost connection may still bring
    /// bytes that were asked for again on another one. Answers whether the call has ended with it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Protocol`] where nobody has asked for these bytes.
    pub(crate) fn deliver(&self, part: Part<'_>) -> Result<bool> {
        let Answer::Sink(sink) = &self.answer else {
            return Err(Error::new(ErrorKind::Protocol, "data answers a request that asked for none"));
        };
        let range = part.range();
        let new = {
            let mut state = self.lock();
            if state.outcome.is_some() {
                return Ok(false);
            }
            let new = match &self.ask {
                Ask::Read { ranges, .. } => {
                    let is_next = state.missing.front().is_some_and(|front| front.contains(range));
                    if !is_next && !ranges.iter().any(|asked| asked.contains(range)) {
                        let text = format!("bytes {range}, which were not asked for");
                        return Err(Error::new(ErrorKind::Protocol, text));
                    }
                    take(&mut state.missing, range)
                }
                Ask::Stream { .. } | Ask::Tree(_) | Ask::Control => vec![range],
            };
            if new.is_empty() {
                return Ok(false);
            }
            state.delivering += 1;
            new
        };
        new.iter().for_each(|range| sink.part(part.cut(*range)));
        let mut state = self.lock();
        state.delivering -= 1;
        state.received += ByteRange::total(&new);
        Ok(self.settle(state))
    }

    /// The peer says that it has sent `sent` bytes, and that this was all. Answers whether the call
    /// has ended with it; else the rest is still on its way.
    pub(crate) fn sent_all(&self, sent: u64) -> bool {
        let mut state = self.lock();
        if matches!(self.ask, Ask::Read { .. }) {
            // Its bytes come before its end, on the same connection.
            let left = ByteRange::total(&state.missing);
            if left > 0 {
                let text = format!("an answer of {sent} bytes leaves out {left}");
                state.outcome.get_or_insert(Err(Error::new(ErrorKind::Protocol, text)));
            }
        } else {
            state.total = Some(sent);
        }
        self.settle(state)
    }

    /// Ends the call, if it has not ended.
    pub(crate) fn end(&self, result: Result<()>) {
        let mut state = self.lock();
        state.outcome.get_or_insert(result);
        self.settle(state);
    }

    /// Ends a control call with its reply.
    pub(crate) fn reply(&self, result: Result<Reply>) {
        match &self.answer {
            Answer::Reply(slot) => {
                if let Some(reply) = slot.lock().expect("no holder panics").take() {
                    reply(result);
                }
            }
            Answer::Sink(_) => self.end(result.and_then(|_| {
                Err(Error::new(ErrorKind::Protocol, "a read was answered by something else than data"))
            })),
        }
    }

    /// Fails the call, of whatever sort it is.
    pub(crate) fn fail(&self, error: Error) {
        match &self.answer {
            Answer::Reply(_) => self.reply(Err(error)),
            Answer::Sink(_) => self.end(Err(error)),
        }
    }

    /// What a read has to ask for again after a lost connection.
    pub(crate) fn missing(&self) -> Vec<ByteRange> {
        self.lock().missing.iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn settle(&self, mut state: MutexGuard<'_, State>) -> bool {
        if state.outcome.is_none() && state.total == Some(state.received) {
            state.outcome = Some(Ok(()));
        }
        if state.told || state.delivering > 0 {
            return state.outcome.is_some();
        }
        let Some(outcome) = state.outcome.clone() else { return false };
        state.told = true;
        drop(state);
        if let Answer::Sink(sink) = &self.answer {
            sink.done(outcome);
        }
        true
    }
}

/// Takes what `missing` has of `range` out of it. Answers come in the order of the ranges at most
/// times, and so this ends at the front.
fn take(missing: &mut VecDeque<ByteRange>, range: ByteRange) -> Vec<ByteRange> {
    let mut taken = Vec::with_capacity(1);
    let (mut at, mut left) = (0, range.len());
    while at < missing.len() && left > 0 {
        let from = missing[at];
        let new = from.intersect(range);
        if new.is_empty() {
            at += 1;
            continue;
        }
        taken.push(new);
        left -= new.len();
        let [before, after] = from.without(range);
        match (before.is_empty(), after.is_empty()) {
            (true, true) => drop(missing.remove(at)),
            (true, false) => missing[at] = after,
            (false, true) => missing[at] = before,
            (false, false) => {
                missing[at] = before;
                missing.insert(at + 1, after);
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

    #[derive(Default)]
    struct Counting {
        inside: AtomicUsize,
        done: AtomicUsize,
        bytes: AtomicU64,
        late: AtomicBool,
    }

    impl Sink for Counting {
        fn part(&self, part: Part<'_>) {
            self.bytes.fetch_add(part.range().len(), Ordering::SeqCst);
            self.inside.fetch_add(1, Ordering::SeqCst);
            std::thread::yield_now();
            if self.done.load(Ordering::SeqCst) > 0 {
                self.late.store(true, Ordering::SeqCst);
            }
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }

        fn done(&self, _: Result<()>) {
            if self.inside.load(Ordering::SeqCst) > 0 {
                self.late.store(true, Ordering::SeqCst);
            }
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn read(ranges: &[ByteRange], sink: Arc<Counting>) -> Call {
        Call::new(Ask::Read { ranges: ranges.to_vec(), epoch: 1 }, Answer::Sink(sink), None)
    }

    #[test]
    fn done_comes_once_and_after_every_part() {
        for round in 0..200u64 {
            let sink = Arc::new(Counting::default());
            let whole = ByteRange::new(0, 64 * 4096);
            let call = read(&[whole], sink.clone());
            std::thread::scope(|scope| {
                for half in 0..2 {
                    let call = &call;
                    scope.spawn(move || {
                        for page in (half..64).step_by(2) {
                            call.deliver(Part::Zero(ByteRange::new(page * 4096, (page + 1) * 4096))).unwrap();
                        }
                    });
                }
                if round % 2 == 0 {
                    scope.spawn(|| call.end(Err(Error::new(ErrorKind::Cancelled, "stop"))));
                }
            });
            assert_eq!(sink.done.load(Ordering::SeqCst), 1);
            assert!(!sink.late.load(Ordering::SeqCst));
        }
    }

    #[test]
    fn what_comes_twice_is_passed_on_once_and_stands_for_nothing_else() {
        let sink = Arc::new(Counting::default());
        let pages = |from: u64, to: u64| Part::Zero(ByteRange::new(from * 4096, to * 4096));
        let call = read(&[ByteRange::new(0, 8 * 4096), ByteRange::new(16 * 4096, 17 * 4096)], sink.clone());
        for (from, to) in [(2, 4), (2, 4), (1, 5), (1, 5), (16, 17), (16, 17), (5, 8)] {
            assert!(!call.deliver(pages(from, to)).unwrap());
        }
        assert_eq!(call.missing(), [ByteRange::new(0, 4096)]);
        assert!(call.deliver(pages(0, 8)).unwrap());
        assert_eq!(sink.bytes.load(Ordering::SeqCst), 9 * 4096);
        assert_eq!(sink.done.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn bytes_that_nobody_asked_for_are_refused() {
        let sink = Arc::new(Counting::default());
        let call = read(&[ByteRange::new(4096, 8192)], sink.clone());
        assert!(call.deliver(Part::Zero(ByteRange::new(0, 4096))).is_err());
        assert!(call.deliver(Part::Zero(ByteRange::new(4096, 12288))).is_err());
        assert_eq!(sink.done.load(Ordering::SeqCst), 0);
        assert!(call.sent_all(12), "an END that does not fit ends the call with an error");
        assert_eq!(sink.done.load(Ordering::SeqCst), 1);
    }
}
