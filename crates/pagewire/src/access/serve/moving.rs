//! The requests of those who take a region over, and of those who look after a migration.
//!
//! What they come to is the [`Origin`]'s, which an application's regions belong to; each open handle is a place in its
//! migration. All of it may wait for a disk, or for a command to be carried out, and gets threads of its own.

use std::sync::Arc;

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::wire::{MigrateRequest, MigrationAction, MigrationState, RegionInfo, Reply, SetStream};

use super::Shared;
use super::outgoing::Outgoing;
use super::permissions::Access;
use super::session::Session;
use crate::engine::migration::Origin;
use crate::error::{Error, ErrorKind, Result};

impl Shared {
    /// The origin of the region of that name, for who may write to it.
    fn origin(&self, session: &Session, name: &str) -> Result<Arc<Origin>> {
        let access = self.access(session, name);
        let found = self.origins.lock().expect("no holder panics").get(name).cloned();
        match found {
            // Who takes it over can do more than whoever writes to it.
            Some(origin) if access >= Access::Write && !self.options.read_only => Ok(origin),
            Some(_) if access >= Access::Read => {
                Err(Error::new(ErrorKind::Denied, format!("'{name}' may not be taken over")))
            }
            None if self.regions.contains_key(name) && access >= Access::Read => {
                let text = format!("'{name}' is not used by an application that can be moved");
                Err(Error::new(ErrorKind::Unsupported, text))
            }
            _ => Err(Error::new(ErrorKind::NotFound, format!("there is no region '{name}' here"))),
        }
    }
}

/// Opens a region to be moved: answers its handle and what is known of it.
pub(super) fn open(
    shared: &Shared,
    session: &Session,
    name: &str,
    (id, owner): ([u8; 16], &str),
    resume: Option<([u8; 16], u64)>,
) -> Result<(u32, RegionInfo)> {
    let tracking = resume.map(|(_, epoch)| epoch);
    let place = shared.origin(session, name)?.join(name, id, owner, tracking)?;
    let pin = place.region().pin()?;
    let info = shared.to_wire(&pin.info(), Access::Read);
    super::request::check_identity(place.region(), &pin.info(), resume)?;
    Ok((session.open_to_move(pin, place)?, info))
}

/// Carries out a step of a migration. Where the pages of its set are wanted, they are on their way before the answer has
/// arrived.
pub(super) fn step(
    session: &Arc<Session>,
    outgoing: &Arc<Outgoing>,
    id: u64,
    request: MigrateRequest,
) -> Result<()> {
    let MigrateRequest { handle, step, pages } = request;
    let (place, outgoing, this) = (session.place(handle)?, outgoing.clone(), session.clone());
    session.aside(move || match place.step(step) {
        Ok(migrated) => {
            let wanted = pages.map(|pages| (pages, migrated.ranges.clone()));
            outgoing.respond(id, &Reply::Migrated(migrated));
            if let Some((pages, ranges)) = wanted
                && let Err(error) = send_set(&this, handle, pages, &ranges)
            {
                outgoing.respond(pages.id, &Reply::Error(error.to_wire(0)));
            }
        }
        Err(error) => outgoing.respond(id, &Reply::Error(error.to_wire(0))),
    })
}

/// Begins to send the pages of a set.
fn send_set(session: &Session, handle: u32, pages: SetStream, ranges: &[ByteRange]) -> Result<()> {
    let pin = session.pin(handle)?;
    let whole: Vec<ByteRange> =
        ranges.iter().map(|range| range.align_out(PAGE_SIZE).clamp_to(pin.info().length)).collect();
    session.streams().begin(pages.id, handle, pin, &whole, pages.credit)
}

/// Does what somebody who looks after a migration asks for.
pub(super) fn look_after(
    shared: &Shared,
    session: &Arc<Session>,
    outgoing: &Arc<Outgoing>,
    id: u64,
    (name, action): (&str, MigrationAction),
) -> Result<()> {
    let (origin, outgoing) = (shared.origin(session, name)?, outgoing.clone());
    session.aside(move || {
        let done: Result<MigrationState> = match action {
            MigrationAction::Status => Ok(origin.state()),
            MigrationAction::Abort { force } => origin.abort(force).map(|()| origin.state()),
        };
        match done {
            Ok(state) => outgoing.respond(id, &Reply::Migration(state)),
            Err(error) => outgoing.respond(id, &Reply::Error(error.to_wire(0))),
        }
    })
}
