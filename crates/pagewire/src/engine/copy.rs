//! Moving a whole region from one store to another: a pull whose local copy is the other store.

use std::sync::Arc;
use std::time::Duration;

use pagewire_core::chunk::{ByteRange, ChunkSize};
use pagewire_core::pull::PullOrder;

use super::local_copy::LocalCopy;
use super::progress::Progress;
use super::pull::{PullOptions, Puller};
use super::region::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Blocking, Store};

/// How a region is copied.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// Whether the target holds zeroes now, so that zeroes need not be written.
    pub target_is_zero: bool,
    /// After how long without a byte the copy fails.
    pub patience: Duration,
    /// How often progress is told.
    pub interval: Duration,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            target_is_zero: false,
            patience: Duration::from_secs(30),
            interval: Duration::from_millis(100),
        }
    }
}

/// Copies the newest epoch of `from` to `to`, and flushes it. Tells `progress` how far it is.
///
/// # Errors
///
/// [`ErrorKind::Usage`] where the target has another length. Whatever either store says; the target
/// then holds a part of the copy.
pub fn copy(
    from: &Arc<Region>,
    to: &Arc<dyn Store>,
    options: &CopyOptions,
    mut progress: impl FnMut(&Progress),
) -> Result<Progress> {
    let (length, room) = (from.info().length, to.info().length);
    if length != room {
        let text = format!("{length} bytes do not go into a region of {room} bytes");
        return Err(Error::new(ErrorKind::Usage, text));
    }
    let target = Arc::new(Target { store: to.clone(), is_zero: options.target_is_zero });
    let pull = PullOptions {
        chunk: ChunkSize::new(1 << 20).expect("a power of two"),
        order: PullOrder::Sequential,
        readahead: 0,
        give_up_after: Some(options.patience),
        ..PullOptions::default()
    };
    let puller = Puller::start(from.pin()?, target, pull)?;
    for update in puller.updates(options.interval) {
        progress(&update);
    }
    let done = puller.wait()?;
    to.flush_all()?;
    Ok(done)
}

/// A store that is filled.
struct Target {
    store: Arc<dyn Store>,
    is_zero: bool,
}

impl Target {
    fn cannot<T>(&self) -> Result<T> {
        Err(Error::new(ErrorKind::Unsupported, "the target of a copy is only written to"))
    }
}

impl LocalCopy for Target {
    fn place(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.store.write_bytes(offset, bytes)
    }

    fn place_zero(&self, range: ByteRange) -> Result<()> {
        if self.is_zero { Ok(()) } else { self.store.zero_range(range) }
    }

    fn wake(&self, _: ByteRange) -> Result<bool> {
        Ok(true)
    }

    fn fail(&self, _: ByteRange) -> Result<()> {
        Ok(())
    }

    fn evict(&self, _: ByteRange) -> Result<()> {
        self.cannot()
    }

    fn read_back(&self, _: u64, _: &mut [u8]) -> Result<()> {
        self.cannot()
    }

    fn take_dirty(&self, _: &mut Vec<ByteRange>) -> Result<()> {
        Ok(())
    }

    fn count_dirty(&self) -> Result<u64> {
        Ok(0)
    }
}
