//! Reads and streams: what the image has comes from there, the rest from the store, and into the image when it
//! has been placed.
//!
//! What comes from the image is checked page by page before it goes anywhere. A page that does not fit its
//! entry, for whatever reason, is taken for one that is not there.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use pagewire_core::cache::{self, Entry, hash_page};
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use super::local::{Local, Pulled, entries, touching};
use super::unpushed::Unpushed;
use crate::error::{Error, Result};
use crate::store::disk::Disk;
use crate::store::{Part, Read, Sink, Store, Stream, Urgency};

/// The longest piece that is read at once, in bytes.
const PIECE: u64 = 256 << 10;

thread_local! {
    /// Entries and bytes of one piece. They are taken out while in use, so that a sink that reads again gets
    /// others.
    static BUFFERS: Cell<(Vec<u8>, Vec<u8>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// The end of an answer that has several sources.
pub(super) struct Joined {
    sink: Arc<dyn Sink>,
    state: Mutex<(usize, Option<Error>)>,
}

impl Joined {
    /// One whose sources are to be [begun](Joined::begin); the one who makes it counts as the first.
    pub(super) fn new(sink: Arc<dyn Sink>) -> Arc<Self> {
        Arc::new(Self { sink, state: Mutex::new((1, None)) })
    }

    pub(super) fn begin(&self) {
        self.state.lock().expect("no holder panics").0 += 1;
    }

    pub(super) fn end(&self, result: Result<()>) {
        let end = {
            let mut state = self.state.lock().expect("no holder panics");
            state.0 -= 1;
            if let Err(error) = result {
                state.1.get_or_insert(error);
            }
            if state.0 > 0 {
                return;
            }
            state.1.take().map_or(Ok(()), Err)
        };
        self.sink.done(end);
    }
}

/// Passes on what the store answers, and keeps it.
pub(super) struct Filling {
    pub(super) local: Arc<Local>,
    pub(super) at: Pulled,
    pub(super) urgency: Urgency,
    pub(super) joined: Arc<Joined>,
}

impl Sink for Filling {
    fn part(&self, part: Part<'_>) {
        // Counted first: whoever sees the bytes finds them counted.
        self.local.remote_bytes.fetch_add(part.range().len(), Ordering::Relaxed);
        self.joined.sink.part(part);
        self.local.offer(&self.at, &part, self.urgency);
    }

    fn done(&self, result: Result<()>) {
        self.joined.end(result);
    }
}

/// What one read or stream needs to be answered from the image.
#[derive(Clone)]
pub(super) struct Answer {
    pub(super) local: Arc<Local>,
    pub(super) store: Arc<dyn Store>,
    pub(super) at: Pulled,
    /// The epoch by which the store is asked.
    pub(super) epoch: u64,
    pub(super) urgency: Urgency,
    pub(super) joined: Arc<Joined>,
}

impl Answer {
    /// Asks the store for `ranges`.
    pub(super) fn ask(&self, ranges: Vec<ByteRange>) {
        if ranges.is_empty() {
            return;
        }
        self.joined.begin();
        self.store.read(Read { ranges, epoch: self.epoch, urgency: self.urgency, sink: self.sink() });
    }

    /// Answers pieces, each within a page, from the file of unpushed changes; those that were flushed meanwhile
    /// from the store.
    pub(super) fn answer_kept(&self, unpushed: &Mutex<Unpushed>, pieces: &[ByteRange]) -> Result<()> {
        let left = super::recover::answer(&self.local, unpushed, pieces, &*self.joined.sink)?;
        self.ask(left);
        Ok(())
    }

    pub(super) fn sink(&self) -> Arc<Filling> {
        let Self { local, at, urgency, joined, .. } = self;
        Arc::new(Filling { local: local.clone(), at: *at, urgency: *urgency, joined: joined.clone() })
    }

    /// Answers pieces from the image: as far as they are in memory, where nobody may wait. What turns out not
    /// to be there is asked of the store. Answers what is left for somebody who may wait.
    pub(super) fn answer(&self, pieces: &[ByteRange], wait: bool, ended: &AtomicBool) -> Vec<ByteRange> {
        let (mut left, mut bad) = (Vec::new(), Vec::new());
        for piece in pieces.iter().flat_map(|range| range.split(PIECE)) {
            if ended.load(Ordering::Acquire) {
                break;
            }
            match self.local.answer(&self.at, piece, wait, &mut bad, &*self.joined.sink) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => left.push(piece),
                Err(error) => {
                    let cache = self.local.path.display();
                    tracing::debug!(%error, "cannot read bytes {piece} of the cache {cache}");
                    bad.push(piece);
                }
            }
        }
        if !bad.is_empty() {
            let mut view = self.local.view();
            if view.generation == self.at.generation {
                bad.iter().for_each(|range| view.forget(touching(*range)));
            }
            drop(view);
            tracing::debug!(
                bytes = ByteRange::total(&bad),
                "what is cached does not check out; it is pulled"
            );
            self.ask(bad);
        }
        left
    }
}

impl Local {
    /// Answers one piece: the pages that fit. The others are added to `bad`.
    fn answer(
        &self,
        at: &Pulled,
        piece: ByteRange,
        wait: bool,
        bad: &mut Vec<ByteRange>,
        sink: &dyn Sink,
    ) -> io::Result<()> {
        let (mut known, mut bytes) = BUFFERS.take();
        let result = self.check(at, piece, wait, &mut known, &mut bytes);
        let Ok((whole, fits)) = result else {
            BUFFERS.set((known, bytes));
            return result.map(drop);
        };
        let mut page = 0;
        while page < fits.len() {
            let run = fits[page..].iter().take_while(|fit| **fit == fits[page]).count();
            let first = whole.start / PAGE_SIZE + page as u64;
            let range = ByteRange::of_pages(first..first + run as u64).intersect(piece);
            let from = (range.start - whole.start) as usize;
            if fits[page] != Fit::Bad {
                self.cached_bytes.fetch_add(range.len(), Ordering::Relaxed);
            }
            match fits[page] {
                Fit::Bad => bad.push(range),
                Fit::Zero => sink.part(Part::Zero(range)),
                Fit::Bytes => {
                    let bytes = &bytes[from..from + range.len() as usize];
                    sink.part(Part::Bytes { offset: range.start, bytes });
                }
            }
            page += run;
        }
        BUFFERS.set((known, bytes));
        Ok(())
    }

    /// Reads the pages that a piece touches, and tells of each whether it is what it should be.
    fn check(
        &self,
        at: &Pulled,
        piece: ByteRange,
        wait: bool,
        known: &mut Vec<u8>,
        bytes: &mut Vec<u8>,
    ) -> io::Result<(ByteRange, Vec<Fit>)> {
        let pages = touching(piece);
        let whole = ByteRange::of_pages(pages.clone()).clamp_to(at.length);
        let place = cache::entries_at(pages.clone());
        known.resize(place.len() as usize, 0);
        fill(&*self.state, known, place.start, wait)?;
        let entries: Vec<Entry> = entries(known).collect();
        let nothing = hash_page(&[]);
        let zero = |(page, entry): (u64, &Entry)| entry.fits(at.salt, page, at.epoch, nothing);
        if pages.clone().zip(&entries).all(zero) {
            return Ok((whole, vec![Fit::Zero; entries.len()]));
        }
        bytes.resize(whole.len() as usize, 0);
        fill(&*self.image, bytes, whole.start, wait)?;
        let fits = pages.zip(&entries).zip(bytes.chunks(PAGE_SIZE as usize));
        let fits = fits.map(|((page, entry), bytes)| match hash_page(bytes) {
            hash if entry.fits(at.salt, page, at.epoch, hash) => Fit::Bytes,
            _ if zero((page, entry)) => Fit::Zero,
            _ => Fit::Bad,
        });
        Ok((whole, fits.collect()))
    }

    /// Looks at what nobody has looked at yet of what is there, for as long as it is to `go_on`. Answers whether all
    /// of the region is.
    pub(super) fn check_rest(&self, go_on: impl Fn() -> bool) -> Result<bool> {
        let mut from = 0;
        loop {
            let (at, run) = {
                let view = self.view();
                let Some(page) = view.next_unchecked(from).filter(|_| go_on()) else {
                    return Ok(view.is_complete());
                };
                from = page;
                let end = view.present.next_gap(page).unwrap_or(view.present.len());
                let end = view.checked.next_member(page).unwrap_or(end).min(end);
                (view.pulled(), page..end.min(page + PIECE / PAGE_SIZE))
            };
            let (mut known, mut bytes) = (Vec::new(), Vec::new());
            let piece = ByteRange::of_pages(run.clone()).clamp_to(at.length);
            let fits = match self.check(&at, piece, true, &mut known, &mut bytes) {
                Ok((_, fits)) => fits,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    vec![Fit::Bad; (run.end - run.start) as usize]
                }
                Err(error) => {
                    let text = format!("cannot read the cache {}", self.path.display());
                    return Err(Error::io(text, &error));
                }
            };
            let mut view = self.view();
            if view.generation != at.generation {
                from = 0;
                continue;
            }
            let zeroes = bytes.is_empty();
            for (page, fit) in run.zip(fits) {
                match fit {
                    Fit::Bytes => {
                        view.checked.insert(page);
                    }
                    // The entry says zeroes. What is in the image is a question of its own.
                    Fit::Zero if zeroes && self.is_hole(page, at.length) => {
                        view.checked.insert(page);
                    }
                    _ => view.forget(page..page + 1),
                }
            }
        }
    }

    fn is_hole(&self, page: u64, length: u64) -> bool {
        let range = ByteRange::of_pages(page..page + 1).clamp_to(length);
        let mut bytes = vec![0; range.len() as usize];
        let read = self.image.read_exact_at(&mut bytes, range.start);
        read.is_ok() && bytes.iter().all(|byte| *byte == 0)
    }
}

/// What a page of the image turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Bytes,
    Zero,
    Bad,
}

/// Fills a buffer; from memory alone where nobody may wait.
fn fill(disk: &dyn Disk, bytes: &mut [u8], at: u64, wait: bool) -> io::Result<()> {
    if wait {
        return disk.read_exact_at(bytes, at);
    }
    match disk.read_nowait(bytes, at)? {
        got if got == bytes.len() => Ok(()),
        // The edge of what is in memory, or the end of the file: somebody who may wait finds out.
        _ => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// A stream of which a part comes from the image.
pub(super) struct CachedStream {
    pub(super) ended: Arc<AtomicBool>,
    pub(super) remote: Option<Box<dyn Stream>>,
    pub(super) asked: Vec<ByteRange>,
}

impl Stream for CachedStream {
    fn steer(&self, ranges: &[ByteRange]) {
        let Some(remote) = &self.remote else { return };
        let wanted = ranges.iter().flat_map(|range| self.asked.iter().map(|asked| asked.intersect(*range)));
        let wanted: Vec<ByteRange> = wanted.filter(|range| !range.is_empty()).collect();
        if !wanted.is_empty() {
            remote.steer(&wanted);
        }
    }

    fn cancel(&self) {
        self.ended.store(true, Ordering::Release);
        if let Some(remote) = &self.remote {
            remote.cancel();
        }
    }
}

impl Drop for CachedStream {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// The ranges of all groups in at most `most` pieces, if there are not more groups than that: those of one group
/// that are close to each other become one.
pub(super) fn coalesce(mut groups: Vec<Vec<ByteRange>>, most: usize) -> Vec<ByteRange> {
    let mut gap = PAGE_SIZE;
    while groups.iter().map(Vec::len).sum::<usize>() > most && groups.iter().any(|group| group.len() > 1) {
        for group in &mut groups {
            group.dedup_by(|next, last| {
                let close = next.start - last.end <= gap;
                if close {
                    last.end = next.end;
                }
                close
            });
        }
        gap = gap.saturating_mul(2);
    }
    groups.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_fewer_and_leave_nothing_out() {
        let range = |from: u64, to: u64| ByteRange::new(from * PAGE_SIZE, to * PAGE_SIZE);
        let scattered: Vec<_> = (0..50).map(|page| range(page * 2, page * 2 + 1)).collect();
        let groups = vec![scattered, vec![range(210, 220)], Vec::new()];
        assert_eq!(coalesce(groups.clone(), 51), groups.concat());
        assert_eq!(coalesce(groups.clone(), 50), [range(0, 99), range(210, 220)]);
        assert_eq!(coalesce(groups, 1), [range(0, 99), range(210, 220)], "there is one for each group");
    }
}
