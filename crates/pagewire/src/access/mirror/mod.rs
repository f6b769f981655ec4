//! Mirroring: a file that programs have mapped, and cannot be asked to map differently, kept in step at a region.
//!
//! Nobody tells of a store to a shared mapping: inotify does not fire, and the file's times move when the kernel
//! writes back, if at all. So the file is read and hashed again and again ([`watched`]), and pages that have changed since
//! they were pushed are pushed as one epoch, by the engine's [`Pusher`]. To find writers by what the kernel
//! tracks (`PAGEMAP_SCAN`) they would have to have made a userfaultfd themselves; a program that can be changed has
//! that, and more, by a [`WritableMapping`](crate::access::uffd::WritableMapping).
//!
//! An epoch is not a point in time: while programs write, it may have one page from before a change and another from
//! after it, as after a crash of theirs. A page that changes while it is read is seen as changed by the next round,
//! since what is kept is the hash of the bytes that were pushed, not of those that were found changed.
//!
//! What is at the region already is compared first, as trees of hashes, so that a mirror that was away pushes what has
//! changed meanwhile and no more.

mod pace;
mod watched;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_core::chunk::{ByteRange, ChunkSize};
use pagewire_core::delta::{Algorithm, Comparison, Node, Scheme, Tree, windows};
use serde::Serialize;

use crate::engine::hash::{Hashed, Hashes};
use crate::engine::{PushOptions, Pusher, Region};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{self, STAGED};
use pace::Pace;
use watched::Watched;

/// How a file is mirrored.
#[derive(Debug, Clone)]
pub struct MirrorOptions {
    /// The shortest pause between two rounds.
    pub interval: Duration,
    /// The longest: while nothing changes, each pause is twice the one before it, up to this.
    pub max_interval: Duration,
    /// The greatest share of one processor's time that hashing takes; more than 1 where there are several. None for as
    /// much as it takes.
    pub cpu: Option<f64>,
    /// How many threads hash; none for as many as there are processors.
    pub threads: Option<usize>,
    /// How pages are told apart: [`Algorithm::Blake3`] where those who write to the file are not to be trusted.
    pub algorithm: Algorithm,
    /// How long a round goes on trying while the region cannot be reached.
    pub patience: Duration,
    /// Who writes, for a second writer to be told; this process, where none is named.
    pub owner: Option<String>,
}

impl Default for MirrorOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(100),
            max_interval: Duration::from_secs(2),
            cpu: None,
            threads: None,
            algorithm: Algorithm::Xxh3,
            patience: Duration::from_secs(30),
            owner: None,
        }
    }
}

/// What one round has found and done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Round {
    /// The region's epoch after it.
    pub epoch: u64,
    /// The file's length, in bytes.
    pub length: u64,
    /// How many bytes were pushed.
    pub pushed: u64,
    /// How long it took to hash the file, in seconds.
    pub hashing: f64,
    /// How long the round took in all, in seconds.
    pub seconds: f64,
}

/// Mirrors a file to a region whose lease it has, until it is dropped.
///
/// ```no_run
/// use pagewire::access::mirror::{Mirror, MirrorOptions};
/// use pagewire::engine::Region;
/// use pagewire::store::{self, RemoteOptions};
///
/// # fn main() -> pagewire::Result<()> {
/// let address = "pw://10.0.0.7:7070/state".parse()?;
/// let region = Region::at(&address, store::open(&address, true, &RemoteOptions::default())?)?;
/// let mut mirror = Mirror::start("/var/lib/app/state".as_ref(), &region, &MirrorOptions::default())?;
/// println!("{} bytes had changed", mirror.round()?.pushed);
/// # Ok(())
/// # }
/// ```
pub struct Mirror {
    // Dropped first: its thread reads the file.
    pusher: Pusher,
    watched: Arc<Watched>,
    region: Arc<Region>,
    path: PathBuf,
    options: MirrorOptions,
    pushed: u64,
    /// Whether it was said that the file is not at its path.
    told_gone: bool,
}

impl Mirror {
    /// Begins to mirror the file at `path`: compares it with what the region holds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] where there is no file; [`ErrorKind::Usage`] for what is none; [`ErrorKind::Busy`] while
    /// somebody else writes to the region; whatever the region's store says.
    pub fn start(path: &Path, region: &Arc<Region>, options: &MirrorOptions) -> Result<Self> {
        let scheme = Scheme { algorithm: options.algorithm, key: crate::peer::random_id() };
        let watched = Arc::new(Watched::open(path, scheme, options.threads)?);
        let owner = options.owner.clone().unwrap_or_else(store::this_process);
        let writer = region.writer(&owner)?;
        let has = writer.stage().length;
        compare(&watched, region, has)?;
        let push = PushOptions { interval: None, patience: options.patience, ..PushOptions::default() };
        let capacity = region.info().capacity;
        let pusher = Pusher::start(writer, watched.clone(), capacity, push)?;
        Ok(Self {
            pusher,
            watched,
            region: region.clone(),
            path: path.into(),
            options: options.clone(),
            pushed: 0,
            told_gone: false,
        })
    }

    /// Has everything that has changed in the file flushed to the region, as one epoch; none, where nothing has.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSpace`] where the file has grown past the region's capacity; [`ErrorKind::Fenced`] once somebody
    /// else writes to the region; whatever keeps the file from being read. What was not pushed is pushed by the
    /// next round.
    pub fn round(&mut self) -> Result<Round> {
        let started = Instant::now();
        self.follow_path()?;
        let length = self.watched.look_at_length()?;
        self.pusher.set_length(length)?;
        self.watched.set_length(length);
        let info = self.pusher.flush()?;
        let pushed = self.pusher.progress().pushed_bytes;
        let round = Round {
            epoch: info.epoch,
            length,
            pushed: pushed - self.pushed,
            hashing: self.watched.hashing().as_secs_f64(),
            seconds: started.elapsed().as_secs_f64(),
        };
        self.pushed = pushed;
        Ok(round)
    }

    /// Makes one round after another until `pause` answers false, which waits as long as it is told to, or for the end.
    /// Tells `told` of each round; one that fails and can be tried again is logged, and tried again.
    ///
    /// # Errors
    ///
    /// What no further round mends: see [`Mirror::round`].
    pub fn run(
        &mut self,
        mut told: impl FnMut(&Round),
        mut pause: impl FnMut(Duration) -> bool,
    ) -> Result<()> {
        let mut pace = Pace::new(self.options.interval, self.options.max_interval, self.options.cpu);
        let threads = self.watched.threads();
        loop {
            let next = match self.round() {
                Ok(round) => {
                    told(&round);
                    pace.after(round.pushed > 0, Duration::from_secs_f64(round.hashing) * threads)
                }
                Err(error) if can_go_on(&error) => {
                    tracing::warn!(file = %self.path.display(), %error, "a round fails; it is tried again");
                    self.options.max_interval
                }
                Err(error) => return Err(error),
            };
            if !pause(next) {
                return Ok(());
            }
        }
    }

    /// The hash of all that was pushed, by the mirror's own scheme: after a round, that of the epoch.
    pub fn root(&self) -> Node {
        self.watched.root()
    }

    /// How [`Mirror::root`] is made.
    pub fn scheme(&self) -> Scheme {
        self.watched.scheme()
    }

    /// The region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Moves on to another file that has taken the path. One that is removed is mirrored still: programs may have it mapped.
    fn follow_path(&mut self) -> Result<()> {
        match self.watched.reopen(&self.path) {
            Ok(replaced) => {
                if replaced {
                    tracing::info!(file = %self.path.display(), "another file has taken its place");
                }
                self.told_gone = false;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if !std::mem::replace(&mut self.told_gone, true) {
                    tracing::warn!(file = %self.path.display(), "the file was removed; what has it open is mirrored still");
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether another round may succeed.
fn can_go_on(error: &Error) -> bool {
    error.can_retry() || matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Io)
}

/// Finds what of the file the region does not hold: `has` is how long it is.
fn compare(watched: &Watched, region: &Arc<Region>, has: u64) -> Result<()> {
    let of = Hashed::Region(region.clone());
    if !of.is_asked() && of.is_remote() {
        tracing::warn!(region = region.name(), "the peer cannot hash its region: all of the file is pushed");
        watched.take_for_changed();
        return Ok(());
    }
    watched.hash_all()?;
    let (scheme, length) = (watched.scheme(), watched.length());
    let hashes = Hashes::new(STAGED, scheme, length, 1);
    for window in windows(length) {
        let tree = Tree::new(&scheme, window.start, watched.leaves(window));
        let mut comparison = Comparison::new(window, length);
        while let Some(question) = comparison.question() {
            let theirs = hashes.nodes(&of, has, question.level, &question.ranges, &|| false)?;
            let ours: Vec<Node> =
                question.ranges.iter().flat_map(|range| tree.nodes(question.level, *range)).collect();
            comparison
                .answer(&ours, &theirs)
                .map_err(|error| Error::new(ErrorKind::Protocol, error.to_string()))?;
        }
        let differing: Vec<ByteRange> = comparison.differing().iter().map(|found| found.range).collect();
        watched.forget(&differing);
    }
    tracing::debug!(pages = length.div_ceil(ChunkSize::PAGE.bytes()), "compared with the region");
    Ok(())
}
