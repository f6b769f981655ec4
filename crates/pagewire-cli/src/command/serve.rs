//! `pagewire serve NAME=STORE…`.

use anyhow::Result;
use pagewire::access::serve::{Server, ServerOptions};
use pagewire::engine::Region;
use pagewire::store::{self, RemoteOptions};

use super::Termination;
use crate::args::Serve;
use crate::output;

pub(super) fn run(args: &Serve) -> Result<()> {
    let termination = Termination::watch()?;
    let regions = args
        .offers
        .iter()
        .map(|(name, address)| {
            let store = store::open(address, false, &RemoteOptions::default())
                .map_err(|error| error.context(format!("cannot offer '{name}'")))?;
            Region::new(name, store)
        })
        .collect::<pagewire::Result<Vec<_>>>()?;
    let options = ServerOptions { max_connections: args.max_connections, ..ServerOptions::default() };
    let server = Server::new(regions, options)?;
    for address in &args.listen {
        output::line(format!("listening {}", server.listen(address)?))?;
    }
    termination.wait()
}
