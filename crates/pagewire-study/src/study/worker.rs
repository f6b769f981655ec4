//! The process that carries out a study, in namespaces of its own where it may have them: whatever is mounted and made
//! there is gone when its last process is, however that ends.
//!
//! It is told what to do by a line on its standard input and tells of what happens on its standard output. When its
//! standard input ends it ends at once, and with it all processes that it has started, whose standard inputs it held.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cell::Surroundings;
use super::links::{self, Demands};
use super::plan::Block;
use super::record::Record;
use super::side::make_region;
use super::trouble::{Result, Trouble};
use crate::child;
use crate::link::Loss;

/// The hidden argument.
pub(super) const ROLE: &str = "--pagewire-study-worker";

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// The cells, in order.
    pub(super) blocks: Vec<Block>,
    /// A folder that is there and empty.
    pub(super) folder: PathBuf,
    /// Whether a file system in memory can be mounted over it, that nobody else sees.
    pub(super) mounts: bool,
    /// Bytes of the region.
    pub(super) bytes: u64,
    /// How long a cell may take, in seconds.
    pub(super) cap_s: f64,
    /// How long a steady rate lasts, in seconds.
    pub(super) steady_s: f64,
    /// What everything random follows from.
    pub(super) seed: u64,
    /// Of a thousand segments, how many every link loses.
    pub(super) loss_per_mille: u32,
    /// How far a link may be from what was asked for, as a share.
    pub(super) tolerance: f64,
}

/// What happens in a study.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// Something is about to be done that takes a while.
    Begins(String),
    /// A line for the raw data.
    Record(Record),
    /// The study cannot go on.
    Fails(String),
}

/// Becomes the worker if this process was started as one; else returns.
pub(super) fn run_if_asked() {
    let Some(_) = child::arguments_of(ROLE) else { return };
    child::run(|| {
        let mut lines = io::stdin().lock().lines();
        let job: Job = serde_json::from_str(&lines.next().ok_or(io::ErrorKind::UnexpectedEof)??)?;
        drop(lines);
        let folder = job.folder.clone();
        std::thread::Builder::new().name("end".into()).spawn(move || {
            // Nobody says anything more.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            clear(&folder);
            std::process::exit(0);
        })?;
        let result = work(&job);
        if let Err(trouble) = &result {
            tell(&Event::Fails(trouble.reason.clone()))?;
        }
        clear(&job.folder);
        Ok(())
    });
}

/// Removes what is in the folder, and the folder, as far as nobody uses it any more.
fn clear(folder: &Path) {
    // Where it is no mount, or was cleared already, there is nothing to do.
    let _ = pagewire_sys::mount::unmount(folder, true);
    let _ = std::fs::remove_dir_all(folder);
}

fn tell(event: &Event) -> io::Result<()> {
    println!("{}", serde_json::to_string(event)?);
    Ok(())
}

fn work(job: &Job) -> Result<()> {
    if job.mounts {
        let mounted = pagewire_sys::isolation::mount_in_memory(&job.folder);
        mounted.map_err(|error| Trouble::from(error).of("cannot mount memory for the regions"))?;
    }
    let surroundings = Surroundings {
        folder: job.folder.clone(),
        bytes: job.bytes,
        cap_s: job.cap_s,
        steady_s: job.steady_s,
        seed: job.seed,
    };
    make_region(&surroundings.pristine(), job.bytes)
        .map_err(|error| Trouble::from(error).of("cannot make a region"))?;
    // What cannot be done once cannot be done: nothing is tried in vain for each cell.
    let mut impossible: HashMap<_, Trouble> = HashMap::new();
    for block in &job.blocks {
        // Rounds lose other segments.
        let seed = job.seed.wrapping_add(block.round.into());
        let loss = (job.loss_per_mille > 0).then_some(Loss { per_mille: job.loss_per_mille, seed });
        let demands = Demands { loss, tolerance: job.tolerance };
        let rate = block.link.rate_bits.map(|rate| format!(" and {} Mbit/s", rate / 1_000_000));
        tell(&Event::Begins(format!("a link of {} ms{}", block.link.rtt_ms, rate.unwrap_or_default())))?;
        let (record, between) = links::make(block.link, &demands);
        tell(&Event::Record(Record::Link(record)))?;
        for planned in &block.cells {
            tell(&Event::Begins(planned.id.clone()))?;
            let way = (planned.method, planned.mode, planned.point.pattern.writes());
            let between = match impossible.get(&way) {
                Some(trouble) => Err(trouble),
                None => between.as_ref(),
            };
            let cell = surroundings.run(planned, block.round, between);
            let trouble =
                cell.reason.as_ref().map(|reason| Trouble { outcome: cell.outcome, reason: reason.clone() });
            if let Some(trouble) = trouble.filter(|trouble| trouble.lasts() && between.is_ok()) {
                impossible.insert(way, trouble);
            }
            tell(&Event::Record(Record::Cell(Box::new(cell))))?;
        }
    }
    Ok(())
}
