//! What the tests share: regions to serve, and deadlines.

pub(crate) mod application;
#[cfg(feature = "tls")]
pub(crate) mod certificates;
pub(crate) mod fake_server;
pub(crate) mod fragile;
pub(crate) mod frames;
#[cfg(feature = "nbd")]
pub(crate) mod nbd_fake;
#[cfg(feature = "nbd")]
pub(crate) mod nbd_servers;
pub(crate) mod proxy;
pub(crate) mod random;
pub(crate) mod raw;
#[cfg(feature = "tls")]
pub(crate) mod raw_tls;
pub(crate) mod recorder;
pub(crate) mod role;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pagewire::access::serve::{Server, ServerOptions};
use pagewire::access::uffd::{MapOptions, Mapping};
use pagewire::address::{PeerAddress, RegionAddress};
use pagewire::engine::{PullOptions, Region};
use pagewire::store::{FileStore, Flush, Info, Read, RemoteOptions, Store};
use pagewire::{ChunkSize, Error, ErrorKind, PullOrder, Result};

/// Longer than anything here may take: whatever waits as long as this hangs.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// Any free port of this host.
pub(crate) fn anywhere() -> PeerAddress {
    "pw://127.0.0.1:0".parse().unwrap()
}

/// Bytes that differ from page to page and within a page, and from seed to seed; none is zero.
pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    let seed = usize::from(seed) * 67;
    (0..length).map(|i| ((i / 4096) * 31 + i % 251 + seed) as u8 | 1).collect()
}

/// A file that holds `bytes`.
pub(crate) fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// The region `file` of the file at `path`.
pub(crate) fn file_region(path: &Path) -> Arc<Region> {
    Region::new("file", Arc::new(FileStore::open(path, None, false).unwrap())).unwrap()
}

/// A server of `regions` at `address`, and where it listens.
pub(crate) fn serve(
    regions: impl IntoIterator<Item = Arc<Region>>,
    address: &PeerAddress,
) -> (Server, PeerAddress) {
    serve_with(regions, address, ServerOptions::default())
}

/// The same with options.
pub(crate) fn serve_with(
    regions: impl IntoIterator<Item = Arc<Region>>,
    address: &PeerAddress,
    options: ServerOptions,
) -> (Server, PeerAddress) {
    let server = Server::new(regions, options).unwrap();
    let bound = server.listen(address).unwrap();
    (server, bound)
}

/// The region `name` at `peer`.
pub(crate) fn region_at(peer: &PeerAddress, name: &str) -> RegionAddress {
    RegionAddress { peer: peer.clone(), name: name.into() }
}

/// A client that loses its patience after so many milliseconds.
pub(crate) fn patient_for(milliseconds: u64) -> RemoteOptions {
    let patience = Duration::from_millis(milliseconds);
    RemoteOptions { connections: 2, patience, connect_timeout: patience, ..RemoteOptions::default() }
}

/// Pulls in chunks of 64 KiB, and tries often again what could not be had.
pub(crate) fn map_options(order: PullOrder) -> MapOptions {
    let pull = PullOptions {
        chunk: ChunkSize::DEFAULT,
        order,
        heal_interval: Duration::from_millis(100),
        ..PullOptions::default()
    };
    MapOptions { pull, ..MapOptions::default() }
}

/// Maps the region `name` at `peer`.
pub(crate) fn map(
    peer: &PeerAddress,
    name: &str,
    order: PullOrder,
    remote: &RemoteOptions,
) -> Result<Mapping> {
    Mapping::open_with(&format!("{}", region_at(peer, name)).parse().unwrap(), &map_options(order), remote)
}

/// Whether tests that need a userfaultfd are to run. Without one they fail, unless
/// `PAGEWIRE_TEST_SKIP` names it.
pub(crate) fn has_userfaultfd() -> bool {
    has("userfaultfd")
}

/// Whether tests that need this are to run: without it they fail, unless `PAGEWIRE_TEST_SKIP` names it.
pub(crate) fn has(need: &str) -> bool {
    let skipped = std::env::var("PAGEWIRE_TEST_SKIP").is_ok_and(|names| names.split(',').any(|n| n == need));
    if skipped {
        eprintln!("skipped: PAGEWIRE_TEST_SKIP names {need}");
    }
    !skipped
}

/// Waits until `ready`, and fails with `what` when that takes too long.
pub(crate) fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs `work` on a thread of its own, and fails with `what` when it hangs.
pub(crate) fn within<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        // The test has failed already if nobody listens.
        let _ = sender.send(work());
    });
    match receiver.recv_timeout(limit) {
        Ok(answer) => answer,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("hangs: {what}"),
        Err(_) => std::panic::resume_unwind(thread.join().unwrap_err()),
    }
}

/// A store that answers reads below a border only. Those beyond it wait until the store is let go,
/// and fail then: a server that is lost in the middle of a pull, at the same place every time.
pub(crate) struct Held {
    store: Arc<dyn Store>,
    border: u64,
    open: Arc<(Mutex<bool>, Condvar)>,
}

/// Lets go what a [`Held`] holds, when dropped.
pub(crate) struct Hold(Arc<(Mutex<bool>, Condvar)>);

impl Held {
    pub(crate) fn new(store: Arc<dyn Store>, border: u64) -> (Arc<Self>, Hold) {
        let open: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        (Arc::new(Self { store, border, open: open.clone() }), Hold(open))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

impl Store for Held {
    fn info(&self) -> Info {
        let mut info = self.store.info();
        info.capabilities.lend = false;
        info
    }

    fn read(&self, read: Read) {
        if read.ranges.iter().all(|range| range.end <= self.border) {
            return self.store.read(read);
        }
        let open = self.open.0.lock().unwrap();
        drop(self.open.1.wait_while(open, |open| !*open).unwrap());
        read.sink.done(Err(Error::new(ErrorKind::Io, "held, and then let go")));
    }

    fn flush(&self, flush: Flush) {
        self.store.flush(flush);
    }

    fn refresh(&self) -> Result<Info> {
        self.store.refresh()?;
        Ok(self.info())
    }
}
