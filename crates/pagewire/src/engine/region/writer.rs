//! The one writer of a region.

use std::sync::{Arc, RwLockReadGuard};
use std::time::Duration;

use pagewire_core::chunk::ByteRange;
use pagewire_sys::pipe::Pipe;

use super::lease::Held;
use super::{Pin, Region};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Blocking, Completion, Flush, Info, Read, STAGED, Stage, Store, wait};

/// Writes to a region: it has the lease, which ends when it is dropped, and what is staged then is given
/// up. See [`Store`] for what writing, staging and flushing mean.
///
/// Everything fails with [`ErrorKind::Fenced`] once somebody else has taken the lease.
pub struct Writer {
    region: Arc<Region>,
    held: Held,
}

impl Region {
    /// Takes the lease for `owner`, a text that a second writer is told.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] while somebody has it; [`ErrorKind::Unsupported`] where the store cannot be
    /// written to.
    pub fn writer(self: &Arc<Self>, owner: &str) -> Result<Writer> {
        self.check_writable()?;
        let held = self.lease.take(owner, || self.store.fence());
        self.hold(held)
    }

    /// Goes on with the lease that `token` names, after a lost connection or a restart of this process.
    /// What was staged under it since this process began is staged still.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] where somebody else had the lease since.
    pub fn resume_writer(self: &Arc<Self>, token: u64, owner: &str) -> Result<Writer> {
        self.check_writable()?;
        self.hold(self.lease.resume(token, owner))
    }

    /// Whether the lease could be taken now, or gone on with where its token is this one.
    #[cfg_attr(not(feature = "nbd"), expect(dead_code, reason = "only NBD tells before it takes"))]
    pub(crate) fn is_free_for(&self, token: Option<u64>) -> bool {
        self.lease.is_free_for(token)
    }

    fn check_writable(&self) -> Result<()> {
        if self.store.info().writable {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, format!("'{}' is read-only here", self.name)))
    }

    fn hold(self: &Arc<Self>, held: Result<Held>) -> Result<Writer> {
        let held = held.map_err(|error| error.context(format!("'{}'", self.name)))?;
        Ok(Writer { region: self.clone(), held })
    }

    fn give_up_staged(&self) {
        // A store that writes through has nothing to give up.
        if let Err(error) = self.store.discard()
            && error.kind() != ErrorKind::Unsupported
        {
            tracing::warn!(region = self.name, %error, "what was not flushed could not be given up");
        }
    }
}

impl Writer {
    /// The region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The lease's token.
    pub fn token(&self) -> u64 {
        self.held.token
    }

    /// Whether nobody else has taken the lease.
    #[cfg_attr(not(feature = "nbd"), expect(dead_code, reason = "only NBD shares a writer"))]
    pub(crate) fn is_held(&self) -> bool {
        self.region.lease.is_held(&self.held)
    }

    /// What the writer sees: the newest epoch with all that it has written.
    pub fn pin(&self) -> Pin {
        let info = Info { length: self.stage().length, ..self.region.info() };
        Pin { region: self.region.clone(), epoch: STAGED, info }
    }

    /// How far what was written has come.
    pub fn stage(&self) -> Stage {
        self.region.store.stage()
    }

    /// Submits a read of what the writer sees.
    pub fn read(&self, read: Read) {
        self.region.read(Read { epoch: STAGED, ..read });
    }

    /// Submits a write: see [`Store::write`].
    pub fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        self.change(ranges, done, |store, done| store.write(ranges, bytes, done));
    }

    /// Whether [`Writer::write_moved`] saves a copy.
    #[cfg_attr(not(feature = "nbd"), expect(dead_code, reason = "only NBD has the kernel move what comes"))]
    pub(crate) fn moves(&self) -> bool {
        self.region.store.lend_for_writing().is_some()
    }

    /// Submits a write of the first bytes that `pipe` holds; they are not in it any more when the call returns.
    #[cfg_attr(not(feature = "nbd"), expect(dead_code, reason = "only NBD has the kernel move what comes"))]
    pub(crate) fn write_moved(&self, range: ByteRange, pipe: &mut Pipe, done: Completion) {
        let behind = pipe.len() - range.len();
        self.change(&[range], done, |store, done| {
            let moved = match store.lend_for_writing() {
                Some(lent) if store.info().check(range).is_ok() => {
                    pipe.write_at(lent.file, range.start, range.len()).0
                }
                _ => 0,
            };
            // What cannot be moved is written as anything else, which says what is wrong if anything is.
            let rest = ByteRange::new(range.start + moved, range.end);
            if rest.is_empty() {
                return done(Ok(()));
            }
            match taken(pipe, rest.len()) {
                Ok(bytes) => store.write(&[rest], &bytes, done),
                Err(error) => done(Err(error)),
            }
        });
        // What was not written must not be taken for what comes next.
        taken(pipe, pipe.len() - behind).expect("a pipe gives what is in it");
    }

    /// Submits a write of zeroes: see [`Store::zero`].
    pub fn zero(&self, ranges: &[ByteRange], done: Completion) {
        self.change(ranges, done, |store, done| store.zero(ranges, done));
    }

    /// Submits a change of the length: see [`Store::set_length`].
    pub fn set_length(&self, length: u64, done: Completion) {
        let now = self.stage().length;
        let cut = (length < now).then(|| ByteRange::new(length, now));
        self.change(cut.as_slice(), done, |store, done| store.set_length(length, done));
    }

    fn change(&self, ranges: &[ByteRange], done: Completion, change: impl FnOnce(&dyn Store, Completion)) {
        let region = &self.region;
        let turn = match self.turn() {
            Ok(turn) => turn,
            Err(error) => return done(Err(error)),
        };
        let store = &*region.store;
        match &region.history {
            None => change(store, done),
            Some(history) => {
                let result = history.change(store, ranges, || wait(|done| change(store, done)));
                drop(turn);
                done(result);
            }
        }
    }

    /// Submits a flush: see [`Store::flush`]. Its answer is the new epoch's.
    pub fn flush(&self, flush: Flush) {
        let region = self.region.clone();
        let turn = match self.turn() {
            Ok(turn) => turn,
            Err(error) => return (flush.done)(Err(error)),
        };
        let (before, told) = (region.info().epoch, region.clone());
        let done = Box::new(move |result: Result<Info>| {
            let result = result.map(|info| {
                if let Some(history) = &told.history {
                    history.flushed(info.length);
                    return told.info();
                }
                info
            });
            let epoch = result.as_ref().map_or(before, |info| info.epoch);
            (flush.done)(result);
            if epoch > before {
                told.tell_epoch(epoch);
            }
        });
        region.store.flush(Flush { done, ..flush });
        drop(turn);
    }

    /// Gives up what is staged: see [`Store::discard`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where writes go through; [`ErrorKind::Fenced`].
    pub fn discard(&self) -> Result<()> {
        let _turn = self.turn()?;
        self.region.store.discard()
    }

    fn turn(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let region = &self.region;
        region.lease.turn(&self.held).map_err(|error| error.context(format!("'{}'", region.name)))
    }

    /// The bytes of `range` as the writer sees them.
    ///
    /// # Errors
    ///
    /// As the store's read.
    pub fn read_bytes(&self, range: ByteRange) -> Result<Vec<u8>> {
        match &self.region.history {
            // A store without epochs of its own knows no staged bytes either: they are in place.
            Some(_) => self.region.store.read_bytes(range, self.region.store.info().epoch),
            None => self.region.store.read_bytes(range, STAGED),
        }
    }

    /// Writes `bytes` at `offset`, and waits for it.
    ///
    /// # Errors
    ///
    /// As the store's write; [`ErrorKind::Fenced`].
    pub fn write_bytes(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let range = ByteRange::new(offset, offset.saturating_add(bytes.len() as u64));
        wait(|done| self.write(&[range], bytes, done))
    }

    /// Flushes, and waits for it: answers what the region is then.
    ///
    /// # Errors
    ///
    /// As the store's flush; [`ErrorKind::Fenced`].
    pub fn flush_all(&self) -> Result<Info> {
        let Stage { number: stage, flushed, .. } = self.stage();
        wait(|done| self.flush(Flush { number: flushed + 1, stage, done }))
    }

    /// Gives the lease back, and what is staged up, though others still hold this writer: what they do
    /// with it fails from now on.
    pub fn give_back(&self) {
        self.region.lease.leave(&self.held, None, || self.region.give_up_staged());
    }

    /// The writer is gone without a word: the lease waits for it for as long as `lapse`, with what is
    /// staged.
    pub fn lose(&self, lapse: Duration) {
        self.region.lease.leave(&self.held, Some(lapse), || {});
    }
}

/// The first bytes that a pipe holds.
fn taken(pipe: &mut Pipe, length: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    pipe.read_exact(&mut bytes).map_err(|error| Error::io("cannot take back what has come", &error))?;
    Ok(bytes)
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.give_back();
    }
}
