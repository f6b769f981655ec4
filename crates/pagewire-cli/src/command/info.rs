//! `pagewire info REGION`.

use std::path::Path;

use anyhow::Result;
use pagewire::access::fuse::{Status, mount_status};
use pagewire::access::nbd::{DeviceStatus, device_status};
use pagewire::address::{StoreAddress, format_size};
use pagewire::store::{self, CacheFiles, CacheInfo, Info as StoreInfo};
use serde::Serialize;

use crate::args::Info;
use crate::output;

/// What is printed as JSON.
#[derive(Serialize)]
struct Described<'a> {
    address: String,
    #[serde(flatten)]
    info: &'a StoreInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<CacheInfo>,
}

pub(super) fn run(args: &Info) -> Result<()> {
    if let Some(status) = mount_status(Path::new(&args.region))? {
        return print_status(args, &status);
    }
    if let Some(status) = device_status(Path::new(&args.region)) {
        return print_device(args, &status);
    }
    let options = args.remote.options();
    let region: StoreAddress = args.region.parse()?;
    let info = match &region {
        StoreAddress::Remote(region) => store::describe(region, &options)?,
        local => store::open(local, false, &options)?.info(),
    };
    let cache = args.cache.as_deref().map(CacheFiles::describe).transpose()?;
    if args.json {
        return output::json(&Described { address: region.to_string(), info: &info, cache });
    }
    let abilities = [
        (info.capabilities.stream, "stream"),
        (info.capabilities.lend, "lend"),
        (info.capabilities.history, "history"),
    ];
    let abilities: Vec<&str> = abilities.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
    output::line(format!("region       {region}"))?;
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
    if let Some(cache) = cache {
        let CacheInfo { id, epoch, length, present_bytes, unpushed_bytes } = cache;
        let of = if id == info.id { "" } else { ", another region" };
        let (present, all) = (format_size(present_bytes), format_size(length));
        output::line(format!("cache        {present} of {all} at epoch {epoch}{of}"))?;
        output::line(format!("not pushed   {}", format_size(unpushed_bytes)))?;
    }
    Ok(())
}

/// How a mounted file is doing.
fn print_status(args: &Info, status: &Status) -> Result<()> {
    if args.json {
        return output::json(status);
    }
    let access = if status.writable { "read and write" } else { "read" };
    output::line(format!("mounted      {}", args.region))?;
    output::line(format!("region       {}", status.region))?;
    output::line(format!("epoch        {}", status.epoch))?;
    output::line(format!("length       {} ({} bytes)", format_size(status.length), status.length))?;
    let way = match &*status.path {
        "page-cache" => "by the page cache",
        "passthrough" => "by the kernel, from the cache's file",
        path => path,
    };
    output::line(format!("access       {access}, {way}"))?;
    output::line(format!("has arrived  {}", format_size(status.cached_bytes)))?;
    output::line(format!(
        "  waited for {} in {} reads",
        format_size(status.demand_bytes),
        status.demand_reads
    ))?;
    output::line(format!("not flushed  {}", format_size(status.unflushed_bytes)))?;
    if let Some(error) = &status.last_error {
        output::line(format!("last error   {error}"))?;
    }
    Ok(())
}

/// What a block device of ours is.
fn print_device(args: &Info, status: &DeviceStatus) -> Result<()> {
    if args.json {
        return output::json(status);
    }
    let state = if status.dead { ", which is gone: all that it answers are errors" } else { "" };
    output::line(format!("device       {}", args.region))?;
    output::line(format!("region       {}", status.owner.region))?;
    output::line(format!("process      {}{state}", status.owner.process))?;
    output::line(format!("length       {} ({} bytes)", format_size(status.length), status.length))?;
    output::line(format!("access       {}", if status.writable { "read and write" } else { "read" }))?;
    Ok(())
}
