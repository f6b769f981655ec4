//! The side that an application leaves.
//!
//! What may be done when is the [machine's](machine::Origin) to say. One thread carries out what it wants done, in its
//! order; those who ask for something wait until the machine has an answer.

mod place;
mod running;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pagewire_core::migrate::{self as machine, MigrationId, Phase, Refusal, RefusalKind, Reply, Request};
use pagewire_core::wire::{MigrationState, OriginState, Witnessed};
use serde::{Deserialize, Serialize};

use super::live::Live;
use super::outgoing::Outgoing;
use super::record::OriginFile;
use super::witness::{self, Witness};
use crate::engine::Region;
use crate::error::{Error, ErrorKind, Result};

/// How long to wait before what has failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The application that uses the regions of a migration, on either side.
///
/// Calls come from a thread that may be held up, one at a time.
pub trait Application: Send + Sync {
    /// Suspends it: when this returns it writes nothing more, until it is resumed here or elsewhere.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being suspended. It runs then, and the migration is given up.
    fn suspend(&self) -> Result<()>;

    /// It goes on here, since the migration was given up.
    fn resume(&self);

    /// It belongs to the destination from now on, and is never resumed here.
    fn moved(&self) {}

    /// The destination has everything: what was kept for it here is not needed any more.
    fn released(&self) {}
}

/// How the origin of migrations behaves.
#[derive(Debug, Clone)]
pub struct OriginOptions {
    /// The file that says who owns the regions, and outlives this process. Without one, a crash of this process in the
    /// moment of the switch leaves that to the destination, and to whoever starts the application again.
    pub record: Option<PathBuf>,
    /// How long a destination that is gone before the switch is waited for.
    pub lapse: Duration,
    /// The witness of each region that has one, by its name: what a migration would lose with this host after its
    /// switch is there before it. A migration waits for it before its switch, and does without none.
    pub witnesses: Vec<(String, Witness)>,
    /// How long a witness that fails is tried again, and for how long the switch may wait for it.
    pub witness_patience: Duration,
}

impl Default for OriginOptions {
    fn default() -> Self {
        let lapse = Duration::from_secs(10);
        Self { record: None, lapse, witnesses: Vec::new(), witness_patience: witness::PATIENCE }
    }
}

/// How a migration is doing, seen from its origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginStatus {
    /// The phase: `idle`, `tracking`, `offering`, `in-doubt`, `withdrawing`, `not-resumed`, `moved` or `released`.
    pub phase: String,
    /// The migration, in hexadecimal digits, where one is under way.
    pub migration: Option<String>,
    /// Who asked for it, where that is known.
    pub destination: Option<String>,
    /// In words, for people.
    pub text: String,
}

/// How an origin came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The destination has everything.
    Released,
    /// It was asked to stop before.
    Stopped,
}

/// An application's regions, offered to whoever takes them over.
pub struct Origin {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    regions: Vec<Arc<Outgoing>>,
    application: Arc<dyn Application>,
    options: OriginOptions,
    record: Option<OriginFile>,
    state: Mutex<State>,
    /// The machine is somewhere else, or there is something to do.
    changed: Condvar,
}

struct State {
    machine: machine::Origin,
    /// Who has joined the migration that was begun last.
    joined: Joined,
    /// When the application was suspended last.
    suspended: Option<Instant>,
    /// When what has failed is to be tried again.
    again: Option<Instant>,
    /// Whether [`Origin::stop`] was called.
    stopped: bool,
    /// Whether the thread is to end.
    closed: bool,
}

struct Joined {
    id: MigrationId,
    owner: String,
    /// How many sessions have each region open.
    places: Vec<usize>,
    /// When a destination without any is taken to be gone.
    lapses: Option<Instant>,
}

/// A region that a session of the destination has open.
pub(crate) struct Place {
    inner: Arc<Inner>,
    index: usize,
    id: MigrationId,
    generation: u64,
    region: Arc<Region>,
}

impl Origin {
    /// Offers `regions`, each under its name, together: they are moved at once or not at all.
    ///
    /// Where the record says that a migration was in doubt when the process before this one ended, the regions are
    /// frozen until that is known; where it says that they have moved, they never thaw: see [`Origin::may_run`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] without a region, and for a witness of another one; whatever keeps the record from being read or the regions from being frozen.
    pub fn new(
        regions: Vec<(String, Arc<dyn Live>)>,
        application: Arc<dyn Application>,
        options: OriginOptions,
    ) -> Result<Arc<Self>> {
        if regions.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "there is no region to be moved"));
        }
        let record = options.record.as_deref().map(OriginFile::open).transpose()?;
        let phase = record.as_ref().map(OriginFile::read).transpose()?.flatten();
        let nonce = u64::from_le_bytes(crate::peer::random_id()[..8].try_into().expect("eight bytes"));
        let machine = machine::Origin::new(phase, nonce | 1);
        let names = regions.iter().map(|(name, _)| name.as_str());
        let witnesses = witness::of_each(names, &options.witnesses)?.into_iter();
        let patience = options.witness_patience;
        let witnesses = witnesses.map(|witness| witness.map(|witness| (witness, patience)));
        let regions: Vec<Arc<Outgoing>> = regions
            .into_iter()
            .zip(witnesses)
            .map(|((name, live), w)| Arc::new(Outgoing::new(name, live, w)))
            .collect();
        if !machine.may_run() {
            regions.iter().try_for_each(|region| region.live.freeze())?;
        }
        let places = vec![0; regions.len()];
        let joined = Joined {
            id: machine.id().unwrap_or(MigrationId([0; 16])),
            owner: String::new(),
            places,
            lapses: None,
        };
        let state = State { machine, joined, suspended: None, again: None, stopped: false, closed: false };
        let inner = Arc::new(Inner {
            regions,
            application,
            options,
            record,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let run = inner.clone();
        let thread = std::thread::Builder::new()
            .name("pw-origin".into())
            .spawn(move || run.run())
            .map_err(|error| Error::io("cannot start a thread", &error))?;
        Ok(Arc::new(Self { inner, thread: Mutex::new(Some(thread)) }))
    }

    /// The names of its regions.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.regions.iter().map(|region| region.name.as_str())
    }

    /// Whether the application may run here now. Ask before it is started.
    pub fn may_run(&self) -> bool {
        self.inner.lock().machine.may_run()
    }

    /// How it is doing, as peers are told.
    pub fn state(&self) -> MigrationState {
        let state = self.inner.lock();
        let id = state.machine.id().or(state.machine.last_ending().map(|(id, _)| id));
        MigrationState {
            state: seen(state.machine.phase()),
            id: id.map_or([0; 16], |id| id.0),
            destination: state.joined.owner.clone(),
            text: self.text(&state),
        }
    }

    fn text(&self, state: &State) -> String {
        let text = state.text();
        let witnessed = self.inner.regions.iter().filter_map(|region| region.witnessed().transpose());
        witnessed.fold(text, |text, witnessed| match witnessed {
            Err(error) => format!("{text}; {error}"),
            Ok(Witnessed { epoch: 1.., .. }) => format!("{text}; a witness has everything"),
            Ok(Witnessed { missing, .. }) => format!("{text}; a witness lacks {missing} bytes"),
        })
    }

    /// How it is doing.
    pub fn status(&self) -> OriginStatus {
        let state = self.inner.lock();
        let owner = &state.joined.owner;
        OriginStatus {
            phase: state.machine.phase().name().into(),
            migration: state.machine.id().map(|id| id.to_string()),
            destination: (!owner.is_empty()).then(|| owner.clone()),
            text: self.text(&state),
        }
    }

    /// Waits until the destination has everything, or until [`Origin::stop`].
    pub fn wait(&self) -> Outcome {
        let mut state = self.inner.lock();
        loop {
            if state.machine.phase() == Phase::Released && state.machine.is_settled() {
                return Outcome::Released;
            }
            if state.stopped {
                return Outcome::Stopped;
            }
            state = self.inner.wait(state);
        }
    }

    /// Has [`Origin::wait`] return, and a migration that is before its switch given up.
    pub fn stop(&self) {
        // In doubt it stays so: the record says it to whoever comes next.
        let _refused = self.abort(false);
        self.inner.lock().stopped = true;
        self.inner.changed.notify_all();
    }

    /// Gives a migration up and resumes the application here. After the switch was offered it takes `force`, which says
    /// that the destination is known never to run the application: nobody else can know that.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] once the destination owns the regions; [`ErrorKind::Busy`] while that is in doubt, without
    /// `force`; [`ErrorKind::Io`] where the application could not be resumed.
    pub fn abort(&self, force: bool) -> Result<()> {
        let mut state = self.inner.lock();
        state.machine.handle_operator(force).map_err(|refusal| refused(&refusal))?;
        self.inner.changed.notify_all();
        while !state.machine.is_settled() && !state.closed {
            state = self.inner.wait(state);
        }
        match (state.machine.phase(), state.machine.failure()) {
            (Phase::NotResumed, Some(why)) => Err(Error::new(ErrorKind::Io, why)),
            (Phase::InDoubt, _) => Err(refused(&Refusal::InDoubt)),
            (Phase::Moved | Phase::Released, _) => Err(refused(&Refusal::Moved)),
            _ => Ok(()),
        }
    }

    /// Joins the migration `id` with the region `name`, or begins it; `tracking` is what was joined before.
    pub(crate) fn join(&self, name: &str, id: [u8; 16], owner: &str, tracking: Option<u64>) -> Result<Place> {
        let (inner, id) = (&self.inner, MigrationId(id));
        let index = inner.regions.iter().position(|region| region.name == name);
        let index = index.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no region '{name}'")))?;
        let (reply, mut state) = inner.ask(Request::Begin { id })?;
        let Reply::Begun { generation } = reply else { return Err(unexpected()) };
        if state.joined.id != id {
            state.joined =
                Joined { id, owner: owner.into(), places: vec![0; inner.regions.len()], lapses: None };
            tracing::info!(region = name, migration = %id, destination = owner, "a migration begins");
        }
        let is_frozen = matches!(seen(state.machine.phase()), OriginState::Offered | OriginState::Moved);
        let epoch = match tracking {
            // What is frozen stays what it is, also after a restart.
            Some(tracking) if is_frozen => tracking,
            Some(tracking) if tracking != generation => {
                let text = format!("the tracking of '{name}' that began as {tracking} is over");
                return Err(Error::new(ErrorKind::Stale, text));
            }
            _ => generation,
        };
        state.joined.places[index] += 1;
        (state.joined.lapses, state.joined.owner) = (None, owner.into());
        drop(state);
        // From here on its end takes the place back.
        let region = inner.regions[index].region(epoch).inspect_err(|_| inner.leave(id, index))?;
        Ok(Place { inner: inner.clone(), index, id, generation: epoch, region })
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.inner.lock().closed = true;
        self.inner.changed.notify_all();
        if let Some(thread) = self.thread.lock().expect("no holder panics").take() {
            // One that has panicked has stopped, too.
            let _ = thread.join();
        }
    }
}

impl State {
    /// How it is, in words.
    fn text(&self) -> String {
        let mut text = self.machine.phase().to_string();
        if let Some(why) = self.machine.failure() {
            text = format!("{text} ({why}; it is tried again)");
        }
        match self.machine.last_ending() {
            Some((_, ending)) if self.machine.phase() == Phase::Idle => {
                format!("{text}; the last one ended: {ending}")
            }
            _ => text,
        }
    }
}

/// The phase, as peers know it.
fn seen(phase: Phase) -> OriginState {
    match phase {
        Phase::Tracking | Phase::Offering => OriginState::Tracking,
        Phase::InDoubt => OriginState::Offered,
        Phase::Moved => OriginState::Moved,
        Phase::Released => OriginState::Released,
        _ => OriginState::Running,
    }
}

fn refused(refusal: &Refusal) -> Error {
    let kind = match refusal {
        Refusal::Busy(_) | Refusal::InDoubt => ErrorKind::Busy,
        Refusal::Gap => ErrorKind::Stale,
        Refusal::Failed(_) => ErrorKind::Io,
        _ => ErrorKind::Fenced,
    };
    Error::new(kind, refusal.to_string()).with_retry(refusal.kind() == RefusalKind::Later)
}

fn unexpected() -> Error {
    Error::new(ErrorKind::Protocol, "the machine of the origin answers something else")
}
