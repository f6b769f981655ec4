//! Records read as they were written; what is torn, damaged or hostile is noticed.

use proptest::prelude::*;

use super::*;
use crate::bitmap::BitSet;

fn ids() -> impl Strategy<Value = (MigrationId, Token)> {
    (any::<[u8; 16]>(), any::<u64>()).prop_map(|(id, token)| (MigrationId(id), Token(token)))
}

fn origins() -> impl Strategy<Value = OriginRecord> {
    (any::<u64>(), ids(), 0..4u8).prop_map(|(sequence, (id, token), kind)| {
        let phase = match kind {
            0 => OriginPhase::Offered { id, token },
            1 => OriginPhase::Withdrawn { id },
            2 => OriginPhase::Moved { id, token },
            _ => OriginPhase::Released { id, token },
        };
        OriginRecord { sequence, phase }
    })
}

fn destinations() -> impl Strategy<Value = DestinationRecord> {
    let origin = prop_oneof![9 => ".{0,60}", 1 => Just("x".repeat(MAX_ORIGIN))];
    let witness = (any::<[u8; 16]>(), any::<u64>()).prop_map(|(store, epoch)| WitnessAt { store, epoch });
    let witnesses = proptest::collection::vec(witness, 0..=MAX_WITNESSES);
    let rest = (origin, witnesses);
    (any::<u64>(), ids(), 0..5u8, rest).prop_map(|(sequence, (id, token), kind, (origin, witnesses))| {
        let phase = match kind {
            0 => DestinationPhase::Begun { id },
            1 => DestinationPhase::Aborted { id },
            2 => DestinationPhase::Accepted { id, token },
            3 => DestinationPhase::Completed { id, token },
            _ => DestinationPhase::Home { id, token },
        };
        DestinationRecord { sequence, phase, origin, witnesses }
    })
}

const NOTHING: [u8; BLOCK] = [0; BLOCK];

/// A slot with a right hash over whatever fields.
fn forged(magic: &[u8; 8], version: u32, fields: &[u64]) -> [u8; BLOCK] {
    fields.iter().fold(Writer::new(magic, version), |writer, value| writer.u64(*value)).end()
}

#[test]
fn slots_are_written_in_turns() {
    assert_eq!((slot_at(1), slot_at(2), slot_at(3)), (BLOCK as u64, 0, BLOCK as u64));
}

#[test]
fn nothing_was_ever_whole_tells_of_no_migration_and_two_damaged_slots_tell_nothing() {
    let mut damaged = NOTHING;
    damaged[17] = 1;
    assert_eq!(OriginRecord::newest([&NOTHING, &NOTHING]), Ok(None));
    assert_eq!(OriginRecord::newest([&NOTHING, &damaged]), Ok(None), "the first write was torn");
    assert_eq!(OriginRecord::newest([&damaged, &damaged]), Err(RecordError::Damaged));
    assert_eq!(DestinationRecord::newest([&damaged, &damaged]), Err(RecordError::Damaged));
}

#[test]
fn what_no_record_can_say_is_refused() {
    let wrong_phase = forged(ORIGIN, VERSION, &[1, 9, 0, 0, 0]);
    let refused = OriginRecord::newest([&wrong_phase, &NOTHING]);
    assert_eq!(refused, Err(RecordError::Nonsense("a phase that there is not")));
    let too_long = forged(DESTINATION, VERSION, &[1, 1, 0, 0, 0, u64::MAX]);
    let refused = DestinationRecord::newest([&NOTHING, &too_long]);
    assert_eq!(refused, Err(RecordError::Nonsense("an address that is too long")));
    let too_many = forged(DESTINATION, VERSION, &[1, 1, 0, 0, 0, 0, MAX_WITNESSES as u64 + 1]);
    let refused = DestinationRecord::newest([&NOTHING, &too_many]);
    assert_eq!(refused, Err(RecordError::Nonsense("more witnesses than there can be")));
    let not_text = forged(DESTINATION, VERSION, &[1, 1, 0, 0, 0, 8, u64::MAX]);
    let refused = DestinationRecord::newest([&not_text, &NOTHING]);
    assert_eq!(refused, Err(RecordError::Nonsense("an address that is not UTF-8")));
    let later = forged(ORIGIN, VERSION + 1, &[]);
    assert_eq!(OriginRecord::newest([&later, &NOTHING]), Err(RecordError::Version(VERSION + 1)));
    let other_side = forged(DESTINATION, VERSION, &[1, 1, 0, 0, 0, 0]);
    assert_eq!(OriginRecord::newest([&other_side, &other_side]), Err(RecordError::Damaged));
}

proptest! {
    #[test]
    fn the_newest_record_counts_and_a_torn_one_leaves_the_one_before(
        old in origins(), new in origins(), ours in destinations(), cut in 0..BLOCK, flip in 0..BLOCK * 8,
    ) {
        prop_assume!(old.sequence < u64::MAX);
        let new = OriginRecord { sequence: old.sequence + 1, ..new };
        let (before, after) = (old.encode(), new.encode());
        prop_assert_eq!(OriginRecord::newest([&before, &after]), Ok(Some(new)));
        prop_assert_eq!(OriginRecord::newest([&after, &before]), Ok(Some(new)));
        let mut torn = after;
        torn[cut..].copy_from_slice(&NOTHING[cut..]);
        prop_assert_eq!(OriginRecord::newest([&before, &torn]), Ok(Some(old)));
        let mut flipped = after;
        flipped[flip / 8] ^= 1 << (flip % 8);
        prop_assert_eq!(OriginRecord::newest([&before, &flipped]), Ok(Some(old)));

        let slot = ours.encode();
        let mut flipped = slot;
        flipped[flip / 8] ^= 1 << (flip % 8);
        prop_assert_eq!(DestinationRecord::newest([&slot, &NOTHING]), Ok(Some(ours.clone())));
        prop_assert_eq!(DestinationRecord::newest([&slot, &flipped]), Ok(Some(ours)));
        prop_assert_eq!(DestinationRecord::newest([&flipped, &NOTHING]), Ok(None));
    }
}

const REGION: [u8; 16] = [7; 16];
const ID: MigrationId = MigrationId([8; 16]);

/// Sets of a few sections, from sparse ones to full ones.
fn sets() -> impl Strategy<Value = HomeSets> {
    let run = (0u64..100_000, prop_oneof![4 => 1u64..5, 1 => 1u64..70_000]);
    let runs = prop::collection::vec(run, 0..40);
    let dense = prop_oneof![4 => Just(0u64), 1 => Just(2u64), 1 => Just(3u64)];
    let pages = prop_oneof![1 => Just(0u64), 1 => Just(1u64 << 15), 8 => 1u64..100_000];
    (any::<[u64; 3]>(), runs.clone(), runs, dense, pages, any::<bool>()).prop_map(
        |([sequence, epoch, next_epoch], runs, more, dense, count, same)| {
            let mut pages = BitSet::new(count);
            let put = |set: &mut BitSet, runs: &[(u64, u64)]| {
                for (start, len) in runs {
                    set.insert_range((*start).min(count)..(start + len).min(count));
                }
            };
            put(&mut pages, &runs);
            // As fragmented as can be, so that bits are shorter.
            for page in (0..count.min(33_000)).filter(|page| dense > 0 && page % dense == 0) {
                pages.insert(page);
            }
            let mut next_pages = pages.clone();
            if !same {
                put(&mut next_pages, &more);
            }
            HomeSets { id: ID, region: REGION, sequence, epoch, pages, next_epoch, next_pages }
        },
    )
}

fn decode(bytes: &[u8], pages: u64) -> Result<HomeSets, HomeError> {
    HomeSets::decode(bytes, ID, REGION, pages)
}

#[test]
fn the_set_of_the_stores_epoch_counts() {
    let mut sets = HomeSets {
        id: ID,
        region: REGION,
        sequence: 3,
        epoch: 5,
        pages: BitSet::new(10),
        next_epoch: 6,
        next_pages: BitSet::full(10),
    };
    assert_eq!(sets.at(5).map(BitSet::count), Ok(0));
    assert_eq!(sets.at(6).map(BitSet::count), Ok(10));
    assert_eq!(sets.at(7), Err(HomeError::Epoch { store: 7, epoch: 5, next_epoch: 6 }));
    let old = sets.encode();
    sets.sequence = 4;
    let new = sets.encode();
    let newest = |copies| HomeSets::newest(copies, ID, REGION, 10).map(|sets| sets.sequence);
    assert_eq!(newest([&old, &new]), Ok(4));
    assert_eq!(newest([&new[..20], &old]), Ok(3));
    assert_eq!(newest([&[], &[]]), Err(HomeError::Damaged));
    assert_eq!(HomeSets::newest([&old, &[]], ID, [0; 16], 10), Err(HomeError::Other));
    assert_eq!(HomeSets::newest([&[], &old], MigrationId([0; 16]), REGION, 10), Err(HomeError::Other));
    assert_eq!(HomeSets::newest([&old, &new], ID, REGION, 11), Err(HomeError::Other));
}

#[test]
fn a_list_is_short_where_the_set_is_simple_and_bounded_where_it_is_not() {
    let pages = 1 << 20;
    let sets = |pages: BitSet, next_pages: BitSet| {
        let sets =
            HomeSets { id: ID, region: REGION, sequence: 1, epoch: 1, pages, next_epoch: 2, next_pages };
        assert_eq!(decode(&sets.encode(), 1 << 20), Ok(sets.clone()));
        sets.encode().len()
    };
    assert!(sets(BitSet::new(pages), BitSet::full(pages)) < 200);
    let mut every_other = BitSet::new(pages);
    (0..pages).step_by(2).for_each(|page| assert!(every_other.insert(page)));
    let most = pages as usize / 8 + 32 + 100;
    assert!(sets(every_other.clone(), every_other.clone()) <= most + 32, "the second set is as the first");
    assert!(sets(every_other, BitSet::new(pages)) <= most + 32);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn home_sets_read_as_they_were_written_and_nothing_else_does(sets in sets(), flip: u64, cut: u64) {
        let pages = sets.pages.len();
        let bytes = sets.encode();
        prop_assert_eq!(decode(&bytes, pages), Ok(sets));
        let mut flipped = bytes.clone();
        let bit = (flip % (bytes.len() as u64 * 8)) as usize;
        flipped[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(decode(&flipped, pages), Err(HomeError::Damaged));
        let cut = (cut % bytes.len() as u64) as usize;
        prop_assert_eq!(decode(&bytes[..cut], pages), Err(HomeError::Damaged));
    }

    /// Whoever can write the file can make the hash fit: then it is read, or refused, and never more than that.
    #[test]
    fn forged_home_sets_do_no_harm(
        sets in sets(), edits in prop::collection::vec((any::<u64>(), any::<u8>()), 1..5),
    ) {
        let pages = sets.pages.len();
        let mut bytes = sets.encode();
        let end = bytes.len() - 8;
        for (at, value) in edits {
            bytes[(at % end as u64) as usize] = value;
        }
        let sum = crate::journal::hash(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&sum);
        if let Ok(read) = decode(&bytes, pages) {
            prop_assert_eq!((read.pages.len(), read.next_pages.len()), (pages, pages));
        }
    }

    #[test]
    fn bytes_from_anywhere_are_no_home_sets(
        bytes in prop::collection::vec(any::<u8>(), 0..300), pages in 0u64..1 << 40,
    ) {
        prop_assert_eq!(decode(&bytes, pages), Err(HomeError::Damaged));
    }
}
