//! For reference: memory of the application alone, and a file of this host that is mapped.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use pagewire_sys::file_mapping::FileMapping;

use super::file::map;
use super::{Access, Attached};
use crate::study::trouble::{Result, Trouble};
use crate::study::workload::PAGE;

/// Words of a page.
const WORDS: usize = PAGE as usize / 8;

/// Memory that holds the region when the application begins: plain bytes where it is only read, as a mapping is then.
pub(in crate::study) enum LocalMemory {
    Read(Vec<u8>),
    Written(Vec<AtomicU64>),
}

impl LocalMemory {
    pub(super) fn attach(access: &Access) -> Result<Self> {
        let file = File::open(&access.region)?;
        let mut bytes = vec![0; access.bytes as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self::new(bytes, access.writes()))
    }

    /// Memory of so many bytes that is there and holds nothing: for the same work without any method.
    pub(in crate::study) fn blank(bytes: u64, writes: bool) -> Self {
        // Another value than zero, so that there is memory behind every page.
        Self::new(vec![1; bytes as usize], writes)
    }

    fn new(bytes: Vec<u8>, writes: bool) -> Self {
        match writes {
            false => Self::Read(bytes),
            true => Self::Written(bytes.chunks_exact(8).map(word).map(AtomicU64::new).collect()),
        }
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes.try_into().expect("pieces of eight"))
}

/// Loads a page word by word, as a program does that shares it with other threads.
pub(super) fn load<'w>(words: impl Iterator<Item = &'w AtomicU64>, bytes: &mut [u8]) {
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
}

/// Stores a page word by word.
pub(super) fn store<'w>(words: impl Iterator<Item = &'w AtomicU64>, bytes: &[u8]) {
    for (from, to) in bytes.chunks_exact(8).zip(words) {
        to.store(word(from), Ordering::Relaxed);
    }
}

impl Attached for LocalMemory {
    fn read(&self, page: u64, bytes: &mut [u8]) -> Result<()> {
        match self {
            Self::Read(memory) => bytes.copy_from_slice(&memory[(page * PAGE) as usize..][..PAGE as usize]),
            Self::Written(words) => load(words[page as usize * WORDS..][..WORDS].iter(), bytes),
        }
        Ok(())
    }

    fn write(&self, page: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Read(_) => return Err(Trouble::failed("the memory is read")),
            Self::Written(words) => store(words[page as usize * WORDS..][..WORDS].iter(), bytes),
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn detach(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// A file of this host.
pub(super) struct LocalFile(FileMapping);

impl LocalFile {
    pub(super) fn attach(access: &Access) -> Result<Self> {
        let file = File::options().read(true).write(access.writes()).open(&access.region)?;
        Ok(Self(map(&file, access)?))
    }
}

impl Attached for LocalFile {
    fn read(&self, page: u64, bytes: &mut [u8]) -> Result<()> {
        Ok(self.0.copy_out((page * PAGE) as usize, bytes)?)
    }

    fn write(&self, page: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.0.copy_in((page * PAGE) as usize, bytes)?)
    }

    fn flush(&self) -> Result<()> {
        Ok(self.0.sync(0, self.0.len())?)
    }

    fn detach(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
