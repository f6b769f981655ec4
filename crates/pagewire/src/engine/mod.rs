//! The engine: the threads that carry out what core decides.
//!
//! - [`region`]: a store with a name, and what its readers of older epochs still see.
//! - [`local_copy`]: the contract of what is filled: mapped memory, plain memory, later a cache file.
//! - [`pull`]: fills a local copy: on demand, and in the background.
//! - [`push`]: writes a local copy back: in the background, and at a flush.
//! - [`progress`]: counters of a pull that a caller can read and wait for.
//! - [`trace`]: the order in which a program needed a region.
//! - [`hash`]: hashes of a region, for those who compare it with another.
//! - [`migration`]: moves a region that is in use, with what uses it, to another host.
//! - [`copy`]: moves a whole region from one store to another.

pub mod copy;
pub mod hash;
pub mod local_copy;
pub mod migration;
pub mod progress;
pub mod pull;
pub mod push;
pub mod region;
pub mod trace;

pub use local_copy::{Lent, LocalCopy, PlainMemory};
pub use progress::Progress;
pub use pull::{Fault, PullOptions, Puller};
#[cfg(any(feature = "fuse", feature = "nbd"))]
pub(crate) use push::Moment;
pub use push::{PushOptions, PushProgress, Pusher};
pub use region::{Change, Pin, Region, Watch, Writer};
