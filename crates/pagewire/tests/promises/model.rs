//! A region that is written, flushed, resized and read over a network that fails, by a server that is
//! restarted, against a plain `Vec<u8>` for each epoch.
//!
//! Everything is asked for by one thread in an order that the seed decides; pulls and pushes go on besides.
//! So after each flush it is known what the new epoch is, and every epoch that anybody sees is compared as
//! a whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pagewire::access::serve::{Server, ServerOptions};
use pagewire::access::uffd::{Mapping, Tracking, WritableMapping, WriteOptions};
use pagewire::address::PeerAddress;
use pagewire::engine::{PushOptions, Region};
use pagewire::store::{Blocking, FileOptions, FileStore, MemoryStore, RemoteStore, Store};
use pagewire::{ByteRange, ErrorKind, PullOrder};

use crate::support::proxy::{Proxy, Weather};
use crate::support::random::{Random, seed};
use crate::support::{self, anywhere, map_options, patient_for, region_at, serve_with, wait_until};

const LENGTH: u64 = 64 * 4096 + 100;
const CAPACITY: u64 = 80 * 4096;
const STEPS: usize = 10_000;

/// What a region is kept in.
enum Kept {
    File(PathBuf),
    Memory(Arc<dyn Store>),
}

impl Kept {
    fn open(&self) -> Arc<dyn Store> {
        let Self::File(path) = self else {
            let Self::Memory(store) = self else { unreachable!() };
            return store.clone();
        };
        let options = FileOptions { writable: true, capacity: Some(CAPACITY), ..FileOptions::default() };
        let mut store = None;
        // The threads of the server before may not have let go of it yet.
        wait_until("the file is free", || {
            store = FileStore::open_with(path, &options)
                .inspect_err(|error| assert_eq!(error.kind(), ErrorKind::Busy, "{error}"))
                .ok();
            store.is_some()
        });
        Arc::new(store.unwrap())
    }
}

/// A server that is taken away and comes back.
struct Restarting {
    kept: Kept,
    address: PeerAddress,
    server: Option<Server>,
}

impl Restarting {
    fn new(kept: Kept) -> Self {
        let mut this = Self { kept, address: anywhere(), server: None };
        this.start();
        this
    }

    fn start(&mut self) {
        let region = Region::new("model", self.kept.open()).unwrap();
        let options = ServerOptions { lapse: Duration::from_millis(20), ..ServerOptions::default() };
        let (server, address) = serve_with([region], &self.address, options);
        (self.server, self.address) = (Some(server), address);
    }
}

/// A reader, and the bytes of the epoch that it is at.
struct Reader {
    mapping: Mapping,
    bytes: Vec<u8>,
}

struct Model {
    random: Random,
    server: Restarting,
    proxy: Proxy,
    writer: Option<WritableMapping>,
    reader: Option<Reader>,
    /// The region as it was written.
    bytes: Vec<u8>,
    /// What each epoch is.
    epochs: BTreeMap<u64, Vec<u8>>,
    /// Bytes to be read from, by the kernel.
    file: File,
    content: Vec<u8>,
    outages: usize,
    counts: BTreeMap<&'static str, usize>,
    what: String,
}

impl Model {
    fn new(seed: u64, kept: Kept) -> Self {
        let mut random = Random(seed);
        let server = Restarting::new(kept);
        let weather = Weather { cuts: 6, cut_within: 400_000, cut_up_within: 400_000, ..Weather::default() };
        let proxy = Proxy::new(&server.address, seed, weather);
        let content = random.bytes(1 << 20);
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &content).unwrap();
        let mut model = Self {
            random,
            server,
            proxy,
            writer: None,
            reader: None,
            bytes: vec![0; LENGTH as usize],
            epochs: BTreeMap::from([(1, vec![0; LENGTH as usize])]),
            file,
            content,
            outages: 0,
            counts: BTreeMap::new(),
            what: String::new(),
        };
        model.map();
        model
    }

    fn writer(&self) -> &WritableMapping {
        self.writer.as_ref().unwrap()
    }

    fn newest(&self) -> u64 {
        *self.epochs.last_key_value().unwrap().0
    }

    /// Maps the region anew; what was not flushed is gone.
    fn map(&mut self) {
        self.writer = None;
        self.bytes.clone_from(&self.epochs[&self.newest()]);
        self.outages = 0;
        let ways = [Tracking::Async, Tracking::Sync, Tracking::Hash];
        let tracking = Some(ways[self.random.draw(3) as usize]);
        let orders = [PullOrder::None, PullOrder::Sequential];
        let order = orders[self.random.draw(2) as usize].clone();
        let interval = [None, Some(Duration::from_millis(1)), Some(Duration::from_millis(20))]
            [self.random.draw(3) as usize];
        let push = PushOptions { interval, ..PushOptions::default() };
        let owner = Some("the model".into());
        let options = WriteOptions { map: map_options(order), push, tracking, owner };
        let address = format!("{}", region_at(&self.proxy.address(), "model")).parse().unwrap();
        let mut writer = None;
        // The network may cut this, too; and a lease whose holder had no connection has to lapse.
        wait_until("the region can be mapped", || {
            writer = WritableMapping::open_with(&address, &options, &patient_for(15_000))
                .inspect_err(|error| assert!(error.can_retry(), "{}: {error}", self.what))
                .ok();
            writer.is_some()
        });
        self.writer = writer;
        assert_eq!(self.writer().epoch(), self.newest(), "{}", self.what);
        assert_eq!(self.writer().len(), self.bytes.len() as u64, "{}", self.what);
    }

    /// Some bytes of the region.
    fn range(&mut self) -> Option<(u64, usize)> {
        let length = self.bytes.len() as u64;
        if length < 8 {
            return None;
        }
        let start = match self.random.draw(8) {
            // The short page at the end, and the borders of pages.
            0 => length - 1 - self.random.draw(8),
            1 | 2 => self.random.draw(length) / 4096 * 4096,
            _ => self.random.draw(length),
        };
        let most = if self.random.draw(10) == 0 { 40_000 } else { 5000 };
        Some((start, (1 + self.random.draw(most)).min(length - start) as usize))
    }

    fn write(&mut self) -> &'static str {
        let Some((start, count)) = self.range() else { return "nothing" };
        let at = start as usize;
        match self.random.draw(4) {
            0 | 1 => {
                let bytes = self.random.bytes(count);
                self.writer().write(start, &bytes).unwrap();
                self.bytes[at..at + count].copy_from_slice(&bytes);
                "written by a copy"
            }
            2 => {
                for _ in 0..1 + self.random.draw(5) {
                    let Some((start, _)) = self.range() else { break };
                    let (start, value) = (start / 8 * 8, self.random.draw(u64::MAX));
                    if start + 8 > self.bytes.len() as u64 {
                        continue;
                    }
                    self.writer().atomic_u64(start).unwrap().store(value, Ordering::Relaxed);
                    self.bytes[start as usize..][..8].copy_from_slice(&value.to_ne_bytes());
                }
                "written by stores"
            }
            _ => {
                let from = self.random.draw((self.content.len() - count) as u64);
                let memory = self.writer().memory();
                assert_eq!(memory.read_from(self.file.as_fd(), from, at, count).unwrap(), count);
                self.bytes[at..at + count].copy_from_slice(&self.content[from as usize..][..count]);
                "written by the kernel"
            }
        }
    }

    fn read(&mut self) {
        let Some((start, count)) = self.range() else { return };
        let mut bytes = vec![0; count];
        self.writer().read(start, &mut bytes).unwrap();
        assert!(bytes == self.bytes[start as usize..][..count], "{}: bytes {start}+{count}", self.what);
    }

    fn resize(&mut self) {
        let length = match self.random.draw(4) {
            0 => self.random.draw(CAPACITY + 1),
            1 => self.random.draw(CAPACITY / 4096 + 1) * 4096,
            2 => (self.bytes.len() as u64).saturating_sub(self.random.draw(6000)),
            _ => (self.bytes.len() as u64 + self.random.draw(6000)).min(CAPACITY),
        };
        if self.random.draw(3) == 0 {
            // What is behind the end is nobody's.
            let behind = (self.bytes.len() as u64).next_multiple_of(8) + 8 * self.random.draw(512);
            if let Some(word) = self.writer().atomic_u64(behind) {
                word.store(u64::MAX, Ordering::Relaxed);
            }
        }
        let error = self.writer().set_length(CAPACITY + 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        self.writer().set_length(length).unwrap_or_else(|error| panic!("{}: {error}", self.what));
        self.bytes.resize(length as usize, 0);
    }

    fn flush(&mut self) {
        let info = self.writer().flush().unwrap_or_else(|error| panic!("{}: {error}", self.what));
        let before = self.newest();
        let must_grow = self.epochs[&before] != self.bytes;
        assert!(info.epoch == before + 1 || (info.epoch == before && !must_grow), "{}: {info:?}", self.what);
        assert_eq!(info.length, self.bytes.len() as u64, "{}", self.what);
        self.epochs.insert(info.epoch, self.bytes.clone());
    }

    /// Somebody who comes new to the region sees its newest epoch.
    fn look(&mut self) {
        let at = region_at(&self.server.address, "model");
        let reader = RemoteStore::connect(&at, &patient_for(15_000)).unwrap();
        let info = reader.info();
        assert_eq!(info.epoch, self.newest(), "{}", self.what);
        let bytes = reader.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap();
        self.compare(&bytes, &self.epochs[&info.epoch], info.epoch);
    }

    /// Whether an epoch is what it has to be; else in which pages it is not, and which epoch's they are.
    fn compare(&self, found: &[u8], expected: &[u8], epoch: u64) {
        if found == expected {
            return;
        }
        let page = |bytes: &[u8], page: usize| bytes.chunks(4096).nth(page).map(<[u8]>::to_vec);
        let mut pages = Vec::new();
        for number in 0..found.len().max(expected.len()).div_ceil(4096) {
            let found = page(found, number);
            if found != page(expected, number) {
                let of = self.epochs.iter().find(|(_, bytes)| page(bytes, number) == found);
                pages.push((number, of.map(|(epoch, _)| *epoch)));
            }
        }
        let (lengths, newest) = ((found.len(), expected.len()), self.newest());
        panic!("{}: epoch {epoch} of {newest} is a mix: lengths {lengths:?}, pages {pages:?}", self.what);
    }

    /// A reader that stays where it was, or moves on to the newest epoch.
    fn follow(&mut self) {
        let address = format!("{}", region_at(&self.server.address, "model")).parse().unwrap();
        let order = if self.random.draw(2) == 0 { PullOrder::None } else { PullOrder::Sequential };
        let reader = self.reader.take().unwrap_or_else(|| {
            let options = map_options(order);
            let mapping = Mapping::open_with(&address, &options, &patient_for(15_000)).unwrap();
            let bytes = self.epochs[&mapping.epoch()].clone();
            Reader { mapping, bytes }
        });
        let Reader { mut mapping, mut bytes } = reader;
        if self.random.draw(2) == 0 {
            wait_until("it is refreshed", || match mapping.refresh() {
                Ok(_) => true,
                Err(error) => {
                    // Its connection is being made again.
                    let passes = error.can_retry() || error.kind() == ErrorKind::Stale;
                    assert!(passes, "{}: {error}", self.what);
                    false
                }
            });
            assert_eq!(mapping.epoch(), self.newest(), "{}", self.what);
            bytes.clone_from(&self.epochs[&mapping.epoch()]);
            self.epochs.retain(|epoch, _| *epoch + 2 > mapping.epoch());
        }
        match mapping.prefault(ByteRange::new(0, bytes.len() as u64)) {
            Ok(()) => self.compare(&mapping, &bytes, mapping.epoch()),
            // The server that held it for the reader was restarted, and the writer has moved on.
            Err(error) => assert_eq!(error.kind(), ErrorKind::Stale, "{}: {error}", self.what),
        }
        self.reader = Some(Reader { mapping, bytes });
    }

    fn step(&mut self, step: usize) {
        self.what = format!("step {step}");
        let draw = self.random.draw(1000);
        let done = match draw {
            0..=699 => self.write(),
            700..=919 => {
                self.read();
                "read"
            }
            920..=949 => {
                self.flush();
                "flushed"
            }
            950..=969 => {
                self.resize();
                "resized"
            }
            970..=977 => {
                self.look();
                "looked at"
            }
            978..=989 => {
                self.follow();
                "followed"
            }
            990 | 991 => {
                self.proxy.cut_all();
                self.outages += 1;
                "cut"
            }
            992 => {
                drop(self.server.server.take());
                self.server.start();
                self.outages += 1;
                "restarted"
            }
            _ if self.outages > 3 || draw == 999 => {
                if self.random.draw(2) == 0 {
                    self.flush();
                }
                self.map();
                "mapped anew"
            }
            _ => "nothing",
        };
        *self.counts.entry(done).or_default() += 1;
    }
}

/// Runs it. Answers the last epoch, and its bytes.
fn run(kept: Kept, seed: u64) -> Option<(u64, Vec<u8>)> {
    if !support::has_userfaultfd() {
        return None;
    }
    let mut model = Model::new(seed, kept);
    for step in 0..STEPS {
        model.step(step);
    }
    model.flush();
    model.look();
    eprintln!("{:?}", model.counts);
    let counts = &model.counts;
    for (done, least) in [
        ("flushed", 150),
        ("resized", 100),
        ("cut", 5),
        ("restarted", 3),
        ("followed", 50),
        ("mapped anew", 3),
    ] {
        assert!(counts.get(done).is_some_and(|count| *count >= least), "{done}: {counts:?}");
    }
    assert!(model.newest() > 150, "{} epochs", model.newest());
    model.epochs.pop_last()
}

#[test]
fn ten_thousand_steps_on_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("region");
    std::fs::write(&path, vec![0; LENGTH as usize]).unwrap();
    let Some((epoch, bytes)) = run(Kept::File(path.clone()), seed(1)) else { return };
    // What the file is, by itself.
    wait_until("the file is free", || match FileStore::open(&path, None, false) {
        Ok(store) => {
            assert_eq!((store.info().epoch, store.info().length), (epoch, bytes.len() as u64));
            assert!(store.read_bytes(ByteRange::new(0, bytes.len() as u64), epoch).unwrap() == bytes);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
            false
        }
    });
}

#[test]
fn ten_thousand_steps_in_memory() {
    run(Kept::Memory(Arc::new(MemoryStore::with_capacity(LENGTH, CAPACITY))), seed(2));
}
