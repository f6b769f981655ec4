//! The sets against a model that holds a value for every page: what the application has written, what the store
//! has staged, and what it has flushed.

use proptest::prelude::*;

use super::*;

const PAGES: u64 = 12;

#[derive(Clone, Debug)]
enum Op {
    Write { page: u64, count: u64 },
    Take { most: u64 },
    ReadForPush { which: usize },
    EndPush { which: usize, ok: bool, applied: bool },
    BeginFlush,
    EndFlush { done: bool },
    Lose { flush_applied: bool },
}

struct Push {
    batch: Batch,
    /// What the pages held when they were read.
    values: Option<Vec<(u64, u64)>>,
    /// Which life of the store it was sent to.
    life: u64,
}

struct Flush {
    token: FlushSet,
    /// What the store had staged when it began.
    image: Vec<u64>,
    /// What must be flushed if it succeeds, if that is known: all that was written by then.
    promise: Option<Vec<u64>>,
}

struct Model {
    state: PushState,
    clock: u64,
    local: Vec<u64>,
    staged: Vec<u64>,
    flushed: Vec<u64>,
    life: u64,
    pushes: Vec<Push>,
    flush: Option<Flush>,
}

impl Model {
    fn new() -> Self {
        let zeroes = || vec![0; PAGES as usize];
        Self {
            state: PushState::new(PAGES),
            clock: 0,
            local: zeroes(),
            staged: zeroes(),
            flushed: zeroes(),
            life: 0,
            pushes: Vec::new(),
            flush: None,
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Write { page, count } => {
                let pages = page..(page + count).min(PAGES);
                self.clock += 1;
                for page in pages.clone() {
                    self.local[page as usize] = self.clock;
                }
                self.state.mark(pages);
            }
            Op::Take { most } => {
                if let Some(batch) = self.state.take(most) {
                    assert!(batch.count() <= most);
                    assert!(batch.pages().windows(2).all(|pair| pair[0].end <= pair[1].start));
                    self.pushes.push(Push { batch, values: None, life: self.life });
                }
            }
            Op::ReadForPush { which } if !self.pushes.is_empty() => {
                let which = which % self.pushes.len();
                self.read(which);
            }
            Op::EndPush { which, ok, applied } if !self.pushes.is_empty() => {
                let which = which % self.pushes.len();
                self.read(which);
                let Push { batch, values, life } = self.pushes.swap_remove(which);
                if (ok || applied) && life == self.life {
                    for (page, value) in values.expect("just read") {
                        self.staged[page as usize] = value;
                    }
                }
                if ok { self.state.pushed(batch) } else { self.state.put_back(batch) }
            }
            Op::BeginFlush => {
                let promise = self.state.is_pushed().then(|| self.local.clone());
                match (self.state.begin_flush(), self.flush.is_some()) {
                    (Some(token), false) => {
                        self.flush = Some(Flush { token, image: self.staged.clone(), promise });
                    }
                    (None, true) => {}
                    (answer, under_way) => panic!("{answer:?} while a flush under way is {under_way}"),
                }
            }
            Op::EndFlush { done } => {
                if let Some(flush) = self.flush.take() {
                    if done {
                        self.flushed = flush.image;
                    } else {
                        self.staged.clone_from(&self.flushed);
                    }
                    assert_eq!(self.state.end_flush(flush.token, done), done);
                    if let Some(promise) = flush.promise.filter(|_| done) {
                        assert!(self.flushed == promise, "a complete flush left something out");
                    }
                }
            }
            Op::Lose { flush_applied } => {
                let flush = self.flush.take();
                if let Some(flush) = flush.as_ref().filter(|_| flush_applied) {
                    self.flushed.clone_from(&flush.image);
                }
                self.staged.clone_from(&self.flushed);
                self.life += 1;
                self.state.lost();
                if let Some(flush) = flush {
                    assert!(!self.state.end_flush(flush.token, flush_applied), "a void flush counted");
                }
            }
            Op::ReadForPush { .. } | Op::EndPush { .. } => {}
        }
        self.check();
    }

    fn read(&mut self, which: usize) {
        let push = &mut self.pushes[which];
        let pages = push.batch.pages().iter().cloned().flatten();
        let local = &self.local;
        push.values.get_or_insert_with(|| pages.map(|page| (page, local[page as usize])).collect());
    }

    /// Whatever the store lacks is on its way to it.
    fn check(&self) {
        let state = &self.state;
        for page in 0..PAGES {
            let at = page as usize;
            let to_push = state.dirty.contains(page) || state.pushing.contains(page);
            assert!(to_push || self.local[at] == self.staged[at], "page {page} is never pushed");
            let to_flush = to_push || state.staged.contains(page) || state.flushing.contains(page);
            assert!(to_flush || self.local[at] == self.flushed[at], "page {page} is never flushed");
        }
    }

    fn finish(mut self) {
        self.apply(&Op::EndFlush { done: false });
        while !self.state.is_pushed() {
            self.apply(&Op::Take { most: 3 });
            self.apply(&Op::EndPush { which: 0, ok: true, applied: true });
        }
        self.apply(&Op::BeginFlush);
        self.apply(&Op::EndFlush { done: true });
        assert!(self.state.is_clean());
        assert!(self.flushed == self.local, "the store is not what was written");
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..PAGES, 1u64..4).prop_map(|(page, count)| Op::Write { page, count }),
        4 => (1u64..5).prop_map(|most| Op::Take { most }),
        3 => any::<usize>().prop_map(|which| Op::ReadForPush { which }),
        5 => any::<(usize, bool, bool)>().prop_map(|(which, ok, applied)| Op::EndPush { which, ok, applied }),
        3 => Just(Op::BeginFlush),
        3 => any::<bool>().prop_map(|done| Op::EndFlush { done }),
        1 => any::<bool>().prop_map(|flush_applied| Op::Lose { flush_applied }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn no_page_is_lost(ops in prop::collection::vec(any_op(), 0..80)) {
        let mut model = Model::new();
        ops.iter().for_each(|op| model.apply(op));
        model.finish();
    }
}

fn take(state: &mut PushState, most: u64) -> Batch {
    state.take(most).expect("there are dirty pages")
}

fn pages(batch: &Batch) -> Vec<u64> {
    batch.pages().iter().cloned().flatten().collect()
}

#[test]
fn a_page_written_while_it_is_pushed_is_pushed_again_afterwards() {
    let mut state = PushState::new(10);
    state.mark(1..2);
    let first = take(&mut state, 10);
    state.mark(1..2);
    assert!(state.take(10).is_none(), "two pushes of one page must not race");
    state.pushed(first);
    assert!(state.dirty().contains(1) && state.staged().contains(1));
    assert_eq!(pages(&take(&mut state, 10)), [1]);
}

#[test]
fn a_page_that_is_written_all_the_time_does_not_starve_the_others() {
    let mut state = PushState::new(10);
    state.mark(0..4);
    for expected in 0..4 {
        let batch = take(&mut state, 1);
        assert_eq!(pages(&batch), [expected]);
        state.pushed(batch);
        state.mark(0..1);
    }
}

#[test]
fn a_flush_covers_what_was_staged_when_it_began() {
    let mut state = PushState::new(10);
    state.mark(0..2);
    let first = take(&mut state, 1);
    state.pushed(first);
    let flush = state.begin_flush().expect("the only one");
    assert_eq!(flush.pages(), 1);
    let second = take(&mut state, 1);
    state.pushed(second);
    assert!(state.begin_flush().is_none());
    assert!(state.end_flush(flush, true));
    assert_eq!(state.staged().runs().collect::<Vec<_>>(), vec![1..2]);
}

#[test]
fn what_a_store_gives_up_is_dirty_also_where_its_push_ends_later() {
    let mut state = PushState::new(10);
    state.mark(0..3);
    let (first, second) = (take(&mut state, 1), take(&mut state, 1));
    state.pushed(first);
    let flush = state.begin_flush().expect("the only one");
    assert!(!state.end_flush(flush, false));
    state.pushed(second);
    assert_eq!(state.dirty().count(), 3, "nobody knows whether the store gave the second up, too");
}

#[test]
fn long_runs_are_taken_in_aligned_pieces_and_short_ones_together() {
    let mut state = PushState::new(64);
    for pages in [1..2, 7..8, 13..40, 50..51] {
        state.mark(pages);
    }
    let pieces: [&[(u64, u64)]; 5] =
        [&[(1, 2), (7, 8), (13, 16)], &[(16, 24)], &[(24, 32)], &[(32, 40)], &[(50, 51)]];
    for expected in pieces {
        let batch = state.take(8).expect("there is more");
        assert!(batch.pages().iter().map(|run| (run.start, run.end)).eq(expected.iter().copied()));
    }
}

#[test]
fn pages_that_are_gone_are_pushed_no_more() {
    let mut state = PushState::new(10);
    state.mark(0..6);
    let batch = take(&mut state, 2);
    state.pushed(batch);
    state.forget(1..10);
    assert_eq!(state.staged().count() + state.dirty().count(), 1);
    assert_eq!(state.lost(), 1);
}

#[test]
fn what_was_written_again_is_not_clean_after_a_flush() {
    let mut state = PushState::new(100);
    state.mark(10..20);
    let batch = state.take(100).unwrap();
    state.pushed(batch);
    let flush = state.begin_flush().unwrap();
    state.mark(12..13);
    state.mark(15..16);
    let batch = state.take(1).unwrap();
    assert_eq!(batch.pages()[0], 12..13);
    assert_eq!(state.clean_after(&flush), [10..12, 13..15, 16..20], "dirty, and on its way");
    state.pushed(batch);
    assert_eq!(state.clean_after(&flush), [10..12, 13..15, 16..20], "and staged");
    assert!(state.end_flush(flush, true));
}
