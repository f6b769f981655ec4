//! `pagewire copy FROM TO`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result};
use pagewire::address::{FileAddress, JournalPlace, StoreAddress, format_size};
use pagewire::engine::copy::{CopyOptions, copy};
use pagewire::engine::{Progress, Region};
use pagewire::store::{self, FileStore, RemoteOptions, Store};
use serde::Serialize;

use crate::args::Copy;
use crate::output::{self, Bar};

/// The half copy that is to go when the process is told to end.
static PART: Mutex<Option<PathBuf>> = Mutex::new(None);

/// What is printed as JSON.
#[derive(Serialize)]
struct Copied {
    from: String,
    to: String,
    bytes: u64,
    seconds: f64,
    bytes_per_second: f64,
}

pub(super) fn run(args: &Copy, quiet: bool) -> Result<()> {
    super::on_interrupt(|| {
        if let Some(part) = PART.lock().ok().and_then(|mut part| part.take()) {
            // If it cannot be removed, the next copy does.
            let _ = fs::remove_file(part);
        }
    })?;
    let remote = args.remote.options();
    let started = Instant::now();
    let source = store::open(&args.from, false, &remote)?;
    let region = Region::at(&args.from, source)?;
    let target = Target::open(&args.to, region.info().length, &remote)?;
    let options =
        CopyOptions { target_is_zero: target.is_zero, patience: remote.patience, ..CopyOptions::default() };
    let bar = Bar::new(region.info().length, quiet);
    let copied = copy(&region, &target.store, &options, |progress: &Progress| bar.show(progress));
    drop(bar);
    let length = copied.with_context(|| format!("cannot copy {} to {}", args.from, args.to))?.length;
    target.finish()?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = length as f64 / seconds;
    if args.json {
        let (from, to) = (args.from.to_string(), args.to.to_string());
        return output::json(&Copied { from, to, bytes: length, seconds, bytes_per_second: rate });
    }
    if !quiet {
        let (size, rate) = (format_size(length), format_size(rate as u64));
        output::line(format!("copied {size} in {seconds:.2} s ({rate}/s)"))?;
    }
    Ok(())
}

/// Where a copy goes. A regular file is made beside the one that it replaces.
struct Target {
    store: Arc<dyn Store>,
    is_zero: bool,
    replace: Option<Replace>,
}

struct Replace {
    part: PathBuf,
    path: PathBuf,
    /// What is replaced, held so that nobody else serves it meanwhile.
    _old: Option<FileStore>,
}

impl Target {
    fn open(address: &StoreAddress, length: u64, remote: &RemoteOptions) -> Result<Self> {
        match address {
            StoreAddress::Memory { .. } | StoreAddress::Remote(_) | StoreAddress::Nbd(_) => {
                let store = store::open(address, true, remote)?;
                let is_zero = matches!(address, StoreAddress::Memory { .. });
                Ok(Self { store, is_zero, replace: None })
            }
            StoreAddress::File(file) => {
                if let Some(size) = file.size.filter(|size| *size != length) {
                    let text = format!("{length} bytes do not go into a file of {size} bytes");
                    return Err(pagewire::Error::new(pagewire::ErrorKind::Usage, text).into());
                }
                Self::open_file(&FileAddress { size: None, ..file.clone() }, length)
            }
        }
    }

    fn open_file(address: &FileAddress, length: u64) -> Result<Self> {
        let path = &address.path;
        let old = fs::metadata(path).ok();
        if old.as_ref().is_some_and(|old| !old.is_file()) {
            // A block device is filled where it is.
            let store = Arc::new(FileStore::at(address, true)?);
            return Ok(Self { store, is_zero: false, replace: None });
        }
        let held = old.as_ref().map(|_| FileStore::at(address, true)).transpose()?;
        // A link is followed, so that it stays a link.
        let path = if old.is_some() { fs::canonicalize(path)? } else { path.clone() };
        let mut part = path.clone().into_os_string();
        part.push(".pagewire-part");
        let part = PathBuf::from(part);
        // It is all or nothing by its name.
        let made = FileAddress { journal: JournalPlace::Off, ..FileAddress::new(&part) };
        // What an earlier copy left is of no use, but one that is still at work holds it.
        if part.exists() {
            drop(FileStore::at(&made, true)?);
            fs::remove_file(&part).with_context(|| format!("cannot remove {}", part.display()))?;
        }
        *PART.lock().expect("no holder panics") = Some(part.clone());
        let store = Arc::new(FileStore::at(&FileAddress { size: Some(length), ..made }, true)?);
        let replace = Replace { part, path, _old: held };
        if let Some(old) = old {
            fs::set_permissions(&replace.part, old.permissions())?;
        }
        Ok(Self { store, is_zero: true, replace: Some(replace) })
    }

    /// Everything has arrived and was flushed: the file takes its place.
    fn finish(mut self) -> Result<()> {
        if let Some(replace) = self.replace.take() {
            let moved = fs::rename(&replace.part, &replace.path);
            moved.with_context(|| format!("cannot replace {}", replace.path.display()))?;
            let folder = replace.path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = fs::File::open(folder.unwrap_or(Path::new(".")))?;
            folder.sync_all().context("cannot make the new name durable")?;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(replace) = &self.replace {
            // Half a copy is of no use; if it cannot be removed, the next copy does.
            let _ = fs::remove_file(&replace.part);
        }
    }
}
