//! Entries fit the one page that they were made for; blocks that are damaged are noticed.

use proptest::prelude::*;

use super::*;
use crate::journal::{Damaged, SEGMENT};

#[test]
fn streams_do_not_overlap_and_slots_are_where_their_bytes_are() {
    let mut taken = std::collections::BTreeMap::new();
    for stream in [Stream::index(4), Stream::index(5), Stream::PAGES] {
        for (place, length) in stream.places(ByteRange::new(0, 3 * stream.segment())) {
            assert!(taken.insert(place, length).is_none());
        }
    }
    let mut at = SLOTS_AT;
    for (place, length) in taken {
        assert_eq!(place, at);
        at += length;
    }
    for slot in [0, 1, SEGMENT / PAGE_SIZE - 1, SEGMENT / PAGE_SIZE, 1000] {
        let bytes = ByteRange::new(slot * PAGE_SIZE, (slot + 1) * PAGE_SIZE);
        let places: Vec<_> = Stream::PAGES.places(bytes).collect();
        assert_eq!(places, [(Stream::slot_at(slot), PAGE_SIZE)]);
    }
}

#[test]
fn the_newest_commit_counts_wherever_it_stands() {
    let commit = |number| Kept { number, ..Kept::default() }.encode();
    let nothing = [0; BLOCK];
    let newest = |blocks: [&[u8; BLOCK]; 3]| Kept::newest(blocks).map(|commit| commit.number);
    assert_eq!(newest([&commit(4), &commit(3), &commit(3)]), Ok(4));
    assert_eq!(newest([&nothing, &commit(3), &commit(4)]), Ok(4));
    assert_eq!(newest([&nothing, &nothing, &nothing]), Err(Damaged::Hash));
}

proptest! {
    #[test]
    fn an_entry_fits_nothing_else(salt: u64, page: u64, epoch in 1..1_000_000u64, hash: u64, flip in 0..128usize) {
        let entry = Entry::new(salt, page, epoch, hash);
        prop_assert_eq!(Entry::decode(&entry.encode()), entry);
        prop_assert!(entry.fits(salt, page, epoch, hash) && entry.fits(salt, page, epoch + 1, hash));
        prop_assert!(!entry.fits(salt, page, epoch - 1, hash), "it is too new");
        prop_assert!(!entry.fits(salt ^ 1, page, epoch, hash));
        prop_assert!(!entry.fits(salt, page ^ 1, epoch, hash));
        prop_assert!(!entry.fits(salt, page, epoch, hash ^ 1));
        let mut bytes = entry.encode();
        bytes[flip / 8] ^= 1 << (flip % 8);
        prop_assert!(!Entry::decode(&bytes).fits(salt, page, u64::MAX, hash));
    }

    #[test]
    fn blocks_read_as_they_were_written(values: [u64; 10], region: [u8; 16], flip in 0..BLOCK * 8) {
        let [number, epoch, token, submitted, length, cut, before, index, hash, pages] = values;
        let kept = Kept { number, region, epoch, token, submitted, length, cut, before, index, hash, pages };
        let head = Head { sequence: number, region, salt: token, epoch, length };
        prop_assert_eq!(Kept::decode(&kept.encode()), Ok(kept));
        prop_assert_eq!(Head::decode(&head.encode()), Ok(head));
        let flipped = |mut block: [u8; BLOCK]| {
            block[flip / 8] ^= 1 << (flip % 8);
            block
        };
        prop_assert_eq!(Kept::decode(&flipped(kept.encode())), Err(Damaged::Hash));
        prop_assert_eq!(Head::decode(&flipped(head.encode())), Err(Damaged::Hash));
        prop_assert_eq!(Head::newest([&flipped(head.encode()), &head.encode()]), Ok(head));
    }
}
