//! What a client can make a server hold in memory is bounded: a server in a process of its own is
//! abused, and what it holds is read from `/proc`.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use pagewire::ByteRange;
use pagewire::engine::Region;
use pagewire::store::FileStore;
use pagewire_core::wire::{FrameType, Header, MAX_RANGES, Notification, Request, Role};

use crate::support::raw::Raw;
use crate::support::role::{Actor, SERVE};
use crate::support::{self, anywhere, file, pattern};

const BOUND: u64 = 64 << 20;

/// Anonymous memory that a process holds, in bytes.
fn held_by(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Sends until the peer takes no more, or hangs up, or `most` bytes have gone.
fn push(raw: &mut Raw, bytes: &[u8], most: u64) {
    raw.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut sent = 0;
    while sent < most && raw.stream.write_all(bytes).is_ok() {
        sent += bytes.len() as u64;
    }
}

fn server(file: &tempfile::NamedTempFile, border: u64) -> (Actor, pagewire::address::PeerAddress) {
    let path = file.path().to_str().unwrap().to_owned();
    let settings = [("file", path), ("listen", anywhere().to_string()), ("border", border.to_string())];
    let server = Actor::start(SERVE, &settings);
    let address = server.wait_for("listening ").parse().unwrap();
    (server, address)
}

#[test]
fn abuse_costs_a_server_bounded_memory() {
    let length = 16u64 << 20;
    let file = file(&pattern(length as usize, 1));
    let (server, address) = server(&file, u64::MAX);
    let before = held_by(server.id());
    let mut clients = Vec::new();
    for step in 0..4u8 {
        let (mut raw, handle, _) = Raw::opened(&address, [step; 16], "file");
        let ranges: Vec<ByteRange> = vec![ByteRange::new(0, 4096); 1000];
        let mut bytes = Vec::new();
        match step {
            // Reads, and nobody takes the answers.
            0 => Request::Read { handle, epoch: 1, ranges }.encode(5, &mut bytes),
            // Steering without end.
            1 => {
                let whole = vec![ByteRange::new(0, length)];
                raw.send(7, &Request::Stream { handle, epoch: 1, credit: 0, ranges: whole });
                let ranges = vec![ByteRange::new(0, 4096); MAX_RANGES];
                Notification::Steer { stream: 7, ranges }.encode(&mut bytes);
            }
            // Notifications that nobody knows, as long as they may be.
            2 => {
                let header =
                    Header { length: FrameType(0x2abc).longest_body(), kind: FrameType(0x2abc), id: 0 };
                bytes.extend(header.encode());
                bytes.resize(bytes.len() + header.length as usize, 0xaa);
            }
            // Pings, and nobody takes the answers.
            _ => (0..1000).for_each(|id| Request::Ping(vec![1; 64]).encode(id, &mut bytes)),
        }
        push(&mut raw, &bytes, 20 << 20);
        clients.push(raw);
    }
    for step in 100..150u8 {
        // A body that is announced, and never comes.
        let mut raw = Raw::greeted(&address, Role::Primary, [step; 16]);
        let kind = FrameType::READ;
        raw.send_bytes(&Header { length: kind.longest_body(), kind, id: 1 }.encode());
        clients.push(raw);
    }
    let after = held_by(server.id());
    assert!(after < before + BOUND, "{before} bytes before, {after} after");
    drop(clients);
}

#[test]
fn reads_of_a_slow_store_cost_a_server_bounded_memory() {
    /// Answers nothing before it is let go: a store far away.
    struct Later {
        store: Arc<FileStore>,
        waiting: std::sync::Mutex<Vec<pagewire::store::Read>>,
    }

    impl pagewire::store::Store for Later {
        fn info(&self) -> pagewire::store::Info {
            let mut info = self.store.info();
            info.capabilities.lend = false;
            info
        }

        fn read(&self, read: pagewire::store::Read) {
            self.waiting.lock().unwrap().push(read);
        }

        fn flush(&self, flush: pagewire::store::Flush) {
            self.store.flush(flush);
        }
    }

    let file = file(&pattern(1 << 20, 3));
    let store = Arc::new(FileStore::open(file.path(), None, false).unwrap());
    let later = Arc::new(Later { store, waiting: std::sync::Mutex::default() });
    let (_server, address) = support::serve([Region::new("file", later.clone()).unwrap()], &anywhere());
    let (mut raw, handle, _) = Raw::opened(&address, [2; 16], "file");
    let ranges: Vec<ByteRange> =
        (0..256).map(|page| ByteRange::new(page * 4096, (page + 1) * 4096)).collect();
    let mut bytes = Vec::new();
    (0..64).for_each(|id| Request::Read { handle, epoch: 1, ranges: ranges.clone() }.encode(id, &mut bytes));
    push(&mut raw, &bytes, 128 << 20);
    let waiting = std::mem::take(&mut *later.waiting.lock().unwrap());
    let held: usize = waiting.iter().map(|read| read.ranges.len() * size_of::<ByteRange>()).sum();
    for read in waiting {
        read.sink.done(Ok(()));
    }
    assert!(held < BOUND as usize, "{held} bytes of requests wait for a slow store");
}
