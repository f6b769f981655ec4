//! All regions of a peer as the files of a directory.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use pagewire::access::fuse::{Mount, MountOptions};
use pagewire::access::serve::{Server, ServerOptions};
use pagewire::address::PeerAddress;
use pagewire::engine::Region;
use pagewire::store::{Blocking, MemoryStore, RemoteOptions, RemoteStore, Store};
use pagewire::{ByteRange, ErrorKind};

use crate::support::{Mounted, errno, fails_with, pattern, region_at, wait_until, writable};

const LENGTH: u64 = 300_001;

/// A server of three regions.
fn server() -> (Server, PeerAddress) {
    let regions = ["one", "two/deep", "50%"].into_iter().enumerate().map(|(number, name)| {
        let store = MemoryStore::with_capacity(LENGTH, 2 * LENGTH);
        store.write_bytes(0, &pattern(LENGTH as usize, number as u8)).unwrap();
        store.flush_all().unwrap();
        Region::new(name, Arc::new(store)).unwrap()
    });
    let server = Server::new(regions, ServerOptions::default()).unwrap();
    let address = server.listen(&"pw://127.0.0.1:0".parse().unwrap()).unwrap();
    (server, address)
}

fn mount(peer: &PeerAddress, folder: &tempfile::TempDir, options: MountOptions) -> Mounted {
    Mounted::at(folder.path(), |path| Mount::peer(peer, path, options, &RemoteOptions::default())).unwrap()
}

fn bytes_at(peer: &PeerAddress, name: &str) -> Vec<u8> {
    let store = RemoteStore::connect(&region_at(peer, name), &RemoteOptions::default()).unwrap();
    let info = store.info();
    store.read_bytes(ByteRange::new(0, info.length), info.epoch).unwrap()
}

#[test]
fn regions_are_files_whatever_their_names_are() {
    let (_server, peer) = server();
    let folder = tempfile::tempdir().unwrap();
    let mounted = mount(&peer, &folder, MountOptions::default());
    let mut names: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["50%25", "one", "two%2Fdeep"]);
    for (number, name) in ["one", "two%2Fdeep", "50%25"].into_iter().enumerate() {
        let path = folder.path().join(name);
        let found = std::fs::metadata(&path).unwrap();
        assert!(found.is_file() && found.len() == LENGTH, "{name}");
        assert!(std::fs::read(&path).unwrap() == pattern(LENGTH as usize, number as u8), "{name}");
    }
    for name in ["three", "two", "two/deep"] {
        assert!(std::fs::File::open(folder.path().join(name)).is_err(), "{name}");
    }
    assert!(fails_with(std::fs::File::create(folder.path().join("new")), errno::EROFS));
    assert!(std::fs::remove_file(folder.path().join("one")).is_err());
    let regions: Vec<String> = mounted.status().into_iter().map(|status| status.region).collect();
    assert_eq!(regions.len(), 3, "{regions:?}");
    mounted.unmount();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the directory is as it was");
}

#[test]
fn a_region_that_nobody_writes_to_is_written_and_one_that_somebody_does_is_read() {
    let (_server, peer) = server();
    let folder = tempfile::tempdir().unwrap();
    let remote = RemoteOptions::default();
    let other = RemoteStore::connect_writer(&region_at(&peer, "two/deep"), &remote, "somebody else").unwrap();
    let mounted = mount(&peer, &folder, writable());
    let (one, two) = (folder.path().join("one"), folder.path().join("two%2Fdeep"));

    let file = std::fs::File::options().read(true).write(true).open(&one).unwrap();
    let mut bytes = pattern(LENGTH as usize, 0);
    file.write_all_at(&[5; 9999], LENGTH - 5000).unwrap();
    bytes.resize(LENGTH as usize - 5000, 0);
    bytes.resize(LENGTH as usize + 4999, 5);
    let before = file.metadata().unwrap();
    assert_eq!(before.len(), LENGTH + 4999);
    file.sync_all().unwrap();
    assert!(bytes_at(&peer, "one") == bytes);
    let error = RemoteStore::connect_writer(&region_at(&peer, "one"), &remote, "a third").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("a mount of a test"), "{error}");
    let again = before.modified().unwrap();
    file.write_all_at(&[6], 0).unwrap();
    assert!(file.metadata().unwrap().modified().unwrap() >= again, "a write is a modification");

    assert!(fails_with(std::fs::File::options().write(true).open(&two), errno::EROFS));
    assert!(std::fs::read(&two).unwrap() == pattern(LENGTH as usize, 1));
    other.write_bytes(0, &[7; 4096]).unwrap();
    other.flush_all().unwrap();
    wait_until("what the other writes is seen", || std::fs::read(&two).unwrap()[..4096] == [7; 4096]);
    drop(file);
    mounted.unmount();
    assert_eq!(bytes_at(&peer, "one")[0], 6);
}

/// The directory was listed before the region grew; nobody has opened it since.
#[test]
fn a_file_has_its_length_at_the_time_that_it_is_opened() {
    let (_server, peer) = server();
    let folder = tempfile::tempdir().unwrap();
    let _mounted = mount(&peer, &folder, MountOptions::default());
    let path = folder.path().join("one");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), LENGTH);
    let writer =
        RemoteStore::connect_writer(&region_at(&peer, "one"), &RemoteOptions::default(), "a test").unwrap();
    let (sender, answer) = std::sync::mpsc::sync_channel(1);
    writer.set_length(LENGTH + 50_000, Box::new(move |result| sender.send(result).unwrap()));
    answer.recv().unwrap().unwrap();
    writer.write_bytes(LENGTH, &[3; 50_000]).unwrap();
    writer.flush_all().unwrap();
    let read = std::fs::read(&path).unwrap();
    assert_eq!(read.len() as u64, LENGTH + 50_000);
    assert_eq!(read[LENGTH as usize..], [3; 50_000]);
}
