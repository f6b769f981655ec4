//! The ways to find written pages, and which of them this kernel has.

use std::fmt;
use std::io;

use super::TrackedMapping;
use crate::PAGE_SIZE;

/// How written pages are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tracking {
    /// The kernel takes note of the first write to a page, and is asked by `PAGEMAP_SCAN`. Linux 6.7.
    Async,
    /// The first write to a page is a fault, which the thread that reads events resolves by
    /// [`TrackedMapping::write_fault`]. Linux 5.7.
    Sync,
    /// All present pages are hashed, by 64-bit xxh3: a write that leaves a page as it was is none, and one
    /// that leaves it with the same hash is lost (a chance of 2^-64 for content that nobody crafted). Any
    /// Linux.
    Hash,
}

impl Tracking {
    /// The first of [`Tracking::Async`], [`Tracking::Sync`] and [`Tracking::Hash`] that works here, tried out
    /// on a page.
    ///
    /// # Errors
    ///
    /// When this process may not use userfaultfd at all: as [`Uffd::open`](crate::uffd::Uffd::open).
    pub fn best() -> io::Result<Tracking> {
        for tracking in [Tracking::Async, Tracking::Sync] {
            if works(tracking).unwrap_or(false) {
                return Ok(tracking);
            }
        }
        works(Tracking::Hash).map(|_| Tracking::Hash)
    }

    /// What it is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Tracking::Async => "async write-protection",
            Tracking::Sync => "write-protect faults",
            Tracking::Hash => "hashing",
        }
    }
}

impl fmt::Display for Tracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn works(tracking: Tracking) -> io::Result<bool> {
    let memory = TrackedMapping::new(PAGE_SIZE, Some(tracking), false)?;
    let mut written = Vec::new();
    let placed = memory.place(0, &[1; PAGE_SIZE])?;
    memory.take_written(&mut written)?;
    Ok(placed == PAGE_SIZE && written.is_empty())
}
