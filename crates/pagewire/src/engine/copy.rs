//! Moving a whole region from one store to another: a pull whose local copy is the other store; or, where the other
//! store holds something like it already, what differs alone ([`delta`]); or each epoch as it comes ([`follow`]).

mod delta;
mod flight;
mod follow;

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pagewire_core::chunk::{ByteRange, ChunkSize};
use pagewire_core::pull::PullOrder;

pub use delta::{DeltaOptions, DeltaProgress, copy_delta};
pub use follow::{Followed, Follower};

use super::local_copy::LocalCopy;
use super::progress::Progress;
use super::pull::{PullOptions, Puller};
use super::region::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Blocking, Completion, Flush, Gather, Read, Store, Urgency, wait};

/// How many bytes may be on their way to the target: enough for 10 Gbit/s at 25 ms.
const WINDOW: u64 = 32 << 20;

/// How often a copy begins anew, at most, when its target has lost what was written.
const MOST_ROUNDS: usize = 8;

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

/// Copies the newest epoch of `from` to `to`, as one epoch. Tells `progress` how far it is.
///
/// # Errors
///
/// [`ErrorKind::NoSpace`] where the region does not fit. Whatever either store says; nothing has changed
/// then in a target that can `commit`, another one holds a part of the copy.
pub fn copy(
    from: &Arc<Region>,
    to: &Arc<dyn Store>,
    options: &CopyOptions,
    mut progress: impl FnMut(&Progress),
) -> Result<Progress> {
    for round in 1.. {
        let stage = to.stage().number;
        match copy_once(from, to, options, &mut progress) {
            // What was written is lost with the target's server, however much of it had arrived.
            Err(error) if error.can_retry() && to.stage().number != stage && round < MOST_ROUNDS => {
                tracing::warn!(region = from.name(), %error, "the target has lost a part of the copy; copying again");
            }
            result => return result,
        }
    }
    unreachable!("there is a last round")
}

fn copy_once(
    from: &Arc<Region>,
    to: &Arc<dyn Store>,
    options: &CopyOptions,
    progress: &mut impl FnMut(&Progress),
) -> Result<Progress> {
    let stage = to.stage();
    let pin = from.pin()?;
    let (length, epoch) = (pin.info().length, pin.epoch());
    if stage.length != length {
        wait(|done| to.set_length(length, done))?;
    }
    let target =
        Arc::new(Target { store: to.clone(), is_zero: options.target_is_zero, writes: Arc::default() });
    let pull = PullOptions {
        chunk: ChunkSize::new(1 << 20).expect("a power of two"),
        order: PullOrder::Sequential,
        readahead: 0,
        give_up_after: Some(options.patience),
        ..PullOptions::default()
    };
    let puller = Puller::start(pin, target.clone(), pull)?;
    for update in puller.updates(options.interval) {
        progress(&update);
    }
    let done = puller.wait()?;
    let deadline = Instant::now() + options.patience;
    for range in target.writes.end()? {
        // The connection to the target was lost meanwhile.
        let again = || target.store.write_bytes(range.start, &from_bytes(from, range, epoch)?);
        while let Err(error) = again() {
            if !error.can_retry() || Instant::now() >= deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    wait(|done| to.flush(Flush { number: stage.flushed + 1, stage: stage.number, done }))?;
    Ok(done)
}

fn from_bytes(from: &Region, range: ByteRange, epoch: u64) -> Result<Vec<u8>> {
    Gather::wait(range, |sink| {
        from.read(Read { ranges: vec![range], epoch, urgency: Urgency::Background, sink });
    })
}

/// A store that is filled.
struct Target {
    store: Arc<dyn Store>,
    is_zero: bool,
    writes: Arc<Writes>,
}

/// Writes on their way.
#[derive(Default)]
struct Writes {
    state: Mutex<WritesState>,
    moved: Condvar,
}

#[derive(Default)]
struct WritesState {
    bytes: u64,
    /// What is to be written again.
    again: Vec<ByteRange>,
    error: Option<Error>,
    /// How many wait for one to end.
    waiting: usize,
}

impl Writes {
    /// A write begins, as soon as there is room for it.
    fn begin(&self, bytes: u64) -> Result<()> {
        let mut state = self.state.lock().expect("no holder panics");
        while state.error.is_none() && state.bytes > 0 && state.bytes + bytes > WINDOW {
            state = self.wait(state);
        }
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        state.bytes += bytes;
        Ok(())
    }

    fn done(&self, range: ByteRange, result: Result<()>) {
        let mut state = self.state.lock().expect("no holder panics");
        state.bytes -= range.len();
        match result {
            Ok(()) => {}
            Err(error) if error.can_retry() => state.again.push(range),
            Err(error) => drop(state.error.get_or_insert(error.with_retry(false))),
        }
        // To wake nobody is a system call, too.
        if state.waiting > 0 {
            drop(state);
            self.moved.notify_all();
        }
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, WritesState>) -> MutexGuard<'a, WritesState> {
        state.waiting += 1;
        let mut state = self.moved.wait(state).expect("no holder panics");
        state.waiting -= 1;
        state
    }

    /// Waits for the end of all, and answers what is to be written again.
    fn end(&self) -> Result<Vec<ByteRange>> {
        let mut state = self.state.lock().expect("no holder panics");
        while state.bytes > 0 {
            state = self.wait(state);
        }
        match state.error.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut state.again)),
        }
    }
}

impl Target {
    fn cannot<T>(&self) -> Result<T> {
        Err(Error::new(ErrorKind::Unsupported, "the target of a copy is only written to"))
    }

    fn submit(&self, range: ByteRange, write: impl FnOnce(Completion)) -> Result<()> {
        self.writes.begin(range.len())?;
        let writes = self.writes.clone();
        write(Box::new(move |result| writes.done(range, result)));
        Ok(())
    }
}

impl LocalCopy for Target {
    fn place(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let range = ByteRange::new(offset, offset + bytes.len() as u64);
        self.submit(range, |done| self.store.write(&[range], bytes, done))
    }

    fn place_zero(&self, range: ByteRange) -> Result<()> {
        if self.is_zero {
            return Ok(());
        }
        self.submit(range, |done| self.store.zero(&[range], done))
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
