//! A file whose flushes are all or nothing: what is written is staged in a journal, a flush commits it
//! there, and a thread puts it in its place. Core's [`journal`](pagewire_core::journal) says in which order
//! what becomes durable, and why.
//!
//! Two locks are held for a moment only, so that a read never waits for a disk but its own: that of the
//! [`View`] and that of what is [staged](super::stage). A third one has writers wait for each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use pagewire_core::chunk::ByteRange;

use super::recover::{Found, Recovered, recover};
use super::sidecar::{Place, Sidecar};
use super::stage::Staged;
use super::view::{Layer, Piece, View};
use crate::error::{Error, ErrorKind, Result};
use crate::store::disk::Disk;
use crate::store::gate::{Gate, Ticket};
use crate::store::{STAGED, Stage};

/// A file with a journal.
pub(super) struct Journaled {
    pub(super) data: Arc<dyn Disk>,
    pub(super) sidecar: Sidecar,
    pub(super) capacity: u64,
    /// How many bytes to keep for readers of older epochs.
    pub(super) images: u64,
    pub(super) view: Mutex<View>,
    /// Something about the view has moved on: there is something to put in its place, or it is there.
    pub(super) moved: Condvar,
    pub(super) staged: Mutex<Staged>,
    /// Held while anything is written to the journal's areas, or committed.
    pub(super) writing: Mutex<Writing>,
    pub(super) gate: Arc<Gate>,
    pub(super) closed: AtomicBool,
}

/// What only one may do at a time.
#[derive(Default)]
pub(super) struct Writing {
    /// Room for a page that is written in part, and for an index.
    pub(super) buffer: Vec<u8>,
    /// Why nothing can be written any more until the file is opened again.
    pub(super) failed: Option<Error>,
}

/// What a file with a journal is opened from.
pub(super) struct Open {
    pub(super) data: Arc<dyn Disk>,
    /// The journal, if there is one.
    pub(super) journal: Option<Arc<dyn Disk>>,
    pub(super) place: Place,
    pub(super) found: Found,
    pub(super) capacity: u64,
    pub(super) images: u64,
}

impl Open {
    /// Opens it. For writing, what was flushed is put in its place first; should that fail, it is tried
    /// again later.
    pub(super) fn open(self, writable: bool) -> Result<Journaled> {
        let Self { data, journal, mut place, mut found, capacity, images } = self;
        loop {
            let had_journal = journal.is_some();
            let recovered = recover(&found, journal.as_deref(), &place)?;
            let is_new = recovered.state.region == found.region;
            let sidecar = Sidecar::new(place, journal.clone(), recovered.state);
            let committed = recovered.committed.clone();
            let opened = Journaled::new(data.clone(), sidecar, capacity, images, recovered);
            if !writable {
                return Ok(opened);
            }
            if committed.is_none() {
                if had_journal && is_new {
                    // Written to by others: said before anything is committed that would stand on it.
                    opened.sidecar.update(true, |_| {})?;
                }
                return Ok(opened);
            }
            if let Err(error) = opened.apply() {
                tracing::error!(%error, "what was flushed cannot be put in its place; it is tried again");
                return Ok(opened);
            }
            // The flush after it may have come as far as the disk, too, before the machine stopped.
            opened.sidecar.update(true, |_| {})?;
            found.stamp =
                data.stamp().map_err(|error| opened.sidecar.failed("examine the file of", &error))?;
            place = opened.sidecar.place;
        }
    }
}

impl Journaled {
    fn new(data: Arc<dyn Disk>, sidecar: Sidecar, capacity: u64, images: u64, recovered: Recovered) -> Self {
        let Recovered { state, mut view, committed } = recovered;
        if let Some(committed) = committed {
            view.commit(committed);
        }
        let staged = Staged::new(view.epoch + 1, view.length, (state.token, state.flushed));
        Self {
            data,
            sidecar,
            capacity,
            images,
            view: Mutex::new(view),
            moved: Condvar::new(),
            staged: Mutex::new(staged),
            writing: Mutex::default(),
            gate: Arc::default(),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().expect("no holder panics")
    }

    pub(super) fn staged(&self) -> MutexGuard<'_, Staged> {
        self.staged.lock().expect("no holder panics")
    }

    /// The right to write. An error, where the journal cannot be trusted any more.
    pub(super) fn writing(&self) -> Result<MutexGuard<'_, Writing>> {
        let writing = self.writing.lock().expect("no holder panics");
        match &writing.failed {
            Some(error) => Err(error.clone()),
            None => Ok(writing),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Where the bytes of `ranges` are, and a ticket that keeps them there.
    pub(super) fn resolve(&self, epoch: u64, ranges: &[ByteRange]) -> Result<(Vec<Piece>, Ticket)> {
        // A piece lies within one of the ranges, also where they touch.
        let (mut pieces, mut found) = (Vec::new(), Vec::new());
        let staged = (epoch == STAGED).then(|| self.staged());
        let view = self.view();
        let length = match &staged {
            Some(staged) => staged.length,
            None => view.length_of(epoch)?,
        };
        for range in ranges {
            check(*range, length)?;
            match &staged {
                Some(staged) => {
                    let slot = |page: u64| staged.slot(page);
                    let layer = Layer { area: staged.area(), slot: &slot, cut: staged.cut };
                    let layer = (!staged.is_empty()).then_some(layer);
                    view.resolve(view.epoch, *range, layer.as_ref(), &mut found)?;
                }
                None => view.resolve(epoch, *range, None, &mut found)?,
            }
            pieces.append(&mut found);
        }
        Ok((pieces, self.gate.enter()))
    }

    /// How far what was written has come.
    pub(super) fn stage(&self) -> Stage {
        let staged = self.staged();
        let &Staged { number, flushed, token, length, .. } = &*staged;
        Stage { number, flushed, token, length, ..Stage::default() }
    }

    /// A new writer begins.
    pub(super) fn fence(&self) -> Result<u64> {
        let _writing = self.writing()?;
        self.sidecar.update(true, |state| {
            state.token += 1;
            state.flushed = 0;
        })?;
        self.give_up_staged();
        let mut staged = self.staged();
        (staged.token, staged.flushed) = (self.sidecar.state().token, 0);
        Ok(staged.token)
    }

    /// Gives up what is staged. Who calls has the right to write.
    pub(super) fn give_up_staged(&self) {
        let length = self.view().length;
        self.staged().give_up(length);
        // Whoever reads what was staged must have ended before the area is written again.
        self.gate.wait();
    }

    pub(super) fn discard(&self) -> Result<()> {
        let _writing = self.writing()?;
        self.give_up_staged();
        Ok(())
    }
}

/// Whether `range` lies within a length.
pub(super) fn check(range: ByteRange, length: u64) -> Result<()> {
    if range.end > length {
        let text = format!("bytes {range} of a region of {length} bytes");
        return Err(Error::new(ErrorKind::OutOfRange, text));
    }
    Ok(())
}
