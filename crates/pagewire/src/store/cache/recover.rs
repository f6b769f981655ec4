//! Changes that were found unpushed: whether they still stand, and how they come to the store again.
//!
//! They are staged at the store when a writer begins, and again whenever the store has lost what was staged,
//! before anything else is written. Until they are flushed, whoever reads what is staged gets them from their
//! file, unless the writer has replaced them: a store that is restarted cannot give them.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use pagewire_core::cache::Kept;
use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use super::CacheStore;
use super::contract::Groups;
use super::local::{Flushes, Local, pages_of, touching};
use super::unpushed::Unpushed;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Blocking, Info, Part, Sink, Stage, wait};

/// How many pages are read or written at once.
const BATCH: usize = 256;

/// What was found unpushed, and is not flushed yet.
pub(super) struct Recovered {
    /// The pages that readers get from the file.
    pages: BTreeSet<u64>,
    /// The stage of the store that has them.
    pushed_at: Option<u64>,
    /// The number of the first flush since.
    submitted: Option<u64>,
    /// The region's length with the changes.
    length: u64,
}

impl Recovered {
    /// The length that the region has with the changes, where the store has lost them.
    pub(super) fn length_at(&self, stage: &Stage) -> Option<u64> {
        let is_there = self.pushed_at == Some(stage.number)
            || self.submitted.is_some_and(|number| stage.flushed >= number);
        (!is_there).then_some(self.length)
    }
}

impl CacheStore {
    /// Sees to it that what is unpushed stands, or is not needed any more.
    pub(super) fn reconcile(&self) -> Result<()> {
        let commit = *self.unpushed().committed();
        if commit.is_empty() {
            return Ok(());
        }
        let (info, stage) = (self.store.info(), self.store.stage());
        let name = self.unpushed().name().to_owned();
        let give_up = format!("to give them up, remove {name}");
        if commit.region != *info.id.as_bytes() {
            let text = format!("{name} holds changes of another region that were not pushed; {give_up}");
            return Err(Error::new(ErrorKind::Changed, text));
        }
        if !self.writable {
            if self.has_same_bytes(&info)? {
                return Ok(());
            }
            let text = format!(
                "{name} holds changes that were not pushed; open the region to be written to, or {give_up}"
            );
            return Err(Error::new(ErrorKind::Changed, text));
        }
        let same_writer = commit.token != 0 && stage.token == commit.token;
        if same_writer && stage.flushed > commit.submitted {
            tracing::info!("what {name} holds was flushed before the last writer ended");
            return self.unpushed().clear();
        }
        if same_writer || info.epoch == commit.epoch {
            return Ok(());
        }
        if self.has_same_bytes(&info)? {
            tracing::info!("what {name} holds is what the region has by now");
            return self.unpushed().clear();
        }
        let text = format!(
            "{name} holds changes of epoch {} that were not pushed, and somebody else has written to the region, \
             which is at epoch {} now; {give_up}",
            commit.epoch, info.epoch
        );
        Err(Error::new(ErrorKind::Changed, text))
    }

    /// Whether the region has the bytes that are kept.
    fn has_same_bytes(&self, info: &Info) -> Result<bool> {
        let (pages, (cut, length)) = {
            let unpushed = self.unpushed();
            (unpushed.pages(), unpushed.lengths())
        };
        if length != info.length || cut < length.min(self.unpushed().committed().before) {
            return Ok(false);
        }
        for run in runs(&pages) {
            let range = ByteRange::of_pages(run.clone()).clamp_to(length);
            let there = self.store.read_bytes(range, info.epoch)?;
            let unpushed = self.unpushed();
            for (page, bytes) in run.zip(there.chunks(PAGE_SIZE as usize)) {
                if unpushed.read(page)?.is_none_or(|kept| kept[..bytes.len()] != *bytes) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// A writer begins: what is unpushed is part of what it sees.
    pub(super) fn begin_writer(&self) -> Result<Option<u64>> {
        self.reconcile()?;
        let token = self.store.fence()?;
        self.give_up_written();
        self.settle();
        let (info, stage) = (self.store.info(), self.store.stage());
        self.follow(&info);
        {
            let mut unpushed = self.unpushed();
            *self.local.flushes.lock().expect("no holder panics") = Flushes::default();
            unpushed.revert();
            let base = Kept {
                region: *info.id.as_bytes(),
                epoch: info.epoch,
                token: token.unwrap_or(0),
                submitted: stage.flushed,
                before: info.length,
                ..Kept::default()
            };
            if let Err(error) = unpushed.begin(&base) {
                tracing::warn!(%error, "changes cannot be kept on this host");
            }
            let (cut, length) = unpushed.lengths();
            let mut pages: BTreeSet<u64> = unpushed.pages().into_iter().collect();
            if !unpushed.is_empty() {
                pages.extend(pages_of(cut)..pages_of(length));
            }
            let recovered = (!unpushed.is_empty()).then_some(Recovered {
                pages,
                pushed_at: None,
                submitted: None,
                length,
            });
            if recovered.is_some() {
                let bytes = unpushed.bytes();
                tracing::info!(bytes, "changes that were not pushed were found, and are pushed again");
            }
            *self.recovered.lock().expect("no holder panics") = recovered;
        }
        self.push_recovered()?;
        Ok(token)
    }

    /// Stages what was recovered at the store, if the store does not have it.
    pub(super) fn push_recovered(&self) -> Result<()> {
        let stage = self.store.stage();
        {
            let mut recovered = self.recovered.lock().expect("no holder panics");
            let Some(known) = &*recovered else { return Ok(()) };
            if known.pushed_at == Some(stage.number) {
                return Ok(());
            }
            if known.submitted.is_some_and(|number| stage.flushed >= number) {
                // Flushed, though nobody was told.
                *recovered = None;
                return Ok(());
            }
        }
        let (pages, (cut, length)) = {
            let unpushed = self.unpushed();
            (unpushed.pages(), unpushed.lengths())
        };
        for to in [cut, length] {
            if to != self.store.stage().length {
                wait(|done| self.set_length_through(to, done))?;
            }
        }
        for run in runs(&pages) {
            let range = ByteRange::of_pages(run.clone()).clamp_to(length);
            let mut bytes = Vec::with_capacity(range.len() as usize);
            for page in run {
                let kept = self.unpushed().read(page)?;
                let kept = kept.ok_or_else(|| Error::new(ErrorKind::Cancelled, "changes were given up"))?;
                bytes.extend_from_slice(&kept);
            }
            bytes.truncate(range.len() as usize);
            wait(|done| self.write_through(&[range], &bytes, done))?;
        }
        if let Some(known) = &mut *self.recovered.lock().expect("no holder panics") {
            known.pushed_at = Some(stage.number);
            known.length = length;
            known.pages.extend(pages);
            known.pages.extend(pages_of(cut)..pages_of(length));
        }
        Ok(())
    }

    /// A flush is asked for.
    pub(super) fn recovered_submitted(&self, number: u64) {
        if let Some(recovered) = &mut *self.recovered.lock().expect("no holder panics") {
            recovered.submitted.get_or_insert(number);
        }
    }

    /// The writer replaces something.
    pub(super) fn replaces(&self, ranges: &[ByteRange]) {
        if let Some(recovered) = &mut *self.recovered.lock().expect("no holder panics") {
            for page in ranges.iter().flat_map(|range| touching(*range)) {
                recovered.pages.remove(&page);
            }
        }
    }

    /// Everything from `length` on is replaced.
    pub(super) fn replaces_from(&self, length: u64) {
        if let Some(recovered) = &mut *self.recovered.lock().expect("no holder panics") {
            recovered.pages.split_off(&(length / PAGE_SIZE));
        }
    }

    /// Takes what is in the file of unpushed changes out of what is missing.
    pub(super) fn take_recovered(&self, groups: &mut Groups) -> Vec<ByteRange> {
        let mut taken = Vec::new();
        let recovered = self.recovered.lock().expect("no holder panics");
        let Some(recovered) = &*recovered else { return taken };
        for group in groups {
            let mut left = Vec::new();
            for range in std::mem::take(group) {
                let mut rest = range;
                for page in recovered.pages.range(touching(range)) {
                    let page = ByteRange::of_pages(*page..page + 1).intersect(rest);
                    let [before, behind] = rest.without(page);
                    left.extend((!before.is_empty()).then_some(before));
                    taken.push(page);
                    rest = behind;
                }
                left.extend((!rest.is_empty()).then_some(rest));
            }
            *group = left;
        }
        taken
    }
}

/// Answers pieces, each within a page, from the file of unpushed changes. Answers what is not unpushed any more.
pub(super) fn answer(
    local: &Local,
    unpushed: &Mutex<Unpushed>,
    pieces: &[ByteRange],
    sink: &dyn Sink,
) -> Result<Vec<ByteRange>> {
    let mut left = Vec::new();
    for piece in pieces {
        let page = piece.start / PAGE_SIZE;
        let (bytes, (cut, length)) = {
            let unpushed = unpushed.lock().expect("no holder panics");
            (unpushed.read(page)?, unpushed.lengths())
        };
        match bytes {
            Some(bytes) => {
                let from = (piece.start - page * PAGE_SIZE) as usize;
                let bytes = &bytes[from..from + piece.len() as usize];
                local.cached_bytes.fetch_add(piece.len(), Ordering::Relaxed);
                sink.part(Part::Bytes { offset: piece.start, bytes });
            }
            // The region was shorter, and has grown again.
            None if cut <= page * PAGE_SIZE && piece.end <= length => sink.part(Part::Zero(*piece)),
            None => left.push(*piece),
        }
    }
    Ok(left)
}

/// Pages in runs that are not too long.
fn runs(pages: &[u64]) -> impl Iterator<Item = std::ops::Range<u64>> {
    let follow = pages.chunk_by(|one, next| one + 1 == *next);
    follow.flat_map(|run| run.chunks(BATCH)).map(|run| run[0]..run[run.len() - 1] + 1)
}
