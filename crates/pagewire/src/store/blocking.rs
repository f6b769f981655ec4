//! Waiting for a store's answer, for those who have nothing else to do.

use std::sync::mpsc;

use pagewire_core::chunk::ByteRange;

use super::gather::Gather;
use super::{Flush, Info, Read, Stage, Store, Urgency};
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

    /// Flushes, and answers what the region is then.
    ///
    /// # Errors
    ///
    /// As the store's flush.
    fn flush_all(&self) -> Result<Info>;
}

impl<S: Store + ?Sized> Blocking for S {
    fn read_bytes(&self, range: ByteRange, epoch: u64) -> Result<Vec<u8>> {
        Gather::wait(range, |sink| {
            self.read(Read { ranges: vec![range], epoch, urgency: Urgency::Background, sink });
        })
    }

    fn write_bytes(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let range = ByteRange::new(offset, offset.saturating_add(bytes.len() as u64));
        wait(|done| self.write(&[range], bytes, done))
    }

    fn zero_range(&self, range: ByteRange) -> Result<()> {
        wait(|done| self.zero(&[range], done))
    }

    fn flush_all(&self) -> Result<Info> {
        let Stage { number: stage, flushed, .. } = self.stage();
        wait(|done| self.flush(Flush { number: flushed + 1, stage, done }))
    }
}

/// Waits for what `submit` has called back.
pub(crate) fn wait<T: Send + 'static>(submit: impl FnOnce(Box<dyn FnOnce(Result<T>) + Send>)) -> Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    submit(Box::new(move |result| {
        // Nobody is left to be told if the waiting thread panicked.
        let _ = sender.send(result);
    }));
    receiver.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "the store dropped a request")))
}
