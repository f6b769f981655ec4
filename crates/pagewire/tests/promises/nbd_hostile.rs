//! NBD servers that break the protocol, or say nothing: an error or the right bytes, in bounded time and
//! memory, and never anything else.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pagewire::store::{Blocking, NbdStore, RemoteOptions, Store, Urgency};
use pagewire::{ByteRange, ErrorKind};
use pagewire_core::nbd::chunk::Chunk;
use pagewire_core::nbd::{
    ChunkType, CommandType, ErrorNumber, ReplyFlags, ReplyHeader, Request, TransmissionFlags,
};

use crate::nbd_stores::check_stream;
use crate::support::nbd_fake::{FakeNbd, Transmitting};
use crate::support::recorder;
use crate::support::{HANG, pattern, within};

const FLAGS: TransmissionFlags = TransmissionFlags::HAS_FLAGS.with(TransmissionFlags::SEND_FLUSH);

fn impatient() -> RemoteOptions {
    let patience = Duration::from_millis(700);
    RemoteOptions { connections: 2, patience, connect_timeout: patience, ..RemoteOptions::default() }
}

/// How a server answers a read wrongly.
type Misdeed = fn(&mut Transmitting, &Request) -> std::io::Result<()>;

fn misdeeds() -> Vec<(&'static str, Misdeed)> {
    vec![
        ("another's cookie", |to, request| {
            let out = to.data(
                &Request { cookie: request.cookie + 77, ..*request },
                request.offset,
                request.length,
                ReplyFlags::DONE,
            );
            to.send(&out)
        }),
        ("bytes before what was asked for", |to, request| {
            let out = to.data(request, request.offset - 4096, request.length, ReplyFlags::DONE);
            to.send(&out)
        }),
        ("more bytes than were asked for", |to, request| {
            let out = to.data(request, request.offset, request.length + 1, ReplyFlags::DONE);
            to.send(&out)
        }),
        ("fewer bytes than were asked for", |to, request| {
            let out = to.data(request, request.offset, request.length - 1, ReplyFlags::DONE);
            to.send(&out)
        }),
        ("the same bytes twice", |to, request| {
            let out = to.data(request, request.offset, request.length, ReplyFlags::NONE);
            to.send(&out)?;
            to.send(&out)
        }),
        ("a chunk that overlaps another", |to, request| {
            let half = request.length / 2;
            let out = to.data(request, request.offset, half + 1, ReplyFlags::NONE);
            to.send(&out)?;
            let out = to.data(request, request.offset + half, half, ReplyFlags::DONE);
            to.send(&out)
        }),
        ("a chunk of 4 GiB", |to, request| {
            let header = ReplyHeader::Chunk {
                flags: ReplyFlags::DONE,
                kind: ChunkType::OFFSET_DATA,
                cookie: request.cookie,
                offset: request.offset,
                length: u32::MAX.into(),
            };
            let mut out = to.header(&header);
            out.extend_from_slice(&request.offset.to_be_bytes());
            to.send(&out)
        }),
        ("a hole at the end of all addresses", |to, request| {
            let hole = Chunk::OffsetHole { offset: u64::MAX, length: u32::MAX };
            let out = to.chunk(request, &hole, ReplyFlags::DONE);
            to.send(&out)
        }),
        ("nothing, and no end of it", |to, request| {
            let out = to.chunk(request, &Chunk::None, ReplyFlags::NONE);
            to.send(&out)
        }),
        ("holes of a context that was not asked for", |to, request| {
            let descriptors = vec![pagewire_core::nbd::Descriptor { length: 4096, flags: 0 }];
            let out = to.chunk(request, &Chunk::BlockStatus { context: 9, descriptors }, ReplyFlags::DONE);
            to.send(&out)
        }),
        ("a chunk of a type that there is not", |to, request| {
            let header = ReplyHeader::Chunk {
                flags: ReplyFlags::DONE,
                kind: ChunkType(99),
                cookie: request.cookie,
                offset: request.offset,
                length: 4,
            };
            let mut out = to.header(&header);
            out.extend_from_slice(&[0; 4]);
            to.send(&out)
        }),
        ("a reply that begins with something else", |to, _| {
            to.send(b"HTTP/1.1 400 Bad Request\r\n\r\n.......")
        }),
        ("half a chunk, and then the end", |to, request| {
            let out = to.data(request, request.offset, request.length, ReplyFlags::DONE);
            to.send(&out[..out.len() / 2])?;
            Err(std::io::ErrorKind::UnexpectedEof.into())
        }),
        ("nothing at all", |_, _| Ok(())),
    ]
}

#[test]
fn a_server_that_breaks_the_protocol_gives_an_error_and_no_wrong_byte() {
    for (name, misdeed) in misdeeds() {
        let server = FakeNbd::start(pattern(1 << 20, 3), FLAGS, move |to| {
            loop {
                let (request, _) = to.request()?;
                if request.command == CommandType::READ {
                    misdeed(to, &request)?;
                } else {
                    to.answer(&request)?;
                }
            }
        });
        let address = server.address.clone();
        within(name, HANG, move || {
            let store = NbdStore::connect(&address, false, &impatient()).unwrap();
            let asked = ByteRange::new(8192, 8192 + 65536);
            let model = pattern(1 << 20, 3);
            for urgency in [Urgency::Demand, Urgency::Background] {
                let (end, _) = recorder::read(&store, &[asked], urgency, &model);
                let error = end.expect_err(name);
                let expected = [ErrorKind::Protocol, ErrorKind::Unavailable];
                assert!(expected.contains(&error.kind()), "{name}: {error:?}");
            }
        });
    }
}

#[test]
fn a_server_that_breaks_the_protocol_once_is_asked_again() {
    for (name, misdeed) in misdeeds() {
        let model = pattern(1 << 20, 3);
        let server = FakeNbd::start(model.clone(), FLAGS, move |to| {
            loop {
                let (request, _) = to.request()?;
                if request.command == CommandType::READ && to.number == 0 && request.offset == 8192 {
                    misdeed(to, &request)?;
                } else {
                    to.answer(&request)?;
                }
            }
        });
        let address = server.address.clone();
        within(name, HANG, move || {
            let store: Arc<dyn Store> = Arc::new(NbdStore::connect(&address, false, &impatient()).unwrap());
            // The request at fault fails, or is made again; what was on its way with it is made again.
            let faulty = recorder::read(&*store, &[ByteRange::new(8192, 12288)], Urgency::Demand, &model).0;
            let again = recorder::read(&*store, &[ByteRange::new(0, 65536)], Urgency::Demand, &model);
            assert!(again.0.is_ok() && again.1, "{name}: {again:?}, after {faulty:?}");
            check_stream(name, &*store, &model);
        });
        assert!(server.connections.load(Ordering::SeqCst) >= 1, "{name}");
    }
}

#[test]
fn an_error_in_the_middle_of_an_answer_ends_it() {
    let model = pattern(1 << 20, 3);
    let server = FakeNbd::start(model.clone(), FLAGS, |to| {
        loop {
            let (request, _) = to.request()?;
            if request.command != CommandType::READ || request.offset != 8192 {
                to.answer(&request)?;
                continue;
            }
            let out = to.data(&request, 8192, 4096, ReplyFlags::NONE);
            to.send(&out)?;
            let (error, message) = (ErrorNumber::EIO, "a bad\u{1b}[31m disk".to_owned());
            let out =
                to.chunk(&request, &Chunk::ErrorOffset { error, message, offset: 12288 }, ReplyFlags::DONE);
            to.send(&out)?;
        }
    });
    let store = NbdStore::connect(&server.address, false, &impatient()).unwrap();
    let asked = [ByteRange::new(8192, 8192 + 16384)];
    let (end, whole) = recorder::read(&store, &asked, Urgency::Demand, &model);
    let error = end.unwrap_err();
    assert!(error.kind() == ErrorKind::Io && !whole, "{error}");
    assert!(error.to_string().contains("a bad\\u{1b}[31m disk"), "a terminal is not to obey it: {error}");
    let (end, whole) = recorder::read(&store, &[ByteRange::new(0, 8192)], Urgency::Demand, &model);
    assert!(end.is_ok() && whole, "the connection goes on");
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn an_answer_in_chunks_of_any_size_and_order_is_put_together() {
    let model = pattern(300_000, 8);
    let server = FakeNbd::start(model.clone(), FLAGS, |to| {
        loop {
            let (request, _) = to.request()?;
            if request.command != CommandType::READ {
                to.answer(&request)?;
                continue;
            }
            let end = request.offset + request.length;
            let mut pieces: Vec<(u64, u64)> = Vec::new();
            let mut at = request.offset;
            for size in [1u64, 511, 4096, 3, 10_000, 8192].into_iter().cycle() {
                if at == end {
                    break;
                }
                pieces.push((at, size.min(end - at)));
                at += pieces.last().unwrap().1;
            }
            pieces.reverse();
            for (start, length) in pieces {
                let out = to.data(&request, start, length, ReplyFlags::NONE);
                to.send(&out)?;
            }
            let out = to.chunk(&request, &Chunk::None, ReplyFlags::DONE);
            to.send(&out)?;
        }
    });
    let store = NbdStore::connect(&server.address, false, &impatient()).unwrap();
    crate::stores::check_reads("in pieces", &store, &model);
    check_stream("in pieces", &store, &model);
    // Whoever asks for whole pages gets whole pages.
    let mapped = pagewire::engine::PlainMemory::new(model.len() as u64);
    let region = pagewire::engine::Region::new("pieces", Arc::new(store)).unwrap();
    let copy = Arc::new(mapped);
    let puller =
        pagewire::engine::Puller::start(region.pin().unwrap(), copy.clone(), Default::default()).unwrap();
    puller.wait().unwrap();
    let mut bytes = vec![0; model.len()];
    pagewire::engine::LocalCopy::read_back(&*copy, 0, &mut bytes).unwrap();
    assert!(bytes == model);
}

#[test]
fn a_server_that_says_nothing_costs_the_patience_and_no_more() {
    let server = FakeNbd::start(pattern(65536, 1), FLAGS, |to| {
        loop {
            let (request, _) = to.request()?;
            if to.number > 0 || request.command == CommandType::FLUSH {
                to.answer(&request)?;
            }
        }
    });
    let options = RemoteOptions { patience: Duration::from_millis(400), ..impatient() };
    let store = NbdStore::connect(&server.address, true, &options).unwrap();
    let asked = Instant::now();
    let error = store.read_bytes(ByteRange::new(0, 4096), store.info().epoch).unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.can_retry(), "{error}");
    assert!(error.to_string().contains("no answer from nbd://127.0.0.1"), "{error}");
    assert!(asked.elapsed() >= Duration::from_millis(300));
    // The connection on which nothing is heard is given up, and the next one is better.
    let deadline = Instant::now() + HANG;
    while let Err(error) = store.write_bytes(0, &[7; 4096]) {
        assert!(error.can_retry() && Instant::now() < deadline, "{error}");
    }
    store.flush_all().unwrap();
}

#[test]
fn a_server_that_greets_and_says_nothing_more_is_left_in_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("nbd://{}", listener.local_addr().unwrap()).parse().unwrap();
    let asked = Instant::now();
    let error = NbdStore::connect(&address, false, &impatient()).err().unwrap();
    assert!(error.kind() == ErrorKind::Unavailable && error.can_retry(), "{error}");
    assert!(asked.elapsed() < HANG);
    // One that drips is left as well.
    let dripping = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for byte in b"NBDMAGICIHAVEOPT\0\x03".iter().cycle() {
            std::thread::sleep(Duration::from_millis(100));
            if std::io::Write::write_all(&mut stream, &[*byte]).is_err() {
                return;
            }
        }
    });
    let error = NbdStore::connect(&address, false, &impatient()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    dripping.join().unwrap();
}
