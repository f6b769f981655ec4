//! How the origin is reached, and its regions begin to arrive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use pagewire_core::bitmap::BitSet;
use pagewire_core::chunk::{ByteRange, ChunkSize, Geometry};
use pagewire_core::migrate::destination::Cause;
use pagewire_core::migrate::{self as machine, HomeSets, MigrationId, Phase, WriteFrequency};

use super::super::not_now;
use super::Inner;
use crate::address::RegionAddress;
use crate::engine::Region;
use crate::engine::migration::incoming::{Incoming, PAUSE, is_passing};
use crate::engine::migration::record::SetsFile;
use crate::engine::migration::source::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::store::arriving::{Arriving, Keeper};
use crate::store::{RemoteStore, Store};

impl Inner {
    /// Waits until the origin is reached: for copying, or, with an earlier migration that was accepted, for the rest.
    pub(in super::super) fn wait_to_begin(&self) -> Result<()> {
        loop {
            let mut state = self.lock();
            let (phase, finished) = (state.machine.phase(), state.machine.is_finished());
            match phase {
                Phase::Copying => return Ok(()),
                Phase::PostCopy | Phase::Completing | Phase::Completed => break,
                Phase::Aborted if finished && state.machine.cause().is_none_or(was_before) => {
                    // What was begun before is over: begins anew.
                    tracing::info!(migration = %state.machine.id(), "what was begun before is given up");
                    state.machine = machine::Destination::new(MigrationId(crate::peer::random_id()));
                    self.changed.notify_all();
                }
                Phase::Aborting if state.machine.cause().is_none_or(was_before) => {
                    let patience = self.options.remote.patience;
                    if state.lost.is_some_and(|lost| lost.elapsed() > patience) {
                        let error = state.error.clone().unwrap_or_else(not_now);
                        return Err(
                            error.context("the origin cannot be told that an earlier migration is given up")
                        );
                    }
                    drop(self.wait(state, Some(Instant::now() + PAUSE)));
                }
                _ if state.closed => return Err(not_now()),
                _ => match state.over() {
                    Some(error) => return Err(error),
                    None => drop(self.wait(state, None)),
                },
            }
        }
        // It was accepted before: the regions are here, and have to be reached.
        let incoming = self.connect_again()?;
        tracing::info!(regions = incoming, "an accepted migration goes on");
        Ok(())
    }

    /// Whether there is a witness of a region that was accepted.
    fn is_witnessed(&self, index: usize) -> bool {
        let recorded = self.record.as_ref().map(|record| record.witnesses()).unwrap_or_default();
        self.witnesses[index].is_some() && recorded.get(index).is_some_and(|at| at.store != [0; 16])
    }

    fn connect_again(&self) -> Result<usize> {
        let id = self.lock().machine.id();
        let deadline = Instant::now() + self.options.remote.patience;
        loop {
            match self.connect(id, true) {
                Ok(_) => return Ok(self.incoming().len()),
                Err(error) if is_passing(&error) && Instant::now() + PAUSE < deadline => {
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(error.context("the rest of the regions is at the origin")),
            }
        }
    }

    /// Opens the regions at the origin, and begins to take them in at their homes. Answers the number of the tracking.
    pub(super) fn connect(&self, id: MigrationId, accepted: bool) -> Result<u64> {
        if let Some(known) = self.incoming.get() {
            return Ok(known[0].source.info().epoch);
        }
        let has_everything = accepted && self.lock().machine.has_everything();
        let mut incoming: Vec<Arc<Incoming>> = Vec::new();
        for (index, (address, home)) in self.targets.iter().enumerate() {
            let origin = match RemoteStore::connect_move(address, &self.options.remote, id.0, &self.owner) {
                Ok(origin) => Some(Arc::new(origin)),
                Err(error) if has_everything || (accepted && self.is_witnessed(index)) => {
                    tracing::warn!(region = address.name, %error, "the origin is gone; it is done without");
                    None
                }
                Err(error) => return Err(error),
            };
            let sets = self.record.as_ref().map(|record| record.sets(index));
            let known = if has_everything { Known::All } else { Known::of(accepted) };
            incoming.push(Arc::new(self.arrive(id, (address, home), origin, sets, known)?));
        }
        if accepted && !has_everything {
            self.rely_on_recorded(&incoming)?;
        }
        let generation = incoming[0].source.info().epoch;
        // Nobody else connects.
        let _ = self.incoming.set(incoming);
        Ok(generation)
    }

    fn arrive(
        &self,
        id: MigrationId,
        (address, home): (&RegionAddress, &Arc<dyn Store>),
        origin: Option<Arc<RemoteStore>>,
        sets: Option<SetsFile>,
        known: Known,
    ) -> Result<Incoming> {
        let info = home.info();
        let pages = Geometry::new(info.capacity, ChunkSize::PAGE).page_count();
        if !info.writable {
            let text = format!("the store for '{}' cannot be written to", address.name);
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let region = *info.id.as_bytes();
        let present = match (&sets, known) {
            (_, Known::All) => BitSet::full(pages),
            (Some(sets), Known::Recorded) => {
                let known = sets.read(id, region, pages)?;
                known.at(info.epoch).map_err(|error| sets.damaged(&error))?.clone()
            }
            _ => BitSet::new(pages),
        };
        home.fence()?;
        let keeper = sets
            .map(|file| Box::new(Kept { file, id, region, sequence: AtomicU64::new(0) }) as Box<dyn Keeper>);
        let source = Source::new(&address.name, origin.clone(), info);
        let arriving = Arriving::new(home.clone(), source.clone() as Arc<dyn Store>, present, keeper);
        if known == Known::Nothing {
            // Whatever was there is not the region's.
            arriving.invalidate(&[ByteRange::new(0, info.capacity)]);
        }
        let region = Region::new(&address.name, arriving.clone())?;
        Ok(Incoming {
            name: address.name.clone(),
            origin,
            source,
            arriving,
            region,
            moved: Arc::new(AtomicU64::new(0)),
            frequency: Mutex::new(WriteFrequency::new(Geometry::new(info.capacity, ChunkSize::DEFAULT))),
            patience: self.options.remote.patience,
            following: Mutex::default(),
        })
    }
}

/// What is known to be at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Whatever is there is not the region's.
    Nothing,
    /// What the sets say.
    Recorded,
    /// Everything.
    All,
}

impl Known {
    fn of(accepted: bool) -> Self {
        if accepted { Self::Recorded } else { Self::Nothing }
    }
}

/// Whether it was given up since an earlier process of this side was ended.
fn was_before(cause: &Cause) -> bool {
    *cause == Cause::Restarted
}

/// Keeps which pages are durable at home in a file.
struct Kept {
    file: SetsFile,
    id: MigrationId,
    region: [u8; 16],
    sequence: AtomicU64,
}

impl Keeper for Kept {
    fn flushing(&self, epoch: u64, before: &BitSet, after: &BitSet) -> Result<()> {
        let Self { id, region, .. } = *self;
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let (pages, next_pages) = (before.clone(), after.clone());
        self.file.write(&HomeSets { id, region, sequence, epoch, pages, next_epoch: epoch + 1, next_pages })
    }
}
