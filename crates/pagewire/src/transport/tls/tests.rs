//! One connection over a socket pair, whose records the test can take out and put back as it likes.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustls::crypto::CryptoProvider;
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};

use super::{Acceptor, Layer};
use crate::error::ErrorKind as Kind;
use crate::transport::{ClientTls, Connection, Identity, Protocol, ServerTls, refused};

/// Longer than anything here takes.
const HANG: Duration = Duration::from_secs(20);

/// After how many records the tests have new keys.
const NEW_KEYS_AFTER: u64 = 11;

/// What is used outside of tests, with keys that are used up after a few records instead of 2^24.
pub(super) fn default_provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    for suite in &mut provider.cipher_suites {
        let SupportedCipherSuite::Tls13(known) = suite;
        let limited = Tls13CipherSuite {
            common: CipherSuiteCommon { confidentiality_limit: NEW_KEYS_AFTER, ..known.common },
            hkdf_provider: known.hkdf_provider,
            aead_alg: known.aead_alg,
            quic: known.quic,
        };
        *suite = SupportedCipherSuite::Tls13(Box::leak(Box::new(limited)));
    }
    provider
}

struct Files {
    _folder: tempfile::TempDir,
    server: ServerTls,
    client: ClientTls,
}

/// An authority, which has signed certificates for both sides.
fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(path("ca"), authority.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = rcgen::Issuer::new(authority, key);
        let sign = |name: &str| {
            let (certificate, key) = (path(&format!("{name}.pem")), path(&format!("{name}.key")));
            let own = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec![name.to_owned(), "Other.Example".into()]);
            let signed = params.unwrap().signed_by(&own, &issuer).unwrap();
            std::fs::write(&certificate, signed.pem()).unwrap();
            std::fs::write(&key, own.serialize_pem()).unwrap();
            Identity { certificate, key }
        };
        let server = ServerTls { identity: sign("server.example"), clients: Some(path("ca")) };
        let client = ClientTls { authorities: Some(path("ca")), identity: Some(sign("client.example")) };
        Files { _folder: folder, server, client }
    })
}

/// Both ends of a connection, and the sockets below them once more.
struct Pair {
    client: Connection,
    server: Connection,
    /// What is written here comes to the server.
    to_server: UnixStream,
    /// What comes to the server can be taken here instead.
    at_server: UnixStream,
}

fn before_the_handshake() -> Pair {
    let files = files();
    let (one, other) = UnixStream::pair().unwrap();
    let (to_server, at_server) = (one.try_clone().unwrap(), other.try_clone().unwrap());
    let client = Layer::to_server("server.example:7070", &files.client, Protocol::Pw).unwrap();
    let server = Acceptor::load(&files.server, Protocol::Pw).unwrap().layer();
    let (client, server) = (Connection::from(one).with_tls(client), Connection::from(other).with_tls(server));
    Pair { client, server, to_server, at_server }
}

fn pair() -> Pair {
    let pair = before_the_handshake();
    let deadline = Instant::now() + HANG;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| pair.server.secure(deadline));
        pair.client.secure(deadline).unwrap();
        server.join().unwrap().unwrap();
    });
    for end in [&pair.client, &pair.server] {
        end.set_timeouts(Some(HANG), Some(HANG)).unwrap();
    }
    pair
}

impl Pair {
    /// Takes the records that the client sends as one, on their way.
    fn steal(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut records = vec![0; bytes.len() + bytes.len() / 100 + 20_000];
        let mut got = 0;
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| self.client.send(&[bytes], false).unwrap());
            self.server.set_timeouts(Some(HANG), Some(Duration::from_millis(5))).unwrap();
            loop {
                let all_sent = sender.is_finished();
                match self.at_server.read(&mut records[got..]) {
                    Ok(count) => got += count,
                    Err(_) if all_sent => break,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            self.server.set_timeouts(Some(HANG), Some(HANG)).unwrap();
        });
        records.truncate(got);
        records
    }
}

/// How many bytes each record holds, its tag and type apart; none if the last one is not whole.
fn lengths(mut records: &[u8]) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    while !records.is_empty() {
        let length = usize::from(u16::from_be_bytes(records.get(3..5)?.try_into().unwrap()));
        records = records.get(5 + length..)?;
        all.push(length - 17);
    }
    Some(all)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 4096 * 31 + at % 251) as u8).collect()
}

#[test]
fn bytes_arrive_whole_however_they_are_cut() {
    let Pair { client, server, .. } = pair();
    let sizes = [1usize, 16_383, 16_384, 16_385, 0, 70_000, 5, 1 << 20, 300_001];
    let all: Vec<u8> = sizes.iter().flat_map(|&size| pattern(size)).collect();
    assert_eq!(server.names(), Some(&["client.example".to_owned(), "other.example".to_owned()][..]));
    assert_eq!(client.names(), None, "a client asks for the name in the address only");
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for (step, &size) in sizes.iter().enumerate() {
                let bytes = pattern(size);
                let (head, rest) = bytes.split_at(size / 3);
                client.send(&[head, &[], rest], step % 2 == 1).unwrap();
            }
        });
        let mut got = vec![0; all.len()];
        let mut at = 0;
        for step in [1, 100, 16_384, 40_000, 16_385, 500_000] {
            let end = at + step;
            if step % 2 == 0 {
                server.receive_exact(&mut got[at..end]).unwrap();
                at = end;
            } else {
                at += server.receive(&mut got[at..end]).unwrap();
            }
        }
        while at < got.len() {
            at += server.receive(&mut got[at..]).unwrap();
        }
        assert!(got == all);
        sender.join().unwrap();
        client.shutdown();
        assert_eq!(server.receive(&mut [0; 9]).unwrap(), 0, "the peer has said that this is the end");
        assert_eq!(server.receive(&mut [0; 9]).unwrap(), 0, "and it stays so");
    });
}

#[test]
fn records_are_full() {
    let mut pair = pair();
    let bulk = pattern(256 << 10);
    pair.client.send(&[&[7; 40]], true).unwrap();
    pair.client.send(&[&bulk[..16_384 - 40]], true).unwrap();
    let records = pair.steal(&bulk);
    assert!(lengths(&records).unwrap().contains(&5), "the keys have changed");
    let data: Vec<usize> = lengths(&records).unwrap().into_iter().filter(|&length| length != 5).collect();
    assert_eq!(data, [16_384; 17], "in records of any other length there is a key update");
    std::thread::scope(|scope| {
        scope.spawn(|| (&pair.to_server).write_all(&records).unwrap());
        let mut got = vec![0; 16_384 + bulk.len()];
        pair.server.receive_exact(&mut got).unwrap();
        assert!(got[16_384..] == bulk);
    });
}

#[test]
fn who_is_held_up_in_sending_still_receives() {
    let Pair { client, server, .. } = pair();
    let (much, little) = (pattern(8 << 20), pattern(2 << 20));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| client.send(&[&much], false).unwrap());
        // The server takes nothing until it has sent all of this, over keys that change on both sides.
        let server_sends = scope.spawn(|| server.send(&[&little], false).unwrap());
        let mut got = vec![0; little.len()];
        client.receive_exact(&mut got).unwrap();
        assert!(got == little);
        server_sends.join().unwrap();
        assert!(!sender.is_finished());
        let mut got = vec![0; much.len()];
        server.receive_exact(&mut got).unwrap();
        assert!(got == much);
        sender.join().unwrap();
    });
}

#[test]
fn a_stream_that_is_cut_is_not_at_its_end() {
    let mut pair = pair();
    let records = pair.steal(&pattern(40_000));
    for kept in [records.len(), records.len() - 1, 16_500, 7] {
        let mut pair = self::pair();
        let records = pair.steal(&pattern(40_000));
        pair.to_server.write_all(&records[..kept]).unwrap();
        pair.to_server.shutdown(Shutdown::Both).unwrap();
        let mut got = Vec::new();
        let mut buffer = [0; 4096];
        let error = loop {
            match pair.server.receive(&mut buffer) {
                Ok(0) => panic!("a cut of {kept} bytes looks like the end"),
                Ok(count) => got.extend_from_slice(&buffer[..count]),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
        assert!(got == pattern(40_000)[..got.len()]);
        assert!(refused("x", &error).can_retry(), "it is a lost connection");
    }
}

#[test]
fn a_bit_that_was_flipped_gives_no_byte() {
    let bits = [0, 1, 3, 5, 100, 16_384 + 50, 40_000].map(|at| (at, 4));
    // Each bit of a length: the record ends earlier, or later, or is longer than any.
    let lengths = (0..16).map(|bit| (3 + bit / 8, 1 << (bit % 8)));
    for (at, bit) in bits.into_iter().chain(lengths) {
        let mut pair = pair();
        let mut records = pair.steal(&pattern(40_000));
        records[at] ^= bit;
        pair.to_server.write_all(&records).unwrap();
        pair.to_server.shutdown(Shutdown::Write).unwrap();
        let (mut got, mut buffer) = (Vec::new(), [0; 1000]);
        let error = loop {
            match pair.server.receive(&mut buffer) {
                Ok(0) => panic!("the stream ends as if nothing were wrong"),
                Ok(count) => got.extend_from_slice(&buffer[..count]),
                Err(error) => break error,
            }
        };
        assert!(got == pattern(40_000)[..got.len()] && got.len() <= at, "flipped at {at}, got {}", got.len());
        assert!(refused("x", &error).can_retry(), "{error}");
        assert!(pair.server.receive(&mut buffer).is_err(), "and nothing comes after it");
        pair.server.shutdown();
        assert!(pair.server.send(&[&[1]], false).is_err());
        // Where the record came whole, the client is told why.
        let told = pair.client.receive(&mut buffer).unwrap_err();
        assert!(refused("x", &told).can_retry(), "{told}");
    }
}

#[test]
fn a_timeout_in_the_middle_of_a_record_loses_nothing() {
    let mut pair = pair();
    let bytes = pattern(20_000);
    let records = pair.steal(&bytes);
    pair.server.set_timeouts(None, Some(Duration::from_millis(20))).unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 30_000];
    let mut timeouts = 0;
    for piece in records.chunks(records.len() / 5 + 1) {
        pair.to_server.write_all(piece).unwrap();
        loop {
            match pair.server.receive(&mut buffer) {
                Ok(count) => got.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        timeouts += 1;
    }
    assert!(got == bytes && timeouts == 5);
}

#[test]
fn who_reads_nothing_is_given_up_on_and_nothing_follows_a_part() {
    let Pair { client, server, .. } = pair();
    client.set_timeouts(Some(Duration::from_millis(30)), None).unwrap();
    assert_eq!(client.send(&[&pattern(16 << 20)], false).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(client.send(&[b"more"], false).unwrap_err().kind(), ErrorKind::BrokenPipe);
    client.shutdown();
    let mut got = Vec::new();
    let mut buffer = vec![0; 100_000];
    let end = loop {
        match server.receive(&mut buffer) {
            Ok(0) => panic!("an end, in the middle of what was sent"),
            Ok(count) => got.extend_from_slice(&buffer[..count]),
            Err(error) => break error,
        }
    };
    assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
    assert!(got == pattern(16 << 20)[..got.len()]);
}

#[test]
fn a_file_is_sent_as_far_as_it_goes() {
    let Pair { client, server, .. } = pair();
    let bytes = pattern(200_003);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    for (offset, length) in [(0, 200_003), (5, 16_384), (199_000, 5000), (300_000, 10), (7, 0)] {
        let there = &bytes[bytes.len().min(offset)..bytes.len().min(offset + length)];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&[b"head"], true).unwrap();
                let (sent, result) = client.send_file(file.as_fd(), offset as u64, length as u64);
                result.unwrap();
                assert_eq!(sent, there.len() as u64);
                client.send(&[b"tail"], false).unwrap();
            });
            let mut got = vec![0; there.len() + 8];
            server.receive_exact(&mut got).unwrap();
            assert!(got == [b"head", there, b"tail"].concat());
        });
    }
    let (_, cannot) = client.send_file(server_socket().as_fd(), 0, 10);
    assert!(cannot.is_err(), "a socket is no file");
    client.send(&[b"on"], false).unwrap();
    let mut got = [0; 2];
    server.receive_exact(&mut got).unwrap();
}

fn server_socket() -> UnixStream {
    UnixStream::pair().unwrap().0
}

#[test]
fn a_handshake_ends_by_its_deadline_whatever_comes() {
    let drip = |pair: &Pair| {
        // The beginning of a record that is long, a byte at a time.
        for byte in [22, 3, 1, 0x3f, 0xff].into_iter().chain([1; 400]) {
            if (&pair.to_server).write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let flood = |pair: &Pair| {
        // Messages of a handshake that fit in no limit.
        for _ in 0..100 {
            let record = [&[22, 3, 3, 0x40, 0][..], &[1, 0xff, 0xff, 0xff], &[0; 16_380]].concat();
            if (&pair.to_server).write_all(&record).is_err() {
                return;
            }
        }
    };
    type Behave<'a> = &'a (dyn Fn(&Pair) + Sync);
    let others: [(&str, Behave<'_>); 5] = [
        ("silence", &|_| ()),
        ("a byte at a time", &drip),
        ("a flood", &flood),
        ("another protocol", &|pair| (&pair.to_server).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap()),
        ("the end", &|pair| pair.to_server.shutdown(Shutdown::Write).unwrap()),
    ];
    for (what, behave) in others {
        let pair = before_the_handshake();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| behave(&pair));
            let error = pair.server.secure(begun + Duration::from_millis(150)).unwrap_err();
            assert!(begun.elapsed() < HANG, "{what}: {error}");
            let kind = refused("x", &error).kind();
            assert_eq!(kind == Kind::Protocol, what == "another protocol", "{what}: {error}");
            assert!(pair.server.send(&[b"x"], false).is_err() && pair.server.receive(&mut [0]).is_err());
            pair.server.shutdown();
            other.join().unwrap();
        });
    }
}
