//! The files of a cache: opened, locked, and told from those of somebody else.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_core::cache::{self, COPY_AT, Head, Kept};
use pagewire_core::chunk::PAGE_SIZE;
use pagewire_core::journal::{BLOCK, Damaged};
use pagewire_sys::file::FileKind;
use serde::Serialize;
use uuid::Uuid;

use super::unpushed::Unpushed;
use crate::error::{Error, ErrorKind, Result};
use crate::store::disk::Disk;

/// How long a cache that is in use is waited for: its last mapping may have been closed just now.
const CLOSING: Duration = Duration::from_secs(1);

/// The files of a cache, which no other process uses meanwhile. They are opened before the store is, since
/// they know which lease to go on with.
pub struct CacheFiles {
    pub(super) path: PathBuf,
    pub(super) image: Arc<dyn Disk>,
    pub(super) state: Arc<dyn Disk>,
    /// What the newest head says, if there is one that can be used.
    pub(super) head: Option<Head>,
    pub(super) unpushed: Unpushed,
    /// The image as a file, for those who are lent it.
    pub(super) file: Option<Arc<File>>,
    /// Whether to read never waits for a disk.
    pub(super) in_memory: bool,
    /// Whether the files outlast this process.
    pub(super) lasts: bool,
}

/// What is in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CacheInfo {
    /// The identity of the region that it is of.
    pub id: Uuid,
    /// The epoch that it is of; 0 where it is new.
    pub epoch: u64,
    /// The region's length at that epoch, in bytes.
    pub length: u64,
    /// How many of these bytes are there.
    pub present_bytes: u64,
    /// How many bytes of pages were written and not flushed to the region.
    pub unpushed_bytes: u64,
}

/// The path of one of the files beside the image.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

impl CacheFiles {
    /// Opens the cache at `path`, which is made where there is none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] while another process, or another part of this one, uses it;
    /// [`ErrorKind::Usage`] if `path` is a file that is no cache, or cannot be one; [`ErrorKind::Changed`] if
    /// it holds changes that cannot be read any more; what the system says.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |what: &str, error: &io::Error| {
            Error::io(format!("cannot {what} the cache {}", path.display()), error)
        };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| failed("open", &error))?;
        let identity = pagewire_sys::file::identity(file.as_fd());
        let identity = identity.map_err(|error| failed("examine", &error))?;
        if identity.kind != FileKind::Regular {
            let text = format!("the cache {} is no regular file", path.display());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        lock(&file).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                let text = format!("the cache {} is in use by another mapping or process", path.display());
                Error::new(ErrorKind::Busy, text)
            }
            _ => failed("lock", &error),
        })?;
        let state_path = beside(path, ".cache");
        let state = match OpenOptions::new().read(true).write(true).open(&state_path) {
            Ok(state) => state,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if identity.size > 0 {
                    return Err(no_cache(path));
                }
                let made = make(&state_path, &[(0, &Head::default().encode())]);
                made.map_err(|error| failed("make", &error))?
            }
            Err(error) => return Err(failed("open", &error)),
        };
        let head = read_head(&state, path)?;
        let kept_path = beside(path, ".unpushed");
        let unpushed = match OpenOptions::new().read(true).write(true).open(&kept_path) {
            Ok(kept) => Some(Arc::new(kept) as Arc<dyn Disk>),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("open", &error)),
        };
        let name = kept_path.display().to_string();
        let makes = move |kept: &Kept| {
            let block = kept.encode();
            let made = make(&kept_path, &[(cache::commit_at(kept.number), &block), (COPY_AT, &block)])?;
            Ok(Arc::new(made) as Arc<dyn Disk>)
        };
        let unpushed = Unpushed::open(name, unpushed, Box::new(makes))?;
        let in_memory = pagewire_sys::file::is_in_memory(file.as_fd()).unwrap_or(false);
        let file = Arc::new(file);
        Ok(Self {
            path: path.into(),
            image: file.clone(),
            state: Arc::new(state),
            head,
            unpushed,
            file: Some(file),
            in_memory,
            lasts: true,
        })
    }

    /// A new cache in the memory of this process, with which it goes.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn in_memory() -> Result<Self> {
        let make = |what: &str| pagewire_sys::file::in_memory(&format!("pagewire {what}"));
        let failed = |error| Error::io("cannot make a cache in memory", &error);
        let state = make("cache").map_err(failed)?;
        Disk::write_all_at(&state, &Head::default().encode(), cache::head_at(0)).map_err(failed)?;
        let kept = move |_: &Kept| Ok(Arc::new(make("unpushed")?) as Arc<dyn Disk>);
        Ok(Self {
            path: "in memory".into(),
            image: Arc::new(make("image").map_err(failed)?),
            state: Arc::new(state),
            head: Some(Head::default()),
            unpushed: Unpushed::open("unpushed, in memory".into(), None, Box::new(kept))?,
            file: None,
            in_memory: true,
            lasts: false,
        })
    }

    /// Opens the cache at `path`, if there is one, to see what is in it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] where there is none; as [`CacheFiles::open`].
    pub fn describe(path: &Path) -> Result<CacheInfo> {
        if let Err(error) = std::fs::metadata(path) {
            return Err(Error::io(format!("cannot open the cache {}", path.display()), &error));
        }
        let files = Self::open(path)?;
        let head = files.head.unwrap_or_default();
        let present = super::keeping::read_present(&*files.state, &head);
        let present = present
            .map_err(|error| Error::io(format!("cannot read the cache {}", path.display()), &error))?;
        Ok(CacheInfo {
            id: Uuid::from_bytes(head.region),
            epoch: head.epoch,
            length: head.length,
            present_bytes: (present.count() * PAGE_SIZE).min(head.length),
            unpushed_bytes: files.unpushed.bytes(),
        })
    }

    /// The lease under which the cache was written to last, if any, by the region and the token: to go on with it
    /// is to lose nothing, and to wait for nobody.
    pub fn lease(&self) -> Option<(Uuid, u64)> {
        let commit = self.unpushed.committed();
        (commit.token != 0).then(|| (Uuid::from_bytes(commit.region), commit.token))
    }
}

/// Locks the image. Whoever has just been told to let go of it may still be at it.
fn lock(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + CLOSING;
    loop {
        match pagewire_sys::file::lock_exclusive(file.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn no_cache(path: &Path) -> Error {
    let text = format!("{} exists, and is no cache of Pagewire; name another file", path.display());
    Error::new(ErrorKind::Usage, text)
}

/// The newest head. None where it is damaged, so that everything has to be pulled anew.
pub(super) fn read_head(state: &dyn Disk, path: &Path) -> Result<Option<Head>> {
    let mut blocks = [[0; BLOCK]; 2];
    for (sequence, block) in blocks.iter_mut().enumerate() {
        match state.read_exact_at(block, cache::head_at(sequence as u64)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => block.fill(0),
            Err(error) => {
                return Err(Error::io(
                    format!("cannot read the state of the cache {}", path.display()),
                    &error,
                ));
            }
        }
    }
    if !blocks.iter().any(Head::is_one) {
        return Err(no_cache(path));
    }
    match Head::newest([&blocks[0], &blocks[1]]) {
        Ok(head) => Ok(Some(head)),
        Err(Damaged::Hash) => {
            tracing::warn!("the state of the cache {} is damaged; it is filled anew", path.display());
            Ok(None)
        }
        Err(error @ Damaged::Version(_)) => {
            let text = format!("the cache {} cannot be used: {error}", path.display());
            Err(Error::new(ErrorKind::Unsupported, text))
        }
    }
}

/// Makes a file of some blocks: under its name only when all of it is there.
fn make(path: &Path, blocks: &[(u64, &[u8; BLOCK])]) -> io::Result<File> {
    let new = beside(path, ".new");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&new)?;
    for (at, block) in blocks {
        Disk::write_all_at(&file, &block[..], *at)?;
    }
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}
