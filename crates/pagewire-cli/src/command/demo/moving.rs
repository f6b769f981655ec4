//! The last part of the demonstration: the database moves to another host while a program commits to it. This process
//! plays both hosts; between them is a connection, as between any two.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pagewire::access::serve::{Server, ServerOptions};
use pagewire::access::uffd::{WritableMapping, WriteOptions};
use pagewire::address::{FileAddress, RegionAddress, format_size};
use pagewire::engine::Region;
use pagewire::engine::migration::{
    Application, Destination, DestinationOptions, Live, Origin, OriginOptions, Outcome,
};
use pagewire::store::{FileStore, RemoteOptions, Store};
use serde::Serialize;

use super::database;

/// How long the program commits before it is moved, and after it.
const RUN: Duration = Duration::from_millis(200);

/// How long it rests between two transactions.
const REST: Duration = Duration::from_micros(100);

/// What is printed as JSON.
#[derive(Serialize)]
pub(super) struct Moved {
    pub(super) mode: String,
    /// For how long the program stood still.
    pub(super) downtime_seconds: f64,
    /// From the beginning until everything was there.
    pub(super) seconds: f64,
    pub(super) region_bytes: u64,
    pub(super) moved_bytes: u64,
    /// How many transactions were committed before the program was suspended, and in all.
    pub(super) committed_before: u64,
    pub(super) committed: u64,
    pub(super) missing: u64,
    pub(super) doubled: u64,
    /// What the question was answered at the destination.
    pub(super) answer: String,
}

/// Maps the database at `region` to be written to, has a program commit to it, and moves both.
pub(super) fn run(
    region: &str,
    folder: &Path,
    remote: &RemoteOptions,
    say: &dyn Fn(String),
) -> Result<Moved> {
    let options = WriteOptions::default();
    let mapping = Arc::new(WritableMapping::open_with(&region.parse()?, &options, remote)?);
    let committed = Arc::new(AtomicU64::new(0));
    let writer = Arc::new(Writer::start(mapping.clone(), committed.clone())?);
    let regions = vec![("demo".to_owned(), mapping.clone() as Arc<dyn Live>)];
    let origin = Origin::new(regions, writer.clone(), OriginOptions::default())?;
    let server = Server::new([], ServerOptions::default())?;
    server.offer(&origin)?;
    let peer = server.listen(&"pw://127.0.0.1:0".parse()?)?;
    let from = RegionAddress { peer, name: "demo".into() };
    say(format!("mapped to be written to; a program commits to it, and it is moved from {from}"));
    std::thread::sleep(RUN);

    let file = FileAddress {
        size: Some(0),
        capacity: Some(mapping.capacity()),
        ..FileAddress::new(folder.join("moved.sqlite"))
    };
    let home: Arc<dyn Store> = Arc::new(FileStore::at(&file, true)?);
    let options = DestinationOptions { remote: remote.clone(), ..DestinationOptions::default() };
    let destination = Destination::start(&[(from, home)], options)?;
    let mut there = None;
    destination.run(|arrived| {
        let region: &Arc<Region> = &arrived.regions[0].1;
        let moved = Arc::new(WritableMapping::map(region, &WriteOptions::default())?);
        let before = committed.load(Ordering::Acquire);
        let goes_on = Writer::start(moved.clone(), committed.clone());
        there = Some((
            moved,
            goes_on.map_err(|error| pagewire::Error::io("cannot start a thread", &error))?,
            before,
        ));
        Ok(())
    })?;
    let report = destination.finish()?;
    let (moved, goes_on, committed_before) = there.context("nothing has arrived")?;
    if origin.wait() != Outcome::Released {
        bail!("the origin was not released");
    }
    drop((server, origin));
    writer.end()?;
    drop((writer, mapping));
    std::thread::sleep(RUN);
    goes_on.end()?;
    let committed = committed.load(Ordering::Acquire);
    let found = database::check_steps(moved.memory(), moved.len() as usize)?;
    moved.flush()?;
    say(format!(
        "moved by {}: the program stood still for {:.1} ms, and {} of {} came; it has gone on",
        report.mode,
        report.downtime * 1e3,
        format_size(report.moved_bytes),
        format_size(report.region_bytes)
    ));
    let missing = committed.abs_diff(found.whole);
    if missing > 0 || found.doubled > 0 {
        bail!("{committed} transactions were committed: {missing} are missing, {} doubled", found.doubled);
    }
    Ok(Moved {
        mode: report.mode,
        downtime_seconds: report.downtime,
        seconds: report.seconds,
        region_bytes: report.region_bytes,
        moved_bytes: report.moved_bytes,
        committed_before,
        committed,
        missing,
        doubled: found.doubled,
        answer: found.answer,
    })
}

/// A program that commits to a database, one transaction after the other, until it is suspended.
struct Writer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<rusqlite::Result<()>>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What it is to do.
    suspend: bool,
    end: bool,
    /// What it has done.
    is_suspended: bool,
    has_ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Whether to go on, once it is not to be suspended.
    fn goes_on(&self) -> bool {
        let mut state = self.lock();
        while state.suspend && !state.end {
            state.is_suspended = true;
            self.changed.notify_all();
            state = self.changed.wait(state).expect("no holder panics");
        }
        state.is_suspended = false;
        !state.end
    }
}

impl Writer {
    fn start(mapping: Arc<WritableMapping>, committed: Arc<AtomicU64>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let this = shared.clone();
        let thread = std::thread::Builder::new().name("demo-writer".into()).spawn(move || {
            let take_step = |step: u64| committed.store(step, Ordering::Release);
            let goes_on = || {
                std::thread::sleep(REST);
                this.goes_on()
            };
            let ended = database::commit_steps(mapping.memory(), mapping.len() as usize, goes_on, take_step);
            this.change(|state| state.has_ended = true);
            ended
        })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Ends it, and answers what it has run into.
    fn end(&self) -> Result<()> {
        self.shared.change(|state| state.end = true);
        let thread = self.thread.lock().expect("no holder panics").take();
        match thread.map(JoinHandle::join) {
            Some(Ok(ended)) => Ok(ended?),
            Some(Err(_)) => bail!("the program has panicked"),
            None => Ok(()),
        }
    }
}

impl Application for Writer {
    fn suspend(&self) -> pagewire::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        self.shared.change(|state| state.suspend = true);
        let mut state = self.shared.lock();
        while !state.is_suspended && !state.has_ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = "a transaction of the program does not end";
                return Err(pagewire::Error::new(pagewire::ErrorKind::Busy, text));
            }
            state = self.shared.changed.wait_timeout(state, left).expect("no holder panics").0;
        }
        Ok(())
    }

    fn resume(&self) {
        self.shared.change(|state| state.suspend = false);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "the program has failed");
        }
    }
}
