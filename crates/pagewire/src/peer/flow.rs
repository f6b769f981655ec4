//! How much of a stream may be in flight: the receiver grants credit as it places what has come.
//!
//! How far credit runs ahead is core's [`Window`], which follows the bandwidth-delay product that is
//! measured here: bytes placed per time, and the round-trip time of the primary connection, which
//! carries no bulk and so is not delayed by it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use pagewire_core::pull::{Window, WindowLimits};

/// A few frames, so that a fast link with no latency never waits for credit; enough for the first
/// round trip of a slow one, so that the start is the link's slow start and not ours; and no more
/// than what a receiver can be asked to let lie in its socket buffers.
const LIMITS: WindowLimits = WindowLimits { min: 4 << 20, initial: 16 << 20, max: 256 << 20 };

/// On a fast network the time between two turns on the processor is longer than the round trip, and
/// it is what a sender has to be able to bridge; else the two sides wake each other for every extent.
const TURNS: Duration = Duration::from_millis(8);

/// Rates are measured over at least this long: shorter ones measure the scheduler.
const SAMPLE: Duration = Duration::from_millis(10);

/// The credit of one stream.
pub(crate) struct Flow {
    state: Mutex<State>,
}

struct State {
    window: Window,
    consumed: u64,
    granted: u64,
    sample_start: Instant,
    sample_bytes: u64,
}

impl Flow {
    pub(crate) fn new(now: Instant) -> Self {
        let state = State {
            window: Window::new(LIMITS),
            consumed: 0,
            granted: LIMITS.initial,
            sample_start: now,
            sample_bytes: 0,
        };
        Self { state: Mutex::new(state) }
    }

    /// What may be sent before anything has come.
    pub(crate) fn initial(&self) -> u64 {
        LIMITS.initial
    }

    /// `bytes` of payload were placed. Answers the new limit, if it is time to tell it.
    pub(crate) fn consumed(
        &self,
        bytes: u64,
        now: Instant,
        round_trip: impl FnOnce() -> Option<Duration>,
    ) -> Option<u64> {
        let mut state = self.state.lock().expect("no holder panics");
        state.consumed += bytes;
        state.sample_bytes += bytes;
        let elapsed = now.duration_since(state.sample_start);
        if elapsed >= SAMPLE {
            state.window.on_round_trip(round_trip().unwrap_or_default().max(TURNS));
            let sample = state.sample_bytes;
            state.window.on_delivered(sample, elapsed);
            state.sample_start = now;
            state.sample_bytes = 0;
        }
        let size = state.window.size();
        let limit = state.consumed + size;
        // A quarter of the window at a time: few messages, and the sender never runs dry.
        if limit < state.granted + size / 4 {
            return None;
        }
        state.granted = limit;
        Some(limit)
    }
}
