//! The window on a simulated link: a fixed rate, a fixed delay, and a queue without bounds in between.

use super::*;

const CHUNK: u64 = 64 << 10;

struct Link {
    /// Bytes per second.
    rate: f64,
    delay: Duration,
}

struct Sim {
    link: Link,
    window: Window,
    now: Duration,
    /// When the sender of the answers is free again.
    busy_until: Duration,
    /// Requests in flight: when each was sent and when its answer will be here.
    in_flight: VecDeque<(Duration, Duration)>,
    last_arrival: Duration,
    delivered: u64,
    most_in_flight: u64,
}

impl Sim {
    fn new(link: Link, limits: WindowLimits) -> Self {
        let zero = Duration::ZERO;
        Self {
            link,
            window: Window::new(limits),
            now: zero,
            busy_until: zero,
            in_flight: VecDeque::new(),
            last_arrival: zero,
            delivered: 0,
            most_in_flight: 0,
        }
    }

    /// The round trip of one request on the idle link.
    fn rtt(&self) -> Duration {
        self.link.delay + self.serialisation()
    }

    fn serialisation(&self) -> Duration {
        Duration::from_secs_f64(CHUNK as f64 / self.link.rate)
    }

    /// What the link holds.
    fn product(&self) -> f64 {
        self.link.rate * self.rtt().as_secs_f64()
    }

    /// Runs for so many round trips; answers the rate in that time.
    fn run(&mut self, round_trips: f64) -> f64 {
        let start = self.now;
        let end = start + self.rtt().mul_f64(round_trips);
        let before = self.delivered;
        loop {
            while (self.in_flight.len() as u64 + 1) * CHUNK <= self.window.size().max(CHUNK) {
                self.busy_until = self.busy_until.max(self.now + self.link.delay / 2) + self.serialisation();
                self.in_flight.push_back((self.now, self.busy_until + self.link.delay / 2));
            }
            self.most_in_flight = self.most_in_flight.max(self.in_flight.len() as u64 * CHUNK);
            let Some((sent, arrival)) = self.in_flight.pop_front_if(|(_, arrival)| *arrival <= end) else {
                self.now = end;
                return (self.delivered - before) as f64 / (end - start).as_secs_f64();
            };
            self.now = arrival;
            self.delivered += CHUNK;
            self.window.on_round_trip(arrival - sent);
            self.window.on_delivered(CHUNK, arrival - self.last_arrival);
            self.last_arrival = arrival;
        }
    }
}

fn limits() -> WindowLimits {
    WindowLimits { min: 4 * CHUNK, max: 1 << 30, initial: 16 * CHUNK }
}

/// 100 Mbit/s to 10 Gbit/s, 0.1 ms to 100 ms.
fn links() -> impl Iterator<Item = Link> {
    [12.5e6, 125e6, 1.25e9].into_iter().flat_map(|rate| {
        [100, 1_000, 10_000, 100_000]
            .into_iter()
            .map(move |micros| Link { rate, delay: Duration::from_micros(micros) })
    })
}

#[test]
fn fills_the_link_within_a_few_round_trips_and_keeps_it_full() {
    for link in links() {
        let rate = link.rate;
        let mut sim = Sim::new(link, limits());
        let name = format!("{rate} B/s at {:?}", sim.link.delay);
        // As often as the initial window has to double, and some to see the result.
        let doublings = (sim.product() / limits().initial as f64).log2().max(0.0);
        sim.run(doublings + 4.0);
        // Over two round trips, or as many as it takes to count in chunks.
        let reached = sim.run((40.0 * CHUNK as f64 / sim.product()).max(2.0));
        assert!(reached > 0.9 * rate, "{name}: {reached} B/s after {} round trips", doublings + 6.0);
        let kept = sim.run(60.0);
        assert!(kept > 0.9 * rate, "{name}: {kept} B/s in the long run");
    }
}

#[test]
fn holds_no_more_than_three_products_in_flight() {
    for link in links() {
        let limits = WindowLimits { initial: limits().min, ..limits() };
        let mut sim = Sim::new(link, limits);
        sim.run(60.0);
        let bound = 3.0 * sim.product() + limits.min as f64;
        assert!(
            (sim.most_in_flight as f64) < bound,
            "{} B/s at {:?}: {} in flight, {bound} allowed",
            sim.link.rate,
            sim.link.delay,
            sim.most_in_flight
        );
    }
}

#[test]
fn its_own_queue_does_not_blow_the_window_up() {
    // Round trips are only ever seen behind the window's own queue: without probes, the minimum over any
    // number of samples would grow, the window with it, and so on.
    let mut sim = Sim::new(Link { rate: 125e6, delay: Duration::from_millis(10) }, limits());
    let mut probed = false;
    for _ in 0..300 {
        sim.run(1.0);
        probed |= matches!(sim.window.phase, Phase::Measure { .. });
        assert!((sim.window.size() as f64) < 3.0 * sim.product());
    }
    assert!(probed);
}

#[test]
fn follows_a_link_that_changes() {
    let mut sim = Sim::new(Link { rate: 125e6, delay: Duration::from_millis(10) }, limits());
    sim.run(50.0);
    sim.link.rate = 625e6;
    sim.run(30.0);
    assert!(sim.run(10.0) > 0.85 * 625e6, "faster");
    sim.link.rate = 50e6;
    sim.run(60.0);
    assert!((sim.window.size() as f64) < 3.0 * sim.product(), "slower: {} in flight", sim.window.size());
    sim.link.delay = Duration::from_millis(40);
    sim.run(100.0);
    assert!(sim.run(40.0) > 0.85 * 50e6, "farther");
}

#[test]
fn a_burst_out_of_a_buffer_is_no_fast_link() {
    let mut window = Window::new(limits());
    for _ in 0..30 {
        window.on_round_trip(Duration::from_millis(10));
        // All that a round trip brought is read at once, after 9.99 ms of silence.
        window.on_delivered(500_000, Duration::from_micros(9_990));
        window.on_delivered(500_000, Duration::from_micros(10));
    }
    assert!(window.size() <= 2_200_000, "{}", window.size());
}

#[test]
fn stays_within_its_limits() {
    let limits = WindowLimits { min: 1000, max: 5000, initial: 9000 };
    let mut window = Window::new(limits);
    assert_eq!(window.size(), 5000);
    window.on_delivered(u64::MAX, Duration::ZERO);
    window.on_round_trip(Duration::ZERO);
    window.on_delivered(u64::MAX, Duration::ZERO);
    window.on_delivered(u64::MAX, Duration::from_nanos(1));
    assert_eq!(window.size(), 5000);
    for _ in 0..20 {
        window.on_delivered(0, Duration::from_secs(1));
    }
    assert_eq!(window.size(), 1000);
    let inverted = Window::new(WindowLimits { min: 10, max: 5, initial: 0 });
    assert_eq!(inverted.size(), 10);
}
