//! `pagewire uffd` as a VM monitor meets it: this process is the monitor, the binary serves its faults.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::driving::{Running, pattern};
use pagewire_sys::mapping::{Mapping, Protection};
use pagewire_sys::uffd::{Features, OpenFlags, RegisterModes, Uffd};

const HUGE: usize = 2 << 20;

/// A guest's memory, whose faults somebody else serves.
struct Monitor {
    mappings: Vec<Mapping>,
    _uffd: Uffd,
    _socket: UnixStream,
}

impl Monitor {
    /// Makes memory of these sizes and hands it over, each piece with its offset in the region.
    fn connect(socket: &Path, pieces: &[(usize, usize)], huge: bool) -> Self {
        let flags = OpenFlags { nonblocking: true, user_mode_only: false };
        let uffd = Uffd::open(Features::EVENT_REMOVE, flags).expect("userfaultfd");
        let mappings: Vec<Mapping> = pieces
            .iter()
            .map(|(_, size)| {
                let mapping = Mapping::anonymous(*size, Protection::ReadWrite, huge).expect("memory");
                let modes = RegisterModes { missing: true, ..RegisterModes::default() };
                uffd.register(&mapping, modes).expect("register");
                mapping
            })
            .collect();
        let page_size = if huge { HUGE } else { 4096 };
        let described: Vec<_> = mappings
            .iter()
            .zip(pieces)
            .map(|(mapping, (offset, size))| {
                serde_json::json!({
                    "base_host_virt_addr": mapping.address(), "size": size, "offset": offset,
                    "page_size": page_size, "page_size_kib": page_size,
                })
            })
            .collect();
        let text = serde_json::to_string(&described).unwrap();
        let stream = UnixStream::connect(socket).unwrap();
        let sent = pagewire_sys::socket::send_fds(stream.as_fd(), text.as_bytes(), &[uffd.as_fd()]).unwrap();
        assert_eq!(sent, text.len());
        Self { mappings, _uffd: uffd, _socket: stream }
    }

    fn read(&self, mapping: usize, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; length];
        self.mappings[mapping].copy_out(offset, &mut bytes).unwrap();
        bytes
    }
}

fn handler(folder: &Path, bytes: &[u8], extra: &[&str]) -> (Running, Running) {
    let path = folder.join("memory");
    std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
    let server = Running::serve(&path);
    let socket = folder.join("uffd.sock");
    let region = format!("{}/file", server.address);
    let args = [&["uffd", &region, "--socket", socket.to_str().unwrap()], extra].concat();
    let handler = Running::start(&args);
    assert_eq!(handler.address, socket.to_str().unwrap());
    (server, handler)
}

#[test]
fn several_mappings_of_several_guests_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = pattern(16 << 20);
    let (_server, handler) = handler(folder.path(), &bytes, &[]);
    let socket = Path::new(&handler.address);
    // Two pieces with a gap between them, as below and above a PCI hole.
    let pieces = [(0, 6 << 20), (8 << 20, 8 << 20)];
    let guests: Vec<Monitor> = (0..3).map(|_| Monitor::connect(socket, &pieces, false)).collect();
    std::thread::scope(|scope| {
        for (number, guest) in guests.iter().enumerate() {
            let bytes = &bytes;
            scope.spawn(move || {
                for step in 0..200 {
                    let at = (step * 104_729 + number * 7919) % ((6 << 20) - 5000);
                    assert_eq!(guest.read(0, at, 5000), bytes[at..at + 5000]);
                }
                assert_eq!(guest.read(1, 0, 8 << 20), bytes[8 << 20..]);
                assert_eq!(guest.read(0, 0, 6 << 20), bytes[..6 << 20]);
            });
        }
    });
    drop(guests);
    let again = Monitor::connect(socket, &[(4096, 8192)], false);
    assert_eq!(again.read(0, 0, 8192), bytes[4096..4096 + 8192]);
}

/// A region of this host is read on the thread that serves the faults; a balloon changes the mappings
/// under it all the while.
#[test]
fn a_guest_on_a_local_file_with_a_busy_balloon() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = pattern(8 << 20);
    let path = folder.path().join("memory");
    std::fs::write(&path, &bytes).unwrap();
    let socket = folder.path().join("uffd.sock");
    let region = format!("file:{}", path.display());
    for extra in [&["--no-pull"][..], &[]] {
        let args = [&["uffd", &region, "--socket", socket.to_str().unwrap()], extra].concat();
        let _handler = Running::start(&args);
        let mut guest = Monitor::connect(&socket, &[(0, 4 << 20), (4 << 20, 4 << 20)], false);
        let balloon = guest.mappings.pop().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut balloon = balloon;
                for step in 0..400 {
                    let at = step % 64 * (64 << 10);
                    let mut page = [1; 4096];
                    balloon.copy_out(at, &mut page).unwrap();
                    balloon.discard(at, 64 << 10).unwrap();
                    balloon.copy_out(at, &mut page).unwrap();
                    assert_eq!(page, [0; 4096]);
                }
            });
            for step in 0..400 {
                let at = step * 7919 % 1000 * 4096;
                assert_eq!(guest.read(0, at, 4096), bytes[at..at + 4096]);
            }
        });
        assert_eq!(guest.read(0, 0, 4 << 20), bytes[..4 << 20]);
    }
}

#[test]
fn memory_that_a_balloon_gave_up_comes_back_as_zeroes() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = pattern(8 << 20);
    for extra in [&["--no-pull"][..], &[]] {
        let (_server, handler) = handler(folder.path(), &bytes, extra);
        let mut guest = Monitor::connect(Path::new(&handler.address), &[(0, 8 << 20)], false);
        for round in 0..20 {
            let at = round * (300 << 10) / 4096 * 4096;
            // What is there, and what has not come yet.
            assert_eq!(guest.read(0, at, 4096), bytes[at..at + 4096]);
            guest.mappings[0].discard(at, 128 << 10).unwrap();
            assert_eq!(guest.read(0, at, 128 << 10), vec![0; 128 << 10], "round {round}");
            let behind = at + (128 << 10);
            assert_eq!(guest.read(0, behind, 4096), bytes[behind..behind + 4096], "round {round}");
        }
        // And it stays so, however the rest arrives.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(guest.read(0, 0, 128 << 10), vec![0; 128 << 10]);
        std::fs::remove_file(folder.path().join("memory")).unwrap();
    }
}

/// Takes huge pages for the time of a test, and gives them back.
struct HugePages {
    before: String,
}

impl HugePages {
    const SETTING: &str = "/proc/sys/vm/nr_hugepages";

    fn take(count: usize) -> Option<Self> {
        if std::env::var("PAGEWIRE_TEST_SKIP").is_ok_and(|skip| skip.split(',').any(|name| name == "hugetlb"))
        {
            println!("skipped: hugetlb");
            return None;
        }
        let before =
            std::fs::read_to_string(Self::SETTING).expect("huge pages (or PAGEWIRE_TEST_SKIP=hugetlb)");
        let wanted = before.trim().parse::<usize>().unwrap() + count;
        std::fs::write(Self::SETTING, wanted.to_string())
            .expect("huge pages (or PAGEWIRE_TEST_SKIP=hugetlb)");
        Some(Self { before })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::SETTING, &self.before);
    }
}

#[test]
fn guests_with_huge_pages() {
    let Some(_pages) = HugePages::take(16) else { return };
    let folder = tempfile::tempdir().unwrap();
    let bytes = pattern(4 * HUGE);
    for extra in [&["--no-pull"][..], &[], &["--chunk", "4MiB"]] {
        let (_server, handler) = handler(folder.path(), &bytes, extra);
        let mut guest =
            Monitor::connect(Path::new(&handler.address), &[(0, 3 * HUGE), (3 * HUGE, HUGE)], true);
        assert_eq!(guest.read(0, HUGE + 12_345, 100), bytes[HUGE + 12_345..HUGE + 12_445]);
        assert_eq!(guest.read(1, 0, HUGE), bytes[3 * HUGE..]);
        assert_eq!(guest.read(0, 0, 3 * HUGE), bytes[..3 * HUGE]);
        guest.mappings[0].discard(HUGE, HUGE).unwrap();
        assert_eq!(guest.read(0, HUGE, HUGE), vec![0; HUGE]);
        assert_eq!(guest.read(0, 0, HUGE), bytes[..HUGE]);
        std::fs::remove_file(folder.path().join("memory")).unwrap();
    }
}

#[test]
fn a_handshake_that_makes_no_sense_is_refused_and_the_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = pattern(1 << 20);
    let (_server, handler) = handler(folder.path(), &bytes, &[]);
    let socket = Path::new(&handler.address);
    // One that says nothing holds up nobody.
    let _silent = UnixStream::connect(socket).unwrap();
    for (text, with_descriptor) in [("[]", true), ("GET / HTTP/1.1", true), ("[{}]", false), ("", true)] {
        let stream = UnixStream::connect(socket).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let fds = if with_descriptor { vec![file.as_fd()] } else { vec![] };
        if text.is_empty() {
            drop(stream);
            continue;
        }
        pagewire_sys::socket::send_fds(stream.as_fd(), text.as_bytes(), &fds).unwrap();
        // The handler hangs up.
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let read = std::io::Read::read(&mut &stream, &mut [0]);
        assert!(
            matches!(read, Ok(0)) || read.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "{text}"
        );
    }
    let guest = Monitor::connect(socket, &[(0, 1 << 20)], false);
    assert_eq!(guest.read(0, 0, 1 << 20), bytes);
}

#[test]
fn a_handler_ends_cleanly_and_takes_its_socket_along() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, mut handler) = handler(folder.path(), &pattern(1 << 20), &[]);
    let guest = Monitor::connect(Path::new(&handler.address), &[(0, 1 << 20)], false);
    guest.read(0, 0, 1 << 20);
    let pid = handler.child.id().to_string();
    assert!(std::process::Command::new("kill").arg(&pid).status().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = handler.child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(status.code(), Some(0));
    assert!(!Path::new(&handler.address).exists());
}

/// What one handler has pulled, the next one has, also when there is nobody to pull it from any more.
#[test]
fn a_cache_is_there_for_the_next_handler() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = pattern(4 << 20);
    let cache = folder.path().join("cache");
    let cache_text = cache.to_str().unwrap();
    let (server, handler) = handler(folder.path(), &bytes, &["--cache", cache_text]);
    let socket = Path::new(&handler.address);
    let guests: Vec<Monitor> = (0..2).map(|_| Monitor::connect(socket, &[(0, 4 << 20)], false)).collect();
    assert!(guests.iter().all(|guest| guest.read(0, 0, 4 << 20) == bytes));
    let region = format!("{}/file", server.address);
    let second = folder.path().join("second.sock");
    let args = ["uffd", &region, "--socket", second.to_str().unwrap(), "--cache", cache_text];
    let refused = crate::driving::run(&args);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("is in use"), "{said}");
    // The file is the region, as soon as everything is there.
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::read(&cache).unwrap() != bytes {
        assert!(Instant::now() < deadline, "the cache is never complete");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop((guests, handler));
    let info: serde_json::Value =
        serde_json::from_str(&crate::driving::stdout(&["info", &region, "--cache", cache_text, "--json"]))
            .unwrap();
    assert_eq!((&info["cache"]["present_bytes"], &info["cache"]["id"]), (&(4 << 20).into(), &info["id"]));
    assert!(crate::driving::stdout(&["info", &region, "--cache", cache_text]).contains("4 MiB of 4 MiB"));
    let next = Running::start(&[&args[..], &["--no-pull"]].concat());
    let guest = Monitor::connect(Path::new(&next.address), &[(0, 4 << 20)], false);
    assert_eq!(guest.read(0, 5000, 1), bytes[5000..5001]);
    // The server was needed for its epoch. It is not for the bytes.
    drop(server);
    assert!(guest.read(0, 0, 4 << 20) == bytes);
}
