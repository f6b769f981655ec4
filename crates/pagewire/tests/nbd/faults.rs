//! Stores that fail: no byte is called good that is not, and no flush that has lost something.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use pagewire::access::nbd::NbdOptions;
use pagewire::store::{AtOnce, Completion, Flush, Info, MemoryStore, Part, Read, Stage, Store};
use pagewire::{ByteRange, Error, ErrorKind, Result};
use pagewire_core::nbd::{CommandFlags, CommandType, ErrorNumber, Headers};

use crate::client::{Client, disk, file, pattern, serve, wait_until};

/// Memory that fails when it is told to, and answers from another thread.
struct Failing {
    store: Arc<MemoryStore>,
    reads: AtomicBool,
    writes: AtomicBool,
    flushes: AtomicBool,
}

impl Failing {
    fn new(length: u64) -> Arc<Self> {
        let store = Arc::new(MemoryStore::new(length));
        Arc::new(Self { store, reads: false.into(), writes: false.into(), flushes: false.into() })
    }
}

fn failure() -> Error {
    Error::new(ErrorKind::Io, "the disk is broken")
}

impl Store for Failing {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: Read) {
        let (store, fails) = (self.store.clone(), self.reads.load(Ordering::Relaxed));
        std::thread::spawn(move || {
            if !fails {
                return store.read(read);
            }
            // A part comes, and then none.
            let first = read.ranges[0].clamp_to(read.ranges[0].start + 10);
            read.sink.part(Part::Bytes { offset: first.start, bytes: &[1; 10][..first.len() as usize] });
            read.sink.done(Err(failure()));
        });
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        if self.writes.load(Ordering::Relaxed) {
            std::thread::spawn(|| done(Err(failure())));
            return;
        }
        self.store.write(ranges, bytes, done);
    }

    fn zero(&self, ranges: &[ByteRange], done: Completion) {
        self.store.zero(ranges, done);
    }

    fn flush(&self, flush: Flush) {
        if self.flushes.load(Ordering::Relaxed) {
            // As the contract has it: nothing is staged any more.
            self.store.discard().unwrap();
            return (flush.done)(Err(failure()));
        }
        self.store.flush(flush);
    }

    fn stage(&self) -> Stage {
        self.store.stage()
    }

    fn discard(&self) -> Result<()> {
        self.store.discard()
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.store.fence()
    }

    fn pin(&self, epoch: Option<u64>) -> Result<Info> {
        self.store.pin(epoch)
    }

    fn unpin(&self, epoch: u64) {
        self.store.unpin(epoch);
    }
}

const ALL: [Headers; 3] = [Headers::Simple, Headers::Structured, Headers::Extended];

#[test]
fn reads_that_fail_are_never_called_good() {
    for headers in ALL {
        let store = Failing::new(1 << 20);
        let (_server, address) = serve([disk(store.clone())], NbdOptions::default());
        let mut client = Client::enter(&address, "disk", headers);
        client.write(0, &pattern(300_000, 1)).unwrap();
        assert!(client.read(0, 300_000).unwrap() == pattern(300_000, 1), "answered by another thread");
        store.reads.store(true, Ordering::Relaxed);
        // With a simple reply, an error is answered by a header alone: what follows is understood.
        for length in [1, 5000, 300_000] {
            assert_eq!(client.read(0, length), Err(ErrorNumber::EIO), "{headers:?}");
        }
        if headers.chunked() {
            let whole = client.ask(CommandType::READ, CommandFlags::DF, 0, 5000);
            assert_eq!(whole.err(), Some(ErrorNumber::EIO));
        }
        store.reads.store(false, Ordering::Relaxed);
        assert!(client.read(7, 200_000).unwrap() == pattern(300_000, 1)[7..200_007]);
    }
}

#[test]
fn writes_that_fail_are_told() {
    for headers in ALL {
        let store = Failing::new(1 << 20);
        let (_server, address) = serve([disk(store.clone())], NbdOptions::default());
        let mut client = Client::enter(&address, "disk", headers);
        store.writes.store(true, Ordering::Relaxed);
        assert_eq!(client.write(0, &[1; 100]), Err(ErrorNumber::EIO));
        assert_eq!(client.write_with(CommandFlags::FUA, 0, &[1; 600_000]), Err(ErrorNumber::EIO));
        store.writes.store(false, Ordering::Relaxed);
        assert_eq!(client.write(0, &[1; 100]), Ok(()));
    }
}

#[test]
fn every_client_is_told_once_of_a_flush_that_has_lost_its_writes() {
    let store = Failing::new(1 << 20);
    let (_server, address) = serve([disk(store.clone())], NbdOptions::default());
    let mut one = Client::enter(&address, "disk", Headers::Simple);
    let mut two = Client::enter(&address, "disk", Headers::Structured);
    one.write(0, b"one").unwrap();
    two.write(4096, b"two").unwrap();
    store.flushes.store(true, Ordering::Relaxed);
    assert_eq!(one.flush(), Err(ErrorNumber::EIO));
    store.flushes.store(false, Ordering::Relaxed);
    // What two has written is lost with it, though nobody has told it yet.
    assert_eq!(two.write_with(CommandFlags::FUA, 8192, b"more"), Err(ErrorNumber::EIO));
    assert_eq!(one.flush(), Ok(()), "it knows");
    assert_eq!(two.flush(), Ok(()), "it knows");
    let mut late = Client::enter(&address, "disk", Headers::Simple);
    assert_eq!(late.flush(), Ok(()), "it has lost nothing");
    one.write(0, b"one").unwrap();
    assert_eq!(one.flush(), Ok(()));
    assert_eq!(late.read(0, 3), Ok(b"one".to_vec()));
}

/// Memory that is far away, whose flushes wait until they are let go.
struct Far {
    store: Arc<MemoryStore>,
    open: Mutex<bool>,
    opened: Condvar,
    read: AtomicU64,
}

impl Store for Far {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: Read) {
        self.read.fetch_add(ByteRange::total(&read.ranges), Ordering::Relaxed);
        self.store.read(read);
    }

    fn read_at_once(&self, range: ByteRange, _: u64, _: &mut [u8]) -> Result<AtOnce> {
        assert!(!range.is_empty());
        Ok(AtOnce::NotNow)
    }

    fn flush(&self, flush: Flush) {
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_while(open, |open| !*open).unwrap());
        self.store.flush(flush);
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        self.store.write(ranges, bytes, done);
    }

    fn stage(&self) -> Stage {
        self.store.stage()
    }

    fn fence(&self) -> Result<Option<u64>> {
        self.store.fence()
    }

    fn round_trip(&self) -> Duration {
        Duration::from_millis(1)
    }
}

#[test]
fn requests_overtake_a_flush_and_a_range_is_pulled_in_the_background() {
    let store = Arc::new(Far {
        store: Arc::new(MemoryStore::new(64 << 20)),
        open: Mutex::new(false),
        opened: Condvar::new(),
        read: AtomicU64::new(0),
    });
    let (_server, address) = serve([disk(store.clone())], NbdOptions::default());
    let mut client = Client::enter(&address, "disk", Headers::Structured);
    client.write(0, &pattern(100_000, 1)).unwrap();
    let flush = client.submit(CommandType::FLUSH, CommandFlags::NONE, 0, 0, &[]);
    let fua = client.submit(CommandType::WRITE, CommandFlags::FUA, 5, 3, b"new");
    // Answered first, though they came later.
    assert!(client.read(1000, 50_000).unwrap() == pattern(100_000, 1)[1000..51_000]);
    client.write(200_000, b"more").unwrap();
    client.ask(CommandType::CACHE, CommandFlags::NONE, 1 << 20, 20 << 20).unwrap();
    wait_until("it is pulled", || store.read.load(Ordering::Relaxed) >= 20 << 20);
    *store.open.lock().unwrap() = true;
    store.opened.notify_all();
    // Both have one flush or another by now, in whatever order.
    let mut header = [0; 32];
    std::io::Read::read_exact(&mut client.socket, &mut header).unwrap();
    let cookies = [header[8..16].to_vec(), header[24..32].to_vec()];
    assert!(cookies.contains(&flush.to_be_bytes().to_vec()) && cookies.contains(&fua.to_be_bytes().to_vec()));
    assert_eq!(
        client.read(4, 5),
        Ok([&pattern(100_000, 1)[4..5], b"new", &pattern(100_000, 1)[8..9]].concat())
    );
}

#[test]
fn a_file_that_shrinks_or_changes_gives_errors_and_no_wrong_bytes() {
    for headers in ALL {
        for length in [4096, 100_000, 1 << 20] {
            let (path, store) = file(&pattern(2 << 20, 1), false);
            let (_server, address) = serve([disk(store)], NbdOptions::default());
            let mut client = Client::enter(&address, "disk", headers);
            assert!(client.read(0, length).unwrap() == pattern(2 << 20, 1)[..length as usize]);
            path.as_file().set_len(1000).unwrap();
            assert_eq!(client.read(0, length), Err(ErrorNumber::EIO), "{headers:?} {length}");
            assert_eq!(client.read(1 << 20, length), Err(ErrorNumber::EIO), "{headers:?} {length}");
        }
    }
}
