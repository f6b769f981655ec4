//! What an origin streams to a witness: all of a region once, then what was written meanwhile, again and again; and,
//! once the region is frozen, what is left, as an epoch of its own.
//!
//! A thread of each region does it, with a bound on what it has in flight. What the witness lacks is a set beside
//! those that the destination is told of ([`Unwitnessed`]): a page leaves it before it is read, and comes back where
//! anything fails before a flush has covered it. So the witness has a page as the application saw it at some moment
//! after its last write, or the page is in the set.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, ChunkSize, Geometry, PAGE_SIZE};
use pagewire_core::wire::Witnessed;

use super::outgoing::Unwitnessed;
use super::witness::Witness;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Completion, Flush, Gather, Info, Read, Store, Urgency, wait};

/// How many pages are read and written at once: 1 MiB.
const PIECE: u64 = 256;

/// How many bytes may be on their way to the witness.
const IN_FLIGHT: u64 = 8 << 20;

/// From so many bytes on, what was written is made durable, so that a switch finds little to be flushed; and that no
/// journal has to hold more.
const FLUSHED: u64 = 64 << 20;

/// How often what was written is made durable while little comes.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// How often what the application has written is looked for, while nothing else is to be sent.
const COLLECT: Duration = Duration::from_millis(20);

/// How long to wait before a witness that has failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// A region on its way to its witness. It ends when this goes, and with it the witness's lease.
pub(super) struct Witnessing {
    shared: Arc<Shared>,
}

struct Shared {
    witness: Witness,
    patience: Duration,
    region: String,
    tracked: Unwitnessed,
    state: Mutex<State>,
    changed: Condvar,
    /// How many bytes the witness has taken.
    sent: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Which store it is, once it was reached.
    store: [u8; 16],
    /// How many bytes are on their way.
    in_flight: u64,
    /// What has failed of them.
    error: Option<Error>,
    /// Whether the region is frozen, and what is left is to be sent.
    sealing: bool,
    /// The epoch that has all of the frozen region.
    sealed: Option<u64>,
    /// Why it is given up.
    failed: Option<Error>,
    stopped: bool,
}

/// The store, while it is written to.
struct Writing {
    store: Arc<dyn Store>,
    stage: u64,
    /// The pages that were sent and that no flush has covered.
    unflushed: BitSet,
    bytes: u64,
    flushed: Instant,
}

impl Witnessing {
    /// Begins, on a thread of its own.
    pub(super) fn start(
        witness: Witness,
        patience: Duration,
        region: &str,
        tracked: Unwitnessed,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            witness,
            patience,
            region: region.to_owned(),
            tracked,
            state: Mutex::default(),
            changed: Condvar::new(),
            sent: AtomicU64::new(0),
        });
        let run = shared.clone();
        std::thread::Builder::new()
            .name("pw-witness".into())
            .spawn(move || run.run())
            .map_err(|error| Error::io("cannot start a thread", &error))?;
        Ok(Self { shared })
    }

    /// How far it is.
    ///
    /// # Errors
    ///
    /// Why it was given up.
    pub(super) fn witnessed(&self) -> Result<Witnessed> {
        let missing = self.shared.tracked.missing();
        let state = self.shared.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        Ok(Witnessed {
            store: state.store,
            epoch: state.sealed.unwrap_or(0),
            missing: if state.sealed.is_some() { 0 } else { missing + state.in_flight },
            sent: self.shared.sent.load(Ordering::Relaxed),
        })
    }

    /// Waits until the witness was reached: while the application is suspended would be too late to learn that it cannot be.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] where it cannot be reached, or that lasts for longer than the patience.
    pub(super) fn reached(&self) -> Result<()> {
        let shared = &self.shared;
        let unknown = |state: &mut State| state.store == [0; 16] && state.failed.is_none();
        // Who gives it up says why, a little later than the patience ends.
        let waited = shared.changed.wait_timeout_while(shared.lock(), shared.patience * 2, unknown);
        let (state, waited) = waited.expect("no holder panics");
        match &state.failed {
            Some(error) => Err(error.clone()),
            None if waited.timed_out() => {
                let text = format!("{} does not answer within {:?}", shared.witness, shared.patience);
                Err(Error::new(ErrorKind::Io, text))
            }
            None => Ok(()),
        }
    }

    /// The region is frozen, and everything that was written is found: what the witness lacks is sent, and flushed.
    pub(super) fn begin_to_seal(&self) {
        self.shared.lock().sealing = true;
        self.shared.changed.notify_all();
    }

    /// Waits until the witness has all of it, durably.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] where that has failed, or lasts for longer than the patience.
    pub(super) fn sealed(&self) -> Result<()> {
        let shared = &self.shared;
        let ended = |state: &mut State| state.sealed.is_none() && state.failed.is_none();
        let waited = shared.changed.wait_timeout_while(shared.lock(), shared.patience, ended);
        let state = waited.expect("no holder panics").0;
        match (&state.failed, state.sealed) {
            (_, Some(_)) => Ok(()),
            (Some(error), None) => Err(error.clone()),
            (None, None) => {
                let text = format!(
                    "{} has not taken what is left of '{}' within {:?}",
                    shared.witness, shared.region, shared.patience
                );
                Err(Error::new(ErrorKind::Io, text))
            }
        }
    }
}

impl Drop for Witnessing {
    fn drop(&mut self) {
        // It is not waited for: it may hang at the witness for as long as that has patience.
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// The life of the thread.
    fn run(self: &Arc<Self>) {
        let mut failing: Option<Instant> = None;
        loop {
            let mut flushed = false;
            let Err(error) = self.stream(&mut flushed) else { return };
            if self.lock().stopped {
                return;
            }
            failing = failing.filter(|_| !flushed);
            let since = *failing.get_or_insert_with(Instant::now);
            tracing::warn!(region = self.region, %error, "a witness fails; it is tried again");
            if is_final(&error) || since.elapsed() > self.patience {
                let text = format!("{} of '{}' fails: {error}", self.witness, self.region);
                tracing::error!("{text}; the migration cannot go on");
                self.lock().failed = Some(Error::new(ErrorKind::Io, text));
                self.changed.notify_all();
                return;
            }
            let running = |state: &mut State| !state.stopped;
            drop(self.changed.wait_timeout_while(self.lock(), AGAIN, running).expect("no holder panics"));
        }
    }

    /// Waits, unless there is something else to be done.
    fn rest(&self, pause: Duration) {
        let idle = |state: &mut State| !state.stopped && !state.sealing;
        drop(self.changed.wait_timeout_while(self.lock(), pause, idle).expect("no holder panics"));
    }

    /// Streams until it is told to stop; `flushed` is set when something has become durable.
    fn stream(self: &Arc<Self>, flushed: &mut bool) -> Result<()> {
        let mut writing = self.open()?;
        let streamed = self.stream_to(&mut writing, flushed);
        // Nothing of it lands later, when the next attempt has begun.
        let ended = self.drain();
        let streamed = streamed.and(ended);
        if streamed.is_err() {
            self.lock().error = None;
            self.tracked.put_back(&writing.unflushed);
        }
        streamed
    }

    fn open(&self) -> Result<Writing> {
        let store = self.witness.open()?;
        let (info, length) = (store.info(), self.tracked.length());
        if !info.writable {
            let text = format!("{} cannot be written to", self.witness);
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if info.capacity < length {
            let text = format!(
                "{} has room for {} bytes, and '{}' has {length}",
                self.witness, info.capacity, self.region
            );
            return Err(Error::new(ErrorKind::NoSpace, text));
        }
        store.fence()?;
        self.lock().store = *info.id.as_bytes();
        self.changed.notify_all();
        let pages = Geometry::new(self.tracked.capacity(), ChunkSize::PAGE).page_count();
        let stage = store.stage().number;
        Ok(Writing { store, stage, unflushed: BitSet::new(pages), bytes: 0, flushed: Instant::now() })
    }

    fn stream_to(self: &Arc<Self>, writing: &mut Writing, flushed: &mut bool) -> Result<()> {
        let mut next = 0;
        self.resize(writing)?;
        loop {
            let (stopped, sealing) = {
                let state = self.lock();
                (state.stopped, state.sealing)
            };
            if stopped {
                return Ok(());
            }
            match self.tracked.take(next, PIECE) {
                Some(pages) => {
                    next = pages.end;
                    writing.unflushed.insert_range(pages.clone());
                    self.send(&writing.store, ByteRange::of_pages(pages.clone()))?;
                    writing.bytes += (pages.end - pages.start) * PAGE_SIZE;
                    if writing.bytes >= FLUSHED {
                        self.flush(writing)?;
                        *flushed = true;
                    }
                }
                None if next > 0 => {
                    // A page that is on its way does not set out again: it could be overtaken.
                    self.drain()?;
                    next = 0;
                }
                None if sealing => {
                    // What came between is sent first.
                    if self.tracked.missing() > 0 {
                        continue;
                    }
                    let info = self.flush(writing)?;
                    self.lock().sealed = Some(info.epoch);
                    self.changed.notify_all();
                    return self.hold();
                }
                None => {
                    if writing.bytes > 0 && writing.flushed.elapsed() >= FLUSH_INTERVAL {
                        self.flush(writing)?;
                        *flushed = true;
                    }
                    self.rest(COLLECT);
                    if !self.lock().sealing {
                        self.tracked.collect()?;
                    }
                }
            }
        }
    }

    /// Keeps the lease until nobody needs the witness any more.
    fn hold(&self) -> Result<()> {
        let mut state = self.lock();
        while !state.stopped {
            state = self.changed.wait(state).expect("no holder panics");
        }
        Ok(())
    }

    /// Sends what the application sees of a range.
    fn send(self: &Arc<Self>, store: &Arc<dyn Store>, range: ByteRange) -> Result<()> {
        let range = range.clamp_to(self.tracked.length());
        if range.is_empty() {
            return Ok(());
        }
        if store.stage().length < range.end {
            wait(|done| store.set_length(range.end, done))?;
        }
        let bytes = Gather::wait(range, |sink| {
            self.tracked.read(Read { ranges: vec![range], epoch: 0, urgency: Urgency::Background, sink });
        })?;
        self.begin(range.len())?;
        match is_zero(&bytes) {
            true => store.zero(&[range], self.completion(range.len())),
            false => store.write(&[range], &bytes, self.completion(range.len())),
        }
        Ok(())
    }

    /// Waits until there is room for more.
    fn begin(&self, bytes: u64) -> Result<()> {
        let full = |state: &mut State| state.in_flight > IN_FLIGHT && state.error.is_none();
        let waited = self.changed.wait_while(self.lock(), full);
        let mut state = waited.expect("no holder panics");
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        state.in_flight += bytes;
        Ok(())
    }

    fn completion(self: &Arc<Self>, bytes: u64) -> Completion {
        let shared = self.clone();
        Box::new(move |result| {
            let mut state = shared.lock();
            state.in_flight -= bytes;
            match result {
                Ok(()) => drop(shared.sent.fetch_add(bytes, Ordering::Relaxed)),
                Err(error) => drop(state.error.get_or_insert(error)),
            }
            drop(state);
            shared.changed.notify_all();
        })
    }

    /// Waits until nothing is on its way.
    fn drain(&self) -> Result<()> {
        let waited = self.changed.wait_while(self.lock(), |state| state.in_flight > 0);
        let state = waited.expect("no holder panics");
        state.error.clone().map_or(Ok(()), Err)
    }

    /// Makes what was written durable.
    fn flush(&self, writing: &mut Writing) -> Result<Info> {
        self.drain()?;
        self.resize(writing)?;
        let (store, stage) = (&writing.store, writing.stage);
        let number = store.stage().flushed + 1;
        let info = wait(|done| store.flush(Flush { number, stage, done }))?;
        (writing.unflushed, writing.bytes) = (BitSet::new(writing.unflushed.len()), 0);
        writing.flushed = Instant::now();
        Ok(info)
    }

    /// Gives the witness the region's length; one that cannot be cut off may stay longer.
    fn resize(&self, writing: &Writing) -> Result<()> {
        let (length, now) = (self.tracked.length(), writing.store.stage().length);
        if length == now {
            return Ok(());
        }
        match wait(|done| writing.store.set_length(length, done)) {
            Err(error) if error.kind() == ErrorKind::Unsupported && now > length => Ok(()),
            result => result,
        }
    }
}

/// Whether it is of no use to try again.
fn is_final(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Usage | ErrorKind::Unsupported | ErrorKind::NoSpace | ErrorKind::Denied)
}

fn is_zero(bytes: &[u8]) -> bool {
    // Each is like the one before it, and the first is zero: `memcmp` finds that out at the speed of memory.
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && bytes[..rest.len()] == *rest,
    }
}
