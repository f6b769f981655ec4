//! The answer to a read of a file, on its way from the store to whoever reads.
//!
//! Most answers come in one part, and are passed on as they lie in the buffer that they were received in. Others
//! are put together.

use std::sync::{Arc, Mutex};

use pagewire_core::chunk::ByteRange;

use super::file::RegionFile;
use crate::engine::Pin;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Part, Sink, Urgency};

/// What is called with the bytes of a read.
pub(super) type ReadDone = Box<dyn FnOnce(Result<&[u8]>) + Send>;

/// The answer to a read.
pub(super) struct Answer {
    file: Arc<RegionFile>,
    range: ByteRange,
    /// What the store was asked for.
    asked: u64,
    urgency: Urgency,
    pin: Option<Arc<Pin>>,
    stage: Option<u64>,
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
        urgency: Urgency,
        done: ReadDone,
    ) -> Self {
        let state = State { bytes: Vec::new(), got: 0, done: Some(done) };
        let (file, asked) = (file.clone(), ByteRange::total(asked));
        Self { file, range, asked, urgency, pin: None, stage: None, state: Mutex::new(state) }
    }

    /// It is one of the epoch that is pinned: should that be gone, the newest one is read.
    pub(super) fn at_epoch(self, pin: Arc<Pin>) -> Self {
        Self { pin: Some(pin), ..self }
    }

    /// It is good as long as the store is at this stage: should what is staged be lost, it is asked for again.
    pub(super) fn at_stage(self, stage: u64) -> Self {
        Self { stage: Some(stage), ..self }
    }

    /// What is not asked for is in `bytes`.
    pub(super) fn over(mut self, bytes: Vec<u8>) -> Self {
        self.state.get_mut().expect("nobody has it yet").bytes = bytes;
        self
    }

    fn is_good(&self) -> bool {
        self.stage.is_none_or(|stage| self.file.is_at_stage(stage))
    }

    fn again(&self, done: ReadDone) {
        self.file.submit_read(self.range, self.urgency, done);
    }
}

impl Sink for Answer {
    fn part(&self, part: Part<'_>) {
        let range = part.range();
        if !self.range.contains(range) {
            return;
        }
        let mut state = self.state.lock().expect("no holder panics");
        if let Part::Zero(range) = part {
            self.file.is_zero(range);
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
                    self.file.was_read(self.range, self.urgency);
                    done(Ok(bytes));
                }
                Some(done) => self.again(done),
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
                self.file.was_read(self.range, self.urgency);
                done(Ok(&bytes));
            }
            Ok(()) => self.again(done),
            Err(error) if error.kind() == ErrorKind::Stale => match &self.pin {
                Some(pin) if self.file.has_moved(pin) => self.again(done),
                _ => done(Err(error)),
            },
            Err(error) => done(Err(error)),
        }
    }
}
