//! A mapping that is written to, as a migration moves it.

use std::ops::Range;

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::ByteRange;

use super::WritableMapping;
use crate::engine::migration::Live;
use crate::error::{Error, Result};
use crate::sink::Part;
use crate::store::{Info, Read};

/// How much is copied at once.
const PIECE: u64 = 256 << 10;

/// The one who suspends the program sees to it that nothing writes to the memory while it is frozen: nothing else can.
impl Live for WritableMapping {
    fn info(&self) -> Info {
        Info { length: self.len(), ..self.region().info() }
    }

    fn read(&self, read: Read) {
        let length = self.len();
        let mut buffer = Vec::new();
        for range in read.ranges.iter().flat_map(|range| range.split(PIECE)) {
            let bytes = range.clamp_to(length);
            if !bytes.is_empty() {
                buffer.resize(bytes.len() as usize, 0);
                if let Err(error) = self.load(bytes, &mut buffer) {
                    return read.sink.done(Err(error));
                }
                read.sink.part(Part::Bytes { offset: bytes.start, bytes: &buffer });
            }
            let behind = ByteRange::new(bytes.end.max(range.start), range.end);
            if !behind.is_empty() {
                read.sink.part(Part::Zero(behind));
            }
        }
        read.sink.done(Ok(()));
    }

    fn track(&self) -> Result<()> {
        self.pusher.track();
        Ok(())
    }

    fn untrack(&self) {
        self.pusher.untrack();
    }

    fn take_written(&self, pages: &mut BitSet) -> Result<()> {
        self.pusher.take_tracked(pages)
    }

    fn prepare(&self) -> Result<()> {
        // So that there is little left to be flushed when it is frozen.
        self.freeze()
    }

    fn freeze(&self) -> Result<()> {
        match self.region().is_durable() {
            true => self.flush().map(drop),
            false => Ok(()),
        }
    }

    fn thaw(&self) {}

    fn keep(&self) -> Result<()> {
        self.flush().map(drop)
    }
}

impl WritableMapping {
    /// Copies bytes out without anybody's taking note of it: what was written counts as written still.
    fn load(&self, range: ByteRange, bytes: &mut [u8]) -> Result<()> {
        let pulled = range.clamp_to(self.puller.progress().length);
        self.puller.prefault(pulled)?;
        let range: Range<usize> = range.start as usize..range.end as usize;
        let loaded = self.memory.memory.mapping().load_ranges(&[range], bytes);
        loaded.map_err(|error| Error::io("cannot read the mapping", &error))
    }
}
