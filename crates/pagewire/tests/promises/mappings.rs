//! A region of a peer, mapped: the bytes are right, however they arrive.

use std::io::Write;
use std::time::Duration;

use pagewire::access::serve::Server;
use pagewire::access::uffd::{MapOptions, Mapping};
use pagewire::engine::PullOptions;
use pagewire::{ByteRange, ChunkSize, PullOrder};

use crate::support;

fn pattern(length: usize) -> Vec<u8> {
    support::pattern(length, 3)
}

/// A server of one file on a free port, and the file's address there.
fn serve(bytes: &[u8]) -> (Server, String, tempfile::NamedTempFile) {
    let file = support::file(bytes);
    let (server, address) = support::serve([support::file_region(file.path())], &support::anywhere());
    (server, format!("{address}/file"), file)
}

fn options(order: PullOrder, chunk: u64) -> MapOptions {
    let chunk = ChunkSize::new(chunk).unwrap();
    MapOptions { pull: PullOptions { order, chunk, ..PullOptions::default() }, ..MapOptions::default() }
}

#[test]
fn every_length_and_chunk_size_arrives_as_it_is() {
    if !support::has_userfaultfd() {
        return;
    }
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
    if !support::has_userfaultfd() {
        return;
    }
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
    if !support::has_userfaultfd() {
        return;
    }
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
    if !support::has_userfaultfd() {
        return;
    }
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
    if !support::has_userfaultfd() {
        return;
    }
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

#[test]
fn a_program_that_reads_on_and_on_finds_the_next_chunks_there() {
    if !support::has_userfaultfd() {
        return;
    }
    let bytes = pattern(16 << 20);
    let (_server, address, _file) = serve(&bytes);
    let mapping = Mapping::open(&address, &options(PullOrder::None, 64 << 10)).unwrap();
    assert!(*mapping == bytes);
    // The last page is counted a moment after it can be read.
    support::wait_until("everything is counted", || mapping.progress().is_complete());
    let progress = mapping.progress();
    assert!(progress.demand_reads < 256 / 2, "{progress:?}: readahead brings more than half of the chunks");
}

/// What an ordinary user gets: a system call that is given absent pages fails, until they are there.
#[test]
fn without_the_right_to_serve_the_kernel_pages_are_to_be_there_before_a_system_call() {
    if !support::has_userfaultfd() {
        return;
    }
    let bytes = pattern(300_000);
    let (_server, address, _file) = serve(&bytes);
    let options = MapOptions { user_mode_only: true, ..options(PullOrder::None, 64 << 10) };
    let mapping = Mapping::open(&address, &options).unwrap();
    assert!(mapping.is_user_mode_only());
    let mut target = tempfile::tempfile().unwrap();
    const EFAULT: i32 = 14;
    assert_eq!(target.write(&mapping[..4096]).unwrap_err().raw_os_error(), Some(EFAULT));
    assert_eq!(mapping[5000], bytes[5000], "the program's own accesses are served");
    mapping.prefault(ByteRange::new(0, 300_000)).unwrap();
    target.write_all(&mapping).unwrap();
    assert_eq!(target.metadata().unwrap().len(), 300_000);
}

#[test]
fn a_trace_of_one_mapping_is_the_order_of_the_next() {
    use pagewire::engine::trace::{Trace, recorded};
    if !support::has_userfaultfd() {
        return;
    }
    let bytes = pattern(20 * 4096);
    let (_server, address, _file) = serve(&bytes);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let mut options = options(PullOrder::None, 4096);
    options.pull.readahead = 0;
    options.pull.trace = Some(std::sync::Arc::new(Trace::record_to(&path, options.pull.chunk).unwrap()));
    let mapping = Mapping::open(&address, &options).unwrap();
    for page in [7, 3, 7, 19] {
        assert_eq!(mapping[page * 4096], bytes[page * 4096]);
    }
    options.pull.trace.take().unwrap().save().unwrap();
    drop(mapping);
    let order = recorded(&path, options.pull.chunk).unwrap();
    let expected = [7, 3, 19].map(pagewire::ChunkIndex);
    assert_eq!(order, PullOrder::List(expected.into()));
    let mapping =
        Mapping::open(&address, &MapOptions { pull: PullOptions { order, ..options.pull }, ..options })
            .unwrap();
    mapping.wait().unwrap();
    assert!(*mapping == bytes);
}
