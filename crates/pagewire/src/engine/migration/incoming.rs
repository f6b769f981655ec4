//! One region of a migration, at its destination: what carries its bytes here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::migrate::WriteFrequency;
use pagewire_core::wire::{MAX_RANGES, MigrateStep, Migrated};

use super::source::Source;
use super::transfer::{Carried, Gate, Transfer};
use crate::engine::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::sink::Sink;
use crate::store::arriving::{Arriving, Filling};
use crate::store::{Read, RemoteStore, Store, StreamRequest, Urgency};

/// The pause before something that has failed is tried again.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// Up to so many bytes, pages are asked for by a read: it has no flow to be set up.
const SHORT: u64 = 4 << 20;

/// How long to wait at most for what is on its way, before the application is suspended.
const DRAIN: Duration = Duration::from_secs(1);

/// A region on its way here.
pub(super) struct Incoming {
    pub(super) name: String,
    /// None where it could not be reached when this side was started again.
    pub(super) origin: Option<Arc<RemoteStore>>,
    /// Where what is absent comes from.
    pub(super) source: Arc<Source>,
    pub(super) arriving: Arc<Arriving>,
    pub(super) region: Arc<Region>,
    /// How many bytes have come.
    pub(super) moved: Arc<AtomicU64>,
    pub(super) patience: Duration,
    /// How often what was written before the switch.
    pub(super) frequency: Mutex<WriteFrequency>,
    /// The pages of the last set, where they were to follow it.
    pub(super) following: Mutex<Option<Transfer>>,
}

impl Incoming {
    pub(super) fn frequency(&self) -> MutexGuard<'_, WriteFrequency> {
        self.frequency.lock().expect("no holder panics")
    }

    /// Asks for a step of the migration, again and again until it is answered or the patience is over.
    pub(super) fn step(&self, step: MigrateStep) -> Result<Migrated> {
        let deadline = Instant::now() + self.patience;
        loop {
            match self.migrate(step) {
                Err(error) if is_passing(&error) && Instant::now() + PAUSE < deadline => {
                    std::thread::sleep(PAUSE);
                }
                result => return result.map_err(|error| error.context(format!("'{}'", self.name))),
            }
        }
    }

    /// Asks for a step of the migration, once.
    pub(super) fn migrate(&self, step: MigrateStep) -> Result<Migrated> {
        self.origin()?.migrate(step)
    }

    /// The same for a step that takes a set, and has its pages follow, which come to nothing before [`Incoming::follow`].
    pub(super) fn migrate_with_pages(&self, step: MigrateStep) -> Result<(Migrated, Transfer)> {
        let (filling, ended) = self.filling();
        let gate = Gate::new(filling);
        let asked = self.origin()?.migrate_with_pages(step, gate.clone());
        // Pages may have come before the connection was lost that the answer should have come on; whoever brings them waits.
        let (migrated, stream) = asked.inspect_err(|_| gate.shut())?;
        Ok((migrated, Transfer { stream: Some(stream), ended, gate: Some(gate) }))
    }

    /// The pages of the last set have not arrived, which is known now: they are placed as they come.
    pub(super) fn follow(&self, pages: Option<Transfer>) {
        if let Some(pages) = &pages {
            pages.open();
        }
        *self.following.lock().expect("no holder panics") = pages;
    }

    /// Waits until what was sent here before has arrived, whether it is wanted or not, so that an answer need not wait
    /// for it on its way.
    pub(super) fn drain(&self) {
        if let Some(origin) = &self.origin {
            origin.drain(DRAIN);
        }
    }

    fn origin(&self) -> Result<&Arc<RemoteStore>> {
        let missing = || Error::new(ErrorKind::Unavailable, format!("the origin of '{}' is gone", self.name));
        self.origin.as_ref().ok_or_else(missing)
    }

    /// A sink that places what comes, and what tells of its end.
    fn filling(&self) -> (Arc<dyn Sink>, mpsc::Receiver<Result<()>>) {
        let (sender, ended) = mpsc::sync_channel(1);
        let sink = Filling::new(self.arriving.clone(), self.moved.clone(), move |result| {
            // Who waited may have gone.
            let _ = sender.try_send(result);
        });
        (Arc::new(sink), ended)
    }

    /// How long the way to the origin and back takes.
    pub(super) fn round_trip(&self) -> Duration {
        self.origin.as_ref().map_or(Duration::ZERO, |origin| origin.round_trip())
    }

    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Brings what has not arrived, in the order of `first` and then of the region, until `is_over`. Lost connections
    /// are waited for as long as the patience lasts without anything coming.
    pub(super) fn carry(&self, first: &[ByteRange], is_over: &dyn Fn() -> bool) -> Result<Carried> {
        let (mut progress, mut since) = (self.moved(), Instant::now());
        let following = self.following.lock().expect("no holder panics").take();
        match following.map(|pages| pages.wait(is_over)) {
            Some(Ok(Carried::InPart)) => return Ok(Carried::InPart),
            // What has not come is asked for.
            Some(Err(error)) => tracing::debug!(region = self.name, %error, "not all pages have followed"),
            Some(Ok(Carried::All)) | None => {}
        }
        loop {
            let end = self.source.info().length;
            // The origin gives whole pages, past the region's end too.
            let whole = |range: ByteRange| range.align_out(PAGE_SIZE).clamp_to(end);
            let mut ranges: Vec<ByteRange> =
                ordered(first, self.arriving.absent()).into_iter().map(whole).collect();
            if ranges.is_empty() {
                return Ok(Carried::All);
            }
            if !self.source.streams() {
                ranges = beginning(ranges, SHORT);
            }
            match self.carry_once(&ranges, is_over) {
                Ok(Carried::All) => {}
                Ok(Carried::InPart) => return Ok(Carried::InPart),
                Err(error) if !is_passing(&error) => return Err(error.context(format!("'{}'", self.name))),
                Err(error) => {
                    if self.moved() != progress {
                        (progress, since) = (self.moved(), Instant::now());
                    }
                    if since.elapsed() > self.patience {
                        return Err(error.context(format!("'{}'", self.name)));
                    }
                    std::thread::sleep(PAUSE);
                }
            }
            if is_over() {
                return Ok(Carried::InPart);
            }
        }
    }

    fn carry_once(&self, ranges: &[ByteRange], is_over: &dyn Fn() -> bool) -> Result<Carried> {
        for ranges in ranges.chunks(MAX_RANGES) {
            let (sink, ended) = self.filling();
            let epoch = self.source.info().epoch;
            let stream = if ByteRange::total(ranges) <= SHORT {
                let urgency = Urgency::Background;
                self.source.read(Read { ranges: ranges.to_vec(), epoch, urgency, sink });
                None
            } else {
                Some(self.source.stream(StreamRequest { ranges: ranges.to_vec(), epoch, sink })?)
            };
            let transfer = Transfer { stream, ended, gate: None };
            if transfer.wait(is_over)? == Carried::InPart {
                return Ok(Carried::InPart);
            }
        }
        Ok(Carried::All)
    }
}

/// The first so many bytes of `ranges`.
fn beginning(ranges: Vec<ByteRange>, most: u64) -> Vec<ByteRange> {
    let mut left = most;
    let first = ranges.into_iter().map_while(|range| {
        let part = (left > 0).then(|| ByteRange::new(range.start, range.end.min(range.start + left)))?;
        left -= part.len();
        Some(part)
    });
    first.collect()
}

/// Whether it may help to try again.
pub(super) fn is_passing(error: &Error) -> bool {
    error.can_retry() || error.kind() == ErrorKind::Unavailable
}

/// What is `absent`: first what of it lies in `first`, in that order, then the rest.
fn ordered(first: &[ByteRange], absent: Vec<ByteRange>) -> Vec<ByteRange> {
    if first.is_empty() {
        return absent;
    }
    let mut ordered = Vec::new();
    for range in first {
        let start = absent.partition_point(|absent| absent.end <= range.start);
        ordered.extend(
            absent[start..]
                .iter()
                .take_while(|absent| absent.start < range.end)
                .map(|absent| absent.intersect(*range))
                .filter(|range| !range.is_empty()),
        );
    }
    ordered.extend(difference(&absent, &ByteRange::union(first.to_vec())));
    ordered
}

/// What `one` has and `two` has not; both are in order, and apart.
fn difference(one: &[ByteRange], two: &[ByteRange]) -> Vec<ByteRange> {
    let mut left = Vec::new();
    let mut from = 0;
    for range in one {
        from += two[from..].partition_point(|other| other.end <= range.start);
        let mut rest = *range;
        for other in two[from..].iter().take_while(|other| other.start < range.end) {
            let [before, after] = rest.without(*other);
            if !before.is_empty() {
                left.push(before);
            }
            rest = after;
        }
        if !rest.is_empty() {
            left.push(rest);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pages: &[(u64, u64)]) -> Vec<ByteRange> {
        pages.iter().map(|&(from, to)| ByteRange::of_pages(from..to)).collect()
    }

    #[test]
    fn the_beginning_is_as_long_as_it_may_be() {
        let all = ranges(&[(0, 2), (5, 6), (9, 19)]);
        assert_eq!(beginning(all.clone(), 100 * PAGE_SIZE), all);
        assert_eq!(beginning(all.clone(), 4 * PAGE_SIZE), ranges(&[(0, 2), (5, 6), (9, 10)]));
        assert_eq!(beginning(all, 3 * PAGE_SIZE), ranges(&[(0, 2), (5, 6)]));
    }

    #[test]
    fn what_is_first_comes_first_and_nothing_is_left_out() {
        let absent = ranges(&[(0, 4), (6, 9), (20, 30)]);
        assert_eq!(ordered(&[], absent.clone()), absent);
        let first = ranges(&[(2, 7), (25, 26)]);
        let expected = ranges(&[(2, 4), (6, 7), (25, 26), (0, 2), (7, 9), (20, 25), (26, 30)]);
        assert_eq!(ordered(&first, absent.clone()), expected);
        let first = ranges(&[(25, 26), (2, 7)]);
        let expected = ranges(&[(25, 26), (2, 4), (6, 7), (0, 2), (7, 9), (20, 25), (26, 30)]);
        assert_eq!(ordered(&first, absent), expected);
        assert_eq!(ordered(&ranges(&[(0, 9)]), Vec::new()), []);
    }
}
