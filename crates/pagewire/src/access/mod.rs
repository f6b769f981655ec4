//! How an application reaches a region: each access method is a folder and a concrete type.
//!
//! - [`serve`]: offers regions to peers.
//! - [`uffd`]: maps a region into memory, pulled on page faults.

pub mod serve;
pub mod uffd;
