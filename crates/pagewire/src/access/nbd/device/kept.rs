//! A region that a device writes to, as the store behind its export: what was written is kept until it is flushed.
//!
//! The kernel's client forgets what was acknowledged, and knows nothing of a peer that was restarted. So it lies in a
//! [`RegionFile`] until the region has flushed it, and is pushed again when a peer has lost it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pagewire_core::chunk::ByteRange;

use crate::access::region_file::RegionFile;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Capabilities, Completion, Flush, Info, Part, Read, Stage, Store};

/// How much is made zeroes at once, in bytes: each page of them is known until it is flushed.
const ZEROES: u64 = 64 << 20;

/// The store.
pub(super) struct KeptStore(pub(super) Arc<RegionFile>);

impl Store for KeptStore {
    fn info(&self) -> Info {
        // Nobody reads it at an epoch but the one who writes, at what it has written.
        let capabilities = Capabilities { history: true, ..Capabilities::default() };
        Info { length: self.0.length(), capabilities, ..self.0.region().info() }
    }

    fn read(&self, read: Read) {
        let Read { ranges, urgency, sink, .. } = read;
        let (count, told) = (ranges.len(), sink.clone());
        let ends = Ends::of(count, Box::new(move |result| told.done(result)));
        for range in ranges {
            let (sink, ends) = (sink.clone(), ends.clone());
            let take = move |bytes: Result<&[u8]>| {
                let read = bytes.and_then(|bytes| match bytes.len() as u64 == range.len() {
                    true => {
                        sink.part(Part::Bytes { offset: range.start, bytes });
                        Ok(())
                    }
                    false => Err(Error::new(ErrorKind::OutOfRange, format!("bytes {range} pass the end"))),
                });
                ends.end(read);
            };
            self.0.read(range, urgency, Box::new(take));
        }
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        let ends = Ends::of(ranges.len(), done);
        let mut rest = bytes;
        for range in ranges {
            let (these, behind) = rest.split_at(range.len() as usize);
            rest = behind;
            let ends = ends.clone();
            self.0.write(range.start, these, Box::new(move |result| ends.end(result)));
        }
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        let pieces = ranges.iter().flat_map(|range| range.split(ZEROES)).collect();
        zero(&self.0, pieces, done);
    }

    fn flush(&self, flush: Flush) {
        self.0.flush(flush.done);
    }

    fn stage(&self) -> Stage {
        Stage { length: self.0.length(), ..Stage::default() }
    }

    fn round_trip(&self) -> Duration {
        self.0.region().round_trip()
    }
}

/// Writes zeroes piece by piece, so that each waits until there is room for it.
fn zero(file: &Arc<RegionFile>, mut pieces: VecDeque<ByteRange>, done: Completion) {
    let Some(piece) = pieces.pop_front() else { return done(Ok(())) };
    let rest = file.clone();
    let go_on: Completion = Box::new(move |result| match result {
        Ok(()) => zero(&rest, pieces, done),
        Err(error) => done(Err(error)),
    });
    file.zero(piece, go_on);
}

/// The ends of several parts of one request: told when all have ended, with the first error.
struct Ends(Mutex<(usize, Result<()>, Option<Completion>)>);

impl Ends {
    fn of(count: usize, done: Completion) -> Arc<Self> {
        if count == 0 {
            done(Ok(()));
            return Arc::new(Self(Mutex::new((0, Ok(()), None))));
        }
        Arc::new(Self(Mutex::new((count, Ok(()), Some(done)))))
    }

    fn end(&self, result: Result<()>) {
        let mut state = self.0.lock().expect("no holder panics");
        let (left, first, done) = &mut *state;
        *left -= 1;
        if first.is_ok() {
            *first = result;
        }
        if *left > 0 {
            return;
        }
        let (first, done) = (first.clone(), done.take());
        drop(state);
        if let Some(done) = done {
            done(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_request_ends_once_with_its_first_error() {
        let told = Arc::new(AtomicU32::new(0));
        let (count, result) = (told.clone(), Arc::new(Mutex::new(None)));
        let seen = result.clone();
        let done: Completion = Box::new(move |result| {
            count.fetch_add(1, Ordering::Relaxed);
            *seen.lock().unwrap() = Some(result);
        });
        let ends = Ends::of(3, done);
        ends.end(Ok(()));
        ends.end(Err(Error::new(ErrorKind::NoSpace, "the first")));
        assert_eq!(told.load(Ordering::Relaxed), 0);
        ends.end(Err(Error::new(ErrorKind::Io, "the second")));
        assert_eq!(told.load(Ordering::Relaxed), 1);
        let result = result.lock().unwrap().take().unwrap();
        assert_eq!(result.unwrap_err().kind(), ErrorKind::NoSpace);
    }
}
