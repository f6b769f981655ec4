//! `file:PATH`: a file or a block device.
//!
//! A read that somebody waits for never holds up the thread that submits it: what the page cache
//! has is answered at once, the rest goes to the few threads of a [pool](super::pool).
//!
//! What is written to a regular file is [`journaled`], so that a flush is all or nothing: [`stage`],
//! [`commit`], [`apply`] and [`recover`] are the steps, [`view`] is what readers see meanwhile. The journal
//! is in the [`sidecar`], which a file gets when it is written to for the first time. Without a journal, and
//! to a device, writes go through.
//!
//! The file must not change behind the store's back. What can be noticed of that is an error and
//! never somebody else's bytes: a file that has shrunk, and, where the store is opened for reading,
//! one whose time of modification has moved.

mod apply;
mod commit;
mod journaled;
mod read;
mod recover;
mod sidecar;
mod stage;
mod view;

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use pagewire_core::chunk::ByteRange;
use pagewire_core::journal::FileId;
use pagewire_sys::file::{FileIdentity, FileKind};
use uuid::Uuid;

use super::disk::{Disk, nanoseconds};
use super::pool::Pool;
use super::{AtOnce, Capabilities, Completion, Flush, Info, Lent, Read, Stage, Store, Urgency, too_long};
use crate::address::{FileAddress, JournalPlace};
use crate::error::{Error, ErrorKind, Result};
use journaled::Journaled;
use recover::Found;
use sidecar::Place;
use view::Source;

/// The longest piece that is read at once, in bytes.
const PIECE: u64 = 256 << 10;

/// How a file is opened.
#[derive(Debug, Clone)]
pub struct FileOptions {
    /// The size to create it with, sparse, where there is none; another size is an error.
    pub size: Option<u64>,
    /// The length that it may grow to; its length where none is given. A device does not grow.
    pub capacity: Option<u64>,
    /// Whether to write to it.
    pub writable: bool,
    /// Where its journal is.
    pub journal: JournalPlace,
    /// How many bytes of what was replaced to keep for readers of older epochs, at most.
    pub images: u64,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self { size: None, capacity: None, writable: false, journal: JournalPlace::Beside, images: 32 << 20 }
    }
}

/// The path of the journal of the file at `path`.
fn journal_path(place: &JournalPlace, path: &Path) -> Option<PathBuf> {
    match place {
        JournalPlace::Beside => {
            let mut beside = path.as_os_str().to_owned();
            beside.push(".pagewire");
            Some(beside.into())
        }
        JournalPlace::At(path) => Some(path.clone()),
        JournalPlace::Off => None,
    }
}

/// A file or block device.
pub struct FileStore {
    file: Arc<Opened>,
    pool: Pool,
    /// What puts flushed epochs in their places.
    placing: Option<JoinHandle<()>>,
}

struct Opened {
    path: PathBuf,
    file: Arc<File>,
    identity: FileIdentity,
    id: Uuid,
    /// Where there is no journal: its length, which only this store changes.
    length: std::sync::atomic::AtomicU64,
    capacity: u64,
    writable: bool,
    /// Whether to read never waits for a disk.
    in_memory: bool,
    journaled: Option<Arc<Journaled>>,
}

impl FileStore {
    /// Opens the file at `path`, for writing too where `writable` is true. Where there is no file
    /// and `size` is given, a sparse one of that size is created.
    ///
    /// # Errors
    ///
    /// As [`FileStore::open_with`].
    pub fn open(path: &Path, size: Option<u64>, writable: bool) -> Result<Self> {
        Self::open_with(path, &FileOptions { size, writable, ..FileOptions::default() })
    }

    /// Opens the file that an address names.
    ///
    /// # Errors
    ///
    /// As [`FileStore::open_with`].
    pub fn at(address: &FileAddress, writable: bool) -> Result<Self> {
        let FileAddress { path, size, capacity, journal } = address;
        let (size, capacity, journal) = (*size, *capacity, journal.clone());
        Self::open_with(path, &FileOptions { size, capacity, writable, journal, ..FileOptions::default() })
    }

    /// Opens the file at `path`. What was flushed to it is put in its place first, if it is not there.
    ///
    /// # Errors
    ///
    /// As opening the file; [`ErrorKind::Usage`] if it is neither file nor block device, or has
    /// another size than the one given; [`ErrorKind::Busy`] if another Pagewire process writes to it
    /// (or, for writing, uses it at all); [`ErrorKind::Changed`] if its journal cannot be used and may hold
    /// what was flushed.
    pub fn open_with(path: &Path, options: &FileOptions) -> Result<Self> {
        let named = |text: &str| format!("{text} {}", path.display());
        let create = options.size.is_some();
        let file = OpenOptions::new()
            .read(true)
            .write(options.writable || create)
            .create(create)
            .truncate(false)
            .open(path)
            .map_err(|error| Error::io(named("cannot open"), &error))?;
        lock(&file, path, options.writable)?;
        let identify = || {
            pagewire_sys::file::identity(file.as_fd())
                .map_err(|error| Error::io(named("cannot examine"), &error))
        };
        let mut identity = identify()?;
        match (identity.kind, options.size) {
            (FileKind::Regular, Some(size)) if identity.size == 0 && size != 0 => {
                file.set_len(size).map_err(|error| Error::io(named("cannot set the size of"), &error))?;
                identity = identify()?;
            }
            (FileKind::Regular | FileKind::BlockDevice, _) => {}
            _ => return Err(Error::new(ErrorKind::Usage, named("neither a file nor a block device:"))),
        }
        let is_device = identity.kind == FileKind::BlockDevice;
        let size = match is_device {
            true => pagewire_sys::file::block_device_size(file.as_fd())
                .map_err(|error| Error::io(named("cannot tell the size of"), &error))?,
            false => identity.size,
        };
        let in_memory = pagewire_sys::file::is_in_memory(file.as_fd()).unwrap_or(false);
        let mut opened = Opened {
            path: path.into(),
            file: Arc::new(file),
            identity,
            id: identify_region(&identity),
            length: size.into(),
            capacity: if is_device { size } else { options.capacity.unwrap_or(0).max(size) },
            writable: options.writable,
            in_memory,
            journaled: None,
        };
        if let Some(journal) = journal_path(&options.journal, path).filter(|_| !is_device) {
            opened.with_journal(&journal, options)?;
        }
        let length = opened.info().length;
        if options.size.is_some_and(|size| size != length) {
            let text = format!("has {length} bytes already, not {}", options.size.unwrap_or(0));
            return Err(Error::new(ErrorKind::Usage, format!("{} {text}", path.display())));
        }
        let mut store = Self { file: Arc::new(opened), pool: Pool::new(), placing: None };
        if let Some(journaled) = store.file.journaled.clone().filter(|_| options.writable) {
            let placing = std::thread::Builder::new().name("pw-place".into()).spawn(move || journaled.run());
            store.placing = Some(placing.map_err(|error| Error::io("cannot start a thread", &error))?);
        }
        Ok(store)
    }
}

impl FileStore {
    /// Waits until what was flushed is in its place in the file, where programs that know nothing of the journal find
    /// it. It is durable before, and readers of the store see it.
    ///
    /// # Errors
    ///
    /// Where it cannot be put there.
    pub fn settle(&self) -> Result<()> {
        self.file.journaled.as_ref().map_or(Ok(()), |journaled| journaled.settle())
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        if let Some(journaled) = &self.file.journaled {
            journaled.close();
        }
        if let Some(placing) = self.placing.take() {
            // One that has panicked has stopped, too.
            let _ = placing.join();
        }
    }
}

fn lock(file: &File, path: &Path, writable: bool) -> Result<()> {
    let lock = if writable { pagewire_sys::file::lock_exclusive } else { pagewire_sys::file::lock_shared };
    lock(file.as_fd()).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            Error::new(ErrorKind::Busy, format!("{} is in use by another Pagewire process", path.display()))
        }
        _ => Error::io(format!("cannot lock {}", path.display()), &error),
    })
}

/// The identity of a file without a sidecar is what it is now: whatever replaces it or is done to it
/// while nobody serves it makes another region of it.
fn identify_region(identity: &FileIdentity) -> Uuid {
    // A device does not say when it was written to.
    if identity.kind == FileKind::BlockDevice {
        return Uuid::new_v4();
    }
    let FileIdentity { device, inode, birth, modified, size, .. } = identity;
    let text = format!("{device} {inode} {birth:?} {modified:?} {size}");
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes())
}

impl Opened {
    /// Looks at the journal, and has the file used with it where there is one or it is to be written to.
    fn with_journal(&mut self, path: &Path, options: &FileOptions) -> Result<()> {
        let place = Place(path.into());
        let journal = sidecar::open(path, options.writable)?.map(Arc::new);
        let found = Found {
            file: FileId { inode: self.identity.inode, birth: self.identity.birth.map_or(0, nanoseconds) },
            stamp: self.file.stamp().map_err(|error| self.io("examine", &error))?,
            region: *self.id.as_bytes(),
        };
        let journal = journal.map(|journal| journal as Arc<dyn Disk>);
        let data = self.file.clone() as Arc<dyn Disk>;
        let open =
            journaled::Open { data, journal, place, found, capacity: self.capacity, images: options.images };
        let journaled = open.open(options.writable)?;
        let state = journaled.sidecar.state();
        self.id = Uuid::from_bytes(state.region);
        self.capacity = self.capacity.max(journaled.view().length);
        // A reader of a file all of which is in its place needs none of it.
        let (epoch, placing) = (state.applied, journaled.view().placing);
        if options.writable || placing || epoch != 1 {
            self.journaled = Some(Arc::new(journaled));
        }
        Ok(())
    }

    fn info(&self) -> Info {
        let whole = Info {
            id: self.id,
            epoch: 1,
            length: self.length.load(std::sync::atomic::Ordering::Acquire),
            capacity: self.capacity,
            granularity: PIECE as u32,
            writable: self.writable,
            capabilities: Capabilities { lend: true, ..Capabilities::default() },
        };
        let Some(journaled) = &self.journaled else { return whole };
        let view = journaled.view();
        let lend = !self.writable && !view.placing;
        let capabilities = Capabilities { lend, history: true, commit: true, ..Capabilities::default() };
        Info { epoch: view.epoch, length: view.length, capabilities, ..whole }
    }

    fn io(&self, what: &str, error: &io::Error) -> Error {
        Error::io(format!("cannot {what} {}", self.path.display()), error)
    }

    /// Notices a file that has changed behind the store's back.
    fn check_unchanged(&self) -> Result<()> {
        // The store itself changes the length of a file with a journal; one that is too short for what is
        // to be in it is noticed when that is read.
        if self.identity.kind == FileKind::BlockDevice || (self.writable && self.journaled.is_some()) {
            return Ok(());
        }
        let (size, modified) = pagewire_sys::file::size_and_modified(self.file.as_fd())
            .map_err(|error| self.io("examine", &error))?;
        let path = self.path.display();
        let length = self.length.load(std::sync::atomic::Ordering::Acquire);
        if size < length {
            let text = format!("{path} has shrunk from {length} to {size} bytes while it was in use");
            return Err(Error::new(ErrorKind::Changed, text));
        }
        if !self.writable && modified != self.identity.modified {
            return Err(Error::new(ErrorKind::Changed, format!("{path} was written to while it was in use")));
        }
        Ok(())
    }

    /// Writes to a file without a journal.
    fn write_through(&self, ranges: &[ByteRange], bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        ranges.iter().try_for_each(|range| {
            self.info().check(*range)?;
            let (these, behind) = rest.split_at(range.len() as usize);
            rest = behind;
            Disk::write_all_at(&*self.file, these, range.start).map_err(|error| self.io("write to", &error))
        })
    }

    fn set_length_through(&self, length: u64) -> Result<()> {
        if length > self.capacity {
            return Err(too_long(length, self.capacity));
        }
        if self.identity.kind == FileKind::BlockDevice {
            let text = format!("{} is a device, whose length cannot be changed", self.path.display());
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        self.file.set_len(length).map_err(|error| self.io("set the length of", &error))?;
        self.length.store(length, std::sync::atomic::Ordering::Release);
        Ok(())
    }
}

impl Store for FileStore {
    fn info(&self) -> Info {
        self.file.info()
    }

    fn read(&self, read: Read) {
        let (pieces, ticket) = match self.file.pieces(&read) {
            Ok(found) => found,
            Err(error) => return read.sink.done(Err(error)),
        };
        let wait = read.urgency == Urgency::Background || self.file.in_memory;
        match self.file.answer(&read, &pieces, wait) {
            Ok(left) if left.is_empty() => {
                drop(ticket);
                read.sink.done(Ok(()));
            }
            Ok(left) => {
                let file = self.file.clone();
                self.pool.run(Box::new(move || {
                    let result = file.answer(&read, &left, true).map(drop);
                    drop(ticket);
                    read.sink.done(result);
                }));
            }
            Err(error) => {
                drop(ticket);
                read.sink.done(Err(error));
            }
        }
    }

    fn read_at_once(&self, range: ByteRange, epoch: u64, buffer: &mut [u8]) -> Result<AtOnce> {
        self.file.answer_at_once(range, epoch, buffer)
    }

    fn holes(&self, range: ByteRange, epoch: u64) -> Option<Vec<ByteRange>> {
        let file = &self.file;
        let Some(journaled) = &file.journaled else { return file.holes_of_file(range, range.end) };
        let (pieces, _ticket) = journaled.resolve(epoch, &[range]).ok()?;
        let mut holes = Vec::new();
        for piece in pieces {
            match piece.source {
                Source::Zero => holes.push(piece.range),
                Source::Data => holes.extend(file.holes_of_file(piece.range, piece.bytes_end)?),
                Source::Journal(_) | Source::Image(..) => {}
            }
        }
        Some(ByteRange::union(holes))
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        done(match &self.file.journaled {
            Some(journaled) => journaled.write(ranges, bytes),
            None => self.file.write_through(ranges, bytes),
        });
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        let file = &self.file;
        done(match &file.journaled {
            Some(journaled) => journaled.zero(ranges),
            None => ranges.iter().try_for_each(|range| {
                file.info().check(*range)?;
                file.file.punch(*range).map_err(|error| file.io("write zeroes to", &error))
            }),
        });
    }

    fn set_length(&self, length: u64, done: Completion) {
        done(match &self.file.journaled {
            Some(journaled) => journaled.set_length(length),
            None => self.file.set_length_through(length),
        });
    }

    fn flush(&self, flush: Flush) {
        let Flush { number, stage, done } = flush;
        let flushed = match &self.file.journaled {
            Some(journaled) => journaled.flush(number, stage),
            None => self.file.file.sync_data().map_err(|error| self.file.io("flush", &error)),
        };
        done(flushed.map(|()| self.info()));
    }

    fn stage(&self) -> Stage {
        match &self.file.journaled {
            Some(journaled) => journaled.stage(),
            None => Stage { length: self.info().length, ..Stage::default() },
        }
    }

    fn discard(&self) -> Result<()> {
        match &self.file.journaled {
            Some(journaled) => journaled.discard(),
            None => Err(Error::new(ErrorKind::Unsupported, "what is written through cannot be taken back")),
        }
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.file.journaled.as_ref().map(|journaled| journaled.fence()).transpose()
    }

    fn pin(&self, epoch: Option<u64>) -> Result<Info> {
        let info = self.info();
        let Some(journaled) = &self.file.journaled else {
            return match epoch {
                Some(epoch) if epoch != info.epoch => Err(super::stale(epoch, info.epoch)),
                _ => Ok(info),
            };
        };
        let mut view = journaled.view();
        let epoch = epoch.unwrap_or(view.epoch);
        let length = view.hold(epoch)?;
        Ok(Info { epoch, length, ..info })
    }

    fn unpin(&self, epoch: u64) {
        if let Some(journaled) = &self.file.journaled {
            journaled.view().release(epoch);
        }
    }

    fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        match &self.file.journaled {
            Some(journaled) => journaled.view().changes(since),
            None => (since == self.info().epoch).then(Vec::new),
        }
    }

    fn lend(&self) -> Option<Lent<'_>> {
        let lends = self.info().capabilities.lend;
        lends.then(|| Lent { file: self.file.file.as_fd() })
    }

    fn lend_for_writing(&self) -> Option<Lent<'_>> {
        let written_through = self.file.writable && self.file.journaled.is_none();
        written_through.then(|| Lent { file: self.file.file.as_fd() })
    }

    fn refresh(&self) -> Result<Info> {
        self.file.check_unchanged()?;
        Ok(self.info())
    }
}
