//! Over a link of 25 ms: how near a pull comes to what TCP can, and how soon the first byte is there.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pagewire::PullOrder;
use pagewire::access::uffd::Mapping;
use pagewire::address::StoreAddress;
use pagewire::store::RemoteOptions;
use pagewire_study::link::{ADDRESS_A, ADDRESS_B, Link, LinkOptions};
use pagewire_study::server::ServerProcess;

use crate::pull::pull;
use crate::setup::{SETTLE, Setup, map_options};
use pagewire_study::bench::{Failure, Row, Target};

const ROUND_TRIP: Duration = Duration::from_millis(25);

const CONNECTIONS: usize = 4;

const CHUNK: u64 = 64 << 10;

/// The rows about the first byte, in what order is pulled and which byte is touched.
const FIRST_BYTES: [(&str, PullOrder, bool); 3] = [
    ("wan-first-byte-none", PullOrder::None, false),
    ("wan-first-byte", PullOrder::Sequential, false),
    ("wan-first-byte-middle", PullOrder::Sequential, true),
];

pub(crate) fn run(setup: &Setup) -> Result<Vec<Row>, Failure> {
    let names = ["wan-pull", "wan-open", FIRST_BYTES[0].0, FIRST_BYTES[1].0, FIRST_BYTES[2].0];
    if !setup.wants(&names) {
        return Ok(Vec::new());
    }
    let skip = std::env::var("PAGEWIRE_TEST_SKIP").unwrap_or_default();
    if skip.split(',').any(|name| name.trim() == "netns") {
        eprintln!("SKIPPED: PAGEWIRE_TEST_SKIP names netns");
        return Ok(Vec::new());
    }
    let link = Link::new(LinkOptions::new(ROUND_TRIP))?;
    let measured = link.verify()?;
    let megabytes = measured.rate as f64 / 8e6;
    eprintln!("the link: round trip {:?}, {megabytes:.0} MB/s over 8 connections", measured.round_trip);
    let server = ServerProcess::start(setup.path(), ADDRESS_A, Some(link.a()))?;
    let region = server.region()?;
    let mut rows = Vec::new();
    if setup.wants(&names[..1]) {
        rows.push(throughput(setup, &link, &region)?);
    }
    if setup.wants(&names[1..]) {
        rows.extend(first_bytes(setup, &link, &region, measured.round_trip)?);
    }
    Ok(rows)
}

fn throughput(setup: &Setup, link: &Link, region: &StoreAddress) -> Result<Row, Failure> {
    let iperf3 = Command::new("iperf3").arg("--version").stdout(Stdio::null()).status().is_ok();
    let against = if iperf3 { "iperf3 -P 4" } else { "bare TCP" };
    let mut row = Row::new("wan-pull", "MB/s", against, Target::AtLeast(0.8));
    for round in 0..setup.options.rounds {
        let pulled = link.b().run(|| pull(region, CONNECTIONS))??;
        if round == 0 {
            setup.check(&pulled.mapping)?;
        }
        drop(pulled.mapping);
        let baseline = if iperf3 {
            by_iperf3(link, setup.size())?
        } else {
            setup.size() as f64 / link.transfer(setup.size(), CONNECTIONS)?.as_secs_f64()
        };
        row.push(setup.size() as f64 / pulled.elapsed.as_secs_f64() / 1e6, baseline / 1e6);
    }
    Ok(row)
}

/// Bytes per second that iperf3 moves from a to b.
fn by_iperf3(link: &Link, bytes: u64) -> Result<f64, Failure> {
    let mut serve = Command::new("iperf3");
    serve.args(["-s", "-1"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = Ended(link.b().run(|| serve.spawn())??);
    let mut send = Command::new("iperf3");
    send.args(["-c", &ADDRESS_B.to_string(), "-n", &bytes.to_string(), "-P", &CONNECTIONS.to_string(), "-J"]);
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        // Until the server listens.
        std::thread::sleep(SETTLE);
        let output = link.a().run(|| send.output())??;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        if let Some(bits) = report["end"]["sum_received"]["bits_per_second"].as_f64() {
            server.0.wait()?;
            return Ok(bits / 8.0);
        }
        if Instant::now() > deadline {
            return Err(format!("iperf3: {}", report["error"]).into());
        }
    }
}

/// A process that is ended when this is dropped.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn first_bytes(
    setup: &Setup,
    link: &Link,
    region: &StoreAddress,
    round_trip: Duration,
) -> Result<Vec<Row>, Failure> {
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let mut open = Row::new("wan-open", "ms", "round trip", Target::AtMost(3.0));
    let mut rows = Vec::new();
    for (name, order, middle) in FIRST_BYTES {
        let mut row = Row::new(name, "ms", "round trip", Target::AtMost(1.2));
        let options = map_options(order, CHUNK)?;
        for _ in 0..setup.options.rounds {
            let (opened, touched) = link.b().run(|| {
                let start = Instant::now();
                let mapping = Mapping::open_with(region, &options, &RemoteOptions::default())?;
                let opened = start.elapsed();
                black_box(mapping[if middle { mapping.len() / 2 } else { 0 }]);
                Ok::<_, pagewire::Error>((opened, start.elapsed() - opened))
            })??;
            open.push(millis(opened), millis(round_trip));
            row.push(millis(touched), millis(round_trip));
            // What was on its way when the mapping was dropped is not to be in the next one's.
            std::thread::sleep(4 * ROUND_TRIP);
        }
        rows.push(row);
    }
    rows.insert(0, open);
    Ok(rows)
}
