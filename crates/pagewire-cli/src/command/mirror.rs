//! `pagewire mirror FILE REGION`.

use std::time::Duration;

use anyhow::{Context, Result};
use pagewire::access::mirror::{Mirror, MirrorOptions, Round};
use pagewire::address::{StoreAddress, format_size};
use pagewire::engine::Region;
use pagewire::store;
use serde::Serialize;

use super::Termination;
use crate::{args, output};

/// What is printed as JSON.
#[derive(Serialize)]
struct Mirrored {
    file: String,
    region: String,
    epoch: u64,
    length: u64,
    rounds: u64,
    /// How many of them have found something.
    epochs: u64,
    pushed_bytes: u64,
    /// How long hashing took in all, in seconds.
    hashing: f64,
}

pub(super) fn run(args: &args::Mirror) -> Result<()> {
    let termination = Termination::watch()?;
    let remote = args.remote.options();
    let here = StoreAddress::File(pagewire::address::FileAddress::new(&args.file));
    let options = MirrorOptions {
        interval: args.interval,
        max_interval: args.max_interval.max(args.interval),
        cpu: args.cpu.map(|percent| f64::from(percent) / 100.0),
        threads: args.threads.map(usize::from),
        algorithm: args.hash.between(&here, &args.region),
        patience: remote.patience,
        ..MirrorOptions::default()
    };
    let failed = || format!("cannot mirror {} to {}", args.file.display(), args.region);
    let store = store::open(&args.region, true, &remote)?;
    let region = Region::at(&args.region, store)?;
    let mut mirror = Mirror::start(&args.file, &region, &options).with_context(failed)?;
    let mut mirrored = Mirrored {
        file: args.file.display().to_string(),
        region: args.region.to_string(),
        epoch: 0,
        length: 0,
        rounds: 0,
        epochs: 0,
        pushed_bytes: 0,
        hashing: 0.0,
    };
    let first = mirror.round().with_context(failed)?;
    mirrored.add(&first);
    if !args.once {
        if !args.json {
            output::line(format!("mirroring {}", mirrored.file))?;
        }
        let pause = |pause: Duration| !termination.wait_for(pause).unwrap_or(true);
        mirror.run(|round| mirrored.add(round), pause).with_context(failed)?;
        mirrored.add(&mirror.round().context("the last round fails")?);
    }
    if args.json {
        return output::json(&mirrored);
    }
    let (pushed, length) = (format_size(mirrored.pushed_bytes), format_size(mirrored.length));
    output::line(format!("pushed {pushed} of {length}, up to epoch {}", mirrored.epoch))?;
    Ok(())
}

impl Mirrored {
    fn add(&mut self, round: &Round) {
        (self.epoch, self.length) = (round.epoch, round.length);
        self.rounds += 1;
        self.hashing += round.hashing;
        if round.pushed > 0 {
            self.epochs += 1;
            self.pushed_bytes += round.pushed;
            let Round { epoch, pushed, hashing, .. } = *round;
            tracing::info!(epoch, pushed, hashing, "pushed");
        }
    }
}
