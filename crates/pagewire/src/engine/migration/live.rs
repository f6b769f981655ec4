//! What an application uses of a region, as a migration sees it: a mapping, or a mounted file.

use std::sync::Arc;

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, PAGE_SIZE, round_up};

use crate::error::{Error, ErrorKind, Result};
use crate::sink::Part;
use crate::store::{Capabilities, Completion, Flush, Gather, Info, Read, Store};

/// A region that an application on this host reads and writes, and that can be moved to another host meanwhile.
///
/// Each access method that can be written to implements it; the origin of a migration is written against it, once.
pub trait Live: Send + Sync {
    /// What is known of the region now: its length is the one that the application sees.
    fn info(&self) -> Info;

    /// Submits a read of what the application sees, whatever the epoch that it names. Each page is as it was at one
    /// moment, or torn where it was written just then: then it is in the next answer of [`Live::take_written`].
    ///
    /// Ranges are aligned to pages, but for the region's end. Where one passes it, since the region has just become
    /// shorter, what is behind are zeroes.
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

    /// The application is about to be suspended: does what can be done before that.
    ///
    /// # Errors
    ///
    /// Whatever will keep it from being frozen; the migration is given up then.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// The application is suspended: all that it has written is found and read from now on, and nothing more is
    /// written until [`Live::thaw`]. Where it can be refused, it is. Where the region's own store outlives this process, what is
    /// frozen does, too.
    ///
    /// # Errors
    ///
    /// Whatever keeps what was written from being found; the migration is given up then.
    fn freeze(&self) -> Result<()>;

    /// The application goes on here.
    fn thaw(&self);

    /// Makes what was frozen durable at the region's own store, so that it survives this process: the destination needs
    /// it still.
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
    /// Called before anything is read.
    pub(super) begin: Box<dyn Fn() -> Result<()> + Send + Sync>,
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
        if let Some(error) = read.ranges.iter().find_map(|&range| info.check(range).err()) {
            return read.sink.done(Err(error));
        }
        if let Err(error) = (self.begin)() {
            return read.sink.done(Err(error));
        }
        let length = self.live.info().length;
        let (whole, end) = (length / PAGE_SIZE * PAGE_SIZE, round_up(length, PAGE_SIZE).min(info.length));
        if read.ranges.iter().all(|range| range.end <= whole) {
            return self.live.read(read);
        }
        // The wire knows whole pages, up to the capacity.
        let Read { ranges, epoch, urgency, sink } = read;
        let part = |of: ByteRange| -> Vec<ByteRange> {
            ranges.iter().map(|range| range.intersect(of)).filter(|range| !range.is_empty()).collect()
        };
        let (front, last) = (part(ByteRange::new(0, whole)), part(ByteRange::new(whole, end)));
        part(ByteRange::new(end, info.length)).into_iter().for_each(|behind| sink.part(Part::Zero(behind)));
        let live = self.live.clone();
        let go_on = move |result: Result<Vec<u8>>, last: Option<ByteRange>| {
            match (result, last) {
                (Err(error), _) => return sink.done(Err(error)),
                (Ok(mut bytes), Some(last)) => {
                    bytes.resize(last.len() as usize, 0);
                    sink.part(Part::Bytes { offset: last.start, bytes: &bytes });
                }
                (Ok(_), None) => {}
            }
            match front.is_empty() {
                true => sink.done(Ok(())),
                false => live.read(Read { ranges: front, epoch, urgency, sink }),
            }
        };
        match last.first().copied() {
            None => go_on(Ok(Vec::new()), None),
            Some(last) => {
                let known = last.clamp_to(length);
                let sink = Gather::new(known, move |result| go_on(result, Some(last)));
                self.live.read(Read { ranges: vec![known], epoch, urgency, sink });
            }
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
