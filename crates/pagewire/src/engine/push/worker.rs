//! The thread that pushes: what it does when, and the flush.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};

use super::send::Patience;
use super::{Inner, Request, closed};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Flush, Info};

/// How often to look how much was written, where the interval is longer.
const LOOK: Duration = Duration::from_millis(100);

impl Inner {
    /// The life of the thread.
    pub(super) fn run(self: Arc<Self>) {
        crate::schedule::bulk();
        let mut ranges = Vec::new();
        let mut pushed = Instant::now();
        let mut quiet = true;
        while !self.is_stopping() {
            let requests = self.next_requests(pushed);
            if requests.is_empty() {
                if !self.is_due(pushed) {
                    continue;
                }
                let result = self.push_in_background(&mut ranges);
                self.tell(&result, &mut quiet);
                pushed = Instant::now();
            } else {
                self.carry_out(requests, &mut ranges);
            }
        }
        self.refuse(&closed());
    }

    /// Waits for requests, or until it is time to look at the local copy.
    fn next_requests(&self, pushed: Instant) -> Vec<Request> {
        let deadline = self.options.interval.map(|interval| (pushed + interval).min(Instant::now() + LOOK));
        let mut state = self.lock();
        loop {
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if !state.requests.is_empty() || self.is_stopping() || late || state.hurry {
                return std::mem::take(&mut state.requests);
            }
            state = self.wait(state, deadline);
        }
    }

    /// Whether the background push is due.
    fn is_due(&self, pushed: Instant) -> bool {
        if self.is_stopping() {
            return false;
        }
        let (hurry, aside) = {
            let mut state = self.lock();
            let hurry = std::mem::take(&mut state.hurry);
            if state.over.is_some() {
                return false;
            }
            (hurry, state.bytes_aside())
        };
        let Some(interval) = self.options.interval.filter(|_| !hurry) else { return hurry };
        pushed.elapsed() >= interval
            || self.local.count_dirty().is_ok_and(|bytes| bytes + aside >= self.options.max_dirty)
    }

    fn push_in_background(self: &Arc<Self>, ranges: &mut Vec<ByteRange>) -> Result<()> {
        self.flush_local_in_background(ranges)?;
        // What fails is tried again after the next interval.
        self.push(&mut Patience::new(Duration::ZERO))
    }

    /// Says what the background push runs into, once.
    fn tell(&self, result: &Result<()>, quiet: &mut bool) {
        let region = self.writer.region().name();
        match result {
            Ok(()) => {
                if !std::mem::replace(quiet, true) {
                    tracing::info!(region, "what was written is pushed again");
                }
                self.lock().progress.last_error = None;
            }
            Err(error) if error.kind() == ErrorKind::Cancelled => {}
            Err(error) if error.kind() == ErrorKind::Fenced => {
                tracing::error!(region, %error, "what was written since the last flush is lost");
            }
            Err(error) => {
                if std::mem::replace(quiet, false) {
                    tracing::warn!(region, %error, "cannot push what was written; it is tried again");
                }
            }
        }
    }

    /// Carries out requests in their order. Flushes that come together are one.
    fn carry_out(self: &Arc<Self>, requests: Vec<Request>, ranges: &mut Vec<ByteRange>) {
        // Local flushes wait for no network.
        let (local, requests): (Vec<_>, Vec<_>) =
            requests.into_iter().partition(|request| matches!(request, Request::FlushLocal(_)));
        let mut requests = local.into_iter().chain(requests).peekable();
        let mut flushes = Vec::new();
        while let Some(request) = requests.next() {
            match request {
                Request::Flush(done) => flushes.push(done),
                Request::FlushLocal(done) => done(self.flush_local(ranges)),
                Request::SetLength(length, done) => done(self.set_length(length, ranges)),
            }
            if !flushes.is_empty() && !matches!(requests.peek(), Some(Request::Flush(_))) {
                let result = self.flush(ranges);
                flushes.drain(..).for_each(|done| done(result.clone()));
            }
        }
    }

    fn refuse(&self, error: &Error) {
        let requests = std::mem::take(&mut self.lock().requests);
        for request in requests {
            match request {
                Request::Flush(done) => done(Err(error.clone())),
                Request::FlushLocal(done) | Request::SetLength(_, done) => done(Err(error.clone())),
            }
        }
    }

    fn set_length(self: &Arc<Self>, length: u64, ranges: &mut Vec<ByteRange>) -> Result<()> {
        // What was written by now belongs to the length by now; and nothing may be on its way.
        self.collect(ranges)?;
        let mut state = self.lock();
        while state.in_flight > 0 {
            state = self.wait(state, None);
        }
        let end = state.pages.dirty().len();
        if length < state.length.now {
            state.pages.forget(length.div_ceil(PAGE_SIZE)..end);
            if let Some(unkept) = &mut state.unkept {
                unkept.remove_range(length.div_ceil(PAGE_SIZE)..end);
            }
        }
        self.change_length(&mut state, length)
    }

    fn flush(self: &Arc<Self>, ranges: &mut Vec<ByteRange>) -> Result<Info> {
        let mut patience = Patience::new(self.options.patience);
        self.collect(ranges)?;
        loop {
            self.push(&mut patience)?;
            if let Some(info) = self.commit(&mut patience)? {
                return Ok(info);
            }
        }
    }

    /// Flushes what is staged. None where the store has lost it, so that it has to be pushed again.
    fn commit(self: &Arc<Self>, patience: &mut Patience) -> Result<Option<Info>> {
        let (set, number, stage, lengths) = {
            let mut state = self.lock();
            self.look_at_stage(&mut state);
            if !state.pages.is_pushed() || state.length.untold.is_some() {
                return Ok(None);
            }
            let recovered = self.writer.stage().recovered;
            if state.pages.is_clean() && state.length.is_flushed() && !recovered {
                return Ok(Some(self.writer.region().info()));
            }
            state.flushes = state.flushes.max(self.writer.stage().flushed) + 1;
            let set = state.pages.begin_flush().expect("one thread flushes");
            (set, state.flushes, state.stage, state.length.now)
        };
        loop {
            let result = self.wait_for(|done| self.writer.flush(Flush { number, stage, done }));
            let error = match result {
                Ok(info) => {
                    self.covered(set, lengths, info.epoch, None);
                    return Ok(Some(info));
                }
                Err(error) => error,
            };
            let mut state = self.lock();
            state.failed(error.clone());
            state.failure = None;
            if error.kind() != ErrorKind::Unavailable {
                // The store has given up what was staged.
                let _done = state.pages.end_flush(set, false);
                state.lost();
                drop(state);
                // One that says that it can pass, such as a server whose own store is another server's, is
                // given everything again.
                let Some(pause) = patience.after(&error) else { return Err(error) };
                return self.pause(pause).map(|()| None);
            }
            drop(state);
            // The connection is lost: what has become of the flush is known when it is there again.
            let go_on = patience.after(&error);
            if let Some(pause) = go_on {
                self.pause(pause)?;
            }
            let now = self.writer.stage();
            if now.number == stage && go_on.is_some() {
                continue;
            }
            if now.number != stage && now.flushed >= number {
                let info = self.writer.region().info();
                self.covered(set, lengths, info.epoch, Some(now.number));
                return Ok(Some(info));
            }
            let mut state = self.lock();
            state.stage = now.number;
            let _done = state.pages.end_flush(set, false);
            state.lost();
            return if go_on.is_some() { Ok(None) } else { Err(error) };
        }
    }
}

impl super::State {
    /// A flush is done, of a region that had this length.
    pub(super) fn flushed(&mut self, length: u64, epoch: u64) {
        self.length.flushed = length;
        self.length.shortest = self.length.now;
        if let Some(unkept) = &mut self.unkept {
            // What was collected since the flush began is dirty.
            let covered: Vec<u64> =
                unkept.iter().filter(|page| !self.pages.dirty().contains(*page)).collect();
            covered.into_iter().for_each(|page| {
                unkept.remove(page);
            });
        }
        self.progress.flushes += 1;
        self.progress.epoch = epoch;
        self.progress.last_error = None;
    }
}
