//! `file:PATH`: a file or a block device.
//!
//! A read that somebody waits for never holds up the thread that submits it: what the page cache
//! has is answered at once, the rest goes to the few threads of [`pool`].
//!
//! The file must not change behind the store's back. What can be noticed of that is an error and
//! never somebody else's bytes: a file that has shrunk, and, where the store is opened for reading,
//! one whose time of modification has moved.

mod pool;

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pagewire_core::chunk::ByteRange;
use pagewire_sys::file::{FileIdentity, FileKind};
use uuid::Uuid;

use super::{Capabilities, Completion, Info, Lent, Part, Read, Store, Urgency};
use crate::error::{Error, ErrorKind, Result};
use pool::Pool;

/// The longest piece that is read at once, in bytes.
const PIECE: u64 = 256 << 10;

/// A file or block device.
pub struct FileStore {
    file: Arc<Opened>,
    pool: Pool,
}

struct Opened {
    path: PathBuf,
    file: File,
    identity: FileIdentity,
    id: Uuid,
    length: u64,
    writable: bool,
    /// Whether to read never waits for a disk.
    in_memory: bool,
}

thread_local! {
    /// One piece. It is taken out while in use, so that a sink that reads again gets another.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl FileStore {
    /// Opens the file at `path`, for writing too where `writable` is true. Where there is no file
    /// and `size` is given, a sparse one of that size is created.
    ///
    /// # Errors
    ///
    /// As opening the file; [`ErrorKind::Usage`] if it is neither file nor block device, or has
    /// another size than the one given; [`ErrorKind::Busy`] if another Pagewire process writes to it
    /// (or, for writing, uses it at all).
    pub fn open(path: &Path, size: Option<u64>, writable: bool) -> Result<Self> {
        let named = |text: &str| format!("{text} {}", path.display());
        let create = size.is_some();
        let file = OpenOptions::new()
            .read(true)
            .write(writable || create)
            .create(create)
            .truncate(false)
            .open(path)
            .map_err(|error| Error::io(named("cannot open"), &error))?;
        let lock =
            if writable { pagewire_sys::file::lock_exclusive } else { pagewire_sys::file::lock_shared };
        lock(file.as_fd()).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Error::new(
                ErrorKind::Busy,
                format!("{} is in use by another Pagewire process", path.display()),
            ),
            _ => Error::io(named("cannot lock"), &error),
        })?;
        let identify = || {
            pagewire_sys::file::identity(file.as_fd())
                .map_err(|error| Error::io(named("cannot examine"), &error))
        };
        let mut identity = identify()?;
        match (identity.kind, size) {
            (FileKind::Regular, Some(size)) if identity.size == 0 && size != 0 => {
                file.set_len(size).map_err(|error| Error::io(named("cannot set the size of"), &error))?;
                identity = identify()?;
            }
            (FileKind::Regular | FileKind::BlockDevice, _) => {}
            _ => return Err(Error::new(ErrorKind::Usage, named("neither a file nor a block device:"))),
        }
        let length = match identity.kind {
            FileKind::BlockDevice => pagewire_sys::file::block_device_size(file.as_fd())
                .map_err(|error| Error::io(named("cannot tell the size of"), &error))?,
            _ => identity.size,
        };
        if size.is_some_and(|size| size != length) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{} has {length} bytes already, not {}", path.display(), size.unwrap_or(0)),
            ));
        }
        let in_memory = pagewire_sys::file::is_in_memory(file.as_fd()).unwrap_or(false);
        let id = identify_region(&identity);
        let file = Arc::new(Opened { path: path.into(), file, identity, id, length, writable, in_memory });
        Ok(Self { file, pool: Pool::new() })
    }
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
    fn io(&self, what: &str, error: &io::Error) -> Error {
        Error::io(format!("cannot {what} {}", self.path.display()), error)
    }

    /// Notices a file that has changed behind the store's back.
    fn check_unchanged(&self) -> Result<()> {
        if self.identity.kind == FileKind::BlockDevice {
            return Ok(());
        }
        let (size, modified) = pagewire_sys::file::size_and_modified(self.file.as_fd())
            .map_err(|error| self.io("examine", &error))?;
        let path = self.path.display();
        if size < self.length {
            let text =
                format!("{path} has shrunk from {} to {} bytes while it was in use", self.length, size);
            return Err(Error::new(ErrorKind::Changed, text));
        }
        if !self.writable && modified != self.identity.modified {
            return Err(Error::new(ErrorKind::Changed, format!("{path} was written to while it was in use")));
        }
        Ok(())
    }

    /// Answers `pieces` as far as the page cache has them where `wait` is false. Gives back what is
    /// left for somebody who may wait.
    fn answer(&self, read: &Read, pieces: &[ByteRange], wait: bool) -> Result<Vec<ByteRange>> {
        let mut buffer = BUFFER.take();
        let longest = pieces.iter().map(|range| range.len()).max().unwrap_or(0) as usize;
        if buffer.len() < longest {
            buffer.resize(longest, 0);
        }
        let mut left = Vec::new();
        let mut result = Ok(());
        for &piece in pieces {
            let bytes = &mut buffer[..piece.len() as usize];
            let got = if wait {
                self.file.read_exact_at(bytes, piece.start).map(|()| bytes.len())
            } else {
                pagewire_sys::file::pread_nowait(self.file.as_fd(), bytes, piece.start)
            };
            match got {
                // A short answer is the edge of what is cached, or the end of a file that shrinks.
                Ok(got) if got < bytes.len() => left.push(piece),
                // Looked at after the bytes were taken, so that what is answered is what was good.
                Ok(_) => match self.check_unchanged() {
                    Ok(()) => read.sink.part(Part::Bytes { offset: piece.start, bytes }),
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => left.push(piece),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    result = self.check_unchanged().and_then(|()| {
                        Err(Error::new(ErrorKind::Changed, format!("{} ends early", self.path.display())))
                    });
                    break;
                }
                Err(error) => {
                    result = Err(self.io("read", &error));
                    break;
                }
            }
        }
        BUFFER.set(buffer);
        result.map(|()| left)
    }
}

impl Store for FileStore {
    fn info(&self) -> Info {
        Info {
            id: self.file.id,
            epoch: 1,
            length: self.file.length,
            capacity: self.file.length,
            granularity: PIECE as u32,
            writable: self.file.writable,
            capabilities: Capabilities { lend: true, ..Capabilities::default() },
        }
    }

    fn read(&self, read: Read) {
        let info = self.info();
        if let Some(error) = read.ranges.iter().find_map(|&range| info.check(range).err()) {
            return read.sink.done(Err(error));
        }
        let pieces: Vec<ByteRange> = read.ranges.iter().flat_map(|range| range.split(PIECE)).collect();
        let wait = read.urgency == Urgency::Background || self.file.in_memory;
        match self.file.answer(&read, &pieces, wait) {
            Ok(left) if left.is_empty() => read.sink.done(Ok(())),
            Ok(left) => {
                let file = self.file.clone();
                self.pool.run(Box::new(move || {
                    let result = file.answer(&read, &left, true).map(drop);
                    read.sink.done(result);
                }));
            }
            Err(error) => read.sink.done(Err(error)),
        }
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        let mut rest = bytes;
        done(ranges.iter().try_for_each(|range| {
            self.info().check(*range)?;
            let (these, behind) = rest.split_at(range.len() as usize);
            rest = behind;
            self.file.file.write_all_at(these, range.start).map_err(|error| self.file.io("write to", &error))
        }));
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        done(ranges.iter().copied().try_for_each(|range| {
            self.info().check(range).and_then(|()| {
                if range.is_empty() {
                    // The kernel refuses to punch a hole of no bytes.
                    return Ok(());
                }
                let file = self.file.file.as_fd();
                match pagewire_sys::file::punch_hole(file, range.start, range.len()) {
                    Ok(()) => Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        let zeroes = vec![0; range.len().min(PIECE) as usize];
                        range
                            .split(PIECE)
                            .try_for_each(|piece| {
                                let zeroes = &zeroes[..piece.len() as usize];
                                self.file.file.write_all_at(zeroes, piece.start)
                            })
                            .map_err(|error| self.file.io("write zeroes to", &error))
                    }
                    Err(error) => Err(self.file.io("write zeroes to", &error)),
                }
            })
        }));
    }

    fn flush(&self, flush: super::Flush) {
        let synced = self.file.file.sync_data().map_err(|error| self.file.io("flush", &error));
        (flush.done)(synced.map(|()| self.info()));
    }

    fn lend(&self) -> Option<Lent<'_>> {
        Some(Lent { file: self.file.file.as_fd() })
    }

    fn refresh(&self) -> Result<Info> {
        self.file.check_unchanged()?;
        Ok(self.info())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Blocking;

    fn sized(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("region");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let (_folder, path) = sized(&[7; 10_000]);
        let store = FileStore::open(&path, None, false).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        let error = store.read_bytes(ByteRange::new(4096, 8192), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        assert!(error.to_string().contains("shrunk"), "{error}");
    }

    #[test]
    fn a_file_that_is_written_behind_the_store_is_an_error() {
        let (_folder, path) = sized(&[7; 10_000]);
        let store = FileStore::open(&path, None, false).unwrap();
        let foreign = File::options().write(true).open(&path).unwrap();
        foreign.write_all_at(b"x", 0).unwrap();
        foreign.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(1)).unwrap();
        let error = store.read_bytes(ByteRange::new(4096, 8192), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    }

    #[test]
    fn a_replaced_file_is_another_region_and_the_open_one_stays() {
        let (folder, path) = sized(&[7; 4096]);
        let store = FileStore::open(&path, None, false).unwrap();
        let other = folder.path().join("other");
        std::fs::write(&other, [8; 4096]).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(store.read_bytes(ByteRange::new(0, 4096), 1).unwrap(), [7; 4096]);
        let again = FileStore::open(&path, None, false).unwrap();
        assert_ne!(store.info().id, again.info().id);
    }

    #[test]
    fn one_writer_or_many_readers() {
        let (_folder, path) = sized(&[7; 4096]);
        let reader = FileStore::open(&path, None, false).unwrap();
        let second = FileStore::open(&path, None, false).unwrap();
        assert_eq!(FileStore::open(&path, None, true).err().unwrap().kind(), ErrorKind::Busy);
        drop((reader, second));
        let writer = FileStore::open(&path, None, true).unwrap();
        assert_eq!(FileStore::open(&path, None, false).err().unwrap().kind(), ErrorKind::Busy);
        drop(writer);
    }

    #[test]
    fn a_size_creates_a_file_but_never_resizes_one() {
        let (folder, path) = sized(&[7; 4096]);
        assert_eq!(FileStore::open(&path, Some(8192), true).err().unwrap().kind(), ErrorKind::Usage);
        let fresh = folder.path().join("fresh");
        let store = FileStore::open(&fresh, Some(8192), true).unwrap();
        assert_eq!(store.info().length, 8192);
        assert!(FileStore::open(folder.path(), None, false).is_err(), "a folder is no region");
    }
}
