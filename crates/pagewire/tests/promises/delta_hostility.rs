//! Hashes that lie, questions that nobody may ask, and peers of other versions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pagewire::access::serve::ServerOptions;
use pagewire::engine::Region;
use pagewire::engine::copy::{DeltaOptions, DeltaProgress, copy_delta};
use pagewire::store::{Blocking, MemoryStore, RemoteStore, Store};
use pagewire::{Algorithm, ByteRange, ErrorKind, Result};
use pagewire_core::delta::{Node, Scheme, TOP, span};
use pagewire_core::wire::{
    FrameType, Header, OpenMode, RegionInfo, RemoteErrorKind, Reply, Request, Role, TreeRequest,
};

use crate::support::fake_server::{FakeServer, info};
use crate::support::raw::Raw;
use crate::support::{self, anywhere, file, file_region, patient_for, pattern, region_at, serve_with};

const LENGTH: u64 = 200_000;

/// What a comparison with the region of this server ends with, and what the target holds then.
fn compared(what: &str, server: &FakeServer) -> (Result<DeltaProgress>, Vec<u8>) {
    let address = server.address();
    support::within(what, Duration::from_secs(10), move || {
        let remote: Arc<dyn Store> =
            Arc::new(RemoteStore::connect(&region_at(&address, "file"), &patient_for(500)).unwrap());
        let to = Arc::new(MemoryStore::new(LENGTH));
        to.write_bytes(0, &pattern(LENGTH as usize, 9)).unwrap();
        to.flush_all().unwrap();
        let target: Arc<dyn Store> = to.clone();
        let options = DeltaOptions { patience: Duration::from_millis(500), ..DeltaOptions::default() };
        let done = copy_delta(&Region::new("file", remote).unwrap(), &target, &options, |_| {});
        (done, to.read_bytes(ByteRange::new(0, LENGTH), to.info().epoch).unwrap())
    })
}

/// A server that can hash, and answers TREE so.
fn hashing(answer: impl Fn(&mut Raw, u64, &TreeRequest) + Send + Sync + 'static) -> FakeServer {
    FakeServer::answering(move |raw, id, request| match request {
        Request::Open { .. } => {
            let info = RegionInfo { hash: true, ..info(LENGTH) };
            raw.answer(id, &Reply::Opened { handle: 1, info });
        }
        Request::Tree(tree) => answer(raw, id, &tree),
        _ => {}
    })
}

#[test]
fn hashes_that_do_not_fit_the_question_end_the_copy_and_nothing_has_changed() {
    type Lie = fn(&mut Raw, u64, &TreeRequest);
    let lies: [(&str, ErrorKind, Lie); 6] = [
        ("none", ErrorKind::Protocol, |raw, id, _| raw.answer(id, &Reply::Nodes(Vec::new()))),
        ("one too many", ErrorKind::Protocol, |raw, id, tree| {
            raw.answer(id, &Reply::Nodes(vec![Node([1; 16]); tree.nodes() as usize + 1]));
        }),
        ("another reply", ErrorKind::Protocol, |raw, id, _| raw.answer(id, &Reply::Done)),
        ("data", ErrorKind::Protocol, |raw, id, _| {
            raw.data(id, ByteRange::new(0, 4096), 1, &[1; 4096], None, true);
        }),
        ("an error", ErrorKind::Io, |raw, id, _| {
            let error = pagewire_core::wire::RemoteError {
                kind: RemoteErrorKind::Io,
                retry: false,
                epoch: 0,
                text: "the disk is gone".into(),
            };
            raw.answer(id, &Reply::Error(error));
        }),
        ("nothing", ErrorKind::Unavailable, |_, _, _| {}),
    ];
    for (what, kind, lie) in lies {
        let (done, bytes) = compared(what, &hashing(lie));
        assert_eq!(done.err().map(|error| error.kind()), Some(kind), "{what}");
        assert!(bytes == pattern(LENGTH as usize, 9), "{what}");
    }
}

#[test]
fn a_count_that_its_body_does_not_hold_ends_the_connection() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let server = hashing(move |raw, id, _| {
        count.fetch_add(1, Ordering::SeqCst);
        let mut bytes = Header { length: 4, kind: FrameType::NODES, id }.encode().to_vec();
        bytes.extend(u32::MAX.to_le_bytes());
        // It has hung up the second time.
        let _ = std::io::Write::write_all(&mut raw.stream, &bytes);
    });
    let (done, bytes) = compared("a count", &server);
    assert_eq!(done.err().map(|error| error.kind()), Some(ErrorKind::Unavailable));
    assert!(bytes == pattern(LENGTH as usize, 9));
    assert!(asked.load(Ordering::SeqCst) > 1, "it is asked again on another connection");
}

#[test]
fn a_server_that_changes_its_mind_cannot_make_it_last() {
    // Each answer is another one: every question is about what the last one has left open, and gets smaller.
    let turn = Arc::new(AtomicUsize::new(0));
    let server = hashing(move |raw, id, tree| {
        let turn = turn.fetch_add(1, Ordering::SeqCst) as u8;
        raw.answer(id, &Reply::Nodes(vec![Node([turn | 1; 16]); tree.nodes() as usize]));
    });
    let (done, bytes) = compared("another answer each time", &server);
    // All pages differ then, and READs are not answered.
    assert_eq!(done.err().map(|error| error.kind()), Some(ErrorKind::Unavailable));
    assert!(bytes == pattern(LENGTH as usize, 9));
}

#[test]
fn a_peer_of_an_older_version_is_read_instead() {
    let bytes = pattern(LENGTH as usize, 1);
    let served = bytes.clone();
    let trees = Arc::new(AtomicUsize::new(0));
    let asked = trees.clone();
    let server = FakeServer::of_region(LENGTH, move |raw, id, request| match request {
        Request::Read { ranges, .. } => {
            for (index, range) in ranges.iter().enumerate() {
                let last = index + 1 == ranges.len();
                raw.data(id, *range, 1, &served[range.start as usize..range.end as usize], None, last);
            }
        }
        Request::Tree(_) => drop(asked.fetch_add(1, Ordering::SeqCst)),
        _ => {}
    });
    let (done, copied) = compared("an older version", &server);
    assert_eq!(done.unwrap().compared, LENGTH);
    assert!(copied == bytes);
    assert_eq!(trees.load(Ordering::SeqCst), 0, "what it does not know it is not asked for");
}

fn tree(handle: u32, epoch: u64, level: u8, ranges: Vec<ByteRange>) -> Request {
    let scheme = Scheme { algorithm: Algorithm::Xxh3, key: [5; 16] };
    Request::Tree(TreeRequest { handle, epoch, scheme, length: LENGTH, level, ranges })
}

#[test]
fn questions_get_their_answers_or_an_error_each() {
    let bytes = pattern(LENGTH as usize, 1);
    let file = file(&bytes);
    let (_server, peer) = serve_with([file_region(file.path())], &anywhere(), ServerOptions::default());
    let (mut raw, handle, info) = Raw::opened(&peer, [1; 16], "file");
    assert!(info.hash);
    let page = |page: u64| ByteRange::of_pages(page..page + 1);
    raw.send(2, &tree(handle, 1, 0, vec![page(3), page(48), page(1 << 40)]));
    let scheme = Scheme { algorithm: Algorithm::Xxh3, key: [5; 16] };
    let leaf = |page: usize| scheme.leaf(&bytes[page * 4096..(page * 4096 + 4096).min(bytes.len())]);
    assert_eq!(raw.reply(2), Reply::Nodes(vec![leaf(3), leaf(48), Node::ZERO]), "the last page is short");
    raw.send(3, &tree(handle, 1, 0, Vec::new()));
    assert_eq!(raw.reply(3), Reply::Nodes(Vec::new()));
    // Far more than there is costs nothing.
    raw.send(4, &tree(handle, 1, TOP, vec![ByteRange::new(span(TOP), 20_000 * span(TOP))]));
    assert_eq!(raw.reply(4), Reply::Nodes(vec![Node::ZERO; 19_999]));
    raw.send(5, &tree(handle + 1, 1, 0, vec![page(0)]));
    assert_eq!(raw.error(5).kind, RemoteErrorKind::NotFound);
    raw.send(6, &tree(handle, 2, 0, vec![page(0)]));
    assert_eq!(raw.error(6).kind, RemoteErrorKind::Stale);
    // A question that breaks the protocol ends the connection, and others notice nothing.
    raw.send(7, &tree(handle, 1, 1, vec![page(1)]));
    assert_eq!(raw.error(0).kind, RemoteErrorKind::Protocol);
    assert!(raw.frame().is_none());
    let (mut raw, handle, _) = Raw::opened(&peer, [2; 16], "file");
    raw.send(2, &tree(handle, 1, 0, vec![page(3)]));
    assert_eq!(raw.reply(2), Reply::Nodes(vec![leaf(3)]));
}

#[test]
fn more_questions_at_once_than_are_allowed_are_refused_and_the_rest_is_answered() {
    let bytes = pattern(3 << 20, 1);
    let file = file(&bytes);
    let (_server, peer) = serve_with([file_region(file.path())], &anywhere(), ServerOptions::default());
    let (mut raw, handle, _) = Raw::opened(&peer, [1; 16], "file");
    for id in 2..202 {
        let mut request = tree(handle, 1, TOP, vec![ByteRange::new(0, span(TOP))]);
        if let Request::Tree(tree) = &mut request {
            // Another key each time: nothing of it is known.
            tree.scheme.key = [id as u8; 16];
        }
        raw.send(id, &request);
    }
    let mut answered = 0;
    for _ in 2..202 {
        let (header, body) = raw.frame().expect("an answer to each");
        match Reply::decode(&header, &body).unwrap() {
            Reply::Nodes(nodes) if nodes.len() == 1 => answered += 1,
            Reply::Error(error) => assert_eq!((error.kind, error.retry), (RemoteErrorKind::Busy, true)),
            other => panic!("{other:?}"),
        }
    }
    assert!(answered >= 8, "{answered}");
}

#[test]
fn a_client_of_an_older_version_is_served_as_ever() {
    let bytes = pattern(LENGTH as usize, 1);
    let file = file(&bytes);
    let (_server, peer) = serve_with([file_region(file.path())], &anywhere(), ServerOptions::default());
    for newest in [1, 2] {
        let mut raw = Raw::connect(&peer);
        let hello = support::raw::hello(Role::Primary, [newest as u8; 16]);
        raw.send(0, &Request::Hello(pagewire_core::wire::Hello { oldest: 1, newest, features: !0, ..hello }));
        let Reply::Hello(reply) = raw.reply(0) else { panic!("no greeting") };
        assert_eq!(reply.version, newest);
        raw.send(1, &Request::Open { name: "file".into(), mode: OpenMode::Read, resume: None });
        let Reply::Opened { handle, .. } = raw.reply(1) else { panic!("not opened") };
        raw.send(2, &Request::Read { handle, epoch: 1, ranges: vec![ByteRange::new(0, 8192)] });
        let got: Vec<u8> = raw.all_data(2).into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert!(got == bytes[..8192]);
    }
}
