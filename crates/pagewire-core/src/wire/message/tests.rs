//! Every message survives the wire, and no bytes from a stranger do harm.

use super::*;
use crate::chunk::ByteRange;
use crate::delta::{Algorithm, Node, Scheme, TOP, span};
use crate::wire::{Class, MAX_NAME, MAX_NODES};
use proptest::prelude::*;

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9/äß ]{0,40}"
}

fn ranges() -> impl Strategy<Value = Vec<ByteRange>> {
    proptest::collection::vec(
        (0u64..1 << 50, 0u64..1 << 40).prop_map(|(start, length)| ByteRange::new(start, start + length)),
        0..20,
    )
}

fn hello() -> impl Strategy<Value = Hello> {
    (any::<(u16, u16, u64, [u8; 16], bool)>(), name()).prop_map(
        |((oldest, newest, features, session, bulk), agent)| Hello {
            oldest,
            newest,
            features,
            session,
            role: if bulk { Role::Bulk } else { Role::Primary },
            agent,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        hello().prop_map(Request::Hello),
        proptest::collection::vec(any::<u8>(), 0..=64).prop_map(Request::Ping),
        name().prop_map(|after| Request::List { after }),
        (name(), any::<(Option<u64>, Option<[u8; 16]>)>(), name(), any::<Option<([u8; 16], u64)>>())
            .prop_map(|(name, mode, owner, resume)| {
                let mode = match mode {
                    (Some(token), _) => OpenMode::Write { token, owner },
                    (None, Some(id)) => OpenMode::Move { id, owner },
                    (None, None) => OpenMode::Read,
                };
                Request::Open { name, mode, resume }
            }),
        any::<(u32, u64)>().prop_map(|(handle, since)| Request::Changes { handle, since }),
        any::<(u32, u64)>().prop_map(|(handle, length)| Request::SetLength { handle, length }),
        any::<(u32, u64)>().prop_map(|(handle, number)| Request::Flush { handle, number }),
        any::<u32>().prop_map(|handle| Request::Discard { handle }),
        (any::<u32>(), ranges()).prop_map(|(handle, ranges)| Request::Zero { handle, ranges }),
        any::<u32>().prop_map(|handle| Request::Close { handle }),
        name().prop_map(|name| Request::Info { name }),
        (any::<(u32, u64)>(), ranges()).prop_map(|((handle, epoch), ranges)| Request::Read {
            handle,
            epoch,
            ranges
        }),
        (any::<(u32, u64, u64)>(), ranges()).prop_map(|((handle, epoch, credit), ranges)| Request::Stream {
            handle,
            epoch,
            credit,
            ranges
        }),
        any::<u32>().prop_map(|handle| Request::Refresh { handle }),
        tree(),
        (any::<u32>(), step(), set_stream()).prop_map(|(handle, step, pages)| {
            let pages = pages.filter(|_| step.takes_set());
            Request::Migrate(MigrateRequest { handle, step, pages })
        }),
        (name(), action()).prop_map(|(name, action)| Request::Migration { name, action }),
        Just(Request::Unknown(FrameType::SUBSCRIBE)),
    ]
}

fn step() -> impl Strategy<Value = MigrateStep> {
    prop_oneof![
        Just(MigrateStep::Look),
        (1..=u64::MAX).prop_map(|number| MigrateStep::Round { number }),
        (1..=u64::MAX).prop_map(|number| MigrateStep::Switch { number }),
        (1..=u64::MAX).prop_map(|token| MigrateStep::Accept { token }),
        Just(MigrateStep::Abort),
        (1..=u64::MAX).prop_map(|token| MigrateStep::Complete { token }),
    ]
}

fn set_stream() -> impl Strategy<Value = Option<SetStream>> {
    proptest::option::of((1..=u64::MAX, any::<u64>()).prop_map(|(id, credit)| SetStream { id, credit }))
}

fn action() -> impl Strategy<Value = MigrationAction> {
    prop_oneof![
        Just(MigrationAction::Status),
        any::<bool>().prop_map(|force| MigrationAction::Abort { force }),
    ]
}

fn origin_state() -> impl Strategy<Value = OriginState> {
    proptest::sample::select(vec![
        OriginState::Running,
        OriginState::Tracking,
        OriginState::Offered,
        OriginState::Moved,
        OriginState::Released,
    ])
}

fn migrated() -> impl Strategy<Value = Reply> {
    let witness = (any::<[u8; 16]>(), any::<[u64; 3]>())
        .prop_map(|(store, [epoch, missing, sent])| Witnessed { store, epoch, missing, sent });
    (origin_state(), any::<[u64; 3]>(), proptest::option::of(witness), set()).prop_map(
        |(state, [token, written, micros], witness, (length, ranges))| {
            Reply::Migrated(Migrated { state, token, length, written, micros, witness, ranges })
        },
    )
}

/// A region's length, and pages of it.
fn set() -> impl Strategy<Value = (u64, Vec<ByteRange>)> {
    let runs = proptest::collection::vec((1..1u64 << 20, 1..1u64 << 30), 0..20);
    (runs, 0..2u64, 0..5000u64).prop_map(|(runs, first, behind)| {
        let mut end = 0;
        let mut ranges = Vec::new();
        for (index, (gap, pages)) in runs.into_iter().enumerate() {
            let start = end + if index == 0 { gap * first } else { gap };
            end = start + pages;
            ranges.push(ByteRange::of_pages(start..end));
        }
        // The last page may be cut, and there may be more of the region.
        let length = end * 4096 - 4096.min(end * 4096) + behind;
        let length = if ranges.is_empty() { behind } else { length.max(1 + (end - 1) * 4096) };
        (length, ranges.iter().map(|range| range.clamp_to(length)).collect())
    })
}

#[test]
fn sets_of_pages_that_there_cannot_be_are_refused() {
    let all = |length: u64, ranges: Vec<ByteRange>| {
        let (state, witness) = (OriginState::Tracking, None);
        let mut bytes = Vec::new();
        Reply::Migrated(Migrated { state, token: 0, length, written: 0, micros: 0, witness, ranges })
            .encode(1, &mut bytes);
        bytes
    };
    let whole = all(8192 + 1, vec![ByteRange::new(4096, 8193)]);
    let is_read = |bytes: &[u8]| {
        let (header, body) = split(bytes);
        Reply::decode(&header, body).is_ok()
    };
    assert!(is_read(&whole));
    // Behind the count of runs: 1 page is left out, 2 are written.
    let at = whole.len() - 2;
    assert_eq!(whole[at..], [1, 2]);
    for bad in [[1, 3], [2, 2], [1, 0], [0x81, 0x80]] {
        let mut bytes = whole.clone();
        bytes[at..].copy_from_slice(&bad);
        assert!(!is_read(&bytes), "{bad:?}");
    }
    // Two runs that are one, and numbers that are too large.
    for runs in [&[0, 1, 0, 1][..], &[0xff; 40], &[0x80; 40]] {
        let mut bytes = all(1 << 30, Vec::new());
        let count = bytes.len() - 4;
        bytes[count] = 2;
        bytes.extend_from_slice(runs);
        let header = Header::decode(bytes.first_chunk().expect("a header")).expect("a good header");
        let header = Header { length: (bytes.len() - HEADER_LEN) as u32, ..header };
        assert!(Reply::decode(&header, &bytes[HEADER_LEN..]).is_err(), "{runs:?}");
    }
}

fn migration() -> impl Strategy<Value = Reply> {
    (origin_state(), any::<[u8; 16]>(), name(), name()).prop_map(|(state, id, destination, text)| {
        let destination = destination.chars().take(20).collect();
        Reply::Migration(MigrationState { state, id, destination, text })
    })
}

#[test]
fn steps_actions_and_modes_that_there_are_not_are_refused() {
    let mut bytes = Vec::new();
    let look = MigrateRequest { handle: 1, step: MigrateStep::Look, pages: None };
    Request::Migrate(look).encode(1, &mut bytes);
    let is_refused = |bytes: &[u8]| {
        let (header, body) = split(bytes);
        Request::decode(&header, body).is_err()
    };
    for (step, argument) in [(6, 0), (0, 1), (1, 0), (2, 0), (3, 0), (4, 9), (5, 0), (255, 0)] {
        let mut bad = bytes.clone();
        (bad[HEADER_LEN + 4], bad[HEADER_LEN + 5]) = (step, argument);
        assert!(is_refused(&bad), "step {step} with {argument}");
    }
    // A stream of no set, and one that is none.
    for (step, stream, credit) in [(0, 7, 0), (0, 7, 1), (3, 7, 1), (1, 0, 1), (2, 0, 1)] {
        let mut bad = bytes.clone();
        (bad[HEADER_LEN + 4], bad[HEADER_LEN + 5]) = (step, u8::from(step > 0));
        (bad[HEADER_LEN + 13], bad[HEADER_LEN + 21]) = (stream, credit);
        assert!(is_refused(&bad), "stream {stream} of credit {credit} for step {step}");
    }
    let mut bytes = Vec::new();
    let request = Request::Migration { name: "r".into(), action: MigrationAction::Status };
    request.encode(1, &mut bytes);
    *bytes.last_mut().unwrap() = 3;
    let (header, body) = split(&bytes);
    assert!(Request::decode(&header, body).is_err());
    let mut bytes = Vec::new();
    Request::Open { name: "r".into(), mode: OpenMode::Read, resume: None }.encode(1, &mut bytes);
    bytes[HEADER_LEN + 3] = 3;
    let (header, body) = split(&bytes);
    assert!(Request::decode(&header, body).is_err());
}

fn tree() -> impl Strategy<Value = Request> {
    let fields = any::<(u32, u64, bool, [u8; 16], u64)>();
    (fields, 0..=TOP, proptest::collection::vec((0u64..9, 1u64..9), 0..20)).prop_map(
        |((handle, epoch, blake3, key, length), level, gaps)| {
            let mut at = 0;
            let range = |(gap, nodes)| {
                let start = at + gap * span(level);
                at = start + nodes * span(level);
                ByteRange::new(start, at)
            };
            let ranges = gaps.into_iter().map(range).collect();
            let algorithm = if blake3 { Algorithm::Blake3 } else { Algorithm::Xxh3 };
            let scheme = Scheme { algorithm, key };
            Request::Tree(TreeRequest { handle, epoch, scheme, length, level, ranges })
        },
    )
}

#[test]
fn hashes_of_no_nodes_and_too_many_of_them_are_refused() {
    let scheme = Scheme { algorithm: Algorithm::Xxh3, key: [7; 16] };
    let decoded = |level, ranges: &[(u64, u64)]| {
        let ranges = ranges.iter().map(|&(from, to)| ByteRange::new(from, to)).collect();
        let request = Request::Tree(TreeRequest { handle: 1, epoch: 1, scheme, length: 0, level, ranges });
        let mut bytes = Vec::new();
        request.encode(1, &mut bytes);
        let (header, body) = split(&bytes);
        Request::decode(&header, body).is_ok()
    };
    let most = MAX_NODES as u64 * 4096;
    assert!(decoded(0, &[(0, most)]));
    assert!(!decoded(0, &[(0, most), (most + 4096, most + 8192)]), "too many");
    assert!(!decoded(0, &[(0, 4095)]) && !decoded(1, &[(0, 4096)]), "no node");
    assert!(!decoded(0, &[(4096, 8192), (0, 4096)]) && !decoded(0, &[(0, 8192), (4096, 8192)]), "no order");
    assert!(!decoded(0, &[(4096, 4096)]), "empty");
    assert!(decoded(TOP, &[(0, 1 << 40)]));
    let mut bytes = Vec::new();
    let request = TreeRequest { handle: 1, epoch: 1, scheme, length: 0, level: 0, ranges: Vec::new() };
    Request::Tree(request).encode(1, &mut bytes);
    for (at, value) in [(HEADER_LEN + 12, 3), (HEADER_LEN + 12, 0), (HEADER_LEN + 12 + 1 + 16 + 8, TOP + 1)] {
        let mut bad = bytes.clone();
        bad[at] = value;
        let (header, body) = split(&bad);
        assert!(Request::decode(&header, body).is_err(), "byte {at} = {value}");
    }
}

fn info() -> impl Strategy<Value = RegionInfo> {
    (any::<([u8; 16], u64, u32, bool, bool, bool)>(), 0u64..1 << 40, 0u64..1 << 40).prop_map(
        |((id, epoch, granularity, read_only, commit, hash), length, more)| RegionInfo {
            id,
            epoch,
            length,
            capacity: length + more,
            granularity,
            read_only,
            commit,
            hash,
        },
    )
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        (any::<(u16, u64, [u8; 16])>(), name()).prop_map(|((version, features, instance), agent)| {
            Reply::Hello(HelloReply { version, features, instance, agent })
        }),
        proptest::collection::vec(any::<u8>(), 0..=64).prop_map(Reply::Pong),
        (proptest::collection::vec((name(), info()), 0..20), any::<bool>())
            .prop_map(|(regions, more)| Reply::List(ListReply { regions, more })),
        (any::<u32>(), info()).prop_map(|(handle, info)| Reply::Opened { handle, info }),
        Just(Reply::Closed),
        info().prop_map(Reply::Info),
        any::<u64>().prop_map(|sent| Reply::End { sent }),
        (any::<(u32, u64, u32, u64, u64)>(), info()).prop_map(
            |((handle, token, lapse, stage, flushed), info)| {
                Reply::Leased(Leased { handle, token, lapse, stage, flushed, info })
            }
        ),
        Just(Reply::Done),
        info().prop_map(Reply::Flushed),
        (any::<u64>(), proptest::option::of(ranges()))
            .prop_map(|(epoch, ranges)| Reply::Changed { epoch, ranges }),
        proptest::collection::vec(any::<[u8; 16]>(), 0..50)
            .prop_map(|nodes| Reply::Nodes(nodes.into_iter().map(Node).collect())),
        migrated(),
        migration(),
        (any::<(u16, bool, u64)>(), name()).prop_map(|((code, retry, epoch), text)| {
            Reply::Error(RemoteError { kind: RemoteErrorKind::from_code(code), retry, epoch, text })
        }),
    ]
}

fn notification() -> impl Strategy<Value = Notification> {
    prop_oneof![
        any::<(u64, u64)>().prop_map(|(stream, limit)| Notification::Credit { stream, limit }),
        (any::<u64>(), ranges()).prop_map(|(stream, ranges)| Notification::Steer { stream, ranges }),
        any::<u64>().prop_map(|request| Notification::Cancel { request }),
        name().prop_map(|reason| Notification::Goodbye { reason }),
        any::<(u32, u64)>().prop_map(|(handle, epoch)| Notification::Epoch { handle, epoch }),
    ]
}

/// The header and the body of the one frame in `bytes`.
fn split(bytes: &[u8]) -> (Header, &[u8]) {
    let (header, body) = bytes.split_first_chunk::<HEADER_LEN>().expect("a header");
    let header = Header::decode(header).expect("a good header");
    assert_eq!(header.length as usize, body.len());
    (header, body)
}

proptest! {
    #[test]
    fn requests_survive_the_wire(request in request(), id: u64) {
        let mut bytes = Vec::new();
        request.encode(id, &mut bytes);
        let (header, body) = split(&bytes);
        prop_assert_eq!((header.id, header.kind.class()), (id, Class::Request));
        prop_assert_eq!(Request::decode(&header, body), Ok(request.clone()));
        // One byte less is noticed, but where any length is good.
        if !matches!(request, Request::Ping(_) | Request::Unknown(_)) {
            prop_assert!(Request::decode(&header, &body[..body.len() - 1]).is_err());
        }
        // One byte more is noticed, but in HELLO, which may grow.
        let longer = [body, &[0]].concat();
        match &request {
            Request::Hello(_) => prop_assert_eq!(Request::decode(&header, &longer), Ok(request.clone())),
            Request::Ping(_) | Request::Unknown(_) => {}
            _ => prop_assert!(Request::decode(&header, &longer).is_err()),
        }
    }

    #[test]
    fn replies_survive_the_wire(reply in reply(), id: u64) {
        let mut bytes = Vec::new();
        reply.encode(id, &mut bytes);
        let (header, body) = split(&bytes);
        prop_assert_eq!((header.id, header.kind.class()), (id, Class::Reply));
        prop_assert_eq!(Reply::decode(&header, body), Ok(reply));
    }

    #[test]
    fn notifications_survive_the_wire(notification in notification()) {
        let mut bytes = Vec::new();
        notification.encode(&mut bytes);
        let (header, body) = split(&bytes);
        prop_assert_eq!(header.kind.class(), Class::Notification);
        prop_assert_eq!(Notification::decode(&header, body), Ok(notification));
    }

    #[test]
    fn garbage_never_panics_nor_reserves_more_than_it_is(kind: u16, body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let header = Header { length: body.len() as u32, kind: FrameType(kind & 0x3fff), id: 0 };
        let _ = Request::decode(&header, &body);
        let _ = Reply::decode(&header, &body);
        let _ = Notification::decode(&header, &body);
    }

    #[test]
    fn known_types_with_garbage_never_panic(kind in 1u16..10, class in 0u16..3, body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let header = Header { length: body.len() as u32, kind: FrameType(class << 12 | kind), id: 0 };
        let _ = Request::decode(&header, &body);
        let _ = Reply::decode(&header, &body);
        let _ = Notification::decode(&header, &body);
    }
}

#[test]
fn a_count_that_the_body_cannot_hold_is_refused() {
    let mut bytes = Vec::new();
    Request::Read { handle: 1, epoch: 1, ranges: vec![ByteRange::new(0, 4096)] }.encode(1, &mut bytes);
    let (header, body) = split(&bytes);
    for count in [2u32, 0xffff_ffff] {
        let mut body = body.to_vec();
        body[12..16].copy_from_slice(&count.to_le_bytes());
        assert!(Request::decode(&header, &body).is_err(), "{count}");
    }
}

#[test]
fn overlong_names_are_refused_and_never_sent() {
    let mut bytes = Vec::new();
    Request::Info { name: "ä".repeat(200) }.encode(1, &mut bytes);
    let (header, body) = split(&bytes);
    let Ok(Request::Info { name }) = Request::decode(&header, body) else { panic!("no INFO") };
    assert_eq!(name.len(), MAX_NAME - 1, "cut at the border of a character");
    let mut body = 256u16.to_le_bytes().to_vec();
    body.extend([b'a'; 256]);
    assert!(Request::decode(&header, &body).is_err());
}

#[test]
fn the_version_is_the_newest_common_one() {
    let hello = |oldest, newest| Hello {
        oldest,
        newest,
        features: 0,
        session: [0; 16],
        role: Role::Primary,
        agent: String::new(),
    };
    assert_eq!(hello(1, 1).common_version(), Some(1));
    assert_eq!(hello(1, 2).common_version(), Some(2));
    assert_eq!(hello(1, 9).common_version(), Some(4));
    assert_eq!(hello(5, 9).common_version(), None);
    assert_eq!(hello(0, 0).common_version(), None);
}
