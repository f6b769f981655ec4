use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use pagewire_sys::mapping::{Mapping, Protection};
use pagewire_sys::pagemap::{Categories, PageRegion, PagemapScan, ScanQuery};
use pagewire_sys::socket::{receive_with_fds, send_fds};
use pagewire_sys::uffd::{CopyMode, Features, PlaceError, Uffd};
use pagewire_sys::{HUGE_PAGE_SIZE, PAGE_SIZE};

use crate::support::{Child, HugePages, MISSING, NONBLOCKING, TRACKED, fills, pages, registered, skipped};

const CLEAN: CopyMode = CopyMode { write_protect: true, dont_wake: false };

/// Runs of written pages, as page numbers.
fn written(mapping: &Mapping, rearm: bool) -> Vec<(usize, usize)> {
    let scan = PagemapScan::open_self().unwrap();
    let mut regions = Vec::new();
    let range = range(mapping);
    assert_eq!(scan.written_pages(range.clone(), rearm, &mut regions).unwrap(), range.end);
    numbers(mapping.address(), mapping.page_size(), &regions)
}

fn range(mapping: &Mapping) -> std::ops::Range<u64> {
    mapping.address() as u64..(mapping.address() + mapping.len()) as u64
}

fn numbers(base: usize, page_size: usize, regions: &[PageRegion]) -> Vec<(usize, usize)> {
    let page = |address: u64| (address as usize - base) / page_size;
    regions.iter().map(|region| (page(region.start), page(region.end))).collect()
}

#[test]
fn placed_pages_are_clean_and_writes_are_found() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(8, Features::WP_ASYNC, TRACKED);
    uffd.copy_all(mapping.address(), &pages(1, 6), CLEAN).unwrap();
    assert_eq!(written(&mapping, true), []);

    mapping.copy_in(PAGE_SIZE, &[100; PAGE_SIZE]).unwrap();
    mapping.copy_in(2 * PAGE_SIZE, &[101; PAGE_SIZE]).unwrap();
    // SAFETY: the page is mapped for writing and no slice of it lives.
    unsafe { mapping.as_mut_ptr().add(4 * PAGE_SIZE).write_volatile(5) };
    assert_eq!(written(&mapping, false), [(1, 3), (4, 5)]);
    assert_eq!(written(&mapping, true), [(1, 3), (4, 5)], "a look alone arms nothing");
    assert_eq!(written(&mapping, true), [], "armed again");
    mapping.copy_in(2 * PAGE_SIZE, &[102]).unwrap();
    assert_eq!(written(&mapping, true), [(2, 3)]);

    // A page that was placed without protection counts as written.
    uffd.copy_all(mapping.address() + 7 * PAGE_SIZE, &pages(8, 1), CopyMode::default()).unwrap();
    assert_eq!(written(&mapping, true), [(7, 8)]);

    let mut present = Vec::new();
    PagemapScan::open_self().unwrap().present_pages(range(&mapping), &mut present).unwrap();
    assert_eq!(numbers(mapping.address(), PAGE_SIZE, &present), [(0, 6), (7, 8)]);
}

#[test]
fn zero_pages_are_clean_until_written() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(4, Features::WP_ASYNC, TRACKED);
    uffd.zero_all(mapping.address(), mapping.len(), false).unwrap();
    assert_eq!(written(&mapping, true), []);
    assert_eq!(fills(&mapping), [0; 4]);
    mapping.copy_in(2 * PAGE_SIZE, &[0]).unwrap();
    assert_eq!(written(&mapping, true), [(2, 3)], "a write of zero is a write");
    assert_eq!(written(&mapping, true), []);
    mapping.copy_in(2 * PAGE_SIZE + 1, &[9]).unwrap();
    assert_eq!(written(&mapping, true), [(2, 3)]);
}

#[test]
fn zeroes_over_poison_are_clean_too() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(2, Features::WP_ASYNC | Features::POISON, TRACKED);
    uffd.poison(mapping.address(), PAGE_SIZE).unwrap();
    uffd.zero_all(mapping.address(), mapping.len(), false).unwrap();
    assert_eq!(written(&mapping, true), []);
    assert_eq!(fills(&mapping), [0; 2]);
}

#[test]
fn absent_pages_are_neither_written_nor_armed() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(6, Features::WP_ASYNC | Features::POISON, TRACKED);
    let base = mapping.address();
    uffd.copy_all(base + 3 * PAGE_SIZE, &pages(4, 1), CLEAN).unwrap();
    assert_eq!(written(&mapping, true), []);
    uffd.zeropage(base, PAGE_SIZE, false).unwrap();
    uffd.poison(base + PAGE_SIZE, PAGE_SIZE).unwrap();

    // The obvious query does arm them: this is why ScanQuery::written is what it is.
    let naive = ScanQuery {
        all_of: Categories::WRITTEN,
        returned: Categories::WRITTEN,
        write_protect: true,
        check_tracked: true,
        ..ScanQuery::default()
    };
    let mut found = Vec::new();
    PagemapScan::open_self().unwrap().scan(range(&mapping), naive, &mut found).unwrap();
    assert!(numbers(base, PAGE_SIZE, &found).contains(&(4, 6)), "{found:?}");
    let refused = uffd.zeropage(base + 4 * PAGE_SIZE, PAGE_SIZE, false);
    assert!(matches!(refused, Err(PlaceError::Exists { done: 0 })), "{refused:?}");
}

#[test]
fn a_range_that_is_not_tracked_is_refused() {
    if skipped("userfaultfd") {
        return;
    }
    let (_uffd, mapping) = registered(2, Features::WP_ASYNC, MISSING);
    let scan = PagemapScan::open_self().unwrap();
    let error = scan.written_pages(range(&mapping), true, &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    let unaligned = mapping.address() as u64 + 1..mapping.address() as u64 + 5000;
    assert!(scan.written_pages(unaligned, false, &mut Vec::new()).is_err());
    assert_eq!(scan.written_pages(8192..8192, false, &mut Vec::new()).unwrap(), 8192);
}

#[test]
fn more_runs_than_one_call_returns_are_all_found() {
    if skipped("userfaultfd") {
        return;
    }
    let count = 2500;
    let (uffd, mapping) = registered(count, Features::WP_ASYNC, TRACKED);
    uffd.copy_all(mapping.address(), &vec![1; mapping.len()], CLEAN).unwrap();
    for page in (0..count).step_by(2) {
        mapping.copy_in(page * PAGE_SIZE, &[2]).unwrap();
    }
    let every_other: Vec<_> = (0..count).step_by(2).map(|page| (page, page + 1)).collect();
    assert_eq!(written(&mapping, false), every_other, "each run once");
    assert_eq!(written(&mapping, true), every_other);
    for page in 0..count {
        mapping.copy_in(page * PAGE_SIZE, &[3]).unwrap();
    }
    assert_eq!(written(&mapping, true), [(0, count)], "runs that touch are one");
    assert_eq!(written(&mapping, true), []);
}

#[test]
fn huge_pages_are_tracked_whole() {
    if skipped("userfaultfd") {
        return;
    }
    if skipped("hugetlb") {
        return;
    }
    let _pool = HugePages::take(3);
    let mapping = Mapping::anonymous(3 * HUGE_PAGE_SIZE, Protection::ReadWrite, true).unwrap();
    let wanted = Features::MISSING_HUGETLBFS | Features::WP_HUGETLBFS_SHMEM | Features::WP_ASYNC;
    let uffd = Uffd::open(wanted, NONBLOCKING).unwrap();
    uffd.register(&mapping, TRACKED).unwrap();
    uffd.copy_all_pages(mapping.address(), &vec![1; 2 * HUGE_PAGE_SIZE], CLEAN, HUGE_PAGE_SIZE).unwrap();
    assert_eq!(written(&mapping, true), []);
    mapping.copy_in(HUGE_PAGE_SIZE + 12345, &[2]).unwrap();
    assert_eq!(written(&mapping, true), [(1, 2)]);
    assert_eq!(written(&mapping, true), []);
}

#[test]
fn another_process_is_scanned() {
    if skipped("userfaultfd") {
        return;
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Child::fork(|| {
        let (uffd, mapping) = registered(4, Features::WP_ASYNC, TRACKED);
        send_fds(theirs.as_fd(), &mapping.address().to_ne_bytes(), &[uffd.as_fd()]).unwrap();
        (&theirs).read_exact(&mut [0]).unwrap();
        mapping.copy_in(2 * PAGE_SIZE, &[1]).unwrap();
        (&theirs).write_all(&[0]).unwrap();
        (&theirs).read_exact(&mut [0]).is_ok()
    });
    let mut address = [0; size_of::<usize>()];
    let (_, mut fds) = receive_with_fds(ours.as_fd(), &mut address, 1).unwrap();
    let base = usize::from_ne_bytes(address);
    let uffd = Uffd::from_fd(fds.remove(0)).unwrap();
    uffd.copy_all(base, &pages(1, 4), CLEAN).unwrap();
    (&ours).write_all(&[0]).unwrap();
    (&ours).read_exact(&mut [0]).unwrap();
    let scan = PagemapScan::open_pid(child.pid()).unwrap();
    let range = base as u64..(base + 4 * PAGE_SIZE) as u64;
    for expected in [vec![(2, 3)], vec![]] {
        let mut regions = Vec::new();
        scan.written_pages(range.clone(), true, &mut regions).unwrap();
        assert_eq!(numbers(base, PAGE_SIZE, &regions), expected);
    }
    (&ours).write_all(&[0]).unwrap();
    child.succeed();
}
