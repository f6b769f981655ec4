//! A region moves to another host while it is in use: nothing is lost or doubled, and one side has it at every moment.

use std::sync::Arc;
use std::time::Duration;

use pagewire::access::serve::{Server, ServerOptions};
use pagewire::access::uffd::{WritableMapping, WriteOptions};
use pagewire::address::{PeerAddress, RegionAddress};
use pagewire::engine::migration::{
    Destination, DestinationOptions, Goals, Live, MigrationAction, Mode, Origin, OriginOptions, OriginState,
    Outcome,
};
use pagewire::engine::{PushOptions, Region};
use pagewire::store::{Blocking, MemoryStore, RemoteOptions, Store, migration};
use pagewire::{ErrorKind, PullOrder};

use crate::support::application::{Steps, Writer};
use crate::support::proxy::{Proxy, Weather};
use crate::support::{self, anywhere, map_options, pattern, region_at, wait_until};

const LENGTH: u64 = (2 << 20) + 5000;

const MODES: [Mode; 4] = [Mode::Auto, Mode::PreCopy, Mode::PostCopy, Mode::Hybrid];

fn memory(length: u64) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::with_capacity(length, length + 100_001));
    store.flush_all().unwrap();
    store
}

fn map(region: &Arc<Region>) -> Arc<WritableMapping> {
    let push = PushOptions { interval: Some(Duration::from_millis(20)), ..PushOptions::default() };
    let map = map_options(PullOrder::Sequential);
    let options = WriteOptions { map, push, tracking: None, owner: Some("a test".into()) };
    Arc::new(WritableMapping::map(region, &options).unwrap())
}

/// One host: an application with a mapping, which can be taken over.
struct Host {
    mapping: Arc<WritableMapping>,
    writer: Writer,
    origin: Arc<Origin>,
    server: Server,
    peer: PeerAddress,
}

impl Host {
    fn new(region: &Arc<Region>, steps: &Arc<Steps>, options: OriginOptions) -> Self {
        let mapping = map(region);
        let writer = Writer::start(mapping.clone(), steps.clone(), Duration::from_micros(20));
        Self::with(mapping, writer, options)
    }

    fn with(mapping: Arc<WritableMapping>, writer: Writer, options: OriginOptions) -> Self {
        let regions = vec![("state".to_owned(), mapping.clone() as Arc<dyn Live>)];
        let origin = Origin::new(regions, writer.application(), options).unwrap();
        let server = Server::new([], ServerOptions::default()).unwrap();
        server.offer(&origin).unwrap();
        let peer = server.listen(&anywhere()).unwrap();
        Self { mapping, writer, origin, server, peer }
    }

    fn address(&self) -> RegionAddress {
        region_at(&self.peer, "state")
    }
}

fn start_region(length: u64) -> Arc<Region> {
    Region::new("state", memory(length)).unwrap()
}

fn quick() -> RemoteOptions {
    RemoteOptions { connections: 2, patience: Duration::from_secs(10), ..RemoteOptions::default() }
}

fn options(mode: Mode) -> DestinationOptions {
    let goals = Goals { mode, ..Goals::default() };
    DestinationOptions { goals, remote: quick(), ..DestinationOptions::default() }
}

fn take_over(address: &RegionAddress, options: DestinationOptions) -> (Arc<Destination>, Arc<MemoryStore>) {
    let home = Arc::new(MemoryStore::with_capacity(0, LENGTH + 100_001));
    let destination =
        Destination::start(&[(address.clone(), home.clone() as Arc<dyn Store>)], options).unwrap();
    (destination, home)
}

#[test]
fn an_application_moves_there_and_back_and_no_step_is_lost_or_doubled() {
    if !support::has_userfaultfd() {
        return;
    }
    let steps = Steps::new(support::random::seed(11), LENGTH);
    let mut host = Host::new(&start_region(LENGTH), &steps, OriginOptions::default());
    for turn in 0..10 {
        std::thread::sleep(Duration::from_millis(5));
        let (destination, home) = take_over(&host.address(), options(MODES[turn % MODES.len()]));
        let mut next = None;
        let report = destination
            .run(|arrived| {
                let mapping = map(&arrived.regions[0].1);
                let writer = Writer::start(mapping.clone(), steps.clone(), Duration::from_micros(20));
                next = Some((mapping, writer));
                Ok(())
            })
            .unwrap();
        assert!(host.writer.is_suspended());
        let made = steps.made();
        wait_until("it goes on at the destination", || steps.made() > made + 10);
        let done = destination.finish().unwrap();
        assert!(done.moved_bytes >= report.moved_bytes);
        assert_eq!(host.origin.wait(), Outcome::Released);
        let (mapping, writer) = next.unwrap();
        drop(host);
        host = Host::with(mapping, writer, OriginOptions::default());
        // What the new home holds is the application's, once it is flushed.
        host.mapping.flush().unwrap();
        assert_eq!(home.info().length, LENGTH);
    }
    let Host { mapping, writer, .. } = host;
    drop(writer);
    steps.check(&mapping);
    mapping.flush().unwrap();
    let mut all = vec![0; LENGTH as usize];
    mapping.read(0, &mut all).unwrap();
    let info = mapping.region().info();
    let pin = mapping.region().pin().unwrap();
    assert_eq!(pin.info().length, info.length);
}

#[test]
fn every_length_and_mode_arrives_as_it_was() {
    if !support::has_userfaultfd() {
        return;
    }
    for length in [1, 4095, 4096, 4097, 65_536, 1_000_003] {
        for mode in MODES {
            let region = start_region(length);
            let mapping = map(&region);
            let bytes = pattern(length as usize, 3);
            mapping.write(0, &bytes).unwrap();
            let steps = Steps::new(1, length);
            let writer = Writer::parked(mapping.clone(), steps);
            let host = Host::with(mapping, writer, OriginOptions::default());
            let (destination, home) = take_over(&host.address(), options(mode));
            let mut arrived_as = None;
            destination
                .run(|arrived| {
                    arrived_as = Some(map(&arrived.regions[0].1));
                    Ok(())
                })
                .unwrap();
            let mapping = arrived_as.unwrap();
            let mut found = vec![0; length as usize];
            mapping.read(0, &mut found).unwrap();
            let differs = found.iter().zip(&bytes).position(|(found, byte)| found != byte);
            assert_eq!(differs, None, "{length} bytes by {mode:?}");
            destination.finish().unwrap();
            let info = home.info();
            assert_eq!(info.length, length);
            let stored = home.read_bytes(pagewire::ByteRange::new(0, length), info.epoch).unwrap();
            assert!(stored == bytes, "{length} bytes by {mode:?} at home");
        }
    }
}

#[test]
fn a_length_that_changes_moves_too() {
    if !support::has_userfaultfd() {
        return;
    }
    for (from, to) in [(100_000, 50_001), (50_001, 100_000)] {
        let mapping = map(&start_region(from));
        let mut bytes = pattern(from as usize, 5);
        mapping.write(0, &bytes).unwrap();
        let writer = Writer::parked(mapping.clone(), Steps::new(1, 4096));
        let host = Host::with(mapping.clone(), writer, OriginOptions::default());
        let (destination, home) = take_over(&host.address(), options(Mode::Auto));
        mapping.set_length(to).unwrap();
        bytes.resize(to as usize, 0);
        let tail = pattern(1000, 6);
        mapping.write(to - 1000, &tail).unwrap();
        bytes[to as usize - 1000..].copy_from_slice(&tail);
        destination.run(|_| Ok(())).unwrap();
        destination.finish().unwrap();
        let info = home.info();
        assert_eq!(info.length, to);
        assert!(home.read_bytes(pagewire::ByteRange::new(0, to), info.epoch).unwrap() == bytes);
    }
}

#[test]
fn an_application_that_cannot_be_suspended_stays_and_can_be_moved_later() {
    if !support::has_userfaultfd() {
        return;
    }
    let steps = Steps::new(2, LENGTH);
    let host = Host::new(&start_region(LENGTH), &steps, OriginOptions::default());
    host.writer.refuse(true);
    let (destination, _) = take_over(&host.address(), options(Mode::Auto));
    let error = destination.run(|_| panic!("it has not moved")).unwrap_err();
    assert!(error.to_string().contains("it will not be suspended"), "{error}");
    let made = steps.made();
    wait_until("it runs on", || steps.made() > made + 10);
    drop(destination);
    wait_until("the migration is over", || host.origin.state().state == OriginState::Running);
    host.writer.refuse(false);
    let (destination, _) = take_over(&host.address(), options(Mode::Auto));
    let mut mapping = None;
    destination
        .run(|arrived| {
            mapping = Some(map(&arrived.regions[0].1));
            Ok(())
        })
        .unwrap();
    destination.finish().unwrap();
    steps.check(&mapping.unwrap());
}

#[test]
fn a_destination_that_is_gone_before_the_switch_is_forgotten() {
    if !support::has_userfaultfd() {
        return;
    }
    let steps = Steps::new(3, LENGTH);
    let lapse = Duration::from_millis(100);
    let host = Host::new(&start_region(LENGTH), &steps, OriginOptions { lapse, ..OriginOptions::default() });
    let (destination, _) = take_over(&host.address(), options(Mode::Auto));
    assert_eq!(host.origin.state().state, OriginState::Tracking);
    // Nobody else takes over meanwhile.
    let home: Arc<dyn Store> = Arc::new(MemoryStore::new(LENGTH + 100_001));
    let second = Destination::start(&[(host.address(), home)], options(Mode::Auto));
    assert_eq!(second.err().unwrap().kind(), ErrorKind::Busy);
    drop(destination);
    wait_until("it is forgotten", || host.origin.state().state == OriginState::Running);
    let made = steps.made();
    wait_until("it runs on", || steps.made() > made + 10);
}

#[test]
fn two_regions_of_one_application_are_taken_over_together_or_not_at_all() {
    if !support::has_userfaultfd() {
        return;
    }
    let (one, two) = (map(&start_region(300_000)), map(&start_region(70_001)));
    let (first, second) = (pattern(300_000, 1), pattern(70_001, 2));
    one.write(0, &first).unwrap();
    two.write(0, &second).unwrap();
    let writer = Writer::parked(one.clone(), Steps::new(1, 4096));
    let regions = vec![("one".to_owned(), one as Arc<dyn Live>), ("two".to_owned(), two as Arc<dyn Live>)];
    let origin = Origin::new(regions, writer.application(), OriginOptions::default()).unwrap();
    let server = Server::new([], ServerOptions::default()).unwrap();
    server.offer(&origin).unwrap();
    let peer = server.listen(&anywhere()).unwrap();
    let home = || Arc::new(MemoryStore::new(500_000));
    let homes = [home(), home()];
    let half = [(region_at(&peer, "one"), homes[0].clone() as Arc<dyn Store>)];
    let destination = Destination::start(&half, options(Mode::Auto)).unwrap();
    let error = destination.run(|_| panic!("half of it has moved")).unwrap_err();
    assert!(error.to_string().contains("two"), "{error}");
    drop(destination);
    let both: Vec<(RegionAddress, Arc<dyn Store>)> = ["one", "two"]
        .iter()
        .zip(&homes)
        .map(|(name, home)| (region_at(&peer, name), home.clone() as Arc<dyn Store>))
        .collect();
    let destination = Destination::start(&both, options(Mode::Hybrid)).unwrap();
    let report = destination
        .run(|arrived| {
            assert_eq!(arrived.regions[1].0, "two");
            Ok(())
        })
        .unwrap();
    assert_eq!(report.mode, "hybrid");
    destination.finish().unwrap();
    for (home, bytes) in homes.iter().zip([first, second]) {
        let info = home.info();
        let stored = home.read_bytes(pagewire::ByteRange::new(0, info.length), info.epoch).unwrap();
        assert!(stored == bytes);
    }
}

#[test]
fn who_has_moved_never_goes_back_and_who_asks_is_told() {
    if !support::has_userfaultfd() {
        return;
    }
    let steps = Steps::new(4, LENGTH);
    let host = Host::new(&start_region(LENGTH), &steps, OriginOptions::default());
    let ask = |action| migration(&host.address(), action, &quick());
    assert_eq!(ask(MigrationAction::Status).unwrap().state, OriginState::Running);
    let (destination, _) = take_over(&host.address(), options(Mode::PostCopy));
    assert_eq!(ask(MigrationAction::Status).unwrap().state, OriginState::Tracking);
    destination.run(|_| Ok(())).unwrap();
    wait_until("it is told", || host.origin.state().state == OriginState::Moved);
    for force in [false, true] {
        let error = ask(MigrationAction::Abort { force }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
        assert_eq!(host.origin.abort(force).unwrap_err().kind(), ErrorKind::Fenced);
    }
    assert_eq!(destination.abort().unwrap_err().kind(), ErrorKind::Fenced);
    assert!(host.writer.is_suspended());
    destination.finish().unwrap();
    assert_eq!(ask(MigrationAction::Status).unwrap().state, OriginState::Released);
    let unknown = migration(&region_at(&host.peer, "other"), MigrationAction::Status, &quick());
    assert_eq!(unknown.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn an_operator_gives_a_migration_up_before_the_switch() {
    if !support::has_userfaultfd() {
        return;
    }
    let steps = Steps::new(5, LENGTH);
    let host = Host::new(&start_region(LENGTH), &steps, OriginOptions::default());
    let (destination, _) = take_over(&host.address(), options(Mode::Auto));
    let state = migration(&host.address(), MigrationAction::Abort { force: false }, &quick()).unwrap();
    assert_eq!(state.state, OriginState::Running);
    let error = destination.run(|_| panic!("it was given up")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    let made = steps.made();
    wait_until("it runs on", || steps.made() > made + 10);
}

#[test]
fn a_migration_goes_on_over_a_network_that_cuts() {
    if !support::has_userfaultfd() {
        return;
    }
    for (round, mode) in MODES.into_iter().enumerate() {
        let steps = Steps::new(60 + round as u64, LENGTH);
        let host = Host::new(&start_region(LENGTH), &steps, OriginOptions::default());
        let weather = Weather { cuts: 12, cut_within: 600_000, ..Weather::default() };
        let proxy = Proxy::new(&host.peer, support::random::seed(7 + round as u64), weather);
        let address = region_at(&proxy.address(), "state");
        let (destination, _) = take_over(&address, options(mode));
        let mut next = None;
        destination
            .run(|arrived| {
                let mapping = map(&arrived.regions[0].1);
                let writer = Writer::start(mapping.clone(), steps.clone(), Duration::from_micros(50));
                next = Some((mapping, writer));
                Ok(())
            })
            .unwrap();
        destination.finish().unwrap();
        let (mapping, writer) = next.unwrap();
        drop(writer);
        steps.check(&mapping);
        assert_eq!(host.origin.state().state, OriginState::Released);
    }
}

#[test]
fn the_server_of_an_origin_is_away_while_the_rest_comes() {
    if !support::has_userfaultfd() {
        return;
    }
    let steps = Steps::new(8, LENGTH);
    let Host { mapping, writer, origin, server, peer } =
        Host::new(&start_region(LENGTH), &steps, OriginOptions::default());
    let (destination, _) = take_over(&region_at(&peer, "state"), options(Mode::PostCopy));
    let mut next = None;
    destination
        .run(|arrived| {
            next = Some(map(&arrived.regions[0].1));
            Ok(())
        })
        .unwrap();
    drop(server);
    let rest = std::thread::spawn(move || destination.finish().map(drop));
    std::thread::sleep(Duration::from_millis(50));
    let server = Server::new([], ServerOptions::default()).unwrap();
    server.offer(&origin).unwrap();
    server.listen(&peer).unwrap();
    rest.join().unwrap().unwrap();
    steps.check(&next.unwrap());
    assert_eq!(origin.wait(), Outcome::Released);
    drop((mapping, writer));
}
