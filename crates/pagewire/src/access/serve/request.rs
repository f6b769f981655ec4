//! What each request does.

use std::sync::{Arc, Weak};

use pagewire_core::chunk::{ByteRange, PAGE_SIZE};
use pagewire_core::wire::{ListReply, MAX_RANGES, OpenMode, RegionInfo, Reply, Request, Role};

use super::outgoing::Outgoing;
use super::permissions::Access;
use super::session::Session;
use super::{Shared, answer, moving, tree, writing};
use crate::engine::{Pin, Region, Watch};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Info, STAGED, Urgency};

/// How many bytes one READ may ask for. A stream is for more.
const MAX_READ: u64 = 16 << 20;

/// Answers the request `id`, now or later; an error is told to the peer by the caller.
pub(super) fn answer_request(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    role: Role,
    outgoing: &Arc<Outgoing>,
    id: u64,
    request: Request,
) -> Result<()> {
    match request {
        Request::Ping(body) => outgoing.reply(id, &Reply::Pong(body)),
        Request::List { after } => outgoing.reply(id, &Reply::List(list(shared, session, &after))),
        Request::Info { name } => {
            let (region, access) = find(shared, session, &name)?;
            let info = region.refresh()?;
            outgoing.reply(id, &Reply::Info(shared.to_wire(&info, access)));
        }
        Request::Open { name, mode, resume } => {
            open(shared, session, outgoing, id, (&name, mode, resume))?;
        }
        Request::Refresh { handle } => {
            let old = session.pin(handle)?;
            if old.epoch() == STAGED {
                return Err(Error::new(ErrorKind::Unsupported, "a writer is at the newest epoch already"));
            }
            let region = old.region();
            region.refresh()?;
            let pin = region.pin()?;
            let info = shared.to_wire(&pin.info(), shared.access(session, region.name()));
            session.replace(handle, pin)?;
            outgoing.reply(id, &Reply::Opened { handle, info });
        }
        Request::Close { handle } => {
            session.close(handle)?;
            outgoing.reply(id, &Reply::Closed);
        }
        Request::Changes { handle, since } => {
            let (pin, outgoing) = (session.pin(handle)?, outgoing.clone());
            session.aside(move || {
                let region = pin.region();
                let epoch = region.newest();
                // More ranges than fit are as good as unknown.
                let ranges = region.changes(since).filter(|ranges| ranges.len() <= MAX_RANGES);
                outgoing.respond(id, &Reply::Changed { epoch, ranges });
            })?;
        }
        Request::Tree(request) => {
            let pin = pinned(session, request.handle, request.epoch)?;
            tree::tree(shared, session, outgoing, id, request, pin)?;
        }
        Request::Zero { handle, ranges } => writing::zero(session, outgoing, id, handle, ranges)?,
        Request::SetLength { handle, length } => writing::set_length(session, outgoing, id, handle, length)?,
        Request::Flush { handle, number } => writing::flush(shared, session, outgoing, id, handle, number)?,
        Request::Discard { handle } => writing::discard(session, outgoing, id, handle)?,
        Request::Read { handle, epoch, ranges } => {
            let pin = pinned(session, handle, epoch)?;
            check_ranges(&pin.info(), &ranges)?;
            if ByteRange::total(&ranges) > MAX_READ {
                let text = format!("one READ may ask for {MAX_READ} bytes; a STREAM is for more");
                return Err(Error::new(ErrorKind::Usage, text));
            }
            let urgency = if role == Role::Primary { Urgency::Demand } else { Urgency::Background };
            answer::read(outgoing, id, &pin, ranges.clone(), urgency, &session.holes(handle));
            // What an application waits for now, nobody needs to be sent again later.
            session.streams().skip(handle, &ranges);
        }
        Request::Stream { handle, epoch, credit, ranges } => {
            let pin = pinned(session, handle, epoch)?;
            check_ranges(&pin.info(), &ranges)?;
            if ByteRange::total(&ranges) > pin.info().length {
                return Err(Error::new(ErrorKind::Protocol, "the ranges of a STREAM overlap"));
            }
            session.streams().begin(id, handle, pin, &ranges, credit)?;
        }
        Request::Migrate(request) => moving::step(session, outgoing, id, request)?,
        Request::Migration { name, action } => {
            moving::look_after(shared, session, outgoing, id, (&name, action))?;
        }
        Request::Hello(_) => return Err(Error::new(ErrorKind::Protocol, "a second HELLO")),
        Request::Unknown(kind) => {
            let text = format!("{kind:?} is not supported");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
    }
    Ok(())
}

/// Opens a region, and tells the client.
fn open(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    outgoing: &Arc<Outgoing>,
    id: u64,
    (name, mode, resume): (&str, OpenMode, Option<([u8; 16], u64)>),
) -> Result<()> {
    let found = || -> Result<(&Arc<Region>, Access)> {
        let (region, access) = find(shared, session, name)?;
        check_identity(region, &region.refresh()?, resume)?;
        Ok((region, access))
    };
    match mode {
        OpenMode::Move { id: migration, owner } => {
            let (handle, info) = moving::open(shared, session, name, (migration, &owner), resume)?;
            outgoing.reply(id, &Reply::Opened { handle, info });
        }
        OpenMode::Write { token, owner } => {
            let (region, access) = found()?;
            if access < Access::Write {
                let text = format!("'{name}' may be read, but not written to, by {}", who(session));
                return Err(Error::new(ErrorKind::Denied, text));
            }
            let leased = writing::open(shared, session, region, token, &owner)?;
            outgoing.reply(id, &Reply::Leased(leased));
        }
        OpenMode::Read => {
            let (region, access) = found()?;
            // Before the pin, so that no epoch comes unnoticed between the two.
            region.watch(Arc::downgrade(session) as Weak<dyn Watch>);
            let pin = match resume {
                Some((_, epoch)) => region.pin_epoch(epoch)?,
                None => region.pin()?,
            };
            let (info, epoch) = (shared.to_wire(&pin.info(), access), pin.epoch());
            let handle = session.open(pin, None)?;
            outgoing.reply(id, &Reply::Opened { handle, info });
            // One that came before the handle was there was told to nobody.
            if region.newest() > epoch {
                session.epoch(region, region.newest());
            }
        }
    }
    Ok(())
}

/// The region of that name, and what the client may do with it. One that it may not even read is not there:
/// who is permitted nothing learns nothing, not even names.
fn find<'a>(shared: &'a Shared, session: &Session, name: &str) -> Result<(&'a Arc<Region>, Access)> {
    let access = shared.access(session, name);
    let found = shared.regions.get(name).filter(|_| access >= Access::Read);
    found.map(|region| (region, access)).ok_or_else(|| {
        let text = match shared.options.permissions {
            None => format!("there is no region '{name}' here"),
            Some(_) => format!("there is no region '{name}' here that may be read by {}", who(session)),
        };
        Error::new(ErrorKind::NotFound, text)
    })
}

/// The client, by the names in its certificate.
fn who(session: &Session) -> String {
    match session.names() {
        None => "who shows no certificate".into(),
        Some([]) => "a certificate without a DNS name".into(),
        Some(names) => names.join(", "),
    }
}

fn list(shared: &Shared, session: &Session, after: &str) -> ListReply {
    use std::ops::Bound;
    let mut listed = shared
        .regions
        .range::<str, _>((Bound::Excluded(after), Bound::Unbounded))
        .map(|(name, region)| (name, region, shared.access(session, name)))
        .filter(|(_, _, access)| *access >= Access::Read);
    let regions = listed
        .by_ref()
        .take(ListReply::MOST)
        .map(|(name, region, access)| (name.clone(), shared.to_wire(&region.info(), access)))
        .collect();
    ListReply { regions, more: listed.next().is_some() }
}

/// Whether a session that goes on after a lost connection finds the region that it had.
pub(super) fn check_identity(region: &Region, info: &Info, resume: Option<([u8; 16], u64)>) -> Result<()> {
    match resume {
        Some((id, _)) if id != *info.id.as_bytes() => {
            let text = format!("'{}' is another region now: its identity has changed", region.name());
            Err(Error::new(ErrorKind::Changed, text))
        }
        _ => Ok(()),
    }
}

/// The hold that a read of `epoch` goes by. A writer may read any epoch that there still is.
fn pinned(session: &Session, handle: u32, epoch: u64) -> Result<Arc<Pin>> {
    let pin = session.pin(handle)?;
    if pin.epoch() == epoch {
        return Ok(pin);
    }
    if pin.epoch() == STAGED {
        return pin.region().pin_epoch(epoch).map(Arc::new);
    }
    let text = format!("epoch {epoch} is not the pinned one, {}", pin.epoch());
    Err(Error::new(ErrorKind::Stale, text))
}

fn check_ranges(info: &Info, ranges: &[ByteRange]) -> Result<()> {
    for range in ranges {
        info.check(*range)?;
        let ends_well = range.end.is_multiple_of(PAGE_SIZE) || range.end == info.length;
        if !range.start.is_multiple_of(PAGE_SIZE) || !ends_well || range.is_empty() {
            return Err(Error::new(ErrorKind::Protocol, format!("bytes {range} are not whole pages")));
        }
    }
    Ok(())
}

impl Shared {
    /// What a client may do with the region of that name.
    pub(super) fn access(&self, session: &Session, region: &str) -> Access {
        let permissions = self.options.permissions.as_ref();
        permissions.map_or(Access::Write, |permissions| permissions.of(region, session.names()))
    }

    /// What is known of a region, in the words of the protocol, to who may do so much with it.
    pub(super) fn to_wire(&self, info: &Info, access: Access) -> RegionInfo {
        RegionInfo {
            id: *info.id.as_bytes(),
            epoch: info.epoch,
            length: info.length,
            capacity: info.capacity,
            granularity: info.granularity,
            read_only: !info.writable || self.options.read_only || access < Access::Write,
            commit: info.capabilities.commit,
            hash: true,
        }
    }
}
