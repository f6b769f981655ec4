//! The NBD server: offers regions to any NBD client (qemu, libnbd, the Linux kernel).
//!
//! Every connection has a thread that receives requests, and answers on the spot what it has at hand: what the
//! page cache or memory has, and writes. Answers to requests that came together leave together. What would have
//! it wait (a disk, a peer, a flush) is carried out elsewhere meanwhile, and answered when it is done, in whatever
//! order. Core's [`nbd`](pagewire_core::nbd) has the protocol and its rules.
//!
//! - [`handshake`]: core's state machine, driven over a socket.
//! - [`attachment`]: a region as an export, and each client's part in it: who writes, and who only reads.
//! - [`writing`]: the writer that all clients of an export share, and its flushes.
//! - [`transmission`]: one connection's requests.
//! - [`incoming`]: requests as they come in, and the bytes of writes.
//! - [`outgoing`]: replies on their way out.
//! - [`read`]: the answer to a READ.
//! - [`change`]: what those do that write.
//! - [`prefetch`]: what CACHE starts.
//! - [`contexts`]: what BLOCK_STATUS can tell.
//! - [`errno`]: what a client is told of an error.
//! - [`device`]: a region as a block device of this host, by the kernel's client.

mod attachment;
mod change;
mod contexts;
mod device;
mod errno;
mod handshake;
mod incoming;
mod outgoing;
mod prefetch;
mod read;
mod transmission;
mod writing;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pagewire_sys::event::EventFd;

use super::serve::{Permissions, ServerTls};
use crate::address::{NbdAddress, NbdPlace, PeerAddress};
use crate::engine::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{Acceptor, Connection, Incoming, Listener, Protocol};
pub use attachment::{Attachment, Export, ExportOptions};
pub use device::{Device, DeviceOptions, DeviceOwner, DeviceStatus, device_status};
use outgoing::Outgoing;
pub use pagewire_core::nbd::{Headers, TransmissionFlags};
pub use transmission::serve_transmission;

/// How long the requests under way may take when the server stops.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How an NBD server behaves.
#[derive(Debug, Clone)]
pub struct NbdOptions {
    /// How many connections there may be at once; further ones are closed.
    pub max_connections: usize,
    /// How long a client may take to choose an export.
    pub handshake_timeout: Duration,
    /// How long a client may take no bytes before its connection is closed.
    pub send_timeout: Duration,
    /// Whether nobody may write, whatever the regions can.
    pub read_only: bool,
    /// For how long a region's lease waits for a client to come back after the last one has left.
    pub lapse: Duration,
    /// Who the server is to those who want TLS; without it nobody can have it.
    pub tls: Option<ServerTls>,
    /// Who may read and write which region, by the certificates of clients. With it everybody has to have TLS.
    pub permissions: Option<Permissions>,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(30),
            read_only: false,
            lapse: Duration::from_secs(10),
            tls: None,
            permissions: None,
        }
    }
}

/// Offers regions to NBD clients, until it is dropped: then the requests under way are carried out, and what was
/// written is flushed.
///
/// ```no_run
/// use pagewire::access::nbd::{NbdOptions, NbdServer};
/// use pagewire::engine::Region;
/// use pagewire::store::FileStore;
///
/// # fn main() -> pagewire::Result<()> {
/// # let store: FileStore = unimplemented!();
/// let disk = Region::new("disk", std::sync::Arc::new(store))?;
/// let server = NbdServer::new([disk], NbdOptions::default())?;
/// println!("qemu-img info {}/disk", server.listen(&"nbd://127.0.0.1:0".parse()?)?);
/// # Ok(())
/// # }
/// ```
pub struct NbdServer {
    shared: Arc<Shared>,
    listeners: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    exports: BTreeMap<String, Arc<Export>>,
    options: NbdOptions,
    tls: Option<Acceptor>,
    stop: EventFd,
    stopping: AtomicBool,
    connections: AtomicUsize,
    /// Everybody who is connected, by a number, for when the server stops: the sending side, once an export is used.
    clients: Mutex<HashMap<u64, Weak<Outgoing>>>,
    left: Condvar,
    next: AtomicU64,
}

impl NbdServer {
    /// A server of `regions`, which listens nowhere yet. Each is an export by its name, and the only one is the
    /// default export, too.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] if two regions have the same name, or if the permissions name one that is not among
    /// them, or are there without the authorities that they need; whatever keeps the certificates from being used.
    pub fn new(regions: impl IntoIterator<Item = Arc<Region>>, options: NbdOptions) -> Result<Self> {
        let mut exports = BTreeMap::new();
        for region in regions {
            let name = region.name().to_owned();
            let export = ExportOptions { read_only: options.read_only, lapse: options.lapse };
            if exports.insert(name.clone(), Export::new(region, export)).is_some() {
                return Err(Error::new(ErrorKind::Usage, format!("two regions have the name '{name}'")));
            }
        }
        let tls = options.tls.as_ref().map(|tls| Acceptor::load(tls, Protocol::Nbd)).transpose()?;
        if let Some(permissions) = &options.permissions {
            permissions.check(|name| exports.contains_key(name))?;
            permissions.check_known(tls.as_ref().is_some_and(Acceptor::knows_clients))?;
        }
        let stop = EventFd::new().map_err(|error| Error::io("cannot make an event", &error))?;
        let shared = Shared {
            exports,
            options,
            tls,
            stop,
            stopping: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            clients: Mutex::default(),
            left: Condvar::new(),
            next: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared), listeners: Mutex::default() })
    }

    /// Listens at `address`, which names no export, and answers where that is, with the real port. At `nbds://`
    /// everybody has to have TLS; at `nbd://` who wants to, where the server has a certificate.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] where somebody listens there already; [`ErrorKind::Usage`] for an address that names an
    /// export or certificates, for `nbds://` of a server without a certificate, and for another of one that has
    /// permissions.
    pub fn listen(&self, address: &NbdAddress) -> Result<NbdAddress> {
        let usage = |text: String| Err(Error::new(ErrorKind::Usage, format!("{address}: {text}")));
        if !address.export.is_empty() {
            return usage("a server listens for all exports: leave out the name".into());
        }
        let forced = address.tls.is_some();
        if address.tls.as_ref().is_some_and(|tls| tls.certificates.is_some() || tls.hostname.is_some()) {
            return usage("a server's certificate is named by --tls-cert and --tls-key".into());
        }
        if forced && self.shared.tls.is_none() {
            return usage("a server at nbds:// needs a certificate (--tls-cert, --tls-key)".into());
        }
        if self.shared.options.permissions.is_some() && !forced {
            return usage(
                "nobody has to show a certificate there, and so nobody would be permitted anything: \
                          listen at nbds:// only"
                    .into(),
            );
        }
        let place = match &address.place {
            NbdPlace::Tcp { host, port } if host.contains(':') => {
                PeerAddress::Tcp(format!("[{host}]:{port}"))
            }
            NbdPlace::Tcp { host, port } => PeerAddress::Tcp(format!("{host}:{port}")),
            NbdPlace::Unix(path) => PeerAddress::Unix(path.clone()),
        };
        let listener = Listener::bind_named(&place, None, address)?;
        let mut bound = address.clone();
        if let (NbdPlace::Tcp { port, .. }, PeerAddress::Tcp(place)) = (&mut bound.place, listener.address())
        {
            let real = place.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            *port = real.unwrap_or(*port);
        }
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name("nbd-accept".into())
            .spawn(move || shared.accept(&listener, forced))
            .map_err(|error| Error::io("cannot start a thread", &error))?;
        self.listeners.lock().expect("no holder panics").push(thread);
        Ok(bound)
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // An event that cannot be signalled is one that is signalled already.
        let _ = self.shared.stop.signal();
        for thread in self.listeners.lock().expect("no holder panics").drain(..) {
            // A listener that has panicked has stopped, too.
            let _ = thread.join();
        }
        self.shared.end();
        // A thread that has just left lets go of the regions in a moment.
        let deadline = Instant::now() + Duration::from_secs(1);
        while Arc::strong_count(&self.shared) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.shared.exports.values().for_each(|export| export.close());
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn accept(self: &Arc<Self>, listener: &Listener, forced: bool) {
        loop {
            match listener.accept(&self.stop) {
                Ok(Incoming::Connection(connection)) => self.begin(connection, forced),
                Ok(Incoming::Stop) => return,
                Err(error) => {
                    // No descriptors left, most likely; they come back when somebody leaves.
                    tracing::warn!(%error, "cannot accept a connection");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    /// Gives a connection its thread, or closes it if there are too many.
    fn begin(self: &Arc<Self>, connection: Connection, forced: bool) {
        let count = self.connections.fetch_add(1, Ordering::Relaxed);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.clients().insert(number, Weak::new());
        let here = Here { shared: self.clone(), number };
        if count >= self.options.max_connections {
            return tracing::warn!(peer = connection.peer_name(), count, "too many NBD connections");
        }
        let started = std::thread::Builder::new().name("nbd-serve".into()).spawn(move || {
            here.shared.serve(connection, forced, number);
            drop(here);
        });
        if let Err(error) = started {
            tracing::warn!(%error, "cannot start a thread for a connection");
        }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<u64, Weak<Outgoing>>> {
        self.clients.lock().expect("no holder panics")
    }

    fn serve(self: &Arc<Self>, connection: Connection, forced: bool, number: u64) {
        let peer = connection.peer_name();
        let deadline = Instant::now() + self.options.handshake_timeout;
        let agreed = match handshake::shake_hands(self, connection, forced, deadline) {
            Ok(Some(agreed)) => agreed,
            Ok(None) => return tracing::debug!(peer, "an NBD client has looked and left"),
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                return tracing::debug!(peer, %error, "an NBD client is gone");
            }
            Err(error) => return tracing::info!(peer, %error, "an NBD client is refused"),
        };
        let handshake::Agreed { connection, attachment, headers, contexts } = agreed;
        let outgoing = Arc::new(Outgoing::new(connection, headers));
        self.clients().insert(number, Arc::downgrade(&outgoing));
        let send_timeout = Some(self.options.send_timeout);
        let stopping = || self.is_stopping();
        let (region, writes) = (attachment.region().name().to_owned(), attachment.is_writable());
        tracing::debug!(peer, region, ?headers, writes, "an NBD client uses an export");
        match transmission::run(&Arc::new(attachment), &outgoing, contexts, send_timeout, &stopping) {
            Ok(()) => tracing::debug!(peer, region, "an NBD client has left"),
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::info!(peer, region, %error, "an NBD client is gone");
            }
            Err(error) => tracing::info!(peer, region, %error, "the connection of an NBD client is closed"),
        }
    }

    /// Has all connections end, and waits for that.
    fn end(&self) {
        // What has come is answered first, unless that takes too long.
        if !self.wait_until_left(LAST_WORDS, Outgoing::end_receiving)
            && !self.wait_until_left(LAST_WORDS / 2, Outgoing::close)
        {
            tracing::warn!(
                count = self.connections.load(Ordering::Relaxed),
                "NBD connections that do not end"
            );
        }
    }

    /// Tells all connections to end, and waits so long until all have.
    fn wait_until_left(&self, patience: Duration, tell: impl Fn(&Outgoing)) -> bool {
        let deadline = Instant::now() + patience;
        let mut clients = self.clients();
        while !clients.is_empty() && Instant::now() < deadline {
            clients.values().filter_map(Weak::upgrade).for_each(|outgoing| tell(&outgoing));
            // Some may only be on their way to where they can be told.
            let wait = Duration::from_millis(50);
            clients = self.left.wait_timeout(clients, wait).expect("no holder panics").0;
        }
        clients.is_empty()
    }
}

/// One connection's place among those that are allowed.
struct Here {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Here {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.clients().remove(&self.number);
        self.shared.left.notify_all();
    }
}
