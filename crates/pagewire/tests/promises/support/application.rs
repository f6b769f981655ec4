//! An application that can be moved: it keeps counters all over its memory, and notices when one is lost or doubled.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pagewire::access::uffd::WritableMapping;
use pagewire::engine::migration::Application;
use pagewire::{Error, ErrorKind, Result};

use super::random::Random;

/// What the application remembers besides its memory: as many steps as it has made are in there.
#[derive(Default)]
pub(crate) struct Steps {
    made: AtomicU64,
    seed: u64,
    /// How many bytes of the region it writes to.
    length: u64,
}

/// Writes to a mapping on a thread of its own, until it is suspended.
///
/// Each step adds one to the counter of a page that a generator chooses, and to the first counter of all. So
/// the sum of all counters is known at every moment at which nothing runs.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    mapping: Arc<WritableMapping>,
    steps: Arc<Steps>,
    pause: Duration,
    state: Mutex<State>,
    changed: Condvar,
    pub(crate) fails: AtomicBool,
}

#[derive(Default)]
struct State {
    suspend: bool,
    suspended: bool,
    stop: bool,
}

impl Steps {
    pub(crate) fn new(seed: u64, length: u64) -> Arc<Self> {
        Arc::new(Self { made: AtomicU64::new(0), seed, length })
    }

    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    /// Whether the memory has each step once.
    pub(crate) fn check(&self, mapping: &WritableMapping) {
        let made = self.made();
        let mut expected = std::collections::BTreeMap::new();
        let mut random = Random(self.seed);
        for _ in 0..made {
            *expected.entry(self.offset(&mut random)).or_insert(0u64) += 1;
        }
        let mut all = vec![0; (self.length / 8 * 8) as usize];
        mapping.read(0, &mut all).unwrap();
        for (index, counter) in all.chunks_exact(8).enumerate() {
            let offset = index as u64 * 8;
            let counter = u64::from_le_bytes(counter.try_into().unwrap());
            let wanted = if offset == 0 { made } else { expected.get(&offset).copied().unwrap_or(0) };
            assert_eq!(counter, wanted, "the counter at {offset} after {made} steps of seed {}", self.seed);
        }
    }

    /// Where a step counts: never the first counter, and often the same page.
    fn offset(&self, random: &mut Random) -> u64 {
        let pages = self.length.div_ceil(4096);
        let page = if random.draw(4) == 0 { random.draw(pages) } else { random.draw(pages.min(4)) };
        let within = (self.length - page * 4096).min(4096) / 8;
        let slot = if within == 0 { 1 } else { random.draw(within) };
        let offset = if within == 0 { 8 } else { page * 4096 + slot * 8 };
        offset.max(8)
    }
}

impl Writer {
    /// Begins to write where `steps` is.
    pub(crate) fn start(mapping: Arc<WritableMapping>, steps: Arc<Steps>, pause: Duration) -> Self {
        Self::begin(mapping, steps, pause, State::default())
    }

    fn begin(mapping: Arc<WritableMapping>, steps: Arc<Steps>, pause: Duration, state: State) -> Self {
        let shared = Arc::new(Shared {
            mapping,
            steps,
            pause,
            state: Mutex::new(state),
            changed: Condvar::new(),
            fails: AtomicBool::new(false),
        });
        let run = shared.clone();
        Self { shared, thread: Some(std::thread::spawn(move || run.run())) }
    }

    /// One that is suspended from the beginning.
    pub(crate) fn parked(mapping: Arc<WritableMapping>, steps: Arc<Steps>) -> Self {
        Self::begin(mapping, steps, Duration::ZERO, State { suspend: true, ..State::default() })
    }

    /// What suspends and resumes it.
    pub(crate) fn application(&self) -> Arc<dyn Application> {
        self.shared.clone()
    }

    /// From now on it cannot be suspended.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.shared.fails.store(refuse, Ordering::SeqCst);
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.shared.state.lock().unwrap().suspended
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut random = Random(self.steps.seed);
        for _ in 0..self.steps.made() {
            self.steps.offset(&mut random);
        }
        loop {
            {
                let mut state = self.state.lock().unwrap();
                while state.suspend && !state.stop {
                    state.suspended = true;
                    self.changed.notify_all();
                    state = self.changed.wait(state).unwrap();
                }
                state.suspended = false;
                if state.stop {
                    return;
                }
            }
            let offset = self.steps.offset(&mut random);
            for offset in [offset, 0] {
                self.mapping.atomic_u64(offset).unwrap().fetch_add(1, Ordering::Relaxed);
            }
            self.steps.made.fetch_add(1, Ordering::SeqCst);
            if !self.pause.is_zero() {
                std::thread::sleep(self.pause);
            }
        }
    }
}

impl Application for Shared {
    fn suspend(&self) -> Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Cancelled, "it will not be suspended"));
        }
        let mut state = self.state.lock().unwrap();
        state.suspend = true;
        while !state.suspended {
            state = self.changed.wait(state).unwrap();
        }
        Ok(())
    }

    fn resume(&self) {
        self.state.lock().unwrap().suspend = false;
        self.changed.notify_all();
    }
}
