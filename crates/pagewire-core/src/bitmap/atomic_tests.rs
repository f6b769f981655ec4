//! The shared set against the plain one, and under threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::*;

use super::*;

/// Longer than a group, so that searches skip groups and start in the midst of one.
const LEN: u64 = 3 * 4096 + 100;

#[derive(Clone, Debug)]
enum Op {
    Insert(u64),
    Remove(u64),
    InsertRange(u64, u64),
    RemoveRange(u64, u64),
    TakeAll { put_back: bool },
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..LEN).prop_map(Op::Insert),
        2 => (0..LEN).prop_map(Op::Remove),
        3 => (0..LEN, 0u64..300).prop_map(|(a, n)| Op::InsertRange(a, (a + n).min(LEN))),
        1 => (0..LEN, 0..LEN).prop_map(|(a, b)| Op::RemoveRange(a.min(b), a.max(b))),
        1 => any::<bool>().prop_map(|put_back| Op::TakeAll { put_back }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn agrees_with_the_plain_set(ops in prop::collection::vec(any_op(), 0..20), starts in prop::collection::vec(0..LEN + 70, 8)) {
        let set = AtomicBitSet::new(LEN);
        let mut model = BitSet::new(LEN);
        for op in ops {
            match op {
                Op::Insert(i) => prop_assert_eq!(set.insert(i), model.insert(i)),
                Op::Remove(i) => prop_assert_eq!(set.remove(i), model.remove(i)),
                Op::InsertRange(a, b) => prop_assert_eq!(set.insert_range(a..b), model.insert_range(a..b)),
                Op::RemoveRange(a, b) => prop_assert_eq!(set.remove_range(a..b), model.remove_range(a..b)),
                Op::TakeAll { put_back } => {
                    let taken = set.take_all();
                    prop_assert_eq!(&taken, &model);
                    prop_assert!(set.is_empty() && set.count() == 0);
                    if put_back { set.put_back(&taken) } else { model.clear() }
                }
            }
            prop_assert_eq!(set.count(), model.count());
        }
        prop_assert_eq!(set.snapshot(), model.clone());
        for from in starts {
            prop_assert_eq!(set.next_member(from), model.next_member(from));
            prop_assert_eq!(set.next_gap(from), model.next_gap(from));
            prop_assert_eq!(from < LEN && set.contains(from), from < LEN && model.contains(from));
        }
    }
}

#[test]
fn full_is_said_at_the_last_insertion() {
    for len in [1, 64, 100, 4096, 5000] {
        let set = AtomicBitSet::new(len);
        set.insert_range(1..len);
        assert!(!set.is_full());
        set.insert(0);
        assert!(set.is_full());
        set.remove(len - 1);
        assert!(!set.is_full());
    }
}

#[test]
#[should_panic(expected = "index 100 is outside a set of 100")]
fn an_index_past_the_end_is_a_bug() {
    AtomicBitSet::new(100).insert(100);
}

#[test]
fn nothing_is_lost_or_taken_twice_between_threads() {
    let set = AtomicBitSet::new(LEN);
    let done = AtomicBool::new(false);
    let taken = thread::scope(|scope| {
        let taker = scope.spawn(|| {
            let mut all = BitSet::new(LEN);
            loop {
                let last = done.load(Ordering::Acquire);
                let taken = set.take_all();
                assert_eq!(all.insert_all(&taken), taken.count(), "a member was taken twice");
                if last {
                    return all;
                }
            }
        });
        let inserters: Vec<_> = (0..2)
            .map(|part| {
                let set = &set;
                scope.spawn(move || (0..LEN).filter(|i| i % 2 == part).for_each(|i| assert!(set.insert(i))))
            })
            .collect();
        inserters.into_iter().for_each(|inserter| inserter.join().expect("an inserter"));
        done.store(true, Ordering::Release);
        taker.join().expect("the taker")
    });
    assert!(taken.is_full());
    assert!(set.is_empty());
    assert_eq!(set.count(), 0);
    assert!(set.summary.iter().all(|group| group.load(Ordering::Relaxed) == 0));
}
