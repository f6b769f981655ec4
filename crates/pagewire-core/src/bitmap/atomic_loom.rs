//! Every interleaving of the races that the summary could lose a member in. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p pagewire-core --lib loom --release`.

use loom::sync::Arc;
use loom::thread;

use super::*;

fn with_members(members: &[u64]) -> Arc<AtomicBitSet> {
    let set = Arc::new(AtomicBitSet::new(8));
    members.iter().for_each(|&member| assert!(set.insert(member)));
    set
}

fn summary(set: &AtomicBitSet) -> u64 {
    set.summary[0].load(Ordering::Relaxed)
}

#[test]
fn removing_the_last_bit_of_a_word_never_hides_an_insertion() {
    loom::model(|| {
        let set = with_members(&[1]);
        let remover = thread::spawn({
            let set = Arc::clone(&set);
            move || assert!(set.remove(1))
        });
        assert!(set.insert(0));
        // At once, not only after the remover has ended.
        assert_eq!(set.next_member(0), Some(0));
        remover.join().expect("the remover");
        assert_eq!((set.next_member(0), set.count(), summary(&set)), (Some(0), 1, 1));
    });
}

#[test]
fn a_search_finds_what_another_thread_has_inserted_before() {
    loom::model(|| {
        let set = with_members(&[1]);
        let remover = thread::spawn({
            let set = Arc::clone(&set);
            move || set.remove(1)
        });
        let inserter = thread::spawn({
            let set = Arc::clone(&set);
            move || set.insert(0)
        });
        assert!(inserter.join().expect("the inserter"));
        assert_eq!(set.next_member(0), Some(0));
        assert!(remover.join().expect("the remover"));
    });
}

#[test]
fn taking_all_leaves_or_takes_a_concurrent_insertion() {
    loom::model(|| {
        let set = with_members(&[3]);
        let inserter = thread::spawn({
            let set = Arc::clone(&set);
            move || assert!(set.insert(0))
        });
        let taken = set.take_all();
        inserter.join().expect("the inserter");
        let left = set.take_all();
        assert!(taken.contains(3) && !left.contains(3));
        assert!(taken.contains(0) != left.contains(0));
        assert_eq!((set.count(), summary(&set)), (0, 0));
    });
}

#[test]
fn one_of_two_is_told_that_it_inserted_and_one_that_it_removed() {
    loom::model(|| {
        let set = with_members(&[]);
        let other = thread::spawn({
            let set = Arc::clone(&set);
            move || set.insert(5)
        });
        let here = set.insert(5);
        assert_ne!(here, other.join().expect("the other"));
        assert_eq!((set.count(), summary(&set)), (1, 1));
    });
    loom::model(|| {
        let set = with_members(&[5]);
        let other = thread::spawn({
            let set = Arc::clone(&set);
            move || set.take_all().contains(5)
        });
        let here = set.remove(5);
        assert_ne!(here, other.join().expect("the other"));
        assert_eq!((set.count(), summary(&set)), (0, 0));
    });
}

#[test]
fn whoever_sees_the_mark_sees_the_bytes() {
    loom::model(|| {
        let set = with_members(&[]);
        let bytes = Arc::new(AtomicU64::new(0));
        let writer = thread::spawn({
            let (set, bytes) = (Arc::clone(&set), Arc::clone(&bytes));
            move || {
                bytes.store(7, Ordering::Relaxed);
                set.insert(2);
            }
        });
        if set.contains(2) {
            assert_eq!(bytes.load(Ordering::Relaxed), 7);
        }
        if set.take_all().contains(2) {
            assert_eq!(bytes.load(Ordering::Relaxed), 7);
        }
        writer.join().expect("the writer");
    });
}

#[test]
fn removing_what_was_just_inserted_does_not_hide_another_member() {
    loom::model(|| {
        let set = with_members(&[1]);
        let inserter = thread::spawn({
            let set = Arc::clone(&set);
            move || set.insert(0)
        });
        if set.remove(0) {
            assert_eq!(set.next_member(0), Some(1));
        }
        assert!(inserter.join().expect("the inserter"));
    });
}

#[test]
fn full_is_not_said_while_a_removed_member_is_missing() {
    loom::model(|| {
        let set = Arc::new(AtomicBitSet::new(2));
        set.insert_range(0..2);
        let remover = thread::spawn({
            let set = Arc::clone(&set);
            move || set.remove(0)
        });
        set.remove(1);
        // If this is counted before the removal of the same member is, the count alone says 2.
        set.insert(0);
        assert!(!set.is_full());
        remover.join().expect("the remover");
    });
}
