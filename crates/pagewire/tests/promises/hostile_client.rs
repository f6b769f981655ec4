//! Clients that break the protocol or abuse it: each gets a clear error, and another client that
//! pulls at the same time notices nothing.

use std::sync::Arc;
use std::time::Duration;

use pagewire::ByteRange;
use pagewire::access::serve::{Server, ServerOptions};
use pagewire::address::PeerAddress;
use pagewire::engine::Region;
use pagewire::store::{Blocking, FileStore, RemoteOptions, RemoteStore};
use pagewire_core::wire::{
    DataHeader, FrameType, HEADER_LEN, Header, Hello, Notification, OpenMode, RemoteErrorKind, Reply,
    Request, Role, VERSION,
};

use crate::support::raw::{Raw, hello};
use crate::support::{self, anywhere, file, file_region, pattern, region_at, serve_with};

/// A server of one file, and a client of it that must notice nothing.
struct Stage {
    server: Server,
    address: PeerAddress,
    bytes: Vec<u8>,
    bystander: RemoteStore,
    _file: tempfile::NamedTempFile,
}

impl Stage {
    fn new(length: usize) -> Self {
        Self::with(length, ServerOptions::default())
    }

    fn with(length: usize, options: ServerOptions) -> Self {
        let bytes = pattern(length, 1);
        let file = file(&bytes);
        let (server, address) = serve_with([file_region(file.path())], &anywhere(), options);
        let bystander =
            RemoteStore::connect(&region_at(&address, "file"), &RemoteOptions::default()).unwrap();
        let connections = 1 + RemoteOptions::default().connections;
        support::wait_until("the bystander is there", || server.connections() == connections);
        Self { server, address, bytes, bystander, _file: file }
    }

    /// The bystander reads everything, right now.
    fn check(&self) {
        let whole = ByteRange::new(0, self.bytes.len() as u64);
        assert!(self.bystander.read_bytes(whole, 1).unwrap() == self.bytes);
    }

    fn opened(&self, token: u8) -> (Raw, u32) {
        let (raw, handle, _) = Raw::opened(&self.address, [token; 16], "file");
        (raw, handle)
    }
}

/// The error that a server sends before it hangs up.
fn last_word(what: &str, mut raw: Raw) -> RemoteErrorKind {
    let frames = raw.rest();
    let (header, body) = frames.last().unwrap_or_else(|| panic!("{what}: no word before the end"));
    match Reply::decode(header, body).unwrap() {
        Reply::Error(error) => {
            assert!(!error.text.is_empty());
            error.kind
        }
        other => panic!("{other:?} is no error"),
    }
}

#[test]
fn what_is_no_frame_ends_the_connection_with_an_error() {
    let stage = Stage::new(300_000);
    let mut wrong_magic = Vec::new();
    hello(Role::Primary, [1; 16]).encode(0, &mut wrong_magic);
    wrong_magic[HEADER_LEN] = b'Q';
    let oversized = |kind| Header { length: u32::MAX, kind, id: 1 }.encode().to_vec();
    let first: [(&str, Vec<u8>); 8] = [
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec()),
        ("a TLS hello", [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0xaa; 100]].concat()),
        ("zeroes", vec![0; 64]),
        ("ones", vec![0xff; 64]),
        ("a wrong magic", wrong_magic),
        ("an oversized first frame", oversized(FrameType::HELLO)),
        ("an empty HELLO", Header { length: 0, kind: FrameType::HELLO, id: 0 }.encode().to_vec()),
        ("a READ as the first frame", {
            let mut bytes = Vec::new();
            Request::Read { handle: 1, epoch: 1, ranges: vec![] }.encode(1, &mut bytes);
            bytes
        }),
    ];
    for (what, bytes) in first {
        let mut raw = Raw::connect(&stage.address);
        raw.send_bytes(&bytes);
        assert_eq!(last_word(what, raw), RemoteErrorKind::Protocol, "{what}");
        stage.check();
    }
    let later: [(&str, Vec<u8>); 6] = [
        ("an oversized READ", oversized(FrameType::READ)),
        ("an oversized unknown request", oversized(FrameType(0x0abc))),
        ("a class of no version", Header { length: 0, kind: FrameType(0x7001), id: 1 }.encode().to_vec()),
        ("flags of no version", {
            let mut bytes = Header { length: 0, kind: FrameType::PING, id: 1 }.encode().to_vec();
            bytes[6] = 1;
            bytes
        }),
        ("a READ that ends early", {
            let mut bytes = Header { length: 5, kind: FrameType::READ, id: 1 }.encode().to_vec();
            bytes.extend([0; 5]);
            bytes
        }),
        ("a READ that announces more ranges than it has", {
            let mut bytes = Header { length: 16, kind: FrameType::READ, id: 1 }.encode().to_vec();
            bytes.extend([0; 12]);
            bytes.extend(30_000u32.to_le_bytes());
            bytes
        }),
    ];
    for (what, bytes) in later {
        let (mut raw, _) = stage.opened(9);
        raw.send_bytes(&bytes);
        assert_eq!(last_word(what, raw), RemoteErrorKind::Protocol, "{what}");
        stage.check();
        support::wait_until("the session is gone", || stage.server.connections() <= 5);
    }
}

#[test]
fn a_frame_that_is_cut_off_costs_nobody_anything() {
    let stage = Stage::new(100_000);
    let before = stage.server.connections();
    let mut frames = Vec::new();
    hello(Role::Primary, [2; 16]).encode(0, &mut frames);
    Request::Open { name: "file".into(), mode: OpenMode::Read, resume: None }.encode(1, &mut frames);
    Request::Read { handle: 1, epoch: 1, ranges: vec![ByteRange::new(0, 4096)] }.encode(2, &mut frames);
    for cut in 0..frames.len() {
        let mut raw = Raw::connect(&stage.address);
        raw.send_bytes(&frames[..cut]);
        raw.close();
    }
    support::wait_until("all are gone", || stage.server.connections() <= before);
    stage.check();
}

#[test]
fn versions_that_are_not_spoken_are_refused_by_name() {
    let stage = Stage::new(4096);
    for (oldest, newest) in [(VERSION + 1, 9), (0, 0), (9, 2)] {
        let mut raw = Raw::connect(&stage.address);
        let hello = Hello { oldest, newest, ..hello(Role::Primary, [3; 16]) };
        raw.send(0, &Request::Hello(hello));
        assert_eq!(last_word("a version", raw), RemoteErrorKind::Version);
    }
    // A newer client that still speaks ours is welcome.
    let mut raw = Raw::connect(&stage.address);
    raw.send(0, &Request::Hello(Hello { newest: 77, features: u64::MAX, ..hello(Role::Primary, [3; 16]) }));
    let Reply::Hello(reply) = raw.reply(0) else { panic!("not welcome") };
    assert_eq!((reply.version, reply.features), (VERSION, 7), "the features that it knows");
    stage.check();
}

#[test]
fn a_request_that_cannot_be_done_is_answered_and_the_connection_goes_on() {
    use RemoteErrorKind::{NotFound, OutOfRange, Protocol, Stale, Unsupported};
    let length = 100_001;
    let stage = Stage::new(length as usize);
    let (mut raw, handle) = stage.opened(4);
    let range = |start, end| vec![ByteRange::new(start, end)];
    let read = |handle, epoch, ranges| Request::Read { handle, epoch, ranges };
    let stream = |handle, epoch, ranges| Request::Stream { handle, epoch, credit: 1 << 20, ranges };
    let resume = Some(([9; 16], 1));
    let requests: Vec<(Request, RemoteErrorKind)> = vec![
        (Request::Unknown(FrameType(0x0abc)), Unsupported),
        (Request::Unknown(FrameType::SUBSCRIBE), Unsupported),
        (Request::Open { name: "nothing".into(), mode: OpenMode::Read, resume: None }, NotFound),
        (
            Request::Open {
                name: "file".into(),
                mode: OpenMode::Write { token: 0, owner: "me".into() },
                resume: None,
            },
            Unsupported,
        ),
        (Request::Open { name: "file".into(), mode: OpenMode::Read, resume }, RemoteErrorKind::Changed),
        (Request::Info { name: "nothing".into() }, NotFound),
        (Request::Close { handle: handle + 1 }, NotFound),
        (Request::Refresh { handle: handle + 1 }, NotFound),
        (read(handle + 1, 1, range(0, 4096)), NotFound),
        (read(handle, 2, range(0, 4096)), Stale),
        (read(handle, 0, range(0, 4096)), Stale),
        (read(handle, 1, range(0, length + 1)), OutOfRange),
        (read(handle, 1, range(1 << 40, (1 << 40) + 4096)), OutOfRange),
        (read(handle, 1, range(1, 4096)), Protocol),
        (read(handle, 1, range(0, 4095)), Protocol),
        (read(handle, 1, range(4096, 4096)), Protocol),
        (read(handle, 1, vec![ByteRange::new(0, 4096), ByteRange::new(1, 2)]), Protocol),
        (stream(handle + 1, 1, range(0, 4096)), NotFound),
        (stream(handle, 7, range(0, 4096)), Stale),
        (stream(handle, 1, range(0, length + 1)), OutOfRange),
        (stream(handle, 1, range(1, 4096)), Protocol),
        (Request::Hello(hello(Role::Primary, [4; 16])), Protocol),
    ];
    for (id, (request, kind)) in requests.iter().enumerate() {
        let id = 100 + id as u64;
        raw.send(id, request);
        let error = raw.error(id);
        assert_eq!(error.kind, *kind, "{request:?}: {error}");
        assert!(!error.text.is_empty(), "{request:?}");
    }
    // Nothing of it, nor these notifications, has ended the connection.
    raw.send_bytes(&Header { length: 0, kind: FrameType(0x2abc), id: 0 }.encode());
    raw.notify(&Notification::Credit { stream: 12345, limit: u64::MAX });
    raw.notify(&Notification::Steer { stream: 12345, ranges: range(1, u64::MAX) });
    raw.notify(&Notification::Cancel { request: 12345 });
    raw.send_bytes(&Header { length: 8, kind: FrameType::END, id: 5 }.encode());
    raw.send_bytes(&[0; 8]);
    raw.send(7, &read(handle, 1, vec![ByteRange::new(98_304, length), ByteRange::new(0, 4096)]));
    let mut parts = raw.all_data(7);
    parts.sort_by_key(|(range, _)| range.start);
    let got: Vec<u8> = parts.into_iter().flat_map(|(_, bytes)| bytes).collect();
    assert!(got == [&stage.bytes[..4096], &stage.bytes[98_304..]].concat());
    raw.send(8, &read(handle, 1, vec![]));
    assert_eq!(raw.reply(8), Reply::End { sent: 0 });
    raw.send(9, &Request::Close { handle });
    assert_eq!(raw.reply(9), Reply::Closed);
    raw.send(10, &read(handle, 1, range(0, 4096)));
    assert_eq!(raw.error(10).kind, NotFound, "a closed handle");
    stage.check();
}

#[test]
fn a_session_has_one_primary_and_a_bounded_number_of_streams_and_regions() {
    let stage = Stage::new(1 << 20);
    let (mut raw, handle) = stage.opened(5);
    let mut second = Raw::connect(&stage.address);
    second.send(0, &Request::Hello(hello(Role::Primary, [5; 16])));
    assert_eq!(last_word("a second primary", second), RemoteErrorKind::Protocol);
    // Without a bulk connection streams wait, and so are all under way at once.
    let stream =
        Request::Stream { handle, epoch: 1, credit: 1 << 20, ranges: vec![ByteRange::new(0, 1 << 20)] };
    for id in 10..14 {
        raw.send(id, &stream);
    }
    raw.send(14, &stream);
    assert_eq!(raw.error(14).kind, RemoteErrorKind::Busy);
    raw.notify(&Notification::Cancel { request: 11 });
    assert_eq!(raw.error(11).kind, RemoteErrorKind::Cancelled);
    raw.send(15, &stream);
    raw.send(16, &Request::Ping(vec![1]));
    assert_eq!(raw.reply(16), Reply::Pong(vec![1]), "the fifth has begun now");
    let mut opened = 1;
    let refused = loop {
        raw.send(20, &Request::Open { name: "file".into(), mode: OpenMode::Read, resume: None });
        match raw.reply(20) {
            Reply::Opened { .. } => opened += 1,
            Reply::Error(error) => break error,
            other => panic!("{other:?}"),
        }
        assert!(opened < 100_000, "without bound");
    };
    assert_eq!(refused.kind, RemoteErrorKind::Busy);
    stage.check();
    drop(raw);
    support::wait_until("the session is gone", || stage.server.connections() <= 5);
    // Its token is free again.
    stage.opened(5);
}

/// What came on a bulk connection until nothing comes any more: ranges, and bytes of payload.
fn drain(bulk: &mut Raw) -> (Vec<ByteRange>, u64) {
    bulk.stream.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    let (mut ranges, mut payload) = (Vec::new(), 0);
    let mut peek = [0; 1];
    while let Ok(1..) = bulk.stream.peek(&mut peek) {
        let (_, body) = bulk.frame().unwrap();
        let (data, bytes, _) = DataHeader::decode(&body).unwrap();
        ranges.push(data.range);
        payload += bytes.len() as u64;
    }
    (ranges, payload)
}

#[test]
fn a_stream_sends_no_more_than_its_credit_and_can_be_steered_and_cancelled() {
    const EXTENT: u64 = 1 << 20;
    let length = 16u64 << 20;
    let stage = Stage::new(length as usize);
    let (mut raw, handle) = stage.opened(6);
    let mut bulk = Raw::greeted(&stage.address, Role::Bulk, [6; 16]);
    let mut another = Raw::greeted(&stage.address, Role::Bulk, [6; 16]);
    let credit = 2u64 << 20;
    raw.send(30, &Request::Stream { handle, epoch: 1, credit, ranges: vec![ByteRange::new(0, length)] });
    let ((mut ranges, one), (more, two)) = (drain(&mut bulk), drain(&mut another));
    ranges.extend(more);
    assert!(one + two >= credit, "{one} and {two} bytes of {credit}");
    assert!(one + two <= credit + EXTENT, "{one} and {two} bytes of {credit}");
    // Less credit than before takes nothing back and gives nothing.
    raw.notify(&Notification::Credit { stream: 30, limit: 1 });
    raw.notify(&Notification::Steer {
        stream: 30,
        ranges: vec![ByteRange::new(length - 65536, length), ByteRange::new(8 << 20, 9 << 20)],
    });
    raw.notify(&Notification::Credit { stream: 30, limit: one + two + 65536 });
    let ((steered, three), (more, four)) = (drain(&mut bulk), drain(&mut another));
    let first = *steered.iter().chain(&more).min_by_key(|range| range.start.abs_diff(length)).unwrap();
    assert_eq!(first, ByteRange::new(length - 65536, length), "what was steered to goes next");
    assert!(three + four <= 65536 + EXTENT);
    ranges.extend(steered);
    ranges.extend(more);
    raw.notify(&Notification::Cancel { request: 30 });
    raw.notify(&Notification::Credit { stream: 30, limit: u64::MAX });
    assert_eq!(raw.error(30).kind, RemoteErrorKind::Cancelled);
    let ((after, _), (more, _)) = (drain(&mut bulk), drain(&mut another));
    assert!(after.is_empty() && more.is_empty(), "a cancelled stream goes on");
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "something was sent twice");
    stage.check();
}

#[test]
fn a_stream_ends_with_what_it_has_sent() {
    let length = 3_000_001;
    let stage = Stage::new(length);
    let (mut raw, handle) = stage.opened(7);
    let mut bulk = Raw::greeted(&stage.address, Role::Bulk, [7; 16]);
    let ranges =
        vec![ByteRange::new(2_998_272, length as u64), ByteRange::new(0, 1 << 20), ByteRange::new(0, 4096)];
    raw.send(40, &Request::Stream { handle, epoch: 1, credit: u64::MAX, ranges });
    let Reply::End { sent } = raw.reply(40) else { panic!("no end") };
    assert_eq!(sent, (1 << 20) + length as u64 - 2_998_272, "each page once");
    let (got, payload) = drain(&mut bulk);
    assert_eq!((got[0].start, payload), (2_998_272, sent));
    stage.check();
}

#[test]
fn an_id_that_is_used_again_while_its_stream_is_on_its_way_harms_nobody() {
    let length = 64u64 << 20;
    let stage = Stage::with(
        1 << 20,
        ServerOptions { send_timeout: Duration::from_millis(500), ..ServerOptions::default() },
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(length).unwrap();
    for step in 0..length >> 16 {
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), &[1], step << 16).unwrap();
    }
    let bystander = stage;
    let (server, address) = serve_with(
        [file_region(file.path())],
        &anywhere(),
        ServerOptions { send_timeout: Duration::from_millis(500), ..ServerOptions::default() },
    );
    let (mut raw, handle, _) = Raw::opened(&address, [8; 16], "file");
    let mut bulk = Raw::greeted(&address, Role::Bulk, [8; 16]);
    let stream =
        Request::Stream { handle, epoch: 1, credit: u64::MAX, ranges: vec![ByteRange::new(0, length)] };
    raw.send(50, &stream);
    // The sender is stuck in an extent, since the peer does not read.
    std::thread::sleep(Duration::from_millis(100));
    raw.notify(&Notification::Cancel { request: 50 });
    assert_eq!(raw.error(50).kind, RemoteErrorKind::Cancelled);
    raw.send(50, &stream);
    raw.send(51, &Request::Ping(vec![]));
    assert!(matches!(raw.reply(51), Reply::Pong(_)));
    let (first, _) = drain(&mut bulk);
    assert!(!first.is_empty());
    raw.notify(&Notification::Cancel { request: 50 });
    drop((raw, bulk));
    support::wait_until("the session is gone", || server.connections() == 0);
    // The server serves others as before.
    let other = RemoteStore::connect(&region_at(&address, "file"), &RemoteOptions::default()).unwrap();
    assert_eq!(other.read_bytes(ByteRange::new(65_530, 65_540), 1).unwrap(), [0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    bystander.check();
}

#[test]
fn a_peer_that_stops_reading_is_left() {
    let options = ServerOptions { send_timeout: Duration::from_millis(200), ..ServerOptions::default() };
    let stage = Stage::with(32 << 20, options);
    let before = stage.server.connections();
    let whole = vec![ByteRange::new(0, 32 << 20)];
    let (mut reader, handle) = stage.opened(9);
    for (id, half) in [(60, ByteRange::new(0, 16 << 20)), (62, ByteRange::new(16 << 20, 32 << 20))] {
        reader.send(id, &Request::Read { handle, epoch: 1, ranges: vec![half] });
    }
    let (mut streamer, handle) = stage.opened(10);
    let _bulk = Raw::greeted(&stage.address, Role::Bulk, [10; 16]);
    streamer.send(61, &Request::Stream { handle, epoch: 1, credit: u64::MAX, ranges: whole });
    stage.check();
    // The two that do not take their bytes; the streamer's primary connection is not to blame.
    support::wait_until("both are left", || stage.server.connections() <= before + 1);
    let error = streamer.error(61);
    assert_eq!(error.kind, RemoteErrorKind::Unavailable, "{error}");
    stage.check();
}

#[test]
fn who_says_nothing_or_dribbles_is_left_after_the_handshake_timeout() {
    let options = ServerOptions { handshake_timeout: Duration::from_millis(200), ..ServerOptions::default() };
    let stage = Stage::with(4096, options);
    let silent = Raw::connect(&stage.address);
    let mut bulk = Raw::greeted(&stage.address, Role::Bulk, [11; 16]);
    let mut frames = Vec::new();
    hello(Role::Primary, [12; 16]).encode(0, &mut frames);
    let mut dribbler = Raw::connect(&stage.address);
    dribbler.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let left = frames[..frames.len() - 1].iter().any(|byte| {
        use std::io::{Read, Write};
        let sent = dribbler.stream.write_all(&[*byte]);
        let mut answer = [0; 1];
        sent.is_err() || !matches!(dribbler.stream.read(&mut answer), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    });
    assert!(left, "a byte now and then holds a connection for as long as it likes");
    let mut silent = silent;
    assert!(silent.rest().len() <= 1, "who says nothing is left");
    assert!(bulk.rest().len() <= 1, "who joins a session that nobody leads is left");
    stage.check();
}

#[test]
fn a_read_that_asks_for_too_much_is_refused() {
    let bytes = vec![1; 8192];
    let file = file(&bytes);
    file.as_file().set_len(200 << 20).unwrap();
    let region = Region::new("file", Arc::new(FileStore::open(file.path(), None, false).unwrap())).unwrap();
    let (_server, address) = support::serve([region], &anywhere());
    let (mut raw, handle, _) = Raw::opened(&address, [13; 16], "file");
    let huge = vec![ByteRange::new(0, 200 << 20)];
    let repeated = vec![ByteRange::new(0, 8192); 30_000];
    for (id, ranges) in [(70, huge), (71, repeated)] {
        raw.send(id, &Request::Read { handle, epoch: 1, ranges });
        let error = raw.error(id);
        assert!(error.text.contains("STREAM"), "{error}");
    }
    raw.send(72, &Request::Ping(vec![]));
    assert!(matches!(raw.reply(72), Reply::Pong(_)));
}

/// A client reads the reply to its HELLO before anything else, and would lose data that came earlier.
#[test]
fn a_bulk_connection_begins_with_the_reply_to_hello_though_a_stream_is_waiting() {
    let stage = Stage::new(1 << 20);
    for round in 0..40u8 {
        let (mut primary, handle) = stage.opened(round);
        let ranges = vec![ByteRange::new(0, 1 << 20)];
        primary.send(9, &Request::Stream { handle, epoch: 1, credit: 1 << 30, ranges });
        // The stream has begun when the PING behind it is answered.
        primary.send(10, &Request::Ping(vec![round]));
        assert!(matches!(primary.reply(10), Reply::Pong(_)));
        let mut bulk = Raw::connect(&stage.address);
        bulk.send(0, &Request::Hello(hello(Role::Bulk, [round; 16])));
        let (header, _) = bulk.frame().expect("a frame");
        assert_eq!(header.kind, FrameType::HELLO_REPLY, "round {round}");
        let received: u64 = bulk_bytes(&mut bulk, 1 << 20);
        assert_eq!(received, 1 << 20);
    }
    stage.check();
}

/// How many bytes of ranges the next data frames give, up to `expected`.
fn bulk_bytes(bulk: &mut Raw, expected: u64) -> u64 {
    let mut received = 0;
    while received < expected {
        let (_, body) = bulk.frame().expect("data");
        received += DataHeader::decode(&body).expect("data").0.range.len();
    }
    received
}
