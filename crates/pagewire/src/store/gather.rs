//! A sink that puts the bytes of one range together.

use std::sync::{Arc, Mutex, mpsc};

use pagewire_core::chunk::ByteRange;

use super::{Part, Sink};
use crate::error::{Error, ErrorKind, Result};

/// Puts the bytes of one range together from the parts of an answer, and sees to it that none is
/// missing. Parts of an answer do not overlap, so counting them is enough.
pub(crate) struct Gather {
    range: ByteRange,
    state: Mutex<State>,
}

struct State {
    bytes: Vec<u8>,
    got: u64,
    finish: Option<Finish>,
}

type Finish = Box<dyn FnOnce(Result<Vec<u8>>) + Send>;

impl Gather {
    /// A sink that calls `finish` with the bytes of `range`.
    pub(crate) fn new(range: ByteRange, finish: impl FnOnce(Result<Vec<u8>>) + Send + 'static) -> Arc<Self> {
        let state = State { bytes: vec![0; range.len() as usize], got: 0, finish: Some(Box::new(finish)) };
        Arc::new(Self { range, state: Mutex::new(state) })
    }

    /// Gives `submit` a sink, and waits for its bytes.
    pub(crate) fn wait(range: ByteRange, submit: impl FnOnce(Arc<Self>)) -> Result<Vec<u8>> {
        let (sender, receiver) = mpsc::sync_channel(1);
        submit(Self::new(range, move |result| {
            // The other end waits until it has heard this.
            let _ = sender.try_send(result);
        }));
        receiver.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "the store dropped a read")))
    }
}

impl Sink for Gather {
    fn part(&self, part: Part<'_>) {
        let range = part.range();
        if !self.range.contains(range) {
            return;
        }
        let mut state = self.state.lock().expect("no holder panics");
        if let Part::Bytes { bytes, .. } = part {
            let from = (range.start - self.range.start) as usize;
            state.bytes[from..from + bytes.len()].copy_from_slice(bytes);
        }
        state.got += range.len();
    }

    fn done(&self, result: Result<()>) {
        let (bytes, got, finish) = {
            let mut state = self.state.lock().expect("no holder panics");
            (std::mem::take(&mut state.bytes), state.got, state.finish.take())
        };
        let Some(finish) = finish else { return };
        finish(result.and_then(|()| {
            if got == self.range.len() {
                return Ok(bytes);
            }
            Err(Error::new(ErrorKind::Io, format!("{got} of the bytes {} were answered", self.range)))
        }));
    }
}
