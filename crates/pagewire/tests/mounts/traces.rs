//! Traces: the order in which programs needed a region in one mount is the order of the pull in the next.

use std::sync::{Arc, Mutex};

use pagewire::access::fuse::{Mount, MountOptions};
use pagewire::engine::{Region, trace};
use pagewire::store::{Flush, Info, MemoryStore, Read, Store};
use pagewire::{ChunkSize, ErrorKind, PullOrder};
use pagewire_core::pull::Trace;

use crate::support::{Mounted, kind, read_at, wait_until};

const CHUNK: u64 = 65536;
const CHUNKS: u64 = 64;

/// Memory that remembers where it was read.
struct Watched {
    store: MemoryStore,
    reads: Mutex<Vec<u64>>,
}

impl Store for Watched {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: Read) {
        self.reads.lock().unwrap().extend(read.ranges.iter().map(|range| range.start / CHUNK));
        self.store.read(read);
    }

    fn flush(&self, flush: Flush) {
        self.store.flush(flush);
    }

    fn pin(&self, epoch: Option<u64>) -> pagewire::Result<Info> {
        self.store.pin(epoch)
    }

    fn unpin(&self, epoch: u64) {
        self.store.unpin(epoch);
    }
}

fn watched() -> (Arc<Watched>, Arc<Region>) {
    let store = Arc::new(Watched { store: MemoryStore::new(CHUNKS * CHUNK), reads: Mutex::default() });
    (store.clone(), Region::new("watched", store).unwrap())
}

#[test]
fn what_was_needed_first_comes_first_the_next_time() {
    let folder = tempfile::tempdir().unwrap();
    let (file, path) = (folder.path().join("trace"), folder.path().join("mounted"));
    let (_store, region) = watched();
    let options = MountOptions {
        order: PullOrder::None,
        trace: Some(file.clone()),
        read_ahead: Some(4096),
        ..MountOptions::default()
    };
    let mounted = Mounted::at(&path, |path| Mount::region(&region, path, options)).unwrap();
    let opened = mounted.open_to_read();
    let needed = [40, 7, 63, 8, 0, 21];
    for chunk in needed {
        read_at(&opened, chunk * CHUNK + 5000, 100);
    }
    // Once more is not needed first.
    read_at(&opened, 7 * CHUNK, 100);
    drop(opened);
    mounted.unmount();
    let text = std::fs::read_to_string(&file).unwrap();
    let recorded: Trace = text.parse().unwrap();
    assert_eq!(recorded.chunk.bytes(), CHUNK);
    assert_eq!(recorded.chunks.iter().map(|chunk| chunk.0).collect::<Vec<_>>(), needed);

    let (store, region) = watched();
    let order = trace::recorded(&file, ChunkSize::DEFAULT).unwrap();
    // Two threads may take the kernel's requests in another order than that in which they come.
    let options = MountOptions { order, threads: 1, ..MountOptions::default() };
    let mounted = Mounted::at(&path, |path| Mount::region(&region, path, options)).unwrap();
    wait_until("all is pulled", || mounted.status_of_file().cached_bytes == CHUNKS * CHUNK);
    let mut reads = store.reads.lock().unwrap().clone();
    reads.dedup();
    assert_eq!(reads[..needed.len()], needed, "{reads:?}");
    let status = mounted.status_of_file();
    assert_eq!((status.demand_reads, status.background_bytes), (0, CHUNKS * CHUNK));
}

#[test]
fn a_trace_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace");
    assert!(trace::recorded(&file, ChunkSize::DEFAULT).is_err());
    std::fs::write(&file, "something else\n").unwrap();
    assert_eq!(kind(trace::recorded(&file, ChunkSize::DEFAULT)), Some(ErrorKind::Usage));
    let options = MountOptions { trace: Some(folder.path().join("no/such/folder")), ..Default::default() };
    let path = folder.path().join("mounted");
    assert!(Mount::region(&watched().1, &path, options).is_err());
    assert!(!path.exists(), "what was made for the mount is gone");
}
