//! Lost connections and restarted servers: reads and writes go on, what was flushed is there, and what was
//! not is known to be in doubt.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use pagewire::engine::copy::{CopyOptions, copy};
use pagewire::engine::{PlainMemory, PushOptions, Pusher, Region};
use pagewire::store::{
    Blocking, FileStore, Flush, MemoryStore, NbdStore, Read, RemoteOptions, Store, Urgency,
};
use pagewire::{ByteRange, ErrorKind};

use crate::nbd_stores::check_stream;
use crate::support::nbd_servers::{By, NbdServer, at, options};
use crate::support::proxy::{Proxy, Weather};
use crate::support::recorder::{self, Recorder};
use crate::support::{file, has, pattern, wait_until};

/// Cuts each of the first connections after so many bytes.
fn cutting(cuts: usize, cut_within: u64) -> Weather {
    Weather { cuts, cut_within, ..Weather::default() }
}

#[test]
fn reads_and_streams_go_on_over_lost_connections() {
    if !has("nbd") {
        return;
    }
    let model = pattern(12 << 20, 6);
    let file = file(&model);
    for (seed, arguments) in [
        // With several threads a connection, nbdkit 1.32 dies of some cuts.
        (1, &["--threads=1"][..]),
        (2, &["--threads=1", "--filter=multi-conn", "multi-conn-mode=disable"][..]),
        (3, &["--threads=1", "--filter=noextents"][..]),
    ] {
        eprintln!("seed {seed}");
        let server = NbdServer::nbdkit_file(By::Tcp, file.path(), arguments);
        let proxy = Proxy::new(&server.peer(), seed, cutting(8, 3 << 20));
        // The first handshake has to come through.
        let mut store = None;
        wait_until("a connection comes through", || {
            store = NbdStore::connect(&at(&proxy.address(), ""), false, &options()).ok();
            store.is_some()
        });
        let store = store.unwrap();
        check_stream("cut", &store, &model);
        let whole = ByteRange::new(0, model.len() as u64);
        for urgency in [Urgency::Demand, Urgency::Background] {
            let (end, all) = recorder::read(&store, &[whole], urgency, &model);
            assert!(end.is_ok() && all, "{end:?}");
        }
        // All at once, in the middle of it.
        let recorder = Arc::new(Recorder::default());
        let epoch = store.info().epoch;
        let sink = recorder.clone();
        store.read(Read { ranges: vec![whole], epoch, urgency: Urgency::Background, sink });
        proxy.cut_all();
        recorder.wait().unwrap();
        assert_eq!(recorder.check(&[whole], &model), whole.len());
    }
}

#[test]
fn writes_go_on_over_lost_connections() {
    if !has("nbd") {
        return;
    }
    let length = 8usize << 20;
    let alone = &["--threads=1", "--filter=multi-conn", "multi-conn-mode=disable"][..];
    for (seed, arguments) in [(11, &["--threads=1"][..]), (12, alone)] {
        eprintln!("seed {seed}");
        let file = file(&vec![0; length]);
        let server = NbdServer::nbdkit_file(By::Tcp, file.path(), arguments);
        let weather = Weather { cuts: 6, cut_within: 1 << 20, cut_up_within: 2 << 20, ..Weather::default() };
        let proxy = Proxy::new(&server.peer(), seed, weather);
        let mut store = None;
        wait_until("a connection comes through", || {
            store = NbdStore::connect(&at(&proxy.address(), ""), true, &options()).ok();
            store.is_some()
        });
        let store = store.unwrap();
        let model = pattern(length, seed as u8);
        let (sender, done) = std::sync::mpsc::channel();
        let pieces: Vec<ByteRange> = ByteRange::new(0, length as u64).split(256 << 10).collect();
        for piece in &pieces {
            let (sender, bytes) = (sender.clone(), &model[piece.start as usize..piece.end as usize]);
            store.write(&[*piece], bytes, Box::new(move |result| sender.send(result).unwrap()));
        }
        for _ in &pieces {
            done.recv_timeout(crate::support::HANG).unwrap().unwrap();
        }
        let (end, all) =
            recorder::read(&store, &[ByteRange::new(0, length as u64)], Urgency::Background, &model);
        assert!(end.is_ok() && all, "{end:?}");
        store.flush_all().unwrap();
        drop(store);
        assert!(std::fs::read(file.path()).unwrap() == model);
    }
}

#[test]
fn what_was_acknowledged_and_not_flushed_is_in_doubt_when_the_server_dies() {
    if !has("nbd") {
        return;
    }
    let file = file(&pattern(1 << 20, 1));
    let mut server = NbdServer::nbdkit_file(By::Tcp, file.path(), &[]);
    let store = server.open(true);
    let before = store.stage();
    store.write_bytes(0, &[9; 4096]).unwrap();
    assert_eq!(store.stage().number, before.number);
    store.flush_all().unwrap();
    // Nothing is in doubt: all is flushed.
    server.go_on();
    store.read_bytes(ByteRange::new(0, 4096), store.info().epoch).unwrap();
    assert_eq!(store.stage().number, before.number);
    store.write_bytes(4096, &[8; 4096]).unwrap();
    let flushed = store.stage().flushed;
    server.go_on();
    wait_until("it is told", || store.stage().number != before.number);
    let (sender, done) = std::sync::mpsc::channel();
    store.flush(Flush {
        number: flushed + 1,
        stage: before.number,
        done: Box::new(move |result| sender.send(result.map(drop)).unwrap()),
    });
    let error = done.recv_timeout(crate::support::HANG).unwrap().unwrap_err();
    assert!(error.can_retry() && error.to_string().contains("written again"), "{error}");
    store.write_bytes(4096, &[8; 4096]).unwrap();
    store.flush_all().unwrap();
    let mut bytes = [0; 8192];
    file.as_file().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..4096] == [9; 4096] && bytes[4096..] == [8; 4096]);
}

/// A server whose memory is gone with it.
fn forgetful(by: By) -> NbdServer {
    NbdServer::nbdkit(by, &["memory", "size=4M"])
}

#[test]
fn what_a_server_has_lost_is_pushed_again() {
    if !has("nbd") {
        return;
    }
    let mut server = forgetful(By::Tcp);
    let store: Arc<dyn Store> = Arc::new(server.open(true));
    let region = Region::new("nbd", store.clone()).unwrap();
    let local = Arc::new(PlainMemory::new(4 << 20));
    let writer = region.writer("a test").unwrap();
    let options = PushOptions { interval: Some(Duration::from_millis(5)), ..PushOptions::default() };
    let pusher = Pusher::start(writer, local.clone(), 4 << 20, options).unwrap();
    let model = pattern(4 << 20, 4);
    local.write(0, &model).unwrap();
    wait_until("it is pushed", || pusher.progress().staged_bytes == 4 << 20);
    server.go_on();
    pusher.flush().unwrap();
    let bytes = store.read_bytes(ByteRange::new(0, 4 << 20), store.info().epoch).unwrap();
    assert!(bytes == model, "a flush that succeeds covers what the restarted server had lost");
}

#[test]
fn a_copy_to_a_server_that_is_restarted_is_whole() {
    if !has("nbd") {
        return;
    }
    let model = pattern(4 << 20, 7);
    let mut server = forgetful(By::Tcp);
    let store: Arc<dyn Store> = Arc::new(server.open(true));
    let from = Arc::new(MemoryStore::new(4 << 20));
    from.write_bytes(0, &model).unwrap();
    from.flush_all().unwrap();
    let from = Region::new("from", from).unwrap();
    let mut restarts = 0;
    let options = CopyOptions { interval: Duration::from_millis(1), ..CopyOptions::default() };
    copy(&from, &store, &options, |progress| {
        if progress.chunks_present > 1 && restarts < 2 {
            restarts += 1;
            server.go_on();
        }
    })
    .unwrap();
    let bytes = store.read_bytes(ByteRange::new(0, 4 << 20), store.info().epoch).unwrap();
    assert!(bytes == model, "after {restarts} restarts");
}

#[test]
fn a_server_that_is_gone_fails_what_waits_within_the_patience() {
    if !has("nbd") {
        return;
    }
    let model = pattern(1 << 20, 1);
    let file = file(&model);
    let mut server = NbdServer::nbdkit_file(By::Unix, file.path(), &[]);
    let patience = Duration::from_millis(500);
    let options = RemoteOptions { patience, connect_timeout: patience, ..options() };
    let store = NbdStore::connect(&server.address(), true, &options).unwrap();
    server.kill();
    let error = store.read_bytes(ByteRange::new(0, 4096), store.info().epoch).unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.can_retry(), "{error}");
    let error = store.write_bytes(0, &[1; 4096]).unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.can_retry(), "{error}");
    server.go_on();
    wait_until("it is there again", || store.read_bytes(ByteRange::new(0, 4096), store.info().epoch).is_ok());
    // A copy from one that goes and stays away says so, and a part of a file is no file.
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("copy");
    let to: Arc<dyn Store> = Arc::new(FileStore::open(&path, Some(1 << 20), true).unwrap());
    let slow = NbdServer::nbdkit_file(By::Unix, file.path(), &["--filter=delay", "rdelay=200ms"]);
    let from = NbdStore::connect(&slow.address(), false, &options).unwrap();
    let from = Region::new("from", Arc::new(from)).unwrap();
    let options = CopyOptions { patience, ..CopyOptions::default() };
    let mut slow = Some(slow);
    let error = copy(&from, &to, &options, |_| drop(slow.take())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[test]
fn an_export_that_comes_back_with_another_size_is_not_used() {
    if !has("nbd") {
        return;
    }
    let mut server = NbdServer::nbdkit(By::Unix, &["memory", "size=4M"]);
    let store = server.open(false);
    server.go_on_with(|arguments| *arguments.last_mut().unwrap() = "size=8M".into());
    let mut error = None;
    wait_until("it is noticed", || {
        error = store.read_bytes(ByteRange::new(0, 4096), store.info().epoch).err();
        error.as_ref().is_some_and(|error| error.kind() == ErrorKind::Changed)
    });
    let error = error.unwrap();
    assert!(error.to_string().contains("8388608 bytes now, and had 4194304"), "{error}");
    assert_eq!(store.refresh().unwrap_err().kind(), ErrorKind::Changed);
    server.go_on_with(|arguments| *arguments.last_mut().unwrap() = "size=4M".into());
    wait_until("it is used again", || store.read_bytes(ByteRange::new(0, 4096), store.info().epoch).is_ok());
}
