//! The witnesses of a migration, at its destination: which there are, whether they are those that the origin streams
//! to, and what is done with them when the origin is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire_core::migrate::{Phase, WitnessAt, record};
use pagewire_core::wire::{Migrated, Witnessed};

use super::driving::Inner;
use super::report::WitnessReport;
use crate::engine::migration::incoming::Incoming;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

/// How often it is looked whether the origin is gone.
const LOOK: Duration = Duration::from_millis(50);

/// What is known of the witnesses, in the order of the regions.
#[derive(Default)]
pub(super) struct Protection {
    /// Those that are to be used, once they were reached.
    stores: Vec<Option<Arc<dyn Store>>>,
    /// What the origin has said last.
    told: Vec<Option<Witnessed>>,
    /// Whether it was said that the origin streams to one of which nothing is known here.
    warned: bool,
}

/// How far the witnesses of all regions are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lacking {
    /// How many bytes they lack.
    pub(super) missing: u64,
    /// How many bytes were written to them.
    pub(super) sent: u64,
}

impl Inner {
    fn has_witnesses(&self) -> bool {
        self.witnesses.iter().any(Option::is_some)
    }

    /// Reaches the witnesses, before anything depends on them.
    pub(super) fn reach_witnesses(&self) -> Result<()> {
        if self.witnesses.iter().flatten().count() > record::MAX_WITNESSES {
            let text = format!("more than {} regions with a witness", record::MAX_WITNESSES);
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let open = |witness: &Option<_>| witness.as_ref().map(super::Witness::open).transpose();
        let stores = self.witnesses.iter().map(open).collect::<Result<Vec<_>>>()?;
        self.lock().protection.stores = stores;
        Ok(())
    }

    /// The origin has answered for a region: its witness has to be the one that is known here.
    pub(super) fn told_of_witness(&self, index: usize, answer: &Migrated) -> Result<()> {
        let name = &self.incoming()[index].name;
        let mut state = self.lock();
        let protection = &mut state.protection;
        protection.told.resize(self.witnesses.len(), None);
        protection.told[index] = answer.witness;
        match (&self.witnesses[index], answer.witness) {
            (Some(_), None) => {
                let text =
                    format!("the origin streams '{name}' to no witness: name one there too, or none here");
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            (Some(witness), Some(told)) if told.store != [0; 16] => {
                let here = protection.stores.get(index).and_then(Option::as_ref);
                if here.is_some_and(|store| *store.info().id.as_bytes() != told.store) {
                    let text = format!(
                        "{witness} is another store than the one that the origin streams '{name}' to"
                    );
                    return Err(Error::new(ErrorKind::Changed, text));
                }
            }
            (None, Some(_)) if !protection.warned => {
                protection.warned = true;
                tracing::warn!(
                    region = name,
                    "the origin streams to a witness, and this side knows none: it cannot make use of it"
                );
            }
            _ => {}
        }
        Ok(())
    }

    /// How far the witnesses are, as the origin has said last; none where there are none.
    pub(super) fn lacking(&self) -> Option<Lacking> {
        let state = self.lock();
        let told: Vec<Witnessed> = state.protection.told.iter().flatten().copied().collect();
        (!told.is_empty()).then(|| Lacking {
            missing: told.iter().map(|told| told.missing).sum(),
            sent: told.iter().map(|told| told.sent).sum(),
        })
    }

    /// The application is suspended, and about to be accepted with part of its regions elsewhere: from then on a
    /// witness has to do what the origin does. What is recorded tells of it.
    pub(super) fn rely_on_witnesses(&self) -> Result<()> {
        if !self.has_witnesses() {
            return Ok(());
        }
        let (stores, told) = {
            let state = self.lock();
            (state.protection.stores.clone(), state.protection.told.clone())
        };
        let mut kept = vec![WitnessAt::default(); self.witnesses.len()];
        for (index, one) in self.incoming().iter().enumerate() {
            let Some(witness) = &self.witnesses[index] else { continue };
            let store = stores.get(index).cloned().flatten();
            let told = told.get(index).copied().flatten().filter(|told| told.epoch > 0);
            let (Some(store), Some(told)) = (store, told) else {
                let text = format!("the origin does not say that {witness} has all of '{}'", one.name);
                return Err(Error::new(ErrorKind::Protocol, text));
            };
            kept[index] = WitnessAt { store: told.store, epoch: told.epoch };
            let armed = one.source.arm(store, kept[index]);
            armed.map_err(|error| error.context(format!("{witness} cannot stand in for the origin")))?;
        }
        if let Some(record) = &self.record {
            record.keep_witnesses(kept);
        }
        Ok(())
    }

    /// After a restart: reaches the witnesses that the record tells of. Answers whether all of them are there.
    pub(super) fn rely_on_recorded(&self, incoming: &[Arc<Incoming>]) -> Result<()> {
        let recorded = self.record.as_ref().map(|record| record.witnesses()).unwrap_or_default();
        for ((one, witness), at) in incoming.iter().zip(&self.witnesses).zip(recorded) {
            let (Some(witness), true) = (witness, at.store != [0; 16]) else { continue };
            let armed = witness
                .open()
                .and_then(|store| one.source.arm(store, at).map_err(|error| error.context(witness)));
            match armed {
                // The origin has it all.
                Err(error) if one.origin.is_some() => {
                    tracing::warn!(region = one.name, %error, "the witness is of no use now");
                }
                armed => armed?,
            }
        }
        Ok(())
    }

    /// The life of the thread that looks whether the origin is gone.
    pub(super) fn look_after_origin(&self) {
        let mut state = self.lock();
        while !state.closed {
            let is_rest = matches!(state.phase(), Phase::PostCopy | Phase::Completing);
            drop(state);
            for one in self.incoming().iter().filter(|_| is_rest) {
                one.source.look_after(self.options.witness_patience);
            }
            state = self.wait(self.lock(), Some(Instant::now() + LOOK));
        }
    }

    /// Whether the origin is gone, and nobody needs it.
    pub(super) fn does_without_origin(&self) -> bool {
        let incoming = self.incoming();
        incoming.iter().any(|one| {
            let is_gone = one.origin.as_ref().is_none_or(|origin| origin.is_gone());
            (is_gone && one.source.is_protected()) || one.origin.is_none() || one.source.is_at_witness()
        })
    }

    pub(super) fn witness_report(&self) -> Option<WitnessReport> {
        let lacking = self.lacking();
        let incoming = self.incoming();
        let protects = incoming.iter().any(|one| one.source.is_protected())
            && incoming
                .iter()
                .zip(&self.witnesses)
                .all(|(one, named)| named.is_none() || one.source.is_protected());
        if lacking.is_none() && !self.has_witnesses() {
            return None;
        }
        let Lacking { missing, sent } = lacking.unwrap_or_default();
        Some(WitnessReport {
            named: self.witnesses.iter().flatten().map(ToString::to_string).collect(),
            sent_bytes: sent,
            missing_bytes: missing,
            protects,
            moved_bytes: incoming.iter().map(|one| one.source.witnessed()).sum(),
        })
    }
}
