//! The server's side of a cell: the region's file, the process that offers it, and what the file holds in the end.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pagewire::address::{FileAddress, JournalPlace, NbdAddress};
use pagewire::store::{Blocking, FileStore, STAGED, Store};
use pagewire_sys::net::NetNamespace;

use super::record::Method;
use super::trouble::{Result, Trouble};
use super::workload::{PAGE, PROBE, content};
use crate::nbd::NbdServerProcess;
use crate::server::ServerProcess;
use crate::usage::Memory;

/// How much is written or read at once, in bytes.
const PIECE: u64 = 1 << 20;

/// Makes a file of the region's content.
pub(super) fn make_region(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::create(path)?;
    let mut piece = vec![0; PIECE as usize];
    for at in (0..bytes).step_by(PIECE as usize) {
        let length = PIECE.min(bytes - at) as usize;
        for (index, page) in piece[..length].chunks_exact_mut(PAGE as usize).enumerate() {
            content(at / PAGE + index as u64, 0, page);
        }
        file.write_all_at(&piece[..length], at)?;
    }
    Ok(())
}

/// The region of a cell: that of all cells, or a copy, where it is written to.
pub(super) struct CellRegion {
    path: PathBuf,
    is_copy: bool,
}

impl CellRegion {
    pub(super) fn new(pristine: &Path, writes: bool) -> io::Result<Self> {
        if !writes {
            return Ok(Self { path: pristine.into(), is_copy: false });
        }
        let region = Self { path: pristine.with_file_name("written"), is_copy: true };
        std::fs::copy(pristine, &region.path)?;
        Ok(region)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Compares what a server has left with what an application has written, once the server has gone.
    pub(super) fn compare(&self, journaled: bool, versions: &[(u64, u32)], stamp: Option<u64>) -> Result<()> {
        let journal = if journaled { JournalPlace::Beside } else { JournalPlace::Off };
        let address = FileAddress { journal, ..FileAddress::new(&self.path) };
        // What was flushed and is not in its place yet comes there now.
        let store = FileStore::at(&address, true)?;
        let (length, versions) =
            (store.info().length, versions.iter().copied().collect::<std::collections::HashMap<_, _>>());
        let mut expected = vec![0; PAGE as usize];
        for at in (0..length).step_by(PIECE as usize) {
            let piece = pagewire::ByteRange::new(at, length.min(at + PIECE));
            for (index, found) in store.read_bytes(piece, STAGED)?.chunks_exact(PAGE as usize).enumerate() {
                let page = at / PAGE + index as u64;
                content(page, versions.get(&page).copied().unwrap_or_default(), &mut expected);
                if let Some(stamp) = stamp.filter(|_| page == PROBE) {
                    expected[..8].copy_from_slice(&stamp.to_le_bytes());
                }
                if expected != found {
                    return Err(Trouble::failed(format!("the server has wrong bytes in page {page}")));
                }
            }
        }
        Ok(())
    }
}

impl Drop for CellRegion {
    fn drop(&mut self) {
        if self.is_copy {
            let mut journal = self.path.clone().into_os_string();
            journal.push(".pagewire");
            // There may be no journal; the folder goes in the end.
            let _ = std::fs::remove_file(journal);
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The process that offers a region.
pub(super) enum Offering {
    /// To Pagewire.
    Peer(ServerProcess),
    /// To NBD clients.
    Nbd(NbdServerProcess),
}

impl Offering {
    /// Offers the file to the clients of a method, inside `namespace` if there is one. None for what is local.
    pub(super) fn start(
        method: Method,
        file: &Path,
        writable: bool,
        host: Ipv4Addr,
        namespace: Option<&NetNamespace>,
    ) -> Result<Option<Self>> {
        Ok(Some(match method {
            Method::LocalMemory | Method::LocalFile => return Ok(None),
            Method::NbdUser => {
                let address: NbdAddress = format!("nbd://{host}:0").parse()?;
                Self::Nbd(NbdServerProcess::start_in(file, &address, writable, namespace)?)
            }
            _ if writable => Self::Peer(ServerProcess::start_writable(file, host, namespace)?),
            _ => Self::Peer(ServerProcess::start(file, host, namespace)?),
        }))
    }

    /// Where the region is.
    pub(super) fn region(&self) -> Result<String> {
        Ok(match self {
            Self::Peer(server) => server.region()?.to_string(),
            // An export without a name is the first one.
            Self::Nbd(server) => server.address()?.to_string(),
        })
    }

    /// Whether what is flushed goes through a journal.
    pub(super) fn is_journaled(&self) -> bool {
        matches!(self, Self::Peer(_))
    }

    /// Processor time that it has used.
    pub(super) fn cpu(&mut self) -> Result<Duration> {
        Ok(match self {
            Self::Peer(server) => server.cpu()?,
            Self::Nbd(server) => server.cpu()?,
        })
    }

    /// Its memory.
    pub(super) fn memory(&self) -> Result<Memory> {
        Ok(match self {
            Self::Peer(server) => server.memory()?,
            Self::Nbd(server) => server.memory()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_has_its_content_and_a_wrong_page_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let pristine = folder.path().join("region");
        make_region(&pristine, 64 * PAGE).expect("it is written");
        let region = CellRegion::new(&pristine, true).expect("it is copied");
        region.compare(false, &[], None).expect("it is as it was made");
        let file = File::options().write(true).open(region.path()).expect("it opens");
        let mut page = vec![0; PAGE as usize];
        content(9, 3, &mut page);
        file.write_all_at(&page, 9 * PAGE).expect("it is written");
        file.write_all_at(&5u64.to_le_bytes(), 0).expect("it is written");
        region.compare(false, &[(9, 3)], Some(5)).expect("it is as it was written");
        let trouble = region.compare(false, &[(9, 2)], Some(5)).expect_err("another version");
        assert_eq!(trouble.reason, "the server has wrong bytes in page 9");
        drop(region);
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 1);
    }
}
