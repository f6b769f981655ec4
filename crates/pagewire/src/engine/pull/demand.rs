//! What is asked for because somebody waits for it, or is about to.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pagewire_core::chunk::{ByteRange, ChunkIndex, PAGE_SIZE};

use super::fill::Fill;
use super::{Fault, Inner, NOWHERE};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Read, Sink, Urgency};

/// What is missing behind where the background pull is, by at most so many bytes, is on its way on
/// another connection: they are not equally fast, and each has a part of the window in flight.
const BEHIND: u64 = 64 << 20;

/// What is so far ahead of it, at most, is on its way or about to be.
const AHEAD: u64 = 4 << 20;

/// How long a fault waits for what is about to come in the background before it asks for it itself.
/// On a busy machine the thread that has the bytes may have to wait for a processor for this long.
const SOON: Duration = Duration::from_millis(10);

/// From this round trip on, the page that somebody waits for is asked for before its chunk.
const LONG_WAY: Duration = Duration::from_millis(1);

impl Inner {
    pub(super) fn fault(self: &Arc<Self>, offset: u64) -> Fault {
        self.counters.faults.fetch_add(1, Ordering::Relaxed);
        let Some(chunk) = self.geometry.chunk_at(offset) else { return Fault::Handled };
        if let Some(trace) = &self.options.trace {
            trace.record(ByteRange::new(offset, offset + 1));
        }
        if self.is_there(offset) {
            return Fault::Handled;
        }
        // A program that reads along where the background pull is would ask for everything twice.
        let frontier = self.frontier.load(Ordering::Relaxed);
        let near = frontier.saturating_sub(BEHIND)..frontier.saturating_add(AHEAD);
        if frontier != NOWHERE && near.contains(&offset) && !self.asked.contains(chunk.0) {
            return Fault::Soon(Instant::now() + SOON);
        }
        if self.ahead.contains(chunk.0) {
            self.read_ahead(chunk);
            return Fault::Soon(Instant::now() + SOON);
        }
        self.demand_from(chunk, offset, Urgency::Demand);
        self.read_ahead(chunk);
        Fault::Handled
    }

    pub(super) fn overdue(self: &Arc<Self>, offset: u64) {
        if let Some(chunk) = self.geometry.chunk_at(offset)
            && !self.is_there(offset)
        {
            self.demand_from(chunk, offset, Urgency::Demand);
        }
    }

    /// Whether the page has come after the access and before the fault was read. Who waits for it is
    /// woken then.
    fn is_there(&self, offset: u64) -> bool {
        let page = offset / PAGE_SIZE;
        if !self.pages.contains(page) {
            return false;
        }
        match self.local.wake(self.geometry.range_of_pages(page..page + 1)) {
            Ok(there) => there,
            Err(error) => {
                self.check(Err(error));
                true
            }
        }
    }

    /// Asks for what is missing of a chunk, unless that was done.
    pub(super) fn demand(self: &Arc<Self>, chunk: ChunkIndex, urgency: Urgency) {
        self.demand_from(chunk, self.geometry.range_of(chunk).start, urgency);
    }

    /// The same for somebody who waits for the page at `offset`, which is in the chunk.
    fn demand_from(self: &Arc<Self>, chunk: ChunkIndex, offset: u64, urgency: Urgency) {
        if urgency == Urgency::Background {
            self.ahead.insert(chunk.0);
        }
        let is_first = self.asked.insert(chunk.0);
        // Whoever waits does not wait behind pushes and bulk: it is asked for once more.
        let overtakes = urgency == Urgency::Demand && self.ahead.remove(chunk.0);
        if !is_first && !overtakes {
            return;
        }
        let mut missing = self.missing(self.geometry.range_of(chunk));
        // A chunk may take several round trips where the link is long and has been idle, since TCP
        // starts slowly; one page never does. On a short link it would only be one more frame.
        if urgency == Urgency::Demand && self.pin.region().round_trip() >= LONG_WAY {
            missing = page_first(
                &missing,
                self.geometry.range_of_pages(offset / PAGE_SIZE..offset / PAGE_SIZE + 1),
            );
        }
        if urgency == Urgency::Demand {
            self.counters.demand_reads.fetch_add(1, Ordering::Relaxed);
        }
        let sink = Arc::new(Fill::new(self, chunk, urgency));
        if missing.is_empty() {
            return sink.done(Ok(()));
        }
        let epoch = self.pin.epoch();
        self.pin.region().read(Read { ranges: missing, epoch, urgency, sink });
    }

    /// An application that reads on and on is to find the next chunks there.
    fn read_ahead(self: &Arc<Self>, chunk: ChunkIndex) {
        let ahead = {
            let mut readahead = self.readahead.lock().expect("no holder panics");
            readahead.on_fault(chunk, self.geometry.chunk_count())
        };
        if ahead.is_empty() {
            return;
        }
        let stream = self.stream.lock().expect("no holder panics");
        if let Some(stream) = &*stream {
            return stream.steer(&[self.geometry.range_of_chunks(ahead)]);
        }
        drop(stream);
        // A store without streams answers on this thread, which must not wait for a disk.
        let streams = self.pin.info().capabilities.stream;
        let urgency = if streams { Urgency::Background } else { Urgency::Demand };
        for chunk in ahead {
            self.demand(ChunkIndex(chunk), urgency);
        }
    }

    pub(super) fn prefault(self: &Arc<Self>, range: ByteRange) -> Result<()> {
        let chunks = self.geometry.touching(range);
        for chunk in chunks.clone() {
            self.failed.lock().expect("no holder panics").remove(&chunk);
            if !self.chunks.contains(chunk) {
                self.demand(ChunkIndex(chunk), Urgency::Demand);
            }
        }
        let pages = self.geometry.pages_touching(range);
        let answer = self.counters.wait(None, || {
            if self.are_there(pages.clone()) {
                return Some(Ok(()));
            }
            if let Some(error) = self.given_up() {
                return Some(Err(error));
            }
            if self.is_closed() {
                return Some(Err(Error::new(ErrorKind::Cancelled, "the copy was closed")));
            }
            let failed = self.failed.lock().expect("no holder panics");
            failed.range(chunks.clone()).next().map(|(_, error)| Err(error.clone()))
        });
        answer.expect("without a deadline there is an answer")
    }
}

/// `ranges` in another order: `page` first, if it is in one of them, then the rest.
fn page_first(ranges: &[ByteRange], page: ByteRange) -> Vec<ByteRange> {
    let mut ordered = vec![page];
    ordered.retain(|page| ranges.iter().any(|range| range.contains(*page)));
    for range in ranges {
        // The bytes behind it are likelier to be wanted next.
        let rest = range.without(page).into_iter().rev();
        ordered.extend(rest.filter(|range| !range.is_empty()));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_that_is_waited_for_comes_first_and_nothing_is_lost_or_doubled() {
        let range = |start: u64, end: u64| ByteRange::new(start * PAGE_SIZE, end * PAGE_SIZE);
        assert_eq!(page_first(&[range(0, 16)], range(5, 6)), [range(5, 6), range(6, 16), range(0, 5)]);
        assert_eq!(page_first(&[range(0, 16)], range(0, 1)), [range(0, 1), range(1, 16)]);
        assert_eq!(page_first(&[range(0, 16)], range(15, 16)), [range(15, 16), range(0, 15)]);
        assert_eq!(
            page_first(&[range(0, 2), range(4, 6)], range(4, 5)),
            [range(4, 5), range(0, 2), range(5, 6)]
        );
        // It has come by another way meanwhile.
        assert_eq!(page_first(&[range(0, 2), range(4, 6)], range(3, 4)), [range(0, 2), range(4, 6)]);
        // The last page of a region may be short.
        let short = ByteRange::new(4 * PAGE_SIZE, 4 * PAGE_SIZE + 5);
        assert_eq!(page_first(&[ByteRange::new(0, short.end)], short), [short, range(0, 4)]);
    }
}
