//! TLS: what holds for every connection holds with it, however the network behaves.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use pagewire::access::serve::ServerOptions;
use pagewire::address::PeerAddress;
use pagewire::engine::Region;
use pagewire::store::{Blocking, FileStore, MemoryStore, RemoteOptions, RemoteStore, STAGED, Store, Urgency};
use pagewire::{ByteRange, Error, ErrorKind, PullOrder};

use crate::stores::{LENGTHS, check_reads, check_refuses_writes, memory, retry};
use crate::support::certificates::{Authority, anywhere_with_tls};
use crate::support::proxy::{Proxy, Weather};
use crate::support::{self, file, file_region, pattern, recorder, region_at, serve_with};

/// Tries until the network lets the region be opened.
fn open<T>(mut attempt: impl FnMut() -> Result<T, Error>) -> T {
    let mut opened = None;
    support::wait_until("the region can be opened", || {
        opened = attempt().ok();
        opened.is_some()
    });
    opened.unwrap()
}

fn place(peer: &PeerAddress) -> &str {
    let (PeerAddress::Tls(place) | PeerAddress::Tcp(place)) = peer else { panic!("a TCP peer") };
    place
}

#[test]
fn a_region_behind_tls_keeps_the_contract() {
    let authority = Authority::new();
    let (server, client) = (authority.server(), authority.client(&["alice.example"]));
    for length in LENGTHS {
        let model = pattern(length, 3);
        let file = file(&model);
        let regions = [file_region(file.path()), Region::new("memory", Arc::new(memory(&model))).unwrap()];
        let (_server, peer) = serve_with(regions, &anywhere_with_tls(), server.clone());
        let peer = peer.to_string().parse().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(RemoteStore::connect(&region_at(&peer, "file"), &client).unwrap());
        check_reads("file behind TLS", &*store, &model);
        check_reads("file behind TLS, retried", &retry(&store), &model);
        check_refuses_writes("file behind TLS", &*store);
        let store = RemoteStore::connect(&region_at(&peer, "memory"), &client).unwrap();
        check_reads("memory behind TLS", &store, &model);
    }
}

#[test]
fn a_region_behind_tls_is_written_to() {
    let authority = Authority::new();
    let length = 1 << 20;
    let region = Region::new("memory", Arc::new(MemoryStore::new(length))).unwrap();
    let (_server, peer) = serve_with([region], &anywhere_with_tls(), authority.server());
    let (region, client) = (region_at(&peer, "memory"), authority.client(&["alice.example"]));
    let writer = RemoteStore::connect_writer(&region, &client, "a test").unwrap();
    check_writes_of_one_writer(&writer, length);
    let reader = RemoteStore::connect(&region, &client).unwrap();
    let whole = ByteRange::new(0, length);
    let written = writer.read_bytes(whole, STAGED).unwrap();
    assert!(reader.read_bytes(whole, reader.info().epoch).unwrap() == written);
}

fn check_writes_of_one_writer(writer: &RemoteStore, length: u64) {
    let mut model = vec![0; length as usize];
    for (step, (offset, count)) in
        [(0, 1), (4095, 2), (65_530, 700_000), (0, length as usize)].into_iter().enumerate()
    {
        let bytes = pattern(count, step as u8);
        writer.write_bytes(offset, &bytes).unwrap();
        model[offset as usize..][..count].copy_from_slice(&bytes);
        writer.flush_all().unwrap();
        assert!(writer.read_bytes(ByteRange::new(0, length), STAGED).unwrap() == model);
    }
}

#[test]
fn a_mapping_is_right_over_tls_and_a_network_that_cuts() {
    if !support::has_userfaultfd() {
        return;
    }
    let authority = Authority::new();
    let client = authority.client(&["alice.example"]);
    let bytes = pattern((3 << 20) + 4097, 1);
    let file = file(&bytes);
    let (_server, address) = serve_with([file_region(file.path())], &anywhere_with_tls(), authority.server());
    let weather =
        Weather { cuts: 10, cut_within: 300_000, delay: Duration::from_micros(300), ..Weather::default() };
    for (seed, weather) in [(0, Weather::default()), (1, weather), (2, weather)] {
        let proxy = Proxy::new(&address, seed, weather);
        let mapping = open(|| support::map(&proxy.address(), "file", PullOrder::Sequential, &client));
        for step in 0..100usize {
            let at = step * 104_729 % bytes.len();
            assert_eq!(mapping[at], bytes[at], "seed {seed}, byte {at}");
        }
        support::wait_until("the pull is over", || mapping.progress().is_complete());
        assert!(*mapping == bytes, "seed {seed}");
        assert_eq!(proxy.cuts() > 0, weather.cuts > 0, "seed {seed}");
    }
}

#[test]
fn reads_are_right_over_tls_and_a_network_that_flips_bits() {
    let authority = Authority::new();
    let client = authority.client(&["alice.example"]);
    let bytes = pattern(2 << 20, 2);
    let file = file(&bytes);
    let (_server, address) = serve_with([file_region(file.path())], &anywhere_with_tls(), authority.server());
    for seed in 1..=3 {
        let weather = Weather { cuts: 12, cut_within: 600_000, flips: true, ..Weather::default() };
        let proxy = Proxy::new(&address, seed, weather);
        let remote = open(|| RemoteStore::connect(&region_at(&proxy.address(), "file"), &client));
        for urgency in [Urgency::Demand, Urgency::Background] {
            for step in 0..12u64 {
                let ranges = [ByteRange::new(step * 77_777, step * 77_777 + 800_000)];
                let (end, whole) = recorder::read(&remote, &ranges, urgency, &bytes);
                end.unwrap_or_else(|error| panic!("seed {seed}, {urgency:?}: {error}"));
                assert!(whole, "seed {seed}");
            }
        }
        assert!(proxy.cuts() > 0, "seed {seed}: nothing was flipped");
    }
}

#[test]
fn a_writer_goes_on_over_tls_and_a_network_that_cuts() {
    let authority = Authority::new();
    let client = authority.client(&["alice.example"]);
    let memory = Arc::new(MemoryStore::new(1 << 20));
    let region = Region::new("memory", memory.clone()).unwrap();
    let (_server, address) = serve_with([region], &anywhere_with_tls(), authority.server());
    for seed in 1..=2 {
        let weather = Weather { cuts: 12, cut_within: 6000, cut_up_within: 2 << 20, ..Weather::default() };
        let proxy = Proxy::new(&address, seed, weather);
        let region = region_at(&proxy.address(), "memory");
        let writer = open(|| RemoteStore::connect_writer(&region, &client, "a test"));
        let bytes = pattern(1 << 20, seed as u8);
        // Who writes writes again what a lost connection has left in doubt.
        support::wait_until("the write is flushed", || {
            writer.write_bytes(0, &bytes).and_then(|()| writer.flush_all()).is_ok()
        });
        let epoch = memory.info().epoch;
        assert!(memory.read_bytes(ByteRange::new(0, 1 << 20), epoch).unwrap() == bytes, "seed {seed}");
        drop(writer);
    }
}

#[test]
fn a_file_behind_tls_that_changes_is_noticed() {
    let authority = Authority::new();
    let bytes = pattern(3 << 20, 4);
    let file = file(&bytes);
    let store = Arc::new(FileStore::open(file.path(), None, false).unwrap());
    let region = Region::new("file", store).unwrap();
    let (_server, peer) = serve_with([region], &anywhere_with_tls(), authority.server());
    let remote =
        RemoteStore::connect(&region_at(&peer, "file"), &authority.client(&["alice.example"])).unwrap();
    std::fs::write(file.path(), pattern(3 << 20, 5)).unwrap();
    let (end, _) = recorder::read(&remote, &[ByteRange::new(0, 3 << 20)], Urgency::Background, &bytes);
    assert_eq!(end.unwrap_err().kind(), ErrorKind::Changed);
}

#[test]
fn who_never_ends_the_handshake_holds_up_nobody() {
    let authority = Authority::new();
    let bytes = pattern(100_000, 6);
    let file = file(&bytes);
    let options = ServerOptions { handshake_timeout: Duration::from_millis(400), ..authority.server() };
    let (server, peer) = serve_with([file_region(file.path())], &anywhere_with_tls(), options);
    let silent: Vec<TcpStream> = (0..30)
        .map(|number| {
            let mut stream = TcpStream::connect(place(&peer)).unwrap();
            // Nothing, or the beginning of a hello.
            stream.write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3][..number % 12]).unwrap();
            stream
        })
        .collect();
    let client = authority.client(&["alice.example"]);
    let remote = RemoteStore::connect(&region_at(&peer, "file"), &client).unwrap();
    assert!(remote.read_bytes(ByteRange::new(0, 100_000), 1).unwrap() == bytes);
    support::wait_until("the silent ones are gone", || server.connections() == 3);
    assert!(remote.read_bytes(ByteRange::new(0, 100_000), 1).unwrap() == bytes);
    drop((remote, silent));
    support::wait_until("all are gone", || server.connections() == 0);
}

#[test]
fn a_server_that_never_ends_the_handshake_is_given_up_on() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = PeerAddress::Tls(listener.local_addr().unwrap().to_string());
    let authority = Authority::new();
    let options =
        RemoteOptions { connect_timeout: Duration::from_millis(150), ..authority.client(&["alice.example"]) };
    let error = RemoteStore::connect(&region_at(&peer, "file"), &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.can_retry(), "{error}");
}

#[test]
fn a_server_that_stops_in_the_middle_of_handshakes_stops() {
    let authority = Authority::new();
    let file = file(&pattern(4096, 7));
    let (server, peer) = serve_with([file_region(file.path())], &anywhere_with_tls(), authority.server());
    let silent: Vec<TcpStream> = (0..5).map(|_| TcpStream::connect(place(&peer)).unwrap()).collect();
    support::wait_until("they are here", || server.connections() == 5);
    support::within("the server stops", Duration::from_secs(5), move || drop(server));
    drop(silent);
}

#[test]
fn many_clients_are_served_through_tls_at_once() {
    let authority = Authority::new();
    let bytes = pattern(1 << 20, 8);
    let file = file(&bytes);
    let options = ServerOptions { max_connections: 80, ..authority.server() };
    let (server, peer) = serve_with([file_region(file.path())], &anywhere_with_tls(), options);
    let client = RemoteOptions { connections: 1, ..authority.client(&["alice.example"]) };
    let clients: Vec<RemoteStore> = std::thread::scope(|scope| {
        let begun: Vec<_> = (0..40)
            .map(|_| scope.spawn(|| RemoteStore::connect(&region_at(&peer, "file"), &client).unwrap()))
            .collect();
        begun.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    support::wait_until("all are here", || server.connections() == 80);
    std::thread::scope(|scope| {
        for (number, client) in clients.iter().enumerate() {
            let bytes = &bytes;
            scope.spawn(move || {
                let start = number as u64 * 4096;
                let got = client.read_bytes(ByteRange::new(start, start + 500_000), 1).unwrap();
                assert!(got == bytes[start as usize..][..500_000]);
            });
        }
    });
    // One too many is lost, and may come again.
    let error = RemoteStore::connect(&region_at(&peer, "file"), &client).err().unwrap();
    assert!(error.can_retry(), "{error}");
    drop(clients);
    support::wait_until("all are gone", || server.connections() == 0);
    RemoteStore::connect(&region_at(&peer, "file"), &client).unwrap();
}
