//! One direction of a link: a thread takes packets from one device into the queue, another gives them
//! to the other device when they are due.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pagewire_sys::event::{EventFd, PollItem, poll};
use pagewire_sys::net::Tun;

use super::frames::{Frame, Spare, packet_len};
use super::{DEFAULT_QUEUE, LinkOptions, Traffic};

/// How late a sleeping thread of the link may be woken: a true round trip needs true timers.
const TIMER_SLACK_NS: u64 = 1000;

/// A packet that is due this soon is not worth another sleep.
const NOW: Duration = Duration::from_micros(2);

/// Packets that are given with one look at the queue: few enough that their buffers are still in the
/// cache when they are used again.
const BATCH: usize = 16;

/// One direction of a link.
pub(super) struct Direction {
    from: Arc<Tun>,
    to: Arc<Tun>,
    delay: Duration,
    rate: Option<u64>,
    /// How many bytes may be held, on their way or waiting.
    room: u64,
    queue: Mutex<Queue>,
    arrived: Condvar,
    bytes: AtomicU64,
    segments: AtomicU64,
    dropped: AtomicU64,
}

struct Queue {
    frames: VecDeque<Frame>,
    spare: Spare,
    held: u64,
    /// When the last packet will have left the sender.
    link_free: Instant,
    loss: Option<Losing>,
    /// The giving thread waits for a packet, not for a time.
    idle: bool,
    closed: bool,
}

impl Direction {
    /// The direction `from` one device `to` the other; `number` tells the two of a link apart.
    pub(super) fn new(from: Arc<Tun>, to: Arc<Tun>, options: &LinkOptions, number: u64) -> Self {
        let delay = options.round_trip / 2;
        // What is on its way at the full rate does not wait: it is not in the queue of a real link.
        let under_way = options.rate.map_or(0, |rate| (rate as f64 / 8.0 * delay.as_secs_f64()) as u64);
        let loss = options.loss.map(|loss| Losing {
            per_mille: u64::from(loss.per_mille),
            state: loss.seed.wrapping_mul(2).wrapping_add(number),
        });
        let queue = Queue {
            frames: VecDeque::new(),
            spare: Spare::default(),
            held: 0,
            link_free: Instant::now(),
            loss,
            idle: false,
            closed: false,
        };
        Self {
            from,
            to,
            delay,
            rate: options.rate,
            room: options.queue.unwrap_or(DEFAULT_QUEUE).saturating_add(under_way),
            queue: Mutex::new(queue),
            arrived: Condvar::new(),
            bytes: AtomicU64::new(0),
            segments: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            bytes: self.bytes.load(Ordering::Relaxed),
            segments: self.segments.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// Has the giving thread end. The taking one ends by the event that it polls.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    /// The life of the thread that takes packets, until `stop` is signalled.
    pub(super) fn take(&self, stop: &EventFd) {
        exact_timers();
        let mut buffer = self.lock().spare.longest();
        loop {
            // A read that blocks could not be told to stop.
            let mut items = [PollItem::readable(self.from.as_fd()), PollItem::readable(stop.as_fd())];
            if poll(&mut items, None).is_err() || items[1].is_ready() {
                return;
            }
            match self.from.read(&mut buffer) {
                Ok(len) => self.queue(&mut buffer, len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The device was deleted from inside the namespace: the link is cut.
                Err(_) => return,
            }
        }
    }

    /// Puts the packet that was just read into the queue, or drops it.
    fn queue(&self, buffer: &mut Box<[u8]>, len: usize) {
        let now = Instant::now();
        let packet = packet_len(len);
        let mut queue = self.lock();
        let lost = queue.loss.as_mut().is_some_and(Losing::next);
        if lost || queue.held + packet > self.room {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let sent = self.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_nanos((u128::from(packet) * 8_000_000_000 / u128::from(rate.max(1))) as u64)
        });
        queue.link_free = queue.link_free.max(now) + sent;
        let due = queue.link_free + self.delay;
        let frame = queue.spare.frame(buffer, len, due);
        queue.held += packet;
        queue.frames.push_back(frame);
        let wake = std::mem::take(&mut queue.idle);
        drop(queue);
        // Who sleeps until a time need not know: packets do not overtake each other.
        if wake {
            self.arrived.notify_one();
        }
    }

    /// The life of the thread that gives packets.
    pub(super) fn give(&self) {
        exact_timers();
        let mut batch = Vec::with_capacity(BATCH);
        while self.wait_due(&mut batch) {
            for frame in &batch {
                let given = self.to.write(frame.bytes());
                // A device that is down, or was deleted, takes nothing.
                let counter = if given.is_ok() { &self.segments } else { &self.dropped };
                counter.fetch_add(1, Ordering::Relaxed);
                if given.is_ok() {
                    self.bytes.fetch_add(frame.packet_len(), Ordering::Relaxed);
                }
            }
        }
    }

    /// Takes the frames of `batch` back, and fills it with those that are due next. Answers whether
    /// the link still is.
    fn wait_due(&self, batch: &mut Vec<Frame>) -> bool {
        let mut queue = self.lock();
        // The last first: the next is taken from the end.
        while let Some(frame) = batch.pop() {
            queue.spare.put(frame);
        }
        loop {
            if queue.closed {
                return false;
            }
            let now = Instant::now() + NOW;
            while batch.len() < BATCH && queue.frames.front().is_some_and(|frame| frame.due <= now) {
                batch.extend(queue.frames.pop_front());
            }
            if !batch.is_empty() {
                queue.held -= batch.iter().map(Frame::packet_len).sum::<u64>();
                return true;
            }
            queue = match queue.frames.front() {
                None => {
                    queue.idle = true;
                    self.arrived.wait(queue).expect("no holder panics")
                }
                Some(frame) => {
                    let left = frame.due.saturating_duration_since(Instant::now());
                    self.arrived.wait_timeout(queue, left).expect("no holder panics").0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder panics")
    }
}

fn exact_timers() {
    // Without it the link is up to 50 us slower than asked for, and works all the same.
    let _ = pagewire_sys::thread::set_timer_slack(TIMER_SLACK_NS);
}

/// Which packets are lost: SplitMix64 (G. L. Steele, D. Lea, C. H. Flood: "Fast splittable pseudorandom
/// number generators", OOPSLA 2014), so that a seed is enough to repeat a run.
struct Losing {
    per_mille: u64,
    state: u64,
}

impl Losing {
    fn next(&mut self) -> bool {
        crate::scatter::split_mix(&mut self.state) % 1000 < self.per_mille
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_lost_as_was_asked_for_and_always_the_same() {
        for per_mille in [0, 10, 500, 1000] {
            let lost = || {
                let mut losing = Losing { per_mille, state: 7 };
                (0..100_000).map(|_| losing.next()).collect::<Vec<bool>>()
            };
            let count = lost().iter().filter(|lost| **lost).count() as f64;
            let expected = per_mille as f64 * 100.0;
            assert!((count - expected).abs() <= 0.1 * expected, "{count} of 100,000 at {per_mille}");
            assert_eq!(lost(), lost());
        }
    }
}
