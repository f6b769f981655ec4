//! The answer to a read of a file, on its way from the store to whoever reads.
//!
//! Most answers come in one part, and are passed on as they lie in the buffer that they were received in. Others
//! are put together.

use std::sync::{Arc, Mutex};

use pagewire_core::chunk::ByteRange;

use super::RegionFile;
use crate::engine::{Moment, Pin};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Completion, Part, Sink, Urgency};

/// What is called with the bytes of a read.
pub(in crate::access) type ReadDone = Box<dyn FnOnce(Result<&[u8]>) + Send>;

/// How something is read.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    /// Who waits for it.
    pub(super) urgency: Urgency,
    /// Whether whoever reads has it from then on.
    pub(super) is_noted: bool,
}

/// The answer to a read.
pub(super) struct Answer {
    file: Arc<RegionFile>,
    range: ByteRange,
    /// What the store was asked for.
    asked: u64,
    how: Asked,
    pin: Option<Arc<Pin>>,
    asked_at: Option<Moment>,
    state: Mutex<State>,
}

struct State {
    /// The bytes of the whole range; none as long as they need not be put together.
    bytes: Vec<u8>,
    got: u64,
    done: Option<ReadDone>,
}

impl Answer {
    /// One for `range`, of which the store is asked for `asked`.
    pub(super) fn new(
        file: &Arc<RegionFile>,
        range: ByteRange,
        asked: &[ByteRange],
        how: Asked,
        done: ReadDone,
    ) -> Self {
        let state = State { bytes: Vec::new(), got: 0, done: Some(done) };
        let (file, asked) = (file.clone(), ByteRange::total(asked));
        Self { file, range, asked, how, pin: None, asked_at: None, state: Mutex::new(state) }
    }

    /// It is one of the epoch that is pinned: should that be gone, the newest one is read.
    pub(super) fn at_epoch(self, pin: Arc<Pin>) -> Self {
        Self { pin: Some(pin), ..self }
    }

    /// It is of what is staged, and was asked for at this moment: should that be lost meanwhile, it is asked for
    /// again.
    pub(super) fn staged_at(self, moment: Moment) -> Self {
        Self { asked_at: Some(moment), ..self }
    }

    /// What is not asked for is in `bytes`.
    pub(super) fn over(mut self, bytes: Vec<u8>) -> Self {
        self.state.get_mut().expect("nobody has it yet").bytes = bytes;
        self
    }

    fn is_good(&self) -> bool {
        self.asked_at.is_none_or(|then| self.file.moment().is_some_and(|now| then.has_kept(now)))
    }

    /// Whether it may have been refused for no other reason than that the store's length has changed on the way.
    fn met_a_change(&self, error: &Error) -> bool {
        let (Some(then), Some(now)) = (self.asked_at, self.file.moment()) else { return false };
        // An end that is none of a page is refused where it is not that of the region.
        matches!(error.kind(), ErrorKind::OutOfRange | ErrorKind::Protocol) && !then.has_one_length(now)
    }
}

impl Sink for Answer {
    fn part(&self, part: Part<'_>) {
        let range = part.range();
        if !self.range.contains(range) {
            return;
        }
        let mut state = self.state.lock().expect("no holder panics");
        if let (Part::Zero(range), Some(pin)) = (part, &self.pin) {
            self.file.is_zero(range, pin);
        }
        if let Part::Bytes { bytes, .. } = part
            && range == self.range
            && state.bytes.is_empty()
        {
            state.got += range.len();
            let done = state.done.take();
            drop(state);
            match done {
                Some(done) if self.is_good() => {
                    self.file.was_read(self.range, self.how);
                    done(Ok(bytes));
                }
                Some(done) => again(&self.file, self.range, self.how, done),
                None => {}
            }
            return;
        }
        if state.bytes.is_empty() {
            state.bytes = vec![0; self.range.len() as usize];
        }
        if let Part::Bytes { bytes, .. } = part {
            let from = (range.start - self.range.start) as usize;
            state.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        }
        state.got += range.len();
    }

    fn done(&self, result: Result<()>) {
        let (bytes, got, done) = {
            let mut state = self.state.lock().expect("no holder panics");
            (std::mem::take(&mut state.bytes), state.got, state.done.take())
        };
        let Some(done) = done else { return };
        match result {
            Ok(()) if got != self.asked => {
                let text = format!("{got} of {} bytes of {} were answered", self.asked, self.range);
                done(Err(Error::new(ErrorKind::Io, text)));
            }
            Ok(()) if self.is_good() => {
                self.file.was_read(self.range, self.how);
                done(Ok(&bytes));
            }
            Ok(()) => again(&self.file, self.range, self.how, done),
            Err(error) if error.kind() == ErrorKind::Stale => match &self.pin {
                Some(pin) => {
                    let (file, range, how) = (self.file.clone(), self.range, self.how);
                    let go_on: Completion = Box::new(move |result| match result {
                        Ok(()) => again(&file, range, how, done),
                        Err(error) => done(Err(error)),
                    });
                    self.file.when_moved(pin, error, go_on);
                }
                None => done(Err(error)),
            },
            Err(error) if self.met_a_change(&error) => again(&self.file, self.range, self.how, done),
            Err(error) => done(Err(error)),
        }
    }
}

/// Asks again, for what there is of it by now.
fn again(file: &Arc<RegionFile>, range: ByteRange, how: Asked, done: ReadDone) {
    let range = range.clamp_to(file.length());
    if range.is_empty() {
        return done(Ok(&[]));
    }
    file.submit_read(range, how, done);
}
