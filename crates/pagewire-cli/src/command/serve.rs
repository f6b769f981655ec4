//! `pagewire serve NAME=STORE…`.

use std::net::ToSocketAddrs;

use anyhow::Result;
use pagewire::access::serve::{Server, ServerOptions};
use pagewire::address::{PeerAddress, StoreAddress};
use pagewire::engine::Region;
use pagewire::store::{self, RemoteOptions};
use pagewire::{Error, ErrorKind};

use super::Termination;
use crate::args::Serve;
use crate::output;

pub(super) fn run(args: &Serve) -> Result<()> {
    let termination = Termination::watch()?;
    if !args.read_only && !args.insecure {
        args.listen.iter().try_for_each(check_who_can_write)?;
    }
    let regions = args
        .offers
        .iter()
        .map(|(name, address)| Region::new(name, open(name, address, !args.read_only)?))
        .collect::<pagewire::Result<Vec<_>>>()?;
    let options = ServerOptions {
        max_connections: args.max_connections,
        read_only: args.read_only,
        lapse: args.lapse,
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
) -> pagewire::Result<std::sync::Arc<dyn store::Store>> {
    // Whoever passes a region of a peer on would keep everybody else from writing to it.
    let writable = writable && !matches!(address, StoreAddress::Remote(_));
    store::open(address, writable, &RemoteOptions::default()).map_err(|error| {
        let hint = match (writable, error.kind()) {
            (true, ErrorKind::Denied) => "; --read-only offers it to readers",
            _ => "",
        };
        error.context(format!("cannot offer '{name}'{hint}"))
    })
}

/// Who reaches a writable server without TLS can write: on this host alone, unless that is wanted.
fn check_who_can_write(address: &PeerAddress) -> pagewire::Result<()> {
    let PeerAddress::Tcp(place) = address else { return Ok(()) };
    // One that has no address is told when it is listened at.
    let mut found = place.to_socket_addrs().into_iter().flatten();
    if found.all(|address| address.ip().is_loopback()) {
        return Ok(());
    }
    let text = format!(
        "whoever reaches {address} could write to what is offered; \
         choose --read-only, or --insecure if that is wanted"
    );
    Err(Error::new(ErrorKind::Usage, text))
}
