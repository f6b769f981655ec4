//! The flush: what is staged becomes an epoch, at once and durably.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::journal::{self, BLOCK, Commit};

use super::journaled::{Journaled, Writing};
use crate::error::{Error, ErrorKind, Result};
use crate::store::disk::Disk;
use crate::store::given_up;

/// How long a flush waits for the one before to be in its place.
const PATIENCE: Duration = Duration::from_secs(30);

impl Journaled {
    /// Commits what is staged. An epoch that is the newest then.
    pub(super) fn flush(&self, number: u64, stage: u64) -> Result<()> {
        let mut writing = self.writing()?;
        {
            let mut staged = self.staged();
            if stage != staged.number {
                return Err(given_up());
            }
            if number <= staged.flushed {
                return Ok(());
            }
            if staged.is_empty() && !staged.is_broken() {
                staged.flushed = number;
                return Ok(());
            }
        }
        let committed = self.wait_until_placed().and_then(|()| self.commit(&mut writing, number));
        if committed.is_err() {
            self.give_up_staged();
        }
        committed
    }

    /// Waits until the epoch before is in its place: its area is free then.
    fn wait_until_placed(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut view = self.view();
        while view.placing {
            if let Some(trouble) = &view.trouble {
                let error = trouble.clone();
                return Err(error.context("what was flushed before is not in its place yet"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = format!("what was flushed before is not in its place after {PATIENCE:?}");
                return Err(Error::new(ErrorKind::Io, text));
            }
            view = self.moved.wait_timeout(view, left).expect("no holder panics").0;
        }
        Ok(())
    }

    fn commit(&self, writing: &mut Writing, number: u64) -> Result<()> {
        let journal = self.sidecar.disk()?;
        let (commit, area, index) = {
            let staged = self.staged();
            if staged.is_broken() {
                let text = "a page that was staged could not be written again";
                return Err(Error::new(ErrorKind::Io, text));
            }
            let index = staged.index().encode();
            let commit = Commit {
                epoch: self.view().epoch + 1,
                slots: staged.slots,
                index: index.len() as u64,
                hash: journal::hash(&index),
                length: staged.length,
                cut: staged.cut,
                token: staged.token,
                flushed: number,
            };
            (commit, staged.area(), index)
        };
        let failed = |error| self.sidecar.failed("write to", &error);
        let start = commit.slots * PAGE_SIZE;
        let mut at = 0;
        for (place, length) in area.places(ByteRange::new(start, start + commit.index)) {
            journal.write_all_at(&index[at..at + length as usize], place).map_err(failed)?;
            at += length as usize;
        }
        let block = journal::commit_at(commit.epoch);
        let synced = journal.write_all_at(&commit.encode(), block).and_then(|()| journal.sync());
        if let Err(error) = synced {
            self.take_back(&*journal, writing, block);
            return Err(self.sidecar.failed("make durable", &error));
        }
        self.sidecar.synced();
        // Both at once for whoever reads what is staged.
        let mut staged = self.staged();
        self.view().commit(Arc::new(staged.commit(number)));
        drop(staged);
        self.moved.notify_all();
        Ok(())
    }

    /// A commit may be durable or not: makes sure that it is not. Where that fails, too, nobody can say what
    /// a later commit would stand on, so there is none until the file is opened again.
    fn take_back(&self, journal: &dyn Disk, writing: &mut Writing, block: u64) {
        let erased = journal.write_all_at(&[0; BLOCK], block).and_then(|()| journal.sync());
        if let Err(error) = erased {
            let error = self.sidecar.failed("take a flush back from", &error);
            tracing::error!(%error, "nothing more can be written until the file is opened again");
            writing.failed = Some(error.context("open the region again"));
        }
    }
}
