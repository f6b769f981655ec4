//! A region that is reached by a link: what it is, how far it is, and what the link carries.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pagewire::address::StoreAddress;
use pagewire::store::{self, Blocking, RemoteOptions, Store};
use pagewire::{ByteRange, Result};
use serde::Serialize;

/// How often the way to a region is measured: the shortest counts.
const ASKED: u32 = 8;

/// How long bytes are fetched to see what the link carries, and how much of that it may take to gather speed.
const TIME: Duration = Duration::from_millis(600);
const RUN_UP: Duration = Duration::from_millis(200);

/// No more than that is fetched.
const MOST: u64 = 256 << 20;

/// Of fewer bytes nothing is concluded: they are gone before the link has gathered speed.
const LEAST: u64 = 2 << 20;

/// What is fetched at once, and by how many.
const PIECE: u64 = 256 << 10;
const THREADS: usize = 8;

/// What a region has answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Measured {
    pub(super) address: String,
    pub(super) length: u64,
    /// Where it is told.
    pub(super) writable: Option<bool>,
    pub(super) round_trip_seconds: f64,
    /// Where enough of it could be fetched to tell.
    pub(super) bytes_per_second: Option<f64>,
}

/// Opens the region as any reader does, asks it a few times for what it knows anyway, and, where the rate is wanted,
/// fetches bytes of it for half a second.
pub(super) fn measure(address: &StoreAddress, options: &RemoteOptions, rate: bool) -> Result<Measured> {
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
    let round_trip = shortest.unwrap_or_default();
    Ok(Measured {
        address: address.to_string(),
        length: store.info().length,
        writable,
        round_trip_seconds: round_trip.as_secs_f64(),
        bytes_per_second: if rate { carried(&store, round_trip)? } else { None },
    })
}

/// What the link carries, in bytes per second: those on the network are counted, so that neither holes nor what is
/// compressed make it look faster.
fn carried(store: &Arc<dyn Store>, round_trip: Duration) -> Result<Option<f64>> {
    let info = store.info();
    let pieces = info.length / PIECE;
    if pieces == 0 {
        return Ok(None);
    }
    let piece = |index: u64| ByteRange::new(index % pieces * PIECE, (index % pieces + 1) * PIECE);
    // Over a slow link one piece says all, and many would take long.
    let (begun, before) = (Instant::now(), store.traffic().received);
    store.read_bytes(piece(0), info.epoch)?;
    let (took, came) = (begun.elapsed().saturating_sub(round_trip), store.traffic().received - before);
    if took > RUN_UP {
        return Ok((came > PIECE / 2).then(|| came as f64 / took.as_secs_f64()));
    }
    let (begun, next) = (Instant::now(), AtomicU64::new(1));
    let fetch = || -> Result<()> {
        while begun.elapsed() < TIME {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index * PIECE > MOST {
                break;
            }
            store.read_bytes(piece(index), info.epoch)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let fetching: Vec<_> = (0..THREADS).map(|_| scope.spawn(fetch)).collect();
        let is_over = || fetching.iter().all(std::thread::ScopedJoinHandle::is_finished);
        let mut from = (begun, store.traffic().received);
        while !is_over() {
            std::thread::sleep(Duration::from_millis(5));
            if from.0 == begun && begun.elapsed() >= RUN_UP && !is_over() {
                from = (Instant::now(), store.traffic().received);
            }
        }
        let (time, came) = (from.0.elapsed(), store.traffic().received - from.1);
        for thread in fetching {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok((came >= LEAST).then(|| came as f64 / time.as_secs_f64()))
    })
}
