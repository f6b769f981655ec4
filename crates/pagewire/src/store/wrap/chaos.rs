//! A store that fails on purpose: what its faults are is drawn from a seed, so that a run can be
//! repeated.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use crate::error::{Error, ErrorKind, Result};
use crate::store::{Completion, Flush, Info, Part, Read, Sink, Stage, Store};

/// How often, in per cent, each thing happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// It fails at once with an error that can be retried.
    pub error: u8,
    /// It fails after a part of the answer.
    pub cut: u8,
    /// It says that it succeeded, and left out a part of the answer: a store that is wrong.
    pub short: u8,
    /// It takes as long as this; how often is `delayed`.
    pub delay: Duration,
    /// How often it is delayed.
    pub delayed: u8,
}

/// Adds faults to a store.
pub struct Chaos {
    store: Arc<dyn Store>,
    faults: Mutex<Faults>,
    random: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    Error,
    Cut,
    Short,
}

impl Chaos {
    /// `store` with faults drawn from `seed`.
    pub fn new(store: Arc<dyn Store>, seed: u64, faults: Faults) -> Self {
        Self { store, faults: Mutex::new(faults), random: AtomicU64::new(seed) }
    }

    /// Changes what happens from now on.
    pub fn set(&self, faults: Faults) {
        *self.faults.lock().expect("no holder panics") = faults;
    }

    /// A number from 0 to 99. SplitMix64 (Steele, Lea, Flood, 2014), whose steps need no lock.
    fn draw(&self) -> u8 {
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % 100) as u8
    }

    fn fate(&self) -> Fate {
        let faults = *self.faults.lock().expect("no holder panics");
        if self.draw() < faults.delayed {
            std::thread::sleep(faults.delay);
        }
        let draw = self.draw();
        let Faults { error, cut, short, .. } = faults;
        match () {
            () if draw < error => Fate::Error,
            () if draw < error.saturating_add(cut) => Fate::Cut,
            () if draw < error.saturating_add(cut).saturating_add(short) => Fate::Short,
            () => Fate::Good,
        }
    }
}

fn on_purpose() -> Error {
    Error::new(ErrorKind::Unavailable, "a failure on purpose")
}

impl Store for Chaos {
    fn info(&self) -> Info {
        let mut info = self.store.info();
        // What goes around `read` would go around the faults.
        info.capabilities.lend = false;
        info.capabilities.stream = false;
        info
    }

    fn read(&self, read: Read) {
        match self.fate() {
            Fate::Good => self.store.read(read),
            Fate::Error => read.sink.done(Err(on_purpose())),
            fate => {
                let total = ByteRange::total(&read.ranges);
                let sink = Arc::new(Cutting {
                    left: Mutex::new(total / 2 / PAGE_SIZE * PAGE_SIZE),
                    succeeds: fate == Fate::Short,
                    sink: read.sink,
                });
                self.store.read(Read { sink, ..read });
            }
        }
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        match self.fate() {
            Fate::Good => self.store.write(ranges, bytes, done),
            Fate::Error => done(Err(on_purpose())),
            Fate::Cut | Fate::Short => {
                let half = &ranges[..ranges.len() / 2];
                let bytes = &bytes[..ByteRange::total(half) as usize];
                self.store.write(half, bytes, Box::new(|_| done(Err(on_purpose()))));
            }
        }
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        if self.fate() == Fate::Good { self.store.zero(ranges, done) } else { done(Err(on_purpose())) }
    }

    fn set_length(&self, length: u64, done: Completion) {
        if self.fate() == Fate::Good { self.store.set_length(length, done) } else { done(Err(on_purpose())) }
    }

    fn flush(&self, flush: Flush) {
        if self.fate() == Fate::Good {
            return self.store.flush(flush);
        }
        // A flush that fails has given up what was staged.
        let given_up = self.store.discard();
        (flush.done)(given_up.and(Err(on_purpose().with_retry(false))));
    }

    fn stage(&self) -> Stage {
        self.store.stage()
    }

    fn discard(&self) -> Result<()> {
        self.store.discard()
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.store.fence()
    }

    fn pin(&self, epoch: Option<u64>) -> Result<Info> {
        self.store.pin(epoch).map(|info| Info { capabilities: self.info().capabilities, ..info })
    }

    fn unpin(&self, epoch: u64) {
        self.store.unpin(epoch);
    }

    fn newest(&self) -> u64 {
        self.store.newest()
    }

    fn changes(&self, since: u64) -> Option<Vec<ByteRange>> {
        self.store.changes(since)
    }

    fn refresh(&self) -> Result<Info> {
        self.store.refresh()?;
        Ok(self.info())
    }
}

/// Passes on the first so many bytes of an answer.
struct Cutting {
    left: Mutex<u64>,
    succeeds: bool,
    sink: Arc<dyn Sink>,
}

impl Sink for Cutting {
    fn part(&self, part: Part<'_>) {
        let range = part.range();
        let take = {
            let mut left = self.left.lock().expect("no holder panics");
            let take = range.len().min(*left) / PAGE_SIZE * PAGE_SIZE;
            *left -= take;
            take
        };
        if take == 0 {
            return;
        }
        self.sink.part(match part {
            Part::Bytes { offset, bytes } => Part::Bytes { offset, bytes: &bytes[..take as usize] },
            Part::Zero(_) => Part::Zero(ByteRange::new(range.start, range.start + take)),
        });
    }

    fn done(&self, result: Result<()>) {
        self.sink.done(match result {
            Ok(()) if !self.succeeds => Err(on_purpose()),
            result => result,
        });
    }
}
