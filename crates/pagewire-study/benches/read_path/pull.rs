//! Whole regions, cold: how long, with how much of the processor and of memory.

use std::hint::black_box;
use std::time::{Duration, Instant};

use pagewire::PullOrder;
use pagewire::access::uffd::Mapping;
use pagewire::address::StoreAddress;
use pagewire::store::RemoteOptions;
use pagewire_study::limits;
use pagewire_study::server::ServerProcess;
use pagewire_study::usage::{self, Memory};

use crate::setup::{Setup, map_options};
use pagewire_study::bench::{Failure, Row, Target};

const CHUNK: u64 = 64 << 10;

/// A region that was pulled and read from its first page to its last.
pub(crate) struct Pulled {
    pub(crate) mapping: Mapping,
    /// From nothing to everything present and touched.
    pub(crate) elapsed: Duration,
}

/// Maps the region and touches a byte of each page in order while it is pulled in order.
pub(crate) fn pull(region: &StoreAddress, connections: usize) -> Result<Pulled, Failure> {
    pull_with(region, &RemoteOptions { connections, ..RemoteOptions::default() })
}

/// The same over a session of this kind.
pub(crate) fn pull_with(region: &StoreAddress, remote: &RemoteOptions) -> Result<Pulled, Failure> {
    let options = map_options(PullOrder::Sequential, CHUNK)?;
    let start = Instant::now();
    let mapping = Mapping::open_with(region, &options, remote)?;
    for page in mapping.chunks(pagewire_sys::PAGE_SIZE) {
        black_box(page[0]);
    }
    mapping.wait()?;
    Ok(Pulled { mapping, elapsed: start.elapsed() })
}

pub(crate) fn run(setup: &Setup) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for connections in [2, 4] {
        let names = ["pull", "cpu"].map(|name| format!("{name}-{connections}"));
        let memory = setup.wants(&["memory-client", "memory-server"]) && connections == 4;
        if setup.wants(&[&names[0], &names[1]]) || memory {
            rows.extend(rounds(setup, connections, names)?);
        }
    }
    Ok(rows)
}

fn rounds(setup: &Setup, connections: usize, names: [String; 2]) -> Result<Vec<Row>, Failure> {
    let [pull_name, cpu_name] = names;
    let mut time = Row::new(pull_name, "GB/s", "bare calls", Target::AtLeast(0.8));
    let mut cpu = Row::new(cpu_name, "s/GB", "bare calls", Target::AtMost(1.5));
    let mut client_memory = Row::new("memory-client", "MiB", "allowed", Target::AlwaysAtMost(1.0));
    let mut server_memory = Row::new("memory-server", "MiB", "allowed", Target::AlwaysAtMost(1.0));
    let allowed = (64 << 20) + setup.size() / 8192;

    let mut server = ServerProcess::start(setup.path(), std::net::Ipv4Addr::LOCALHOST, None)?;
    let region = server.region()?;
    setup.check(&pull(&region, connections)?.mapping)?;
    limits::pull(setup.path(), connections, limits::DEFAULT_BLOCK)?;
    for _ in 0..setup.options.rounds {
        usage::reset_peak()?;
        let (client_before, server_before) = (usage::own_cpu()?, server.cpu()?);
        let pulled = pull(&region, connections)?;
        let used = usage::own_cpu()? - client_before + (server.cpu()? - server_before);
        let own = Memory::of(std::process::id())?.anonymous_peak().saturating_sub(setup.size());
        let theirs = server.memory()?.peak;
        drop(pulled.mapping);
        let limit = limits::pull(setup.path(), connections, limits::DEFAULT_BLOCK)?;

        let gigabytes = setup.size() as f64 / 1e9;
        let limit_gigabytes = limit.bytes as f64 / 1e9;
        time.push(gigabytes / pulled.elapsed.as_secs_f64(), limit_gigabytes / limit.seconds);
        let limit_used = limit.client_cpu + limit.server_cpu;
        cpu.push(used.as_secs_f64() / gigabytes, limit_used.as_secs_f64() / limit_gigabytes);
        if connections == 4 {
            client_memory.push(mebibytes(own), mebibytes(allowed));
            server_memory.push(mebibytes(theirs), mebibytes(allowed));
        }
    }
    let memory = if connections == 4 { vec![client_memory, server_memory] } else { Vec::new() };
    Ok([time, cpu].into_iter().chain(memory).collect())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
