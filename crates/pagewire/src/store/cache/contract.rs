//! The [`Store`] contract, as the cache keeps it: what of a request goes to the image, and what to the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pagewire_core::chunk::ByteRange;
use pagewire_core::wire::MAX_RANGES;

use super::CacheStore;
use super::local::Pulled;
use super::read::{Answer, CachedStream, Joined, coalesce};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{
    Completion, Flush, Info, Read, STAGED, Sink, Stage, Store, Stream, StreamRequest, Urgency,
};

/// What is missing of each range of a request.
pub(super) type Groups = Vec<Vec<ByteRange>>;

impl Store for CacheStore {
    fn info(&self) -> Info {
        self.seen(self.store.info())
    }

    fn read(&self, read: Read) {
        let Some((at, there, mut groups)) = self.split(&read.ranges, read.epoch) else {
            return self.store.read(read);
        };
        let Read { epoch, urgency, sink, .. } = read;
        let answer = self.answer(at, epoch, urgency, sink);
        let kept = if epoch == STAGED { self.take_recovered(&mut groups) } else { Vec::new() };
        answer.ask(groups.concat());
        if !kept.is_empty() {
            answer.joined.begin();
            let (answer, unpushed) = (answer.clone(), self.unpushed.clone());
            self.pool.run(Box::new(move || answer.joined.end(answer.answer_kept(&unpushed, &kept))));
        }
        let wait = urgency == Urgency::Background || self.local.in_memory;
        let ended = Arc::<AtomicBool>::default();
        let left = answer.answer(&there, wait, &ended);
        if !left.is_empty() {
            answer.joined.begin();
            let answer = answer.clone();
            self.pool.run(Box::new(move || {
                let left = answer.answer(&left, true, &ended);
                answer.ask(left);
                answer.joined.end(Ok(()));
            }));
        }
        answer.joined.end(Ok(()));
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        match self.push_recovered() {
            Ok(()) => {
                self.replaces(ranges);
                self.write_through(ranges, bytes, done);
            }
            Err(error) => done(Err(error)),
        }
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        match self.push_recovered() {
            Ok(()) => {
                self.replaces(ranges);
                self.zero_through(ranges, done);
            }
            Err(error) => done(Err(error)),
        }
    }

    fn set_length(&self, length: u64, done: Completion) {
        match self.push_recovered() {
            Ok(()) => {
                self.replaces_from(length.min(self.store.stage().length));
                self.set_length_through(length, done);
            }
            Err(error) => done(Err(error)),
        }
    }

    fn flush(&self, flush: Flush) {
        match self.push_recovered() {
            Ok(()) => self.flush_through(flush),
            Err(error) => (flush.done)(Err(error)),
        }
    }

    fn stage(&self) -> Stage {
        let stage = self.store.stage();
        let recovered = self.recovered.lock().expect("no holder panics");
        let length = recovered.as_ref().and_then(|recovered| recovered.length_at(&stage));
        Stage { recovered: recovered.is_some(), length: length.unwrap_or(stage.length), ..stage }
    }

    fn discard(&self) -> Result<()> {
        self.store.discard()?;
        self.give_up_written();
        Ok(())
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.check_writable()?;
        self.begin_writer()
    }

    fn pin(&self, epoch: Option<u64>) -> Result<Info> {
        let info = self.store.pin(epoch)?;
        if epoch.is_none() {
            self.follow(&info);
        }
        Ok(self.seen(info))
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

    fn stream(&self, stream: StreamRequest) -> Result<Box<dyn Stream>> {
        let StreamRequest { ranges, epoch, sink } = stream;
        let Some((at, there, mut groups)) = self.split(&ranges, epoch) else {
            return self.store.stream(StreamRequest { ranges, epoch, sink });
        };
        let answer = self.answer(at, epoch, Urgency::Background, sink);
        let kept = if epoch == STAGED { self.take_recovered(&mut groups) } else { Vec::new() };
        // What was joined would bring what is kept from the store.
        let mut asked = if kept.is_empty() { coalesce(groups, MAX_RANGES) } else { groups.concat() };
        let rest = asked.split_off(asked.len().min(MAX_RANGES));
        // What was joined covers some of what is there.
        let covered = ByteRange::union(asked.clone());
        let there: Vec<ByteRange> = there.into_iter().flat_map(|range| without(range, &covered)).collect();
        let mut remote = None;
        if !asked.is_empty() {
            answer.joined.begin();
            let sink = answer.sink();
            remote = Some(self.store.stream(StreamRequest { ranges: asked.clone(), epoch, sink })?);
            answer.ask(rest);
        }
        let ended = Arc::<AtomicBool>::default();
        let (cancelled, unpushed) = (ended.clone(), self.unpushed.clone());
        self.pool.run(Box::new(move || {
            let kept = answer.answer_kept(&unpushed, &kept);
            answer.answer(&there, true, &cancelled);
            let is_cancelled = cancelled.load(Ordering::Acquire) && !there.is_empty();
            answer.joined.end(match is_cancelled {
                true => Err(Error::new(ErrorKind::Cancelled, "the stream was cancelled")),
                false => kept,
            });
        }));
        Ok(Box::new(CachedStream { ended, remote, asked }))
    }

    fn round_trip(&self) -> Duration {
        self.store.round_trip()
    }

    fn refresh(&self) -> Result<Info> {
        let info = self.store.refresh()?;
        self.follow(&info);
        Ok(self.seen(info))
    }

    fn cache(&self) -> Option<&CacheStore> {
        Some(self)
    }
}

impl CacheStore {
    /// What of a read the image has, and what the store has to be asked for. None where all of it is the
    /// store's.
    fn split(&self, ranges: &[ByteRange], epoch: u64) -> Option<(Pulled, Vec<ByteRange>, Groups)> {
        let view = self.local.view();
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        if epoch != STAGED && (epoch != view.epoch || end > view.length) {
            return None;
        }
        let (mut there, mut groups) = (Vec::new(), Vec::with_capacity(ranges.len()));
        for range in ranges {
            let mut missing = Vec::new();
            view.split(*range, &mut there, &mut missing);
            groups.push(missing);
        }
        Some((view.pulled(), there, groups))
    }

    fn answer(&self, at: Pulled, epoch: u64, urgency: Urgency, sink: Arc<dyn Sink>) -> Answer {
        let (local, store) = (self.local.clone(), self.store.clone());
        Answer { local, store, at, epoch, urgency, joined: Joined::new(sink) }
    }

    /// What the store says, as it is through the cache.
    fn seen(&self, mut info: Info) -> Info {
        // Whoever is lent the file has to know that it moves on with a refresh.
        info.capabilities.lend = false;
        info.writable &= self.writable;
        info
    }
}

/// What of `range` is in none of `others`, which are in order and do not overlap.
fn without(range: ByteRange, others: &[ByteRange]) -> Vec<ByteRange> {
    let mut left = vec![range];
    let first = others.partition_point(|other| other.end <= range.start);
    for other in others[first..].iter().take_while(|other| other.start < range.end) {
        let last = left.pop().unwrap_or(ByteRange::new(range.end, range.end));
        left.extend(last.without(*other));
    }
    left.retain(|range| !range.is_empty());
    left
}
