//! The side that an application leaves.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::live::Live;
use crate::error::Result;

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
}

impl Default for OriginOptions {
    fn default() -> Self {
        Self { record: None, lapse: Duration::from_secs(10) }
    }
}

/// How a migration is doing, seen from its origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginStatus {
    /// The phase: `running`, `tracking`, `offered`, `moved` or `released`.
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
pub struct Origin {}

pub(crate) struct Place {}
impl Place {
    pub(crate) fn region(&self) -> &Arc<crate::engine::Region> { todo!() }
    pub(crate) fn step(&self, step: pagewire_core::wire::MigrateStep) -> Result<pagewire_core::wire::Migrated> { let _ = step; todo!() }
}
impl Origin {
    pub fn names(&self) -> impl Iterator<Item = &str> { [].into_iter() }
    pub fn join(self: &Arc<Self>, name: &str, id: [u8; 16], owner: &str) -> Result<Place> { let _ = (name, id, owner); todo!() }
    pub fn state(&self) -> pagewire_core::wire::MigrationState { todo!() }
    /// Offers `regions`, each under its name, together: they are moved at once or not at all.
    ///
    /// Where the record says that a migration was in doubt when the process before this one ended, the regions are
    /// frozen until that is known; where it says that they have moved, they never thaw: see [`Origin::may_run`].
    ///
    /// # Errors
    ///
    /// Whatever keeps the record from being read or written.
    pub fn new(
        regions: Vec<(String, Arc<dyn Live>)>,
        application: Arc<dyn Application>,
        options: OriginOptions,
    ) -> Result<Arc<Self>> {
        let _ = (regions, application, options);
        todo!()
    }

    /// Whether the application may run here now. Ask before it is started.
    pub fn may_run(&self) -> bool {
        todo!()
    }

    /// How it is doing.
    pub fn status(&self) -> OriginStatus {
        todo!()
    }

    /// Waits until the destination has everything, or until [`Origin::stop`].
    pub fn wait(&self) -> Outcome {
        todo!()
    }

    /// Has [`Origin::wait`] return, and a migration that is before its switch given up.
    pub fn stop(&self) {
        todo!()
    }

    /// Gives a migration up and resumes the application here. After the switch was offered it takes `force`, which says
    /// that the destination is known never to run the application: nobody else can know that.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`](crate::ErrorKind::Fenced) once the destination owns the regions;
    /// [`ErrorKind::Busy`](crate::ErrorKind::Busy) while that is in doubt, without `force`.
    pub fn abort(&self, force: bool) -> Result<()> {
        let _ = force;
        todo!()
    }
}
