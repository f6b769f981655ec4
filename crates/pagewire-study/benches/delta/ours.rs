//! One delta copy between this process and a server process.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use pagewire::engine::Region;
use pagewire::engine::copy::{DeltaOptions, copy_delta};
use pagewire::store::{self, FileOptions, FileStore, RemoteOptions, Store};
use pagewire_study::bench::Failure;
use pagewire_study::server::ServerProcess;

use crate::{Cost, Direction, Setup, wire};

/// Copies what differs, and sees to it that the copy is good.
pub(crate) fn copy(setup: &Setup, direction: Direction) -> Result<Cost, Failure> {
    let namespace = Some(&setup.namespace);
    let server = match direction {
        Direction::Push => ServerProcess::start_writable(&setup.target(), Ipv4Addr::LOCALHOST, namespace)?,
        Direction::Pull => ServerProcess::start(&setup.source(), Ipv4Addr::LOCALHOST, namespace)?,
    };
    let region = server.region()?;
    let cost = setup.namespace.run(|| -> Result<Cost, Failure> {
        let (remote, before, begun) = (RemoteOptions::default(), wire()?, Instant::now());
        let (from, to): (Arc<dyn Store>, Arc<dyn Store>);
        let mut file = None;
        match direction {
            Direction::Push => {
                from = Arc::new(FileStore::open(&setup.source(), None, false)?);
                to = store::open(&region, true, &remote)?;
            }
            Direction::Pull => {
                from = store::open(&region, false, &remote)?;
                let options = FileOptions { writable: true, ..FileOptions::default() };
                let target = Arc::new(FileStore::open_with(&setup.target(), &options)?);
                to = target.clone();
                file = Some(target);
            }
        }
        let region = Region::new("source", from)?;
        copy_delta(&region, &to, &DeltaOptions::default(), |_| {})?;
        file.map_or(Ok(()), |file| file.settle())?;
        let traffic = [region.traffic(), to.traffic()];
        let frames = traffic.iter().map(|traffic| traffic.sent + traffic.received).sum();
        drop((region, to));
        Ok(Cost { seconds: begun.elapsed().as_secs_f64(), wire: wire()? - before, frames })
    })??;
    drop(server);
    // Whoever opens it next puts what was flushed in its place.
    FileStore::open(&setup.target(), None, true)?.settle()?;
    setup.check()?;
    Ok(cost)
}
