//! Putting what was flushed in its place in the file.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use super::journaled::Journaled;
use super::view::{Committed, ZERO};
use crate::error::{Error, ErrorKind, Result};

/// How much is copied at once, in bytes.
const RUN: u64 = 1 << 20;

/// The shortest and the longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// From this size on, an area gives its room back when it is not needed any more.
const KEEP: u64 = 64 << 20;

impl Journaled {
    /// The life of the thread that puts epochs in their places, until the store is closed. What is not in
    /// its place then is put there when the file is opened again.
    pub(super) fn run(&self) {
        let mut pause = PAUSE.0;
        loop {
            {
                let mut view = self.view();
                while !view.placing && !self.is_closed() {
                    view = self.moved.wait(view).expect("no holder panics");
                }
                if self.is_closed() {
                    return;
                }
            }
            match self.apply() {
                Ok(()) => pause = PAUSE.0,
                Err(_) if self.is_closed() => return,
                Err(error) => {
                    let mut view = self.view();
                    if view.trouble.is_none() {
                        tracing::error!(%error, "what was flushed cannot be put in its place; it is tried again");
                    }
                    view.trouble = Some(error);
                    self.moved.notify_all();
                    let closed = self.moved.wait_timeout_while(view, pause, |_| !self.is_closed());
                    drop(closed.expect("no holder panics"));
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    /// Ends the thread.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(self.view());
        self.moved.notify_all();
    }

    /// Waits until what was flushed is in its place in the file.
    pub(super) fn settle(&self) -> Result<()> {
        let mut view = self.view();
        while view.placing && !self.is_closed() {
            if let Some(trouble) = &view.trouble {
                return Err(trouble.clone());
            }
            view = self.moved.wait(view).expect("no holder panics");
        }
        Ok(())
    }

    /// Puts the newest epoch in its place.
    pub(super) fn apply(&self) -> Result<()> {
        let committed = self.view().committed.clone();
        if let Some(committed) = committed {
            self.place(&committed)?;
            let mut view = self.view();
            view.placed = committed.length;
            view.committed = None;
            view.release_images();
            drop(view);
            self.free(&committed)?;
        } else {
            // It is there, but the journal could not be told.
            self.say_placed(false)?;
        }
        let mut view = self.view();
        view.trouble = None;
        view.placing = false;
        self.moved.notify_all();
        Ok(())
    }

    fn place(&self, committed: &Committed) -> Result<()> {
        let failed = |error| Error::io("cannot put what was flushed in its place in the file", &error);
        // Nothing of the file is replaced before it is known that it may be a mix.
        if self.sidecar.state().applying != committed.epoch {
            self.sidecar.update(true, |state| state.applying = committed.epoch)?;
        }
        self.keep_images(committed)?;
        // From here on, readers of older epochs take the images; those that began before must end.
        self.gate.wait();
        if self.data.len().map_err(failed)? > committed.cut {
            self.data.set_len(committed.cut).map_err(failed)?;
        }
        if self.data.len().map_err(failed)? != committed.length {
            self.data.set_len(committed.length).map_err(failed)?;
        }
        self.copy(committed)?;
        self.data.sync_all().map_err(failed)
    }

    /// What is in its place is not needed in the journal any more.
    fn free(&self, committed: &Committed) -> Result<()> {
        // Those who read from the journal must have ended before it is used again.
        self.gate.wait();
        let pages = committed.pages.values().filter(|slot| **slot != ZERO).count() as u64;
        let large = pages * PAGE_SIZE > KEEP;
        self.say_placed(large)?;
        if large {
            self.shrink(committed);
        }
        Ok(())
    }

    /// Says that the newest epoch is in its place. The next flush makes it durable, before the area is used
    /// again, where that is not asked for at once.
    fn say_placed(&self, durable: bool) -> Result<()> {
        let stamp = self.data.stamp();
        let stamp = stamp.map_err(|error| Error::io("cannot examine the file", &error))?;
        let (epoch, length) = {
            let view = self.view();
            (view.epoch, view.length)
        };
        let (token, flushed) = {
            let staged = self.staged();
            (staged.token, staged.flushed)
        };
        self.sidecar.update(durable, |state| {
            (state.applied, state.applying) = (epoch, 0);
            (state.stamp, state.length) = (stamp, length);
            // A writer that has begun meanwhile has flushed nothing yet.
            if state.token == token {
                state.flushed = flushed;
            }
        })
    }

    /// Keeps what is about to be replaced, for readers of older epochs.
    fn keep_images(&self, committed: &Committed) -> Result<()> {
        let (ranges, length) = {
            let mut view = self.view();
            if view.images.current() >= committed.epoch {
                // It was done before something failed.
                return Ok(());
            }
            if view.held.range(..committed.epoch).next().is_none() {
                view.images.commit(committed.epoch, Vec::new(), 0);
                view.release_images();
                return Ok(());
            }
            let pages = committed.pages.keys().map(|page| ByteRange::of_pages(*page..page + 1));
            let cut = (committed.cut < view.placed).then(|| ByteRange::new(committed.cut, view.placed));
            let ranges = pages.chain(cut).map(|range| range.clamp_to(view.placed));
            (ByteRange::union(ranges.filter(|range| !range.is_empty()).collect()), view.placed)
        };
        let total = ByteRange::total(&ranges);
        let mut images: Vec<(ByteRange, Arc<[u8]>)> = Vec::new();
        if total <= self.images {
            debug_assert!(ranges.iter().all(|range| range.end <= length));
            for range in ranges.iter().flat_map(|range| range.split(RUN)) {
                let mut bytes = vec![0; range.len() as usize];
                let read = self.data.read_exact_at(&mut bytes, range.start);
                read.map_err(|error| Error::io("cannot read what is to be replaced", &error))?;
                images.push((range, bytes.into()));
            }
        }
        let mut view = self.view();
        view.images.commit(committed.epoch, images, total);
        view.images.trim(self.images);
        Ok(())
    }

    /// Copies the pages of an epoch from the journal to the file.
    fn copy(&self, committed: &Committed) -> Result<()> {
        let failed = |error| Error::io("cannot put what was flushed in its place in the file", &error);
        let journal = self.sidecar.disk()?;
        let area = committed.area();
        let mut pages: Vec<(u64, u64)> = committed.pages.iter().map(|(page, slot)| (*page, *slot)).collect();
        pages.sort_unstable();
        let mut buffer = Vec::new();
        let mut rest = &pages[..];
        while let Some(&(first, slot)) = rest.first() {
            if self.is_closed() {
                return Err(Error::new(ErrorKind::Cancelled, "the store is closed"));
            }
            // Pages that follow each other in the file, and in the journal too.
            let follows = |pair: &&[(u64, u64)]| {
                let (one, next) = (pair[0], pair[1]);
                let slots = if slot == ZERO { next.1 == ZERO } else { one.1 + 1 == next.1 };
                one.0 + 1 == next.0 && slots
            };
            let most = if slot == ZERO { usize::MAX } else { (RUN / PAGE_SIZE) as usize };
            let run = (1 + rest.windows(2).take_while(follows).count()).min(most);
            rest = &rest[run..];
            let range = ByteRange::of_pages(first..first + run as u64).clamp_to(committed.length);
            if slot == ZERO {
                self.data.punch(range).map_err(failed)?;
                continue;
            }
            buffer.resize(run * PAGE_SIZE as usize, 0);
            let slots = ByteRange::new(slot * PAGE_SIZE, (slot + run as u64) * PAGE_SIZE);
            let mut at = 0;
            for (place, length) in area.places(slots) {
                let piece = &mut buffer[at..at + length as usize];
                journal.read_exact_at(piece, place).map_err(|error| self.sidecar.failed("read", &error))?;
                at += length as usize;
            }
            self.data.write_all_at(&buffer[..range.len() as usize], range.start).map_err(failed)?;
        }
        Ok(())
    }

    /// Gives the room of an area back, which is not needed any more.
    fn shrink(&self, committed: &Committed) {
        let slots = committed.pages.values().filter(|slot| **slot != ZERO).max().map_or(0, |slot| slot + 1);
        let Some(journal) = self.sidecar.existing() else { return };
        for (place, length) in committed.area().places(ByteRange::new(0, slots * PAGE_SIZE)) {
            if let Err(error) = journal.punch(ByteRange::new(place, place + length)) {
                return tracing::debug!(%error, "the journal keeps its size");
            }
        }
    }
}
