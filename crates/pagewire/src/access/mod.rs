//! How an application reaches a region: each access method is a folder and a concrete type.
//!
//! - `fuse`: mounts a region as a file that any program can open.
//! - [`mirror`]: keeps a region in step with a file that programs have mapped.
//! - [`serve`]: offers regions to peers.
//! - [`uffd`]: maps a region into memory, pulled on page faults.

#[cfg(feature = "fuse")]
pub mod fuse;
pub mod mirror;
pub mod serve;
pub mod uffd;
