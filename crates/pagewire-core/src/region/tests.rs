//! The sets against a model that holds every byte: the local copy, what the server has staged, what it has
//! flushed, and what the application has written.

use proptest::prelude::*;

use super::*;
use crate::chunk::ChunkSize;

/// A byte that neither the store nor a write ever holds: what is in the local copy before it is filled.
const GARBAGE: u8 = 0xEE;

#[derive(Clone, Debug)]
enum Op {
    Write { at: u64, len: u64, value: u8 },
    AskPull { chunk: u64 },
    ArrivePull { which: usize },
    TakeDirty { max_pages: u64 },
    ReadForPush { which: usize },
    EndPush { which: usize, ok: bool, applied: bool },
    BeginFlush,
    EndFlush { ok: bool },
    Evict { chunk: u64 },
    LoseServer { flush_applied: bool },
}

struct Push {
    ranges: Vec<ByteRange>,
    bytes: Option<Vec<Vec<u8>>>,
}

struct Flush {
    token: FlushSet,
    /// What the server had staged when it began.
    image: Vec<u8>,
    /// What must be flushed if it succeeds, if that is known: all that was written by then.
    promise: Option<Vec<u8>>,
}

struct Model {
    state: CopyState,
    local: Vec<u8>,
    truth: Vec<u8>,
    staged: Vec<u8>,
    flushed: Vec<u8>,
    pulls: Vec<(ByteRange, Vec<u8>)>,
    pushes: Vec<Push>,
    flush: Option<Flush>,
}

fn slice(bytes: &[u8], range: ByteRange) -> &[u8] {
    &bytes[range.start as usize..range.end as usize]
}

fn slice_mut(bytes: &mut [u8], range: ByteRange) -> &mut [u8] {
    &mut bytes[range.start as usize..range.end as usize]
}

impl Model {
    fn new(geometry: Geometry) -> Self {
        let store: Vec<u8> = (0..geometry.length()).map(|at| (at % 101) as u8).collect();
        Self {
            state: CopyState::new(geometry),
            local: vec![GARBAGE; store.len()],
            truth: store.clone(),
            staged: store.clone(),
            flushed: store,
            pulls: Vec::new(),
            pushes: Vec::new(),
            flush: None,
        }
    }

    fn apply(&mut self, op: &Op) {
        let geometry = self.state.geometry();
        match *op {
            Op::Write { at, len, value } => self.write(ByteRange::new(at, at + len), value),
            Op::AskPull { chunk } => {
                let range = geometry.range_of(ChunkIndex(chunk));
                self.pulls.push((range, slice(&self.staged, range).to_vec()));
            }
            Op::ArrivePull { which } if !self.pulls.is_empty() => {
                let (range, bytes) = self.pulls.swap_remove(which % self.pulls.len());
                for fill in self.state.place(geometry.chunk_at(range.start).expect("a chunk")) {
                    let from = (fill.start - range.start) as usize;
                    slice_mut(&mut self.local, fill)
                        .copy_from_slice(&bytes[from..from + fill.len() as usize]);
                }
            }
            Op::TakeDirty { max_pages } => {
                let ranges = self.state.take_dirty(max_pages);
                let taken: u64 =
                    ranges.iter().map(|range| geometry.pages_within(*range).count() as u64).sum();
                assert!(taken <= max_pages);
                if !ranges.is_empty() {
                    self.pushes.push(Push { ranges, bytes: None });
                }
            }
            Op::ReadForPush { which } if !self.pushes.is_empty() => {
                let which = which % self.pushes.len();
                self.read_for_push(which);
            }
            Op::EndPush { which, ok, applied } if !self.pushes.is_empty() => {
                let which = which % self.pushes.len();
                self.end_push(which, ok, applied);
            }
            Op::BeginFlush => match (self.state.begin_flush(), self.flush.is_some()) {
                (Ok(token), false) => {
                    let promise = self.state.dirty().is_empty() && self.state.pushing().is_empty();
                    let promise = promise.then(|| self.truth.clone());
                    self.flush = Some(Flush { token, image: self.staged.clone(), promise });
                }
                (Err(CopyStateError::FlushUnderWay), true) => {}
                (answer, under_way) => panic!("{answer:?} while a flush under way is {under_way}"),
            },
            Op::EndFlush { ok } => {
                if let Some(flush) = self.flush.take() {
                    if ok {
                        self.flushed = flush.image;
                    }
                    assert_eq!(self.state.end_flush(flush.token, ok), ok);
                    if let Some(promise) = flush.promise.filter(|_| ok) {
                        assert!(self.flushed == promise, "a complete flush left something out");
                    }
                }
            }
            Op::Evict { chunk } => {
                if let Ok(range) = self.state.evict(ChunkIndex(chunk)) {
                    assert_eq!(range, geometry.range_of(ChunkIndex(chunk)));
                    slice_mut(&mut self.local, range).fill(GARBAGE);
                    self.pulls.retain(|(pulled, _)| *pulled != range);
                }
            }
            Op::LoseServer { flush_applied } => {
                let flush = self.flush.take();
                if let Some(flush) = flush.as_ref().filter(|_| flush_applied) {
                    self.flushed.clone_from(&flush.image);
                }
                self.staged.clone_from(&self.flushed);
                self.state.lost_server();
                if let Some(flush) = flush {
                    assert!(!self.state.end_flush(flush.token, flush_applied), "a void flush counted");
                }
            }
            Op::ArrivePull { .. } | Op::ReadForPush { .. } | Op::EndPush { .. } => {}
        }
    }

    fn write(&mut self, range: ByteRange, value: u8) {
        if range.end > self.truth.len() as u64 {
            let before = self.state.dirty().clone();
            assert!(matches!(self.state.write(range), Err(CopyStateError::OutOfRange { .. })));
            assert_eq!(self.state.dirty(), &before);
            return;
        }
        if let WriteOutcome::PullFirst(ranges) = self.state.write(range).expect("inside the region") {
            assert!(ranges.iter().all(|page| page.overlaps(range) && !range.contains(*page)));
            for range in ranges {
                assert_eq!(self.state.place_range(range), [range]);
                slice_mut(&mut self.local, range).copy_from_slice(slice(&self.staged, range));
            }
            assert_eq!(self.state.write(range), Ok(WriteOutcome::Marked));
        }
        slice_mut(&mut self.local, range).fill(value);
        slice_mut(&mut self.truth, range).fill(value);
    }

    fn read_for_push(&mut self, which: usize) {
        let push = &mut self.pushes[which];
        let local = &self.local;
        push.bytes
            .get_or_insert_with(|| push.ranges.iter().map(|range| slice(local, *range).to_vec()).collect());
    }

    fn end_push(&mut self, which: usize, ok: bool, applied: bool) {
        self.read_for_push(which);
        let Push { ranges, bytes } = self.pushes.swap_remove(which);
        if ok || applied {
            for (range, bytes) in ranges.iter().zip(bytes.expect("just read")) {
                slice_mut(&mut self.staged, *range).copy_from_slice(&bytes);
            }
        }
        let ended = if ok { self.state.pushed(&ranges) } else { self.state.put_back(&ranges) };
        assert_eq!(ended, Ok(()));
    }

    /// What is in the local copy is what was written; what is not is to be had from the server.
    fn check_reads(&self) {
        let geometry = self.state.geometry();
        let mut next = 0;
        let end = ByteRange::new(geometry.length(), geometry.length());
        for missing in self.state.missing(geometry.whole()).into_iter().chain([end]) {
            let held = ByteRange::new(next, missing.start);
            assert!(slice(&self.local, held) == slice(&self.truth, held), "wrong bytes in {held}");
            assert!(slice(&self.staged, missing) == slice(&self.truth, missing), "{missing} is lost");
            next = missing.end;
        }
        for chunk in 0..geometry.chunk_count() {
            let missing = self.state.missing(geometry.range_of(ChunkIndex(chunk)));
            assert_eq!(self.state.present().contains(chunk), missing.is_empty());
        }
    }

    fn finish(mut self) {
        if self.flush.is_some() {
            self.apply(&Op::EndFlush { ok: false });
        }
        while !self.state.dirty().is_empty() || !self.pushes.is_empty() {
            self.apply(&Op::TakeDirty { max_pages: 3 });
            self.apply(&Op::EndPush { which: 0, ok: true, applied: true });
        }
        self.apply(&Op::BeginFlush);
        self.apply(&Op::EndFlush { ok: true });
        self.check_reads();
        assert!(self.state.is_clean());
        assert!(self.flushed == self.truth, "the store is not what was written");
        for chunk in 0..self.state.geometry().chunk_count() {
            assert!(self.state.evict(ChunkIndex(chunk)).is_ok());
        }
        assert!(self.state.present().is_empty());
    }
}

fn any_op(length: u64) -> impl Strategy<Value = Op> {
    let chunk = move || 0..length.div_ceil(8192);
    prop_oneof![
        6 => (0..length, 0u64..9000, 110u8..220).prop_map(|(at, len, value)| Op::Write { at, len, value }),
        1 => (0..length, 0u64..6, 110u8..220)
            .prop_map(|(page, n, value)| Op::Write { at: page / 4096 * 4096, len: n * 4096, value }),
        4 => chunk().prop_map(|chunk| Op::AskPull { chunk }),
        4 => any::<usize>().prop_map(|which| Op::ArrivePull { which }),
        4 => (0u64..5).prop_map(|max_pages| Op::TakeDirty { max_pages }),
        3 => any::<usize>().prop_map(|which| Op::ReadForPush { which }),
        5 => any::<(usize, bool, bool)>().prop_map(|(which, ok, applied)| Op::EndPush { which, ok, applied }),
        3 => Just(Op::BeginFlush),
        3 => any::<bool>().prop_map(|ok| Op::EndFlush { ok }),
        3 => chunk().prop_map(|chunk| Op::Evict { chunk }),
        1 => any::<bool>().prop_map(|flush_applied| Op::LoseServer { flush_applied }),
    ]
}

fn any_case() -> impl Strategy<Value = (u64, Vec<Op>)> {
    (20_000u64..34_000).prop_flat_map(|length| (Just(length), prop::collection::vec(any_op(length), 0..60)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_byte_is_lost_or_invented((length, ops) in any_case()) {
        let chunk = ChunkSize::new(8192).expect("a chunk size");
        let mut model = Model::new(Geometry::new(length, chunk));
        for op in &ops {
            model.apply(op);
            model.check_reads();
        }
        model.finish();
    }
}

fn state(length: u64) -> CopyState {
    CopyState::new(Geometry::new(length, ChunkSize::new(8192).expect("a chunk size")))
}

fn pages(pages: Range<u64>) -> ByteRange {
    ByteRange::of_pages(pages)
}

#[test]
fn a_chunk_written_in_full_before_its_pull_is_present_once() {
    let mut state = state(10_000);
    assert_eq!(state.write(ByteRange::new(0, 10_000)), Ok(WriteOutcome::Marked));
    assert!(state.present().is_full());
    assert_eq!(state.place(ChunkIndex(0)), []);
    assert_eq!(state.place(ChunkIndex(1)), []);
    assert_eq!(state.present().count(), 2);
}

#[test]
fn a_page_written_while_it_is_pushed_is_pushed_again_afterwards() {
    let mut state = state(40_960);
    assert_eq!(state.write(pages(1..2)), Ok(WriteOutcome::Marked));
    let first = state.take_dirty(10);
    assert_eq!(state.write(pages(1..2)), Ok(WriteOutcome::Marked));
    assert_eq!(state.take_dirty(10), [], "two pushes of one page must not race");
    state.pushed(&first).expect("it was being pushed");
    assert!(state.dirty().contains(1) && state.staged().contains(1));
    assert_eq!(state.take_dirty(10), [pages(1..2)]);
}

#[test]
fn a_page_that_is_written_all_the_time_does_not_starve_the_others() {
    let mut state = state(40_960);
    assert_eq!(state.write(pages(0..4)), Ok(WriteOutcome::Marked));
    for expected in 0..4 {
        assert_eq!(state.take_dirty(1), [pages(expected..expected + 1)]);
        state.pushed(&[pages(expected..expected + 1)]).expect("it was being pushed");
        assert_eq!(state.write(pages(0..1)), Ok(WriteOutcome::Marked));
    }
}

#[test]
fn a_flush_covers_what_was_staged_when_it_began() {
    let mut state = state(40_960);
    assert_eq!(state.write(pages(0..2)), Ok(WriteOutcome::Marked));
    let first = state.take_dirty(1);
    state.pushed(&first).expect("it was being pushed");
    let flush = state.begin_flush().expect("the only one");
    assert_eq!(flush.pages(), 1);
    let second = state.take_dirty(1);
    state.pushed(&second).expect("it was being pushed");
    assert_eq!(state.begin_flush(), Err(CopyStateError::FlushUnderWay));
    assert!(state.end_flush(flush, true));
    assert_eq!(state.staged().runs().collect::<Vec<_>>(), vec![1..2]);
}

#[test]
fn an_unflushed_chunk_is_not_evicted_and_says_why() {
    let mut state = state(40_960);
    assert_eq!(state.write(pages(0..2)), Ok(WriteOutcome::Marked));
    let taken = state.take_dirty(1);
    state.pushed(&taken).expect("it was being pushed");
    let error = state.evict(ChunkIndex(0)).expect_err("it is busy");
    assert_eq!(error, CopyStateError::Busy { chunk: ChunkIndex(0), dirty: 1, pushing: 0, staged: 1 });
    assert_eq!(error.to_string(), "chunk 0 cannot be dropped: 1 pages dirty, 0 being pushed, 1 not flushed");
}

#[test]
fn a_flush_under_way_keeps_its_pages_until_the_store_has_answered() {
    let mut state = state(40_960);
    assert_eq!(state.write(pages(0..2)), Ok(WriteOutcome::Marked));
    let taken = state.take_dirty(2);
    state.pushed(&taken).expect("it was being pushed");
    let flush = state.begin_flush().expect("the only one");
    let busy = CopyStateError::Busy { chunk: ChunkIndex(0), dirty: 0, pushing: 0, staged: 2 };
    assert_eq!(state.evict(ChunkIndex(0)), Err(busy));
    assert!(!state.is_clean());
    assert!(!state.end_flush(flush, false));
    assert_eq!(state.evict(ChunkIndex(0)), Err(busy), "a failed flush has flushed nothing");
    let flush = state.begin_flush().expect("the only one");
    assert_eq!(state.lost_server(), 2);
    assert!(!state.end_flush(flush, true), "the answer of a server that is gone");
    assert_eq!(state.take_dirty(10), [pages(0..2)]);
}

#[test]
fn the_outcome_of_a_push_that_is_not_under_way_changes_nothing() {
    let mut state = state(40_960);
    assert_eq!(state.write(pages(0..2)), Ok(WriteOutcome::Marked));
    let taken = state.take_dirty(10);
    for stray in [pages(0..3), ByteRange::new(0, 5000), ByteRange::new(8192, 1 << 20)] {
        assert_eq!(state.pushed(&[pages(0..1), stray]), Err(CopyStateError::NotPushing(stray)));
    }
    assert_eq!(state.pushing().count(), 2);
    assert_eq!(state.put_back(&taken), Ok(()));
    assert_eq!(state.dirty().count(), 2);
}
