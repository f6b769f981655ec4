//! What was written reads as it was, and what was not is noticed.

use proptest::prelude::*;

use super::*;

fn state(sequence: u64) -> State {
    State {
        sequence,
        region: [7; 16],
        file: FileId { inode: 1, birth: 2 },
        stamp: Stamp { size: 3, modified: 4 },
        applied: 5,
        applying: 6,
        length: 8,
        token: 9,
        flushed: 10,
    }
}

#[test]
fn the_newest_state_that_is_whole_counts() {
    let (one, two) = (state(1).encode(), state(2).encode());
    assert_eq!(State::newest([&two, &one]), Ok(state(2)));
    assert_eq!(State::newest([&one, &two]), Ok(state(2)));
    let mut torn = two;
    torn[512..].copy_from_slice(&[0; BLOCK - 512]);
    assert_eq!(State::newest([&torn, &one]), Ok(state(1)));
    assert_eq!(State::newest([&torn, &[0; BLOCK]]), Err(Damaged::Hash));
}

#[test]
fn a_later_version_is_told_from_damage() {
    let mut block = state(1).encode();
    block[8] = 2;
    let sum = hash(&block[..BLOCK - 8]);
    block[BLOCK - 8..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(State::newest([&block, &state(9).encode()]), Err(Damaged::Version(2)));
}

#[test]
fn areas_do_not_overlap() {
    let (a, b) = (Area::of_epoch(2), Area::of_epoch(3));
    let per_segment = SEGMENT / BLOCK as u64;
    assert_eq!(a.page_at(0), AREAS);
    assert_eq!(b.page_at(0), AREAS + SEGMENT);
    assert_eq!(a.page_at(per_segment), AREAS + 2 * SEGMENT);
    assert_eq!(a.page_at(per_segment - 1) + BLOCK as u64, b.page_at(0));
    let range = ByteRange::new(SEGMENT - 10, SEGMENT + 10);
    let places: Vec<_> = b.places(range).collect();
    assert_eq!(places, [(AREAS + 2 * SEGMENT - 10, 10), (AREAS + 3 * SEGMENT, 10)]);
}

proptest! {
    #[test]
    fn blocks_and_indexes_read_as_they_were_written(
        values: [u64; 8],
        pages in prop::collection::vec(any::<(u64, u64, u64)>(), 0..50),
        zeroes in prop::collection::vec(any::<u64>(), 0..50),
        flip in 0..BLOCK * 8,
    ) {
        let index = Index { pages, zeroes };
        let bytes = index.encode();
        let [epoch, slots, length, cut, token, flushed, ..] = values;
        let hash = super::hash(&bytes);
        let commit = Commit { epoch, slots, index: bytes.len() as u64, hash, length, cut, token, flushed };
        let block = commit.encode();
        prop_assert_eq!(Commit::decode(&block), Ok(commit));
        prop_assert_eq!(Index::decode(commit.hash, &bytes), Ok(index));
        let mut flipped = block;
        flipped[flip / 8] ^= 1 << (flip % 8);
        prop_assert_eq!(Commit::decode(&flipped), Err(Damaged::Hash));
        let mut flipped = bytes.clone();
        flipped[flip / 8 % bytes.len()] ^= 1 << (flip % 8);
        prop_assert_eq!(Index::decode(commit.hash, &flipped), Err(Damaged::Hash));
    }
}
