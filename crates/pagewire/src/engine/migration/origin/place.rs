//! A region that a session of the destination has open.

use std::sync::Arc;

use pagewire_core::migrate::{Reply, Request, Token};
use pagewire_core::wire::{MigrateStep, Migrated};

use super::super::outgoing::Written;
use super::{Place, seen};
use crate::engine::Region;
use crate::error::{Error, ErrorKind, Result};

impl Place {
    /// The region as the application sees it.
    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Carries out a step of the migration, and answers what has come of it.
    pub(crate) fn step(&self, step: MigrateStep) -> Result<Migrated> {
        let (id, generation) = (self.id, self.generation);
        if let MigrateStep::Switch { .. } = step {
            self.check_together()?;
            self.inner.regions[self.index].check_witnessed()?;
        }
        let (reply, state) = self.inner.ask(match step {
            MigrateStep::Look => Request::Look { id },
            MigrateStep::Round { number } => Request::Round { id, generation, number },
            MigrateStep::Switch { number } => Request::Switch { id, generation, number },
            MigrateStep::Accept { token } => Request::Accept { id, token: Token(token) },
            MigrateStep::Abort => Request::Abort { id },
            MigrateStep::Complete { token } => Request::Complete { id, token: Token(token) },
        })?;
        let now = seen(state.machine.phase());
        let suspended = state.suspended.map(|since| since.elapsed());
        drop(state);
        let region = &self.inner.regions[self.index];
        let (written, token) = match reply {
            Reply::Looked => (region.look()?, 0),
            Reply::Taken { .. } => (region.kept(), 0),
            Reply::Offered { token, .. } => {
                (Written { time: suspended.unwrap_or_default(), ..region.kept() }, token.0)
            }
            _ => (Written::default(), 0),
        };
        let witness = match reply {
            Reply::Looked | Reply::Taken { .. } | Reply::Offered { .. } => region.witnessed()?,
            _ => None,
        };
        Ok(Migrated {
            state: now,
            token,
            length: region.length(),
            written: written.bytes,
            micros: written.time.as_micros().try_into().unwrap_or(u64::MAX),
            witness,
            ranges: written.ranges,
        })
    }

    /// Whether all regions of the application take part.
    fn check_together(&self) -> Result<()> {
        let state = self.inner.lock();
        let missing = state.joined.places.iter().position(|places| *places == 0);
        match missing.filter(|_| state.joined.id == self.id) {
            None => Ok(()),
            Some(missing) => {
                let text = format!(
                    "the application uses '{}' too, which has to be taken over together with the others",
                    self.inner.regions[missing].name
                );
                Err(Error::new(ErrorKind::Usage, text))
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.leave(self.id, self.index);
    }
}
