//! A region of a peer, mapped: the bytes are right, however they arrive.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use pagewire::access::serve::{Server, ServerOptions};
use pagewire::access::uffd::{MapOptions, Mapping};
use pagewire::engine::{PullOptions, Region};
use pagewire::store::FileStore;
use pagewire::{ByteRange, ChunkSize, PullOrder};

/// Bytes that differ from page to page and within a page.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i / 4096) * 31 + i % 251) as u8).collect()
}

/// A server of one file on a free port, and the file's address there.
fn serve(bytes: &[u8]) -> (Server, String, tempfile::NamedTempFile) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let store = FileStore::open(file.path(), None, false).unwrap();
    let region = Region::new("file", Arc::new(store)).unwrap();
    let server = Server::new([region], ServerOptions::default()).unwrap();
    let address = server.listen(&"pw://127.0.0.1:0".parse().unwrap()).unwrap();
    (server, format!("{address}/file"), file)
}

fn options(order: PullOrder, chunk: u64) -> MapOptions {
    let chunk = ChunkSize::new(chunk).unwrap();
    MapOptions { pull: PullOptions { order, chunk, ..PullOptions::default() }, ..MapOptions::default() }
}

#[test]
fn every_length_and_chunk_size_arrives_as_it_is() {
    for chunk in [4096, 64 << 10, 1 << 20] {
        for length in [0, 1, 4095, 4096, 4097, chunk - 1, chunk, chunk + 1, 3 * chunk + 5] {
            let bytes = pattern(length as usize);
            let (_server, address, _file) = serve(&bytes);
            for order in [PullOrder::None, PullOrder::Sequential] {
                let mapping = Mapping::open(&address, &options(order, chunk)).unwrap();
                assert!(*mapping == bytes, "length {length}, chunk {chunk}");
            }
        }
    }
}

#[test]
fn a_background_pull_fills_everything_without_a_fault() {
    let bytes = pattern(8 << 20);
    let (_server, address, _file) = serve(&bytes);
    let mapping = Mapping::open(&address, &MapOptions::default()).unwrap();
    let progress = mapping.wait().unwrap();
    assert!(progress.is_complete());
    assert_eq!((progress.faults, progress.background_bytes >= 8 << 20), (0, true));
    assert!(*mapping == bytes);
    assert_eq!(mapping.progress().faults, 0, "nothing was left to fault on");
}

#[test]
fn what_is_not_touched_is_not_pulled() {
    let bytes = pattern(8 << 20);
    let (_server, address, _file) = serve(&bytes);
    let mapping = Mapping::open(&address, &options(PullOrder::None, 64 << 10)).unwrap();
    assert_eq!(mapping[5 << 20], bytes[5 << 20]);
    mapping.prefault(ByteRange::new(1 << 20, (1 << 20) + 70_000)).unwrap();
    let progress = mapping.progress();
    assert_eq!((progress.faults, progress.demand_reads), (1, 3));
    assert_eq!(progress.demand_bytes, 3 * (64 << 10));
    assert_eq!(mapping[1 << 20..(1 << 20) + 70_000], bytes[1 << 20..(1 << 20) + 70_000]);
}

#[test]
fn threads_fault_everywhere_while_the_background_pull_runs() {
    let bytes = pattern(32 << 20);
    let (_server, address, _file) = serve(&bytes);
    for chunk in [4096, 64 << 10] {
        let mapping = Mapping::open(&address, &options(PullOrder::Sequential, chunk)).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                let (mapping, bytes) = (&mapping, &bytes);
                scope.spawn(move || {
                    for step in 0..4000 {
                        let at = (step * 7919 + thread * 104_729) * 61 % bytes.len();
                        assert_eq!(mapping[at], bytes[at]);
                    }
                });
            }
        });
        mapping.wait().unwrap();
        assert!(*mapping == bytes);
    }
}

#[test]
fn a_mapping_can_be_dropped_at_any_moment() {
    let bytes = pattern(16 << 20);
    let (server, address, _file) = serve(&bytes);
    for step in 0..30u64 {
        let mapping = Mapping::open(&address, &options(PullOrder::Sequential, 64 << 10)).unwrap();
        if step % 2 == 0 {
            assert_eq!(mapping[(step * 100_000) as usize], bytes[(step * 100_000) as usize]);
        }
        std::thread::sleep(Duration::from_micros(step * 50));
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while server.connections() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} connections are left", server.connections());
        std::thread::sleep(Duration::from_millis(5));
    }
}
