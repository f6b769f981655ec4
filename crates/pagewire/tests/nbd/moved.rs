//! Large writes over a UNIX socket to a file that is written through: the kernel moves their bytes.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use pagewire::access::nbd::{Export, ExportOptions, Headers, serve_transmission};
use pagewire::address::JournalPlace;
use pagewire::engine::Region;
use pagewire::store::{
    Blocking, Completion, FileOptions, FileStore, Flush, Info, Lent, MemoryStore, Read as ReadRequest, Store,
};
use pagewire::{ByteRange, ErrorKind, Result};
use pagewire_core::nbd::{CommandFlags, CommandType, ErrorNumber, ReplyHeader, Request};

use crate::client::{HANG, disk, pattern, wait_until};

const LENGTH: usize = 5_000_001;

/// A client of a region on a socket that needs no handshake.
struct Client {
    socket: UnixStream,
    server: JoinHandle<Result<()>>,
}

impl Client {
    fn of(region: &Arc<Region>) -> Self {
        Self::enter(&Export::new(region.clone(), ExportOptions::default()))
    }

    fn enter(export: &Arc<Export>) -> Self {
        let attachment = export.attach(true).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        for timeout in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            timeout(&theirs, Some(HANG)).unwrap();
        }
        let server = std::thread::spawn(move || serve_transmission(attachment, ours, Headers::Simple));
        Self { socket: theirs, server }
    }

    fn request(&mut self, command: CommandType, offset: usize, length: usize) {
        let (offset, length) = (offset as u64, length as u64);
        let mut bytes = Vec::new();
        let flags = CommandFlags::NONE;
        Request { flags, command, cookie: 9, offset, length }.encode(false, &mut bytes);
        self.socket.write_all(&bytes).unwrap();
    }

    fn answer(&mut self) -> std::result::Result<(), ErrorNumber> {
        let mut header = [0; ReplyHeader::SIMPLE_LEN];
        self.socket.read_exact(&mut header).unwrap();
        match ReplyHeader::decode(Headers::Simple, &header).unwrap() {
            ReplyHeader::Simple { error: ErrorNumber(0), cookie: 9 } => Ok(()),
            ReplyHeader::Simple { error, cookie: 9 } => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> std::result::Result<(), ErrorNumber> {
        self.request(CommandType::WRITE, offset, bytes.len());
        self.socket.write_all(bytes).unwrap();
        self.answer()
    }

    fn read(&mut self, offset: usize, length: usize) -> Vec<u8> {
        self.request(CommandType::READ, offset, length);
        self.answer().unwrap();
        let mut bytes = vec![0; length];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn leave(mut self) {
        self.request(CommandType::DISC, 0, 0);
        self.server.join().unwrap().unwrap();
    }
}

/// The store of a file that is written through.
fn through(path: &Path) -> Arc<FileStore> {
    let options = FileOptions { writable: true, journal: JournalPlace::Off, ..FileOptions::default() };
    Arc::new(FileStore::open_with(path, &options).unwrap())
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Numbers by xorshift, below a bound.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }
}

#[test]
fn the_whole_pages_that_have_come_are_in_the_file_before_the_rest_is_sent() {
    let file = file(&vec![0; LENGTH]);
    let mut client = Client::of(&disk(through(file.path())));
    client.write(0, &pattern(100_000, 1)).unwrap();
    // The first large write has told that such ones come; this one begins within a page.
    let (bytes, at) = (pattern(1 << 20, 2), 300_000);
    client.request(CommandType::WRITE, at, bytes.len());
    client.socket.write_all(&bytes[..200_000]).unwrap();
    let whole = (at + 200_000) / 4096 * 4096;
    let is_there = || std::fs::read(file.path()).unwrap()[at..whole] == bytes[..whole - at];
    wait_until("what has come is in the file", is_there);
    assert!(std::fs::read(file.path()).unwrap()[whole..].iter().all(|byte| *byte == 0));
    client.socket.write_all(&bytes[200_000..]).unwrap();
    client.answer().unwrap();
    assert!(std::fs::read(file.path()).unwrap()[at..at + bytes.len()] == bytes);
    client.leave();
}

#[test]
fn writes_of_any_length_that_come_in_any_parts_are_what_was_sent() {
    let seed = 0x9e37_79b9_7f4a_7c15;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let file = file(&pattern(LENGTH, 0));
    let mut model = pattern(LENGTH, 0);
    let mut client = Client::of(&disk(through(file.path())));
    for round in 0..60u8 {
        let most = [5_000, 100_000, 700_000, 3_000_000][random.below(4)];
        let length = 1 + random.below(most);
        let at = random.below(LENGTH - length);
        // Parts so small that they fill the pipe, and such that fill the socket.
        let longest = [60, 5_000, 150_000][random.below(3)].max(length / 5_000);
        let bytes = pattern(length, round);
        client.request(CommandType::WRITE, at, length);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (part, behind) = rest.split_at((1 + random.below(longest)).min(rest.len()));
            client.socket.write_all(part).unwrap();
            rest = behind;
        }
        model[at..at + length].copy_from_slice(&bytes);
        client.answer().unwrap();
        let from = random.below(LENGTH - 10_000);
        assert!(client.read(from, 10_000) == model[from..from + 10_000], "round {round}");
    }
    assert!(std::fs::read(file.path()).unwrap() == model);
    client.leave();
}

#[test]
fn readers_of_older_epochs_see_nothing_of_it() {
    let file = file(&pattern(LENGTH, 0));
    let region = disk(through(file.path()));
    let before = region.pin().unwrap();
    let mut client = Client::of(&region);
    for at in [0, 1_000_000, 500_500] {
        client.write(at, &pattern(1_500_000, 1)).unwrap();
    }
    let image = |epoch| read_epoch(&region, epoch);
    assert!(image(before.epoch()) == pattern(LENGTH, 0));
    client.request(CommandType::FLUSH, 0, 0);
    client.answer().unwrap();
    let after = region.pin().unwrap();
    assert_eq!(after.epoch(), before.epoch() + 1);
    assert!(image(before.epoch()) == pattern(LENGTH, 0));
    assert!(image(after.epoch()) == std::fs::read(file.path()).unwrap());
    client.leave();
}

/// The whole region at an epoch.
fn read_epoch(region: &Arc<Region>, epoch: u64) -> Vec<u8> {
    struct Of(Arc<Region>);
    impl Store for Of {
        fn info(&self) -> Info {
            self.0.info()
        }
        fn read(&self, read: ReadRequest) {
            self.0.read(read);
        }
        fn flush(&self, flush: Flush) {
            (flush.done)(Ok(self.info()));
        }
    }
    Of(region.clone()).read_bytes(ByteRange::new(0, LENGTH as u64), epoch).unwrap()
}

#[test]
fn a_client_that_is_gone_in_the_middle_leaves_what_came_and_nothing_else() {
    let file = file(&vec![0; LENGTH]);
    let export = Export::new(disk(through(file.path())), ExportOptions::default());
    let mut client = Client::enter(&export);
    client.write(0, &pattern(100_000, 1)).unwrap();
    let bytes = pattern(1 << 20, 2);
    client.request(CommandType::WRITE, 1 << 20, bytes.len());
    client.socket.write_all(&bytes[..150_000]).unwrap();
    drop(client.socket);
    let ended = client.server.join().unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Unavailable);
    let found = std::fs::read(file.path()).unwrap();
    let there = found[1 << 20..].iter().zip(&bytes).take_while(|(found, sent)| found == sent).count();
    assert!(there <= 150_000, "{there}");
    assert!(found[(1 << 20) + there..].iter().all(|byte| *byte == 0));
    assert!(found[100_000..1 << 20].iter().all(|byte| *byte == 0));
    // Somebody else goes on.
    let mut next = Client::enter(&export);
    next.write(1 << 20, &bytes).unwrap();
    assert!(next.read(1 << 20, bytes.len()) == bytes);
    next.leave();
}

/// Memory that lends a file which is of no use for it.
struct Lending {
    store: MemoryStore,
    lent: OwnedFd,
    fails: bool,
}

impl Store for Lending {
    fn info(&self) -> Info {
        self.store.info()
    }

    fn read(&self, read: ReadRequest) {
        self.store.read(read);
    }

    fn write(&self, ranges: &[ByteRange], bytes: &[u8], done: Completion) {
        if self.fails {
            return done(Err(pagewire::Error::new(ErrorKind::NoSpace, "the disk is full")));
        }
        self.store.write(ranges, bytes, done);
    }

    fn flush(&self, flush: Flush) {
        self.store.flush(flush);
    }

    fn stage(&self) -> pagewire::store::Stage {
        self.store.stage()
    }

    fn lend_for_writing(&self) -> Option<Lent<'_>> {
        Some(Lent { file: self.lent.as_fd() })
    }
}

#[test]
fn what_cannot_be_moved_is_written_or_refused_and_the_next_request_is_understood() {
    for fails in [false, true] {
        for (path, writable) in [("/dev/full", true), ("/dev/null", false)] {
            let lent = std::fs::OpenOptions::new().read(!writable).write(writable).open(path).unwrap();
            let store = MemoryStore::new(LENGTH as u64);
            let region = disk(Arc::new(Lending { store, lent: lent.into(), fails }));
            let mut client = Client::of(&region);
            for round in 1..4 {
                let bytes = pattern(1_500_000, round);
                let written = client.write(1000 * usize::from(round), &bytes);
                match fails {
                    true => assert_eq!(written, Err(ErrorNumber::ENOSPC), "{path}"),
                    false => {
                        written.unwrap();
                        assert!(client.read(1000 * usize::from(round), bytes.len()) == bytes, "{path}");
                    }
                }
            }
            client.leave();
        }
    }
}
