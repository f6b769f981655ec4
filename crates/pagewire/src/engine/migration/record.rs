//! The files in which either side keeps, durably, who owns the regions of a migration.
//!
//! Their bytes are [core's](pagewire_core::migrate::record). A file belongs to one process at a time.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use pagewire_core::migrate::record::{self, HomeError, RecordError};
use pagewire_core::migrate::{
    DestinationPhase, DestinationRecord, HomeSets, MigrationId, OriginPhase, OriginRecord, WitnessAt,
};

use crate::error::{Error, ErrorKind, Result};

/// The length of a slot, in bytes.
pub(super) const SLOT: usize = pagewire_core::journal::BLOCK;

/// Two slots, written in turns.
struct Slots {
    file: File,
    path: PathBuf,
    sequence: Mutex<u64>,
}

impl Slots {
    fn open(path: &Path) -> Result<Self> {
        let failed =
            |error: &io::Error| Error::io(format!("cannot use the record {}", path.display()), error);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| failed(&error))?;
        match pagewire_sys::file::lock_exclusive(file.as_fd()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = format!("the record {} is another process's", path.display());
                return Err(Error::new(ErrorKind::Busy, text));
            }
            Err(error) => return Err(failed(&error)),
        }
        let size = file.metadata().map_err(|error| failed(&error))?.len();
        if size < 2 * SLOT as u64 {
            // Written once, so that later writes change no file system's own data.
            file.write_all_at(&[0; 2 * SLOT], 0).map_err(|error| failed(&error))?;
            file.sync_all().map_err(|error| failed(&error))?;
            sync_folder(path).map_err(|error| failed(&error))?;
        }
        Ok(Self { file, path: path.into(), sequence: Mutex::new(0) })
    }

    fn read<R>(
        &self,
        newest: impl Fn([&[u8; SLOT]; 2]) -> Result<Option<R>, RecordError>,
        sequence: impl Fn(&R) -> u64,
    ) -> Result<Option<R>> {
        let mut slots = [[0; SLOT]; 2];
        for (index, slot) in slots.iter_mut().enumerate() {
            let read = self.file.read_exact_at(slot, (index * SLOT) as u64);
            read.map_err(|error| Error::io(format!("cannot read {}", self.path.display()), &error))?;
        }
        let found = newest([&slots[0], &slots[1]])
            .map_err(|error| Error::new(ErrorKind::Io, format!("{}: {error}", self.path.display())))?;
        *self.sequence.lock().expect("no holder panics") = found.as_ref().map_or(0, sequence);
        Ok(found)
    }

    fn write(&self, encode: impl FnOnce(u64) -> [u8; SLOT]) -> Result<()> {
        let mut sequence = self.sequence.lock().expect("no holder panics");
        let next = *sequence + 1;
        let written = self.file.write_all_at(&encode(next), record::slot_at(next));
        let written = written.and_then(|()| self.file.sync_data());
        // After a failure the same slot is written again: the other one has the last record that is whole.
        *sequence = if written.is_ok() { next } else { next + 1 };
        written.map_err(|error| Error::io(format!("cannot write {}", self.path.display()), &error))
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // A process that is just being started has the file open, too, until it becomes another program: the lock is not to
        // last for as long as that. Should it fail, it ends with the last of them.
        let _ = pagewire_sys::file::unlock(self.file.as_fd());
    }
}

/// Makes the name of a file durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// What an origin keeps.
pub(super) struct OriginFile(Slots);

impl OriginFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Slots::open(path).map(Self)
    }

    pub(super) fn read(&self) -> Result<Option<OriginPhase>> {
        let found = self.0.read(OriginRecord::newest, |record| record.sequence)?;
        Ok(found.map(|record| record.phase))
    }

    pub(super) fn write(&self, phase: OriginPhase) -> Result<()> {
        self.0.write(|sequence| OriginRecord { sequence, phase }.encode())
    }
}

/// What a destination keeps.
pub(super) struct DestinationFile {
    slots: Slots,
    origin: String,
    /// Where each region is besides, from when it is accepted.
    witnesses: Mutex<Vec<WitnessAt>>,
}

impl DestinationFile {
    /// The record of a migration from `origin`.
    pub(super) fn open(path: &Path, origin: &str) -> Result<Self> {
        let most = origin.char_indices().map(|(at, char)| at + char.len_utf8());
        let end = most.take_while(|end| *end <= record::MAX_ORIGIN).last().unwrap_or(0);
        let origin = origin[..end].to_owned();
        Ok(Self { slots: Slots::open(path)?, origin, witnesses: Mutex::default() })
    }

    pub(super) fn read(&self) -> Result<Option<DestinationRecord>> {
        let found = self.slots.read(DestinationRecord::newest, |record| record.sequence)?;
        if let Some(found) = &found {
            self.keep_witnesses(found.witnesses.clone());
        }
        Ok(found)
    }

    /// What is written from now on tells of these witnesses, too.
    pub(super) fn keep_witnesses(&self, witnesses: Vec<WitnessAt>) {
        *self.witnesses.lock().expect("no holder panics") = witnesses;
    }

    /// What is known of the witnesses, in the order of the regions.
    pub(super) fn witnesses(&self) -> Vec<WitnessAt> {
        self.witnesses.lock().expect("no holder panics").clone()
    }

    pub(super) fn write(&self, phase: DestinationPhase) -> Result<()> {
        let (origin, witnesses) = (self.origin.clone(), self.witnesses());
        self.slots.write(|sequence| DestinationRecord { sequence, phase, origin, witnesses }.encode())
    }

    /// Where the sets of a region are.
    pub(super) fn sets(&self, index: usize) -> SetsFile {
        let mut name = self.slots.path.as_os_str().to_owned();
        name.push(format!(".pages-{index}"));
        SetsFile { path: name.into() }
    }
}

/// What a destination keeps of one region: which pages are durable at its home.
#[derive(Clone)]
pub(super) struct SetsFile {
    path: PathBuf,
}

impl SetsFile {
    /// The sets of this migration and this region, which has so many pages.
    pub(super) fn read(&self, id: MigrationId, region: [u8; 16], pages: u64) -> Result<HomeSets> {
        let bytes = std::fs::read(&self.path)
            .map_err(|error| Error::io(format!("cannot read {}", self.path.display()), &error))?;
        HomeSets::decode(&bytes, id, region, pages).map_err(|error| self.damaged(&error))
    }

    /// What to say where nobody knows which pages are at home.
    pub(super) fn damaged(&self, error: &HomeError) -> Error {
        Error::new(ErrorKind::Io, format!("{}: {error}", self.path.display()))
    }

    /// Puts new sets in the place of those before, as a whole.
    pub(super) fn write(&self, sets: &HomeSets) -> Result<()> {
        let mut new = self.path.as_os_str().to_owned();
        new.push(".new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&sets.encode())?;
            file.sync_all()?;
            std::fs::rename(&new, &self.path)?;
            sync_folder(&self.path)
        };
        write().map_err(|error| Error::io(format!("cannot write {}", self.path.display()), &error))
    }

    /// They are not needed any more.
    pub(super) fn remove(&self) {
        // Where they stay, nobody looks at them.
        let _ = std::fs::remove_file(&self.path);
    }
}
