//! A writer's process is killed at every frame of what it does, one after the other: whoever opens the
//! region finds one epoch, whole, and the next writer can write when the lease has lapsed.

use std::sync::Arc;
use std::time::Duration;

use pagewire::ByteRange;
use pagewire::access::serve::ServerOptions;
use pagewire::engine::Region;
use pagewire::store::{Blocking, FileOptions, FileStore, MemoryStore, RemoteOptions, RemoteStore, Store};

use crate::support::frames::{Fate, FrameProxy};
use crate::support::role::{Actor, WRITE};
use crate::support::{anywhere, patient_for, region_at, serve_with, wait_until};

/// So much that several frames take it.
const LENGTH: u64 = 600 * 4096 + 100;

/// Kills a writer of `store` at every frame.
fn kill_at_every_frame(name: &str, store: Arc<dyn Store>) {
    let region = Region::new("region", store).unwrap();
    let options = ServerOptions { lapse: Duration::from_millis(30), ..ServerOptions::default() };
    let (_server, peer) = serve_with([region], &anywhere(), options);
    let at = region_at(&peer, "region");
    let read = || {
        let reader = RemoteStore::connect(&at, &RemoteOptions::default()).unwrap();
        let info = reader.info();
        (info.epoch, reader.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap())
    };
    let is_all =
        |bytes: &[u8], value: u8| bytes.len() as u64 == LENGTH && bytes.iter().all(|byte| *byte == value);
    let (mut old, mut new) = (0, 0);
    let mut value = 0;
    for frame in 0.. {
        let what = format!("{name}, killed at frame {frame}");
        assert!(frame < 200, "{what}: there is no end");
        let (before, bytes) = read();
        assert!(is_all(&bytes, value), "{what}");
        let proxy = FrameProxy::new(&peer);
        proxy.arm(Fate::Held, move |count, _| count == frame);
        let settings = [
            ("peer", proxy.address().to_string()),
            ("length", LENGTH.to_string()),
            ("value", (value + 1).to_string()),
        ];
        let mut writer = Actor::start(WRITE, &settings);
        let mut flushed = false;
        let was_held = proxy.wait(|| {
            flushed = flushed || writer.has_said("flushed");
            flushed
        });
        writer.kill();
        // Looked at at once, and when everything that it had sent was carried out.
        let (epoch, bytes) = read();
        assert!(is_all(&bytes, value + u8::try_from(epoch - before).unwrap()), "{what}: a mix of epochs");
        let mut next = None;
        wait_until("the lease lapses", || {
            next = RemoteStore::connect_writer(&at, &patient_for(5000), "the next writer").ok();
            next.is_some()
        });
        let (epoch, bytes) = read();
        assert!(epoch <= before + 1 && (!flushed || epoch == before + 1), "{what}: epoch {epoch}");
        assert!(is_all(&bytes, value + u8::try_from(epoch - before).unwrap()), "{what}: a mix of epochs");
        let count = if epoch == before { &mut old } else { &mut new };
        *count += 1;
        // What it had staged is not the next one's.
        let next = next.unwrap();
        value = (value + 2) % 200;
        next.write_bytes(0, &vec![value; LENGTH as usize]).unwrap();
        assert_eq!(next.flush_all().unwrap().epoch, epoch + 1, "{what}");
        if !was_held {
            break;
        }
    }
    assert!(old > 8 && new > 0, "{name}: {old} times the old epoch, {new} times the new one");
}

#[test]
fn of_a_region_in_memory() {
    kill_at_every_frame("memory", Arc::new(MemoryStore::new(LENGTH)));
}

#[test]
fn of_a_region_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("region");
    std::fs::write(&path, vec![0; LENGTH as usize]).unwrap();
    let options = FileOptions { writable: true, ..FileOptions::default() };
    kill_at_every_frame("a file", Arc::new(FileStore::open_with(&path, &options).unwrap()));
}
