use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pagewire_sys::event::{PollItem, poll};
use pagewire_sys::mapping::{Mapping, Protection};
use pagewire_sys::socket::{receive_with_fds, send_fds};
use pagewire_sys::uffd::{CopyMode, Event, EventBuffer, Features, OpenFlags, PlaceError, Uffd};
use pagewire_sys::{HUGE_PAGE_SIZE, PAGE_SIZE};

use crate::support::{
    Child, HugePages, MISSING, NONBLOCKING, OnDrop, TRACKED, fills, pages, registered, skipped,
};

const PLAIN: CopyMode = CopyMode { write_protect: false, dont_wake: false };

/// Waits for events and reads them.
fn wait_for_events<'b>(uffd: &Uffd, buffer: &'b mut EventBuffer) -> &'b [Event] {
    let mut items = [PollItem::readable(uffd.as_fd())];
    assert_eq!(poll(&mut items, Some(Duration::from_secs(5))).unwrap(), 1, "no event came");
    uffd.read_events(buffer).unwrap()
}

fn is_poison(result: io::Result<()>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EFAULT))
}

#[test]
fn features_are_those_that_the_kernel_has() {
    if skipped("userfaultfd") {
        return;
    }
    let wanted = Features::WP_ASYNC | Features::POISON | Features::EVENT_REMOVE;
    let unknown = Features::from_bits(1 << 60);
    let uffd = Uffd::open(wanted | unknown, OpenFlags::default()).unwrap();
    assert!(uffd.features().contains(wanted), "missing: {:?}", uffd.features().missing(wanted));
    assert!(uffd.features().contains(Features::WP_UNPOPULATED));
    assert!(uffd.features().intersect(unknown).is_empty());
    assert!(Uffd::available(OpenFlags::default()).unwrap().contains(wanted));
    assert!(!uffd.user_mode_only());
    assert_eq!(format!("{:?}", Features::POISON | Features::WP_ASYNC), "POISON | WP_ASYNC");
    assert_eq!(format!("{unknown:?}"), "0x1000000000000000");
    assert_eq!(format!("{:?}", Features::NONE), "none");
}

#[test]
fn a_user_without_privileges_gets_user_mode_only() {
    if skipped("userfaultfd") {
        return;
    }
    if skipped("root") {
        return;
    }
    let (only, read) = std::thread::spawn(|| {
        let nobody = 65534;
        // SAFETY: takes numbers only; as a bare system call it changes this thread alone, which ends soon.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) };
        assert_eq!(changed, 0, "setresuid");
        let uffd = Uffd::open(Features::NONE, OpenFlags::default()).unwrap();
        let mapping = Mapping::anonymous(PAGE_SIZE, Protection::Read, false).unwrap();
        uffd.register(&mapping, MISSING).unwrap();
        (uffd.user_mode_only(), mapping.copy_out(0, &mut [0]))
    })
    .join()
    .unwrap();
    assert!(only);
    assert!(is_poison(read), "the kernel's own access to an absent page must fail and not wait");
}

#[test]
fn a_thread_that_touches_an_absent_page_waits_until_it_is_placed() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(4, Features::THREAD_ID, MISSING);
    let mut buffer = EventBuffer::default();
    assert_eq!(uffd.read_events(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let (ids, id) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let _release = OnDrop(|| uffd.unregister(&mapping).unwrap());
        let reader = scope.spawn(|| {
            // SAFETY: takes nothing.
            ids.send(unsafe { libc::gettid() } as u32).unwrap();
            // SAFETY: nobody writes the mapping, but for the first placement.
            let bytes = unsafe { mapping.as_slice(mapping.len()) };
            bytes[2 * PAGE_SIZE + 5]
        });
        let [Event::PageFault { address, write: false, write_protect: false, minor: false, thread }] =
            wait_for_events(&uffd, &mut buffer)
        else {
            panic!("{:?}", buffer.events());
        };
        assert_eq!(*address as usize, mapping.address() + 2 * PAGE_SIZE);
        assert_eq!(*thread, Some(id.recv().unwrap()));

        let silent = CopyMode { dont_wake: true, ..PLAIN };
        uffd.copy_all(*address as usize, &pages(9, 1), silent).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(!reader.is_finished(), "placed without waking");
        uffd.wake(*address as usize, PAGE_SIZE).unwrap();
        assert_eq!(reader.join().unwrap(), 9);

        // The kernel waits on our behalf, too, and says that it wants to write.
        let writer = scope.spawn(|| mapping.copy_in(3 * PAGE_SIZE, &[1]));
        let events = wait_for_events(&uffd, &mut buffer);
        assert!(matches!(events, [Event::PageFault { write: true, .. }]), "{events:?}");
        uffd.zero_all(mapping.address() + 3 * PAGE_SIZE, PAGE_SIZE, false).unwrap();
        writer.join().unwrap().unwrap();
    });
}

#[test]
fn many_faults_come_with_one_read() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(8, Features::EXACT_ADDRESS, MISSING);
    let mut buffer = EventBuffer::new(8);
    std::thread::scope(|scope| {
        let _release = OnDrop(|| uffd.unregister(&mapping).unwrap());
        for page in 0..8 {
            let mapping = &mapping;
            scope.spawn(move || {
                // SAFETY: nobody writes the mapping, but for the first placement.
                let bytes = unsafe { mapping.as_slice(mapping.len()) };
                // The kernel's own accesses report whole pages only, so touch it here.
                std::hint::black_box(bytes[page * PAGE_SIZE + page])
            });
        }
        let mut seen = Vec::new();
        let mut reads = 0;
        while seen.len() < 8 {
            if reads == 0 {
                // So that some gather.
                std::thread::sleep(Duration::from_millis(30));
            }
            reads += 1;
            seen.extend(wait_for_events(&uffd, &mut buffer).iter().map(|event| match event {
                Event::PageFault { address, .. } => *address as usize - mapping.address(),
                other => panic!("{other:?}"),
            }));
        }
        uffd.zero_all(mapping.address(), mapping.len(), false).unwrap();
        assert!(reads < 8, "8 faults took {reads} reads");
        seen.sort_unstable();
        let exact: Vec<usize> = (0..8).map(|page| page * PAGE_SIZE + page).collect();
        assert_eq!(seen, exact);
    });
}

#[test]
fn pages_that_exist_are_never_overwritten() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(6, Features::NONE, MISSING);
    let base = mapping.address();
    uffd.copy(base + 2 * PAGE_SIZE, &pages(50, 1), PLAIN).unwrap();
    uffd.zeropage(base + 4 * PAGE_SIZE, PAGE_SIZE, false).unwrap();

    // The kernel stops short at the third page, then says why.
    let result = uffd.copy(base, &pages(1, 6), PLAIN);
    assert!(matches!(result, Err(PlaceError::Exists { done }) if done == 2 * PAGE_SIZE), "{result:?}");
    let result = uffd.zeropage(base, PAGE_SIZE, false);
    assert!(matches!(result, Err(PlaceError::Exists { done: 0 })), "{result:?}");
    let result = uffd.poison(base, PAGE_SIZE);
    assert!(matches!(result, Err(PlaceError::Exists { done: 0 })), "{result:?}");

    uffd.copy_all(base, &pages(1, 6), PLAIN).unwrap();
    assert_eq!(fills(&mapping), [1, 2, 50, 4, 0, 6]);
    uffd.copy_all(base, &pages(90, 6), PLAIN).unwrap();
    uffd.zero_all(base, mapping.len(), false).unwrap();
    uffd.poison_all(base, mapping.len(), PAGE_SIZE).unwrap();
    assert_eq!(fills(&mapping), [1, 2, 50, 4, 0, 6]);
}

#[test]
fn poison_is_an_error_and_heals() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(4, Features::POISON, MISSING);
    let base = mapping.address();
    uffd.copy(base + PAGE_SIZE, &pages(2, 1), PLAIN).unwrap();
    uffd.poison_all(base, mapping.len(), PAGE_SIZE).unwrap();
    for page in [0, 2, 3] {
        assert!(is_poison(mapping.copy_out(page * PAGE_SIZE, &mut [0])), "page {page}");
        assert!(is_poison(mapping.copy_in(page * PAGE_SIZE, &[0])), "page {page}");
    }
    let mut byte = [0];
    mapping.copy_out(PAGE_SIZE, &mut byte).unwrap();
    assert_eq!(byte, [2]);

    // COPY replaces poison; ZEROPAGE and POISON say that something exists there.
    let result = uffd.zeropage(base, PAGE_SIZE, false);
    assert!(matches!(result, Err(PlaceError::Exists { done: 0 })), "{result:?}");
    let result = uffd.poison(base, PAGE_SIZE);
    assert!(matches!(result, Err(PlaceError::Exists { done: 0 })), "{result:?}");
    uffd.copy(base, &pages(1, 1), PLAIN).unwrap();
    uffd.copy_all(base, &pages(1, 3), PLAIN).unwrap();
    uffd.zero_all(base, mapping.len(), false).unwrap();
    assert_eq!(fills(&mapping), [1, 2, 3, 0]);
}

#[test]
fn touching_poison_is_a_sigbus() {
    if skipped("userfaultfd") {
        return;
    }
    let child = Child::fork(|| {
        let (uffd, mapping) = registered(1, Features::POISON, MISSING);
        uffd.poison(mapping.address(), PAGE_SIZE).unwrap();
        // SAFETY: the handler does nothing but exit.
        unsafe { libc::signal(libc::SIGBUS, exit_well as *const () as libc::sighandler_t) };
        // SAFETY: nobody writes.
        std::hint::black_box(unsafe { mapping.as_slice(1) }[0]);
        false
    });
    child.succeed();

    extern "C" fn exit_well(_signal: libc::c_int) {
        // SAFETY: may be called in a signal handler.
        unsafe { libc::_exit(0) };
    }
}

#[test]
fn armed_absent_pages_take_copies_only() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(3, Features::WP_ASYNC, TRACKED);
    let base = mapping.address();
    uffd.write_protect(base, mapping.len(), true).unwrap();
    let result = uffd.zeropage(base, PAGE_SIZE, false);
    assert!(matches!(result, Err(PlaceError::Exists { done: 0 })), "{result:?}");
    let result = uffd.poison(base, PAGE_SIZE);
    assert!(matches!(result, Err(PlaceError::Exists { done: 0 })), "{result:?}");
    uffd.copy(base, &pages(1, 1), PLAIN).unwrap();
    uffd.zero_all(base, mapping.len(), false).unwrap();
    assert_eq!(fills(&mapping), [1, 0, 0]);
}

#[test]
fn an_unread_remove_event_holds_up_placement() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(4, Features::EVENT_REMOVE, MISSING);
    let base = mapping.address();
    uffd.copy_all(base, &pages(1, 4), PLAIN).unwrap();
    uffd.copy(base, &pages(1, 1), PLAIN).unwrap_err();
    let mut buffer = EventBuffer::default();
    std::thread::scope(|scope| {
        let _release =
            OnDrop(|| assert!(uffd.read_events(&mut EventBuffer::default()).is_err(), "an event is left"));
        // SAFETY: no slice of the mapping lives.
        let discard = scope.spawn(|| unsafe { mapping.discard_shared(PAGE_SIZE, 2 * PAGE_SIZE) });
        let mut items = [PollItem::readable(uffd.as_fd())];
        assert_eq!(poll(&mut items, Some(Duration::from_secs(5))).unwrap(), 1);
        let result = uffd.copy_all(base, &pages(10, 4), PLAIN);
        assert!(matches!(result, Err(PlaceError::Again { done: 0 })), "{result:?}");
        let result = uffd.zeropage(base + PAGE_SIZE, PAGE_SIZE, false);
        assert!(matches!(result, Err(PlaceError::Again { done: 0 })), "{result:?}");

        let events = uffd.read_events(&mut buffer).unwrap();
        let [Event::Remove { start, end }] = events else { panic!("{events:?}") };
        assert_eq!((*start as usize, *end as usize), (base + PAGE_SIZE, base + 3 * PAGE_SIZE));
        discard.join().unwrap().unwrap();
    });
    uffd.copy_all(base, &pages(10, 4), PLAIN).unwrap();
    assert_eq!(fills(&mapping), [1, 11, 12, 4]);
}

#[test]
fn an_unmapped_range_is_an_event() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(2, Features::EVENT_UNMAP, MISSING);
    let base = mapping.address();
    let mut buffer = EventBuffer::default();
    std::thread::scope(|scope| {
        let drop = scope.spawn(move || drop(mapping));
        wait_for_events(&uffd, &mut buffer);
        let events: Vec<Event> = buffer.take().collect();
        let [Event::Unmap { start, end }] = events[..] else { panic!("{events:?}") };
        assert_eq!((start as usize, end as usize), (base, base + 2 * PAGE_SIZE));
        drop.join().unwrap();
    });
    assert!(buffer.events().is_empty());
    assert!(matches!(uffd.copy_all(base, &pages(1, 2), PLAIN), Err(PlaceError::Gone)));
}

#[test]
fn ranges_of_several_mappings_and_with_gaps_are_filled() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(8, Features::NONE, MISSING);
    let base = mapping.address();
    // Protecting a part splits the kernel's mapping in two; a single COPY across is refused.
    // SAFETY: the range is of this mapping, of which no slice lives.
    let split = unsafe {
        libc::mprotect(
            mapping.as_mut_ptr().wrapping_add(5 * PAGE_SIZE).cast(),
            3 * PAGE_SIZE,
            libc::PROT_READ,
        )
    };
    assert_eq!(split, 0);
    let result = uffd.copy(base, &pages(1, 8), PLAIN);
    assert!(matches!(result, Err(PlaceError::Gone)), "{result:?}");
    uffd.copy_all(base, &pages(1, 8), PLAIN).unwrap();
    assert_eq!(fills(&mapping), [1, 2, 3, 4, 5, 6, 7, 8]);

    let (uffd, mapping) = registered(8, Features::NONE, MISSING);
    let base = mapping.address();
    // New memory takes the place of the second page, and is not registered.
    // SAFETY: replaces a page of this mapping, of which no slice lives; dropping the mapping unmaps it, too.
    let replaced = unsafe {
        libc::mmap(
            mapping.as_mut_ptr().wrapping_add(PAGE_SIZE).cast(),
            PAGE_SIZE,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    assert_ne!(replaced, libc::MAP_FAILED);
    let result = uffd.copy_all(base, &pages(1, 8), PLAIN);
    assert!(matches!(result, Err(PlaceError::Gone)), "{result:?}");
    assert_eq!(fills(&mapping), [1, 0, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn wrong_arguments_are_errors() {
    if skipped("userfaultfd") {
        return;
    }
    let (uffd, mapping) = registered(2, Features::NONE, MISSING);
    let base = mapping.address();
    let other = Mapping::anonymous(PAGE_SIZE, Protection::ReadWrite, false).unwrap();
    assert!(matches!(uffd.copy(other.address(), &pages(1, 1), PLAIN), Err(PlaceError::Gone)));
    assert!(matches!(uffd.copy_all(other.address(), &pages(1, 1), PLAIN), Err(PlaceError::Gone)));
    assert!(matches!(uffd.copy(base + 1, &pages(1, 1), PLAIN), Err(PlaceError::Os(_))));
    assert!(matches!(uffd.copy(base, &[1; 100], PLAIN), Err(PlaceError::Os(_))));
    assert!(matches!(uffd.copy_all(base, &[1; 100], PLAIN), Err(PlaceError::Os(_))));
    // Not registered for write-protection.
    let protected = CopyMode { write_protect: true, ..PLAIN };
    assert!(matches!(uffd.copy(base, &pages(1, 1), protected), Err(PlaceError::Os(_))));
    uffd.copy_all(base, &[], PLAIN).unwrap();
    uffd.zero_all(base, 0, false).unwrap();
    uffd.wake(base, 0).unwrap();
    assert_eq!(io::Error::from(PlaceError::Gone).kind(), io::ErrorKind::NotFound);

    let empty = Mapping::anonymous(0, Protection::ReadWrite, false).unwrap();
    uffd.register(&empty, MISSING).unwrap();
    let second = Uffd::open(Features::NONE, NONBLOCKING).unwrap();
    assert!(second.register(&mapping, MISSING).is_err(), "two userfaultfds of one range");

    uffd.unregister(&mapping).unwrap();
    assert!(matches!(uffd.copy(base, &pages(1, 1), PLAIN), Err(PlaceError::Gone)));
    assert_eq!(fills(&mapping), [0, 0]);
}

#[test]
fn memory_of_another_process_is_served_until_it_is_gone() {
    if skipped("userfaultfd") {
        return;
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Child::fork(|| {
        let (uffd, mapping) = registered(4, Features::POISON, MISSING);
        send_fds(theirs.as_fd(), &mapping.address().to_ne_bytes(), &[uffd.as_fd()]).unwrap();
        drop(uffd);
        let right = fills(&mapping) == [1, 2, 0, 4];
        (&theirs).write_all(&[1]).unwrap();
        right && (&theirs).read(&mut [0]).is_ok()
    });
    let mut address = [0; size_of::<usize>()];
    let (received, mut fds) = receive_with_fds(ours.as_fd(), &mut address, 1).unwrap();
    assert_eq!(received, address.len());
    let base = usize::from_ne_bytes(address);
    let uffd = Uffd::from_fd(fds.remove(0)).unwrap();
    assert!(uffd.features().contains(Features::POISON), "{:?}", uffd.features());
    let own = Mapping::anonymous(PAGE_SIZE, Protection::ReadWrite, false).unwrap();
    assert!(uffd.register(&own, MISSING).is_err(), "an address of ours means nothing in the other process");

    let mut buffer = EventBuffer::default();
    let events = wait_for_events(&uffd, &mut buffer);
    assert!(matches!(events, [Event::PageFault { address, .. }] if *address as usize == base), "{events:?}");
    uffd.zero_all(base + 2 * PAGE_SIZE, PAGE_SIZE, false).unwrap();
    uffd.copy_all(base, &pages(1, 4), PLAIN).unwrap();
    (&ours).read_exact(&mut [0]).unwrap();
    (&ours).write_all(&[1]).unwrap();
    child.succeed();
    assert!(matches!(uffd.copy_all(base, &pages(1, 4), PLAIN), Err(PlaceError::Gone)));
    assert!(matches!(uffd.zeropage(base, PAGE_SIZE, false), Err(PlaceError::Gone)));
}

#[test]
fn only_a_userfaultfd_is_taken_for_one() {
    if skipped("userfaultfd") {
        return;
    }
    let pipe = io::pipe().unwrap().0;
    assert_eq!(Uffd::from_fd(OwnedFd::from(pipe)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let uffd = Uffd::open(Features::WP_ASYNC, NONBLOCKING).unwrap();
    let copy = Uffd::from_fd(uffd.as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert!(copy.features().contains(Features::WP_ASYNC), "{:?}", copy.features());
}

#[test]
fn huge_pages_are_placed_whole() {
    if skipped("userfaultfd") {
        return;
    }
    if skipped("hugetlb") {
        return;
    }
    let _pool = HugePages::take(2);
    let mapping = Mapping::anonymous(2 * HUGE_PAGE_SIZE, Protection::ReadWrite, true).unwrap();
    let uffd = Uffd::open(Features::MISSING_HUGETLBFS | Features::POISON, NONBLOCKING).unwrap();
    assert!(uffd.features().contains(Features::MISSING_HUGETLBFS));
    uffd.register(&mapping, MISSING).unwrap();
    let base = mapping.address();
    let bytes: Vec<u8> = (0..2 * HUGE_PAGE_SIZE).map(|byte| (byte / PAGE_SIZE) as u8).collect();

    assert!(matches!(uffd.copy(base, &bytes[..PAGE_SIZE], PLAIN), Err(PlaceError::Os(_))));
    assert!(matches!(uffd.zeropage(base, HUGE_PAGE_SIZE, false), Err(PlaceError::Os(_))));
    uffd.poison(base, HUGE_PAGE_SIZE).unwrap();
    assert!(is_poison(mapping.copy_out(5, &mut [0])));
    uffd.copy_all_pages(base + HUGE_PAGE_SIZE, &[7; HUGE_PAGE_SIZE], PLAIN, HUGE_PAGE_SIZE).unwrap();
    uffd.copy_all_pages(base, &bytes, PLAIN, HUGE_PAGE_SIZE).unwrap();
    let mut back = vec![0; mapping.len()];
    mapping.copy_out(0, &mut back).unwrap();
    assert_eq!(back[..HUGE_PAGE_SIZE], bytes[..HUGE_PAGE_SIZE]);
    assert!(back[HUGE_PAGE_SIZE..].iter().all(|byte| *byte == 7));
}
