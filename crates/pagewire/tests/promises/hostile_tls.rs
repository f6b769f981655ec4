//! Clients that speak TLS well enough to be let in, and then abuse it: each loses its connection, and another
//! client notices nothing.

use std::io::Write;
use std::net::Shutdown;

use pagewire::ByteRange;
use pagewire::access::serve::Server;
use pagewire::address::PeerAddress;
use pagewire::store::{Blocking, RemoteOptions, RemoteStore};
use pagewire_core::wire::{Reply, Request, Role};

use crate::support::certificates::{Authority, anywhere_with_tls};
use crate::support::raw_tls::{Forger, RawTls};
use crate::support::{self, file, file_region, pattern, region_at, serve_with};

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

/// A server, and a client that uses it well.
struct Stage {
    server: Server,
    peer: PeerAddress,
    client: RemoteOptions,
    bytes: Vec<u8>,
    bystander: RemoteStore,
    _file: tempfile::NamedTempFile,
    _authority: Authority,
}

impl Stage {
    fn new() -> Self {
        let authority = Authority::new();
        let bytes = pattern(300_000, 1);
        let file = file(&bytes);
        let (server, peer) = serve_with([file_region(file.path())], &anywhere_with_tls(), authority.server());
        let client = authority.client(&["alice.example"]);
        let bystander = RemoteStore::connect(&region_at(&peer, "file"), &client).unwrap();
        support::wait_until("the bystander is there", || server.connections() == 3);
        Self { server, peer, client, bytes, bystander, _file: file, _authority: authority }
    }

    fn raw(&self) -> RawTls {
        let mut raw = RawTls::connect(&self.peer, &self.client, b"pw");
        assert!(matches!(raw.hello(Role::Primary, [2; 16]).unwrap(), Reply::Hello(_)));
        raw
    }

    /// The other client is served, and nobody else is left.
    fn check(&self, what: &str) {
        support::wait_until(what, || self.server.connections() == 3);
        let whole = ByteRange::new(0, self.bytes.len() as u64);
        assert!(self.bystander.read_bytes(whole, 1).unwrap() == self.bytes, "{what}");
    }
}

fn ping() -> Vec<u8> {
    let mut bytes = Vec::new();
    Request::Ping(b"still there?".to_vec()).encode(1, &mut bytes);
    bytes
}

#[test]
fn records_that_are_good_and_mean_nothing_good_end_the_connection() {
    let stage = Stage::new();
    type Abuse = fn(&mut Forger);
    let abuses: [(&str, Abuse); 10] = [
        ("a message of the handshake in pieces", |forger| forger.send(HANDSHAKE, &[24, 0])),
        ("a message in pieces, while answers are sent", |forger| {
            for _ in 0..50 {
                forger.send(DATA, &ping());
            }
            forger.send(HANDSHAKE, &[24, 0, 0]);
        }),
        ("data amid a message in pieces", |forger| {
            forger.send(HANDSHAKE, &[24, 0]);
            forger.send(DATA, &ping());
        }),
        ("a message of an unknown kind", |forger| forger.send(HANDSHAKE, &[99, 0, 0, 0])),
        ("another hello", |forger| forger.send(HANDSHAKE, &[1, 0, 0, 1, 0])),
        ("a key update that says nothing", |forger| forger.send(HANDSHAKE, &[24, 0, 0, 1, 7])),
        ("a fatal alert", |forger| forger.send(ALERT, &[2, 80])),
        ("a record that was left out", |forger| {
            forger.skip();
            forger.send(DATA, &ping());
        }),
        ("a record of an unknown kind", |forger| forger.send(99, b"?")),
        ("the end, and more after it", |forger| {
            forger.send(ALERT, &[1, 0]);
            forger.send(DATA, &ping());
        }),
    ];
    for (what, abuse) in abuses {
        let mut forger = stage.raw().forge();
        abuse(&mut forger);
        forger.wait_for_the_end(what);
        stage.check(what);
    }
}

#[test]
fn empty_records_are_nothing_and_what_comes_after_them_is_heard() {
    let stage = Stage::new();
    let mut forger = stage.raw().forge();
    for _ in 0..3000 {
        forger.send(DATA, &[]);
    }
    forger.send(DATA, b"no frame at all, and longer than the header of one");
    forger.wait_for_the_end("empty records");
    stage.check("the connection ends");
}

#[test]
fn what_is_below_tls_and_no_record_ends_the_connection() {
    let stage = Stage::new();
    for bytes in [
        &[][..],
        &[23, 3, 3, 0, 100, 1, 2, 3],
        &[23, 3, 3, 0, 20, 0],
        &[21, 3, 3, 0, 2, 1, 0],
        &[20, 3, 3, 0, 1, 1],
        &[23, 3, 3, 0xff, 0xff, 1],
        &[0xff; 50],
    ] {
        let mut forger = stage.raw().forge();
        forger.stream.write_all(bytes).unwrap();
        forger.stream.shutdown(Shutdown::Write).unwrap();
        forger.wait_for_the_end("no record");
        stage.check("the connection ends");
    }
}
