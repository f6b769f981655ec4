//! What several tests need: pages to place, huge pages, child processes.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use pagewire_sys::PAGE_SIZE;
use pagewire_sys::event::{EventFd, PollItem, poll};
use pagewire_sys::mapping::{Mapping, Protection};
use pagewire_sys::tracked::TrackedMapping;
use pagewire_sys::uffd::{Event, EventBuffer, Features, OpenFlags, RegisterModes, Uffd};

/// Whether the environment says to go without `what`; prints so.
pub(crate) fn skipped(what: &str) -> bool {
    let list = std::env::var("PAGEWIRE_TEST_SKIP").unwrap_or_default();
    let skip = list.split(',').any(|name| name.trim() == what);
    if skip {
        eprintln!("SKIPPED: PAGEWIRE_TEST_SKIP names {what}");
    }
    skip
}

pub(crate) const NONBLOCKING: OpenFlags = OpenFlags { nonblocking: true, user_mode_only: false };
pub(crate) const MISSING: RegisterModes = RegisterModes { missing: true, write_protect: false, minor: false };
pub(crate) const TRACKED: RegisterModes = RegisterModes { missing: true, write_protect: true, minor: false };

/// A mapping of that many pages under a userfaultfd that does not block.
pub(crate) fn registered(pages: usize, features: Features, modes: RegisterModes) -> (Uffd, Mapping) {
    let uffd = Uffd::open(features, NONBLOCKING).expect("userfaultfd");
    let mapping = Mapping::anonymous(pages * PAGE_SIZE, Protection::ReadWrite, false).expect("mapping");
    uffd.register(&mapping, modes).expect("register");
    (uffd, mapping)
}

/// Runs `work` when it is dropped: what lets other threads end when a test fails, so that it does not hang.
pub(crate) struct OnDrop<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Does `work` while another thread serves the memory's faults: absent pages get what `content` answers for their
/// offset, write faults are noted.
pub(crate) fn serving<T>(
    memory: &TrackedMapping,
    content: impl Fn(usize) -> Vec<u8> + Sync,
    work: impl FnOnce() -> T,
) -> T {
    let stop = EventFd::new().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = EventBuffer::default();
            loop {
                let mut items = [PollItem::readable(memory.uffd().as_fd()), PollItem::readable(stop.as_fd())];
                poll(&mut items, None).unwrap();
                if items[1].is_ready() {
                    return;
                }
                for event in memory.uffd().read_events(&mut buffer).unwrap() {
                    let Event::PageFault { address, write_protect, .. } = event else { panic!("{event:?}") };
                    let offset = (*address as usize - memory.mapping().address()) / PAGE_SIZE * PAGE_SIZE;
                    if *write_protect {
                        memory.write_fault(offset).unwrap();
                    } else {
                        memory.place(offset, &content(offset)).unwrap();
                    }
                }
            }
        });
        let _stopped = OnDrop(|| stop.signal().unwrap());
        work()
    })
}

/// Tries for some seconds. A child that another test forks has copies of all descriptors for a moment, so that what
/// ends with the last copy may end late.
pub(crate) fn eventually(mut check: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if check() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// `count` pages, the first filled with `first`, the next with `first + 1`, and so on.
pub(crate) fn pages(first: u8, count: usize) -> Vec<u8> {
    (0..count).flat_map(|page| [first.wrapping_add(page as u8); PAGE_SIZE]).collect()
}

/// Copies the mapping out, and says what each page is filled with.
pub(crate) fn fills(mapping: &Mapping) -> Vec<u8> {
    let mut bytes = vec![0; mapping.len()];
    mapping.copy_out(0, &mut bytes).expect("copy out");
    bytes
        .chunks(PAGE_SIZE)
        .map(|page| {
            assert!(page.iter().all(|byte| *byte == page[0]), "a page of different bytes");
            page[0]
        })
        .collect()
}

/// Huge pages for as long as it lives: at least `count` are free.
pub(crate) struct HugePages {
    /// Locked, so that no other test (of any process) changes the number meanwhile.
    setting: File,
    before: String,
}

impl HugePages {
    pub(crate) fn take(count: usize) -> HugePages {
        let path = "/proc/sys/vm/nr_hugepages";
        let mut setting = File::options().read(true).write(true).open(path).expect("nr_hugepages, as root");
        setting.lock().expect("lock of nr_hugepages");
        let mut before = String::new();
        setting.read_to_string(&mut before).expect("nr_hugepages");
        let old: usize = before.trim().parse().expect("a number of huge pages");
        let mut pool = HugePages { setting, before };
        pool.set(&(old + count).to_string());
        let now = std::fs::read_to_string(path).expect("nr_hugepages");
        assert_eq!(now.trim(), (old + count).to_string(), "not enough memory for {count} huge pages");
        pool
    }

    fn set(&mut self, value: &str) {
        self.setting.rewind().expect("rewind");
        self.setting.write_all(value.as_bytes()).expect("write of nr_hugepages");
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let before = self.before.clone();
        self.set(before.trim());
    }
}

/// A forked child that runs `work` and ends.
pub(crate) struct Child {
    pid: libc::pid_t,
}

impl Child {
    /// The child exits with 0 when `work` returns true.
    pub(crate) fn fork(work: impl FnOnce() -> bool) -> Child {
        // SAFETY: the child allocates and calls the kernel only, which glibc allows after a fork; it never returns
        // from here.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            let done = std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or(false);
            // SAFETY: ends the process without the parent's exit handlers.
            unsafe { libc::_exit(if done { 0 } else { 1 }) };
        }
        Child { pid }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid as u32
    }

    /// Waits for the end; panics when `work` did not return true.
    pub(crate) fn succeed(self) {
        let status = self.wait();
        std::mem::forget(self);
        assert_eq!(status, 0, "wait status of the child");
    }

    fn wait(&self) -> libc::c_int {
        let mut status = 0;
        // SAFETY: writes the status.
        let waited = unsafe { libc::waitpid(self.pid, &mut status, 0) };
        assert_eq!(waited, self.pid, "waitpid");
        status
    }
}

impl Drop for Child {
    /// A test that failed leaves no child behind.
    fn drop(&mut self) {
        // SAFETY: the child was not waited for, so that the number is still its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.wait();
    }
}
