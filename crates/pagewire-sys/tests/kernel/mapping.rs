use pagewire_sys::mapping::{Mapping, Protection};
use pagewire_sys::{HUGE_PAGE_SIZE, PAGE_SIZE};

use crate::support::{Child, HugePages, fills, skipped};

#[test]
fn lengths_are_rounded_up_to_pages_and_zero_maps_nothing() {
    let mapping = Mapping::anonymous(PAGE_SIZE + 1, Protection::Read, false).unwrap();
    assert_eq!(mapping.len(), 2 * PAGE_SIZE);
    assert_eq!(mapping.address() % PAGE_SIZE, 0);
    assert_eq!(fills(&mapping), [0, 0]);
    assert!(Mapping::anonymous(usize::MAX, Protection::Read, false).is_err());

    let empty = Mapping::anonymous(0, Protection::ReadWrite, false).unwrap();
    assert!(empty.is_empty());
    // SAFETY: nobody can write no bytes.
    assert_eq!(unsafe { empty.as_slice(0) }, b"");
    assert_eq!(empty.range_address(0, 0), Some(empty.address()));
    empty.copy_out(0, &mut []).unwrap();
    assert!(empty.copy_out(0, &mut [0]).is_err());
}

#[test]
fn bytes_go_in_and_out_within_bounds() {
    let mut mapping = Mapping::anonymous(3 * PAGE_SIZE, Protection::ReadWrite, false).unwrap();
    let text: Vec<u8> = (0..2 * PAGE_SIZE).map(|byte| (byte % 251) as u8).collect();
    mapping.copy_in(100, &text).unwrap();
    let mut back = vec![0; text.len()];
    mapping.copy_out(100, &mut back).unwrap();
    assert_eq!(back, text);
    // SAFETY: nobody writes until the end of the statement.
    assert_eq!(unsafe { &mapping.as_slice(100 + text.len())[100..] }, text);

    assert_eq!(mapping.range_address(PAGE_SIZE, 2 * PAGE_SIZE), Some(mapping.address() + PAGE_SIZE));
    for (offset, len) in [(PAGE_SIZE, 2 * PAGE_SIZE + 1), (usize::MAX, 2), (3 * PAGE_SIZE + 1, 0)] {
        assert_eq!(mapping.range_address(offset, len), None);
    }
    assert!(mapping.copy_in(3 * PAGE_SIZE - 1, &[1, 2]).is_err());
    assert!(mapping.copy_out(3 * PAGE_SIZE - 1, &mut [1, 2]).is_err());

    mapping.discard(PAGE_SIZE, PAGE_SIZE).unwrap();
    mapping.copy_out(100, &mut back).unwrap();
    assert_eq!(back[..PAGE_SIZE - 100], text[..PAGE_SIZE - 100]);
    assert!(back[PAGE_SIZE - 100..2 * PAGE_SIZE - 100].iter().all(|byte| *byte == 0));
    assert!(mapping.discard(1, PAGE_SIZE).is_err());
    assert!(mapping.discard(0, 4 * PAGE_SIZE).is_err());
}

#[test]
fn a_mapping_for_reading_cannot_be_written() {
    let mapping = Mapping::anonymous(PAGE_SIZE, Protection::Read, false).unwrap();
    let error = mapping.copy_in(0, &[1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(fills(&mapping), [0]);
}

#[test]
fn a_forked_child_does_not_have_it() {
    let mapping = Mapping::anonymous(PAGE_SIZE, Protection::ReadWrite, false).unwrap();
    mapping.copy_in(0, &[7]).unwrap();
    Child::fork(|| {
        mapping.copy_out(0, &mut [0]).is_err_and(|error| error.raw_os_error() == Some(libc::EFAULT))
    })
    .succeed();
}

#[test]
fn huge_pages_are_reserved_or_refused() {
    if skipped("hugetlb") {
        return;
    }
    let pool = HugePages::take(2);
    let mapping = Mapping::anonymous(HUGE_PAGE_SIZE + 1, Protection::ReadWrite, true).unwrap();
    assert_eq!((mapping.len(), mapping.page_size()), (2 * HUGE_PAGE_SIZE, HUGE_PAGE_SIZE));
    mapping.copy_in(HUGE_PAGE_SIZE - 1, &[1, 2]).unwrap();
    let mut back = [0; 2];
    mapping.copy_out(HUGE_PAGE_SIZE - 1, &mut back).unwrap();
    assert_eq!(back, [1, 2]);
    // More than any pool here holds.
    assert!(Mapping::anonymous(1 << 40, Protection::ReadWrite, true).is_err());
    drop(mapping);
    drop(pool);
}
