//! Random operations on a mounted file, in the manner of fsx, against a plain `Vec<u8>`: with remounts, restarts of the
//! server and cut connections in between. The store's bytes are compared whenever they must be those of the file.
//!
//! The seed is printed; `PAGEWIRE_TEST_SEED` sets it, `PAGEWIRE_TEST_OPERATIONS` how many operations there are.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use pagewire::access::fuse::MountOptions;
use pagewire::store::RemoteOptions;
use pagewire_sys::file::{Allocate, fadvise_dontneed, punch_hole, seek_data, seek_hole};
use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;

use crate::support::proxy::{Proxy, Weather};
use crate::support::{self, HANG, Host, Mounted, errno, fails_with, writable};

const CAPACITY: u64 = 1_500_000;

/// The longest range of one operation.
const LONGEST: u64 = 60_000;

const O_DIRECT: i32 = 0o40000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end.max(1)
    }

    /// Mostly short ones, and some that begin and end at pages.
    fn range(&mut self, end: u64) -> std::ops::Range<u64> {
        let longest = if self.below(4) == 0 { LONGEST } else { 9000 };
        let start = self.below(end);
        let stop = (start + self.below(longest) + 1).min(end);
        match self.below(4) {
            0 => start / 4096 * 4096..stop,
            1 if stop / 4096 * 4096 > start => start..stop / 4096 * 4096,
            _ => start..stop,
        }
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        let (first, step) = (self.below(256), self.below(7) + 1);
        // By the library: a loop is slow without optimisation.
        let mut bytes: Vec<u8> = (0..length.min(256)).map(|at| (first + at * step) as u8).collect();
        while (bytes.len() as u64) < length {
            bytes.extend_from_within(..bytes.len().min((length - bytes.len() as u64) as usize));
        }
        bytes
    }
}

/// The mount under test and what it has to hold.
///
/// Dropped in this order: a mount wants to flush at its end.
struct Run {
    opened: Option<Opened>,
    mounted: Option<Mounted>,
    proxy: Proxy,
    host: Host,
    options: MountOptions,
    random: Random,
    oracle: Vec<u8>,
    done: Arc<AtomicU64>,
}

struct Opened {
    file: File,
    /// Another open, whose reads and writes go past the page cache.
    past: File,
    mapping: FileMapping,
}

impl Run {
    fn new(seed: u64, options: MountOptions, done: Arc<AtomicU64>) -> Self {
        let mut random = Random(seed);
        let length = random.below(CAPACITY);
        let oracle = random.bytes(length);
        let host = Host::new(&oracle, CAPACITY);
        let proxy = Proxy::new(&host.address(), seed, Weather::default());
        let mut run = Self { host, proxy, options, random, oracle, mounted: None, opened: None, done };
        run.mount();
        run
    }

    fn mount(&mut self) {
        let path = self.host.place("mounted");
        let remote = RemoteOptions { connections: 2, ..RemoteOptions::default() };
        let mounted = support::mount(&self.proxy.address(), &path, self.options.clone(), &remote).unwrap();
        self.mounted = Some(mounted);
        self.open();
    }

    fn open(&mut self) {
        let mounted = self.mounted.as_ref().unwrap();
        let file = mounted.open();
        let past =
            File::options().read(true).write(true).custom_flags(O_DIRECT).open(mounted.path()).unwrap();
        let mapping = FileMapping::new(file.as_fd(), CAPACITY as usize, Protection::ReadWrite).unwrap();
        self.opened = Some(Opened { file, past, mapping });
    }

    fn unmount(&mut self) {
        self.opened = None;
        self.mounted.take().unwrap().unmount();
        assert!(
            self.host.bytes() == self.oracle,
            "the store does not hold what was written before the unmount"
        );
    }

    fn length(&self) -> u64 {
        self.oracle.len() as u64
    }

    fn compare(&self, range: std::ops::Range<u64>, found: &[u8], how: &str) {
        let expected = &self.oracle[range.start as usize..range.end as usize];
        if expected == found {
            return;
        }
        if let Some(at) = expected.iter().zip(found).position(|(expected, found)| expected != found) {
            let wrong = expected.iter().zip(found).filter(|(expected, found)| expected != found).count();
            panic!(
                "{how} of {range:?}, of {} bytes: byte {} is {} instead of {}, and {wrong} bytes are wrong",
                self.length(),
                range.start + at as u64,
                found[at],
                expected[at]
            );
        }
        assert_eq!(found.len(), expected.len(), "{how} of {range:?}");
    }

    fn replace(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        if end > self.oracle.len() {
            self.oracle.resize(end, 0);
        }
        self.oracle[offset as usize..end].copy_from_slice(bytes);
    }

    fn zero(&mut self, range: std::ops::Range<u64>) {
        let end = range.end.min(self.length()) as usize;
        if (range.start as usize) < end {
            self.oracle[range.start as usize..end].fill(0);
        }
    }

    fn read(&mut self, past: bool) {
        if self.oracle.is_empty() {
            return;
        }
        let length = self.length();
        let range = self.random.range(length);
        let opened = self.opened.as_ref().unwrap();
        // More than there is: the end is where it has to be.
        let mut bytes = vec![0xee; (range.end - range.start) as usize + 100];
        let file = if past { &opened.past } else { &opened.file };
        let read = file.read_at(&mut bytes, range.start).unwrap() as u64;
        let end = (range.end + 100).min(self.length());
        assert_eq!(read, end - range.start, "a read of {range:?} of {} bytes", self.length());
        self.compare(
            range.start..end,
            &bytes[..read as usize],
            if past { "a direct read" } else { "a read" },
        );
    }

    fn write(&mut self, past: bool) {
        let range = self.random.range(CAPACITY);
        let bytes = self.random.bytes(range.end - range.start);
        let opened = self.opened.as_ref().unwrap();
        let file = if past { &opened.past } else { &opened.file };
        file.write_all_at(&bytes, range.start).unwrap();
        self.replace(range.start, &bytes);
    }

    fn map_read(&mut self) {
        if self.oracle.is_empty() {
            return;
        }
        let length = self.length();
        let range = self.random.range(length);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.opened.as_ref().unwrap().mapping.copy_out(range.start as usize, &mut bytes).unwrap();
        self.compare(range, &bytes, "a mapped read");
    }

    fn map_write(&mut self) {
        if self.oracle.is_empty() {
            return;
        }
        let length = self.length();
        let range = self.random.range(length);
        let bytes = self.random.bytes(range.end - range.start);
        let mapping = &self.opened.as_ref().unwrap().mapping;
        mapping.copy_in(range.start as usize, &bytes).unwrap();
        if self.random.below(40) == 0 {
            mapping.sync(range.start as usize, bytes.len()).unwrap();
        }
        self.replace(range.start, &bytes);
    }

    fn truncate(&mut self) {
        let length = match self.random.below(4) {
            0 => self.random.below(CAPACITY + 1),
            // Near the end, where pages are cut.
            1 => self.length().saturating_sub(self.random.below(5000)),
            2 => (self.length() + self.random.below(5000)).min(CAPACITY),
            _ => (self.length() / 4096 * 4096 + 4096 * self.random.below(3)).min(CAPACITY),
        };
        self.opened.as_ref().unwrap().file.set_len(length).unwrap();
        self.oracle.resize(length as usize, 0);
        if self.random.below(10) == 0 {
            let past = CAPACITY + 1 + self.random.below(10_000);
            let result = self.opened.as_ref().unwrap().file.set_len(past);
            assert!(fails_with(result, errno::ENOSPC), "a length past the capacity");
        }
    }

    fn punch(&mut self) {
        let range = self.random.range(CAPACITY);
        let file = &self.opened.as_ref().unwrap().file;
        punch_hole(file.as_fd(), range.start, range.end - range.start).unwrap();
        self.zero(range);
    }

    fn allocate(&mut self) {
        let range = self.random.range(CAPACITY);
        let allocate = Allocate { zero: self.random.below(2) == 0, keep_size: self.random.below(2) == 0 };
        let file = &self.opened.as_ref().unwrap().file;
        allocate.apply(file.as_fd(), range.start, range.end - range.start).unwrap();
        if allocate.zero {
            self.zero(range.clone());
        }
        if !allocate.keep_size && range.end > self.length() {
            self.oracle.resize(range.end as usize, 0);
        }
    }

    /// Between data and data there are zeroes alone.
    fn seek(&mut self) {
        if self.oracle.is_empty() {
            return;
        }
        let length = self.length();
        let from = self.random.below(length);
        // A seek moves the offset that nothing else here uses.
        let file = self.opened.as_ref().unwrap().file.as_fd();
        let data = seek_data(file, from).unwrap().unwrap_or(length);
        assert!(
            (from..=length).contains(&data),
            "data at {data}, looked for from {from} on, of {length} bytes"
        );
        assert!(
            self.oracle[from as usize..data as usize] == vec![0; (data - from) as usize],
            "there is data between {from} and {data}, of {length} bytes"
        );
        let hole = seek_hole(file, from).unwrap();
        assert!((from..=length).contains(&hole), "a hole at {hole}, of {length} bytes");
    }

    fn drop_cache(&mut self) {
        let file = &self.opened.as_ref().unwrap().file;
        if self.random.below(2) == 0 {
            file.sync_data().unwrap();
        }
        fadvise_dontneed(file.as_fd(), 0, 0).unwrap();
    }

    fn sync(&mut self) {
        let opened = self.opened.as_ref().unwrap();
        opened.file.sync_all().unwrap();
        if self.random.below(8) == 0 {
            assert!(self.host.bytes() == self.oracle, "the store does not hold what was flushed");
        }
    }

    fn check_all(&mut self) {
        let opened = self.opened.as_ref().unwrap();
        assert_eq!(opened.file.metadata().unwrap().len(), self.length());
        let bytes = support::read_at(&opened.file, 0, self.oracle.len());
        self.compare(0..self.length(), &bytes, "a read of all");
    }

    fn step(&mut self) {
        match self.random.below(1000) {
            0..200 => self.read(false),
            200..260 => self.read(true),
            260..440 => self.write(false),
            440..480 => self.write(true),
            480..680 => self.map_read(),
            680..860 => self.map_write(),
            860..900 => self.truncate(),
            900..930 => self.punch(),
            930..950 => self.allocate(),
            950..970 => self.seek(),
            970..978 => self.drop_cache(),
            978..982 => self.sync(),
            982..990 => self.check_all(),
            990..997 => {
                self.opened = None;
                self.open();
            }
            997 => {
                if self.random.below(3) == 0 {
                    self.proxy.cut_all();
                }
            }
            998 => {
                if self.random.below(8) == 0 {
                    self.host.stop();
                    self.host.start();
                }
            }
            _ => {
                if self.random.below(8) == 0 {
                    self.unmount();
                    self.mount();
                }
            }
        }
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Does so many operations; fails when none is done for a while.
fn run(name: &str, operations: u64, options: MountOptions) {
    let seed = setting("PAGEWIRE_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()) * 0x1_0001);
    let operations = setting("PAGEWIRE_TEST_OPERATIONS").unwrap_or(operations);
    println!("{name}: PAGEWIRE_TEST_SEED={seed}, {operations} operations");
    support::log();
    let done: Arc<AtomicU64> = Arc::default();
    let (sender, ended) = mpsc::sync_channel(1);
    let counter = done.clone();
    let thread = std::thread::spawn(move || {
        // Says that it has ended, also by a panic, when everything is down.
        let _sender: mpsc::SyncSender<()> = sender;
        let mut run = Run::new(seed, options, counter);
        for _ in 0..operations {
            run.step();
        }
        run.unmount();
        println!("{} connections were cut", run.proxy.cuts());
    });
    let mut before = u64::MAX;
    while ended.recv_timeout(HANG) == Err(mpsc::RecvTimeoutError::Timeout) {
        let now = done.load(Ordering::Relaxed);
        if now == before {
            support::abort_mounts();
            panic!("operation {now} hangs, with PAGEWIRE_TEST_SEED={seed}");
        }
        before = now;
    }
    if let Err(panic) = thread.join() {
        let done = done.load(Ordering::Relaxed);
        println!("{name}: operation {done} has failed, with PAGEWIRE_TEST_SEED={seed}");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_file_that_is_cached_is_a_vector_of_bytes() {
    run("cached", 60_000, writable());
}

#[test]
fn a_file_whose_flushes_are_atomic_is_a_vector_of_bytes() {
    let push = pagewire::engine::PushOptions { interval: Some(Duration::from_millis(5)), ..writable().push };
    run("atomic", 25_000, MountOptions { atomic: true, push, ..writable() });
}

#[test]
fn a_file_without_a_cache_is_a_vector_of_bytes() {
    run("direct", 25_000, MountOptions { direct: true, ..writable() });
}
