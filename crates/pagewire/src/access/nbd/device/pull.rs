//! The background pull of a device: into the cache in front of its region, in memory or on a disk.
//!
//! It is not into the page cache, as that of a mounted file is: a file system on a device reads its files past the
//! device's own pages. What the cache has is answered from this host, whoever asks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, ChunkSize, Geometry};
use pagewire_core::pull::PullOrder;

use crate::access::region_file::RegionFile;
use crate::engine::{Pin, Region};
use crate::error::{Error, Result};
use crate::store::{Part, STAGED, Sink, StreamRequest};

/// How long to wait before what could not be had is asked for again.
const PAUSE: Duration = Duration::from_secs(1);

/// What is pulled, and where from.
pub(super) struct Pulling {
    pub(super) region: Arc<Region>,
    /// What readers see; none where the device is written to.
    pub(super) pin: Option<Pin>,
    /// What is written, where it is.
    pub(super) file: Option<Arc<RegionFile>>,
    pub(super) order: PullOrder,
    pub(super) chunk: ChunkSize,
}

/// A pull in the background, which ends when this is dropped.
pub(super) struct Pull {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    stopped: AtomicBool,
    /// How the stream under way has ended.
    ended: Mutex<Option<Result<()>>>,
    moved: Condvar,
}

impl Pull {
    /// Begins it.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub(super) fn start(pulling: Pulling) -> Result<Self> {
        let state = Arc::new(State::default());
        let shared = state.clone();
        let thread = std::thread::Builder::new().name("pw-pull".into()).spawn(move || {
            crate::schedule::bulk();
            pulling.run(&shared);
        });
        let thread = thread.map_err(|error| Error::io("cannot start a thread", &error))?;
        Ok(Self { state, thread: Some(thread) })
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Release);
        drop(self.state.ended.lock().expect("no holder panics"));
        self.state.moved.notify_all();
        if let Some(thread) = self.thread.take() {
            // One that has panicked has ended, too.
            let _ = thread.join();
        }
    }
}

impl Pulling {
    fn run(&self, state: &Arc<State>) {
        let Some(cache) = self.region.cache() else { return };
        let mut told = false;
        while !state.is_stopped() {
            let missing = self.missing(&cache.missing(), self.region.info().length);
            if missing.is_empty() {
                // What is written and flushed makes nothing missing, but the cache may find that something is.
                state.rest();
                continue;
            }
            let before = cache.progress().present_bytes;
            if let Err(error) = self.stream(missing, state)
                && !std::mem::replace(&mut told, true)
            {
                tracing::warn!(%error, "the background pull pauses");
            }
            // What has come is on its way into the cache.
            cache.settle();
            if cache.progress().present_bytes == before {
                state.rest();
            }
        }
    }

    /// What is to be asked for, in the order of the pull.
    fn missing(&self, gaps: &[ByteRange], length: u64) -> Vec<ByteRange> {
        let geometry = Geometry::new(length, self.chunk);
        let mut present = BitSet::new(geometry.chunk_count());
        present.insert_range(0..geometry.chunk_count());
        for gap in gaps.iter().filter(|gap| !gap.is_empty()) {
            let chunk = self.chunk.bytes();
            present.remove_range(gap.start / chunk..gap.end.div_ceil(chunk).min(geometry.chunk_count()));
        }
        let planned = self.order.plan(geometry, &present);
        match &self.file {
            // What is written comes to the cache by being flushed, and is missing until then.
            Some(file) => without(planned, self.chunk, |range| file.is_unflushed(range)),
            None => planned,
        }
    }

    /// Has `ranges` come, and waits until they have, or it is to stop.
    fn stream(&self, ranges: Vec<ByteRange>, state: &Arc<State>) -> Result<()> {
        let epoch = self.pin.as_ref().map_or(STAGED, Pin::epoch);
        *state.ended.lock().expect("no holder panics") = None;
        let _stream =
            self.region.stream(StreamRequest { ranges, epoch, sink: Arc::new(Passing(state.clone())) })?;
        let mut ended = state.ended.lock().expect("no holder panics");
        loop {
            if let Some(result) = ended.take() {
                return result;
            }
            if state.is_stopped() {
                return Ok(());
            }
            ended = state.moved.wait(ended).expect("no holder panics");
        }
    }
}

/// `ranges` without their chunks that are not to be had, in the same order.
fn without(
    ranges: Vec<ByteRange>,
    chunk: ChunkSize,
    is_left_out: impl Fn(ByteRange) -> bool,
) -> Vec<ByteRange> {
    let mut left: Vec<ByteRange> = Vec::new();
    for range in ranges {
        if !is_left_out(range) {
            left.push(range);
            continue;
        }
        for piece in range.split(chunk.bytes()).filter(|piece| !is_left_out(*piece)) {
            match left.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ => left.push(piece),
            }
        }
    }
    left
}

impl State {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Waits a moment, or until it is to stop.
    fn rest(&self) {
        let guard = self.ended.lock().expect("no holder panics");
        if !self.is_stopped() {
            let _early = self.moved.wait_timeout(guard, PAUSE).expect("no holder panics");
        }
    }
}

/// What comes passes the cache, which keeps it, and ends here.
struct Passing(Arc<State>);

impl Sink for Passing {
    fn part(&self, _part: Part<'_>) {}

    fn done(&self, result: Result<()>) {
        *self.0.ended.lock().expect("no holder panics") = Some(result);
        self.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_left_out_to_the_chunk() {
        let chunk = ChunkSize::new(4096).unwrap();
        let range = |from: u64, to: u64| ByteRange::new(from * 4096, to * 4096);
        let ranges = vec![range(8, 16), range(0, 4), range(20, 21)];
        let out = [range(10, 11), range(3, 4), range(20, 21)];
        let is_out = |asked: ByteRange| out.iter().any(|out| !out.intersect(asked).is_empty());
        assert_eq!(without(ranges.clone(), chunk, is_out), [range(8, 10), range(11, 16), range(0, 3)]);
        assert_eq!(without(ranges.clone(), chunk, |_| false), ranges);
        assert!(without(ranges, chunk, |_| true).is_empty());
    }
}
