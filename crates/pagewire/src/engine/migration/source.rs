//! Where what has not arrived of a region comes from: its origin, and, where that is gone, its witness.
//!
//! Both have the same bytes, those of the region as it was frozen: the witness at the one epoch that was agreed on
//! at the switch. So it does not matter which of them answers, and a read that waits for an origin that is gone is
//! simply asked of the witness, too; what the origin says later is not listened to. Streams are not: they end with an
//! error that can be tried again, and whoever carries what is missing begins another one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use pagewire_core::chunk::ByteRange;
use pagewire_core::migrate::WitnessAt;

use crate::error::{Error, ErrorKind, Result};
use crate::sink::{Part, Sink};
use crate::store::{
    Completion, Flush, Info, Read, RemoteStore, Store, Stream, StreamRequest, Traffic, stale,
};

/// How often one read changes from one side to the other.
const TURNS: u32 = 3;

/// Where what has not arrived comes from.
pub(super) struct Source {
    name: String,
    /// None where it could not be reached when this side was started again.
    origin: Option<Arc<RemoteStore>>,
    /// What the region's new home is: all that is known where nobody else is there.
    home: Info,
    witness: Mutex<Option<Armed>>,
    /// Whether reads go to the witness.
    at_witness: AtomicBool,
    /// What the origin was asked for, and has not answered.
    waiting: Mutex<HashMap<u64, Waiting>>,
    next: AtomicU64,
    /// When the origin has answered last.
    heard: Mutex<Instant>,
    /// How many bytes have come from the witness.
    from_witness: AtomicU64,
    this: Weak<Self>,
}

/// A witness that has all of the frozen region.
#[derive(Clone)]
struct Armed {
    store: Arc<dyn Store>,
    at: WitnessAt,
}

struct Waiting {
    since: Instant,
    what: What,
}

enum What {
    Read(Arc<Asked>),
    Stream(Arc<Streamed>),
}

/// A read that either side may answer.
struct Asked {
    source: Arc<Source>,
    id: u64,
    urgency: crate::store::Urgency,
    state: Mutex<AskedState>,
}

struct AskedState {
    /// Which attempt counts.
    turn: u32,
    missing: Vec<ByteRange>,
    /// None once it has ended.
    sink: Option<Arc<dyn Sink>>,
}

/// One attempt at a read.
struct Attempt {
    asked: Arc<Asked>,
    turn: u32,
    from: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Origin,
    Witness,
}

/// A stream from the origin.
struct Streamed {
    source: Arc<Source>,
    id: u64,
    sink: std::sync::RwLock<Option<Arc<dyn Sink>>>,
}

impl Source {
    pub(super) fn new(name: &str, origin: Option<Arc<RemoteStore>>, home: Info) -> Arc<Self> {
        let at_witness = AtomicBool::new(origin.is_none());
        Arc::new_cyclic(|this| Self {
            name: name.to_owned(),
            origin,
            home,
            witness: Mutex::default(),
            at_witness,
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            heard: Mutex::new(Instant::now()),
            from_witness: AtomicU64::new(0),
            this: this.clone(),
        })
    }

    /// From now on the witness is there, too: `store` at what `at` says, and nothing else.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Changed`] where it is another store, [`ErrorKind::Stale`] where it has moved on.
    pub(super) fn arm(&self, store: Arc<dyn Store>, at: WitnessAt) -> Result<()> {
        let info = store.refresh()?;
        if *info.id.as_bytes() != at.store {
            let text = "it is another store than the one that the origin has streamed to";
            return Err(Error::new(ErrorKind::Changed, text));
        }
        store.pin(Some(at.epoch)).map_err(|error| match error.kind() {
            ErrorKind::Stale => stale(at.epoch, info.epoch),
            _ => error,
        })?;
        *self.heard() = Instant::now();
        *self.witness.lock().expect("no holder panics") = Some(Armed { store, at });
        Ok(())
    }

    /// Whether the loss of the origin loses nothing.
    pub(super) fn is_protected(&self) -> bool {
        self.armed().is_some()
    }

    /// Whether reads go to the witness.
    pub(super) fn is_at_witness(&self) -> bool {
        self.at_witness.load(Ordering::Acquire) && self.is_protected()
    }

    /// How many bytes have come from the witness.
    pub(super) fn witnessed(&self) -> u64 {
        self.from_witness.load(Ordering::Relaxed)
    }

    /// Whether there is an origin that answers, as far as is known.
    fn has_origin(&self) -> bool {
        self.origin.as_ref().is_some_and(|origin| !origin.is_gone())
    }

    /// Whether many ranges can be asked for at once, to come one after the other.
    pub(super) fn streams(&self) -> bool {
        match (self.is_at_witness(), self.armed()) {
            (true, Some(armed)) => armed.store.info().capabilities.stream,
            _ => self.origin.is_some(),
        }
    }

    /// Goes to the witness where the origin is gone, or has been silent for longer than `silence` though it was asked.
    pub(super) fn look_after(&self, silence: Duration) {
        if self.at_witness.load(Ordering::Acquire) || !self.is_protected() {
            return;
        }
        let oldest = self.waiting().values().map(|waiting| waiting.since).min();
        let is_silent =
            oldest.is_some_and(|oldest| oldest.elapsed() >= silence) && self.heard().elapsed() >= silence;
        if is_silent || !self.has_origin() {
            let why = if is_silent { "does not answer" } else { "is gone" };
            tracing::warn!(region = self.name, "the origin {why}: what is left comes from the witness");
            self.go_to_witness();
        }
    }

    fn go_to_witness(&self) {
        self.at_witness.store(true, Ordering::Release);
        let waiting: Vec<Waiting> = self.waiting().drain().map(|(_, waiting)| waiting).collect();
        for Waiting { what, .. } in waiting {
            match what {
                What::Read(asked) => asked.turn(None, Side::Witness),
                What::Stream(streamed) => streamed.end(Err(gone(&self.name))),
            }
        }
    }

    fn armed(&self) -> Option<Armed> {
        self.witness.lock().expect("no holder panics").clone()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().expect("no holder panics")
    }

    fn heard(&self) -> MutexGuard<'_, Instant> {
        self.heard.lock().expect("no holder panics")
    }

    fn await_origin(&self, id: u64, what: What) {
        self.waiting().insert(id, Waiting { since: Instant::now(), what });
    }

    /// Asks one side for what is missing of a read.
    fn submit(&self, asked: &Arc<Asked>, turn: u32, from: Side, ranges: Vec<ByteRange>) {
        let sink: Arc<dyn Sink> = Arc::new(Attempt { asked: asked.clone(), turn, from });
        let urgency = asked.urgency;
        match (from, &self.origin, self.armed()) {
            (Side::Origin, Some(origin), _) => {
                origin.read(Read { ranges, epoch: origin.info().epoch, urgency, sink });
            }
            (Side::Witness, _, Some(Armed { store, at })) => {
                let ranges = clamped(ranges, store.info().length);
                store.read(Read { ranges, epoch: at.epoch, urgency, sink });
            }
            _ => sink.done(Err(gone(&self.name))),
        }
    }
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, AskedState> {
        self.state.lock().expect("no holder panics")
    }

    /// Asks `from` for what is missing, if `after` still is the attempt that counts; none for whichever that is.
    fn turn(self: &Arc<Self>, after: Option<u32>, from: Side) {
        let (turn, missing) = {
            let mut state = self.lock();
            if state.sink.is_none() || after.is_some_and(|after| after != state.turn) {
                return;
            }
            state.turn += 1;
            (state.turn, state.missing.clone())
        };
        if from == Side::Origin {
            self.source.await_origin(self.id, What::Read(self.clone()));
        }
        self.source.submit(self, turn, from, missing);
    }
}

impl Sink for Attempt {
    fn part(&self, part: Part<'_>) {
        let mut state = self.asked.lock();
        if state.turn != self.turn {
            return;
        }
        let Some(sink) = state.sink.clone() else { return };
        let range = part.range();
        state.missing = ByteRange::without_any(std::mem::take(&mut state.missing), range);
        match self.from {
            Side::Origin => *self.asked.source.heard() = Instant::now(),
            Side::Witness => {
                self.asked.source.from_witness.fetch_add(range.len(), Ordering::Relaxed);
            }
        }
        // With the lock: no other attempt is to give any of it meanwhile.
        sink.part(part);
    }

    fn done(&self, result: Result<()>) {
        let asked = &self.asked;
        let source = &asked.source;
        if asked.lock().turn != self.turn {
            return;
        }
        source.waiting().remove(&asked.id);
        let other = match self.from {
            Side::Origin if source.is_protected() => Some(Side::Witness),
            Side::Witness if source.has_origin() => Some(Side::Origin),
            _ => None,
        };
        match (&result, other) {
            (Err(error), Some(other)) if self.turn < TURNS && error.kind() != ErrorKind::Cancelled => {
                tracing::debug!(region = source.name, ?other, %error, "the other side is asked instead");
                return asked.turn(Some(self.turn), other);
            }
            _ => {}
        }
        let sink = {
            let mut state = asked.lock();
            if state.turn == self.turn { state.sink.take() } else { None }
        };
        if let Some(sink) = sink {
            sink.done(match self.from {
                Side::Origin => result,
                Side::Witness => result.map_err(|error| {
                    error.context(format!("'{}' cannot be had from its witness", source.name))
                }),
            });
        }
    }
}

impl Streamed {
    fn end(&self, result: Result<()>) {
        let sink = self.sink.write().expect("no holder panics").take();
        self.source.waiting().remove(&self.id);
        if let Some(sink) = sink {
            sink.done(result);
        }
    }
}

impl Sink for Streamed {
    fn part(&self, part: Part<'_>) {
        let sink = self.sink.read().expect("no holder panics");
        if let Some(sink) = &*sink {
            *self.source.heard() = Instant::now();
            sink.part(part);
        }
    }

    fn done(&self, result: Result<()>) {
        self.end(result);
    }
}

impl Store for Source {
    fn info(&self) -> Info {
        match (self.is_at_witness(), self.armed(), &self.origin) {
            (true, Some(Armed { store, at }), _) => Info { epoch: at.epoch, ..store.info() },
            (_, _, Some(origin)) => origin.info(),
            _ => self.home,
        }
    }

    fn read(&self, read: Read) {
        let Read { ranges, epoch, urgency, sink } = read;
        match (&self.origin, self.is_protected(), self.this.upgrade()) {
            (Some(origin), false, _) => origin.read(Read { ranges, epoch, urgency, sink }),
            (_, true, Some(source)) => {
                let id = self.next.fetch_add(1, Ordering::Relaxed);
                let state = AskedState { turn: 0, missing: ranges, sink: Some(sink) };
                let asked = Arc::new(Asked { source, id, urgency, state: Mutex::new(state) });
                let from = if self.is_at_witness() { Side::Witness } else { Side::Origin };
                asked.turn(Some(0), from);
                // Who has gone to the witness meanwhile has not seen this one, or has, and it has turned.
                if from == Side::Origin && self.is_at_witness() {
                    asked.turn(Some(1), Side::Witness);
                }
            }
            _ => sink.done(Err(gone(&self.name))),
        }
    }

    fn write(&self, _: &[ByteRange], _: &[u8], done: Completion) {
        done(Err(Error::new(ErrorKind::Unsupported, "what has not arrived is not written to")));
    }

    fn flush(&self, flush: Flush) {
        (flush.done)(Ok(self.info()));
    }

    fn stream(&self, request: StreamRequest) -> Result<Box<dyn Stream>> {
        let StreamRequest { ranges, sink, .. } = request;
        match (self.is_at_witness(), self.armed(), &self.origin, self.this.upgrade()) {
            (true, Some(Armed { store, at }), ..) => {
                let sink = Arc::new(Counted { source: self.this.clone(), sink });
                let ranges = clamped(ranges, store.info().length);
                store.stream(StreamRequest { ranges, epoch: at.epoch, sink })
            }
            (_, None, Some(origin), _) => {
                origin.stream(StreamRequest { ranges, epoch: origin.info().epoch, sink })
            }
            (_, Some(_), Some(origin), Some(source)) => {
                let id = self.next.fetch_add(1, Ordering::Relaxed);
                let sink = std::sync::RwLock::new(Some(sink));
                let streamed = Arc::new(Streamed { source, id, sink });
                self.await_origin(id, What::Stream(streamed.clone()));
                let stream = origin.stream(StreamRequest {
                    ranges,
                    epoch: origin.info().epoch,
                    sink: streamed.clone(),
                });
                match stream {
                    Ok(stream) => {
                        if self.is_at_witness() {
                            streamed.end(Err(gone(&self.name)));
                        }
                        Ok(stream)
                    }
                    Err(error) => {
                        self.waiting().remove(&id);
                        Err(error)
                    }
                }
            }
            _ => Err(gone(&self.name)),
        }
    }

    fn traffic(&self) -> Traffic {
        let witness = self.armed().map(|armed| armed.store.traffic()).unwrap_or_default();
        let origin = self.origin.as_ref().map(|origin| origin.traffic()).unwrap_or_default();
        Traffic { sent: origin.sent + witness.sent, received: origin.received + witness.received }
    }

    fn round_trip(&self) -> Duration {
        match (self.is_at_witness(), self.armed(), &self.origin) {
            (true, Some(armed), _) => armed.store.round_trip(),
            (_, _, Some(origin)) => origin.round_trip(),
            _ => Duration::ZERO,
        }
    }
}

/// A sink of what the witness streams.
struct Counted {
    source: Weak<Source>,
    sink: Arc<dyn Sink>,
}

impl Sink for Counted {
    fn part(&self, part: Part<'_>) {
        if let Some(source) = self.source.upgrade() {
            source.from_witness.fetch_add(part.range().len(), Ordering::Relaxed);
        }
        self.sink.part(part);
    }

    fn done(&self, result: Result<()>) {
        self.sink.done(result);
    }
}

/// What a page has behind the region's end an origin gives, and a witness need not have.
fn clamped(ranges: Vec<ByteRange>, end: u64) -> Vec<ByteRange> {
    let ranges = ranges.into_iter().map(|range| range.clamp_to(end));
    ranges.filter(|range| !range.is_empty()).collect()
}

fn gone(name: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the origin of '{name}' is gone")).with_retry(true)
}
