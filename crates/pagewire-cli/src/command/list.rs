//! `pagewire list ADDRESS`.

use anyhow::Result;
use pagewire::address::format_size;
use pagewire::store::{self, Info};
use serde::Serialize;

use crate::args::List;
use crate::output;

/// What is printed as JSON.
#[derive(Serialize)]
struct Listing<'a> {
    peer: String,
    regions: Vec<Listed<'a>>,
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    #[serde(flatten)]
    info: &'a Info,
}

pub(super) fn run(args: &List) -> Result<()> {
    let regions = store::list(&args.peer, &args.remote.options())?;
    if args.json {
        let listed = regions.iter().map(|(name, info)| Listed { name, info }).collect();
        return output::json(&Listing { peer: args.peer.to_string(), regions: listed });
    }
    // A peer may call a region what it likes; a terminal is not to obey it.
    let regions: Vec<_> =
        regions.iter().map(|(name, info)| (name.escape_debug().to_string(), info)).collect();
    let width = regions.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, info) in &regions {
        output::line(format!("{name:width$}  {:>10}  epoch {}", format_size(info.length), info.epoch))?;
    }
    Ok(())
}
