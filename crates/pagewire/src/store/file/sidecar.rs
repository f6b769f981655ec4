//! The file beside a region's file: who the region is, what was flushed and is not in its place yet, and
//! what is staged. Its format is core's [`journal`].

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use pagewire_core::journal::{self, BLOCK, Damaged, State};

use crate::error::{Error, ErrorKind, Result};
use crate::store::disk::Disk;

/// Where a sidecar is, or is made when it is needed for the first time.
pub(super) struct Place(pub(super) PathBuf);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

/// The sidecar, and what its newest state block says.
pub(super) struct Sidecar {
    pub(super) place: Place,
    inner: Mutex<Inner>,
}

struct Inner {
    disk: Option<Arc<dyn Disk>>,
    state: State,
    /// Whether the state is durable. One that was found may be none: who wrote it may have been killed.
    durable: bool,
}

impl Sidecar {
    /// One that exists, or is to be made with `state`.
    pub(super) fn new(place: Place, disk: Option<Arc<dyn Disk>>, state: State) -> Self {
        Self { place, inner: Mutex::new(Inner { disk, state, durable: false }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// What was written last.
    pub(super) fn state(&self) -> State {
        self.lock().state
    }

    /// The file, if it was made.
    pub(super) fn existing(&self) -> Option<Arc<dyn Disk>> {
        self.lock().disk.clone()
    }

    /// The file, which is made where there is none.
    pub(super) fn disk(&self) -> Result<Arc<dyn Disk>> {
        let mut inner = self.lock();
        if let Some(disk) = &inner.disk {
            return Ok(disk.clone());
        }
        let disk = self.make(&inner.state)?;
        (inner.disk, inner.durable) = (Some(disk.clone()), true);
        Ok(disk)
    }

    /// Changes the state, and writes it: durably where that is asked for.
    pub(super) fn update(&self, durable: bool, change: impl FnOnce(&mut State)) -> Result<()> {
        let disk = self.disk()?;
        let mut inner = self.lock();
        let mut state = inner.state;
        change(&mut state);
        state.sequence += 1;
        if !inner.durable {
            // Both blocks would be torn should the machine stop, and there would be no state at all.
            disk.sync().map_err(|error| self.failed("make durable", &error))?;
            inner.durable = true;
        }
        // Where it fails, the next one goes to the same block: this one may be torn, and the other must stay.
        let written = disk.write_all_at(&state.encode(), journal::state_at(state.sequence));
        let synced = written.and_then(|()| if durable { disk.sync() } else { Ok(()) });
        synced.map_err(|error| self.failed("write to", &error))?;
        (inner.state, inner.durable) = (state, durable);
        Ok(())
    }

    /// The file was made durable, with all that it holds.
    pub(super) fn synced(&self) {
        self.lock().durable = true;
    }

    pub(super) fn failed(&self, what: &str, error: &io::Error) -> Error {
        Error::io(format!("cannot {what} the journal {}", self.place), error)
    }

    /// Makes the file: under its name only when all of it is there.
    fn make(&self, state: &State) -> Result<Arc<dyn Disk>> {
        let path = &self.place.0;
        let make = || -> io::Result<File> {
            let mut new = path.clone().into_os_string();
            new.push(".new");
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(true).open(&new)?;
            Disk::write_all_at(&file, &state.encode(), journal::state_at(state.sequence))?;
            Disk::write_all_at(&file, &[0; 2 * BLOCK], journal::commit_at(0))?;
            Disk::sync_all(&file)?;
            std::fs::rename(&new, path)?;
            sync_folder(path)?;
            Ok(file)
        };
        match make() {
            Ok(file) => Ok(Arc::new(file)),
            Err(error) => {
                let hint = "?journal=PATH puts it elsewhere; ?journal=off writes without one";
                Err(Error::io(format!("cannot make the journal {} ({hint})", self.place), &error))
            }
        }
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Opens the sidecar at `path`, if there is one.
pub(super) fn open(path: &Path, writable: bool) -> Result<Option<File>> {
    match OpenOptions::new().read(true).write(writable).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("cannot open the journal {}", path.display()), &error)),
    }
}

/// Reads the newest state.
pub(super) fn read_state(disk: &dyn Disk, place: &Place) -> Result<State> {
    let mut blocks = [[0; BLOCK]; 2];
    for (sequence, block) in blocks.iter_mut().enumerate() {
        read_block(disk, block, journal::state_at(sequence as u64))
            .map_err(|error| Error::io(format!("cannot read the journal {place}"), &error))?;
    }
    State::newest([&blocks[0], &blocks[1]]).map_err(|error| damaged(place, &error))
}

/// Reads a block; behind the end of the file are zeroes.
pub(super) fn read_block(disk: &dyn Disk, block: &mut [u8; BLOCK], at: u64) -> io::Result<()> {
    match disk.read_exact_at(block, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            block.fill(0);
            Ok(())
        }
        result => result,
    }
}

/// The error for a journal that must neither be used nor ignored.
pub(super) fn damaged(place: &Place, why: &Damaged) -> Error {
    let text = format!(
        "the journal {place} cannot be used ({why}), and may hold what was flushed; \
         to give that up, remove it"
    );
    Error::new(ErrorKind::Changed, text)
}
