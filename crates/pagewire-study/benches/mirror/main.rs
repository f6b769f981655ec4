//! Mirroring a file and following it: what a round costs, how long a change is on its way, and what followers cost the
//! origin.
//!
//! `cargo bench -p pagewire-study --bench mirror [-- FILTER...] [--size 1GiB] [--rounds 5] [--json]`
//!
//! The file is in memory; the hub is a process of its own, over loopback.
//!
//! - `round`: hashing a file of which nothing has changed, against a plain pass of xxh3 over a shared mapping of that
//!   file, page by page, by as many threads. A page is copied to the nearest cache to be hashed, as nobody may look at memory
//!   that others can write as if they did not; that costs nothing to speak of.
//! - `arrival`: from a store to the mapped file until a follower has it, with rounds every 10 ms; against two intervals and
//!   one pass over the file.
//! - `fan-out`: bytes that leave the origin with eight followers, against one.
#![forbid(unsafe_code)]

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pagewire::access::mirror::{Mirror, MirrorOptions};
use pagewire::engine::Region;
use pagewire::engine::copy::{DeltaOptions, Followed, Follower};
use pagewire::store::{self, MemoryStore, RemoteOptions};
use pagewire::{Algorithm, Scheme};
use pagewire_study::bench::{self, Failure, Options, Row, Target};
use pagewire_study::scatter::write_file;
use pagewire_study::server::{self, ServerProcess};
use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;

const USAGE: &str = "usage: mirror [FILTER...] [--size 1GiB] [--rounds 5] [--json]
a row is measured if its name contains a FILTER: round arrival fan-out";

const PAGE: usize = 4096;
const INTERVAL: Duration = Duration::from_millis(10);

/// How many changes the rows with followers wait for.
const CHANGES: u64 = 40;

fn main() -> ExitCode {
    server::serve_if_asked();
    bench::run("mirror", USAGE, measure)
}

fn measure(options: &Options) -> Result<Vec<Row>, Failure> {
    let setup = Setup::new(options)?;
    let mut rows = Vec::new();
    if options.wants("round") {
        let mut row = Row::new("round", "GB/s", "plain xxh3", Target::AtLeast(0.7));
        let file = File::open(setup.file())?;
        let memory = FileMapping::new(file.as_fd(), setup.size as usize, Protection::Read)?;
        // From here on its pages are in the tables.
        plain_pass(&memory);
        let server = setup.hub()?;
        let mut mirror = setup.mirror(&server)?;
        mirror.round()?;
        for _ in 0..options.rounds {
            let round = mirror.round()?;
            let ours = setup.size as f64 / round.hashing / 1e9;
            row.push(ours, plain_pass(&memory));
        }
        rows.push(row);
    }
    if options.wants("arrival") {
        let mut row = Row::new("arrival", "ms", "2 intervals + a pass", Target::AtMost(1.0));
        for _ in 0..options.rounds {
            let run = setup.run(1)?;
            row.push(run.arrival * 1e3, (2.0 * INTERVAL.as_secs_f64() + run.hashing) * 1e3);
        }
        rows.push(row);
    }
    if options.wants("fan-out") {
        let mut row = Row::new("fan-out", "KiB", "1 follower", Target::AtMost(1.05));
        for _ in 0..options.rounds {
            let (eight, one) = (setup.run(8)?, setup.run(1)?);
            row.push(eight.sent as f64 / 1024.0, one.sent as f64 / 1024.0);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Hashes memory page by page with a thread for each processor; in GB/s.
fn plain_pass(memory: &FileMapping) -> f64 {
    let scheme = Scheme { algorithm: Algorithm::Xxh3, key: *b"0123456789abcdef" };
    const PIECE: usize = 4 << 20;
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut page = [0; PAGE];
                loop {
                    let start = next.fetch_add(1, Ordering::Relaxed) * PIECE;
                    if start >= memory.len() {
                        break;
                    }
                    for at in (start..(start + PIECE).min(memory.len())).step_by(PAGE) {
                        let bytes = &mut page[..PAGE.min(memory.len() - at)];
                        memory.copy_out(at, bytes).expect("it lies in the mapping");
                        std::hint::black_box(scheme.leaf(bytes));
                    }
                }
            });
        }
    });
    memory.len() as f64 / started.elapsed().as_secs_f64() / 1e9
}

/// What a run with followers has shown.
struct Run {
    /// The median time from a change to its arrival, in seconds, at the slowest follower.
    arrival: f64,
    /// The median time of a pass over the file, in seconds.
    hashing: f64,
    /// How many bytes have left the origin for the changes.
    sent: u64,
}

struct Setup {
    folder: tempfile::TempDir,
    size: u64,
    /// How often the file was changed.
    changes: AtomicUsize,
}

impl Setup {
    fn new(options: &Options) -> Result<Self, Failure> {
        let setup = Self {
            folder: tempfile::tempdir_in("/dev/shm")?,
            size: options.size,
            changes: AtomicUsize::new(1),
        };
        write_file(&File::create(setup.file())?, setup.size)?;
        Ok(setup)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("file")
    }

    /// A hub that has the file already.
    fn hub(&self) -> Result<ServerProcess, Failure> {
        let hub = self.folder.path().join("hub");
        std::fs::copy(self.file(), &hub)?;
        Ok(ServerProcess::start_writable(&hub, Ipv4Addr::LOCALHOST, None)?)
    }

    fn mirror(&self, server: &ServerProcess) -> Result<Mirror, Failure> {
        let address = server.region()?;
        let region = Region::at(&address, store::open(&address, true, &RemoteOptions::default())?)?;
        let options =
            MirrorOptions { interval: INTERVAL, max_interval: INTERVAL, ..MirrorOptions::default() };
        Ok(Mirror::start(&self.file(), &region, &options)?)
    }

    /// Changes a page, waits until all followers have it, and so on.
    fn run(&self, followers: usize) -> Result<Run, Failure> {
        let server = self.hub()?;
        let mut mirror = self.mirror(&server)?;
        mirror.round()?;
        let region = mirror.region().clone();
        let before = region.traffic().sent;
        let address = server.region()?;
        let stop = AtomicBool::new(false);
        // A follower that has everything already, so that only what changes is carried.
        let follower = || -> Result<(Follower, Arc<MemoryStore>), Failure> {
            let to = Arc::new(MemoryStore::with_capacity(0, self.size));
            let from = Region::at(&address, store::open(&address, false, &RemoteOptions::default())?)?;
            Ok((Follower::new(from, to.clone(), &DeltaOptions::default()), to))
        };
        let arrived: Vec<AtomicUsize> = (0..followers).map(|_| AtomicUsize::new(0)).collect();
        let (mut arrivals, mut passes) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| -> Result<(), Failure> {
            let (stop, arrived) = (&stop, &arrived);
            let mut following = Vec::new();
            for count in arrived {
                let (mut follower, _to) = follower()?;
                follower.step()?;
                following.push(scope.spawn(move || {
                    let told = |_: &Followed| {
                        count.fetch_add(1, Ordering::Release);
                    };
                    let pause = |pause| {
                        std::thread::sleep(pause);
                        !stop.load(Ordering::Relaxed)
                    };
                    follower.run(told, pause)
                }));
            }
            let mirroring = scope.spawn(|| {
                let told = |round: &pagewire::access::mirror::Round| passes.push(round.hashing);
                let pause = |pause| {
                    std::thread::sleep(pause);
                    !stop.load(Ordering::Relaxed)
                };
                mirror.run(told, pause)
            });
            let file = File::options().write(true).open(self.file())?;
            for change in 1..=CHANGES {
                let page = change * 7919 % (self.size / PAGE as u64);
                let started = Instant::now();
                // Another one in each run, or nothing would change.
                let number = self.changes.fetch_add(1, Ordering::Relaxed);
                file.write_all_at(&number.to_ne_bytes(), page * PAGE as u64)?;
                while arrived.iter().any(|count| (count.load(Ordering::Acquire) as u64) < change) {
                    if started.elapsed() > Duration::from_secs(20) {
                        stop.store(true, Ordering::Relaxed);
                        return Err("a change does not arrive".into());
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
                arrivals.push(started.elapsed().as_secs_f64());
            }
            stop.store(true, Ordering::Relaxed);
            for follower in following {
                follower.join().expect("it does not panic")?;
            }
            mirroring.join().expect("it does not panic")?;
            Ok(())
        })?;
        Ok(Run { arrival: median(arrivals), hashing: median(passes), sent: region.traffic().sent - before })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
