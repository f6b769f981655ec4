//! The side that an application comes to.
//!
//! What may be done when is the [machine's](machine::Destination) to say, and when to switch the
//! [controller's](machine::Controller). Two threads carry out what the machine wants: one what it wants done, and one what it
//! wants to ask of the origin, which may take long. The thread that calls [`Destination::run`] copies, and resumes the
//! application.

mod copying;
mod driving;
mod protection;
mod report;
mod waiting;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pagewire_core::migrate::{Goals, Phase};

use super::Application;
use super::transfer::Carried;
use super::witness::{self, Witness};
use crate::address::RegionAddress;
use crate::engine::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{RemoteOptions, Store};
use driving::Inner;
pub use report::{Report, Saved, WitnessReport};

/// When a migration begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// At once.
    #[default]
    Now,
    /// At a moment at which the application writes little, if it has such, within this time.
    Best {
        /// How long to wait at most.
        within: Duration,
    },
}

/// How a region is taken over.
#[derive(Clone)]
pub struct DestinationOptions {
    /// What matters.
    pub goals: Goals,
    /// When it begins.
    pub when: When,
    /// How the origin is talked to.
    pub remote: RemoteOptions,
    /// The file that says who owns the regions, and outlives this process. Without one, a crash of this process before
    /// everything is here loses what was written here.
    pub record: Option<PathBuf>,
    /// Who takes over, for people at the origin; this process, where none is named.
    pub owner: Option<String>,
    /// The application here, to be suspended where somebody at the origin takes it back by force.
    pub application: Option<Arc<dyn Application>>,
    /// The witness of each region that has one, by its name: the same store that the origin streams it to, at which what has
    /// not arrived is asked for when the origin is gone. A migration to one that the origin does not stream to, or that
    /// cannot be reached, is given up before its switch.
    pub witnesses: Vec<(String, Witness)>,
    /// For how long the origin may be silent, where somebody waits for it, before a witness is asked in its place.
    pub witness_patience: Duration,
}

impl Default for DestinationOptions {
    fn default() -> Self {
        Self {
            goals: Goals::default(),
            when: When::default(),
            remote: RemoteOptions::default(),
            record: None,
            owner: None,
            application: None,
            witnesses: Vec::new(),
            witness_patience: witness::SILENCE,
        }
    }
}

/// The regions, at the moment at which the application may run here.
pub struct Arrived {
    /// Each with its name, in the order in which they were asked for. Their writer's lease is free.
    pub regions: Vec<(String, Arc<Region>)>,
}

/// A migration, seen from where it goes.
pub struct Destination {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Destination {
    /// Begins to take over `regions`, each to a store of its own that has room for it, which is overwritten.
    ///
    /// Where the record says that this was begun and accepted before, it is gone on with; one that was begun and not
    /// accepted is given up, and begun anew.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] without a region; [`ErrorKind::NoSpace`] where a store has too little room; whatever keeps the origin from
    /// being reached, or the stores from being written to.
    pub fn start(
        regions: &[(RegionAddress, Arc<dyn Store>)],
        options: DestinationOptions,
    ) -> Result<Arc<Self>> {
        if regions.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "there is no region to be moved"));
        }
        let inner = Arc::new(Inner::new(regions, options)?);
        let threads = Mutex::new(Inner::start(&inner)?);
        let destination = Arc::new(Self { inner, threads });
        destination.inner.wait_to_begin()?;
        Ok(destination)
    }

    /// Brings the application here: returns when `resume` has, which is called when the application may run. Its
    /// error is that of this call, but does not take the regions back: they are here then, and the application can be
    /// resumed by other means.
    ///
    /// # Errors
    ///
    /// Whatever ends the migration before the switch; the application then goes on at the origin, or as soon as the origin
    /// can be told.
    pub fn run(&self, resume: impl FnOnce(&Arrived) -> Result<()>) -> Result<Report> {
        let inner = &self.inner;
        if !inner.may_run() {
            inner.wait_for_moment()?;
            if let Err(error) = inner.copy() {
                inner.give_up(&error);
                return Err(inner.failure().unwrap_or(error));
            }
        }
        inner.wait_to_resume()?;
        let resumed = resume(&Arrived { regions: inner.regions() });
        inner.resumed(&resumed);
        resumed.map(|()| inner.report())
    }

    /// Waits until everything is here and durable, and the origin is released.
    ///
    /// # Errors
    ///
    /// Whatever keeps the rest from coming within the patience, again and again: it may be called again.
    /// [`ErrorKind::Fenced`] where somebody at the origin has taken the application back by force.
    pub fn finish(&self) -> Result<Report> {
        let inner = &self.inner;
        for region in inner.incoming() {
            match region.carry(&[], &|| inner.is_over())? {
                Carried::All => region.arriving.settle().map(drop)?,
                Carried::InPart => return Err(inner.failure().unwrap_or_else(not_now)),
            };
        }
        inner.everything_is_home()?;
        Ok(inner.report())
    }

    /// Gives it up, unless it has been accepted, and waits until that is durable.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] where the regions are here already.
    pub fn abort(&self) -> Result<()> {
        self.inner.abort()
    }

    /// How far it is.
    pub fn report(&self) -> Report {
        self.inner.report()
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.inner.phase()
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.inner.close();
        for thread in self.threads.lock().expect("no holder panics").drain(..) {
            // One that has panicked has stopped, too.
            let _ = thread.join();
        }
    }
}

fn not_now() -> Error {
    Error::new(ErrorKind::Cancelled, "the migration was closed")
}
