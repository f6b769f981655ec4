//! What is found changed, and what is not overlooked.

use std::os::unix::fs::FileExt;

use pagewire_core::delta::Algorithm;

use super::*;

const SCHEME: Scheme = Scheme { algorithm: Algorithm::Xxh3, key: *b"0123456789abcdef" };

fn watched(bytes: &[u8], threads: usize) -> (tempfile::NamedTempFile, Watched) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at(bytes, 0).unwrap();
    let watched = Watched::open(file.path(), SCHEME, Some(threads)).unwrap();
    (file, watched)
}

fn changed(watched: &Watched) -> Vec<ByteRange> {
    let mut ranges = Vec::new();
    watched.take_dirty(&mut ranges).unwrap();
    ranges
}

fn read_all(watched: &Watched) -> Vec<u8> {
    let mut bytes = vec![0xee; watched.length() as usize];
    watched.read_back(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_not_pushed_is_found_until_it_is_read() {
    let (file, watched) = watched(&[7; 3 * PAGE + 5], 1);
    let all = [ByteRange::of_pages(0..4)];
    assert_eq!(changed(&watched), all);
    assert_eq!(changed(&watched), all, "nobody has read it");
    assert_eq!(read_all(&watched), [7; 3 * PAGE + 5]);
    assert!(changed(&watched).is_empty());
    file.as_file().write_all_at(b"new", 3 * PAGE_SIZE).unwrap();
    file.as_file().write_all_at(b"new", PAGE_SIZE - 1).unwrap();
    assert_eq!(changed(&watched), [ByteRange::of_pages(0..2), ByteRange::of_pages(3..4)]);
}

#[test]
fn a_page_that_changes_while_it_is_read_and_back_is_found() {
    let (file, watched) = watched(&[1; PAGE], 1);
    read_all(&watched);
    file.as_file().write_all_at(&[2; PAGE], 0).unwrap();
    assert_eq!(changed(&watched).len(), 1);
    // Torn between two versions, as it is read; then it is what it was at the beginning.
    file.as_file().write_all_at(&[3; PAGE / 2], 0).unwrap();
    let torn = read_all(&watched);
    assert_eq!((torn[0], torn[PAGE - 1]), (3, 2));
    for version in [2, 1] {
        file.as_file().write_all_at(&[version; PAGE], 0).unwrap();
        assert_eq!(changed(&watched).len(), 1, "the region has the torn one");
    }
    assert_eq!(read_all(&watched), [1; PAGE]);
    assert!(changed(&watched).is_empty());
}

#[test]
fn holes_are_zeroes_wherever_they_are() {
    let pages = 4 * PIECE / PAGE_SIZE + 3;
    let (file, watched) = watched(&[], 3);
    file.as_file().set_len(pages * PAGE_SIZE - 100).unwrap();
    watched.set_length(watched.look_at_length().unwrap());
    assert!(changed(&watched).is_empty(), "what has grown is zeroes at the region, too");
    for page in [0, 1, 500, PIECE / PAGE_SIZE, pages - 1] {
        file.as_file().write_all_at(b"here", page * PAGE_SIZE + 17).unwrap();
    }
    let single = |page: u64| ByteRange::of_pages(page..page + 1);
    let expected = [ByteRange::of_pages(0..2), single(500), single(PIECE / PAGE_SIZE), single(pages - 1)];
    assert_eq!(changed(&watched), expected);
    let bytes = read_all(&watched);
    assert_eq!(&bytes[500 * PAGE + 17..500 * PAGE + 21], b"here");
    assert!(changed(&watched).is_empty());
    // Zeroes that were written are what the hole was.
    file.as_file().write_all_at(&[0; PAGE], 700 * PAGE_SIZE).unwrap();
    assert!(changed(&watched).is_empty());
}

#[test]
fn an_end_that_moves_leaves_zeroes_behind() {
    let (file, watched) = watched(&[5; 3 * PAGE], 2);
    read_all(&watched);
    // Cut before the length is looked at: what is behind is zeroes meanwhile.
    file.as_file().set_len(PAGE_SIZE + 10).unwrap();
    assert_eq!(changed(&watched), [ByteRange::of_pages(1..3)]);
    let length = watched.look_at_length().unwrap();
    watched.set_length(length);
    assert_eq!(
        changed(&watched),
        [ByteRange::of_pages(1..2)],
        "of the last page the region has less than was pushed"
    );
    assert_eq!(read_all(&watched).len(), PAGE + 10);
    file.as_file().set_len(3 * PAGE_SIZE).unwrap();
    watched.set_length(watched.look_at_length().unwrap());
    assert!(changed(&watched).is_empty(), "both have grown by zeroes");
    file.as_file().write_all_at(&[5], 2 * PAGE_SIZE).unwrap();
    assert_eq!(changed(&watched), [ByteRange::of_pages(2..3)]);
}

#[test]
fn another_file_at_the_path_is_compared_with_what_was_pushed() {
    let (file, watched) = watched(&[5; 3 * PAGE], 2);
    read_all(&watched);
    assert!(!watched.reopen(file.path()).unwrap());
    let other = tempfile::NamedTempFile::new_in(file.path().parent().unwrap()).unwrap();
    let mut bytes = vec![5; 3 * PAGE];
    bytes[PAGE] = 6;
    other.as_file().write_all_at(&bytes, 0).unwrap();
    other.persist(file.path()).unwrap();
    assert!(watched.reopen(file.path()).unwrap());
    assert_eq!(changed(&watched), [ByteRange::of_pages(1..2)]);
    std::fs::remove_file(file.path()).unwrap();
    assert_eq!(watched.reopen(file.path()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(changed(&watched).len(), 1, "what is open is read still");
}

#[test]
fn a_file_that_is_cut_under_its_mapping_is_zeroes_from_there_on() {
    // Of a file system that may be mapped, whatever there is for temporary files.
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    file.as_file().write_all_at(&[5; 8 * PAGE], 0).unwrap();
    let watched = Watched::open(file.path(), SCHEME, Some(2)).unwrap();
    read_all(&watched);
    assert!(changed(&watched).is_empty());
    assert!(watched.lock().mapping.is_some());
    // Where data is asked for before the cut, and read after it.
    for (length, extent) in [(3 * PAGE_SIZE + 10, 8), (0, 8)] {
        file.as_file().set_len(length).unwrap();
        let (state, mut found) = (watched.lock(), Vec::new());
        let piece = ByteRange::new(0, 8 * PAGE_SIZE);
        let data = [ByteRange::of_pages(0..extent)];
        watched.hash(&state, piece, &data, &mut vec![0; READ], &mut found).unwrap();
        let mut torn = vec![0; PAGE];
        torn[..10].fill(5);
        let first = (length / PAGE_SIZE) as usize;
        let (from, nodes) = &found[0];
        assert_eq!((*from, nodes.len(), found.len()), (first, 8 - first, 1));
        let expected = if length > 0 { SCHEME.leaf(&torn) } else { Node::ZERO };
        assert_eq!(nodes[0], expected);
        assert!(nodes[1..].iter().all(|node| *node == Node::ZERO));
    }
}

#[test]
fn a_file_that_is_cut_again_and_again_while_it_is_hashed_ends_nothing() {
    let (file, watched) = watched(&vec![5; 512 * PAGE], 2);
    read_all(&watched);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                file.as_file().set_len(7 * PAGE_SIZE).unwrap();
                file.as_file().write_all_at(&vec![5; 505 * PAGE], 7 * PAGE_SIZE).unwrap();
            }
        });
        let rounds: Vec<_> = (0..50).map(|_| changed(&watched)).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(rounds.iter().flatten().all(|range| range.start >= 7 * PAGE_SIZE), "the rest is as it was");
    });
    assert!(changed(&watched).is_empty(), "it is all there again");
}
