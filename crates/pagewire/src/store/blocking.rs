//! Waiting for a store's answer, for those who have nothing else to do.

use std::sync::mpsc;

use pagewire_core::chunk::ByteRange;

use super::gather::Gather;
use super::{Read, Store, Urgency};
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
        Gather::wait(range, |sink| {
            self.read(Read { ranges: vec![range], epoch, urgency: Urgency::Background, sink });
        })
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
