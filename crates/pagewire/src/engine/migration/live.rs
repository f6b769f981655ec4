//! What an application uses of a region, as a migration sees it: a mapping, or a mounted file.

use std::sync::Arc;

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::ByteRange;

use crate::error::{Error, ErrorKind, Result};
use crate::store::{Capabilities, Completion, Flush, Info, Read, Store};

/// A region that an application on this host reads and writes, and that can be moved to another host meanwhile.
///
/// Each access method that can be written to implements it; the origin of a migration is written against it, once.
pub trait Live: Send + Sync {
    /// What is known of the region now: its length is the one that the application sees.
    fn info(&self) -> Info;

    /// Submits a read of what the application sees, whatever the epoch that it names. Each page is as it was at one
    /// moment, or torn where it was written just then: then it is in the next answer of [`Live::take_written`].
    ///
    /// Ranges are aligned to pages, and may pass the region's length: what is behind are zeroes.
    fn read(&self, read: Read);

    /// Begins to remember which pages are written; what was remembered before is forgotten.
    ///
    /// # Errors
    ///
    /// Whatever keeps changes from being found.
    fn track(&self) -> Result<()>;

    /// Remembers no longer.
    fn untrack(&self);

    /// Adds the pages that were written since [`Live::track`], or since this was called last. A write that comes
    /// meanwhile is in this answer or in the next.
    ///
    /// # Errors
    ///
    /// Whatever keeps changes from being found; nothing is lost, the next call answers them.
    fn take_written(&self, pages: &mut BitSet) -> Result<()>;

    /// The application is suspended: all that it has written is found and read from now on, and nothing more is
    /// written until [`Live::thaw`]. Where it can be refused, it is.
    ///
    /// # Errors
    ///
    /// Whatever keeps what was written from being found; the migration is given up then.
    fn freeze(&self) -> Result<()>;

    /// The application goes on here.
    fn thaw(&self);

    /// Makes what was frozen durable at the region's own store, so that it survives this process.
    ///
    /// # Errors
    ///
    /// Whatever the store says.
    fn keep(&self) -> Result<()>;
}

/// A live region in the words of a store, for those who take it over: of one epoch, whose bytes are those of the
/// moment at which they are read, and as long as it can become.
pub(super) struct LiveStore {
    pub(super) live: Arc<dyn Live>,
    pub(super) epoch: u64,
}

impl Store for LiveStore {
    fn info(&self) -> Info {
        let info = self.live.info();
        Info {
            epoch: self.epoch,
            length: info.capacity,
            writable: false,
            capabilities: Capabilities { history: true, ..Capabilities::default() },
            ..info
        }
    }

    fn read(&self, read: Read) {
        let info = self.info();
        match read.ranges.iter().find_map(|&range: &ByteRange| info.check(range).err()) {
            Some(error) => read.sink.done(Err(error)),
            None => self.live.read(read),
        }
    }

    fn write(&self, _: &[ByteRange], _: &[u8], done: Completion) {
        done(Err(Error::new(
            ErrorKind::Unsupported,
            "a region that is being moved is written by its application",
        )));
    }

    fn flush(&self, flush: Flush) {
        (flush.done)(Ok(self.info()));
    }
}
