//! Local flushes: what was written is kept in the region's cache on this host, without the network.
//!
//! They are the pushing thread's work like everything else, so that what is kept and what is pushed of a page
//! follow each other in one order. While that thread waits for the network it does them in between.

use pagewire_core::chunk::ByteRange;

use super::send::aligned;
use super::{Inner, Request, State};
use crate::error::{Error, ErrorKind, Result};

/// How many pages are kept at once.
const BATCH: u64 = 256;

impl Inner {
    /// Makes what was written durable in the region's cache.
    pub(super) fn flush_local(&self, ranges: &mut Vec<ByteRange>) -> Result<()> {
        if self.lock().unkept.is_none() {
            let text = "the region has no cache on this host to keep changes in";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        self.collect(ranges)?;
        self.keep_collected()
    }

    /// Collects what was written and keeps it, where there is a cache. That it cannot be kept is said, and no
    /// reason not to push it.
    pub(super) fn flush_local_in_background(&self, ranges: &mut Vec<ByteRange>) -> Result<()> {
        self.collect(ranges)?;
        {
            let state = self.lock();
            if state.unkept.as_ref().is_none_or(|unkept| unkept.is_empty() && !state.unkept_length) {
                return Ok(());
            }
        }
        let kept = self.keep_collected();
        let failed_before = std::mem::replace(&mut self.lock().keeping_fails, kept.is_err());
        if let Err(error) = kept
            && !failed_before
        {
            let region = self.writer.region().name();
            tracing::warn!(region, %error, "changes are not kept on this host");
        }
        Ok(())
    }

    /// Does the local flushes that were asked for while something else waits.
    pub(super) fn flush_locally_meanwhile(&self) {
        let requests = {
            let mut state = self.lock();
            if !state.wants_local_flush() {
                return;
            }
            let (local, others): (Vec<_>, Vec<_>) =
                state.requests.drain(..).partition(|request| matches!(request, Request::FlushLocal(_)));
            state.requests = others;
            local
        };
        let result = self.flush_local(&mut Vec::new());
        for request in requests {
            if let Request::FlushLocal(done) = request {
                done(result.clone());
            }
        }
    }

    fn keep_collected(&self) -> Result<()> {
        let Some(cache) = self.writer.region().cache() else { return Ok(()) };
        let mut bytes = Vec::new();
        loop {
            let (run, end) = {
                let mut state = self.lock();
                let end = state.length.now;
                let run = state.unkept.as_mut().and_then(|unkept| unkept.take_run(0, BATCH));
                (run, end)
            };
            let Some(run) = run else { break };
            let range = ByteRange::of_pages(run.clone()).clamp_to(end);
            if range.is_empty() {
                continue;
            }
            let bytes = aligned(&mut bytes, range.len() as usize);
            let kept = self.local.read_back_ranges(&[range], bytes);
            if let Err(error) = kept.and_then(|()| cache.keep(&[range], bytes)) {
                if let Some(unkept) = &mut self.lock().unkept {
                    unkept.insert_range(run);
                }
                return Err(error);
            }
        }
        cache.flush_local()?;
        self.lock().unkept_length = false;
        Ok(())
    }
}

impl State {
    /// Whether somebody waits for a local flush.
    pub(super) fn wants_local_flush(&self) -> bool {
        self.requests.iter().any(|request| matches!(request, Request::FlushLocal(_)))
    }
}
