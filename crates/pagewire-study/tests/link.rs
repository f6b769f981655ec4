//! A link does what it was asked to do, and leaves nothing behind.

use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pagewire_study::link::{DEVICE, Link, LinkOptions, Loss};
use pagewire_sys::net::enter_namespace;

/// Links take turns: what one measures, another would disturb, and the last test counts descriptors
/// of the whole process. None where the environment says to go without.
fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let list = std::env::var("PAGEWIRE_TEST_SKIP").unwrap_or_default();
    if list.split(',').any(|name| name.trim() == "netns") {
        eprintln!("SKIPPED: PAGEWIRE_TEST_SKIP names netns");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A link is never faster than it was asked to be; how much slower depends on who else uses the
/// processors.
fn as_asked(round_trip: Duration, asked: Duration) -> bool {
    (asked.mul_f64(0.98)..asked * 4).contains(&round_trip)
}

/// A thread gives itself its name, and is listed for a moment after it was joined.
fn eventually(mut check: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !check() {
        if start.elapsed() > Duration::from_secs(5) {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn the_round_trip_is_the_one_asked_for() {
    let Some(_turn) = turn() else { return };
    let link = Link::new(LinkOptions::new(Duration::from_millis(10))).unwrap();
    let measured = link.verify().unwrap();
    assert!(as_asked(measured.round_trip, Duration::from_millis(10)), "{measured:?}");
    let (there, back) = (link.a_to_b(), link.b_to_a());
    assert!(there.bytes > 10 * back.bytes && back.bytes > 0, "{link:?}");
    assert!(there.bytes > 9000 * there.segments, "segments travel whole: {there:?}");
    assert_eq!((there.dropped, back.dropped), (0, 0), "{link:?}");
}

#[test]
fn the_rate_is_the_one_asked_for_and_a_short_queue_overflows() {
    let Some(_turn) = turn() else { return };
    let options = LinkOptions {
        rate: Some(400_000_000),
        queue: Some(512 << 10),
        ..LinkOptions::new(Duration::from_millis(4))
    };
    let link = Link::new(options).unwrap();
    let measured = link.verify().unwrap();
    // What was queued when the measuring began is delivered with the rest, and a busy machine delivers less.
    assert!((100e6..480e6).contains(&(measured.rate as f64)), "{measured:?}");
    assert!(as_asked(measured.round_trip, Duration::from_millis(4)), "{measured:?}");
    assert!(link.a_to_b().dropped > 0, "eight connections overflow such a queue: {link:?}");
}

#[test]
fn what_is_lost_is_sent_again() {
    let Some(_turn) = turn() else { return };
    let loss = Some(Loss { per_mille: 20, seed: 1 });
    let link = Link::new(LinkOptions { loss, ..LinkOptions::new(Duration::from_millis(1)) }).unwrap();
    link.transfer(16 << 20, 4).unwrap();
    assert!(link.a_to_b().dropped > 0, "{link:?}");
    // What a packet carries is counted a moment after it was delivered.
    assert!(eventually(|| link.a_to_b().bytes > 16 << 20), "{link:?}");
}

#[test]
fn nothing_remains() {
    let Some(_turn) = turn() else { return };
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = || {
        let names = std::fs::read_dir("/proc/self/task").unwrap();
        let names = names.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with("link-ab") || name.starts_with("link-ba")).count()
    };
    let before = descriptors();
    let link = Link::new(LinkOptions::new(Duration::from_secs(5))).unwrap();
    let namespace = link.b().as_fd().try_clone_to_owned().unwrap();
    let devices = || {
        std::thread::scope(|scope| {
            let inside = || {
                enter_namespace(namespace.as_fd()).unwrap();
                std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()
            };
            scope.spawn(inside).join().unwrap()
        })
    };
    assert!(eventually(|| threads() == 4), "{} threads", threads());
    assert!(devices().contains(DEVICE));
    // Something is on its way for seconds.
    link.a()
        .run(|| std::net::UdpSocket::bind("0.0.0.0:0")?.send_to(&[1; 100], "10.77.0.2:9"))
        .unwrap()
        .unwrap();
    let start = Instant::now();
    drop(link);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}: what is on its way is not waited for",
        start.elapsed()
    );
    assert!(eventually(|| threads() == 0), "{} threads remain", threads());
    assert!(!devices().contains(DEVICE), "a namespace that somebody holds has no device left");
    drop(namespace);
    assert_eq!(descriptors(), before);
}

#[test]
fn bytes_that_compress_well_are_compressed_where_the_link_is_slow() {
    use pagewire::Compression;
    use pagewire::access::serve::{Server, ServerOptions};
    use pagewire::address::PeerAddress;
    use pagewire::engine::Region;
    use pagewire::engine::copy::{CopyOptions, copy};
    use pagewire::store::{FileStore, MemoryStore, RemoteOptions, Store, open};
    use std::sync::Arc;

    let Some(_turn) = turn() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let bytes: Vec<u8> = (0..24 << 20).map(|at: usize| (at / 300) as u8 % 5 + 1).collect();
    std::fs::write(&path, &bytes).unwrap();
    let rate = Some(200_000_000);
    let link = Link::new(LinkOptions { rate, ..LinkOptions::new(Duration::from_millis(2)) }).unwrap();
    let server = link.b().run(|| {
        let region = Region::new("file", Arc::new(FileStore::open(&path, None, false).unwrap())).unwrap();
        let server = Server::new([region], ServerOptions::default()).unwrap();
        let address = PeerAddress::Tcp(format!("{}:0", pagewire_study::link::ADDRESS_B));
        let bound = server.listen(&address).unwrap();
        (server, bound)
    });
    let (_server, bound) = server.unwrap();
    let mut received = Vec::new();
    for compression in [Compression::Off, Compression::Auto] {
        let copied = link.a().run(|| {
            let options = RemoteOptions { compression, ..RemoteOptions::default() };
            let from = open(&format!("{bound}/file").parse().unwrap(), false, &options).unwrap();
            let region = Region::new("file", from).unwrap();
            let to: Arc<dyn Store> = Arc::new(MemoryStore::new(24 << 20));
            copy(&region, &to, &CopyOptions::default(), |_| {}).unwrap();
            region.traffic().received
        });
        received.push(copied.unwrap());
    }
    assert!(received[0] > 24 << 20 && received[1] < received[0] / 2, "{received:?}");
}
