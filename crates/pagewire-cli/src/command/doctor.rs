//! `pagewire doctor [REGION]`.
//!
//! `probe` asks the kernel and says what it has answered, as plain facts. What they mean, what mends what is missing, and
//! which method to use is decided in [`pagewire::advice`], which the study's report asks as well. `text` writes all of
//! that down, and `lines` the commands that carry it out.

mod lines;
mod probe;
mod region;
mod text;

use std::time::Duration;

use anyhow::Result;
use pagewire::advice::{
    Abilities, Advice, Figures, Finding, Machine, UseCase, Workload, Writes, advise, checkup,
};
use serde::Serialize;

use self::region::{Measured, measure};
use crate::args::Doctor;
use crate::output;

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
    let (remote, wants_rate) = (args.remote.options(), args.workload.rate.is_none());
    let region = args.of.as_ref().map(|address| measure(address, &remote, wants_rate)).transpose()?;
    if let Some(region) = &region {
        base.region = region.length.max(1);
        base.round_trip = Duration::from_secs_f64(region.round_trip_seconds);
        base.rate = region.bytes_per_second.unwrap_or(base.rate);
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
