//! Files that somebody else has written to: refused, or pulled again, and never wrong bytes.

use super::*;

/// The disks of a cache that has all of a region, and changes if they are wanted.
fn filled(server: &Arc<Server>, machine: &Machine, changes: bool) -> (Disks, Vec<u8>) {
    let disks = Disks::new(machine);
    let cache = disks.open(server, changes).unwrap();
    epoch_of(&cache);
    let mut model = server.bytes();
    if changes {
        cache.fence().unwrap();
        model[4 * PAGE_SIZE as usize..6 * PAGE_SIZE as usize].fill(77);
        keep(&cache, &model, 4..6).unwrap();
        cache.flush_local().unwrap();
    }
    drop(cache);
    (disks, model)
}

#[test]
fn a_bit_that_flips_anywhere_in_the_state_or_the_image_is_noticed() {
    let (server, machine) = (Server::new(), Machine::stopping_at(usize::MAX));
    let (disks, model) = filled(&server, &machine, false);
    for (which, size) in [("state", disks.state.bytes().len()), ("image", disks.image.bytes().len())] {
        // Every byte that means something, and one of each few of the rest; each with another bit.
        let in_head = |at: usize| at % BLOCK < 64 || at % BLOCK > BLOCK - 10 || at >= 2 * BLOCK;
        for at in (0..size).filter(|at| (which == "state" && in_head(*at)) || at.is_multiple_of(97)) {
            let damaged = disks.after_kill(&machine);
            let disk = if which == "state" { &damaged.state } else { &damaged.image };
            let mut byte = [disk.bytes()[at]];
            byte[0] ^= 1 << (at % 8);
            disk.write_all_at(&byte, at as u64).unwrap();
            match damaged.open(&server, false) {
                Ok(cache) => assert!(epoch_of(&cache) == model, "byte {at} of the {which}"),
                Err(error) => {
                    let refused = matches!(error.kind(), ErrorKind::Usage | ErrorKind::Unsupported);
                    assert!(refused, "byte {at} of the {which}: {error}");
                }
            }
        }
    }
}

#[test]
fn a_bit_that_flips_anywhere_in_what_is_unpushed_is_noticed() {
    let (server, machine) = (Server::new(), Machine::stopping_at(usize::MAX));
    let before = server.bytes();
    let (disks, model) = filled(&server, &machine, true);
    let bytes = disks.kept.bytes();
    // Where there is something: the blocks, the indexes and the pages.
    let places = (0..bytes.len()).filter(|at| *at < 3 * BLOCK || bytes[*at] != 0).filter(|at| at % 7 == 0);
    let mut outcomes = [0; 3];
    for at in places {
        let damaged = disks.after_kill(&machine);
        damaged.kept.write_all_at(&[bytes[at] ^ 1 << (at % 8)], at as u64).unwrap();
        match damaged.open(&server, true) {
            Ok(cache) => {
                let view = staged_view(&cache, &before);
                assert!(view == model || view == before, "byte {at}: neither with the changes nor without");
                outcomes[usize::from(view == before)] += 1;
            }
            Err(error) => {
                outcomes[2] += 1;
                assert!(error.to_string().contains("to give them up, remove"), "byte {at}: {error}");
            }
        }
    }
    let [found, without, refused] = outcomes;
    assert!(found > 500 && refused > 500, "{outcomes:?}");
    assert_eq!(without, 0, "a commit has a copy");
}

fn staged_view(cache: &CacheStore, before: &[u8]) -> Vec<u8> {
    let mut bytes = before.to_vec();
    let unpushed = cache.unpushed();
    for page in unpushed.pages() {
        let at = (page * PAGE_SIZE) as usize;
        bytes[at..at + PAGE_SIZE as usize].copy_from_slice(&unpushed.read(page).unwrap().unwrap());
    }
    bytes
}

#[test]
fn files_that_are_cut_off_or_swapped_are_pulled_again() {
    let (server, machine) = (Server::new(), Machine::stopping_at(usize::MAX));
    let (disks, model) = filled(&server, &machine, false);
    let (other, newer) = (Server::new(), Server::new());
    newer.store.write_bytes(0, b"newer").unwrap();
    newer.store.flush_all().unwrap();
    let (others, _) = filled(&other, &machine, false);
    for image in [0, 1, PAGE_SIZE, LENGTH - 1, LENGTH + 1] {
        for state in [ENTRIES - 1, ENTRIES, ENTRIES + 16, ENTRIES + 21 * 16] {
            let damaged = disks.after_kill(&machine);
            damaged.image.set_len(image).unwrap();
            damaged.state.set_len(state).unwrap();
            let cache = damaged.open(&server, false).unwrap();
            assert!(epoch_of(&cache) == model, "{image} bytes of image, {state} of state");
            assert!(cache.check().unwrap());
            drop(cache);
            assert!(damaged.image.bytes() == model);
        }
    }
    let swapped = Disks { state: others.state, ..disks.after_kill(&machine) };
    assert!(epoch_of(&swapped.open(&server, false).unwrap()) == model);
    // While it is in use, too.
    let cache = disks.open(&server, false).unwrap();
    assert!(epoch_of(&cache) == model);
    disks.image.write_all_at(&[0xee; 3 * PAGE_SIZE as usize], 100).unwrap();
    assert!(epoch_of(&cache) == model);
    disks.image.set_len(10).unwrap();
    assert!(epoch_of(&cache) == model && epoch_of(&cache) == model);
}
