//! The thread that writes to the image and its state: what was pulled, what was written, and the steps from
//! epoch to epoch. Core's [`cache`](pagewire_core::cache) says what has to be durable before what.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use pagewire_core::bitmap::BitSet;
use pagewire_core::cache::{self, ENTRIES, Entry, Head, hash_page};
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use super::local::{Job, Local, Move, Pulled, pages_of, touching};
use super::unpushed::Unpushed;
use crate::error::Error;
use crate::store::disk::Disk;

/// How many entries are read at once when a cache is opened.
const ENTRIES_AT_ONCE: u64 = 64 << 10;

/// The life of the thread.
pub(super) fn run(local: &Local, unpushed: &Arc<Mutex<Unpushed>>) {
    crate::schedule::bulk();
    while let Some(job) = local.next() {
        let waiting = waiting(&job);
        carry_out(local, unpushed, job);
        if waiting > 0 {
            local.done(waiting);
        }
    }
}

/// Does what there is to do, where there is no thread for it.
pub(super) fn catch_up(local: &Local, unpushed: &Mutex<Unpushed>) {
    while let Some(job) = local.take() {
        let waiting = waiting(&job);
        carry_out(local, unpushed, job);
        local.done(waiting);
    }
}

/// How many bytes a job has that waited.
fn waiting(job: &Job) -> u64 {
    match job {
        Job::Keep { bytes, .. } | Job::Stage { bytes, .. } => bytes.as_ref().map_or(0, Vec::len) as u64,
        _ => 0,
    }
}

fn carry_out(local: &Local, unpushed: &Mutex<Unpushed>, job: Job) {
    if let Job::Release = job {
        let mut unpushed = unpushed.lock().expect("no holder panics");
        let done = local.flushes.lock().expect("no holder panics").done.take();
        if let Err(error) = done.map_or(Ok(()), |done| unpushed.release(&done)) {
            tracing::warn!(%error, "changes that are flushed may be found unpushed again");
        }
        return;
    }
    if local.is_bypassed() {
        return;
    }
    let result = match job {
        Job::Keep { at, range, bytes } => local.keep(&at, range, bytes.as_deref()),
        Job::Stage { range, bytes } => local.write_image(range, bytes.as_deref()),
        Job::Cut(length) => local.cut(length),
        Job::Move(step) => local.move_on(&step),
        Job::Release => Ok(()),
    };
    if let Err(error) = result {
        local.bypass(&Error::io(format!("cannot write to the cache {}", local.path.display()), &error));
    }
}

impl Local {
    fn write_image(&self, range: ByteRange, bytes: Option<&[u8]>) -> io::Result<()> {
        match bytes {
            Some(bytes) => self.image.write_all_at(bytes, range.start),
            None => self.image.punch(range),
        }
    }

    /// Writes what was pulled, and then that it is there.
    fn keep(&self, at: &Pulled, range: ByteRange, bytes: Option<&[u8]>) -> io::Result<()> {
        for run in self.accepted(at, touching(range)) {
            let piece = ByteRange::of_pages(run.clone()).intersect(range);
            let bytes = bytes.map(|bytes| {
                let from = (piece.start - range.start) as usize;
                &bytes[from..from + piece.len() as usize]
            });
            self.write_image(piece, bytes)?;
            let hashes: Vec<u64> = match bytes {
                Some(bytes) => bytes.chunks(PAGE_SIZE as usize).map(hash_page).collect(),
                None => vec![hash_page(&[]); (run.end - run.start) as usize],
            };
            self.write_entries(at.salt, at.epoch, run.clone(), &hashes)?;
            let mut view = self.view();
            for page in run {
                // Written meanwhile, it is not what it was.
                if view.accepts(at, page) {
                    view.present.insert(page);
                    view.checked.insert(page);
                }
            }
        }
        Ok(())
    }

    /// The pages of those that are still wanted, in runs.
    fn accepted(&self, at: &Pulled, pages: Range<u64>) -> Vec<Range<u64>> {
        let view = self.view();
        let mut runs: Vec<Range<u64>> = Vec::new();
        for page in pages.filter(|page| view.accepts(at, *page) && !view.present.contains(*page)) {
            match runs.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    fn write_entries(&self, salt: u64, epoch: u64, pages: Range<u64>, hashes: &[u64]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(hashes.len() * 16);
        for (page, hash) in pages.clone().zip(hashes) {
            bytes.extend_from_slice(&Entry::new(salt, page, epoch, *hash).encode());
        }
        self.state.write_all_at(&bytes, cache::entries_at(pages).start)
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        if self.image.len()? > length {
            self.image.set_len(length)?;
        }
        Ok(())
    }

    /// Goes on to another epoch.
    fn move_on(&self, step: &Move) -> io::Result<()> {
        let Move { head, generation, stale, staged } = step;
        match stale {
            None => {
                self.state.set_len(ENTRIES)?;
                self.image.set_len(0)?;
            }
            Some(stale) => {
                // What is behind the end of the file is gone already.
                let end = self.state.len()?;
                for pages in stale {
                    let range = cache::entries_at(pages.clone()).clamp_to(end);
                    if !range.is_empty() {
                        self.state.punch(range)?;
                    }
                }
            }
        }
        self.state.set_len(cache::entries_at(0..pages_of(head.length)).end)?;
        if self.image.len()? != head.length {
            self.image.set_len(head.length)?;
        }
        for run in staged.chunk_by(|one, next| one.0 + 1 == next.0) {
            let hashes: Vec<u64> = run.iter().map(|(_, hash)| *hash).collect();
            self.write_entries(head.salt, head.epoch, run[0].0..run[run.len() - 1].0 + 1, &hashes)?;
        }
        self.state.sync()?;
        self.write_head(head)?;
        let mut view = self.view();
        if view.generation == *generation {
            for (page, _) in staged {
                if !view.written.contains_key(page)
                    && !view.flushing.contains_key(page)
                    && *page < view.present.len()
                    && view.cut.is_none_or(|(cut, _)| *page < cut / PAGE_SIZE)
                {
                    view.present.insert(*page);
                    view.checked.insert(*page);
                }
            }
        }
        Ok(())
    }

    /// Writes a head, under the next sequence number.
    pub(super) fn write_head(&self, head: &Head) -> io::Result<()> {
        let mut newest = self.head.lock().expect("no holder panics");
        // Also where it fails: the block may have been written, and the other one must stay.
        newest.sequence += 1;
        let head = Head { sequence: newest.sequence, ..*head };
        self.state.write_all_at(&head.encode(), cache::head_at(head.sequence))?;
        *newest = head;
        Ok(())
    }
}

/// The pages that a state file says are there.
pub(super) fn read_present(state: &dyn Disk, head: &Head) -> io::Result<BitSet> {
    let pages = pages_of(head.length);
    let mut present = BitSet::new(pages);
    let there = state.len()?.saturating_sub(ENTRIES) / cache::ENTRY;
    let mut bytes = Vec::new();
    let mut page = 0;
    while page < pages.min(there) {
        let end = (page + ENTRIES_AT_ONCE).min(pages).min(there);
        let range = cache::entries_at(page..end);
        bytes.resize(range.len() as usize, 0);
        state.read_exact_at(&mut bytes, range.start)?;
        for (page, entry) in (page..end).zip(super::local::entries(&bytes)) {
            if entry.is_for(head.epoch) {
                present.insert(page);
            }
        }
        page = end;
    }
    Ok(present)
}
