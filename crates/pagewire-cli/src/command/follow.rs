//! `pagewire follow REGION FILE`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use pagewire::address::{FileAddress, JournalPlace, StoreAddress, format_size};
use pagewire::engine::Region;
use pagewire::engine::copy::{DeltaOptions, Followed, Follower};
use pagewire::store::{self, FileStore, Info, RemoteOptions, Store};
use serde::Serialize;

use super::Termination;
use crate::{args, output};

/// What is printed as JSON.
#[derive(Serialize)]
struct Brought {
    region: String,
    to: String,
    /// The region's epoch that is there.
    epoch: u64,
    length: u64,
    epochs: u64,
    moved_bytes: u64,
    /// How many times the two were compared by their hashes.
    comparisons: u64,
}

pub(super) fn run(args: &args::Follow) -> Result<()> {
    let termination = Termination::watch()?;
    let remote = args.remote.options();
    let region = Region::at(&args.region, store::open(&args.region, false, &remote)?)?;
    let address = target(&args.to, args.in_place, &region.info())?;
    let target = Target::open(&address, &remote)?;
    let algorithm = args.hash.between(&args.region, &address);
    let options = DeltaOptions { algorithm, patience: remote.patience, ..DeltaOptions::default() };
    let mut follower = Follower::new(region, target.store.clone(), &options);
    let mut brought = Brought {
        region: args.region.to_string(),
        to: args.to.clone(),
        epoch: 0,
        length: 0,
        epochs: 0,
        moved_bytes: 0,
        comparisons: 0,
    };
    let failed = || format!("cannot bring {} to {}", args.region, args.to);
    if let Some(first) = follower.step().with_context(failed)? {
        brought.add(&first);
    }
    target.settle()?;
    if !args.once {
        if !args.json {
            output::line(format!("following {}", args.region))?;
        }
        let told = |followed: &Followed| brought.add(followed);
        let pause = |pause: Duration| !termination.wait_for(pause).unwrap_or(true);
        follower.run(told, pause).with_context(failed)?;
        target.settle()?;
    }
    if args.json {
        return output::json(&brought);
    }
    let (moved, length) = (format_size(brought.moved_bytes), format_size(brought.length));
    output::line(format!("brought {moved} of {length}, up to epoch {}", brought.epoch))?;
    Ok(())
}

/// The store that epochs are brought to: a file is named by its path.
fn target(text: &str, in_place: bool, region: &Info) -> Result<StoreAddress> {
    let mut address = match text.parse::<StoreAddress>() {
        Ok(address) => address,
        Err(error) if text.contains("://") || text.starts_with("file:") || text.starts_with("mem:") => {
            return Err(error.into());
        }
        Err(_) => StoreAddress::File(FileAddress::new(text)),
    };
    if let StoreAddress::File(file) = &mut address {
        // One that is there has its length already.
        file.size = (!file.path.exists()).then_some(region.length);
        file.capacity = Some(file.capacity.unwrap_or(region.capacity).max(region.capacity));
        if in_place {
            file.journal = JournalPlace::Off;
        }
    } else if in_place {
        let text = format!("--in-place is for a file, and {text} is none");
        return Err(pagewire::Error::new(pagewire::ErrorKind::Usage, text).into());
    }
    Ok(address)
}

/// Where epochs are brought to.
struct Target {
    store: Arc<dyn Store>,
    file: Option<Arc<FileStore>>,
}

impl Target {
    fn open(address: &StoreAddress, remote: &RemoteOptions) -> Result<Self> {
        Ok(match address {
            StoreAddress::File(file) => {
                let file = Arc::new(FileStore::at(file, true)?);
                Self { store: file.clone(), file: Some(file) }
            }
            _ => Self { store: store::open(address, true, remote)?, file: None },
        })
    }

    /// Has what is in the journal of a file put in its place.
    fn settle(&self) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.settle())?;
        Ok(())
    }
}

impl Brought {
    fn add(&mut self, followed: &Followed) {
        let Followed { epoch, length, moved, compared } = *followed;
        (self.epoch, self.length) = (epoch, length);
        self.epochs += 1;
        self.moved_bytes += moved;
        self.comparisons += u64::from(compared);
        tracing::info!(epoch, moved, compared, "brought");
    }
}
