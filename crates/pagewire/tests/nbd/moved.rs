//! Large writes over a UNIX socket to a file that is written through: the kernel moves their bytes.

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
use pagewire_core::nbd::{CommandFlags, CommandType, ErrorNumber};

use crate::client::{Client, HANG, Random, disk, file_of, pattern, wait_until};

const LENGTH: usize = 5_000_001;

/// A client of an export on a socket that needs no handshake, and what it is served by.
fn enter(export: &Arc<Export>) -> (Client<UnixStream>, JoinHandle<Result<()>>) {
    let attachment = export.attach(true).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    for timeout in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
        timeout(&theirs, Some(HANG)).unwrap();
    }
    let server = std::thread::spawn(move || serve_transmission(attachment, ours, Headers::Simple));
    (Client::of(theirs, Headers::Simple), server)
}

fn export(region: &Arc<Region>) -> Arc<Export> {
    Export::new(region.clone(), ExportOptions::default())
}

/// Sends the header of a WRITE alone, and answers its cookie.
fn announce(client: &mut Client<UnixStream>, offset: usize, length: usize) -> u64 {
    client.submit(CommandType::WRITE, CommandFlags::NONE, offset as u64, length as u64, &[])
}

/// The client leaves as it should, and was served to the end.
fn leave(client: Client<UnixStream>, server: JoinHandle<Result<()>>) {
    client.disconnect();
    server.join().unwrap().unwrap();
}

/// The store of a file that is written through.
fn through(path: &Path) -> Arc<FileStore> {
    let options = FileOptions { writable: true, journal: JournalPlace::Off, ..FileOptions::default() };
    Arc::new(FileStore::open_with(path, &options).unwrap())
}

#[test]
fn the_whole_pages_that_have_come_are_in_the_file_before_the_rest_is_sent() {
    let file = file_of(&vec![0; LENGTH]);
    let (mut client, server) = enter(&export(&disk(through(file.path()))));
    client.write(0, &pattern(100_000, 1)).unwrap();
    // The first large write has told that such ones come; this one begins within a page.
    let (bytes, at) = (pattern(1 << 20, 2), 300_000);
    let cookie = announce(&mut client, at, bytes.len());
    client.send(&bytes[..200_000]);
    let whole = (at + 200_000) / 4096 * 4096;
    let is_there = || std::fs::read(file.path()).unwrap()[at..whole] == bytes[..whole - at];
    wait_until("what has come is in the file", is_there);
    assert!(std::fs::read(file.path()).unwrap()[whole..].iter().all(|byte| *byte == 0));
    client.send(&bytes[200_000..]);
    client.answer(cookie, at as u64, 0).unwrap();
    assert!(std::fs::read(file.path()).unwrap()[at..at + bytes.len()] == bytes);
    leave(client, server);
}

#[test]
fn writes_of_any_length_that_come_in_any_parts_are_what_was_sent() {
    let seed = 0x9e37_79b9_7f4a_7c15;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let file = file_of(&pattern(LENGTH, 0));
    let mut model = pattern(LENGTH, 0);
    let (mut client, server) = enter(&export(&disk(through(file.path()))));
    for round in 0..60u8 {
        let most = [5_000, 100_000, 700_000, 3_000_000][random.below(4)];
        let length = 1 + random.below(most);
        let at = random.below(LENGTH - length);
        // Parts so small that they fill the pipe, and such that fill the socket.
        let longest = [60, 5_000, 150_000][random.below(3)].max(length / 5_000);
        let bytes = pattern(length, round);
        let cookie = announce(&mut client, at, length);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (part, behind) = rest.split_at((1 + random.below(longest)).min(rest.len()));
            client.send(part);
            rest = behind;
        }
        model[at..at + length].copy_from_slice(&bytes);
        client.answer(cookie, at as u64, 0).unwrap();
        let from = random.below(LENGTH - 10_000);
        assert!(client.read(from as u64, 10_000).unwrap() == model[from..from + 10_000], "round {round}");
    }
    assert!(std::fs::read(file.path()).unwrap() == model);
    leave(client, server);
}

#[test]
fn readers_of_older_epochs_see_nothing_of_it() {
    let file = file_of(&pattern(LENGTH, 0));
    let region = disk(through(file.path()));
    let before = region.pin().unwrap();
    let (mut client, server) = enter(&export(&region));
    for at in [0, 1_000_000, 500_500] {
        client.write(at, &pattern(1_500_000, 1)).unwrap();
    }
    let image = |epoch| read_epoch(&region, epoch);
    assert!(image(before.epoch()) == pattern(LENGTH, 0));
    client.flush().unwrap();
    let after = region.pin().unwrap();
    assert_eq!(after.epoch(), before.epoch() + 1);
    assert!(image(before.epoch()) == pattern(LENGTH, 0));
    assert!(image(after.epoch()) == std::fs::read(file.path()).unwrap());
    leave(client, server);
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
    let file = file_of(&vec![0; LENGTH]);
    let region = disk(through(file.path()));
    let export = export(&region);
    let (mut client, server) = enter(&export);
    client.write(0, &pattern(100_000, 1)).unwrap();
    // By somebody else: the first large write has told this connection that such ones come.
    let (mut other, its_server) = enter(&export);
    other.flush().unwrap();
    leave(other, its_server);
    let epoch = region.info().epoch;
    let bytes = pattern(1 << 20, 2);
    announce(&mut client, 1 << 20, bytes.len());
    client.send(&bytes[..150_000]);
    drop(client);
    let ended = server.join().unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Unavailable);
    wait_until("what has come is flushed, since nobody is left", || region.info().epoch == epoch + 1);
    let found = std::fs::read(file.path()).unwrap();
    let there = found[1 << 20..].iter().zip(&bytes).take_while(|(found, sent)| found == sent).count();
    assert!(there <= 150_000, "{there}");
    assert!(found[(1 << 20) + there..].iter().all(|byte| *byte == 0));
    assert!(found[100_000..1 << 20].iter().all(|byte| *byte == 0));
    // Somebody else goes on.
    let (mut next, server) = enter(&export);
    next.write(1 << 20, &bytes).unwrap();
    assert!(next.read(1 << 20, 1 << 20).unwrap() == bytes);
    leave(next, server);
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
            let (mut client, server) = enter(&export(&region));
            for round in 1..4 {
                let bytes = pattern(1_500_000, round);
                let at = 1000 * u64::from(round);
                let written = client.write(at, &bytes);
                match fails {
                    true => assert_eq!(written, Err(ErrorNumber::ENOSPC), "{path}"),
                    false => {
                        written.unwrap();
                        assert!(client.read(at, bytes.len() as u64).unwrap() == bytes, "{path}");
                    }
                }
            }
            leave(client, server);
        }
    }
}
