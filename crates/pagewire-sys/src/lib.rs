//! The kernel interfaces that Pagewire uses; the only crate with `unsafe`.
//!
//! # Rules
//!
//! - **Memory that somebody else may write is never behind a `&[u8]` or `&mut [u8]`.** Rust may assume that such
//!   bytes do not change while the reference lives. Bytes that an application (or another process) can write are
//!   copied by the kernel ([`mapping::Mapping::copy_out`]). The one door to a slice, [`mapping::Mapping::as_slice`],
//!   is `unsafe` and says what its caller must promise.
//! - No safe function of this crate can cause undefined behaviour, whatever it is given: a wrong address, length
//!   or descriptor is an error. Where the kernel is what guarantees this, the `SAFETY` comment says by which check.
//! - Every `unsafe` block names the invariant that it relies on.
//! - A raw descriptor becomes an [`OwnedFd`](std::os::fd::OwnedFd) in the statement after the kernel returned it,
//!   so that no error path leaks it.
//!
//! # Conventions
//!
//! Fallible calls return [`std::io::Result`] with the kernel's error in it; calls that a signal interrupted are
//! repeated. Addresses are `usize` (they may belong to another process, so they are no pointers); offsets and
//! lengths are bytes.
//!
//! # Layout
//!
//! - [`mapping`]: anonymous memory that is owned and unmapped on drop
//! - [`uffd`]: userfaultfd: who faults, and placing pages
//! - [`pagemap`]: which pages were written, by `PAGEMAP_SCAN`
//! - [`pulled`]: memory that is read as a slice while it is being filled
//! - [`tracked`]: memory that a program writes while it is being filled, and which of its pages were written
//! - [`socket`]: vectored and zero-copy sending, options, passing descriptors
//! - [`pipe`]: from a socket to a file without a copy between
//! - [`file`](mod@file): holes, locks, reads that do not wait, identity, attributes
//! - [`file_mapping`]: a file that is mapped shared
//! - [`fuse`]: which FUSE the kernel speaks
//! - [`mount`]: mounts, and what a file system is used by
//! - [`process`]: signals to other processes, and whether they are stopped
//! - [`isolation`]: processes with mounts of their own
//! - [`event`], [`signals`], [`thread`]: eventfd, pidfd, poll, signalfd, scheduling of the calling thread
//! - [`nbd`]: block devices that are answered for over sockets
//! - [`net`]: network namespaces and TUN devices, for link emulation
//! - `sqlite` (feature `sqlite`): an SQLite database that lies in a mapping

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("Pagewire needs Linux on a 64-bit machine");

pub mod event;
pub mod file;
pub mod file_mapping;
pub mod fuse;
pub mod isolation;
pub mod mapping;
pub mod mount;
pub mod nbd;
pub mod net;
pub mod pagemap;
pub mod pipe;
pub mod process;
pub mod pulled;
pub mod signals;
pub mod socket;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod thread;
pub mod tracked;
pub mod uffd;

mod gate;
mod guarded;
mod syscall;

/// Bytes of a base page: the unit of faults and of change tracking.
pub const PAGE_SIZE: usize = 4096;

/// Bytes of a huge page of hugetlb memory.
pub const HUGE_PAGE_SIZE: usize = 2 << 20;
