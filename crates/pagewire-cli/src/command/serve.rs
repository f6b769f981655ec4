//! `pagewire serve NAME=STORE…`.

use std::net::ToSocketAddrs;
use std::path::Path;

use anyhow::Result;
use pagewire::access::serve::{Permissions, Server, ServerOptions, ServerTls};
use pagewire::address::{PeerAddress, StoreAddress};
use pagewire::engine::Region;
use pagewire::store::{self, ClientTls, RemoteOptions};
use pagewire::{Error, ErrorKind};

use super::Termination;
use crate::args::Serve;
use crate::output;

pub(super) fn run(args: &Serve) -> Result<()> {
    let termination = Termination::watch()?;
    if !args.read_only && !args.insecure {
        let knows_clients = args.tls_clients.is_some();
        args.listen.iter().try_for_each(|address| check_who_can_write(address, knows_clients))?;
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
    let server = Server::new(regions, options)?;
    for address in &args.listen {
        output::line(format!("listening {}", server.listen(address)?))?;
    }
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

fn read_permissions(path: &Path) -> pagewire::Result<Permissions> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::io(format!("cannot read the permissions {}", path.display()), &error))?;
    Permissions::parse(&text).map_err(|error| error.context(path.display()))
}

/// Who reaches a writable server that does not know its clients can write: on this host alone, unless that
/// is wanted.
fn check_who_can_write(address: &PeerAddress, knows_clients: bool) -> pagewire::Result<()> {
    let place = match address {
        PeerAddress::Unix(_) => return Ok(()),
        PeerAddress::Tls(_) if knows_clients => return Ok(()),
        PeerAddress::Tcp(place) | PeerAddress::Tls(place) => place,
    };
    // One that has no address is told when it is listened at.
    let mut found = place.to_socket_addrs().into_iter().flatten();
    if found.all(|address| address.ip().is_loopback()) {
        return Ok(());
    }
    let text = format!(
        "whoever reaches {address} could write to what is offered; choose --read-only, pw+tls:// with \
         --tls-clients to know who comes, or --insecure if that is wanted"
    );
    Err(Error::new(ErrorKind::Usage, text))
}
