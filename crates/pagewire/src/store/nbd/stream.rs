//! A stream: many ranges, read without a request of the caller's for each.
//!
//! A thread of its own keeps as many reads under way as fill the links, in the order in which the bytes are
//! wanted. It sends several with one system call and then rests until half of what was under way has come: who
//! receives neither sends nor wakes anybody for each answer. Where the server says what is a hole, that is
//! asked for ahead, and nothing is read of it.
//!
//! How much is under way follows the link ([`Window`]). Where there is one connection for everything, it is
//! little, so that who waits for something waits for little else.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pagewire_core::chunk::ByteRange;
use pagewire_core::pull::{SendOrder, Window, WindowLimits};

use super::call::{Call, Command, Ending, Extent};
use super::holes::Holes;
use super::session::{Lane, Session};
use crate::error::{Error, Result};
use crate::sink::{Part, Sink};
use crate::store::cut::Cut;
use crate::store::{Stream, StreamRequest};

/// How much one read asks for, in bytes: the cost per request has vanished, and what is received is still in
/// the processor's cache when it is placed.
pub(super) const PIECE: u64 = 256 << 10;

/// The longest part of zeroes, in bytes: a stream that is cancelled ends soon.
const ZEROES: u64 = 16 << 20;

/// Where bulk has connections of its own: enough for the first round trip of a slow link, no more than what
/// servers like to be asked for at once.
const LIMITS: WindowLimits = WindowLimits { min: 4 << 20, initial: 16 << 20, max: 128 << 20 };

/// Where there is one connection: a few reads.
const LIMITS_ALONE: WindowLimits = WindowLimits { min: 1 << 20, initial: 2 << 20, max: 64 << 20 };

/// On a fast network the time between two turns on the processor is longer than the round trip, and is what
/// has to be bridged.
const TURNS: Duration = Duration::from_millis(8);
const TURNS_ALONE: Duration = Duration::from_micros(200);

/// Rates are measured over at least this long.
const SAMPLE: Duration = Duration::from_millis(10);

/// A stream under way.
pub(super) struct NbdStream(Arc<Streaming>);

/// What the thread of a stream, its reads and whoever steers it share.
pub(super) struct Streaming {
    session: Arc<Session>,
    /// What the server takes offsets and lengths in.
    block: u64,
    sink: Arc<dyn Sink>,
    state: Mutex<State>,
    /// There is something to do for the thread.
    moved: Condvar,
}

struct State {
    order: SendOrder,
    holes: Holes,
    /// What is taken out of the order, and waits for word on holes.
    held: Vec<ByteRange>,
    /// What is known to be zero and was not told yet.
    zeroes: Vec<ByteRange>,
    calls: Vec<Arc<Call>>,
    /// How much one read asks for, at most.
    longest: u64,
    /// How many bytes are under way.
    in_flight: u64,
    flow: Flow,
    error: Option<Error>,
    /// Nothing is delivered any more.
    over: bool,
    delivering: usize,
    /// The thread has nothing to do.
    rests: bool,
}

/// How much may be under way.
struct Flow {
    window: Window,
    turns: Duration,
    since: Instant,
    bytes: u64,
}

impl Flow {
    fn came(&mut self, bytes: u64, round_trip: impl FnOnce() -> Duration) {
        self.bytes += bytes;
        let elapsed = self.since.elapsed();
        if elapsed >= SAMPLE {
            self.window.on_round_trip(round_trip().max(self.turns));
            self.window.on_delivered(self.bytes, elapsed);
            (self.since, self.bytes) = (Instant::now(), 0);
        }
    }
}

/// What the thread does next.
enum Work {
    Zeroes(Vec<ByteRange>),
    Ask(ByteRange),
    Reads(Vec<ByteRange>),
    End(Result<()>),
}

impl Streaming {
    /// Begins a stream.
    pub(super) fn start(
        session: &Arc<Session>,
        (block, longest): (u64, u64),
        request: StreamRequest,
    ) -> Result<(Arc<Self>, NbdStream)> {
        let length = session.export.size;
        let (alone, asks) = {
            let state = session.lock();
            (state.bulk_links() == 0, state.knows_holes())
        };
        let (limits, turns) = if alone { (LIMITS_ALONE, TURNS_ALONE) } else { (LIMITS, TURNS) };
        let flow = Flow { window: Window::new(limits), turns, since: Instant::now(), bytes: 0 };
        let state = State {
            order: SendOrder::new(length, &request.ranges),
            holes: Holes::new(length, block, asks),
            held: Vec::new(),
            zeroes: Vec::new(),
            calls: Vec::new(),
            longest: longest.min(PIECE),
            in_flight: 0,
            flow,
            error: None,
            over: false,
            delivering: 0,
            rests: false,
        };
        let streaming = Arc::new(Self {
            session: session.clone(),
            block,
            sink: request.sink,
            state: Mutex::new(state),
            moved: Condvar::new(),
        });
        let running = streaming.clone();
        std::thread::Builder::new()
            .name("nbd-stream".into())
            .spawn(move || running.run())
            .map_err(|error| Error::io("cannot start a thread", &error))?;
        Ok((streaming.clone(), NbdStream(streaming)))
    }

    /// Somebody waits for `range`, and has asked for it: it is left out here.
    pub(super) fn skip(&self, range: ByteRange) {
        self.lock().order.skip(range);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn run(self: &Arc<Self>) {
        crate::schedule::bulk();
        loop {
            match self.wait_for_work() {
                Work::Zeroes(ranges) => {
                    for part in ranges.iter().flat_map(|range| range.split(ZEROES)) {
                        self.deliver(Part::Zero(part));
                    }
                }
                Work::Ask(span) => self.ask(span),
                Work::Reads(ranges) => self.read(&ranges),
                Work::End(result) => return self.end(result),
            }
        }
    }

    fn wait_for_work(&self) -> Work {
        let mut state = self.lock();
        loop {
            if state.over {
                return Work::End(Err(self.session.cancelled()));
            }
            if let Some(error) = &state.error {
                return Work::End(Err(error.clone()));
            }
            let zeroes = state.take_zeroes();
            if !zeroes.is_empty() {
                return Work::Zeroes(zeroes);
            }
            if let Some(offset) = state.held.first().map(|range| range.start)
                && let Some(span) = state.holes.next_span(offset)
            {
                return Work::Ask(span);
            }
            let reads = state.take_reads();
            if !reads.is_empty() {
                return Work::Reads(reads);
            }
            if state.held.first().is_some_and(|held| !state.holes.is_known(held.start))
                && !state.holes.is_asked()
            {
                continue;
            }
            if state.held.is_empty() && state.in_flight == 0 && state.order.is_empty() {
                return Work::End(Ok(()));
            }
            state = self.rest(state);
        }
    }

    fn rest<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.rests = true;
        let mut state = self.moved.wait(state).expect("no holder panics");
        state.rests = false;
        state
    }

    /// Wakes the thread, if it rests: to wake nobody is a system call, too.
    fn wake(&self, state: MutexGuard<'_, State>) {
        if state.rests {
            drop(state);
            self.moved.notify_all();
        }
    }

    /// Reads ranges. Those that are next to each other go by one link.
    fn read(self: &Arc<Self>, ranges: &[ByteRange]) {
        let calls: Vec<_> = ranges
            .iter()
            .map(|range| {
                let read = Arc::new(Read { streaming: self.clone(), bytes: range.len() });
                let wide = range.align_out(self.block).clamp_to(self.session.export.size);
                let sink: Arc<dyn Sink> = match wide == *range {
                    true => read,
                    false => Arc::new(Cut::new(&[*range], self.session.export.size, read)),
                };
                Call::new(Command::Read(wide), Lane::Bulk, None, Ending::Sink(sink))
            })
            .collect();
        {
            let mut state = self.lock();
            state.calls.retain(|call| !call.has_ended());
            state.calls.extend(calls.iter().cloned());
        }
        let links = self.session.lock().bulk_links().max(1);
        for part in calls.chunks(calls.len().div_ceil(links)) {
            self.session.submit(part.to_vec());
        }
        // What is a hole further on should be known when it is reached.
        let span = ranges.last().and_then(|last| self.lock().holes.next_span(last.end));
        if let Some(span) = span {
            self.ask(span);
        }
    }

    /// Asks for the holes of a span.
    fn ask(self: &Arc<Self>, span: ByteRange) {
        let streaming = self.clone();
        let ending = Ending::Extents(Box::new(move |extents: Result<Vec<Extent>>| {
            let mut state = streaming.lock();
            let zeroes = state.holes.answer(extents.as_deref().ok());
            state.zeroes.extend(zeroes);
            streaming.wake(state);
        }));
        let call = Call::new(Command::Status(span), Lane::Bulk, self.session.deadline(), ending);
        self.lock().calls.push(call.clone());
        self.session.submit(vec![call]);
    }

    fn deliver(&self, part: Part<'_>) {
        {
            let mut state = self.lock();
            if state.over {
                return;
            }
            state.delivering += 1;
        }
        self.sink.part(part);
        let mut state = self.lock();
        state.delivering -= 1;
        if matches!(part, Part::Bytes { .. }) {
            state.flow.came(part.range().len(), || self.session.lock().round_trip);
        }
        if state.over && state.delivering == 0 {
            self.wake(state);
        }
    }

    /// A read has ended.
    fn came(&self, bytes: u64, result: Result<()>) {
        let mut state = self.lock();
        state.in_flight -= bytes;
        if let Err(error) = result {
            state.error.get_or_insert(error);
        }
        let is_low = state.in_flight <= state.flow.window.size() / 2;
        if is_low || state.error.is_some() {
            self.wake(state);
        }
    }

    /// The end: told when nothing is delivered any more.
    fn end(&self, result: Result<()>) {
        let calls = {
            let mut state = self.lock();
            state.over = true;
            std::mem::take(&mut state.calls)
        };
        for call in calls {
            call.end(Err(self.session.cancelled()));
        }
        let mut state = self.lock();
        while state.delivering > 0 {
            state = self.rest(state);
        }
        drop(state);
        self.sink.done(result);
    }
}

impl State {
    /// What is known to be zero of what is still to be told.
    fn take_zeroes(&mut self) -> Vec<ByteRange> {
        let mut taken = Vec::new();
        for zero in std::mem::take(&mut self.zeroes) {
            taken.extend(self.order.take(zero));
            let held = std::mem::take(&mut self.held);
            for range in held {
                let common = range.intersect(zero);
                if common.is_empty() {
                    self.held.push(range);
                    continue;
                }
                taken.push(common);
                self.held.extend(range.without(zero).into_iter().filter(|left| !left.is_empty()));
            }
        }
        taken
    }

    /// What to read now.
    fn take_reads(&mut self) -> Vec<ByteRange> {
        let mut reads = Vec::new();
        let window = self.flow.window.size();
        // Many at a time.
        if self.in_flight > window / 2 {
            return reads;
        }
        while self.in_flight < window {
            let next =
                if self.held.is_empty() { self.order.next(self.longest) } else { Some(self.held.remove(0)) };
            let Some(next) = next else { break };
            if !self.holes.is_known(next.start) {
                self.held.insert(0, next);
                break;
            }
            self.in_flight += next.len();
            reads.push(next);
        }
        reads
    }
}

impl Stream for NbdStream {
    fn steer(&self, ranges: &[ByteRange]) {
        self.0.lock().order.steer(ranges);
    }

    fn cancel(&self) {
        let mut state = self.0.lock();
        state.over = true;
        self.0.wake(state);
    }
}

impl Drop for NbdStream {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The sink of one read of a stream.
struct Read {
    streaming: Arc<Streaming>,
    bytes: u64,
}

impl Sink for Read {
    fn part(&self, part: Part<'_>) {
        self.streaming.deliver(part);
    }

    fn done(&self, result: Result<()>) {
        self.streaming.came(self.bytes, result);
    }
}
