//! What both sides of a migration are once an application runs there: its regions as mounted files, served to
//! readers, and offered to be taken over by another host.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use pagewire::access::fuse::{Mount, MountOptions};
use pagewire::access::serve::{Server, ServerOptions, ServerTls};
use pagewire::engine::Region;
use pagewire::engine::migration::{Origin, OriginOptions, Outcome};
use pagewire::store::Identity;
use pagewire::{Compression, ErrorKind};
use pagewire_sys::event::{EventFd, PollItem, poll};
use std::os::fd::AsFd;

use super::hooks::Hooked;
use super::witnesses::Named;
use crate::args::Offering;
use crate::command::serve::{Danger, Reach, read_permissions};
use crate::output;

const TAKE_OVER: Danger =
    Danger { could: "take over what is offered", instead: "pw+tls:// with --tls-clients" };

/// How long to stay until the destination has heard that everything was released.
const LAST_ANSWERS: Duration = Duration::from_secs(3);

/// A region that is mounted.
pub(super) struct Mounted {
    region: Arc<Region>,
    mount: Arc<Mount>,
}

/// Files that an application uses.
pub(super) struct Resident {
    mounted: Vec<Mounted>,
    offer: Option<Offer>,
}

/// What is offered to be taken over.
struct Offer {
    server: Server,
    origin: Arc<Origin>,
    released: Arc<EventFd>,
}

/// How an offer is made.
pub(super) struct OfferOptions<'a> {
    pub(super) offering: &'a Offering,
    pub(super) identity: Option<Identity>,
    pub(super) compress: Compression,
    /// The origin's record.
    pub(super) record: Option<PathBuf>,
    pub(super) witnesses: Vec<Named>,
    pub(super) witness_patience: Duration,
}

/// Why the files are not to be served any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Another host has everything.
    Released,
    /// The process was told to end.
    Told,
    /// Somebody has taken a mount down.
    TakenDown,
}

/// Refuses to offer regions where anybody can take them.
pub(super) fn check_who_can_take(offering: &Offering) -> pagewire::Result<()> {
    if offering.insecure {
        return Ok(());
    }
    let knows_clients = offering.tls_clients.is_some();
    offering.listen.iter().try_for_each(|address| {
        Reach::of_peers(address).check(&address.to_string(), knows_clients, &TAKE_OVER)
    })
}

impl Resident {
    /// Mounts each region at its path, to be written to.
    pub(super) fn mount(regions: &[(Arc<Region>, &Path)], options: &MountOptions) -> pagewire::Result<Self> {
        let mount = |(region, path): &(Arc<Region>, &Path)| {
            let mount = Arc::new(Mount::region(region, path, options.clone())?);
            Ok(Mounted { region: region.clone(), mount })
        };
        let mounted = regions.iter().map(mount).collect::<pagewire::Result<_>>()?;
        Ok(Self { mounted, offer: None })
    }

    /// Where the files are.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.mounted.iter().map(|mounted| mounted.mount.path())
    }

    /// Offers the regions of an application to be taken over, and says where.
    pub(super) fn offer(&mut self, application: &Arc<Hooked>, options: OfferOptions<'_>) -> Result<()> {
        let OfferOptions { offering, identity, compress, record, witnesses, witness_patience } = options;
        let live = |mounted: &Mounted| Ok((mounted.region.name().to_owned(), mounted.mount.live()?));
        let lives = self.mounted.iter().map(live).collect::<pagewire::Result<Vec<_>>>()?;
        let origin_options = OriginOptions { record, lapse: offering.lapse, witnesses, witness_patience };
        let origin = Origin::new(lives, application.clone(), origin_options)?;
        let which = Arc::downgrade(&origin);
        application.know_migration(move || which.upgrade().and_then(|origin| origin.status().migration));
        let tls = identity.map(|identity| ServerTls { identity, clients: offering.tls_clients.clone() });
        let permissions = offering.access.as_deref().map(read_permissions).transpose()?;
        let server_options =
            ServerOptions { compression: compress, tls, permissions, ..ServerOptions::default() };
        let regions = self.mounted.iter().map(|mounted| mounted.region.clone());
        let server = Server::new(regions, server_options)?;
        server.offer(&origin)?;
        if !origin.may_run() {
            let status = origin.status();
            tracing::warn!(
                migration = status.migration.unwrap_or_default(),
                "the application must not run here now: {}; its files cannot be written to",
                status.text
            );
        }
        let released = Arc::new(EventFd::new()?);
        watch(Arc::downgrade(&origin), &released)?;
        for address in &offering.listen {
            // Who started this in the background may have gone.
            let _unread = output::line(format!("listening {}", server.listen(address)?));
        }
        self.offer = Some(Offer { server, origin, released });
        Ok(())
    }

    /// Whether the application may run here now.
    pub(super) fn may_run(&self) -> bool {
        self.offer.as_ref().is_none_or(|offer| offer.origin.may_run())
    }

    /// Waits until the files are not to be served any more, or until `other` is readable: none then.
    pub(super) fn wait(&self, told: &EventFd, other: Option<&EventFd>) -> Result<Option<End>> {
        let mut items = vec![PollItem::readable(told.as_fd())];
        items.extend(self.mounted.iter().map(|mounted| PollItem::readable(mounted.mount.taken_down())));
        let mounts = 1..items.len();
        let released = self.offer.as_ref().map(|offer| &*offer.released);
        items.extend([released, other].into_iter().flatten().map(|event| PollItem::readable(event.as_fd())));
        poll(&mut items, None)?;
        Ok(match items.iter().position(PollItem::is_ready) {
            Some(0) => Some(End::Told),
            Some(index) if mounts.contains(&index) => Some(End::TakenDown),
            Some(index) if released.is_some() && index == mounts.end => Some(End::Released),
            _ => None,
        })
    }

    /// Ends the offer, and takes the mounts down with everything flushed.
    pub(super) fn finish(mut self, end: End) -> Result<()> {
        let mut left = None;
        if let Some(Offer { server, origin, .. }) = self.offer.take() {
            if end == End::Released {
                linger(&server);
            } else {
                origin.stop();
                left = Some(origin.status()).filter(|status| matches!(&*status.phase, "in-doubt" | "moved"));
            }
            drop((server, origin));
        }
        let has_moved = end == End::Released || left.is_some();
        let mut failed = Ok(());
        for Mounted { mount, .. } in &self.mounted {
            let unmounted = match mount.unmount(end == End::TakenDown || has_moved) {
                Err(error) if error.kind() == ErrorKind::Busy => {
                    tracing::warn!(%error, "taken down all the same");
                    mount.unmount(true)
                }
                result => result,
            };
            match unmounted {
                Err(error) if has_moved => tracing::info!(%error, "the regions have moved already"),
                result => failed = failed.and(result),
            }
        }
        failed?;
        match left {
            Some(status) => bail!(
                "it ends before the other host has everything ({}): begin it again with the same words",
                status.text
            ),
            None => Ok(()),
        }
    }
}

/// Signals when everything was released.
fn watch(origin: Weak<Origin>, released: &Arc<EventFd>) -> Result<()> {
    let released = released.clone();
    std::thread::Builder::new().name("released".into()).spawn(move || {
        let Some(origin) = origin.upgrade() else { return };
        if origin.wait() == Outcome::Released {
            // An event that cannot be signalled is one that is signalled already.
            let _ = released.signal();
        }
    })?;
    Ok(())
}

/// Stays until the destination has heard that it has everything, which it may ask for again.
fn linger(server: &Server) {
    let deadline = Instant::now() + LAST_ANSWERS;
    while server.connections() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}
