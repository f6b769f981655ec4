//! A server's process is killed before each thing that it does to its file, one after the other: whoever opens
//! the file finds one epoch, the writer goes on with the server that is started again, and in the end the file
//! is what was written.
//!
//! The process is this program, which is started again to play that part: see [`play`].

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use pagewire_core::chunk::ByteRange;

use super::{Server, ServerOptions};
use crate::address::{PeerAddress, RegionAddress};
use crate::engine::{PlainMemory, PushOptions, Pusher, Region};
use crate::store::steps::{STOP_AT, STOPPED};
use crate::store::{Blocking, FileOptions, FileStore, RemoteOptions, RemoteStore, Store};

const FILE: &str = "PAGEWIRE_TEST_FILE";
const LISTEN: &str = "PAGEWIRE_TEST_LISTEN";
const LISTENING: &str = "listening ";

const LENGTH: u64 = 6 * 4096 + 100;
const CAPACITY: u64 = 10 * 4096;

/// Longer than anything here may take.
const HANG: Duration = Duration::from_secs(30);

/// The lengths that the region has after each flush, and the pages that are written before it.
const FLUSHES: [(u64, &[u64]); 4] =
    [(LENGTH, &[0, 1, 4]), (9 * 4096, &[1, 7]), (3 * 4096 + 50, &[0]), (LENGTH, &[2])];

fn image_after(flush: usize) -> Vec<u8> {
    let mut bytes = vec![7; LENGTH as usize];
    for (number, (length, pages)) in FLUSHES.iter().enumerate().take(flush) {
        bytes.resize(*length as usize, 0);
        pages.iter().for_each(|page| bytes[*page as usize * 4096..][..4096].fill(number as u8 + 10));
    }
    bytes
}

/// The part that is played: serves the file until it is killed.
#[test]
fn play() {
    let Ok(path) = std::env::var(FILE) else { return };
    let options = FileOptions { writable: true, capacity: Some(CAPACITY), ..FileOptions::default() };
    let store = FileStore::open_with(path.as_ref(), &options).unwrap();
    let region = Region::new("region", Arc::new(store)).unwrap();
    let server = Server::new([region], ServerOptions::default()).unwrap();
    let address = server.listen(&std::env::var(LISTEN).unwrap().parse().unwrap()).unwrap();
    println!("\n{LISTENING}{address}");
    // Until it is killed, or its parent has gone.
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

struct Served {
    child: Child,
    lines: Receiver<String>,
}

impl Served {
    fn start(path: &Path, listen: &PeerAddress, stop_at: Option<usize>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "access::serve::killed::play", "--nocapture"]);
        command.env(FILE, path).env(LISTEN, listen.to_string());
        if let Some(step) = stop_at {
            command.env(STOP_AT, step.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(100);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The parent has heard what it needed.
                let _ = sender.try_send(line);
            }
        });
        Self { child, lines }
    }

    /// Where it listens; none where it has stopped before that.
    fn address(&self) -> Option<PeerAddress> {
        loop {
            let line = self.lines.recv_timeout(HANG).expect("it neither listens nor stops");
            if line == STOPPED {
                return None;
            }
            if let Some(address) = line.strip_prefix(LISTENING) {
                return Some(address.parse().unwrap());
            }
        }
    }

    /// Waits until it stops, or `over`. Answers whether it has stopped.
    fn stops(&self, over: &AtomicBool) -> bool {
        loop {
            match self.lines.recv_timeout(Duration::from_millis(2)) {
                Ok(line) if line == STOPPED => return true,
                Ok(_) => {}
                Err(_) if over.load(Ordering::Acquire) => return false,
                Err(_) => {}
            }
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // SIGKILL; it may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes and flushes all of [`FLUSHES`], over whatever becomes of the server.
fn write_all(peer: &PeerAddress, flushed: &AtomicUsize) {
    let at = RegionAddress { peer: peer.clone(), name: "region".into() };
    let options = RemoteOptions {
        connections: 1,
        patience: HANG,
        connect_timeout: Duration::from_secs(2),
        ..RemoteOptions::default()
    };
    let remote = std::iter::repeat_with(|| RemoteStore::connect_writer(&at, &options, "a test"))
        .inspect(|tried| {
            if let Err(error) = tried {
                assert!(error.can_retry(), "{error}");
                std::thread::sleep(Duration::from_millis(10));
            }
        })
        .find_map(Result::ok);
    let region = Region::new("region", Arc::new(remote.unwrap())).unwrap();
    let local = Arc::new(PlainMemory::new(CAPACITY));
    let push = PushOptions { interval: None, ..PushOptions::default() };
    // The first thing that a writer asks for may fall into the time without a server.
    let writer = std::iter::repeat_with(|| region.writer("a test"))
        .inspect(|_| std::thread::sleep(Duration::from_millis(1)))
        .find_map(Result::ok);
    let pusher = Pusher::start(writer.unwrap(), local.clone(), CAPACITY, push).unwrap();
    for (number, (length, pages)) in FLUSHES.iter().enumerate() {
        if *length != pusher.length() {
            pusher.set_length(*length).unwrap();
        }
        pages.iter().for_each(|page| local.write(page * 4096, &[number as u8 + 10; 4096]).unwrap());
        let info = pusher.flush().unwrap();
        assert_eq!((info.epoch, info.length), (number as u64 + 2, *length));
        flushed.store(number + 1, Ordering::Release);
    }
}

/// What a file is, for somebody who opens it.
fn found(path: &Path) -> (usize, Vec<u8>) {
    let store = FileStore::open(path, None, false).unwrap();
    let info = store.info();
    (info.epoch as usize - 1, store.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap())
}

/// Kills the server before this step. Answers whether it came as far.
fn kill_before(step: usize) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("region");
    std::fs::write(&path, image_after(0)).unwrap();
    let anywhere = "pw://127.0.0.1:0".parse().unwrap();
    let first = Served::start(&path, &anywhere, Some(step));
    let Some(peer) = first.address() else {
        drop(first);
        assert!(found(&path) == (0, image_after(0)), "step {step}");
        return true;
    };
    let (flushed, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let stopped = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let _over = Over(&over);
            write_all(&peer, &flushed);
        });
        let stopped = first.stops(&over);
        drop(first);
        if !stopped {
            return writing.join().map(|()| false).unwrap();
        }
        let acknowledged = flushed.load(Ordering::Acquire);
        let (flush, bytes) = found(&path);
        assert!((acknowledged..=acknowledged + 1).contains(&flush), "step {step}: {acknowledged}, {flush}");
        assert!(bytes == image_after(flush), "step {step}: epoch {} is a mix", flush + 1);
        let again = Served::start(&path, &peer, None);
        assert_eq!(again.address().as_ref(), Some(&peer));
        writing.join().unwrap();
        true
    });
    assert!(found(&path) == (FLUSHES.len(), image_after(FLUSHES.len())), "step {step}");
    stopped
}

/// Says that the writer has ended, however it has.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_server_is_killed_before_every_step() {
    const THREADS: usize = 3;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let steps = (thread..).step_by(THREADS).take_while(|step| kill_before(*step)).count();
                assert!(steps > 10, "{steps} steps");
            });
        }
    });
}
