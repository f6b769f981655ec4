//! `pagewire migrate out NAME=STORE…`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use pagewire::access::fuse::MountOptions;
use pagewire::address::StoreAddress;
use pagewire::engine::Region;
use pagewire::store::{self, ClientTls, RemoteOptions};
use pagewire::{Error, ErrorKind};

use super::hooks::{Hooked, Role};
use super::record::{self, Words};
use super::resident::{OfferOptions, Resident, check_who_can_take};
use super::witnesses;
use crate::args::MigrateOut;
use crate::command::Termination;
use crate::output;

/// Where an origin listens that is told nothing.
const DEFAULT_LISTEN: &str = "pw://127.0.0.1:7070";

pub(super) fn run(args: &MigrateOut) -> Result<()> {
    let termination = Termination::watch()?;
    if !args.hooks.can_suspend() {
        let text = "say how the application is suspended: by --on-suspend CMD, or --suspend-pid PID";
        return Err(Error::new(ErrorKind::Usage, text).into());
    }
    check_who_can_take(&args.offering)?;
    let paths = places(&args.offers, &args.mount)?;
    let stores = || args.offers.iter().map(|(_, store)| store);
    let kept = args.record.clone().or_else(|| record::beside(stores(), record::ORIGIN));
    record::check_whole(stores())?;
    if let Some(path) = kept.as_deref()
        && let Some(found) = record::read(Some(path))?.filter(|found| found.phase == "released")
    {
        let text = format!(
            "{}: what is here is older; remove {} if it is to be used all the same",
            found.text,
            path.display()
        );
        return Err(Error::new(ErrorKind::Fenced, text).into());
    }
    let names: Vec<String> = args.offers.iter().map(|(name, _)| name.clone()).collect();
    let identity = args.identity.files();
    let remote = RemoteOptions {
        tls: ClientTls { authorities: None, identity: identity.clone() },
        compression: args.compress,
        ..RemoteOptions::default()
    };
    let witnesses = witnesses::to_write(&names, &args.witness, &remote)?;
    if record::read(kept.as_deref())?.is_none_or(|found| found.may_run) {
        witnesses::check(&witnesses)?;
    }
    let application = Arc::new(Hooked::new(&args.hooks, Role::Origin, names, paths.clone())?);
    let open = |(name, address): &(String, StoreAddress)| {
        let store = store::open(address, true, &remote);
        Region::new(name, store.map_err(|error| error.context(format!("cannot offer '{name}'")))?)
    };
    let regions = args.offers.iter().map(open).collect::<pagewire::Result<Vec<_>>>()?;
    if let Some(path) = &kept {
        Words::of_this_process(Vec::new())?.keep(path)?;
    }
    let options = MountOptions { writable: true, allow_other: args.allow_other, ..MountOptions::default() };
    let places: Vec<_> = regions.into_iter().zip(paths.iter().map(PathBuf::as_path)).collect();
    let mut resident = Resident::mount(&places, &options)?;
    drop(places);
    for path in resident.paths() {
        output::line(format!("mounted {}", path.display()))?;
    }
    let mut offering = args.offering.clone();
    if offering.listen.is_empty() {
        offering.listen.push(DEFAULT_LISTEN.parse()?);
    }
    let (offering, compress) = (&offering, args.compress);
    resident
        .offer(
            &application,
            OfferOptions {
                offering,
                identity,
                compress,
                record: kept,
                witnesses,
                witness_patience: args.witness_patience,
            },
        )
        .context("cannot offer the regions to be moved")?;
    let told = super::when_told(termination, || {})?;
    let end = loop {
        if let Some(end) = resident.wait(&told, None)? {
            break end;
        }
    };
    resident.finish(end)
}

/// Where each region is mounted.
fn places(offers: &[(String, StoreAddress)], mounts: &[String]) -> pagewire::Result<Vec<PathBuf>> {
    let usage = |text: String| Error::new(ErrorKind::Usage, text);
    if let ([(name, _)], [place]) = (offers, mounts) {
        let path = place.strip_prefix(&**name).and_then(|rest| rest.strip_prefix('=')).unwrap_or(place);
        return Ok(vec![path.into()]);
    }
    let mut paths = vec![None; offers.len()];
    for place in mounts {
        // Of two names one may begin as the other, with a '=' behind.
        let named = offers.iter().enumerate().filter_map(|(index, (name, _))| {
            let path = place.strip_prefix(&**name)?.strip_prefix('=')?;
            Some((name.len(), index, path))
        });
        let (_, index, path) = named.max().ok_or_else(|| {
            usage(format!("--mount {place} names none of the regions: write NAME=PATH, once for each"))
        })?;
        if paths[index].replace(PathBuf::from(path)).is_some() {
            return Err(usage(format!("'{}' can be mounted once", offers[index].0)));
        }
    }
    let missing = paths.iter().position(Option::is_none);
    match missing.map(|index| &offers[index].0) {
        Some(name) => Err(usage(format!("say where '{name}' is mounted: --mount {name}=PATH"))),
        None => Ok(paths.into_iter().flatten().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(names: &[&str]) -> Vec<(String, StoreAddress)> {
        names.iter().map(|name| ((*name).to_owned(), StoreAddress::Memory { size: 1 })).collect()
    }

    #[test]
    fn each_region_has_its_place() {
        let places = |names: &[&str], mounts: &[&str]| {
            let mounts: Vec<String> = mounts.iter().map(|mount| (*mount).to_owned()).collect();
            places(&offers(names), &mounts).map_err(|error| error.to_string())
        };
        assert_eq!(places(&["db"], &["/x=y"]), Ok(vec!["/x=y".into()]));
        assert_eq!(places(&["db"], &["db=/x"]), Ok(vec!["/x".into()]));
        assert_eq!(places(&["a", "a=b"], &["a=b=/x", "a=/y"]), Ok(vec!["/y".into(), "/x".into()]));
        assert!(places(&["a", "b"], &["a=/x"]).unwrap_err().contains("--mount b=PATH"));
        assert!(places(&["a", "b"], &["a=/x", "a=/y"]).unwrap_err().contains("once"));
        assert!(places(&["a", "b"], &["/x", "b=/y"]).unwrap_err().contains("names none"));
    }
}
