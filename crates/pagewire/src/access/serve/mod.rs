//! The `pw` server: offers regions to peers.
//!
//! Every connection has a thread that receives, and answers on the spot: a read that an application
//! waits for changes hands no more often than it must. A bulk connection has a second thread, which
//! sends extents of the session's streams; a stream is shared by the bulk connections of its session,
//! each taking the next extent when its socket has room, so that a slow one holds up none.
//!
//! - [`connection`]: from the handshake to the end of one connection.
//! - [`request`]: what each request does.
//! - [`writing`]: the requests of those who write.
//! - [`moving`]: the requests of those who take regions over.
//! - [`permissions`]: who may read and write which region.
//! - [`session`]: what the connections of one client share: open regions and streams.
//! - [`outgoing`]: frames on their way out, one at a time.
//! - [`answer`]: the answer to a READ.
//! - [`stream`]: the order, the credit and the end of one stream.
//! - [`extent`]: the bytes of one extent.
//! - [`lent`]: bytes by `sendfile`, where the store lends its file.
//! - [`tree`]: hashes, for those who compare.
//! - [`holes`]: where a lent file holds no data.

mod answer;
mod connection;
mod extent;
mod holes;
mod lent;
mod moving;
mod outgoing;
mod permissions;
mod request;
mod session;
mod stream;
mod tree;
mod writing;

#[cfg(test)]
mod killed;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use pagewire_core::pack::Compression;
use pagewire_core::wire::{InstanceId, SessionToken};
use pagewire_sys::event::EventFd;

use crate::address::PeerAddress;
use crate::engine::Region;
use crate::engine::migration::Origin;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{Acceptor, Connection, Incoming, Listener, Protocol};
pub use crate::transport::{Identity, ServerTls};
use outgoing::Outgoing;
#[cfg(feature = "nbd")]
pub(in crate::access) use permissions::Access;
pub use permissions::Permissions;
use session::Session;

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// How many connections there may be at once; further ones are refused with BUSY.
    pub max_connections: usize,
    /// How long a connection may take to say what it wants.
    pub handshake_timeout: Duration,
    /// How long a peer may take no bytes before its connection is closed.
    pub send_timeout: Duration,
    /// Whether nobody may write, whatever the regions can.
    pub read_only: bool,
    /// How long a writer whose connection is lost may take to come back before another may write.
    pub lapse: Duration,
    /// Whether to compress for those who take it, and how; with [`Compression::Off`] they are not let, either.
    pub compression: Compression,
    /// Who the server is to those who come through TLS; without it nobody can.
    pub tls: Option<ServerTls>,
    /// Who may read and write which region. With it everybody has to show a certificate; without it
    /// everybody may do everything.
    pub permissions: Option<Permissions>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(30),
            read_only: false,
            lapse: Duration::from_secs(10),
            compression: Compression::Auto,
            tls: None,
            permissions: None,
        }
    }
}

/// Offers regions to peers, until it is dropped.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    regions: BTreeMap<String, Arc<Region>>,
    /// Those that can be taken over, by the names of their regions.
    origins: Mutex<BTreeMap<String, Arc<Origin>>>,
    options: ServerOptions,
    tls: Option<Acceptor>,
    instance: InstanceId,
    stop: EventFd,
    stopping: AtomicBool,
    /// Who may compute hashes now.
    hashing: tree::Turns,
    connections: AtomicUsize,
    sessions: Mutex<HashMap<SessionToken, Arc<Session>>>,
    /// Everybody who is connected, to be told when the server stops.
    outgoing: Mutex<Vec<Weak<Outgoing>>>,
}

impl Server {
    /// A server of `regions`, which listens nowhere yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] if two regions have the same name, if the permissions name one that is not among
    /// them, or if they are there without the authorities that they need; whatever keeps the certificates
    /// from being used.
    pub fn new(regions: impl IntoIterator<Item = Arc<Region>>, options: ServerOptions) -> Result<Self> {
        let mut named = BTreeMap::new();
        for region in regions {
            let name = region.name().to_owned();
            if named.insert(name.clone(), region).is_some() {
                return Err(Error::new(ErrorKind::Usage, format!("two regions have the name '{name}'")));
            }
        }
        let tls = options.tls.as_ref().map(|tls| Acceptor::load(tls, Protocol::Pw)).transpose()?;
        if let Some(permissions) = &options.permissions {
            permissions.check(|name| named.contains_key(name))?;
            permissions.check_known(tls.as_ref().is_some_and(Acceptor::knows_clients))?;
        }
        let stop = EventFd::new().map_err(|error| Error::io("cannot make an event", &error))?;
        let shared = Shared {
            regions: named,
            origins: Mutex::default(),
            options,
            tls,
            instance: crate::peer::random_id(),
            stop,
            stopping: AtomicBool::new(false),
            hashing: tree::Turns::new(),
            connections: AtomicUsize::new(0),
            sessions: Mutex::default(),
            outgoing: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), listeners: Mutex::default() })
    }

    /// Listens at `address`, and answers where that is, with the real port.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] where somebody listens there already; [`ErrorKind::Usage`] for a TLS address of
    /// a server without a certificate, and for another of one that has permissions: nobody would be
    /// allowed anything there.
    pub fn listen(&self, address: &PeerAddress) -> Result<PeerAddress> {
        if self.shared.options.permissions.is_some() && !matches!(address, PeerAddress::Tls(_)) {
            let text = format!(
                "nobody shows a certificate at {address}, and so nobody would be permitted anything there: \
                 listen at pw+tls:// only"
            );
            return Err(Error::new(ErrorKind::Usage, text));
        }
        let listener = Listener::bind(address, self.shared.tls.as_ref())?;
        let bound = listener.address().clone();
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name("pw-accept".into())
            .spawn(move || shared.accept(&listener))
            .map_err(|error| Error::io("cannot start a thread", &error))?;
        self.listeners.lock().expect("no holder panics").push(thread);
        Ok(bound)
    }

    /// Offers an application's regions to be taken over, each under its name in the origin; those of the same names
    /// that the server was made with go on to be offered to readers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Usage`] where another origin has one of the names.
    pub fn offer(&self, origin: &Arc<Origin>) -> Result<()> {
        let mut origins = self.shared.origins.lock().expect("no holder panics");
        for name in origin.names() {
            if origins.contains_key(name) {
                return Err(Error::new(ErrorKind::Usage, format!("'{name}' is offered already")));
            }
        }
        origins.extend(origin.names().map(|name| (name.to_owned(), origin.clone())));
        Ok(())
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // An event that cannot be signalled is one that is signalled already.
        let _ = self.shared.stop.signal();
        for thread in self.listeners.lock().expect("no holder panics").drain(..) {
            // A listener that has panicked has stopped, too.
            let _ = thread.join();
        }
        let outgoing = std::mem::take(&mut *self.shared.outgoing.lock().expect("no holder panics"));
        for outgoing in outgoing.iter().filter_map(Weak::upgrade) {
            outgoing.goodbye("the server stops");
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &Listener) {
        loop {
            match listener.accept(&self.stop) {
                Ok(Incoming::Connection(connection)) => self.begin(connection),
                Ok(Incoming::Stop) => return,
                Err(error) => {
                    // No descriptors left, most likely; they come back when somebody leaves.
                    tracing::warn!(%error, "cannot accept a connection");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    /// Gives a connection its thread, or says that there are too many.
    fn begin(self: &Arc<Self>, connection: Connection) {
        let timeout = self.options.handshake_timeout;
        if let Err(error) = connection.set_timeouts(Some(self.options.send_timeout), Some(timeout)) {
            return tracing::debug!(%error, "a connection was lost at once");
        }
        let outgoing = Arc::new(Outgoing::new(connection));
        let count = self.connections.fetch_add(1, Ordering::Relaxed);
        let here = Here(self.clone());
        if count >= self.options.max_connections {
            tracing::warn!(peer = outgoing.peer(), count, "too many connections; one is refused");
            outgoing.refuse(&Error::new(ErrorKind::Busy, format!("{count} connections are too many")));
            return;
        }
        {
            let mut all = self.outgoing.lock().expect("no holder panics");
            all.retain(|outgoing| outgoing.strong_count() > 0);
            all.push(Arc::downgrade(&outgoing));
        }
        let shared = self.clone();
        let started = std::thread::Builder::new().name("pw-serve".into()).spawn(move || {
            connection::run(&shared, &outgoing);
            drop(here);
        });
        if let Err(error) = started {
            tracing::warn!(%error, "cannot start a thread for a connection");
        }
    }
}

/// One connection's place among those that are allowed.
struct Here(Arc<Shared>);

impl Drop for Here {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
