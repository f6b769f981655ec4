//! An origin that is lost after the switch loses nothing of what a witness has: every byte is there, or the migration
//! was refused before anything depended on it.

use std::sync::Arc;
use std::time::Duration;

use pagewire::access::serve::{Server, ServerOptions};
use pagewire::access::uffd::{WritableMapping, WriteOptions};
use pagewire::address::{PeerAddress, RegionAddress, StoreAddress};
use pagewire::engine::migration::{
    Destination, DestinationOptions, Goals, Live, Mode, Origin, OriginOptions, OriginState, Outcome, Witness,
};
use pagewire::engine::{PushOptions, Region};
use pagewire::store::{Blocking, MemoryStore, RemoteOptions, RemoteStore, Store};
use pagewire::{ByteRange, ErrorKind, PullOrder};

use crate::support::application::{Steps, Writer};
use crate::support::proxy::{Proxy, Weather};
use crate::support::{self, anywhere, map_options, pattern, region_at, wait_until};

const LENGTH: u64 = (6 << 20) + 5000;

const CAPACITY: u64 = LENGTH + 100_001;

fn map(region: &Arc<Region>) -> Arc<WritableMapping> {
    let push = PushOptions { interval: Some(Duration::from_millis(20)), ..PushOptions::default() };
    let map = map_options(PullOrder::Sequential);
    let options = WriteOptions { map, push, tracking: None, owner: Some("a test".into()) };
    Arc::new(WritableMapping::map(region, &options).unwrap())
}

fn start_region(name: &str, length: u64) -> Arc<Region> {
    let store = Arc::new(MemoryStore::with_capacity(length, CAPACITY));
    store.flush_all().unwrap();
    Region::new(name, store).unwrap()
}

/// Short enough for a test to wait for.
fn remote(patience: u64) -> RemoteOptions {
    RemoteOptions { connections: 2, patience: Duration::from_millis(patience), ..RemoteOptions::default() }
}

/// A host that serves a store for a witness.
struct Third {
    store: Arc<MemoryStore>,
    server: Option<Server>,
    peer: PeerAddress,
}

impl Third {
    fn new() -> Self {
        Self::with_capacity(CAPACITY)
    }

    fn with_capacity(capacity: u64) -> Self {
        // Something is there already, which is not the region's.
        let store = Arc::new(MemoryStore::with_capacity(capacity, capacity));
        store.write_bytes(0, &[0xee; 300_000]).unwrap();
        store.flush_all().unwrap();
        let server = Server::new([Region::new("third", store.clone()).unwrap()], ServerOptions::default());
        let server = server.unwrap();
        let peer = server.listen(&anywhere()).unwrap();
        Self { store, server: Some(server), peer }
    }

    fn address(&self) -> StoreAddress {
        StoreAddress::Remote(region_at(&self.peer, "third"))
    }

    fn to_write(&self, name: &str) -> (String, Witness) {
        (name.to_owned(), Witness::to_write(&self.address(), &remote(2000)))
    }

    fn to_read(&self, name: &str) -> (String, Witness) {
        (name.to_owned(), Witness::to_read(&self.address(), &remote(2000)))
    }

    /// Its server ends, and another one has its store.
    fn restart(&mut self) {
        self.server = None;
        let region = Region::new("third", self.store.clone()).unwrap();
        let server = Server::new([region], ServerOptions::default()).unwrap();
        server.listen(&self.peer).unwrap();
        self.server = Some(server);
    }

    /// It is gone, as a host that is switched off.
    fn lose(&mut self) {
        self.server = None;
    }
}

/// The host that is lost.
struct Host {
    mapping: Arc<WritableMapping>,
    writer: Writer,
    origin: Arc<Origin>,
    server: Server,
    peer: PeerAddress,
}

impl Host {
    fn new(steps: &Arc<Steps>, options: OriginOptions) -> Self {
        let mapping = map(&start_region("state", LENGTH));
        let writer = Writer::start(mapping.clone(), steps.clone(), Duration::from_micros(20));
        Self::with(mapping, writer, options, &anywhere())
    }

    fn with(
        mapping: Arc<WritableMapping>,
        writer: Writer,
        options: OriginOptions,
        listen: &PeerAddress,
    ) -> Self {
        let regions = vec![("state".to_owned(), mapping.clone() as Arc<dyn Live>)];
        let origin = Origin::new(regions, writer.application(), options).unwrap();
        let server = Server::new([], ServerOptions::default()).unwrap();
        server.offer(&origin).unwrap();
        let peer = server.listen(listen).unwrap();
        Self { mapping, writer, origin, server, peer }
    }

    fn address(&self) -> RegionAddress {
        region_at(&self.peer, "state")
    }
}

fn witnessed_by(third: &Third) -> OriginOptions {
    let witness_patience = Duration::from_millis(1500);
    OriginOptions { witnesses: vec![third.to_write("state")], witness_patience, ..OriginOptions::default() }
}

fn options(mode: Mode, third: Option<&Third>) -> DestinationOptions {
    let goals = Goals { mode, ..Goals::default() };
    let witnesses = third.map(|third| third.to_read("state")).into_iter().collect();
    DestinationOptions { goals, remote: remote(2000), witnesses, ..DestinationOptions::default() }
}

fn home() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::with_capacity(0, CAPACITY))
}

fn take_over(
    address: &RegionAddress,
    home: &Arc<MemoryStore>,
    options: DestinationOptions,
) -> Arc<Destination> {
    Destination::start(&[(address.clone(), home.clone() as Arc<dyn Store>)], options).unwrap()
}

/// Runs the application there, suspended from the beginning where nobody writes.
fn run(destination: &Destination) -> pagewire::Result<Arc<WritableMapping>> {
    let mut mapping = None;
    destination.run(|arrived| {
        mapping = Some(map(&arrived.regions[0].1));
        Ok(())
    })?;
    Ok(mapping.unwrap())
}

fn stays(host: &Host, steps: &Steps) {
    wait_until("the migration is over", || host.origin.state().state == OriginState::Running);
    let made = steps.made();
    wait_until("it runs on", || steps.made() > made + 10);
    assert!(!host.writer.is_suspended());
}

#[test]
fn an_origin_that_is_lost_after_the_switch_loses_nothing_of_what_a_witness_has() {
    if !support::has_userfaultfd() {
        return;
    }
    for (seed, mode) in [Mode::PostCopy, Mode::Hybrid, Mode::Auto, Mode::PostCopy].into_iter().enumerate() {
        let third = Third::new();
        let steps = Steps::new(support::random::seed(31 + seed as u64), LENGTH);
        let host = Host::new(&steps, witnessed_by(&third));
        let home = home();
        let destination = take_over(&host.address(), &home, options(mode, Some(&third)));
        let mapping = run(&destination).unwrap();
        let report = destination.report();
        if mode != Mode::Auto {
            assert!(report.witness.as_ref().unwrap().protects, "{report:?}");
        }
        let writer = Writer::start(mapping.clone(), steps.clone(), Duration::from_micros(50));
        // A reader waits already, every other time.
        let reader = (seed % 2 == 1).then(|| {
            let mapping = mapping.clone();
            std::thread::spawn(move || mapping.read(LENGTH - 9000, &mut [0; 9000]).unwrap())
        });
        drop(host);
        let made = steps.made();
        wait_until("it goes on", || steps.made() > made + 10);
        let done = destination.finish().unwrap();
        if let Some(reader) = reader {
            reader.join().unwrap();
        }
        assert!(done.untold, "{done:?}");
        if mode == Mode::PostCopy {
            assert!(done.witness.unwrap().moved_bytes > LENGTH / 2);
        }
        drop(writer);
        steps.check(&mapping);
        mapping.flush().unwrap();
        assert_eq!(home.info().length, LENGTH);
    }
}

#[test]
fn without_a_witness_the_loss_is_told_after_the_patience() {
    if !support::has_userfaultfd() {
        return;
    }
    let steps = Steps::new(40, LENGTH);
    let host = Host::new(&steps, OriginOptions::default());
    let home = home();
    let destination = take_over(&host.address(), &home, options(Mode::PostCopy, None));
    destination.run(|_| Ok(())).unwrap();
    drop(host);
    let error = destination.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(destination.report().witness.is_none());
}

#[test]
fn a_witness_that_is_lost_before_the_switch_ends_it_and_the_application_goes_on() {
    if !support::has_userfaultfd() {
        return;
    }
    for mode in [Mode::PostCopy, Mode::PreCopy] {
        let mut third = Third::new();
        let steps = Steps::new(41, LENGTH);
        let host = Host::new(&steps, witnessed_by(&third));
        let destination = take_over(&host.address(), &home(), options(mode, None));
        // Only the origin depends on it: it is not the destination that notices.
        third.lose();
        let error = destination.run(|_| panic!("it has moved")).unwrap_err();
        assert!(error.to_string().contains("the witness"), "{error}");
        stays(&host, &steps);
        // It can be tried again, once the witness is there.
        drop(destination);
        let again = Third::new();
        drop((host.origin, host.server));
        let host = Host::with(host.mapping, host.writer, witnessed_by(&again), &anywhere());
        let destination = take_over(&host.address(), &home(), options(mode, Some(&again)));
        let mapping = run(&destination).unwrap();
        destination.finish().unwrap();
        steps.check(&mapping);
    }
}

#[test]
fn who_switches_at_once_has_to_know_of_a_witness_that_lacks_much() {
    if !support::has_userfaultfd() {
        return;
    }
    const LONG: u64 = 24 << 20;
    let third = Third::with_capacity(LONG);
    // It takes seconds until it has a third of it.
    let slow = Weather { delay: Duration::from_millis(200), ..Weather::default() };
    let proxy = Proxy::new(&third.peer, support::random::seed(45), slow);
    let far = StoreAddress::Remote(region_at(&proxy.address(), "third"));
    let witnesses = vec![("state".to_owned(), Witness::to_write(&far, &remote(10_000)))];
    let witness_patience = Duration::from_secs(10);
    let options_of_origin = OriginOptions { witnesses, witness_patience, ..OriginOptions::default() };
    let store = Arc::new(MemoryStore::with_capacity(LONG, LONG));
    store.write_bytes(0, &pattern(LONG as usize, 45)).unwrap();
    store.flush_all().unwrap();
    let steps = Steps::new(45, LONG);
    let mapping = map(&Region::new("state", store).unwrap());
    let writer = Writer::start(mapping.clone(), steps.clone(), Duration::from_micros(20));
    let host = Host::with(mapping, writer, options_of_origin, &anywhere());
    let home = Arc::new(MemoryStore::with_capacity(0, LONG));
    let destination = take_over(&host.address(), &home, options(Mode::PostCopy, None));
    let error = destination.run(|_| panic!("it has moved")).unwrap_err();
    assert!(error.to_string().contains("which lacks"), "{error}");
    drop(destination);
    stays(&host, &steps);
}

#[test]
fn a_witness_that_is_lost_after_the_switch_is_not_missed_while_the_origin_is_there() {
    if !support::has_userfaultfd() {
        return;
    }
    let mut third = Third::new();
    let steps = Steps::new(42, LENGTH);
    let host = Host::new(&steps, witnessed_by(&third));
    let destination = take_over(&host.address(), &home(), options(Mode::PostCopy, Some(&third)));
    let mapping = run(&destination).unwrap();
    third.lose();
    let report = destination.finish().unwrap();
    assert!(!report.untold, "{report:?}");
    steps.check(&mapping);
    assert_eq!(host.origin.wait(), Outcome::Released);
}

#[test]
fn a_witness_that_does_not_protect_is_refused_before_anything_depends_on_it() {
    if !support::has_userfaultfd() {
        return;
    }
    let (third, other) = (Third::new(), Third::new());
    let steps = Steps::new(43, LENGTH);
    let host = Host::new(&steps, witnessed_by(&third));
    let refused = |host: &Host, options: DestinationOptions, expected: &str| {
        let destination = take_over(&host.address(), &home(), options);
        let error = destination.run(|_| panic!("it has moved")).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        drop(destination);
        stays(host, &steps);
    };
    for mode in [Mode::PostCopy, Mode::PreCopy] {
        refused(&host, options(mode, Some(&other)), "another store");
    }
    let mut gone = Third::new();
    let unreachable = options(Mode::PostCopy, Some(&gone));
    gone.lose();
    refused(&host, unreachable, "the witness");
    let Host { mapping, writer, origin, server, .. } = host;
    drop((origin, server));
    let host = Host::with(mapping, writer, OriginOptions::default(), &anywhere());
    refused(&host, options(Mode::PostCopy, Some(&third)), "to no witness");
    let unknown = DestinationOptions { witnesses: vec![third.to_read("x")], ..options(Mode::Auto, None) };
    let target = [(host.address(), home() as Arc<dyn Store>)];
    assert_eq!(Destination::start(&target, unknown).err().unwrap().kind(), ErrorKind::Usage);
}

#[test]
fn a_witness_that_is_too_small_or_another_writers_ends_it() {
    if !support::has_userfaultfd() {
        return;
    }
    let small = || -> pagewire::Result<Arc<dyn Store>> { Ok(Arc::new(MemoryStore::new(LENGTH / 2))) };
    let third = Third::new();
    let region = region_at(&third.peer, "third");
    let somebody = RemoteStore::connect_writer(&region, &remote(500), "somebody").unwrap();
    for (witness, expected) in
        [(Witness::opened_by("small", small), "room for"), (third.to_write("state").1, "somebody")]
    {
        let steps = Steps::new(44, LENGTH);
        let witnesses = vec![("state".to_owned(), witness)];
        let witness_patience = Duration::from_millis(300);
        let host =
            Host::new(&steps, OriginOptions { witnesses, witness_patience, ..OriginOptions::default() });
        let destination = take_over(&host.address(), &home(), options(Mode::PostCopy, None));
        let error = destination.run(|_| panic!("it has moved")).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        stays(&host, &steps);
    }
    drop(somebody);
}

#[test]
fn two_regions_have_a_witness_each() {
    if !support::has_userfaultfd() {
        return;
    }
    let thirds = [Third::new(), Third::new()];
    let lengths = [300_000u64, 2_070_001];
    let bytes = lengths.map(|length| pattern(length as usize, length as u8));
    let mappings = lengths.map(|length| map(&start_region("one", length)));
    for (mapping, bytes) in mappings.iter().zip(&bytes) {
        mapping.write(0, bytes).unwrap();
    }
    let names = ["one", "two"];
    let writer = Writer::parked(mappings[0].clone(), Steps::new(1, 4096));
    let regions = names.iter().zip(&mappings);
    let regions =
        regions.map(|(name, mapping)| ((*name).to_owned(), mapping.clone() as Arc<dyn Live>)).collect();
    let witnesses = names.iter().zip(&thirds).map(|(name, third)| third.to_write(name)).collect();
    let origin_options = OriginOptions { witnesses, ..OriginOptions::default() };
    let origin = Origin::new(regions, writer.application(), origin_options).unwrap();
    let server = Server::new([], ServerOptions::default()).unwrap();
    server.offer(&origin).unwrap();
    let peer = server.listen(&anywhere()).unwrap();
    let homes = [home(), home()];
    let targets = names.iter().zip(&homes);
    let targets: Vec<_> =
        targets.map(|(name, home)| (region_at(&peer, name), home.clone() as Arc<dyn Store>)).collect();
    let witnesses = names.iter().zip(&thirds).map(|(name, third)| third.to_read(name)).collect();
    let options = DestinationOptions { witnesses, ..options(Mode::PostCopy, None) };
    let destination = Destination::start(&targets, options).unwrap();
    destination.run(|_| Ok(())).unwrap();
    drop((server, origin, writer, mappings));
    assert!(destination.finish().unwrap().untold);
    for (home, bytes) in homes.iter().zip(bytes) {
        let info = home.info();
        assert_eq!(info.length, bytes.len() as u64);
        assert!(home.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap() == bytes);
    }
    // What a witness has is the region, too.
    for third in &thirds {
        assert!(third.store.info().length == lengths[0] || third.store.info().length == lengths[1]);
    }
}

#[test]
fn a_destination_that_is_started_again_finds_the_witness_by_its_record() {
    if !support::has_userfaultfd() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let third = Third::new();
    let steps = Steps::new(45, LENGTH);
    let record = Some(folder.path().join("arrival"));
    let host = Host::new(&steps, witnessed_by(&third));
    let (address, home) = (host.address(), home());
    let options = || DestinationOptions {
        record: record.clone(),
        remote: RemoteOptions { connect_timeout: Duration::from_secs(2), ..remote(2000) },
        ..options(Mode::PostCopy, Some(&third))
    };
    let destination = take_over(&address, &home, options());
    destination.run(|_| Ok(())).unwrap();
    drop((host, destination));
    // Before any of the rest has come, and again when everything has.
    for round in 0..3 {
        let destination = take_over(&address, &home, options());
        let mapping = run(&destination).unwrap();
        if round == 0 {
            mapping.read(LENGTH / 2, &mut [0; 70_000]).unwrap();
            mapping.flush().unwrap();
        } else {
            assert!(destination.finish().unwrap().untold);
            let recorded = pagewire::engine::migration::recorded(record.as_deref().unwrap());
            assert_eq!(recorded.unwrap().unwrap().phase, "completing");
        }
        steps.check(&mapping);
    }
}

#[test]
fn a_witness_that_has_moved_on_is_told_and_never_read() {
    if !support::has_userfaultfd() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let third = Third::new();
    let steps = Steps::new(46, LENGTH);
    let record = Some(folder.path().join("arrival"));
    let host = Host::new(&steps, witnessed_by(&third));
    let (address, home) = (host.address(), home());
    let options = || DestinationOptions { record: record.clone(), ..options(Mode::PostCopy, Some(&third)) };
    let destination = take_over(&address, &home, options());
    destination.run(|_| Ok(())).unwrap();
    drop((host, destination));
    let region = region_at(&third.peer, "third");
    let other = wait_for_lease(&region);
    other.write_bytes(0, &[7; 4096]).unwrap();
    other.flush_all().unwrap();
    drop(other);
    let target = [(address, home as Arc<dyn Store>)];
    let error = Destination::start(&target, options()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
}

/// The lease of who was killed has to lapse first.
fn wait_for_lease(region: &RegionAddress) -> RemoteStore {
    let mut taken = None;
    wait_until("the lease is free", || {
        taken = RemoteStore::connect_writer(region, &remote(2000), "another").ok();
        taken.is_some()
    });
    taken.unwrap()
}

#[test]
fn an_origin_that_comes_back_later_is_told_that_it_is_over() {
    if !support::has_userfaultfd() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let third = Third::new();
    let steps = Steps::new(47, LENGTH);
    let record = Some(folder.path().join("migration"));
    let recorded = || OriginOptions { record: record.clone(), ..witnessed_by(&third) };
    let host = Host::new(&steps, recorded());
    let destination = take_over(&host.address(), &home(), options(Mode::PostCopy, Some(&third)));
    let mapping = run(&destination).unwrap();
    let Host { mapping: old, writer, origin, server, peer } = host;
    drop((origin, server));
    assert!(destination.finish().unwrap().untold);
    steps.check(&mapping);
    let made = steps.made();
    let host = Host::with(old, writer, recorded(), &peer);
    assert!(!host.origin.may_run() && host.writer.is_suspended());
    assert_eq!(host.origin.wait(), Outcome::Released);
    assert!(host.writer.is_suspended() && steps.made() == made);
    wait_until("it is known", || !destination.report().untold);
}

/// The link is there, and nothing comes: a host that hangs, or a network that drops everything.
#[test]
fn an_origin_that_hangs_is_done_without_and_heard_again_later() {
    if !support::has_userfaultfd() {
        return;
    }
    for loses_witness in [false, true] {
        let mut third = Third::new();
        let steps = Steps::new(48, LENGTH);
        let host = Host::new(&steps, witnessed_by(&third));
        let proxy = Proxy::new(&host.peer, 1, Weather::default());
        let options = DestinationOptions {
            witness_patience: Duration::from_millis(150),
            remote: remote(10_000),
            ..options(Mode::PostCopy, Some(&third))
        };
        let address = region_at(&proxy.address(), "state");
        let destination = take_over(&address, &home(), options);
        let mapping = run(&destination).unwrap();
        proxy.stall(true);
        // Somebody waits for it, and is answered.
        let mut page = [0; 4096];
        mapping.read(LENGTH / 2, &mut page).unwrap();
        assert!(destination.report().witness.unwrap().moved_bytes > 0);
        if loses_witness {
            proxy.stall(false);
            third.lose();
            destination.finish().unwrap();
        } else {
            assert!(destination.finish().unwrap().untold);
            proxy.stall(false);
        }
        steps.check(&mapping);
        assert_eq!(host.origin.wait(), Outcome::Released);
        wait_until("it is known", || !destination.report().untold);
    }
}

#[test]
fn whichever_of_the_two_answers_over_a_network_that_cuts_every_byte_is_right() {
    if !support::has_userfaultfd() {
        return;
    }
    for round in 0..4 {
        let third = Third::new();
        let steps = Steps::new(50 + round, LENGTH);
        let host = Host::new(&steps, witnessed_by(&third));
        let weather = Weather { cuts: 14, cut_within: 900_000, ..Weather::default() };
        let proxy = Proxy::new(&host.peer, support::random::seed(70 + round), weather);
        let address = region_at(&proxy.address(), "state");
        let options = DestinationOptions { remote: remote(10_000), ..options(Mode::PostCopy, Some(&third)) };
        let destination = take_over(&address, &home(), options);
        let mapping = run(&destination).unwrap();
        let writer = Writer::start(mapping.clone(), steps.clone(), Duration::from_micros(50));
        destination.finish().unwrap();
        drop(writer);
        steps.check(&mapping);
    }
}

#[test]
fn a_witness_that_is_started_again_while_it_is_streamed_to_has_everything_all_the_same() {
    if !support::has_userfaultfd() {
        return;
    }
    for pause in [1, 10, 30] {
        let mut third = Third::new();
        let steps = Steps::new(54 + pause, LENGTH);
        let witness_patience = Duration::from_secs(20);
        let host = Host::new(&steps, OriginOptions { witness_patience, ..witnessed_by(&third) });
        let home = home();
        let destination = take_over(&host.address(), &home, options(Mode::PostCopy, Some(&third)));
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(pause));
            third.restart();
        }
        let mapping = run(&destination).unwrap();
        drop(host);
        destination.finish().unwrap();
        steps.check(&mapping);
    }
}
