//! `pagewire doctor [REGION]`.
//!
//! `probe` asks the kernel and says what it has answered, as plain facts. What they mean, what mends what is missing, and
//! which method to use is decided in [`pagewire::advice`], which the study's report asks as well. `text` writes all of
//! that down, and `lines` the commands that carry it out.

mod lines;
mod probe;
mod text;

use std::time::{Duration, Instant};

use anyhow::Result;
use pagewire::address::StoreAddress;
use pagewire::advice::{
    Abilities, Advice, Figures, Finding, Machine, UseCase, Workload, Writes, advise, checkup,
};
use pagewire::store::{self, RemoteOptions};
use serde::Serialize;

use crate::args::Doctor;
use crate::output;

/// How often the way to a region is measured: the shortest counts.
const ASKED: u32 = 8;

/// What is printed as JSON.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    machine: Machine,
    findings: Vec<Finding>,
    abilities: Abilities,
    #[serde(skip_serializing_if = "Option::is_none")]
    recommendation: Option<Recommended>,
}

/// A recommendation, and what it is for.
#[derive(Serialize)]
struct Recommended {
    #[serde(rename = "for")]
    case: Option<UseCase>,
    /// What was asked of it, where there is one.
    region: Option<Measured>,
    workload: Workload,
    #[serde(flatten)]
    advice: Advice,
    /// What to type for the best of them, and where.
    commands: Vec<lines::Line>,
}

/// What a region has answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Measured {
    address: String,
    length: u64,
    /// Where it is told.
    writable: Option<bool>,
    round_trip_seconds: f64,
}

pub(super) fn run(args: &Doctor) -> Result<()> {
    let machine = probe::machine();
    let recommendation = match args.case.is_some() || args.of.is_some() || !args.workload.are_none() {
        true => Some(recommend(args, &machine)?),
        false => None,
    };
    let (findings, abilities) = (checkup(&machine), machine.abilities());
    let report = Report { version: env!("CARGO_PKG_VERSION"), machine, findings, abilities, recommendation };
    if args.json {
        return output::json(&report);
    }
    text::lines(&report).into_iter().try_for_each(output::line)?;
    Ok(())
}

fn recommend(args: &Doctor, machine: &Machine) -> Result<Recommended> {
    let mut base = args.case.map_or_else(Workload::default, UseCase::workload);
    let region = args.of.as_ref().map(|address| measure(address, &args.remote.options())).transpose()?;
    if let Some(region) = &region {
        base.region = region.length.max(1);
        base.round_trip = Duration::from_secs_f64(region.round_trip_seconds);
        if region.writable == Some(false) {
            base.writes = Writes::NONE;
            base.survives_crash = false;
        }
    }
    let workload = args.workload.over(base);
    let advice = advise(&workload, machine, &Figures::built_in());
    let commands = lines::commands(&advice, &workload, region.as_ref().map(|region| &*region.address));
    Ok(Recommended { case: args.case, region, workload, advice, commands })
}

/// Opens the region as any reader does, and asks it a few times for what it knows anyway.
fn measure(address: &StoreAddress, options: &RemoteOptions) -> Result<Measured> {
    let store = store::open(address, false, options)?;
    let mut shortest = Some(store.round_trip()).filter(|time| !time.is_zero());
    for _ in 0..ASKED {
        let asked = Instant::now();
        store.refresh()?;
        // An export of NBD has nothing to say, and is not asked.
        if matches!(address, StoreAddress::Remote(_)) {
            shortest = Some(shortest.map_or(asked.elapsed(), |time| time.min(asked.elapsed())));
        }
    }
    let writable = match address {
        StoreAddress::Remote(region) => Some(store::describe(region, options)?.writable),
        // A server need not list its exports.
        StoreAddress::Nbd(export) => {
            let listed = store::list_exports(export, options).unwrap_or_default();
            let same = listed.into_iter().find(|one| one.name == export.export);
            same.and_then(|one| one.read_only).map(|read_only| !read_only)
        }
        _ => Some(store.info().writable),
    };
    Ok(Measured {
        address: address.to_string(),
        length: store.info().length,
        writable,
        round_trip_seconds: shortest.unwrap_or_default().as_secs_f64(),
    })
}
