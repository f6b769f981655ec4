//! Writing to a region as a file, and flushing it: what was written stands in front of the store until then.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use super::answer::{Asked, ReadDone};
use super::freezing::Change;
use super::unflushed::Unflushed;
use super::{Access, RegionFile};
use crate::engine::{PushOptions, Pusher, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Completion, FlushDone, Urgency};

/// How many bytes may be unflushed.
const ROOM: Room = Room { flush_above: 64 << 20, most: 128 << 20 };

/// From so many written bytes on they are pushed at once.
const PUSH_ABOVE: u64 = 4 << 20;

/// What is written to a file, and where it goes.
pub(super) struct Writing {
    pub(super) pusher: Arc<Pusher>,
    pub(super) unflushed: Arc<Unflushed>,
    /// None where only programs flush, so that what they flush together becomes visible together.
    room: Option<Room>,
}

/// How many bytes may be unflushed.
#[derive(Clone, Copy)]
struct Room {
    /// From so many on the file is flushed by itself.
    flush_above: u64,
    /// With so many, whoever writes waits.
    most: u64,
}

/// What is called with the bytes of several ranges.
type PagesDone = Box<dyn FnOnce(Result<Vec<Vec<u8>>>) + Send>;

impl RegionFile {
    fn writing(&self) -> Result<&Writing> {
        match &self.access {
            Access::Write(writing) => Ok(writing),
            Access::Read(_) => Err(Error::new(ErrorKind::Denied, "the file is mounted for reading")),
        }
    }

    /// Who pushes what is written.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Denied`] for a file that is read.
    pub(in crate::access) fn pusher(&self) -> Result<&Pusher> {
        self.writing().map(|writing| &*writing.pusher)
    }

    /// Writes `bytes` at `offset`; the file grows where they pass its end. They are flushed by
    /// [`RegionFile::flush`].
    ///
    /// `done` is told [`ErrorKind::NoSpace`] past the capacity, [`ErrorKind::Fenced`] once somebody else writes.
    pub(in crate::access) fn write(self: &Arc<Self>, offset: u64, bytes: &[u8], done: Completion) {
        let range = ByteRange::new(offset, offset.saturating_add(bytes.len() as u64));
        let (writing, done) = match self.begin_change(range.end) {
            Ok((writing, change)) => (writing, change.until(done)),
            Err(error) => return done(Err(error)),
        };
        self.counters.written_bytes.fetch_add(range.len(), Ordering::Relaxed);
        let incomplete = writing.unflushed.write(offset, bytes, self.length());
        if incomplete.is_empty() {
            return writing.wrote(done);
        }
        let missing: Vec<ByteRange> =
            incomplete.iter().map(|part| ByteRange::of_pages(part.page..part.page + 1)).collect();
        let this = self.clone();
        let then: PagesDone = Box::new(move |pages| {
            let Ok(writing) = this.writing() else { return };
            match pages {
                Ok(pages) => {
                    for (part, rest) in incomplete.iter().zip(pages) {
                        writing.unflushed.complete(part, Some(&rest));
                    }
                    writing.wrote(done);
                }
                Err(error) => {
                    incomplete.iter().for_each(|part| writing.unflushed.complete(part, None));
                    done(Err(error));
                }
            }
        });
        self.read_pages(missing, Vec::new(), then);
    }

    /// Reads ranges one after the other, and calls `done` with the bytes of each.
    fn read_pages(self: &Arc<Self>, ranges: Vec<ByteRange>, mut before: Vec<Vec<u8>>, done: PagesDone) {
        let Some(range) = ranges.get(before.len()) else { return done(Ok(before)) };
        let range = range.clamp_to(self.length());
        let this = self.clone();
        let take: ReadDone = Box::new(move |bytes| match bytes {
            Ok(bytes) => {
                before.push(bytes.to_vec());
                this.read_pages(ranges, before, done);
            }
            Err(error) => done(Err(error)),
        });
        if range.is_empty() {
            return take(Ok(&[]));
        }
        self.submit_read(range, Asked { urgency: Urgency::Demand, is_noted: true }, take);
    }

    /// Writes zeroes to `range`, as far as it lies within the file.
    pub(in crate::access) fn zero(self: &Arc<Self>, range: ByteRange, done: Completion) {
        let (writing, done) = match self.begin_change(0) {
            Ok((writing, change)) => (writing, change.until(done)),
            Err(error) => return done(Err(error)),
        };
        let length = self.length();
        let range = range.clamp_to(length);
        // Of a last page that is short, all that there is is a whole page.
        let end = if range.end == length { range.end.div_ceil(PAGE_SIZE) } else { range.end / PAGE_SIZE };
        let start = range.start.div_ceil(PAGE_SIZE);
        if range.is_empty() {
            return done(Ok(()));
        }
        if start >= end {
            return self.write(range.start, &vec![0; range.len() as usize], done);
        }
        writing.unflushed.zero(start..end);
        let (front, back) = (
            ByteRange::new(range.start, start * PAGE_SIZE),
            ByteRange::new((end * PAGE_SIZE).min(range.end), range.end),
        );
        let this = self.clone();
        let then: Completion = Box::new(move |result| match (result, this.writing()) {
            (Ok(()), Ok(_)) if !back.is_empty() => {
                this.write(back.start, &vec![0; back.len() as usize], done);
            }
            (Ok(()), Ok(writing)) => writing.wrote(done),
            (Err(error), _) | (_, Err(error)) => done(Err(error)),
        });
        match front.is_empty() {
            true => then(Ok(())),
            false => self.write(front.start, &vec![0; front.len() as usize], then),
        }
    }

    /// A change that reaches up to `end` begins.
    fn begin_change(self: &Arc<Self>, end: u64) -> Result<(&Writing, Change)> {
        let writing = self.writing()?;
        let change = self.begin()?;
        match writing.pusher.over() {
            Some(error) => Err(error),
            None => writing.pusher.grow(end).map(|()| (writing, change)),
        }
    }

    /// Changes the length: bytes behind a new end are gone, those up to a later end are zeroes.
    pub(in crate::access) fn set_length(self: &Arc<Self>, length: u64, done: Completion) {
        let (writing, done) = match self.begin_change(0) {
            Ok((writing, change)) => (writing, change.until(done)),
            Err(error) => return done(Err(error)),
        };
        let this = self.clone();
        writing.pusher.submit_set_length(
            length,
            Box::new(move |result| {
                if let (Ok(()), Ok(writing)) = (&result, this.writing()) {
                    // On the pusher's thread, which looks for nothing behind the end any more.
                    writing.unflushed.cut(length);
                    let end = this.read.len();
                    this.read.remove_range((length / PAGE_SIZE).min(end)..end);
                }
                done(result);
            }),
        );
    }

    /// Makes the file at least so long, with zeroes.
    pub(in crate::access) fn grow(self: &Arc<Self>, length: u64) -> Result<()> {
        self.begin_change(length).map(drop)
    }

    /// Flushes everything that was written before the call: see [`Pusher::flush`].
    pub(in crate::access) fn flush(&self, done: FlushDone) {
        match self.writing() {
            Ok(writing) => writing.pusher.submit_flush(done),
            Err(_) => done(Ok(self.region.info())),
        }
    }
}

impl Writing {
    pub(super) fn start(writer: Writer, push: &PushOptions, atomic: bool) -> Result<Self> {
        let capacity = writer.region().info().capacity;
        let unflushed = Arc::new(Unflushed::default());
        let push = PushOptions { max_dirty: PUSH_ABOVE, ..push.clone() };
        let pusher = Arc::new(Pusher::start(writer, unflushed.clone(), capacity, push)?);
        Ok(Self { pusher, unflushed, room: (!atomic).then_some(ROOM) })
    }

    /// Something was written: has it pushed, flushes if there is much, and holds up who writes if there is too
    /// much.
    fn wrote(&self, done: Completion) {
        if self.unflushed.dirty_bytes() >= PUSH_ABOVE {
            self.pusher.hurry();
        }
        let bytes = self.unflushed.bytes();
        match self.room {
            Some(room) if bytes >= room.most => {
                self.unflushed.when_below(room.most, done);
                self.flush_soon();
            }
            Some(room) if bytes >= room.flush_above => {
                self.flush_soon();
                done(Ok(()));
            }
            _ => done(Ok(())),
        }
    }

    /// One flush for many writes: the others find it asked for.
    fn flush_soon(&self) {
        if !self.unflushed.ask_for_flush() {
            return;
        }
        let unflushed = self.unflushed.clone();
        self.pusher.submit_flush(Box::new(move |result| {
            if let Err(error) = &result {
                tracing::warn!(%error, "what was written could not be flushed");
            }
            // Who waits for room is told of a failure, as is who flushes.
            unflushed.release(&result.map(drop));
        }));
    }
}

#[cfg(test)]
mod tests;
