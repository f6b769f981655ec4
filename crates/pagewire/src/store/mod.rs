//! Stores: where a region's bytes live. This file is the contract; each kind has a file of its own.
//!
//! A store is *submit and complete*: a request may be submitted from any thread, without a runtime,
//! and its answer goes to a [`Sink`] on whichever thread has it: the caller's own where the bytes
//! are at hand, the thread that read the socket where they come from a peer. That thread may place
//! the bytes at once, so a page fault's answer changes hands no more often than it must.
//!
//! What only some stores can do is an optional capability: [`Info::capabilities`] says which, and
//! the method's default is "no".

pub(crate) mod arriving;
pub mod cache;
pub mod file;
pub mod memory;
#[cfg(feature = "nbd")]
pub mod nbd;
pub mod remote;
pub mod wrap;

mod blocking;
mod contract;
mod cut;
mod disk;
pub(crate) mod gate;
mod gather;
mod joined;
pub(crate) mod pool;
#[cfg(test)]
mod simulated;
#[cfg(test)]
pub(crate) mod steps;

pub use crate::sink::{Part, Sink};
pub use blocking::Blocking;
pub(crate) use blocking::wait;
pub use cache::{CacheFiles, CacheInfo, CacheProgress, CacheStore, open_cached, open_in_memory};
pub use contract::{
    AtOnce, Capabilities, Completion, Flush, FlushDone, HashRequest, Info, Lent, Read, STAGED, Stage, Store,
    Stream, StreamRequest, Traffic, Urgency,
};
pub(crate) use contract::{given_up, stale, too_long};
pub use file::{FileOptions, FileStore};
pub(crate) use gather::Gather;
pub use memory::MemoryStore;
#[cfg(feature = "nbd")]
pub use nbd::{NbdExport, NbdStore, list_exports};
pub use remote::{ClientTls, Identity, RemoteOptions, RemoteStore, describe, list, migration};

use std::sync::Arc;

use crate::address::StoreAddress;
use crate::error::Result;

/// Opens the store at `address`: for writing too where `writable` is true.
///
/// # Errors
///
/// Whatever keeps the store from being opened; the text names the address.
pub fn open(address: &StoreAddress, writable: bool, remote: &RemoteOptions) -> Result<Arc<dyn Store>> {
    let owner = writable.then(this_process);
    open_as(address, owner.as_deref(), remote)
}

/// The same, for writing where an owner is named: a text that a second writer is told.
///
/// # Errors
///
/// As [`open`]; [`ErrorKind::Busy`](crate::ErrorKind::Busy) while somebody else writes to a region of a peer.
pub fn open_as(
    address: &StoreAddress,
    owner: Option<&str>,
    remote: &RemoteOptions,
) -> Result<Arc<dyn Store>> {
    let writable = owner.is_some();
    Ok(match address {
        StoreAddress::Memory { size } => Arc::new(MemoryStore::new(*size)),
        StoreAddress::File(file) => Arc::new(FileStore::at(file, writable)?),
        StoreAddress::Remote(region) => Arc::new(match owner {
            Some(owner) => RemoteStore::connect_writer(region, remote, owner)?,
            None => RemoteStore::connect(region, remote)?,
        }),
        #[cfg(feature = "nbd")]
        StoreAddress::Nbd(export) => Arc::new(NbdStore::connect(export, writable, remote)?),
        #[cfg(not(feature = "nbd"))]
        StoreAddress::Nbd(export) => {
            let text =
                format!("cannot open {export}: this program was built without NBD (the cargo feature 'nbd')");
            return Err(crate::error::Error::new(crate::error::ErrorKind::Unsupported, text));
        }
    })
}

/// This process, for somebody else to find it: its program, its number and its host.
pub fn this_process() -> String {
    let program = std::env::current_exe().ok();
    let program = program.as_deref().and_then(std::path::Path::file_name).unwrap_or_default();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let text = format!("{} (process {}) on {}", program.display(), std::process::id(), host.trim());
    text.chars().take(pagewire_core::wire::MAX_OWNER / 4).collect()
}
