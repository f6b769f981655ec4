//! Opening a file straight on its cache: the kernel reads and maps the cache's file then, and asks nobody.
//!
//! The kernel has an inode either in its page cache or straight on another file, for all its opens: which of both
//! is decided by the first open, and stays until the last one is closed. An open is straight where all of the file
//! is in the cache, and was checked; where the mount is for reading, and stays at its epoch, since the cache's file
//! holds an epoch until it moves on; and where kernel and privileges allow it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use fuser::{BackingId, InitFlags, KernelConfig};

use super::MountOptions;
use crate::access::region_file::RegionFile;

/// How deep file systems may be stacked with this one on top: a cache may lie on an overlay.
const DEPTH: u32 = 2;

/// Whether files of a mount can be opened straight on their caches.
#[derive(Default)]
pub(super) struct Passthrough(AtomicBool);

impl Passthrough {
    /// Asks the kernel for it, where the mount could use it.
    pub(super) fn negotiate(&self, options: &MountOptions, config: &mut KernelConfig) {
        let is_wanted = !options.writable && !options.direct && !options.follow;
        let can = is_wanted
            && config.set_max_stack_depth(DEPTH).is_ok()
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        self.0.store(can, Ordering::Release);
    }

    /// Whether a file may be opened straight on its cache as soon as all of it is there.
    pub(super) fn is_for(&self, file: &RegionFile) -> bool {
        self.0.load(Ordering::Acquire) && file.region().cache().is_some()
    }

    /// Whether that is so now.
    pub(super) fn is_ready(&self, file: &RegionFile) -> bool {
        self.is_for(file) && file.region().cache().is_some_and(|cache| cache.image(file.epoch()).is_some())
    }

    /// The file of a cache that has everything, as `register` makes it known to the kernel.
    pub(super) fn backing(
        &self,
        file: &RegionFile,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Option<BackingId> {
        if !self.is_for(file) {
            return None;
        }
        let image = file.region().cache()?.image(file.epoch())?;
        register(image.file)
            .inspect_err(|error| {
                self.0.store(false, Ordering::Release);
                tracing::info!(%error, "files are not opened straight on their caches");
            })
            .ok()
    }
}

/// How a file is open.
#[derive(Default)]
pub(super) struct Opens(Mutex<State>);

#[derive(Default)]
struct State {
    count: u64,
    /// Where it is open straight on its cache.
    backing: Option<Arc<BackingId>>,
}

impl Opens {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    /// A program opens the file: as it is open, or where it is not, straight on what `backing` answers.
    pub(super) fn open(&self, backing: impl FnOnce() -> Option<BackingId>) -> Option<Arc<BackingId>> {
        let mut state = self.lock();
        if state.count == 0 {
            state.backing = backing().map(Arc::new);
        }
        state.count += 1;
        state.backing.clone()
    }

    /// A program has closed it.
    pub(super) fn release(&self) {
        let mut state = self.lock();
        state.count = state.count.saturating_sub(1);
        if state.count == 0 {
            state.backing = None;
        }
    }

    /// Whether it is open straight on its cache; none where it is not open.
    pub(super) fn is_straight(&self) -> Option<bool> {
        let state = self.lock();
        (state.count > 0).then_some(state.backing.is_some())
    }
}
