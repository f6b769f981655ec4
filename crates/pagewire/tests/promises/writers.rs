//! Writing to a region of a peer: what is staged and flushed, who may, and what is lost when a
//! connection or a server is.

use std::sync::Arc;
use std::time::Duration;

use pagewire::access::serve::ServerOptions;
use pagewire::address::PeerAddress;
use pagewire::engine::Region;
use pagewire::store::{Blocking, Flush, Info, MemoryStore, RemoteOptions, RemoteStore, STAGED, Store};
use pagewire::{ByteRange, Error, ErrorKind};
use pagewire_core::wire::{OpenMode, RemoteErrorKind, Reply, Request, WriteHeader};

use crate::support::proxy::{Proxy, Weather};
use crate::support::raw::Raw;
use crate::support::{self, anywhere, patient_for, pattern, region_at, serve_with, wait_until};

const LENGTH: u64 = 1 << 20;

fn region() -> Arc<Region> {
    Region::new("memory", Arc::new(MemoryStore::with_capacity(LENGTH, 2 * LENGTH))).unwrap()
}

fn writer(peer: &PeerAddress, owner: &str) -> Result<RemoteStore, Error> {
    RemoteStore::connect_writer(&region_at(peer, "memory"), &patient_for(5000), owner)
}

fn reader(peer: &PeerAddress) -> RemoteStore {
    RemoteStore::connect(&region_at(peer, "memory"), &RemoteOptions::default()).unwrap()
}

/// A flush as a pusher submits it, which knows the stage that it has written to.
fn flush(store: &dyn Store, number: u64, stage: u64) -> Result<Info, Error> {
    let (sender, answer) = std::sync::mpsc::sync_channel(1);
    let done = Box::new(move |result| sender.send(result).unwrap());
    store.flush(Flush { number, stage, done });
    answer.recv_timeout(support::HANG).expect("the flush hangs")
}

#[test]
fn what_is_staged_is_seen_by_its_writer_alone_until_the_flush() {
    let (_server, peer) = support::serve([region()], &anywhere());
    let (writer, reader) = (writer(&peer, "one").unwrap(), reader(&peer));
    let epoch = reader.info().epoch;
    let bytes = pattern(300_000, 3);
    writer.write_bytes(5000, &bytes).unwrap();
    let range = ByteRange::new(5000, 305_000);
    assert!(writer.read_bytes(range, STAGED).unwrap() == bytes);
    assert!(reader.read_bytes(range, epoch).unwrap().iter().all(|byte| *byte == 0));
    let flushed = flush(&writer, 1, writer.stage().number).unwrap();
    assert_eq!(flushed.epoch, epoch + 1);
    assert_eq!(writer.info().epoch, epoch + 1);
    wait_until("the reader is told of the epoch", || reader.newest() == epoch + 1);
    assert_eq!(reader.info().epoch, epoch, "it is moved by nobody but itself");
    assert!(reader.read_bytes(range, epoch).unwrap().iter().all(|byte| *byte == 0));
    let changes = reader.changes(epoch).expect("known");
    assert!(changes.iter().any(|change| change.start <= 5000 && change.end >= 65536), "{changes:?}");
    assert!(ByteRange::total(&changes) < 400_000, "{changes:?}");
    assert_eq!(reader.refresh().unwrap().epoch, epoch + 1);
    assert!(reader.read_bytes(range, epoch + 1).unwrap() == bytes);
    // Again the same flush, and one with nothing to flush.
    assert_eq!(flush(&writer, 1, writer.stage().number).unwrap().epoch, epoch + 1);
    assert_eq!(flush(&writer, 2, writer.stage().number).unwrap().epoch, epoch + 1);
    // What is given up is gone.
    writer.zero_range(range).unwrap();
    writer.discard().unwrap();
    assert!(writer.read_bytes(range, STAGED).unwrap() == bytes);
}

#[test]
fn a_length_is_part_of_an_epoch_and_ends_at_the_capacity() {
    let (_server, peer) = support::serve([region()], &anywhere());
    let (writer, reader) = (writer(&peer, "one").unwrap(), reader(&peer));
    let set = |length| {
        let (sender, answer) = std::sync::mpsc::sync_channel(1);
        writer.set_length(length, Box::new(move |result| sender.send(result).unwrap()));
        answer.recv_timeout(support::HANG).unwrap()
    };
    let error = set(2 * LENGTH + 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    set(LENGTH + 10).unwrap();
    assert_eq!((writer.stage().length, reader.info().length), (LENGTH + 10, LENGTH));
    writer.write_bytes(LENGTH, &[7; 10]).unwrap();
    assert_eq!(writer.write_bytes(LENGTH + 5, &[7; 10]).unwrap_err().kind(), ErrorKind::OutOfRange);
    let first = writer.flush_all().unwrap();
    assert_eq!(first.length, LENGTH + 10);
    set(4096).unwrap();
    set(8192).unwrap();
    writer.flush_all().unwrap();
    let info = reader.refresh().unwrap();
    assert_eq!(info.length, 8192);
    assert_eq!(reader.read_bytes(ByteRange::new(0, 8192), info.epoch).unwrap(), [0; 8192]);
}

#[test]
fn a_second_writer_is_refused_with_who_holds_the_lease() {
    let (_server, peer) = support::serve([region()], &anywhere());
    let first = writer(&peer, "alice on build-7").unwrap();
    let error = writer(&peer, "bob").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.to_string().contains("alice on build-7"), "{error}");
    first.write_bytes(0, &[1; 4096]).unwrap();
    drop(first);
    // Given back, not lapsed; and what was not flushed is gone.
    let second = writer(&peer, "bob").unwrap();
    assert_eq!(second.read_bytes(ByteRange::new(0, 4096), STAGED).unwrap(), [0; 4096]);
}

#[test]
fn a_lease_lapses_and_who_lost_it_goes_on_reading() {
    let options = ServerOptions { lapse: Duration::from_millis(300), ..ServerOptions::default() };
    let (_server, peer) = serve_with([region()], &anywhere(), options);
    let proxy = Proxy::new(&peer, 1, Weather::default());
    let first = writer(&proxy.address(), "first").unwrap();
    first.write_bytes(0, &[1; 4096]).unwrap();
    first.flush_all().unwrap();
    first.write_bytes(0, &[2; 4096]).unwrap();
    proxy.stall(true);
    proxy.cut_all();
    let mut second = None;
    wait_until("the lease lapses", || {
        second = writer(&peer, "second")
            .inspect_err(|error| assert_eq!(error.kind(), ErrorKind::Busy, "{error}"))
            .ok();
        second.is_some()
    });
    let second = second.unwrap();
    assert_eq!(second.read_bytes(ByteRange::new(0, 1), STAGED).unwrap(), [1], "only what was flushed");
    proxy.stall(false);
    let mut fenced = None;
    wait_until("the first writer is told", || {
        fenced = first
            .write_bytes(0, &[3; 4096])
            .inspect_err(|error| {
                assert!(matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Unavailable), "{error}");
            })
            .err()
            .filter(|error| error.kind() == ErrorKind::Fenced);
        fenced.is_some()
    });
    assert!(fenced.unwrap().to_string().contains("second"), "it is told by whom");
    assert_eq!(flush(&first, 9, first.stage().number).unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(first.read_bytes(ByteRange::new(0, 1), STAGED).unwrap(), [1], "it still reads");
    second.write_bytes(0, &[4]).unwrap();
    second.flush_all().unwrap();
}

#[test]
fn what_a_restarted_server_has_lost_is_known() {
    let region = region();
    let (server, peer) = support::serve([region.clone()], &anywhere());
    let writer = writer(&peer, "one").unwrap();
    let stage = writer.stage().number;
    writer.write_bytes(0, &[1; 4096]).unwrap();
    drop(server);
    let (_server, _) = support::serve([region], &peer);
    wait_until("the writer is back", || writer.stage().number != stage);
    let error = flush(&writer, 1, stage).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.can_retry(), "{error}");
    writer.write_bytes(0, &[1; 4096]).unwrap();
    let info = flush(&writer, 2, writer.stage().number).unwrap();
    assert_eq!(writer.read_bytes(ByteRange::new(0, 4096), info.epoch).unwrap(), [1; 4096]);
}

#[test]
fn a_read_only_server_lets_nobody_write() {
    let options = ServerOptions { read_only: true, ..ServerOptions::default() };
    let (_server, peer) = serve_with([region()], &anywhere(), options);
    let error = writer(&peer, "one").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(!reader(&peer).info().writable);
}

#[test]
fn a_server_in_between_passes_writes_on() {
    let (_origin, origin) = support::serve([region()], &anywhere());
    let upstream = Arc::new(writer(&origin, "the server in between").unwrap());
    let between = Region::new("memory", upstream).unwrap();
    let (_server, peer) = support::serve([between], &anywhere());
    let writer = writer(&peer, "one").unwrap();
    let bytes = pattern(100_000, 8);
    writer.write_bytes(4096, &bytes).unwrap();
    let epoch = writer.flush_all().unwrap().epoch;
    let range = ByteRange::new(4096, 104_096);
    assert!(writer.read_bytes(range, STAGED).unwrap() == bytes);
    let reader = reader(&origin);
    assert_eq!(reader.info().epoch, epoch);
    assert!(reader.read_bytes(range, epoch).unwrap() == bytes);
}

#[test]
fn writes_over_a_network_that_cuts_are_what_was_flushed() {
    let region = region();
    let (_server, peer) = support::serve([region.clone()], &anywhere());
    let proxy = Proxy::new(
        &peer,
        11,
        Weather { cuts: 24, cut_within: 2000, cut_up_within: 2 << 20, ..Weather::default() },
    );
    let mut connected = None;
    wait_until("the region can be opened", || {
        connected = writer(&proxy.address(), "one").ok();
        connected.is_some()
    });
    let writer = connected.unwrap();
    for round in 1..=20u8 {
        // Everything again until all of it was flushed at one stage.
        wait_until("a round is flushed", || {
            let stage = writer.stage().number;
            let bytes = vec![round; 200_000];
            let pushed = (0..5u64).all(|part| writer.write_bytes(part * 200_000, &bytes).is_ok());
            let flushed = pushed && flush(&writer, u64::from(round), stage).is_ok();
            flushed || (writer.stage().number == stage && writer.stage().flushed >= u64::from(round))
        });
        let info = region.info();
        let pin = region.pin().unwrap();
        let bytes = reader(&peer).read_bytes(ByteRange::new(0, 1_000_000), info.epoch).unwrap();
        assert!(bytes.iter().all(|byte| *byte == round), "round {round}, epoch {}", pin.epoch());
    }
    assert!(proxy.cuts() > 5, "{} cuts", proxy.cuts());
}

#[test]
fn requests_of_writers_that_make_no_sense_are_refused() {
    let (_server, peer) = support::serve([region()], &anywhere());
    let open = |mode| Request::Open { name: "memory".into(), mode, resume: None };
    let (mut raw, read, _) = Raw::opened(&peer, [8; 16], "memory");
    raw.send(2, &open(OpenMode::Write { token: 0, owner: "raw".into() }));
    let Reply::Leased(leased) = raw.reply(2) else { panic!("no lease") };
    let write = |id, handle, start: u64, end: u64| {
        let mut frame = Vec::new();
        WriteHeader::encode(handle, &[ByteRange::new(start, end)], id, &mut frame);
        frame.resize(frame.len() + (end - start) as usize, 1);
        frame
    };
    let mut refused = |id: u64, frame: Vec<u8>, kind: RemoteErrorKind| {
        raw.send_bytes(&frame);
        let error = raw.error(id);
        assert_eq!(error.kind, kind, "request {id}: {error:?}");
    };
    let encoded = |id, request: Request| {
        let mut frame = Vec::new();
        request.encode(id, &mut frame);
        frame
    };
    let lease = leased.handle;
    refused(3, write(3, lease + 100, 0, 4096), RemoteErrorKind::NotFound);
    refused(4, write(4, read, 0, 4096), RemoteErrorKind::Unsupported);
    refused(5, write(5, lease, LENGTH - 1, LENGTH + 1), RemoteErrorKind::OutOfRange);
    refused(6, encoded(6, Request::Flush { handle: read, number: 1 }), RemoteErrorKind::Unsupported);
    refused(7, encoded(7, Request::Discard { handle: 77 }), RemoteErrorKind::NotFound);
    refused(8, encoded(8, Request::SetLength { handle: lease, length: u64::MAX }), RemoteErrorKind::NoSpace);
    let far = vec![ByteRange::new(1 << 50, (1 << 50) + 1)];
    refused(9, encoded(9, Request::Zero { handle: lease, ranges: far }), RemoteErrorKind::OutOfRange);
    refused(10, encoded(10, Request::Refresh { handle: lease }), RemoteErrorKind::Unsupported);
    let wrong = OpenMode::Write { token: leased.token + 1, owner: "raw".into() };
    refused(11, encoded(11, open(wrong)), RemoteErrorKind::Fenced);
    raw.send_bytes(&write(12, lease, 0, 4096));
    assert_eq!(raw.reply(12), Reply::Done, "the connection goes on");
    // One whose bytes are not as many as it says breaks the protocol.
    let mut short = write(13, lease, 0, 4096);
    short[0] -= 1;
    raw.send_bytes(&short);
    assert_eq!(raw.error(0).kind, RemoteErrorKind::Protocol);
}
