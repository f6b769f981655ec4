//! `pagewire info REGION`.

use anyhow::Result;
use pagewire::address::{StoreAddress, format_size};
use pagewire::store::{self, Info as StoreInfo};
use serde::Serialize;

use crate::args::Info;
use crate::output;

/// What is printed as JSON.
#[derive(Serialize)]
struct Described<'a> {
    address: String,
    #[serde(flatten)]
    info: &'a StoreInfo,
}

pub(super) fn run(args: &Info) -> Result<()> {
    let options = args.remote.options();
    let info = match &args.region {
        StoreAddress::Remote(region) => store::describe(region, &options)?,
        local => store::open(local, false, &options)?.info(),
    };
    if args.json {
        return output::json(&Described { address: args.region.to_string(), info: &info });
    }
    let abilities = [
        (info.capabilities.stream, "stream"),
        (info.capabilities.lend, "lend"),
        (info.capabilities.history, "history"),
    ];
    let abilities: Vec<&str> = abilities.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
    output::line(format!("region       {}", args.region))?;
    output::line(format!("id           {}", info.id))?;
    output::line(format!("epoch        {}", info.epoch))?;
    output::line(format!("length       {} ({} bytes)", format_size(info.length), info.length))?;
    output::line(format!("capacity     {} ({} bytes)", format_size(info.capacity), info.capacity))?;
    output::line(format!("granularity  {}", format_size(u64::from(info.granularity))))?;
    output::line(format!("access       {}", if info.writable { "read and write" } else { "read" }))?;
    output::line(format!(
        "can          {}",
        if abilities.is_empty() { "read".into() } else { abilities.join(", ") }
    ))?;
    Ok(())
}
