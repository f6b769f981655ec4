//! The side that an application comes to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::address::{RegionAddress, StoreAddress};
use crate::engine::Region;
use crate::error::Result;
use crate::store::{RemoteOptions, Store};

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
#[derive(Debug, Clone)]
pub struct DestinationOptions {
    /// What matters.
    // pub goals: pagewire_core::migrate::control::Goals,
    /// When it begins.
    pub when: When,
    /// How the origin is talked to.
    pub remote: RemoteOptions,
    /// The file that says who owns the regions, and outlives this process.
    pub record: Option<PathBuf>,
    /// A store that everything is brought to before the application runs here with part of its memory still at the
    /// origin: so that the loss of the origin does not matter.
    pub witness: Option<StoreAddress>,
    /// Who takes over, for people at the origin; this process, where none is named.
    pub owner: Option<String>,
}

impl Default for DestinationOptions {
    fn default() -> Self {
        Self {
            // goals: Default::default(),
            when: When::Now,
            remote: RemoteOptions::default(),
            record: None,
            witness: None,
            owner: None,
        }
    }
}

/// What a migration has come to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// The migration, in hexadecimal digits.
    pub migration: String,
    /// How it was done: `pre-copy`, `post-copy` or `hybrid`.
    pub mode: String,
    /// How long the application was suspended, in seconds, as far as this side knows: from the moment that the origin
    /// was asked to suspend it until it may run here; the way of that question is part of it.
    pub downtime: f64,
    /// From the beginning until the application may run here, in seconds, without the wait for a good moment.
    pub switch_after: f64,
    /// From the beginning until everything is here, in seconds. 0 until then.
    pub seconds: f64,
    /// How long a good moment was waited for, in seconds.
    pub waited: f64,
    /// How many rounds there were before the switch.
    pub rounds: u32,
    /// How many bytes the regions have.
    pub region_bytes: u64,
    /// How many bytes came from the origin, those that came more than once counted as often.
    pub moved_bytes: u64,
    /// Of these, how many after the switch.
    pub moved_after: u64,
    /// What was decided and why, in order.
    pub decisions: Vec<String>,
}

/// The regions, at the moment at which the application may run here.
pub struct Arrived {
    /// Each with its name, in the order in which they were asked for. Their writer's lease is free.
    pub regions: Vec<(String, Arc<Region>)>,
}

/// A migration, seen from where it goes.
pub struct Destination {}

impl Destination {
    /// Begins to take over `regions`, each to a store of its own that has room for it, which is overwritten.
    ///
    /// Where the record says that this was begun and accepted before, it is gone on with; one that was begun and not
    /// accepted is given up, and begun anew.
    ///
    /// # Errors
    ///
    /// Whatever keeps the origin from being reached, or the stores from being written to.
    pub fn start(
        regions: &[(RegionAddress, Arc<dyn Store>)],
        options: DestinationOptions,
    ) -> Result<Arc<Self>> {
        let _ = (regions, options);
        todo!()
    }

    /// Brings the application here: returns when `resume` has, which is called when the application may run. Its
    /// error is that of this call, but does not take the regions back: they are here then, and the application can be
    /// resumed by other means.
    ///
    /// # Errors
    ///
    /// Whatever ends the migration before the switch; the application then goes on at the origin, but for
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) where the origin could not be told: then it is resumed as soon as it is.
    pub fn run(&self, resume: impl FnOnce(&Arrived) -> Result<()>) -> Result<Report> {
        let _ = resume;
        todo!()
    }

    /// Waits until everything is here and durable, and the origin is released.
    ///
    /// # Errors
    ///
    /// Whatever keeps the rest from coming within the patience, again and again: it may be called again.
    pub fn finish(&self) -> Result<Report> {
        todo!()
    }

    /// Gives it up, unless it has been accepted.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) where the regions are here already.
    pub fn abort(&self) -> Result<()> {
        todo!()
    }

    /// How far it is.
    pub fn report(&self) -> Report {
        todo!()
    }
}
