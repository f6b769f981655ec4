//! `pagewire migrate in REGION PATH…`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pagewire::access::fuse::MountOptions;
use pagewire::address::{FileAddress, RegionAddress, StoreAddress, format_size};
use pagewire::engine::Region;
use pagewire::engine::migration::{
    Application, Destination, DestinationOptions, Goals, Phase, Recorded, Report, When,
};
use pagewire::store::{self, RemoteOptions, Store};
use pagewire::{Error, ErrorKind};
use pagewire_sys::event::EventFd;
use serde::Serialize;

use super::hooks::{Hooked, Role};
use super::record::{self, Words};
use super::resident::{End, OfferOptions, Resident, check_who_can_take};
use super::witnesses;
use crate::args::{MigrateIn, Moment};
use crate::command::Termination;
use crate::output::{self, Bar};

/// How long to wait before what is left is asked for again, when it did not come within the patience.
const AGAIN: Duration = Duration::from_secs(1);

/// The migration that is to be given up when the process is told to end, once there is one.
type Stoppable = Arc<OnceLock<Weak<Destination>>>;

/// A region that comes here.
struct Coming {
    from: RegionAddress,
    path: PathBuf,
    address: StoreAddress,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Came {
    regions: Vec<CameHere>,
    #[serde(flatten)]
    report: Report,
}

#[derive(Serialize)]
struct CameHere {
    region: String,
    path: PathBuf,
    store: String,
}

pub(super) fn run(args: &MigrateIn, quiet: bool) -> Result<()> {
    if args.background {
        return crate::command::mount::in_background("arrived ");
    }
    let termination = Termination::watch()?;
    check_arguments(args)?;
    let stoppable = Stoppable::default();
    let stop = stoppable.clone();
    let told = super::when_told(termination, move || match stop.get() {
        // What was accepted goes on.
        Some(destination) => drop(destination.upgrade().map(|destination| destination.abort())),
        // Nothing has begun that would have to be ended.
        None => std::process::exit(130),
    })?;
    let mut coming = regions(args)?;
    let kept = args
        .record
        .clone()
        .or_else(|| record::beside(coming.iter().map(|region| &region.address), record::DESTINATION));
    let found = record::read(kept.as_deref())?;
    let remote = args.remote.options();
    let capacities = capacities(&coming, found.as_ref(), kept.as_deref(), &remote)?;
    let stores = open(&mut coming, &capacities)?;
    let arrival = Arrival { args, quiet, kept, coming, stores, remote };
    match found.filter(|found| found.phase == Phase::Completed.name()) {
        Some(_) => arrival.settle(&told, &stoppable),
        None => arrival.migrate(&told, &stoppable, capacities),
    }
}

fn check_arguments(args: &MigrateIn) -> Result<()> {
    let usage = |text: &str| Err(Error::new(ErrorKind::Usage, text).into());
    if !args.regions.len().is_multiple_of(2) {
        return usage("each REGION needs the PATH where it is mounted behind it");
    }
    if !args.store.is_empty() && args.store.len() != args.regions.len() / 2 {
        return usage("give each region its --store, in the same order, or none of them");
    }
    if !args.offering.listen.is_empty() && args.hooks.on_suspend.is_none() {
        return usage("to be moved on from here, the application has to be suspended: add --on-suspend CMD");
    }
    if !args.hooks.suspend_pid.is_empty() {
        return usage("--suspend-pid is for the host that has the process: here, use --on-suspend CMD");
    }
    check_who_can_take(&args.offering)?;
    Ok(())
}

/// What comes where.
fn regions(args: &MigrateIn) -> pagewire::Result<Vec<Coming>> {
    let pairs = args.regions.chunks_exact(2).enumerate();
    pairs
        .map(|(index, pair)| {
            let (from, path) = (pair[0].parse()?, PathBuf::from(&pair[1]));
            let address = args.store.get(index).cloned().unwrap_or_else(|| {
                let mut name = path.clone().into_os_string();
                name.push(".region");
                StoreAddress::File(FileAddress::new(name))
            });
            if matches!(address, StoreAddress::Remote(_) | StoreAddress::Nbd(_)) {
                let text = format!("{address} is not of this host: bring the region to a file, or to memory");
                return Err(Error::new(ErrorKind::Usage, text));
            }
            Ok(Coming { from, path, address })
        })
        .collect()
}

/// The lengths that the regions may have.
fn capacities(
    coming: &[Coming],
    found: Option<&Recorded>,
    kept: Option<&Path>,
    remote: &RemoteOptions,
) -> Result<Vec<u64>> {
    // What belongs here does not depend on who is there.
    if let Some(kept) = kept.filter(|_| found.is_some_and(|found| found.may_run))
        && let Ok(words) = Words::beside(kept)
        && words.capacities.len() == coming.len()
    {
        return Ok(words.capacities);
    }
    let ask = |region: &Coming| {
        let info = store::describe(&region.from, remote);
        info.map(|info| info.capacity).with_context(|| format!("cannot take over {}", region.from))
    };
    coming.iter().map(ask).collect()
}

/// Opens where the regions live from now on; files are made where there are none.
fn open(coming: &mut [Coming], capacities: &[u64]) -> pagewire::Result<Vec<Arc<dyn Store>>> {
    let open = |(region, &capacity): (&mut Coming, &u64)| {
        if let StoreAddress::File(file) = &mut region.address {
            if let Some(size) = file.size.take()
                && !file.path.exists()
            {
                file.capacity = Some(file.capacity.unwrap_or(0).max(size));
            }
            file.size = (!file.path.exists()).then_some(0);
            file.capacity = Some(file.capacity.unwrap_or(0).max(capacity));
        }
        store::open(&region.address, true, &RemoteOptions::default())
    };
    coming.iter_mut().zip(capacities).map(open).collect()
}

/// Regions on their way here.
struct Arrival<'a> {
    args: &'a MigrateIn,
    quiet: bool,
    /// The destination's record.
    kept: Option<PathBuf>,
    coming: Vec<Coming>,
    stores: Vec<Arc<dyn Store>>,
    remote: RemoteOptions,
}

impl Arrival<'_> {
    fn names(&self) -> Vec<String> {
        self.coming.iter().map(|region| region.from.name.clone()).collect()
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.coming.iter().map(|region| region.path.clone()).collect()
    }

    fn application(&self, role: Role) -> pagewire::Result<Arc<Hooked>> {
        Hooked::new(&self.args.hooks, role, self.names(), self.paths()).map(Arc::new)
    }

    /// The record of the origin that this side is from now on.
    fn onward(&self) -> Option<PathBuf> {
        record::beside(self.coming.iter().map(|region| &region.address), record::ORIGIN)
    }

    fn mount(&self, regions: &[Arc<Region>]) -> pagewire::Result<Resident> {
        let (writable, allow_other) = (true, self.args.allow_other);
        let mut options = MountOptions { writable, allow_other, ..MountOptions::default() };
        options.push.patience = self.remote.patience;
        let places = regions.iter().zip(&self.coming);
        let places: Vec<_> = places.map(|(region, coming)| (region.clone(), &*coming.path)).collect();
        Resident::mount(&places, &options)
    }

    /// Everything came here before: the files are there again, and the application goes on.
    fn settle(&self, told: &EventFd, stoppable: &Stoppable) -> Result<()> {
        // Nobody else says so.
        let _ = stoppable.set(Weak::new());
        let gone = record::read(self.onward().as_deref())?.filter(|found| !found.may_run);
        if let Some(found) =
            gone.filter(|found| found.phase == "released" || self.args.offering.listen.is_empty())
        {
            return Err(
                Error::new(ErrorKind::Fenced, format!("the regions have moved on: {}", found.text)).into()
            );
        }
        let region =
            |(coming, store): (&Coming, &Arc<dyn Store>)| Region::new(&coming.from.name, store.clone());
        let regions =
            self.coming.iter().zip(&self.stores).map(region).collect::<pagewire::Result<Vec<_>>>()?;
        let mut resident = self.mount(&regions)?;
        drop(regions);
        self.offer(&mut resident)?;
        if resident.may_run() {
            self.application(Role::Destination)?.go_on()?;
            if !self.args.json {
                self.say(&format!("arrived {}: everything was here already", self.list()));
            }
        }
        self.stay(resident, told)
    }

    fn migrate(self, told: &EventFd, stoppable: &Stoppable, capacities: Vec<u64>) -> Result<()> {
        if let Some(kept) = &self.kept {
            Words::of_this_process(capacities)?.keep(kept)?;
        }
        let application = self.application(Role::Destination)?;
        let Self { args, remote, kept, .. } = &self;
        let goals = Goals {
            mode: args.mode,
            max_downtime: args.max_downtime,
            deadline: args.deadline,
            max_bytes: args.max_bytes,
        };
        let when = match args.when {
            Moment::Now => When::Now,
            Moment::Best => When::Best { within: args.within },
        };
        let options = DestinationOptions {
            goals,
            when,
            remote: remote.clone(),
            record: kept.clone(),
            owner: None,
            application: Some(application.clone() as Arc<dyn Application>),
            witnesses: witnesses::to_read(&self.names(), &args.witness, remote)?,
            witness_patience: args.witness_patience,
        };
        let pairs = self.coming.iter().zip(&self.stores);
        let pairs: Vec<_> = pairs.map(|(region, store)| (region.from.clone(), store.clone())).collect();
        let destination = Destination::start(&pairs, options)?;
        let which = Arc::downgrade(&destination);
        application.know_migration(move || which.upgrade().map(|destination| destination.report().migration));
        // Nobody else says so.
        let _ = stoppable.set(Arc::downgrade(&destination));
        let bar = Progress::follow(&destination, self.quiet || args.json)?;
        let mut resident = None;
        let ran = destination.run(|arrived| {
            if let Some(onward) = self.onward() {
                // That they left this host once does not count any more.
                record::forget(&onward)?;
            }
            let regions: Vec<_> = arrived.regions.iter().map(|(_, region)| region.clone()).collect();
            resident = Some(self.mount(&regions)?);
            application.go_on()
        });
        let (Some(mut resident), failed) = (resident, ran.as_ref().err().cloned()) else {
            drop(bar);
            let owned = matches!(destination.phase(), Phase::PostCopy | Phase::Completing | Phase::Completed);
            let error = ran.err().unwrap_or_else(|| Error::new(ErrorKind::Cancelled, "it was ended"));
            let context = match owned {
                true => "the regions are here, and cannot be used: begin it again with the same words",
                false => "nothing has moved",
            };
            return Err(anyhow::Error::from(error).context(context));
        };
        if let Some(error) = &failed {
            tracing::error!(%error, "the regions are here, and the application could not be resumed: resume it by hand");
        }
        let report = destination.report();
        if !args.json {
            self.say(&format!(
                "arrived {} by {}: the application stood still for {:.1} ms, {} moved in {:.2} s{}",
                self.list(),
                report.mode,
                report.downtime * 1e3,
                format_size(report.moved_bytes),
                report.switch_after,
                match report.witness {
                    Some(witness) if witness.protects => "; a witness has everything, too",
                    _ => "",
                }
            ));
        }
        let rest = Rest::bring(&destination)?;
        let end = loop {
            if let Some(end) = resident.wait(told, Some(&rest.ended))? {
                break Some(end);
            }
            if rest.has_ended() {
                break None;
            }
        };
        drop(bar);
        if let Some(end) = end {
            resident.finish(end)?;
            bail!("part of the regions is at the origin still: begin it again with the same words");
        }
        let report = match rest.result() {
            Ok(report) => report,
            Err(error) => {
                // What is here is not the application's any more.
                let taken_down = resident.finish(End::Told);
                return taken_down.and(Err(error.into()));
            }
        };
        drop(rest);
        // It goes on telling the origin, where that is gone.
        let telling = Some(destination).filter(|_| report.untold);
        if args.json {
            let here = |region: &Coming| CameHere {
                region: region.from.to_string(),
                path: region.path.clone(),
                store: region.address.to_string(),
            };
            output::json(&Came { regions: self.coming.iter().map(here).collect(), report })?;
        } else {
            self.say(&format!(
                "complete: everything is here after {:.2} s, {} moved in all{}",
                report.seconds,
                format_size(report.moved_bytes),
                match report.untold {
                    true => "; the origin is gone, and is told as soon as it is there again",
                    false => "",
                }
            ));
        }
        self.offer(&mut resident)?;
        let stayed = self.stay(resident, told);
        drop(telling);
        match failed {
            Some(error) => {
                stayed.and(Err(anyhow::Error::from(error).context("the application could not be resumed")))
            }
            None => stayed,
        }
    }

    /// Offers the regions to be moved on, if that is wanted.
    fn offer(&self, resident: &mut Resident) -> Result<()> {
        let offering = &self.args.offering;
        if offering.listen.is_empty() {
            return Ok(());
        }
        let application = self.application(Role::Origin)?;
        let identity = self.args.remote.identity.files();
        let (compress, record) = (self.args.remote.compress, self.onward());
        resident
            .offer(
                &application,
                OfferOptions {
                    offering,
                    identity,
                    compress,
                    record,
                    witnesses: Vec::new(),
                    witness_patience: self.args.witness_patience,
                },
            )
            .context("cannot offer the regions to be moved on")
    }

    /// Serves the files until that ends.
    fn stay(&self, resident: Resident, told: &EventFd) -> Result<()> {
        let end = loop {
            if let Some(end) = resident.wait(told, None)? {
                break end;
            }
        };
        resident.finish(end)?;
        match &self.kept {
            // They may come again.
            Some(kept) if end == End::Released => Ok(record::forget(kept)?),
            _ => Ok(()),
        }
    }

    fn list(&self) -> String {
        let paths: Vec<_> = self.coming.iter().map(|region| region.path.display().to_string()).collect();
        paths.join(", ")
    }

    fn say(&self, line: &str) {
        // Who started this in the background may have gone.
        let _unread = output::line(line);
    }
}

/// A bar that follows a migration, until it goes.
struct Progress(Arc<Mutex<Option<Bar>>>);

impl Progress {
    fn follow(destination: &Arc<Destination>, hidden: bool) -> Result<Self> {
        let bar = Arc::new(Mutex::new(Some(Bar::new(destination.report().region_bytes, hidden))));
        let (shown, destination) = (bar.clone(), Arc::downgrade(destination));
        let next = move || {
            let report = destination.upgrade()?.report();
            shown.lock().ok()?.as_ref()?.show(report.moved_bytes.min(report.region_bytes));
            Some(())
        };
        std::thread::Builder::new().name("progress".into()).spawn(move || {
            while next().is_some() {
                std::thread::sleep(Duration::from_millis(100));
            }
        })?;
        Ok(Self(bar))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Ok(mut bar) = self.0.lock() {
            *bar = None;
        }
    }
}

/// What is still at the origin, while the application runs here.
struct Rest {
    result: Arc<Mutex<Option<pagewire::Result<Report>>>>,
    ended: Arc<EventFd>,
}

impl Rest {
    /// Brings it here on a thread of its own, however often the origin is away.
    fn bring(destination: &Arc<Destination>) -> Result<Self> {
        let rest = Self { result: Arc::default(), ended: Arc::new(EventFd::new()?) };
        let (result, ended, destination) =
            (rest.result.clone(), rest.ended.clone(), Arc::downgrade(destination));
        std::thread::Builder::new().name("rest".into()).spawn(move || {
            if let Some(finished) = finish(&destination)
                && let Ok(mut result) = result.lock()
            {
                *result = Some(finished);
            }
            // An event that cannot be signalled is one that is signalled already.
            let _ = ended.signal();
        })?;
        Ok(rest)
    }

    fn has_ended(&self) -> bool {
        self.result.lock().is_ok_and(|result| result.is_some())
    }

    fn result(&self) -> pagewire::Result<Report> {
        let gone = || Err(Error::new(ErrorKind::Cancelled, "the migration was ended"));
        self.result.lock().ok().and_then(|mut result| result.take()).unwrap_or_else(gone)
    }
}

fn finish(destination: &Weak<Destination>) -> Option<pagewire::Result<Report>> {
    loop {
        match destination.upgrade()?.finish() {
            Err(error) if !matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Cancelled) => {
                tracing::warn!(%error, "what is left at the origin does not come; it is asked for again");
                std::thread::sleep(AGAIN);
            }
            result => return Some(result),
        }
    }
}
