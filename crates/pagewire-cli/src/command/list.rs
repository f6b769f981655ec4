//! `pagewire list ADDRESS`.

use anyhow::Result;
use pagewire::address::{NbdAddress, PeerAddress, format_size};
use pagewire::store::{self, Info, NbdExport, RemoteOptions};
use serde::Serialize;

use crate::args::{List, Offerer};
use crate::output;

/// What is printed as JSON.
#[derive(Serialize)]
struct Listing<'a> {
    peer: String,
    regions: Vec<Listed<'a>>,
}

/// The same of an NBD server.
#[derive(Serialize)]
struct NbdListing {
    server: String,
    exports: Vec<NbdExport>,
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    #[serde(flatten)]
    info: &'a Info,
}

pub(super) fn run(args: &List) -> Result<()> {
    let options = args.remote.options();
    match &args.peer {
        Offerer::Peer(peer) => list_regions(peer, &options, args.json),
        Offerer::Nbd(server) => list_exports(server, &options, args.json),
    }
}

fn list_regions(peer: &PeerAddress, options: &RemoteOptions, json: bool) -> Result<()> {
    let regions = store::list(peer, options)?;
    if json {
        let listed = regions.iter().map(|(name, info)| Listed { name, info }).collect();
        return output::json(&Listing { peer: peer.to_string(), regions: listed });
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

fn list_exports(server: &NbdAddress, options: &RemoteOptions, json: bool) -> Result<()> {
    let exports = store::list_exports(server, options)?;
    if json {
        return output::json(&NbdListing { server: server.to_string(), exports });
    }
    let names: Vec<String> = exports.iter().map(|export| export.name.escape_debug().to_string()).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    for (name, export) in names.iter().zip(&exports) {
        let length = export.length.map_or_else(|| "?".into(), format_size);
        let access = match export.read_only {
            Some(true) => "read",
            Some(false) => "read and write",
            None => "unknown",
        };
        let description = export.description.escape_debug();
        output::line(format!("{name:width$}  {length:>10}  {access}  {description}").trim_end())?;
    }
    Ok(())
}
