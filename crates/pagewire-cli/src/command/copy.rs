//! `pagewire copy FROM TO`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result};
use pagewire::address::{FileAddress, JournalPlace, StoreAddress, format_size};
use pagewire::engine::Region;
use pagewire::engine::copy::{CopyOptions, DeltaOptions, DeltaProgress, copy, copy_delta};
use pagewire::store::{self, FileStore, RemoteOptions, Store};
use serde::Serialize;

use crate::args::Copy;
use crate::output::{self, Bar};

/// The half copy that is to go when the process is told to end.
static PART: Mutex<Option<PathBuf>> = Mutex::new(None);

/// How much may arrive before a copy that is to be resumed has it flushed, in bytes.
const CHECKPOINT: u64 = 256 << 20;

/// What is printed as JSON.
#[derive(Serialize)]
struct Copied {
    from: String,
    to: String,
    bytes: u64,
    seconds: f64,
    bytes_per_second: f64,
    /// What went over the network for both sides: frames, without what TLS and the network add.
    sent_bytes: u64,
    received_bytes: u64,
    /// What was compared, and what differed, where the two were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    compared_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cleared_bytes: Option<u64>,
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
    let target = Target::open(args, region.info().length, &remote)?;
    let bar = Bar::new(region.info().length, quiet);
    let copied = match target.compared {
        true => {
            let algorithm = args.hash.between(&args.from, &args.to);
            let checkpoint = (args.resume && target.replace.is_none()).then_some(CHECKPOINT);
            let options =
                DeltaOptions { algorithm, checkpoint, patience: remote.patience, ..DeltaOptions::default() };
            let show = |progress: &DeltaProgress| bar.show(progress.compared);
            copy_delta(&region, &target.store, &options, show).map(|done| (done.length, Some(done)))
        }
        false => {
            let (target_is_zero, patience) = (target.is_zero, remote.patience);
            let options = CopyOptions { target_is_zero, patience, ..CopyOptions::default() };
            copy(&region, &target.store, &options, |progress| bar.follow(progress))
                .map(|done| (done.length, None))
        }
    };
    drop(bar);
    let (length, delta) = copied.with_context(|| format!("cannot copy {} to {}", args.from, args.to))?;
    let (one, other) = (region.traffic(), target.store.traffic());
    let (sent_bytes, received_bytes) = (one.sent + other.sent, one.received + other.received);
    target.finish()?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = length as f64 / seconds;
    if args.json {
        return output::json(&Copied {
            from: args.from.to_string(),
            to: args.to.to_string(),
            bytes: length,
            seconds,
            bytes_per_second: rate,
            sent_bytes,
            received_bytes,
            compared_bytes: delta.map(|delta| delta.compared),
            moved_bytes: delta.map(|delta| delta.moved),
            cleared_bytes: delta.map(|delta| delta.cleared),
        });
    }
    if !quiet {
        let (size, rate) = (format_size(length), format_size(rate as u64));
        output::line(match delta {
            None => format!("copied {size} in {seconds:.2} s ({rate}/s)"),
            Some(delta) => {
                let (moved, wire) = (format_size(delta.moved), format_size(sent_bytes + received_bytes));
                format!("compared {size} and moved {moved} in {seconds:.2} s ({wire} on the wire)")
            }
        })?;
    }
    Ok(())
}

/// Where a copy goes. A regular file is made beside the one that it replaces.
struct Target {
    store: Arc<dyn Store>,
    is_zero: bool,
    /// Whether something is there that may be like the source.
    compared: bool,
    replace: Option<Replace>,
    /// A file that is changed where it is.
    file: Option<Arc<FileStore>>,
}

struct Replace {
    part: PathBuf,
    path: PathBuf,
    /// What is replaced, held so that nobody else serves it meanwhile.
    _old: Option<FileStore>,
    /// Whether a half copy is kept, to go on from.
    kept: bool,
}

impl Target {
    fn open(args: &Copy, length: u64, remote: &RemoteOptions) -> Result<Self> {
        let address = &args.to;
        match address {
            StoreAddress::Memory { .. } | StoreAddress::Remote(_) | StoreAddress::Nbd(_) => {
                let store = store::open(address, true, remote)?;
                let is_zero = matches!(address, StoreAddress::Memory { .. });
                Ok(Self { store, is_zero, compared: args.delta || args.resume, replace: None, file: None })
            }
            StoreAddress::File(file) => {
                if let Some(size) = file.size.filter(|size| *size != length) {
                    let text = format!("{length} bytes do not go into a file of {size} bytes");
                    return Err(pagewire::Error::new(pagewire::ErrorKind::Usage, text).into());
                }
                Self::open_file(&FileAddress { size: None, ..file.clone() }, length, args)
            }
        }
    }

    fn open_file(address: &FileAddress, length: u64, args: &Copy) -> Result<Self> {
        let path = &address.path;
        let old = fs::metadata(path).ok();
        if old.as_ref().is_some_and(|old| args.delta || !old.is_file()) {
            // A block device is filled where it is, and so is what differs in little.
            let capacity = Some(address.capacity.unwrap_or(0).max(length));
            let store = Arc::new(FileStore::at(&FileAddress { capacity, ..address.clone() }, true)?);
            let compared = args.delta || args.resume;
            return Ok(Self {
                store: store.clone(),
                is_zero: false,
                compared,
                replace: None,
                file: Some(store),
            });
        }
        let held = old.as_ref().map(|_| FileStore::at(address, true)).transpose()?;
        // A link is followed, so that it stays a link.
        let path = if old.is_some() { fs::canonicalize(path)? } else { path.clone() };
        let mut part = path.clone().into_os_string();
        part.push(".pagewire-part");
        let part = PathBuf::from(part);
        // It is all or nothing by its name.
        let made = FileAddress { journal: JournalPlace::Off, ..FileAddress::new(&part) };
        let goes_on = args.resume && part.exists();
        // What an earlier copy left is of no use otherwise, but one that is still at work holds it.
        if !goes_on && part.exists() {
            drop(FileStore::at(&made, true)?);
            fs::remove_file(&part).with_context(|| format!("cannot remove {}", part.display()))?;
        }
        if !args.resume {
            *PART.lock().expect("no holder panics") = Some(part.clone());
        }
        let made = match goes_on {
            true => FileAddress { capacity: Some(length), ..made },
            false => FileAddress { size: Some(length), ..made },
        };
        let store = Arc::new(FileStore::at(&made, true)?);
        let replace = Replace { part, path, _old: held, kept: args.resume };
        if let Some(old) = old {
            fs::set_permissions(&replace.part, old.permissions())?;
        }
        Ok(Self { store, is_zero: !goes_on, compared: goes_on, replace: Some(replace), file: None })
    }

    /// Everything has arrived and was flushed: the file takes its place, or what has changed in it does.
    fn finish(mut self) -> Result<()> {
        if let Some(file) = &self.file {
            file.settle()?;
        }
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
        if let Some(replace) = self.replace.as_ref().filter(|replace| !replace.kept) {
            // Half a copy is of no use; if it cannot be removed, the next copy does.
            let _ = fs::remove_file(&replace.part);
        }
    }
}
