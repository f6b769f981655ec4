//! How many bytes may be in flight: the bandwidth-delay product of the link, as measured.
//!
//! Too few, and the link idles between requests; too many, and they wait in a queue somewhere, where a demand
//! fault waits behind them. The method is that of BBR (N. Cardwell, Y. Cheng, C. S. Gunn, S. H. Yeganeh,
//! V. Jacobson: "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016): the product of the highest
//! delivery rate and the lowest round trip seen lately, times a gain. TCP below does the congestion control; what
//! this decides is only how much is asked for, so BBR's pacing and its cycling gain are left out.
//!
//! - **Start-up**: a gain of 2/ln 2, at which the window doubles per round trip while the measured rate follows
//!   it. It ends when three rounds in a row have not brought 25 % more: the link is full.
//! - **Steady**: a gain of 2. In flight is then up to twice what the link holds, so a link that becomes faster
//!   shows it at once.
//! - **Probe**: such a queue inflates the round trips, and a minimum over samples that were all taken behind our
//!   own queue would feed on itself. So when the lowest round trip has not been seen again for many rounds, the
//!   window goes below one product until the queue has drained and a round was measured without it.

use std::collections::VecDeque;
use std::time::Duration;

/// BBR's start-up gain: the smallest at which the rate can double per round.
const STARTUP_GAIN: f64 = 2.885;
/// Twice the product: covers answers that come in bursts.
const STEADY_GAIN: f64 = 2.0;
/// Low enough to empty the queue, high enough not to cost much of the rate.
const PROBE_GAIN: f64 = 0.75;
/// Growth per round that still counts as growth.
const GROWTH: f64 = 1.25;
/// Rounds without growth after which the link is taken to be full; one alone may be noise.
const FLAT_ROUNDS: u32 = 3;
/// Rounds whose highest rate counts.
const RATE_ROUNDS: usize = 10;
/// Rounds without a round trip as low as the lowest after which it is measured again. A probe costs less than
/// half a round's worth of bytes, so this makes it less than one percent.
const RTT_ROUNDS: u32 = 64;
/// The latest round trip's deliveries are kept in about so many parts.
const PARTS: u32 = 8;

/// The bounds of a [`Window`], in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowLimits {
    /// Never less than this: at least one request.
    pub min: u64,
    /// Never more than this: what the process may hold in buffers.
    pub max: u64,
    /// Until something was measured.
    pub initial: u64,
}

/// How many bytes may be in flight.
///
/// ```
/// use std::time::Duration;
/// use pagewire_core::pull::{Window, WindowLimits};
///
/// let mut window = Window::new(WindowLimits { min: 1 << 16, max: 1 << 28, initial: 1 << 20 });
/// assert_eq!(window.size(), 1 << 20);
/// // 100 MB/s at 10 ms: a link that holds 1 MB.
/// for _ in 0..20 {
///     window.on_round_trip(Duration::from_millis(10));
///     window.on_delivered(1_000_000, Duration::from_millis(10));
/// }
/// assert_eq!(window.size(), 2_000_000);
/// ```
#[derive(Clone, Debug)]
pub struct Window {
    limits: WindowLimits,
    phase: Phase,
    size: u64,
    /// Bytes that can be in flight at most: after the window has shrunk more than its size, until they arrive.
    in_flight: u64,
    min_rtt: Option<Duration>,
    /// Rounds since the minimum was seen.
    min_rtt_age: u32,
    /// What was delivered in the last round trip, the latest last.
    recent: VecDeque<Delivery>,
    /// The highest rate of each of the last rounds, in bytes per second.
    rates: VecDeque<f64>,
    /// The highest rate of the round under way, and how long it has taken.
    round_rate: f64,
    round_elapsed: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Delivery {
    bytes: u64,
    elapsed: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The rate that the last growth reached, and rounds since.
    Startup { reached: f64, flat: u32 },
    /// The link is full.
    Steady,
    /// Until no more is in flight than the smaller window allows.
    Drain,
    /// Bytes to be delivered until the probe ends, and the lowest round trip in it.
    Measure { left: u64, lowest: Option<Duration> },
}

impl Window {
    /// A window before anything was measured. Limits that contradict each other are widened: `max` to `min`, and
    /// `initial` is brought between them.
    pub fn new(limits: WindowLimits) -> Self {
        let max = limits.max.max(limits.min);
        let limits = WindowLimits { max, initial: limits.initial.clamp(limits.min, max), ..limits };
        Self {
            limits,
            phase: Phase::Startup { reached: 0.0, flat: 0 },
            size: limits.initial,
            in_flight: limits.initial,
            min_rtt: None,
            min_rtt_age: 0,
            recent: VecDeque::new(),
            rates: VecDeque::new(),
            round_rate: 0.0,
            round_elapsed: Duration::ZERO,
        }
    }

    /// Bytes that may be in flight now.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A request was answered `rtt` after it was sent.
    pub fn on_round_trip(&mut self, rtt: Duration) {
        // A clock too coarse to see the round trip must not make the product zero for ever.
        let rtt = rtt.max(Duration::from_nanos(1));
        if self.min_rtt.is_none_or(|min| rtt <= min) {
            self.min_rtt = Some(rtt);
            self.min_rtt_age = 0;
        }
        if let Phase::Measure { lowest, .. } = &mut self.phase {
            *lowest = Some(lowest.map_or(rtt, |lowest| lowest.min(rtt)));
        }
        self.resize();
    }

    /// `bytes` arrived in the `elapsed` time since the last call. Time in which the window was not used up does
    /// not belong here: after a pause, begin anew with the first arrival.
    ///
    /// Arrivals may be reported as they come, in any portions: the rate is taken over a whole round trip, so a
    /// burst out of a buffer does not pass for a fast link. Before the first round trip is known they are
    /// ignored.
    pub fn on_delivered(&mut self, bytes: u64, elapsed: Duration) {
        let Some(rtt) = self.min_rtt else { return };
        if let Some(rate) = self.rate_of_last_round_trip(Delivery { bytes, elapsed }, rtt) {
            self.round_rate = self.round_rate.max(rate);
        }
        self.round_elapsed += elapsed;
        if self.round_elapsed >= rtt {
            self.end_round();
        }
        // What arrived is no longer in flight, and new requests take its place only within the window.
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.phase = match self.phase {
            // One window of answers to what was sent into the queue, and one of answers to what was not.
            Phase::Drain if self.in_flight <= self.size => {
                Phase::Measure { left: self.size.saturating_mul(2), lowest: None }
            }
            Phase::Measure { left, lowest: Some(lowest) } if left <= bytes => {
                self.min_rtt = Some(lowest);
                self.min_rtt_age = 0;
                Phase::Steady
            }
            Phase::Measure { left, lowest } => Phase::Measure { left: left.saturating_sub(bytes), lowest },
            phase => phase,
        };
        self.resize();
    }

    /// Adds a delivery; answers the rate over the last round trip, once that much time is known.
    fn rate_of_last_round_trip(&mut self, delivery: Delivery, rtt: Duration) -> Option<f64> {
        match self.recent.back_mut() {
            Some(last) if last.elapsed + delivery.elapsed <= rtt / PARTS => {
                last.bytes = last.bytes.saturating_add(delivery.bytes);
                last.elapsed += delivery.elapsed;
            }
            _ => self.recent.push_back(delivery),
        }
        let mut elapsed: Duration = self.recent.iter().map(|part| part.elapsed).sum();
        while let Some(first) = self.recent.front().filter(|first| elapsed - first.elapsed >= rtt) {
            elapsed -= first.elapsed;
            self.recent.pop_front();
        }
        let bytes: f64 = self.recent.iter().map(|part| part.bytes as f64).sum();
        (elapsed >= rtt).then(|| bytes / elapsed.as_secs_f64())
    }

    fn end_round(&mut self) {
        self.rates.push_back(self.round_rate);
        if self.rates.len() > RATE_ROUNDS {
            self.rates.pop_front();
        }
        self.min_rtt_age = self.min_rtt_age.saturating_add(1);
        self.phase = match self.phase {
            Phase::Startup { reached, .. } if self.round_rate >= reached * GROWTH => {
                Phase::Startup { reached: self.round_rate, flat: 0 }
            }
            Phase::Startup { flat, .. } if flat + 1 >= FLAT_ROUNDS => Phase::Steady,
            Phase::Startup { reached, flat } => Phase::Startup { reached, flat: flat + 1 },
            Phase::Steady if self.min_rtt_age >= RTT_ROUNDS => Phase::Drain,
            phase => phase,
        };
        self.round_rate = 0.0;
        self.round_elapsed = Duration::ZERO;
    }

    fn resize(&mut self) {
        let rate = self.rates.iter().copied().fold(self.round_rate, f64::max);
        let (gain, least) = match self.phase {
            Phase::Startup { .. } => (STARTUP_GAIN, self.limits.initial),
            Phase::Steady => (STEADY_GAIN, self.limits.min),
            Phase::Drain | Phase::Measure { .. } => (PROBE_GAIN, self.limits.min),
        };
        let product = rate * self.min_rtt.unwrap_or_default().as_secs_f64();
        // The cast saturates.
        self.size = ((gain * product).round() as u64).clamp(least, self.limits.max);
        self.in_flight = self.in_flight.max(self.size);
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
