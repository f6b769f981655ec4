//! What a link really does, measured from its ends by TCP.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{ADDRESS_A, Link};

/// What a link was measured to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkMeasured {
    /// The median time of a byte there and a byte back.
    pub round_trip: Duration,
    /// Payload bits per second from a to b over several connections, when they have got up to speed.
    pub rate: u64,
    /// Segments that were sent meanwhile, in both directions together.
    pub segments: u64,
    /// How many of them did not arrive: lost at random, or come to a full queue.
    pub dropped: u64,
}

impl LinkMeasured {
    /// The share of segments that did not arrive.
    pub fn loss(&self) -> f64 {
        self.dropped as f64 / self.segments.max(1) as f64
    }
}

/// Connections of the rate's measurement: the window of one is too small for a long link.
const CONNECTIONS: usize = 8;

/// How long connections have to get up to speed, and how long the rate is then measured: at least so
/// long, and so many round trips.
const AT_LEAST: Duration = Duration::from_millis(300);
const ROUNDS: u32 = 16;

/// Bytes of one call.
const PIECE: usize = 256 << 10;

impl Link {
    /// Measures the link. Nothing else should be on it meanwhile. Takes about a second, on a long
    /// link some tens of round trips.
    ///
    /// # Errors
    ///
    /// Where a connection over the link fails.
    pub fn verify(&self) -> io::Result<LinkMeasured> {
        let before = self.sent_and_dropped();
        let round_trip = self.measure_round_trip()?;
        let rate = self.measure_rate(AT_LEAST.max(round_trip * ROUNDS))?;
        let after = self.sent_and_dropped();
        Ok(LinkMeasured { round_trip, rate, segments: after.0 - before.0, dropped: after.1 - before.1 })
    }

    /// Moves `bytes` from a to b over so many connections at once, with nothing but `write` and
    /// `read`. Answers how long it took, from the first connection to the last byte.
    ///
    /// # Errors
    ///
    /// Where a connection over the link fails.
    pub fn transfer(&self, bytes: u64, connections: usize) -> io::Result<Duration> {
        let start = Instant::now();
        let pairs = self.connect(connections)?;
        let share = bytes.div_ceil(connections as u64);
        std::thread::scope(|scope| {
            let threads: Vec<_> = pairs
                .into_iter()
                .map(|(sender, receiver)| {
                    // A sender that fails is a receiver that has too little.
                    scope.spawn(move || send(&sender, share));
                    scope.spawn(move || receive(&receiver, share))
                })
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("the thread does not panic"))
        })?;
        Ok(start.elapsed())
    }

    /// Segments so far, in both directions.
    fn sent_and_dropped(&self) -> (u64, u64) {
        let directions = [self.a_to_b(), self.b_to_a()];
        let dropped = directions.iter().map(|traffic| traffic.dropped).sum::<u64>();
        (directions.iter().map(|traffic| traffic.segments).sum::<u64>() + dropped, dropped)
    }

    fn measure_round_trip(&self) -> io::Result<Duration> {
        let (mut one, mut other) = self.connect(1)?.pop().expect("one was asked for");
        one.set_nodelay(true)?;
        other.set_nodelay(true)?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut byte = [0];
                // Ends when the other end does.
                while other.read_exact(&mut byte).and_then(|()| other.write_all(&byte)).is_ok() {}
            });
            let begun = Instant::now();
            let mut times = Vec::new();
            // An odd number of times, at least five.
            while times.len() < 5 || (begun.elapsed() < AT_LEAST && times.len() < 201) || times.len() % 2 == 0
            {
                let start = Instant::now();
                one.write_all(&[1])?;
                one.read_exact(&mut [0])?;
                times.push(start.elapsed());
            }
            drop(one);
            times.sort_unstable();
            Ok(times[times.len() / 2])
        })
    }

    fn measure_rate(&self, duration: Duration) -> io::Result<u64> {
        let pairs = self.connect(CONNECTIONS)?;
        let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for (sender, mut receiver) in pairs {
                let (received, stop) = (&received, &stop);
                // It ends when its receiver does, whose socket is then closed with bytes unread.
                scope.spawn(move || send(&sender, u64::MAX));
                scope.spawn(move || {
                    let mut piece = vec![0; PIECE];
                    while !stop.load(Ordering::Relaxed)
                        && let Ok(count @ 1..) = receiver.read(&mut piece)
                    {
                        received.fetch_add(count as u64, Ordering::Relaxed);
                    }
                });
            }
            std::thread::sleep(duration);
            let (before, start) = (received.load(Ordering::Relaxed), Instant::now());
            std::thread::sleep(duration);
            let bytes = received.load(Ordering::Relaxed) - before;
            let rate = bytes as f64 * 8.0 / start.elapsed().as_secs_f64();
            stop.store(true, Ordering::Relaxed);
            Ok(rate as u64)
        })
    }

    /// Connections from a to b, both ends of each. The sockets stay where they were made.
    fn connect(&self, count: usize) -> io::Result<Vec<(TcpStream, TcpStream)>> {
        let listener = self.a().run(|| TcpListener::bind((ADDRESS_A, 0)))??;
        let address = listener.local_addr()?;
        self.b().run(|| {
            (0..count)
                .map(|_| {
                    let there = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
                    Ok((listener.accept()?.0, there))
                })
                .collect()
        })?
    }
}

/// Sends `count` bytes.
fn send(mut stream: &TcpStream, count: u64) -> io::Result<()> {
    let piece = vec![1; PIECE];
    let mut left = count;
    while left > 0 {
        let len = left.min(PIECE as u64);
        stream.write_all(&piece[..len as usize])?;
        left -= len;
    }
    Ok(())
}

/// Receives `count` bytes.
fn receive(mut stream: &TcpStream, count: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut left = count;
    while left > 0 {
        match stream.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got => left = left.saturating_sub(got as u64),
        }
    }
    Ok(())
}
