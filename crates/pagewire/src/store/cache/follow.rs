//! Following the store from one epoch to the next: what has changed in between becomes absent.

use pagewire_core::cache::Head;
use pagewire_core::chunk::ByteRange;

use super::CacheStore;
use super::local::{Job, Move, touching};
use crate::store::Info;

impl CacheStore {
    /// Follows the store to its epoch.
    pub(super) fn follow(&self, info: &Info) {
        let region = *info.id.as_bytes();
        let (known, same) = {
            let view = self.local.view();
            (view.epoch, view.region == region && view.epoch > 0)
        };
        if same && info.epoch <= known {
            return;
        }
        // The store may be asked for this, so no lock is held.
        let changes = if same { self.store.changes(known) } else { None };
        if same && changes.is_none() {
            let cache = self.local.path.display();
            tracing::info!(
                "what has changed since the cache {cache} was used is not known; it is filled anew"
            );
        }
        let mut view = self.local.view();
        if view.epoch != known {
            return;
        }
        let before = view.length;
        let cut = before.min(info.length);
        let stale = changes.map(|changes| {
            let end = before.max(info.length);
            let tail = ByteRange::new(cut, end);
            let changes = changes.into_iter().chain([tail]).map(|range| touching(range.clamp_to(end)));
            changes.filter(|pages| !pages.is_empty()).collect::<Vec<_>>()
        });
        match &stale {
            Some(stale) => stale.iter().for_each(|pages| view.forget(pages.clone())),
            None => {
                let everything = view.present.len();
                view.forget(0..everything);
                view.salt = new_salt();
            }
        }
        view.resize(info.length);
        (view.region, view.epoch) = (region, info.epoch);
        view.begin_generation(stale.clone());
        let head = Head { sequence: 0, region, salt: view.salt, epoch: info.epoch, length: info.length };
        let step = Move { head, generation: view.generation, stale, staged: Vec::new() };
        // Under the view's lock: steps follow each other in the order of their epochs.
        if cut < before {
            self.local.push(Job::Cut(cut), 0);
        }
        self.local.push(Job::Move(step), 0);
    }
}

fn new_salt() -> u64 {
    let mut salt = [0; 8];
    salt.copy_from_slice(&crate::peer::random_id()[..8]);
    u64::from_le_bytes(salt)
}
