//! Waiting for a store's answer, for those who have nothing else to do.

use std::sync::{Arc, Condvar, Mutex, mpsc};

use pagewire_core::chunk::ByteRange;

use super::{Part, Read, Sink, Store, Urgency};
use crate::error::{Error, ErrorKind, Result};

/// Store requests that return when they are done.
pub trait Blocking {
    /// The bytes of `range` at `epoch`.
    ///
    /// # Errors
    ///
    /// As the store's read; [`ErrorKind::Io`] if the answer has gaps.
    fn read_bytes(&self, range: ByteRange, epoch: u64) -> Result<Vec<u8>>;

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    ///
    /// As the store's write.
    fn write_bytes(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Writes zeroes to `range`.
    ///
    /// # Errors
    ///
    /// As the store's zero.
    fn zero_range(&self, range: ByteRange) -> Result<()>;

    /// Flushes.
    ///
    /// # Errors
    ///
    /// As the store's flush.
    fn flush_all(&self) -> Result<()>;
}

impl<S: Store + ?Sized> Blocking for S {
    fn read_bytes(&self, range: ByteRange, epoch: u64) -> Result<Vec<u8>> {
        let gather = Arc::new(Gather {
            range,
            state: Mutex::new(Gathered { bytes: vec![0; range.len() as usize], got: 0, result: None }),
            finished: Condvar::new(),
        });
        self.read(Read { ranges: vec![range], epoch, urgency: Urgency::Background, sink: gather.clone() });
        gather.wait()
    }

    fn write_bytes(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        wait(|done| self.write(offset, bytes, done))
    }

    fn zero_range(&self, range: ByteRange) -> Result<()> {
        wait(|done| self.zero(range, done))
    }

    fn flush_all(&self) -> Result<()> {
        wait(|done| self.flush(done))
    }
}

fn wait(submit: impl FnOnce(super::Completion)) -> Result<()> {
    let (sender, receiver) = mpsc::sync_channel(1);
    submit(Box::new(move |result| {
        // Nobody is left to be told if the waiting thread panicked.
        let _ = sender.send(result);
    }));
    receiver.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "the store dropped a request")))
}

struct Gather {
    range: ByteRange,
    state: Mutex<Gathered>,
    finished: Condvar,
}

struct Gathered {
    bytes: Vec<u8>,
    got: u64,
    result: Option<Result<()>>,
}

impl Gather {
    fn wait(&self) -> Result<Vec<u8>> {
        let mut state = self.state.lock().expect("no holder panics");
        loop {
            match state.result.take() {
                Some(Ok(())) if state.got == self.range.len() => return Ok(std::mem::take(&mut state.bytes)),
                Some(Ok(())) => {
                    let text = format!("{} of the bytes {} were answered", state.got, self.range);
                    return Err(Error::new(ErrorKind::Io, text));
                }
                Some(Err(error)) => return Err(error),
                None => state = self.finished.wait(state).expect("no holder panics"),
            }
        }
    }
}

impl Sink for Gather {
    fn part(&self, part: Part<'_>) {
        let range = part.range();
        if !self.range.contains(range) {
            return;
        }
        let mut state = self.state.lock().expect("no holder panics");
        let start = (range.start - self.range.start) as usize;
        if let Part::Bytes { bytes, .. } = part {
            state.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        }
        state.got += range.len();
    }

    fn done(&self, result: Result<()>) {
        self.state.lock().expect("no holder panics").result = Some(result);
        self.finished.notify_all();
    }
}
