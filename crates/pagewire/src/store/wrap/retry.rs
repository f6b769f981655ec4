//! Trying again what failed in a way that may pass.

use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pagewire_core::chunk::ByteRange;

use crate::error::{Error, ErrorKind, Result};
use crate::store::{
    CacheStore, Completion, Flush, HashRequest, Info, Lent, Part, Read, Sink, Stage, Store, Stream,
    StreamRequest, Traffic, Urgency,
};

/// The pause before the first repetition; it doubles from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Repeats reads that failed with an error that can be retried, until the patience is over. What
/// was answered before the failure is not asked for again. Writes and flushes are passed on as they
/// are: who pushes keeps the marks and repeats them itself.
pub struct Retry {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    patience: Duration,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: BinaryHeap<Due>,
    closed: bool,
    started: bool,
}

/// A read that waits for its next attempt.
struct Due {
    at: Instant,
    attempt: Arc<Attempt>,
}

/// A read that is made, maybe several times.
struct Attempt {
    inner: Arc<Inner>,
    sink: Arc<dyn Sink>,
    epoch: u64,
    urgency: Urgency,
    deadline: Instant,
    state: Mutex<AttemptState>,
}

struct AttemptState {
    missing: Vec<ByteRange>,
    pause: Duration,
}

impl Retry {
    /// `store`, whose reads are repeated for as long as `patience`.
    pub fn new(store: Arc<dyn Store>, patience: Duration) -> Self {
        Self { inner: Arc::new(Inner { store, patience, queue: Mutex::default(), changed: Condvar::new() }) }
    }
}

impl Store for Retry {
    fn info(&self) -> Info {
        self.inner.store.info()
    }

    fn read(&self, read: Read) {
        Arc::new(Attempt {
            inner: self.inner.clone(),
            sink: read.sink,
            epoch: read.epoch,
            urgency: read.urgency,
            deadline: Instant::now() + self.inner.patience,
            state: Mutex::new(AttemptState { missing: read.ranges, pause: FIRST_PAUSE }),
        })
        .submit();
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        self.inner.store.write(ranges, bytes, done);
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        self.inner.store.zero(ranges, done);
    }

    fn set_length(&self, length: u64, done: Completion) {
        self.inner.store.set_length(length, done);
    }

    fn flush(&self, flush: Flush) {
        self.inner.store.flush(flush);
    }

    fn stage(&self) -> Stage {
        self.inner.store.stage()
    }

    fn discard(&self) -> Result<()> {
        self.inner.store.discard()
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.inner.store.fence()
    }

    fn pin(&self, epoch: Option<u64>) -> Result<Info> {
        self.inner.store.pin(epoch)
    }

    fn unpin(&self, epoch: u64) {
        self.inner.store.unpin(epoch);
    }

    fn newest(&self) -> u64 {
        self.inner.store.newest()
    }

    fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        self.inner.store.changes(since)
    }

    fn lend(&self) -> Option<Lent<'_>> {
        self.inner.store.lend()
    }

    fn stream(&self, stream: StreamRequest) -> Result<Box<dyn Stream>> {
        self.inner.store.stream(stream)
    }

    fn hash(&self, hash: HashRequest) {
        self.inner.store.hash(hash);
    }

    fn traffic(&self) -> Traffic {
        self.inner.store.traffic()
    }

    fn round_trip(&self) -> Duration {
        self.inner.store.round_trip()
    }

    fn cache(&self) -> Option<&CacheStore> {
        self.inner.store.cache()
    }

    fn refresh(&self) -> Result<Info> {
        self.inner.store.refresh()
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        let waiting = {
            let mut queue = self.inner.queue.lock().expect("no holder panics");
            queue.closed = true;
            std::mem::take(&mut queue.waiting)
        };
        self.inner.changed.notify_all();
        for due in waiting {
            due.attempt.sink.done(Err(Error::new(ErrorKind::Cancelled, "the store was closed")));
        }
    }
}

impl Attempt {
    fn submit(self: Arc<Self>) {
        let (ranges, epoch, urgency) =
            (self.state.lock().expect("no holder panics").missing.clone(), self.epoch, self.urgency);
        let store = self.inner.store.clone();
        store.read(Read { ranges, epoch, urgency, sink: Arc::new(Once(self)) });
    }

    /// Waits for the next attempt, if there is still time for one.
    fn again(self: &Arc<Self>, error: Error) {
        let pause = {
            let mut state = self.state.lock().expect("no holder panics");
            let pause = state.pause;
            state.pause = (pause * 2).min(LONGEST_PAUSE);
            pause
        };
        let at = Instant::now() + pause;
        if at > self.deadline {
            return self.sink.done(Err(error));
        }
        let mut queue = self.inner.queue.lock().expect("no holder panics");
        if queue.closed {
            drop(queue);
            return self.sink.done(Err(error));
        }
        if !queue.started {
            let inner = self.inner.clone();
            match std::thread::Builder::new().name("pw-retry".into()).spawn(move || inner.repeat()) {
                Ok(_) => queue.started = true,
                Err(_) => {
                    drop(queue);
                    return self.sink.done(Err(error));
                }
            }
        }
        queue.waiting.push(Due { at, attempt: self.clone() });
        drop(queue);
        self.inner.changed.notify_all();
    }
}

/// The sink of one attempt.
struct Once(Arc<Attempt>);

impl Sink for Once {
    fn part(&self, part: Part<'_>) {
        self.0.sink.part(part);
        let got = part.range();
        let mut state = self.0.state.lock().expect("no holder panics");
        state.missing = ByteRange::without_any(std::mem::take(&mut state.missing), got);
    }

    fn done(&self, result: Result<()>) {
        match result {
            Err(error) if error.can_retry() => self.0.again(error),
            result => self.0.sink.done(result),
        }
    }
}

impl Inner {
    /// The thread that makes the next attempts when they are due.
    fn repeat(&self) {
        let mut queue = self.queue.lock().expect("no holder panics");
        while !queue.closed {
            let now = Instant::now();
            match queue.waiting.peek() {
                Some(due) if due.at <= now => {
                    let due = queue.waiting.pop().expect("it was just seen");
                    drop(queue);
                    due.attempt.submit();
                    queue = self.queue.lock().expect("no holder panics");
                }
                Some(due) => {
                    let pause = due.at - now;
                    queue = self.changed.wait_timeout(queue, pause).expect("no holder panics").0;
                }
                None => queue = self.changed.wait(queue).expect("no holder panics"),
            }
        }
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest: it leaves the heap first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.at.cmp(&self.at)
    }
}
