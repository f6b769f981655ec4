//! How far a pull is, and what it had to do.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

/// How far a pull is, and what it had to do. Numbers only grow, but for `chunks_failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Progress {
    /// The region's length, in bytes.
    pub length: u64,
    /// How many chunks the region has.
    pub chunks: u64,
    /// How many of them are wholly there.
    pub chunks_present: u64,
    /// How many could not be had within the patience, and are still tried.
    pub chunks_failed: u64,
    /// How many bytes were placed because an application waited for them (or would have soon).
    pub demand_bytes: u64,
    /// How many bytes were placed by the background pull.
    pub background_bytes: u64,
    /// How many of the bytes that were placed, by this pull and others of the same region, came from a cache on
    /// this host.
    pub cached_bytes: u64,
    /// How many faults an application took on bytes that were not there.
    pub faults: u64,
    /// How many reads these faults made: fewer, where several waited for the same chunk.
    pub demand_reads: u64,
    /// How many demand reads took longer than 100 ms.
    pub stalls: u64,
    /// The longest that a demand read took, in microseconds.
    pub longest_demand_us: u64,
}

impl Progress {
    /// Whether every byte is there.
    pub fn is_complete(&self) -> bool {
        self.chunks_present == self.chunks
    }

    /// How many bytes were placed in all.
    pub fn bytes(&self) -> u64 {
        self.demand_bytes + self.background_bytes
    }
}

/// From this on a demand read counts as a stall.
const STALL: Duration = Duration::from_millis(100);

/// The live counters behind [`Progress`], and a place to wait for them to move.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) demand_bytes: AtomicU64,
    pub(super) background_bytes: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) demand_reads: AtomicU64,
    stalls: AtomicU64,
    longest_demand_us: AtomicU64,
    waiters: AtomicUsize,
    /// Those who wait for the end alone, and are not to be woken by each step towards it.
    waiters_for_end: AtomicUsize,
    lock: Mutex<()>,
    moved: Condvar,
}

impl Counters {
    pub(super) fn demand_took(&self, duration: Duration) {
        if duration >= STALL {
            self.stalls.fetch_add(1, Ordering::Relaxed);
        }
        self.longest_demand_us.fetch_max(duration.as_micros() as u64, Ordering::Relaxed);
    }

    pub(super) fn fill(&self, progress: &mut Progress) {
        progress.demand_bytes = self.demand_bytes.load(Ordering::Relaxed);
        progress.background_bytes = self.background_bytes.load(Ordering::Relaxed);
        progress.faults = self.faults.load(Ordering::Relaxed);
        progress.demand_reads = self.demand_reads.load(Ordering::Relaxed);
        progress.stalls = self.stalls.load(Ordering::Relaxed);
        progress.longest_demand_us = self.longest_demand_us.load(Ordering::Relaxed);
    }

    /// Something has moved, which may be the end. Costs next to nothing while nobody waits.
    pub(super) fn notify(&self) {
        self.wake(true);
    }

    /// Something has moved, which is not the end.
    pub(super) fn notify_step(&self) {
        self.wake(false);
    }

    fn wake(&self, is_end: bool) {
        // Against the waiter's increment: either it is seen here, or the waiter sees what has moved.
        std::sync::atomic::fence(Ordering::SeqCst);
        let for_end = if is_end { self.waiters_for_end.load(Ordering::Relaxed) } else { 0 };
        if self.waiters.load(Ordering::Relaxed) + for_end > 0 {
            drop(self.lock.lock().expect("no holder panics"));
            self.moved.notify_all();
        }
    }

    /// Waits until `ready` answers something, or until `deadline`.
    pub(super) fn wait<T>(&self, deadline: Option<Instant>, ready: impl FnMut() -> Option<T>) -> Option<T> {
        self.wait_among(&self.waiters, deadline, ready)
    }

    /// The same for what comes with the end.
    pub(super) fn wait_for_end<T>(&self, deadline: Instant, ready: impl FnMut() -> Option<T>) -> Option<T> {
        self.wait_among(&self.waiters_for_end, Some(deadline), ready)
    }

    fn wait_among<T>(
        &self,
        waiters: &AtomicUsize,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        waiters.fetch_add(1, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        let mut guard = self.lock.lock().expect("no holder panics");
        let answer = loop {
            if let Some(answer) = ready() {
                break Some(answer);
            }
            guard = match deadline {
                None => self.moved.wait(guard).expect("no holder panics"),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break None;
                    }
                    self.moved.wait_timeout(guard, left).expect("no holder panics").0
                }
            };
        };
        drop(guard);
        waiters.fetch_sub(1, Ordering::SeqCst);
        answer
    }
}
