//! Exports of other makers' NBD servers keep the contract of a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pagewire::store::{Blocking, Info, NbdStore, Part, RemoteOptions, Sink, Store, StreamRequest, Urgency};
use pagewire::{ByteRange, ErrorKind};

use crate::stores::{LENGTHS, check_reads, check_refuses_writes, check_writes, retry};
use crate::support::nbd_servers::{By, NbdServer, options};
use crate::support::recorder::{self, Recorder};
use crate::support::{file, has, pattern};

/// Reads all of a store by a stream, and checks what came.
pub(crate) fn check_stream(name: &str, store: &dyn Store, model: &[u8]) {
    let whole = ByteRange::new(0, model.len() as u64);
    let recorder = Arc::new(Recorder::default());
    let request = StreamRequest { ranges: vec![whole], epoch: store.info().epoch, sink: recorder.clone() };
    let stream = store.stream(request).unwrap();
    recorder.wait().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(recorder.check(&[whole], model), whole.len(), "{name}");
    drop(stream);
}

fn check(name: &str, server: &NbdServer, model: &[u8], writable: bool) {
    let store: Arc<dyn Store> = Arc::new(server.open(false));
    check_reads(name, &*store, model);
    check_reads(name, &retry(&store), model);
    check_stream(name, &*store, model);
    check_refuses_writes(name, &*store);
    drop(store);
    if writable {
        let store = server.open(true);
        check_writes(name, &store, model.to_vec());
        drop(store);
        server.open(false);
    } else {
        let error = NbdStore::connect(&server.address(), true, &options()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Denied, "{name}: {error}");
        assert!(error.to_string().contains("can only be read"), "{error}");
    }
}

#[test]
fn an_export_of_nbdkit_keeps_the_contract() {
    if !has("nbd") {
        return;
    }
    let kinds: [(&str, By, &[&str], bool); 6] = [
        ("TCP", By::Tcp, &[], true),
        ("UNIX", By::Unix, &[], true),
        ("without holes", By::Unix, &["--filter=noextents"], true),
        ("without zeroes", By::Unix, &["--filter=nozero"], true),
        ("read-only", By::Tcp, &["--readonly"], false),
        ("one connection", By::Unix, &["--filter=multi-conn", "multi-conn-mode=disable"], true),
    ];
    for (seed, (name, by, arguments, writable)) in kinds.into_iter().enumerate() {
        for length in LENGTHS {
            let model = pattern(length, seed as u8);
            let file = file(&model);
            let server = NbdServer::nbdkit_file(by, file.path(), arguments);
            check(&format!("{name}, {length} bytes"), &server, &model, writable);
        }
    }
}

#[test]
fn a_server_that_takes_whole_blocks_keeps_the_contract() {
    if !has("nbd") {
        return;
    }
    for (minimum, maximum) in [(512, 4096), (4096, 65536), (65536, 33_554_432)] {
        let length = 3 * 65536;
        let model = pattern(length, 9);
        let file = file(&model);
        let (minimum, maximum) =
            (format!("blocksize-minimum={minimum}"), format!("blocksize-maximum={maximum}"));
        let preferred = if minimum.ends_with("=65536") { "65536" } else { "4096" };
        let preferred = format!("blocksize-preferred={preferred}");
        let policy = "blocksize-error-policy=error";
        let arguments = ["--filter=blocksize-policy", &minimum, &preferred, &maximum, policy];
        let server = NbdServer::nbdkit_file(By::Unix, file.path(), &arguments);
        check(&minimum, &server, &model, true);
    }
}

#[test]
fn an_export_of_qemu_keeps_the_contract() {
    if !has("nbd") {
        return;
    }
    let kinds: [(By, &[&str], bool); 3] = [
        (By::Tcp, &["--shared=8"], true),
        (By::Unix, &["--read-only", "--shared=0"], false),
        // One client at a time: the further connections are never let in.
        (By::Unix, &["--shared=1"], true),
    ];
    for (by, arguments, writable) in kinds {
        for length in [0, 512, 4096, 65536, 3 * 65536 + 512] {
            let model = pattern(length, 5);
            let file = file(&model);
            let server = NbdServer::qemu(by, file.path(), arguments);
            check(&format!("qemu-nbd {arguments:?}, {length} bytes"), &server, &model, writable);
        }
    }
}

/// A file with data in some places, and what it holds.
fn sparse(length: usize, places: &[(usize, usize)]) -> (tempfile::NamedTempFile, Vec<u8>) {
    use std::os::unix::fs::FileExt;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(length as u64).unwrap();
    let mut model = vec![0; length];
    for (seed, &(start, count)) in places.iter().enumerate() {
        let bytes = pattern(count, seed as u8);
        file.as_file().write_all_at(&bytes, start as u64).unwrap();
        model[start..start + count].copy_from_slice(&bytes);
    }
    (file, model)
}

/// Counts what comes as bytes and what as zeroes.
#[derive(Default)]
struct Count {
    bytes: AtomicU64,
    zeroes: AtomicU64,
    ended: std::sync::Mutex<Option<std::sync::mpsc::Sender<pagewire::Result<()>>>>,
}

impl Sink for Count {
    fn part(&self, part: Part<'_>) {
        let count = if matches!(part, Part::Zero(_)) { &self.zeroes } else { &self.bytes };
        count.fetch_add(part.range().len(), Ordering::SeqCst);
    }

    fn done(&self, result: pagewire::Result<()>) {
        self.ended.lock().unwrap().take().expect("one end").send(result).unwrap();
    }
}

#[test]
fn holes_cost_no_bytes() {
    if !has("nbd") {
        return;
    }
    let length = 40 << 20;
    let places = [(0, 4096), (5 << 20, 100_000), ((20 << 20) + 4096 * 3, 1), (length - 10, 10)];
    let (file, model) = sparse(length, &places);
    for (name, server, bytes) in [
        ("nbdkit", NbdServer::nbdkit_file(By::Tcp, file.path(), &[]), 1 << 20),
        ("qemu", NbdServer::qemu(By::Unix, file.path(), &["--read-only", "--shared=8"]), 1 << 20),
        // A server that does not say what is a hole sends all of it.
        ("noextents", NbdServer::nbdkit_file(By::Unix, file.path(), &["--filter=noextents"]), length as u64),
    ] {
        let store = server.open(false);
        check_stream(name, &store, &model);
        let (sender, ended) = std::sync::mpsc::channel();
        let count = Arc::new(Count { ended: std::sync::Mutex::new(Some(sender)), ..Count::default() });
        let ranges = vec![ByteRange::new(0, length as u64)];
        let request = StreamRequest { ranges, epoch: store.info().epoch, sink: count.clone() };
        let _stream = store.stream(request).unwrap();
        ended.recv_timeout(crate::support::HANG).unwrap().unwrap();
        let came = count.bytes.load(Ordering::SeqCst);
        assert_eq!(came + count.zeroes.load(Ordering::SeqCst), length as u64);
        assert!(came <= bytes, "{name}: {came} bytes came");
    }
}

#[test]
fn one_read_may_be_longer_and_have_more_ranges_than_a_server_takes_at_once() {
    if !has("nbd") {
        return;
    }
    let length = 80 << 20;
    let (file, model) = sparse(length, &[(4096, 8192), (33 << 20, 3 << 20), (length - 4097, 4097)]);
    let server = NbdServer::nbdkit_file(By::Unix, file.path(), &[]);
    let store = server.open(false);
    let every_other_page = (0..10_000).map(|step| ByteRange::new(step * 8192 + 4096, step * 8192 + 8192));
    for ranges in [vec![ByteRange::new(4096, length as u64)], every_other_page.collect()] {
        let (end, all) = recorder::read(&store, &ranges, Urgency::Background, &model);
        assert!(end.is_ok() && all, "{end:?}");
    }
}

#[test]
fn a_stream_is_steered_and_cancelled_and_leaves_out_what_somebody_waits_for() {
    if !has("nbd") {
        return;
    }
    let model = pattern(24 << 20, 3);
    let file = file(&model);
    // Slow enough that most of it is still to come.
    let arguments = ["--filter=delay", "rdelay=20ms"];
    let server = NbdServer::nbdkit_file(By::Unix, file.path(), &arguments);
    let store = server.open(false);
    let whole = ByteRange::new(0, model.len() as u64);
    let recorder = Arc::new(Recorder::default());
    let request = StreamRequest { ranges: vec![whole], epoch: store.info().epoch, sink: recorder.clone() };
    let stream = store.stream(request).unwrap();
    let last = ByteRange::new(whole.end - (1 << 20), whole.end);
    stream.steer(&[last]);
    let waited = ByteRange::new(20 << 20, (20 << 20) + 4096);
    let (end, all) = recorder::read(&store, &[waited], Urgency::Demand, &model);
    assert!(end.is_ok() && all);
    recorder.wait().unwrap();
    assert_eq!(recorder.check(&[whole], &model), whole.len() - waited.len(), "it is left out of the stream");

    let recorder = Arc::new(Recorder::default());
    let request = StreamRequest { ranges: vec![whole], epoch: store.info().epoch, sink: recorder.clone() };
    let stream = store.stream(request).unwrap();
    stream.cancel();
    assert_eq!(recorder.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(recorder.check(&[whole], &model) < whole.len());

    // Dropped with everything under way: each is told.
    let recorder = Arc::new(Recorder::default());
    let request = StreamRequest { ranges: vec![whole], epoch: store.info().epoch, sink: recorder.clone() };
    let _stream = store.stream(request).unwrap();
    let read = Arc::new(Recorder::default());
    let epoch = store.info().epoch;
    store.read(pagewire::store::Read {
        ranges: vec![whole],
        epoch,
        urgency: Urgency::Background,
        sink: read.clone(),
    });
    drop(store);
    assert_eq!(recorder.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(read.wait().unwrap_err().kind(), ErrorKind::Cancelled);
    read.check(&[whole], &model);
}

#[test]
fn what_a_server_fails_is_told_as_it_says_it() {
    if !has("nbd") {
        return;
    }
    let model = pattern(1 << 20, 7);
    let file = file(&model);
    let failing = |arguments: &[&str]| NbdServer::nbdkit_file(By::Unix, file.path(), arguments);
    let server = failing(&["--filter=error", "error=EIO", "error-pread-rate=100%"]);
    let store = server.open(false);
    let error = store.read_bytes(ByteRange::new(4096, 8192), store.info().epoch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(
        error.to_string().contains("bytes 4096..8192") && error.to_string().contains("NBD_EIO"),
        "{error}"
    );
    let recorder = Arc::new(Recorder::default());
    let ranges = vec![ByteRange::new(0, 1 << 20)];
    let request = StreamRequest { ranges, epoch: store.info().epoch, sink: recorder.clone() };
    let _stream = store.stream(request).unwrap();
    assert_eq!(recorder.wait().unwrap_err().kind(), ErrorKind::Io);

    let server =
        failing(&["--filter=error", "error=ENOSPC", "error-pwrite-rate=100%", "error-zero-rate=100%"]);
    let store = server.open(true);
    for error in [
        store.write_bytes(0, &[1; 4096]).unwrap_err(),
        store.zero_range(ByteRange::new(0, 4096)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    }
    assert!(store.read_bytes(ByteRange::new(0, 1 << 20), store.info().epoch).unwrap() == model);

    // A flush that fails: what was written is to be written again.
    let script =
        ["get_size=echo 1M", "pread=exit 1", "pwrite=cat >/dev/null", "flush=echo EIO no >&2; exit 1"];
    let server = NbdServer::nbdkit(By::Unix, &[&["eval"][..], &script].concat());
    let store = server.open(true);
    store.write_bytes(0, &model[..4096]).unwrap();
    let before = store.stage();
    assert_eq!(store.flush_all().unwrap_err().kind(), ErrorKind::Io);
    assert_ne!(store.stage().number, before.number);

    // Now and then: what is not failed is right.
    let server = failing(&["--filter=error", "error=EIO", "error-pread-rate=30%"]);
    let store = server.open(false);
    let (mut good, mut bad) = (0, 0);
    for page in 0..100u64 {
        let range = ByteRange::new(page * 4096, page * 4096 + 4096);
        match store.read_bytes(range, store.info().epoch) {
            Ok(bytes) => {
                assert!(bytes == model[range.start as usize..range.end as usize]);
                good += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                bad += 1;
            }
        }
    }
    assert!(good > 0 && bad > 0, "{good} good, {bad} bad");
}

#[test]
fn what_cannot_be_used_is_told_in_the_words_of_the_address() {
    if !has("nbd") {
        return;
    }
    let file = file(&pattern(8192, 1));
    let server = NbdServer::qemu(By::Unix, file.path(), &[]);
    let mut address = server.address();
    address.export = "none".into();
    let error = NbdStore::connect(&address, false, &options()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("it has no export 'none'"), "{error}");
    let store = server.open(true);
    let error = pagewire_wait(&store, 4096).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("whose length cannot be changed"), "{error}");
    assert_eq!(pagewire_wait(&store, 1 << 20).unwrap_err().kind(), ErrorKind::NoSpace);
    pagewire_wait(&store, 8192).unwrap();
    let error = store.read_bytes(ByteRange::new(0, 1), 7).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stale, "there is one epoch");

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = nobody.local_addr().unwrap();
    drop(nobody);
    let address = format!("nbd://{place}/x").parse().unwrap();
    let error = NbdStore::connect(&address, false, &options()).err().unwrap();
    assert!(error.kind() == ErrorKind::Unavailable && error.can_retry(), "{error}");
    let oldstyle = NbdServer::nbdkit(By::Unix, &["--oldstyle", "memory", "size=1M"]);
    let error = NbdStore::connect(&oldstyle.address(), false, &options()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("oldstyle"), "{error}");
}

fn pagewire_wait(store: &dyn Store, length: u64) -> pagewire::Result<()> {
    let (sender, done) = std::sync::mpsc::channel();
    store.set_length(length, Box::new(move |result| sender.send(result).unwrap()));
    done.recv_timeout(crate::support::HANG).unwrap()
}

#[test]
fn an_export_is_known_by_its_address_and_its_epoch_is_when_it_was_opened() {
    if !has("nbd") {
        return;
    }
    let file = file(&pattern(8192, 1));
    let server = NbdServer::nbdkit_file(By::Unix, file.path(), &[]);
    let (one, two): (Info, Info) = (server.open(false).info(), server.open(true).info());
    assert_eq!(one.id, two.id);
    assert!(two.epoch > one.epoch, "nobody knows what happened in between");
    assert!(!one.writable && two.writable && !one.capabilities.history && one.capabilities.stream);
    let other = NbdServer::nbdkit_file(By::Unix, file.path(), &[]);
    assert_ne!(other.open(false).info().id, one.id);
}

#[test]
fn exports_are_listed() {
    if !has("nbd") {
        return;
    }
    let file = file(&pattern(65536, 1));
    let server =
        NbdServer::qemu(By::Unix, file.path(), &["--description=a disk", "--read-only", "--shared=4"]);
    let mut address = server.address();
    address.export = String::new();
    let exports = pagewire::store::list_exports(&address, &RemoteOptions::default()).unwrap();
    assert_eq!(exports.len(), 1);
    let disk = &exports[0];
    assert_eq!((disk.name.as_str(), disk.description.as_str()), ("disk", "a disk"));
    assert_eq!((disk.length, disk.read_only), (Some(65536), Some(true)));
}
