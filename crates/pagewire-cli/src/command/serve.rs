//! `pagewire serve NAME=STORE…`.

use std::net::ToSocketAddrs;
use std::path::Path;

use anyhow::Result;
use pagewire::access::nbd::{NbdOptions, NbdServer};
use pagewire::access::serve::{Permissions, Server, ServerOptions, ServerTls};
use pagewire::address::{NbdAddress, NbdPlace, PeerAddress, StoreAddress};
use pagewire::engine::Region;
use pagewire::store::{self, ClientTls, RemoteOptions};
use pagewire::{Error, ErrorKind};

use super::Termination;
use crate::args::Serve;
use crate::output;

/// Where a server listens that is told nothing.
const DEFAULT_LISTEN: &str = "pw://127.0.0.1:7070";

pub(super) fn run(args: &Serve) -> Result<()> {
    let termination = Termination::watch()?;
    if !args.read_only && !args.insecure {
        let knows_clients = args.tls_clients.is_some();
        let peers = args.listen.iter().map(|address| (address.to_string(), Reach::of_peers(address)));
        let clients = args.nbd.iter().map(|address| (address.to_string(), Reach::of_clients(address)));
        peers.chain(clients).try_for_each(|(address, reach)| reach.check(&address, knows_clients, &WRITE))?;
    }
    let identity = args.identity.files();
    let tls = identity.clone().map(|identity| ServerTls { identity, clients: args.tls_clients.clone() });
    let permissions = args.access.as_deref().map(read_permissions).transpose()?;
    let remote = RemoteOptions {
        tls: ClientTls { authorities: args.tls_ca.clone(), identity },
        compression: args.compress,
        ..RemoteOptions::default()
    };
    let regions = args
        .offers
        .iter()
        .map(|(name, address)| Region::new(name, open(name, address, !args.read_only, &remote)?))
        .collect::<pagewire::Result<Vec<_>>>()?;
    let options = ServerOptions {
        max_connections: args.max_connections,
        read_only: args.read_only,
        lapse: args.lapse,
        compression: args.compress,
        tls,
        permissions,
        ..ServerOptions::default()
    };
    let nbd = NbdOptions {
        max_connections: options.max_connections,
        read_only: options.read_only,
        lapse: options.lapse,
        tls: options.tls.clone(),
        permissions: options.permissions.clone(),
        ..NbdOptions::default()
    };
    let by_default = args.listen.is_empty() && args.nbd.is_empty();
    let default = by_default.then(|| DEFAULT_LISTEN.parse()).transpose()?;
    let _peers = match args.listen.iter().chain(&default).collect::<Vec<_>>() {
        none if none.is_empty() => None,
        addresses => {
            let server = Server::new(regions.clone(), options)?;
            for address in addresses {
                output::line(format!("listening {}", server.listen(address)?))?;
            }
            Some(server)
        }
    };
    let _clients = match &args.nbd[..] {
        [] => None,
        addresses => {
            let server = NbdServer::new(regions, nbd)?;
            for address in addresses {
                output::line(format!("listening {}", server.listen(address)?))?;
            }
            Some(server)
        }
    };
    termination.wait()
}

fn open(
    name: &str,
    address: &StoreAddress,
    writable: bool,
    remote: &RemoteOptions,
) -> pagewire::Result<std::sync::Arc<dyn store::Store>> {
    // Whoever passes a region of a peer on would keep everybody else from writing to it.
    let writable = writable && !matches!(address, StoreAddress::Remote(_));
    store::open(address, writable, remote).map_err(|error| {
        let hint = match (writable, error.kind()) {
            (true, ErrorKind::Denied) => "; --read-only offers it to readers",
            _ => "",
        };
        error.context(format!("cannot offer '{name}'{hint}"))
    })
}

pub(super) fn read_permissions(path: &Path) -> pagewire::Result<Permissions> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::io(format!("cannot read the permissions {}", path.display()), &error))?;
    Permissions::parse(&text).map_err(|error| error.context(path.display()))
}

/// Who reaches a server at an address.
pub(super) struct Reach {
    /// Whoever reaches this host and port; none of another host where there is none.
    place: Option<String>,
    /// Only through TLS.
    by_tls: bool,
}

impl Reach {
    pub(super) fn of_peers(address: &PeerAddress) -> Self {
        let (place, by_tls) = match address {
            PeerAddress::Unix(_) => (None, false),
            PeerAddress::Tcp(place) => (Some(place.clone()), false),
            PeerAddress::Tls(place) => (Some(place.clone()), true),
        };
        Self { place, by_tls }
    }

    fn of_clients(address: &NbdAddress) -> Self {
        let place = match &address.place {
            NbdPlace::Unix(_) => None,
            NbdPlace::Tcp { host, port } if host.contains(':') => Some(format!("[{host}]:{port}")),
            NbdPlace::Tcp { host, port } => Some(format!("{host}:{port}")),
        };
        Self { place, by_tls: address.tls.is_some() }
    }
}

/// What somebody could do, and how to do without.
pub(super) struct Danger {
    pub(super) could: &'static str,
    pub(super) instead: &'static str,
}

const WRITE: Danger = Danger {
    could: "write to what is offered",
    instead: "--read-only, pw+tls:// or nbds:// with --tls-clients",
};

impl Reach {
    /// Who reaches a server that does not know its clients can do it: on this host alone, unless that is wanted.
    pub(super) fn check(&self, address: &str, knows_clients: bool, danger: &Danger) -> pagewire::Result<()> {
        let Some(place) = self.place.as_deref().filter(|_| !(self.by_tls && knows_clients)) else {
            return Ok(());
        };
        // One that has no address is told when it is listened at.
        let mut found = place.to_socket_addrs().into_iter().flatten();
        if found.all(|address| address.ip().is_loopback()) {
            return Ok(());
        }
        let Danger { could, instead } = danger;
        let text = format!(
            "whoever reaches {address} could {could}; choose {instead} to know who comes, or --insecure if that is \
             wanted"
        );
        Err(Error::new(ErrorKind::Usage, text))
    }
}
