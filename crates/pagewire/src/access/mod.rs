//! How an application reaches a region: each access method is a folder and a concrete type.
//!
//! - `fuse`: mounts a region as a file that any program can open.
//! - `nbd`: offers regions to NBD clients.
//! - [`serve`]: offers regions to peers.
//! - [`uffd`]: maps a region into memory, pulled on page faults.

#[cfg(feature = "fuse")]
pub mod fuse;
#[cfg(feature = "nbd")]
pub mod nbd;
pub mod serve;
pub mod uffd;
