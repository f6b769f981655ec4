//! Compressed frames: what is agreed on is used, what is not is refused, and what lies costs nothing.

use std::sync::Arc;

use pagewire::access::serve::{Server, ServerOptions};
use pagewire::address::PeerAddress;
use pagewire::engine::copy::{CopyOptions, copy};
use pagewire::engine::{LocalCopy, PlainMemory, PullOptions, Puller, Region};
use pagewire::store::{Blocking, FileStore, MemoryStore, RemoteOptions, RemoteStore, Store};
use pagewire::{ByteRange, Codec, Compression, ErrorKind, PullOrder};
use pagewire_core::pack::Agreed;
use pagewire_core::wire::{
    DataHeader, Encoding, FrameType, HelloReply, OpenMode, PackedWriteHeader, RemoteErrorKind, Reply,
    Request, Role, VERSION, WriteHeader,
};

use crate::support::fake_server::{FakeServer, info};
use crate::support::raw::{self, Raw};
use crate::support::{self, anywhere, file, file_region, patient_for, pattern, region_at, serve_with};

const LENGTH: usize = 6_000_001;

/// Bytes that compress well, with a hole and a piece that does not.
fn image(seed: u8) -> Vec<u8> {
    let mut image: Vec<u8> = (0..LENGTH).map(|at| (at / 300) as u8 % 5 + seed).collect();
    image[1_000_000..2_000_000].fill(0);
    let mut state = u64::from(seed) + 1;
    for byte in &mut image[3_000_000..3_500_000] {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    image
}

fn options(compression: Compression) -> RemoteOptions {
    RemoteOptions { compression, ..patient_for(20_000) }
}

/// Pulls all of the region `file`, and answers how many bytes came in.
fn pulled(peer: &PeerAddress, compression: Compression, expected: &[u8]) -> u64 {
    let remote = Arc::new(RemoteStore::connect(&region_at(peer, "file"), &options(compression)).unwrap());
    let region = Region::new("file", remote.clone()).unwrap();
    let local = Arc::new(PlainMemory::new(expected.len() as u64));
    let pull = PullOptions { order: PullOrder::Sequential, ..PullOptions::default() };
    let puller = Puller::start(region.pin().unwrap(), local.clone(), pull).unwrap();
    puller.wait().unwrap();
    let mut bytes = vec![0; expected.len()];
    local.read_back(0, &mut bytes).unwrap();
    assert!(bytes == expected, "{compression:?}");
    remote.traffic().received
}

const ALL: [Compression; 4] =
    [Compression::Auto, Compression::Off, Compression::Always(Codec::Lz4), Compression::Always(Codec::Zstd)];

#[test]
fn whatever_the_two_sides_want_the_bytes_are_the_same() {
    let image = image(1);
    let file = file(&image);
    for server in ALL {
        // One that lends its file, and one that does not.
        let memory = MemoryStore::new(LENGTH as u64);
        memory.write_bytes(0, &image).unwrap();
        memory.flush_all().unwrap();
        for region in
            [file_region(file.path()), Region::new("file", Arc::new(memory) as Arc<dyn Store>).unwrap()]
        {
            let options = ServerOptions { compression: server, ..ServerOptions::default() };
            let (_server, peer) = serve_with([region], &anywhere(), options);
            for client in ALL {
                let received = pulled(&peer, client, &image);
                let always = |side| matches!(side, Compression::Always(_));
                let apart = always(server) && always(client) && server != client;
                let off = server == Compression::Off || client == Compression::Off || apart;
                if !off && (always(server) || always(client)) {
                    assert!(received < 3_000_000, "{server:?} and {client:?}: {received} bytes");
                }
                if off {
                    assert!(received > 4_900_000, "{server:?} and {client:?}: {received} bytes");
                }
            }
        }
    }
}

#[test]
fn what_is_written_goes_compressed_too() {
    for compression in ALL {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![9; LENGTH]).unwrap();
        let store = Arc::new(FileStore::open(&path, None, true).unwrap());
        let region = Region::new("file", store.clone() as Arc<dyn Store>).unwrap();
        let (_server, peer) = serve_with([region], &anywhere(), ServerOptions::default());
        let image = image(2);
        let source = file(&image);
        let to: Arc<dyn Store> = Arc::new(
            RemoteStore::connect_writer(&region_at(&peer, "file"), &options(compression), "a test").unwrap(),
        );
        copy(&file_region(source.path()), &to, &CopyOptions::default(), |_| {}).unwrap();
        let info = store.info();
        assert!(store.read_bytes(ByteRange::new(0, LENGTH as u64), info.epoch).unwrap() == image);
        let sent = to.traffic().sent;
        match compression {
            Compression::Always(_) => assert!(sent < 3_000_000, "{compression:?}: {sent} bytes"),
            Compression::Off => assert!(sent > 4_900_000, "{sent} bytes"),
            Compression::Auto => {}
        }
    }
}

#[test]
fn what_somebody_waits_for_is_not_compressed() {
    let image = image(1);
    let file = file(&image);
    let (_server, peer) = serve_with([file_region(file.path())], &anywhere(), ServerOptions::default());
    let mut raw = Raw::connect(&peer);
    let features = Compression::Always(Codec::Lz4).offered().features();
    let hello = pagewire_core::wire::Hello { features, ..raw::hello(Role::Primary, [4; 16]) };
    raw.send(0, &Request::Hello(hello));
    let Reply::Hello(reply) = raw.reply(0) else { panic!("no greeting") };
    assert_eq!(Agreed::from_features(reply.features), Compression::Always(Codec::Lz4).offered());
    raw.send(1, &Request::Open { name: "file".into(), mode: OpenMode::Read, resume: None });
    let Reply::Opened { handle, .. } = raw.reply(1) else { panic!("not opened") };
    raw.send(2, &Request::Read { handle, epoch: 1, ranges: vec![ByteRange::new(0, 1 << 18)] });
    let got: Vec<u8> = raw.all_data(2).into_iter().flat_map(|(_, bytes)| bytes).collect();
    assert!(got == image[..1 << 18], "and `all_data` takes nothing that is compressed");
}

/// A server of this region that lets be compressed what `agreed` says.
fn greeting(agreed: Agreed, answer: impl Fn(&mut Raw, u64) + Send + Sync + 'static) -> FakeServer {
    FakeServer::talking(move |raw| {
        while let Some((header, body)) = raw.frame() {
            match Request::decode(&header, &body) {
                Ok(Request::Hello(_)) => {
                    let (features, agent) = (agreed.features(), "a fake".into());
                    let reply = HelloReply { version: VERSION, features, instance: [3; 16], agent };
                    raw.answer(header.id, &Reply::Hello(reply));
                }
                Ok(Request::Open { .. }) => {
                    raw.answer(header.id, &Reply::Opened { handle: 1, info: info(LENGTH as u64) });
                }
                Ok(Request::Read { .. }) => answer(raw, header.id),
                _ => {}
            }
        }
    })
}

fn packed(id: u64, codec: Codec, span: u64, payload: &[u8]) -> Vec<u8> {
    let range = ByteRange::new(0, span);
    let encoding = Encoding::Packed(codec, payload.len() as u32);
    let mut frame = DataHeader { range, epoch: 1, encoding, last: true, trailer: false }.encode(id).to_vec();
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn compressed_frames_that_lie_end_the_connection_and_give_no_bytes() {
    let both = Compression::Auto.offered();
    let bomb = || zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    let short = |codec| {
        let bytes = vec![7; 4096];
        match codec {
            Codec::Lz4 => lz4_flex::block::compress(&bytes),
            Codec::Zstd => zstd::bulk::compress(&bytes, 1).unwrap(),
        }
    };
    let lies: Vec<(&str, Compression, Agreed, Codec, Vec<u8>)> = vec![
        ("garbage", Compression::Auto, both, Codec::Lz4, vec![0xff; 100]),
        ("garbage", Compression::Auto, both, Codec::Zstd, vec![0xff; 100]),
        ("less than it says", Compression::Auto, both, Codec::Lz4, short(Codec::Lz4)),
        ("less than it says", Compression::Auto, both, Codec::Zstd, short(Codec::Zstd)),
        ("far more than it says", Compression::Auto, both, Codec::Zstd, bomb()),
        ("what was not offered", Compression::Off, both, Codec::Lz4, short(Codec::Lz4)),
        ("what was not offered", Compression::Always(Codec::Lz4), both, Codec::Zstd, short(Codec::Zstd)),
        ("what was not agreed on", Compression::Auto, Agreed::NONE, Codec::Lz4, short(Codec::Lz4)),
    ];
    for (what, client, agreed, codec, payload) in lies {
        let span = if what.starts_with("what") { 4096 } else { 8192 };
        let server = greeting(agreed, move |raw, id| {
            let frame = packed(id, codec, span, &payload);
            // It has hung up the second time.
            let _ = std::io::Write::write_all(&mut raw.stream, &frame);
        });
        let address = server.address();
        let error = support::within(what, support::HANG, move || {
            let options = RemoteOptions { compression: client, ..patient_for(400) };
            let remote = RemoteStore::connect(&region_at(&address, "file"), &options).unwrap();
            remote.read_bytes(ByteRange::new(0, span), 1).unwrap_err()
        });
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Protocol), "{what}: {error}");
    }
}

/// A server of a file that can be written to, and a connection that has its lease.
fn writer(features: u64) -> (Server, tempfile::TempDir, Arc<FileStore>, Raw, u32) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, pattern(100_000, 1)).unwrap();
    let store = Arc::new(FileStore::open(&path, None, true).unwrap());
    let region = Region::new("file", store.clone() as Arc<dyn Store>).unwrap();
    let (server, peer) = serve_with([region], &anywhere(), ServerOptions::default());
    let mut raw = Raw::connect(&peer);
    let hello = pagewire_core::wire::Hello { features, ..raw::hello(Role::Primary, [4; 16]) };
    raw.send(0, &Request::Hello(hello));
    assert!(matches!(raw.reply(0), Reply::Hello(_)));
    let mode = OpenMode::Write { token: 0, owner: "a test".into() };
    raw.send(1, &Request::Open { name: "file".into(), mode, resume: None });
    let Reply::Leased(leased) = raw.reply(1) else { panic!("no lease") };
    (server, folder, store, raw, leased.handle)
}

fn packed_write(handle: u32, codec: Codec, length: u64, payload: &[u8]) -> Vec<u8> {
    let write = WriteHeader { handle, ranges: vec![ByteRange::new(0, length)] };
    let mut frame = Vec::new();
    PackedWriteHeader { write, codec }.encode(payload.len(), 2, &mut frame);
    frame.extend_from_slice(payload);
    frame
}

#[test]
fn a_compressed_write_is_a_write_and_one_that_lies_is_none() {
    let features = Compression::Auto.offered().features();
    let good = lz4_flex::block::compress(&[7; 8192]);
    let (_server, _folder, _store, mut raw, handle) = writer(features);
    raw.send_bytes(&packed_write(handle, Codec::Lz4, 8192, &good));
    assert_eq!(raw.reply(2), Reply::Done);
    raw.send(3, &Request::Flush { handle, number: 1 });
    assert!(matches!(raw.reply(3), Reply::Flushed(_)));
    raw.send(4, &Request::Read { handle, epoch: 0, ranges: vec![ByteRange::new(0, 8192)] });
    assert!(raw.all_data(4).into_iter().all(|(_, bytes)| bytes.iter().all(|byte| *byte == 7)));

    let lies: [(&str, Codec, u64, Vec<u8>); 4] = [
        ("garbage", Codec::Zstd, 8192, vec![3; 50]),
        ("another codec", Codec::Zstd, 8192, good.clone()),
        ("another length", Codec::Lz4, 4096, good.clone()),
        ("another length", Codec::Lz4, 12288, good.clone()),
    ];
    for (what, codec, length, payload) in lies {
        let (_server, _folder, store, mut raw, handle) = writer(features);
        raw.send_bytes(&packed_write(handle, codec, length, &payload));
        assert_eq!(raw.error(0).kind, RemoteErrorKind::Protocol, "{what}");
        assert!(raw.frame().is_none(), "{what}");
        let bytes = store.read_bytes(ByteRange::new(0, 100_000), 1).unwrap();
        assert!(bytes == pattern(100_000, 1), "{what}");
    }
    // To who has not agreed on it, there is no such request.
    let (_server, _folder, _store, mut raw, handle) = writer(0);
    raw.send_bytes(&packed_write(handle, Codec::Lz4, 8192, &good));
    let error = raw.error(2);
    assert_eq!(error.kind, RemoteErrorKind::Unsupported, "{}", error.text);
    assert_eq!(FrameType::PACKED_WRITE.name(), "PACKED_WRITE");
}
