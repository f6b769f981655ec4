//! NBD devices of the kernel. This host may have none, so this program runs once more in a guest that has: there the
//! ignored tests run, each as a scenario of one boot.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pagewire_guest::Guest;
use pagewire_sys::event::{PollItem, poll};
use pagewire_sys::nbd::{self, Bound, Control, Setup};

/// The length of devices here.
const LENGTH: usize = 1 << 20;

/// Longer than anything here may take: whatever waits as long as this hangs.
const HANG: Duration = Duration::from_secs(20);

/// The tests that run in the guest.
const IN_GUEST: [&str; 5] = [
    "a_device_is_made_used_and_taken_down",
    "a_connection_that_dies_is_told_of_and_replaced",
    "a_device_in_use_is_refused_to_others",
    "without_connections_requests_fail_at_once",
    "a_device_is_made_by_ioctl_too",
];

#[test]
fn devices_of_a_guest_kernel() {
    if pagewire_guest::skipped() {
        return;
    }
    let program = std::env::current_exe().unwrap();
    let name = program.file_name().unwrap().to_str().unwrap();
    let mut guest = Guest::new("devices").module("nbd nbds_max=4").binary(&program);
    for test in IN_GUEST {
        guest = guest.scenario(test, &format!("{name} --ignored --exact {test} --nocapture"));
    }
    let report = guest.boot();
    for test in IN_GUEST {
        let output = report.assert(test);
        assert!(output.is_empty() || output.contains("1 passed"), "{test} did not run: {output}");
    }
}

/// What is behind a device: memory, and what was asked for.
#[derive(Default)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    flushes: AtomicU64,
    goodbyes: AtomicU64,
    requests: AtomicU64,
}

impl Memory {
    fn new() -> Arc<Self> {
        let bytes = (0..LENGTH).map(|at| (at / 4096 * 7 + at % 249) as u8).collect();
        Arc::new(Self { bytes: Mutex::new(bytes), ..Self::default() })
    }

    /// A connection: the end for the kernel, and a thread that answers at the other one.
    fn connection(self: &Arc<Self>) -> (UnixStream, UnixStream, JoinHandle<()>) {
        let (kernel, ours) = UnixStream::pair().unwrap();
        let (this, stream) = (self.clone(), ours.try_clone().unwrap());
        let thread = std::thread::spawn(move || {
            // Ends with the connection.
            let _ = this.serve(stream);
        });
        (kernel, ours, thread)
    }

    /// Answers requests of the protocol, with simple replies.
    fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let mut header = [0; 28];
            stream.read_exact(&mut header)?;
            assert_eq!(header[..4], 0x2560_9513_u32.to_be_bytes());
            let at = u64::from_be_bytes(header[16..24].try_into().unwrap()) as usize;
            let length = u32::from_be_bytes(header[24..].try_into().unwrap()) as usize;
            self.requests.fetch_add(1, Ordering::SeqCst);
            let mut reply = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &header[8..16]].concat();
            match u16::from_be_bytes([header[6], header[7]]) {
                0 => reply.extend(&self.bytes.lock().unwrap()[at..at + length]),
                1 => {
                    let mut bytes = vec![0; length];
                    stream.read_exact(&mut bytes)?;
                    self.bytes.lock().unwrap()[at..at + length].copy_from_slice(&bytes);
                }
                2 => {
                    self.goodbyes.fetch_add(1, Ordering::SeqCst);
                    // Also for the one who still holds this end.
                    return stream.shutdown(std::net::Shutdown::Both);
                }
                3 => drop(self.flushes.fetch_add(1, Ordering::SeqCst)),
                command => panic!("the kernel sends {command}"),
            }
            stream.write_all(&reply)?;
        }
    }
}

/// The flags of an export that can be flushed, by several connections.
fn setup(backend: &str) -> Setup {
    Setup {
        length: LENGTH as u64,
        block_size: 4096,
        flags: 1 | 1 << 2 | 1 << 8,
        timeout: Some(Duration::from_secs(10)),
        dead_connection_timeout: Duration::ZERO,
        backend: backend.into(),
    }
}

fn path(index: u32) -> PathBuf {
    format!("/dev/nbd{index}").into()
}

fn attribute(index: u32, name: &str) -> io::Result<String> {
    std::fs::read_to_string(format!("/sys/block/nbd{index}/{name}")).map(|text| text.trim().to_owned())
}

/// Reads past the page cache, for which the memory has to be aligned: the kernel reads to a file in memory.
fn read_anew(index: u32, at: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path(index))?;
    // Drops what the cache has of it, as root may.
    std::fs::write("/proc/sys/vm/drop_caches", "1")?;
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "runs in a guest, by devices_of_a_guest_kernel"]
fn a_device_is_made_used_and_taken_down() {
    let control = Control::open().unwrap();
    let memory = Memory::new();
    let (one, _ours, first) = memory.connection();
    let (two, _also, second) = memory.connection();
    let index = control.connect(None, &setup("the backend"), &[one.as_fd(), two.as_fd()]).unwrap();
    drop((one, two));
    assert!(control.devices().unwrap().contains(&(index, true)));
    assert_eq!(attribute(index, "size").unwrap(), (LENGTH / 512).to_string());
    assert_eq!(attribute(index, "queue/logical_block_size").unwrap(), "4096");
    assert_eq!(attribute(index, "backend").unwrap(), "the backend");
    assert_eq!(attribute(index, "pid").unwrap(), pagewire_sys::thread::id().to_string());
    let file = OpenOptions::new().read(true).write(true).open(path(index)).unwrap();
    let mut bytes = vec![0; LENGTH];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == *memory.bytes.lock().unwrap());
    file.write_all_at(&[0xab; 8192], 4096).unwrap();
    let before = memory.flushes.load(Ordering::SeqCst);
    file.sync_all().unwrap();
    assert!(memory.flushes.load(Ordering::SeqCst) > before, "a sync is a flush");
    assert_eq!(memory.bytes.lock().unwrap()[4096..12288], [0xab; 8192]);
    drop(file);
    control.disconnect(index).unwrap();
    first.join().unwrap();
    second.join().unwrap();
    assert_eq!(memory.goodbyes.load(Ordering::SeqCst), 2);
    assert!(!control.devices().unwrap().contains(&(index, true)));
    assert!(attribute(index, "pid").is_err(), "nobody has it any more");
    control.disconnect(index).expect("what is down is down");
}

#[test]
#[ignore = "runs in a guest, by devices_of_a_guest_kernel"]
fn a_connection_that_dies_is_told_of_and_replaced() {
    let control = Control::open().unwrap();
    let deaths = control.deaths().unwrap();
    let memory = Memory::new();
    let (one, ours, first) = memory.connection();
    let (two, _also, _second) = memory.connection();
    let index = control.connect(None, &setup("replaced"), &[one.as_fd(), two.as_fd()]).unwrap();
    drop((one, two));
    ours.shutdown(std::net::Shutdown::Both).unwrap();
    first.join().unwrap();
    let mut items = [PollItem::readable(deaths.as_fd())];
    poll(&mut items, Some(HANG)).unwrap();
    assert!(items[0].is_ready(), "nobody was told");
    assert_eq!(deaths.wait().unwrap(), [index]);
    assert_eq!(read_anew(index, 8192).unwrap(), memory.bytes.lock().unwrap()[8192..12288]);
    let (three, _last, _third) = memory.connection();
    let again = |backend: &str, socket: BorrowedFd<'_>| control.reconnect(index, backend, &[socket]);
    assert_eq!(again("another", three.as_fd()).unwrap_err().kind(), ErrorKind::InvalidInput);
    again("replaced", three.as_fd()).unwrap();
    again("replaced", three.as_fd()).expect("none is dead any more, and so nothing is done");
    assert_eq!(read_anew(index, 4096).unwrap(), memory.bytes.lock().unwrap()[4096..8192]);
    control.disconnect(index).unwrap();
}

#[test]
#[ignore = "runs in a guest, by devices_of_a_guest_kernel"]
fn a_device_in_use_is_refused_to_others() {
    let control = Control::open().unwrap();
    let memory = Memory::new();
    let (one, _ours, _first) = memory.connection();
    let index = control.connect(Some(2), &setup("mine"), &[one.as_fd()]).unwrap();
    assert_eq!(index, 2);
    let (two, _also, _second) = memory.connection();
    let error = control.connect(Some(2), &setup("theirs"), &[two.as_fd()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    let bound = Bound::new(&path(2), &setup("theirs"), &[two.as_fd()]);
    assert_eq!(bound.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(attribute(2, "backend").unwrap(), "mine");
    assert_eq!(read_anew(2, 0).unwrap(), memory.bytes.lock().unwrap()[..4096], "it goes on");
    control.disconnect(2).unwrap();
}

#[test]
#[ignore = "runs in a guest, by devices_of_a_guest_kernel"]
fn without_connections_requests_fail_at_once() {
    let control = Control::open().unwrap();
    let memory = Memory::new();
    let (one, ours, first) = memory.connection();
    let index = control.connect(None, &setup("lost"), &[one.as_fd()]).unwrap();
    drop(one);
    ours.shutdown(std::net::Shutdown::Both).unwrap();
    first.join().unwrap();
    assert!(read_anew(index, 0).is_err());
    assert!(control.devices().unwrap().contains(&(index, true)), "it is still there, and nobody else's");
    control.disconnect(index).unwrap();
    let (two, _also, _second) = memory.connection();
    control.connect(Some(index), &setup("again"), &[two.as_fd()]).unwrap();
    assert_eq!(read_anew(index, 0).unwrap(), memory.bytes.lock().unwrap()[..4096]);
    control.disconnect(index).unwrap();
}

#[test]
#[ignore = "runs in a guest, by devices_of_a_guest_kernel"]
fn a_device_is_made_by_ioctl_too() {
    let wrong = Bound::new("/dev/null".as_ref(), &setup(""), &[]).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::InvalidInput);
    let memory = Memory::new();
    let (one, _ours, first) = memory.connection();
    let (two, _also, second) = memory.connection();
    let thread = std::thread::spawn(move || {
        let bound = Bound::new(&path(3), &setup(""), &[one.as_fd(), two.as_fd()])?;
        drop((one, two));
        bound.run()
    });
    eventually("the device has its length", || {
        attribute(3, "size").unwrap() == (LENGTH / 512).to_string() && attribute(3, "pid").is_ok()
    });
    assert_eq!(read_anew(3, 4096).unwrap(), memory.bytes.lock().unwrap()[4096..8192]);
    let file = OpenOptions::new().write(true).open(path(3)).unwrap();
    file.write_all_at(&[0xcd; 4096], 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(memory.bytes.lock().unwrap()[..4096], [0xcd; 4096]);
    assert!(memory.flushes.load(Ordering::SeqCst) > 0);
    nbd::disconnect(&path(3)).unwrap();
    thread.join().unwrap().unwrap();
    first.join().unwrap();
    second.join().unwrap();
    assert_eq!(memory.goodbyes.load(Ordering::SeqCst), 2);
    eventually("the device is free", || attribute(3, "pid").is_err());
    nbd::disconnect(&path(3)).expect("what is down is down");
}
