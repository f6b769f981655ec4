//! How an application reaches a region: each access method is a folder and a concrete type.
//!
//! - `fuse`: mounts a region as a file that any program can open.
//! - [`mirror`]: keeps a region in step with a file that programs have mapped.
//! - `nbd`: offers regions to any NBD client, and makes a region a block device of this host.
//! - `region_file`: what mounts and devices have in common: a region that is read, written and flushed by offset.
//! - [`serve`]: offers regions to peers.
//! - [`uffd`]: maps a region into memory, pulled on page faults.

#[cfg(feature = "fuse")]
pub mod fuse;
pub mod mirror;
#[cfg(feature = "nbd")]
pub mod nbd;
#[cfg(any(feature = "fuse", feature = "nbd"))]
mod region_file;
pub mod serve;
pub mod uffd;
