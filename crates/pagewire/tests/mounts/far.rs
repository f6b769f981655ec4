//! Regions that are far away: the background pull asks for as much as the way holds, and for no more.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pagewire::access::fuse::{Mount, MountOptions};
use pagewire::engine::Region;
use pagewire::store::{self, Flush, Info, Read, RemoteOptions, Store};
use pagewire_core::chunk::ByteRange;

use crate::support::{Mounted, pattern, read_at, wait_until};

const LENGTH: usize = 8 << 20;

/// A file at the end of a long way, on which reads queue up.
struct Far {
    store: Arc<dyn Store>,
    queue: Mutex<VecDeque<Read>>,
    arrived: Condvar,
    /// How many bytes are on their way, and have been at most.
    on_way: AtomicU64,
    most: AtomicU64,
    /// What was asked for first.
    first: Mutex<Vec<ByteRange>>,
}

impl Far {
    fn of(file: &Path) -> Arc<Self> {
        let address = format!("file:{}", file.display()).parse().unwrap();
        Arc::new(Self {
            store: store::open(&address, false, &RemoteOptions::default()).unwrap(),
            queue: Mutex::default(),
            arrived: Condvar::new(),
            on_way: AtomicU64::new(0),
            most: AtomicU64::new(0),
            first: Mutex::default(),
        })
    }

    /// Answers one read after another, for so long one each `pace`, and then at once.
    fn answer(self: &Arc<Self>, pace: Duration, slow: Duration) {
        let far = Arc::downgrade(self);
        let begun = Instant::now();
        std::thread::spawn(move || {
            while let Some(far) = far.upgrade() {
                let queue = far.queue.lock().unwrap();
                // Looks once in a while whether the store is still there.
                let wait = far
                    .arrived
                    .wait_timeout_while(queue, Duration::from_millis(50), |queue| queue.is_empty());
                let read = wait.unwrap().0.pop_front();
                let Some(read) = read else { continue };
                if begun.elapsed() < slow {
                    std::thread::sleep(pace);
                }
                far.on_way.fetch_sub(ByteRange::total(&read.ranges), Ordering::Relaxed);
                far.store.read(read);
            }
        });
    }
}

impl Store for Far {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: Read) {
        self.first.lock().unwrap().extend(&read.ranges);
        let bytes = ByteRange::total(&read.ranges);
        let before = self.on_way.fetch_add(bytes, Ordering::Relaxed);
        self.most.fetch_max(before + bytes, Ordering::Relaxed);
        self.queue.lock().unwrap().push_back(read);
        self.arrived.notify_all();
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

    fn round_trip(&self) -> Duration {
        Duration::from_millis(25)
    }
}

#[test]
fn a_slow_way_is_not_filled_with_what_programs_would_wait_behind() {
    let bytes = pattern(LENGTH, 7);
    let folder = tempfile::tempdir().unwrap();
    let (file, path) = (folder.path().join("file"), folder.path().join("mounted"));
    std::fs::write(&file, &bytes).unwrap();
    let far = Far::of(&file);
    // Each of the pieces that are on their way takes longer than one that is lost is waited for.
    far.answer(Duration::from_millis(300), Duration::from_secs(4));
    let region = Region::new("far", far.clone()).unwrap();
    let mounted = Mounted::at(&path, |path| Mount::region(&region, path, MountOptions::default())).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let most = far.most.load(Ordering::Relaxed);
    // The smallest window, and some more where the kernel asks in other pieces; it would be nearly three times as much.
    assert!(most <= 2 << 20, "{most} bytes were on their way");
    wait_until("all is pulled", || mounted.status_of_file().cached_bytes == LENGTH as u64);
    assert!(read_at(&mounted.open_to_read(), 0, LENGTH) == bytes);
    let first = far.first.lock().unwrap();
    let lengths: Vec<u64> = first.iter().take(6).map(|range| range.len() >> 10).collect();
    assert_eq!(lengths, [8, 16, 32, 64, 128, 128], "whoever wants the first byte does not wait for much");
}
