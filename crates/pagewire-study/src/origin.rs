//! An application that writes to its memory, and can be moved, in a process of its own.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use pagewire::PullOrder;
use pagewire::access::serve::{Server, ServerOptions};
use pagewire::access::uffd::{MapOptions, WritableMapping, WriteOptions};
use pagewire::address::{PeerAddress, RegionAddress};
use pagewire::engine::migration::{Application, Live, Origin, OriginOptions};
use pagewire::engine::{PullOptions, PushOptions, Region};
use pagewire::store::MemoryStore;
use pagewire_sys::net::NetNamespace;
use serde::{Deserialize, Serialize};

use crate::child::{self, Child};
use crate::scatter::{fill, split_mix};

/// The hidden argument.
const ROLE: &str = "--pagewire-study-origin";

/// The region's name.
const REGION: &str = "memory";

/// How often the application writes.
const TICK: Duration = Duration::from_millis(1);

const PAGE: u64 = 4096;

/// What an application writes: to pages in the first bytes of its memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    /// How many bytes of memory it has.
    pub size: u64,
    /// How many of them it writes to.
    pub hot: u64,
    /// In which order.
    pub writes: Writes,
    /// For how long it writes so many bytes of pages a second; from the beginning again after the last.
    pub phases: Vec<(Duration, u64)>,
}

/// In which order an application writes to its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Writes {
    /// Here and there.
    Scattered,
    /// To one after another, and from the beginning again after the last: as a collector does that copies what lives.
    InOrder,
}

/// What an application has done.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Progress {
    /// How many pages it has written to, the same page counted as often.
    pub pages: u64,
    /// How long that took it, in seconds, without its pauses.
    pub busy: f64,
    /// When it was suspended, in seconds since 1970; 0 before.
    pub suspended: f64,
    /// For how long it has run, in seconds.
    pub ran: f64,
}

/// Becomes the application if this process was started by [`OriginProcess::start`]; else returns. A program that uses it
/// begins its `main` with this.
pub fn run_if_asked() {
    if let Some(arguments) = child::arguments_of(ROLE) {
        child::run(|| match arguments.as_slice() {
            [load, address] => {
                let load = serde_json::from_str(&load.to_string_lossy())?;
                run(load, &address.to_string_lossy())
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        });
    }
}

/// An application in a process of its own, which is ended when this is dropped.
pub struct OriginProcess {
    child: Child,
}

impl OriginProcess {
    /// Starts one that can be taken over at `host`, inside `namespace` if there is one.
    ///
    /// # Errors
    ///
    /// Where the process cannot be started.
    pub fn start(load: &Load, host: Ipv4Addr, namespace: Option<&NetNamespace>) -> io::Result<Self> {
        let (load, address) = (serde_json::to_string(load)?, format!("pw://{host}:0"));
        Ok(Self { child: Child::start(ROLE, &[load.as_ref(), address.as_ref()], namespace)? })
    }

    /// Where it can be taken over.
    ///
    /// # Errors
    ///
    /// Where the process said something else.
    pub fn address(&self) -> io::Result<RegionAddress> {
        let peer: PeerAddress = self.child.address().parse().map_err(io::Error::other)?;
        Ok(RegionAddress { peer, name: REGION.into() })
    }

    /// What it has done so far.
    ///
    /// # Errors
    ///
    /// Where it has ended.
    pub fn progress(&mut self) -> io::Result<Progress> {
        Ok(serde_json::from_str(&self.child.ask()?)?)
    }
}

/// The application.
struct Writer {
    mapping: Arc<WritableMapping>,
    load: Load,
    pages: AtomicU64,
    busy: AtomicU64,
    started: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    suspend: bool,
    parked: bool,
    suspended: f64,
}

fn run(load: Load, address: &str) -> io::Result<()> {
    let size = load.size;
    let region = Region::new(REGION, Arc::new(MemoryStore::new(size))).map_err(io::Error::other)?;
    // What it has is its memory, and nowhere else.
    let push = PushOptions { interval: None, ..PushOptions::default() };
    let pull = PullOptions { order: PullOrder::None, ..PullOptions::default() };
    let options =
        WriteOptions { map: MapOptions { pull, ..MapOptions::default() }, push, ..WriteOptions::default() };
    let mapping = Arc::new(WritableMapping::map(&region, &options).map_err(io::Error::other)?);
    let (mut state, mut piece) = (1, vec![0; 1 << 20]);
    for at in (0..size).step_by(piece.len()) {
        fill(&mut state, &mut piece);
        mapping.write(at, &piece).map_err(io::Error::other)?;
    }
    let writer = Arc::new(Writer {
        mapping: mapping.clone(),
        load,
        pages: AtomicU64::new(0),
        busy: AtomicU64::new(0),
        started: Instant::now(),
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    let regions = vec![(REGION.to_owned(), mapping as Arc<dyn Live>)];
    let origin = Origin::new(regions, writer.clone(), OriginOptions::default()).map_err(io::Error::other)?;
    let server = Server::new([], ServerOptions::default()).map_err(io::Error::other)?;
    server.offer(&origin).map_err(io::Error::other)?;
    let address: PeerAddress = address.parse().map_err(io::Error::other)?;
    let bound = server.listen(&address).map_err(io::Error::other)?;
    let writing = writer.clone();
    std::thread::Builder::new().name("writer".into()).spawn(move || writing.run())?;
    child::answering(bound, || Ok(serde_json::to_string(&writer.progress())?))
}

impl Writer {
    fn run(&self) {
        let (mut random, mut next, hot) = (7, 0, (self.load.hot / PAGE).max(1));
        let whole: Duration = self.load.phases.iter().map(|(time, _)| *time).sum();
        // What it should have written by now, and has.
        let (mut owed, mut last) = (0.0, Instant::now());
        loop {
            std::thread::sleep(TICK);
            let now = Instant::now();
            let mut at = (now - self.started).as_secs_f64() % whole.as_secs_f64().max(f64::EPSILON);
            let mut rate = 0;
            for (time, phase) in &self.load.phases {
                rate = *phase;
                if at < time.as_secs_f64() {
                    break;
                }
                at -= time.as_secs_f64();
            }
            owed += rate as f64 * (now - last).as_secs_f64() / PAGE as f64;
            last = now;
            // What could not be written in a tenth of a second is not made good for.
            owed = owed.min(rate as f64 / 10.0 / PAGE as f64);
            while owed >= 1.0 {
                let some = owed.min(64.0) as u64;
                let begun = Instant::now();
                for _ in 0..some {
                    let page = match self.load.writes {
                        Writes::Scattered => split_mix(&mut random) % hot,
                        Writes::InOrder => next,
                    };
                    next = (next + 1) % hot;
                    if let Some(counter) = self.mapping.atomic_u64(page * PAGE) {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                }
                let took = begun.elapsed().as_nanos().try_into().unwrap_or(u64::MAX);
                self.busy.fetch_add(took, Ordering::Relaxed);
                self.pages.fetch_add(some, Ordering::Relaxed);
                owed -= some as f64;
                if self.state.lock().expect("no holder panics").suspend {
                    break;
                }
            }
            let mut state = self.state.lock().expect("no holder panics");
            while state.suspend {
                state.parked = true;
                self.changed.notify_all();
                state = self.changed.wait(state).expect("no holder panics");
                last = Instant::now();
            }
            state.parked = false;
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            pages: self.pages.load(Ordering::Relaxed),
            busy: self.busy.load(Ordering::Relaxed) as f64 / 1e9,
            suspended: self.state.lock().expect("no holder panics").suspended,
            ran: self.started.elapsed().as_secs_f64(),
        }
    }
}

/// Now, in seconds since 1970: the same clock in all processes of this host.
pub fn seconds_since_1970() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Application for Writer {
    fn suspend(&self) -> pagewire::Result<()> {
        let mut state = self.state.lock().expect("no holder panics");
        state.suspended = seconds_since_1970();
        state.suspend = true;
        while !state.parked {
            state = self.changed.wait(state).expect("no holder panics");
        }
        Ok(())
    }

    fn resume(&self) {
        self.state.lock().expect("no holder panics").suspend = false;
        self.changed.notify_all();
    }
}
