//! A mounted file, as a migration moves it.
//!
//! What programs have written is found in two steps: the kernel writes its dirty pages back to the mount
//! ([`write_back`](super::write_back)), and what has come to the mount is remembered by the
//! [`Pusher`](crate::engine::Pusher). Once programs are suspended, one more write-back brings everything; from then on
//! changes are refused.

use std::sync::{Arc, Mutex};

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::ByteRange;

use super::Shared;
use super::entries::Entry;
use super::write_back::WhichFile;
use crate::access::region_file::RegionFile;
use crate::engine::migration::Live;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Info, Part, Read, Sink, wait};

/// How much is read at once.
const PIECE: u64 = 1 << 20;

/// A mounted file that can be moved to another host.
pub(super) struct LiveFile {
    shared: Arc<Shared>,
    which: WhichFile,
    file: Arc<RegionFile>,
}

impl LiveFile {
    /// One that is written to.
    pub(super) fn new(shared: &Arc<Shared>, entry: &Entry, file: Arc<RegionFile>) -> Result<Self> {
        if !file.is_writable() {
            let text = format!("'{}' is mounted for reading, and cannot be moved", entry.region);
            return Err(Error::new(ErrorKind::Denied, text));
        }
        let place = shared.place.get();
        let place = place.ok_or_else(|| Error::new(ErrorKind::Cancelled, "it is not mounted"))?;
        let (mount, path) = (place.path.clone(), shared.entries.path_of(entry).into());
        Ok(Self { shared: shared.clone(), which: WhichFile { ino: entry.ino, mount, path }, file })
    }
}

impl Live for LiveFile {
    fn info(&self) -> Info {
        Info { length: self.file.length(), ..self.file.region().info() }
    }

    fn read(&self, read: Read) {
        let pieces: Vec<ByteRange> = read.ranges.iter().flat_map(|range| range.split(PIECE)).collect();
        if pieces.is_empty() {
            return read.sink.done(Ok(()));
        }
        let answer = Arc::new(Pieces { sink: read.sink, left: Mutex::new((pieces.len(), Ok(()))) });
        for piece in pieces {
            let answer = answer.clone();
            self.file.peek(piece, read.urgency, Box::new(move |bytes| answer.came(piece, bytes)));
        }
    }

    fn track(&self) -> Result<()> {
        self.file.pusher()?.track();
        self.shared.write_backs.start(&self.which)
    }

    fn untrack(&self) {
        self.shared.write_backs.end(self.which.ino);
        if let Ok(pusher) = self.file.pusher() {
            pusher.untrack();
        }
    }

    fn take_written(&self, pages: &mut BitSet) -> Result<()> {
        self.file.pusher()?.take_tracked(pages)
    }

    fn freeze(&self) -> Result<()> {
        self.shared.write_backs.write_back(&self.which)?;
        self.file.freeze();
        Ok(())
    }

    fn thaw(&self) {
        self.file.thaw();
    }

    fn keep(&self) -> Result<()> {
        wait(|done| self.file.flush(done)).map(drop)
    }
}

impl Drop for LiveFile {
    fn drop(&mut self) {
        self.untrack();
    }
}

/// The answer to a read of several pieces.
struct Pieces {
    sink: Arc<dyn Sink>,
    /// How many have not come, and what has failed.
    left: Mutex<(usize, Result<()>)>,
}

impl Pieces {
    fn came(&self, piece: ByteRange, bytes: Result<&[u8]>) {
        let result = bytes.map(|bytes| {
            let end = piece.start + bytes.len() as u64;
            if !bytes.is_empty() {
                self.sink.part(Part::Bytes { offset: piece.start, bytes });
            }
            if end < piece.end {
                // The file ends there.
                self.sink.part(Part::Zero(ByteRange::new(end, piece.end)));
            }
        });
        let result = {
            let (left, so_far) = &mut *self.left.lock().expect("no holder panics");
            *left -= 1;
            if so_far.is_ok() {
                *so_far = result;
            }
            (*left == 0).then(|| so_far.clone())
        };
        if let Some(result) = result {
            self.sink.done(result);
        }
    }
}
