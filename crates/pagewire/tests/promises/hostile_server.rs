//! Servers that lie: a clear error within the client's patience; no panic, no hang, no wrong bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pagewire::address::PeerAddress;
use pagewire::engine::{PlainMemory, PullOptions, Puller, Region};
use pagewire::store::{self, Blocking, Read, RemoteStore, Store, Urgency};
use pagewire::{ByteRange, ErrorKind, PullOrder};
use pagewire_core::wire::{
    DataHeader, Encoding, FrameType, HEADER_LEN, Header, HelloReply, Notification, RegionInfo,
    RemoteErrorKind, Reply, Request, Trailer,
};

use crate::support::fake_server::{FakeServer, info, welcome};
use crate::support::raw::Raw;
use crate::support::recorder::Recorder;
use crate::support::{self, patient_for, pattern, region_at};

const LENGTH: u64 = 200_000;

/// What opening a region of this server ends with, and that it ends soon.
fn cannot_open(what: &str, server: &FakeServer) -> pagewire::Error {
    let address = server.address();
    let asked = Instant::now();
    let error = support::within(what, Duration::from_secs(4), move || {
        RemoteStore::connect(&region_at(&address, "file"), &patient_for(300)).err()
    });
    let error = error.unwrap_or_else(|| panic!("{what}: it was opened"));
    assert!(asked.elapsed() < Duration::from_secs(2), "{what}: after {:?}", asked.elapsed());
    assert!(!error.to_string().is_empty());
    error
}

/// What reading `range` from this server ends with, and that it ends soon.
fn cannot_read(what: &str, address: &PeerAddress, range: ByteRange) -> pagewire::Error {
    let remote = RemoteStore::connect(&region_at(address, "file"), &patient_for(300)).unwrap();
    let asked = Instant::now();
    let answer = support::within(what, Duration::from_secs(4), move || remote.read_bytes(range, 1));
    let error = answer.err().unwrap_or_else(|| panic!("{what}: it was taken for good"));
    assert!(asked.elapsed() < Duration::from_secs(2), "{what}: after {:?}", asked.elapsed());
    error
}

#[test]
fn a_server_that_does_not_speak_the_protocol_is_refused() {
    let mut wrong_magic = Vec::new();
    welcome().encode(0, &mut wrong_magic);
    wrong_magic[HEADER_LEN] = b'X';
    let mut other_version = Vec::new();
    let reply = HelloReply {
        version: pagewire_core::wire::VERSION + 1,
        features: 0,
        instance: [0; 16],
        agent: String::new(),
    };
    Reply::Hello(reply).encode(0, &mut other_version);
    let answers: [(&str, Vec<u8>); 6] = [
        ("a wrong magic", wrong_magic),
        ("a version that was not offered", other_version),
        (
            "an oversized frame",
            Header { length: u32::MAX, kind: FrameType::HELLO_REPLY, id: 0 }.encode().to_vec(),
        ),
        ("a class of no version", Header { length: 0, kind: FrameType(0xf001), id: 0 }.encode().to_vec()),
        ("an HTTP answer", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec()),
        ("another answer", {
            let mut bytes = Vec::new();
            Reply::Closed.encode(0, &mut bytes);
            bytes
        }),
    ];
    for (what, bytes) in answers {
        let server = FakeServer::talking(move |raw| {
            raw.frame();
            raw.send_bytes(&bytes);
            raw.rest();
        });
        let error = cannot_open(what, &server);
        assert_eq!(error.kind(), ErrorKind::Protocol, "{what}: {error}");
    }
}

#[test]
fn a_server_that_is_silent_or_hangs_up_is_unavailable() {
    let silent = FakeServer::talking(|raw| drop(raw.rest()));
    let error = cannot_open("silence", &silent);
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let rude = FakeServer::talking(|raw| drop(raw.frame()));
    let error = cannot_open("hanging up", &rude);
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let half = FakeServer::talking(|raw| {
        raw.frame();
        raw.answer(0, &welcome());
        raw.rest();
    });
    let error = cannot_open("silence after the greeting", &half);
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[test]
fn a_server_that_talks_without_answering_is_unavailable() {
    let chatty = FakeServer::talking(|raw| {
        raw.frame();
        let mut bytes = Vec::new();
        Notification::Goodbye { reason: "not yet".into() }.encode(&mut bytes);
        while std::io::Write::write_all(&mut raw.stream, &bytes).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let error = cannot_open("notifications without end", &chatty);
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let slow = FakeServer::talking(|raw| {
        raw.frame();
        let mut bytes = Vec::new();
        welcome().encode(0, &mut bytes);
        for byte in bytes {
            if std::io::Write::write_all(&mut raw.stream, &[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let error = cannot_open("a byte now and then", &slow);
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[test]
fn a_region_that_cannot_be_is_refused() {
    let longer = RegionInfo { capacity: 4096, ..info(8192) };
    let endless = RegionInfo { length: u64::MAX, capacity: u64::MAX, ..info(0) };
    for (what, info) in [("a length beyond the capacity", longer), ("a length of no memory", endless)] {
        let server =
            FakeServer::answering(move |raw, id, _| raw.answer(id, &Reply::Opened { handle: 1, info }));
        let error = cannot_open(what, &server);
        assert_eq!(error.kind(), ErrorKind::Protocol, "{what}: {error}");
    }
    let error_text = FakeServer::answering(|raw, id, _| {
        let error = pagewire_core::wire::RemoteError {
            kind: RemoteErrorKind::Other(999),
            retry: false,
            epoch: 0,
            text: "a kind of a later version".into(),
        };
        raw.answer(id, &Reply::Error(error));
    });
    let error = cannot_open("an error of a later version", &error_text);
    assert!(error.to_string().contains("a kind of a later version"), "{error}");
}

type Lie = Box<dyn Fn(&mut Raw, u64) + Send + Sync>;

/// What is answered to a READ of the first two pages.
fn lies() -> Vec<(&'static str, ErrorKind, Lie)> {
    let page = pattern(8192, 1);
    let (one, two, three, four, five, six) =
        (page.clone(), page.clone(), page.clone(), page.clone(), page.clone(), page);
    let first = ByteRange::new(0, 4096);
    let both = ByteRange::new(0, 8192);
    vec![
        (
            "bytes that nobody asked for",
            ErrorKind::Protocol,
            Box::new(move |raw, id| {
                raw.data(id, ByteRange::new(8192, 16384), 1, &one, None, true);
            }),
        ),
        (
            "more bytes than were asked for",
            ErrorKind::Protocol,
            Box::new(move |raw, id| {
                raw.data(id, ByteRange::new(0, 12288), 1, &[9; 12288], None, true);
            }),
        ),
        (
            "bytes of another epoch",
            ErrorKind::Protocol,
            Box::new(move |raw, id| {
                raw.data(id, both, 2, &two, None, true);
            }),
        ),
        (
            "bytes that the trailer takes back",
            ErrorKind::Changed,
            Box::new(move |raw, id| {
                raw.data(id, both, 1, &three, Some(Trailer::Failed(RemoteErrorKind::Changed)), true);
            }),
        ),
        (
            "the same page twice",
            ErrorKind::Protocol,
            Box::new(move |raw, id| {
                raw.data(id, first, 1, &four[..4096], None, false);
                raw.data(id, first, 1, &four[..4096], None, true);
            }),
        ),
        (
            "half of it, and the end",
            ErrorKind::Protocol,
            Box::new(move |raw, id| {
                raw.data(id, first, 1, &five[..4096], None, false);
                raw.answer(id, &Reply::End { sent: 4096 });
            }),
        ),
        (
            "a page in two pieces",
            ErrorKind::Protocol,
            Box::new(move |raw, id| {
                raw.data(id, ByteRange::new(0, 5000), 1, &six[..5000], None, false);
            }),
        ),
        (
            "a reply of another sort",
            ErrorKind::Protocol,
            Box::new(move |raw, id| raw.answer(id, &Reply::Closed)),
        ),
        ("silence", ErrorKind::Unavailable, Box::new(|_, _| {})),
        (
            "data of another request",
            ErrorKind::Unavailable,
            Box::new(move |raw, id| {
                raw.data(id + 1000, both, 1, &[5; 8192], None, true);
            }),
        ),
    ]
}

#[test]
fn a_read_that_is_answered_by_a_lie_fails() {
    for (what, kind, lie) in lies() {
        let server = FakeServer::of_region(LENGTH, move |raw, id, request| {
            if matches!(request, Request::Read { .. }) {
                lie(raw, id);
            }
        });
        let error = cannot_read(what, &server.address(), ByteRange::new(0, 8192));
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
}

#[test]
fn a_frame_that_cannot_be_ends_the_connection_and_the_read_fails() {
    for (what, at, value) in
        [("a length", 3, 0xff), ("a type", 5, 0xf0), ("flags", 6, 1), ("an encoding", 36, 7)]
    {
        let server = FakeServer::of_region(LENGTH, move |raw, id, request| {
            if matches!(request, Request::Read { .. }) {
                let range = ByteRange::new(0, 8192);
                let header =
                    DataHeader { range, epoch: 1, encoding: Encoding::Raw, last: true, trailer: false };
                let mut bytes = header.encode(id).to_vec();
                bytes[at] = value;
                bytes.extend([1; 8192]);
                // The client may have hung up in the middle.
                let _ = std::io::Write::write_all(&mut raw.stream, &bytes);
            }
        });
        let error = cannot_read(what, &server.address(), ByteRange::new(0, 8192));
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Protocol), "{what}: {error}");
    }
}

/// A server whose streams send what `lie` says, on whichever bulk connection asked first; READs are
/// answered as they should be.
fn lying_streams(lie: impl Fn(&mut Raw, u64) + Send + Sync + 'static) -> FakeServer {
    let bytes = pattern(LENGTH as usize, 1);
    let bulk: Arc<std::sync::Mutex<Vec<std::net::TcpStream>>> = Arc::default();
    FakeServer::talking(move |raw| {
        while let Some((header, body)) = raw.frame() {
            if header.kind.0 >> 12 != 0 {
                continue;
            }
            match Request::decode(&header, &body).unwrap() {
                Request::Hello(hello) => {
                    raw.answer(header.id, &welcome());
                    if hello.role == pagewire_core::wire::Role::Bulk {
                        bulk.lock().unwrap().push(raw.stream.try_clone().unwrap());
                    }
                }
                Request::Open { .. } => {
                    raw.answer(header.id, &Reply::Opened { handle: 1, info: info(LENGTH) });
                }
                Request::Read { ranges, .. } => {
                    let count = ranges.len();
                    for (step, range) in ranges.into_iter().enumerate() {
                        let bytes = &bytes[range.start as usize..range.end as usize];
                        raw.data(header.id, range, 1, bytes, None, step + 1 == count);
                    }
                }
                Request::Stream { .. } => {
                    support::wait_until("a bulk connection", || !bulk.lock().unwrap().is_empty());
                    let stream = bulk.lock().unwrap()[0].try_clone().unwrap();
                    lie(&mut Raw::new(stream), header.id);
                }
                _ => {}
            }
        }
    })
}

#[test]
fn lies_in_a_stream_end_the_pull_or_are_made_good_by_reads() {
    let page = |raw: &mut Raw, id, start: u64, end: u64, epoch| {
        raw.data(id, ByteRange::new(start, end), epoch, &vec![9; (end - start) as usize], None, false);
    };
    let streams: [(&str, FakeServer); 5] = [
        ("bytes past the end", lying_streams(move |raw, id| page(raw, id, 1 << 30, (1 << 30) + 4096, 1))),
        ("bytes over the end", lying_streams(move |raw, id| page(raw, id, 196_608, 204_800, 1))),
        ("bytes of another epoch", lying_streams(move |raw, id| page(raw, id, 0, 4096, 2))),
        ("a page in two pieces", lying_streams(move |raw, id| page(raw, id, 0, 5000, 1))),
        (
            "a trailer that takes back",
            lying_streams(|raw, id| {
                let range = ByteRange::new(0, 8192);
                raw.data(id, range, 1, &[9; 8192], Some(Trailer::Failed(RemoteErrorKind::Io)), false);
            }),
        ),
    ];
    let bytes = pattern(LENGTH as usize, 1);
    for (what, server) in streams {
        let remote = RemoteStore::connect(&region_at(&server.address(), "file"), &patient_for(1000)).unwrap();
        let region = Region::new("lies", Arc::new(remote)).unwrap();
        let local = Arc::new(PlainMemory::new(LENGTH));
        let order = PullOrder::Sequential;
        let options =
            PullOptions { order, heal_interval: Duration::from_millis(50), ..PullOptions::default() };
        let puller = Arc::new(Puller::start(region.pin().unwrap(), local.clone(), options).unwrap());
        // The stream has had its chance to do harm.
        std::thread::sleep(Duration::from_millis(100));
        let reading = puller.clone();
        let got = support::within(what, Duration::from_secs(4), move || {
            reading.prefault(ByteRange::new(0, LENGTH))
        });
        got.unwrap_or_else(|error| panic!("{what}: reads are answered well: {error}"));
        let mut copy = vec![0; LENGTH as usize];
        pagewire::engine::LocalCopy::read_back(&*local, 0, &mut copy).unwrap();
        assert!(copy == bytes, "{what}: wrong bytes");
    }
}

#[test]
fn another_region_after_a_reconnect_is_refused() {
    let others: [(&str, RegionInfo); 4] = [
        ("another identity", RegionInfo { id: [8; 16], ..info(LENGTH) }),
        ("another epoch", RegionInfo { epoch: 2, ..info(LENGTH) }),
        ("another length", info(LENGTH - 4096)),
        ("a greater length", info(LENGTH + 4096)),
    ];
    for (what, other) in others {
        let opened = AtomicUsize::new(0);
        let server = FakeServer::answering(move |raw, id, request| match request {
            Request::Open { .. } => {
                let first = opened.fetch_add(1, Ordering::SeqCst) == 0;
                raw.answer(id, &Reply::Opened { handle: 1, info: if first { info(LENGTH) } else { other } });
                if first {
                    // It has heard the answer when it asks something else.
                    raw.frame();
                    raw.close();
                }
            }
            Request::Read { ranges, epoch, .. } => {
                let bytes = vec![66; ranges[0].len() as usize];
                raw.data(id, ranges[0], epoch, &bytes, None, true);
            }
            _ => {}
        });
        // On the connection that is lost.
        let remote = RemoteStore::connect(&region_at(&server.address(), "file"), &patient_for(1000)).unwrap();
        let ranges = vec![ByteRange::new(0, 8192)];
        let recorder = Arc::new(Recorder::default());
        remote.read(Read { ranges, epoch: 1, urgency: Urgency::Demand, sink: recorder.clone() });
        let error = recorder.wait().expect_err(what);
        assert!(matches!(error.kind(), ErrorKind::Changed | ErrorKind::Protocol), "{what}: {error}");
        assert_eq!(remote.info().id.as_bytes(), &[7; 16], "{what}: it is still the old one that is meant");
    }
}

#[test]
fn a_list_that_does_not_go_on_is_an_error() {
    let names = |names: &[&str], more| {
        let regions = names.iter().map(|name| ((*name).to_owned(), info(1))).collect();
        Reply::List(pagewire_core::wire::ListReply { regions, more })
    };
    let lists = [
        ("the same page for ever", names(&["a", "b"], true)),
        ("more, but nothing comes", names(&[], true)),
        ("out of order", names(&["b", "a"], false)),
        ("a reply of another sort", Reply::Closed),
    ];
    for (what, list) in lists {
        let server = FakeServer::answering(move |raw, id, _| raw.answer(id, &list));
        let address = server.address();
        let error = support::within(what, Duration::from_secs(4), move || {
            store::list(&address, &patient_for(300)).unwrap_err()
        });
        assert_eq!(error.kind(), ErrorKind::Protocol, "{what}: {error}");
    }
    let silent = FakeServer::answering(|_, _, _| {});
    let (address, region) = (silent.address(), region_at(&silent.address(), "file"));
    let error = support::within("silence", Duration::from_secs(4), move || {
        store::list(&address, &patient_for(200)).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = store::describe(&region, &patient_for(200)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}
