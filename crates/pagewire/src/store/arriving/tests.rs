//! A region on its way against plain bytes: whatever comes, is written, flushed, given up and crashes in whatever order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::store::{Blocking, MemoryStore, Part, Urgency};

const PAGES: u64 = 24;
const CAPACITY: u64 = PAGES * PAGE_SIZE;

/// What a keeper was told last: which pages are durable at which epoch.
#[derive(Default, Clone)]
struct Noted(Arc<Mutex<BTreeMap<u64, BitSet>>>);

impl Keeper for Noted {
    fn flushing(&self, epoch: u64, before: &BitSet, after: &BitSet) -> Result<()> {
        *self.0.lock().unwrap() = BTreeMap::from([(epoch, before.clone()), (epoch + 1, after.clone())]);
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// The pages come in the background.
    Fill(u64, u64),
    /// Somebody reads, and so they come.
    Read(u64, u64),
    Write(u64, u64, u8),
    Zero(u64, u64),
    SetLength(u64),
    Flush,
    Settle,
    Discard,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..CAPACITY, 1..CAPACITY / 3);
    let step = prop_oneof![
        4 => (0..PAGES, 1..6u64).prop_map(|(from, pages)| Step::Fill(from, pages)),
        3 => range().prop_map(|(from, length)| Step::Read(from, length)),
        4 => (range(), any::<u8>()).prop_map(|((from, length), byte)| Step::Write(from, length, byte)),
        1 => range().prop_map(|(from, length)| Step::Zero(from, length)),
        1 => (0..CAPACITY).prop_map(Step::SetLength),
        2 => Just(Step::Flush),
        1 => Just(Step::Settle),
        1 => Just(Step::Discard),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..60)
}

/// The region, and what it should be.
struct Both {
    home: Arc<MemoryStore>,
    origin: Arc<dyn Store>,
    noted: Noted,
    arriving: Arc<Arriving>,
    frozen: Vec<u8>,
    now: Vec<u8>,
    flushed: Vec<u8>,
}

fn byte_of(offset: u64) -> u8 {
    (offset / PAGE_SIZE * 7 + offset % 251 + 1) as u8
}

impl Both {
    fn new(length: u64) -> Self {
        let origin: Arc<dyn Store> = Arc::new(MemoryStore::new(CAPACITY));
        origin.fence().unwrap();
        let frozen: Vec<u8> = (0..length).map(byte_of).collect();
        origin.write_bytes(0, &frozen).unwrap();
        origin.flush_all().unwrap();
        let home = Arc::new(MemoryStore::with_capacity(0, CAPACITY));
        home.fence().unwrap();
        let noted = Noted::default();
        let arriving =
            Arriving::new(home.clone(), origin.clone(), BitSet::new(PAGES), Some(Box::new(noted.clone())));
        let whole = [ByteRange::new(0, CAPACITY)];
        arriving.resize(length).unwrap();
        arriving.invalidate(&whole);
        arriving.settle().unwrap();
        // Which may not forget the length, since no page has come.
        assert_eq!(arriving.stage().length, length);
        let (now, flushed) = (frozen.clone(), frozen.clone());
        Self { home, origin, noted, arriving, frozen, now, flushed }
    }

    fn range(&self, from: u64, length: u64) -> ByteRange {
        let end = self.now.len() as u64;
        ByteRange::new(from.min(end), (from + length).min(end))
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Fill(from, pages) => {
                let range = ByteRange::of_pages(from..(from + pages).min(PAGES));
                let end = self.frozen.len() as u64;
                let mut bytes = vec![0; range.len() as usize];
                let known = range.clamp_to(end);
                bytes[..known.len() as usize]
                    .copy_from_slice(&self.frozen[known.start as usize..known.end as usize]);
                self.arriving.fill(Part::Bytes { offset: range.start, bytes: &bytes }).unwrap();
            }
            Step::Read(from, length) => self.check(self.range(from, length)),
            Step::Write(from, length, byte) => {
                let range = self.range(from, length);
                let bytes = vec![byte; range.len() as usize];
                wait(|done| self.arriving.write(&[range], &bytes, done)).unwrap();
                self.now[range.start as usize..range.end as usize].copy_from_slice(&bytes);
            }
            Step::Zero(from, length) => {
                let range = self.range(from, length);
                wait(|done| self.arriving.zero(&[range], done)).unwrap();
                self.now[range.start as usize..range.end as usize].fill(0);
            }
            Step::SetLength(length) => {
                wait(|done| self.arriving.set_length(length, done)).unwrap();
                self.now.resize(length as usize, 0);
            }
            Step::Flush => {
                self.arriving.flush_all().unwrap();
                self.flushed = self.now.clone();
            }
            Step::Settle => {
                self.arriving.settle().unwrap();
                self.flushed = self.now.clone();
            }
            Step::Discard => {
                self.arriving.discard().unwrap();
                self.now = self.flushed.clone();
            }
            Step::Crash => {
                self.home.fence().unwrap();
                let present = self.noted.0.lock().unwrap()[&self.home.info().epoch].clone();
                let keeper = Some(Box::new(self.noted.clone()) as Box<dyn Keeper>);
                self.arriving = Arriving::new(self.home.clone(), self.origin.clone(), present, keeper);
                self.now = self.flushed.clone();
            }
        }
    }

    fn check(&self, range: ByteRange) {
        let bytes = self.arriving.read_bytes(range, STAGED).unwrap();
        assert!(bytes == self.now[range.start as usize..range.end as usize], "bytes {range}");
    }
}

proptest! {
    #[test]
    fn is_what_it_should_be(length in 1..CAPACITY, steps in steps()) {
        let mut both = Both::new(length);
        for step in &steps {
            both.apply(step);
            prop_assert_eq!(both.arriving.stage().length, both.now.len() as u64);
            both.check(ByteRange::new(0, both.now.len() as u64));
        }
        // The rest comes, and nobody asks the origin for anything any more.
        for range in both.arriving.absent() {
            both.apply(&Step::Fill(range.start / PAGE_SIZE, range.len().div_ceil(PAGE_SIZE)));
        }
        prop_assert!(both.arriving.absent().is_empty());
        both.apply(&Step::Flush);
        prop_assert!(both.arriving.is_settled());
        both.arriving.complete();
        both.origin.write_bytes(0, &[0xee; CAPACITY as usize]).unwrap();
        both.check(ByteRange::new(0, both.now.len() as u64));
        let info = both.arriving.pin(None).unwrap();
        let bytes = both.arriving.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap();
        prop_assert!(bytes == both.now);
    }
}

#[test]
fn a_page_that_is_written_while_it_comes_stays_what_was_written() {
    for seed in 0..200u64 {
        let both = Both::new(CAPACITY);
        let (arriving, frozen) = (&both.arriving, &both.frozen);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for page in 0..PAGES {
                    let at = (page * PAGE_SIZE) as usize;
                    let bytes = &frozen[at..at + PAGE_SIZE as usize];
                    arriving.fill(Part::Bytes { offset: at as u64, bytes }).unwrap();
                }
            });
            scope.spawn(|| {
                for page in (0..PAGES).filter(|page| (page + seed) % 3 == 0) {
                    let range = ByteRange::of_pages(page..page + 1);
                    wait(|done| arriving.write(&[range], &[0xab; PAGE_SIZE as usize], done)).unwrap();
                }
            });
        });
        for page in 0..PAGES {
            let bytes = arriving.read_bytes(ByteRange::of_pages(page..page + 1), STAGED).unwrap();
            let written = (page + seed) % 3 == 0;
            let at = (page * PAGE_SIZE) as usize;
            assert!(
                if written {
                    bytes == [0xab; PAGE_SIZE as usize]
                } else {
                    bytes == frozen[at..at + bytes.len()]
                },
                "page {page} of seed {seed}"
            );
        }
    }
}

#[test]
fn nobody_else_reads_it_before_all_is_here() {
    let both = Both::new(CAPACITY);
    assert_eq!(both.arriving.pin(None).err().unwrap().kind(), ErrorKind::Busy);
    assert!(both.arriving.pin(None).err().unwrap().can_retry());
    let epoch = both.home.info().epoch;
    let error = both.arriving.read_bytes(ByteRange::new(0, 4096), epoch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
}

#[test]
fn what_the_writer_and_others_flush_at_once_is_flushed() {
    let both = Both::new(CAPACITY);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200 {
                both.arriving.settle().unwrap();
            }
        });
        for round in 1..100u8 {
            wait(|done| both.arriving.write(&[ByteRange::new(0, 4096)], &[round; 4096], done)).unwrap();
            let Stage { number, flushed, .. } = both.arriving.stage();
            assert_eq!(flushed, u64::from(round) - 1, "the writer's numbers are its own");
            wait(|done| both.arriving.flush(Flush { number: flushed + 1, stage: number, done })).unwrap();
            let epoch = both.home.info().epoch;
            assert!(both.home.read_bytes(ByteRange::new(0, 4096), epoch).unwrap() == [round; 4096]);
        }
    });
}

#[test]
fn what_cannot_be_noted_is_not_flushed() {
    struct Full;
    impl Keeper for Full {
        fn flushing(&self, _: u64, _: &BitSet, _: &BitSet) -> Result<()> {
            Err(Error::new(ErrorKind::NoSpace, "the disk is full"))
        }
    }
    let both = Both::new(CAPACITY);
    let arriving =
        Arriving::new(both.home.clone(), both.origin.clone(), BitSet::new(PAGES), Some(Box::new(Full)));
    wait(|done| arriving.write(&[ByteRange::new(0, 4096)], &[1; 4096], done)).unwrap();
    let before = both.home.info().epoch;
    assert_eq!(arriving.flush_all().unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(both.home.info().epoch, before);
}

#[test]
fn a_read_of_what_is_here_and_there_is_whole() {
    let both = Both::new(CAPACITY);
    let written = ByteRange::of_pages(3..5);
    wait(|done| both.arriving.write(&[written], &[9; 8192], done)).unwrap();
    let read = ByteRange::new(5000, 70_001);
    let bytes = crate::store::Gather::wait(read, |sink| {
        both.arriving.read(Read { ranges: vec![read], epoch: STAGED, urgency: Urgency::Demand, sink });
    });
    let mut expected = both.frozen;
    expected[written.start as usize..written.end as usize].fill(9);
    assert!(bytes.unwrap() == expected[read.start as usize..read.end as usize]);
}

/// An origin that answers nothing before it is told how.
#[derive(Default)]
struct Silent {
    asked: Mutex<Vec<Read>>,
}

impl Store for Silent {
    fn info(&self) -> Info {
        MemoryStore::new(CAPACITY).info()
    }

    fn read(&self, read: Read) {
        self.asked.lock().unwrap().push(read);
    }

    fn write(&self, _: &[ByteRange], _: &[u8], done: Completion) {
        done(Ok(()));
    }

    fn flush(&self, flush: Flush) {
        (flush.done)(Ok(self.info()));
    }
}

#[test]
fn what_the_origin_does_not_answer_any_more_has_come_in_another_way() {
    let both = Both::new(CAPACITY);
    let silent = Arc::new(Silent::default());
    let arriving = Arriving::new(both.home.clone(), silent.clone(), BitSet::new(PAGES), None);
    let read = |pages: std::ops::Range<u64>| {
        let range = ByteRange::of_pages(pages);
        let (sender, answer) = std::sync::mpsc::sync_channel(1);
        let sink = crate::store::Gather::new(range, move |result| sender.send(result).unwrap());
        arriving.read(Read { ranges: vec![range], epoch: STAGED, urgency: Urgency::Demand, sink });
        answer
    };
    let gone = || Error::new(ErrorKind::Fenced, "the region has moved");
    // Of three pages the origin gives one before it goes; of two nothing, and one of them does not come otherwise.
    let (whole, lacking) = (read(2..5), read(6..8));
    for page in [2, 3, 4, 6] {
        let range = ByteRange::of_pages(page..page + 1);
        arriving.fill(Part::Bytes { offset: range.start, bytes: &[page as u8; 4096] }).unwrap();
    }
    let asked = std::mem::take(&mut *silent.asked.lock().unwrap());
    asked[0].sink.part(Part::Bytes { offset: 2 * PAGE_SIZE, bytes: &[2; 4096] });
    for Read { sink, .. } in asked {
        sink.done(Err(gone()));
    }
    let expected: Vec<u8> = (2..5u8).flat_map(|page| [page; 4096]).collect();
    assert!(whole.recv().unwrap().unwrap() == expected);
    assert_eq!(lacking.recv().unwrap().unwrap_err().kind(), ErrorKind::Fenced);
    // A page of which a part is written is brought first, which fails, but after it has come.
    std::thread::scope(|scope| {
        let arriving = &arriving;
        let written = scope.spawn(move || {
            wait(|done| arriving.write(&[ByteRange::new(9 * PAGE_SIZE, 9 * PAGE_SIZE + 1)], &[7], done))
        });
        let asked = loop {
            match silent.asked.lock().unwrap().pop() {
                Some(read) => break read,
                None => std::thread::yield_now(),
            }
        };
        arriving.fill(Part::Bytes { offset: 9 * PAGE_SIZE, bytes: &[9; 4096] }).unwrap();
        asked.sink.done(Err(gone()));
        written.join().unwrap().unwrap();
    });
    let bytes = both.home.read_bytes(ByteRange::of_pages(9..10), STAGED).unwrap();
    assert_eq!(bytes[..2], [7, 9]);
}
