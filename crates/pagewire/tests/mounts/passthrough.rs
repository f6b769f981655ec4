//! Files that are opened straight on their caches: when they are, and that what programs find is the same.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pagewire::PullOrder;
use pagewire::access::fuse::{Mount, MountOptions};
use pagewire::address::StoreAddress;
use pagewire::engine::Region;
use pagewire::store::{RemoteOptions, open_cached};
use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;

use crate::support::{Host, Mounted, NAME, pattern, region_at, wait_until};

const LENGTH: usize = 3_000_001;

/// A mount that stays at its epoch.
fn staying() -> MountOptions {
    MountOptions { follow: false, ..MountOptions::default() }
}

fn mount(host: &Host, cache: &Path, options: MountOptions) -> Mounted {
    let address = StoreAddress::Remote(region_at(&host.address(), NAME));
    let store = open_cached(&address, None, &RemoteOptions::default(), Some(cache)).unwrap();
    let region = Region::at(&address, store).unwrap();
    Mounted::at(&host.place("mounted"), |path| Mount::region(&region, path, options)).unwrap()
}

fn path_of(mounted: &Mounted) -> String {
    mounted.status_of_file().path
}

fn wait_for_passthrough(mounted: &Mounted) {
    wait_until("the file can be opened straight on its cache", || path_of(mounted) == "passthrough");
}

fn all_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; LENGTH];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_file_that_is_all_in_its_cache_is_read_from_there_without_the_mount() {
    let bytes = pattern(LENGTH, 1);
    let mut host = Host::of(&bytes);
    let mounted = mount(&host, &host.place("cache"), staying());
    wait_for_passthrough(&mounted);
    let before = mounted.status_of_file();
    host.stop();
    let (first, second) = (mounted.open_to_read(), mounted.open_to_read());
    assert_eq!(path_of(&mounted), "passthrough");
    assert!(all_of(&first) == bytes && all_of(&second) == bytes);
    assert_eq!(first.metadata().unwrap().len(), LENGTH as u64);
    assert_eq!(first.read_at(&mut [0; 10], LENGTH as u64).unwrap(), 0, "it ends where the region does");
    let mapped = FileMapping::new(first.as_fd(), LENGTH, Protection::Read).unwrap();
    drop(first);
    let mut copy = vec![0; LENGTH];
    mapped.copy_out(0, &mut copy).unwrap();
    assert!(copy == bytes, "a mapping goes on after the file was closed");
    assert!(File::options().write(true).open(mounted.path()).is_err(), "it is for reading");
    let after = mounted.status_of_file();
    assert_eq!((after.demand_reads, after.cached_bytes), (before.demand_reads, before.cached_bytes));
    drop((mapped, second));
    mounted.unmount();
}

#[test]
fn all_opens_of_a_file_go_the_way_of_the_first() {
    let bytes = pattern(LENGTH, 2);
    let host = Host::of(&bytes);
    let mounted = mount(&host, &host.place("cache"), staying());
    // It may be open before all is there, or after: it keeps its way.
    let first = mounted.open_to_read();
    let way = path_of(&mounted);
    assert!(all_of(&first) == bytes);
    let others: Vec<File> = (0..8).map(|_| mounted.open_to_read()).collect();
    assert!(others.iter().all(|file| all_of(file) == bytes));
    assert_eq!(path_of(&mounted), way);
    drop((first, others));
    wait_for_passthrough(&mounted);
    // Opened and closed by many at once.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..100).for_each(|_| drop(mounted.open_to_read())));
        }
    });
    assert!(all_of(&mounted.open_to_read()) == bytes);
    mounted.unmount();
}

#[test]
fn a_cache_that_is_whole_already_is_checked_and_not_pulled_again() {
    let bytes = pattern(LENGTH, 3);
    let host = Host::of(&bytes);
    let cache = host.place("cache");
    let mounted = mount(&host, &cache, staying());
    wait_for_passthrough(&mounted);
    mounted.unmount();
    let mounted = mount(&host, &cache, staying());
    wait_for_passthrough(&mounted);
    assert_eq!(mounted.status_of_file().background_bytes, 0, "nothing was read through the mount");
    assert!(all_of(&mounted.open_to_read()) == bytes);
    mounted.unmount();
    // Somebody writes to the cache's file meanwhile.
    let image = File::options().write(true).open(&cache).unwrap();
    image.write_all_at(b"damage", 1_000_000).unwrap();
    let mounted = mount(&host, &cache, staying());
    assert!(all_of(&mounted.open_to_read()) == bytes, "the page is pulled again");
    wait_for_passthrough(&mounted);
    assert!(all_of(&mounted.open_to_read()) == bytes);
    mounted.unmount();
}

#[test]
fn a_mount_that_follows_its_region_or_writes_to_it_goes_by_the_page_cache() {
    let bytes = pattern(LENGTH, 4);
    let host = Host::of(&bytes);
    let cache = host.place("cache");
    let mounted = mount(&host, &cache, MountOptions::default());
    wait_until("all is there", || mounted.status_of_file().cached_bytes >= LENGTH as u64);
    assert!(all_of(&mounted.open_to_read()) == bytes);
    assert_eq!(path_of(&mounted), "page-cache");
    host.write(LENGTH as u64, &[(5, b"newer")]);
    wait_until("the newer epoch is there", || {
        let mut found = [0; 5];
        mounted.open_to_read().read_exact_at(&mut found, 5).unwrap();
        &found == b"newer"
    });
    mounted.unmount();
    let mounted = mount(&host, &cache, MountOptions { order: PullOrder::None, ..staying() });
    assert_eq!(&all_of(&mounted.open_to_read())[5..10], b"newer", "and is in the cache");
    mounted.unmount();
}
