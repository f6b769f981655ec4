//! A mounted file that is moved to another host while programs write to it: what they have written is found, and
//! after they are suspended nothing is missing.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pagewire::engine::migration::Live;
use pagewire::store::{Part, Read, Sink, Store, Urgency};
use pagewire::{ByteRange, ErrorKind, Result};
use pagewire_core::bitmap::BitSet;
use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;

use crate::support::{
    HANG, Host, errno, fails_with, kind, pattern, read_at, run, wait_until, within, writable,
};

const PAGE: u64 = 4096;
const CAPACITY: u64 = 512 * PAGE;

/// What somebody who moves the file has of it so far.
struct Copied {
    live: Arc<dyn Live>,
    bytes: Vec<u8>,
}

/// The bytes of a read, and its end.
#[derive(Default)]
struct Into {
    bytes: Mutex<Vec<u8>>,
    got: Mutex<u64>,
    result: Mutex<Option<Result<()>>>,
}

impl Sink for Into {
    fn part(&self, part: Part<'_>) {
        let range = part.range();
        *self.got.lock().unwrap() += range.len();
        let mut bytes = self.bytes.lock().unwrap();
        let to = &mut bytes[range.start as usize..range.end as usize];
        match part {
            Part::Bytes { bytes, .. } => to.copy_from_slice(bytes),
            Part::Zero(_) => to.fill(0),
        }
    }

    fn done(&self, result: Result<()>) {
        *self.result.lock().unwrap() = Some(result);
    }
}

impl Copied {
    /// Begins to track, and copies all.
    fn begin(live: Arc<dyn Live>) -> Self {
        live.track().unwrap();
        let mut copied = Self { bytes: vec![0xee; CAPACITY as usize], live };
        copied.copy(vec![ByteRange::new(0, CAPACITY)]);
        copied
    }

    fn copy(&mut self, ranges: Vec<ByteRange>) {
        let sink = Arc::new(Into::default());
        *sink.bytes.lock().unwrap() = std::mem::take(&mut self.bytes);
        let asked = ByteRange::total(&ranges);
        self.live.read(Read { ranges, epoch: 1, urgency: Urgency::Background, sink: sink.clone() });
        wait_until("the bytes come", || sink.result.lock().unwrap().is_some());
        sink.result.lock().unwrap().take().unwrap().unwrap();
        assert_eq!(*sink.got.lock().unwrap(), asked, "each byte once");
        self.bytes = std::mem::take(&mut *sink.bytes.lock().unwrap());
    }

    /// Copies what was written since the last time; answers the pages.
    fn round(&mut self) -> Vec<u64> {
        let mut pages = BitSet::new(CAPACITY / PAGE);
        self.live.take_written(&mut pages).unwrap();
        self.copy(pages.runs().map(ByteRange::of_pages).collect());
        pages.iter().collect()
    }

    /// What the file holds, with zeroes behind.
    fn expect(&self, file: &File) {
        let length = file.metadata().unwrap().len();
        assert_eq!(self.live.info().length, length);
        let mut bytes = read_at(file, 0, length as usize);
        bytes.resize(CAPACITY as usize, 0);
        let differs = bytes.chunks(4096).zip(self.bytes.chunks(4096)).position(|(one, other)| one != other);
        assert_eq!(differs, None, "the first page that differs");
    }
}

/// Freezes within a deadline.
fn freeze(live: &Arc<dyn Live>) -> Result<()> {
    let live = live.clone();
    within("freezing", HANG, move || live.freeze())
}

#[test]
fn what_programs_have_written_is_found_without_a_flush_of_theirs() {
    let host = Host::new(&pattern(100 * 4096 + 77, 1), CAPACITY);
    let mounted = host.mount("mounted", writable());
    let file = mounted.open();
    file.write_all_at(&[1; 10], 5 * PAGE).unwrap();
    let mut copied = Copied::begin(mounted.live().unwrap());
    // What was written before may be in the first answer.
    wait_until("it is written back", || copied.round().is_empty() && copied.bytes[5 * 4096] == 1);
    let epoch = host.reader().info();
    file.write_all_at(&[2; 5000], 7 * PAGE).unwrap();
    let mut found = Vec::new();
    wait_until("it is found", || {
        found.extend(copied.round());
        found.len() >= 2
    });
    assert_eq!(found, [7, 8]);
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(copied.round(), [0u64; 0], "once");
    let after = host.reader().info();
    assert_eq!(epoch.epoch, after.epoch, "to be written back is not to be flushed");
    copied.expect(&file);
    // A flush of a program is one still.
    file.sync_all().unwrap();
    assert!(host.reader().info().epoch > epoch.epoch);
    drop(file);
    mounted.unmount();
}

#[test]
fn nothing_is_missing_once_it_is_frozen_and_nothing_is_written_until_it_thaws() {
    let host = Host::new(&pattern(100 * 4096 + 77, 2), CAPACITY);
    let mounted = host.mount("mounted", writable());
    let (live, file) = (mounted.live().unwrap(), mounted.open());
    let mut copied = Copied::begin(live.clone());
    let mapping = FileMapping::new(file.as_fd(), 100 * 4096, Protection::ReadWrite).unwrap();
    for round in 0..3 {
        // Through a map and by a call, right before: all of it is dirty in the kernel alone.
        mapping.copy_in(20 * 4096 + 5, &[round; 9000]).unwrap();
        file.write_all_at(&[round; 300], 50 * PAGE - 100).unwrap();
        freeze(&live).unwrap();
        let found = copied.round();
        for page in [20, 21, 22, 49, 50] {
            assert!(found.contains(&page), "page {page} in round {round}: {found:?}");
        }
        copied.expect(&file);
        // Direct writes and changes of the length are refused at once; what lies in the cache when it is synced.
        assert!(fails_with(file.set_len(3), errno::EROFS));
        copied.expect(&file);
        live.keep().unwrap();
        assert!(host.bytes()[20 * 4096 + 5..][..9000] == [round; 9000]);
        live.thaw();
        file.write_all_at(&[9; 10], 0).unwrap();
        file.sync_all().unwrap();
        assert_eq!(copied.round(), [0]);
    }
    live.untrack();
    assert_eq!(kind(live.take_written(&mut BitSet::new(CAPACITY / PAGE))), Some(ErrorKind::Usage));
    drop((mapping, file));
    mounted.unmount();
}

#[test]
fn who_writes_to_a_frozen_file_is_told() {
    for (name, options) in [
        ("cached", writable()),
        ("direct", pagewire::access::fuse::MountOptions { direct: true, ..writable() }),
    ] {
        let host = Host::new(&pattern(100 * 4096, 3), CAPACITY);
        let mounted = host.mount(name, options);
        let (live, file) = (mounted.live().unwrap(), mounted.open());
        freeze(&live).unwrap();
        let written = file.write_all_at(&[7; 4096], 0).and_then(|()| file.sync_all());
        assert!(written.is_err(), "{name}");
        assert_eq!(host.bytes()[0], pattern(1, 3)[0], "{name}");
        live.thaw();
        file.write_all_at(&[8; 4096], 0).unwrap();
        file.sync_all().unwrap();
        assert_eq!(host.bytes()[0], 8, "{name}");
        drop(file);
        // The kernel tells of what it could not write then.
        assert_eq!(mounted.unmount_now(true).is_err(), name == "cached");
    }
}

#[test]
fn changes_of_the_length_are_moved_too() {
    let host = Host::new(&pattern(100 * 4096 + 77, 4), CAPACITY);
    let mounted = host.mount("mounted", writable());
    let (live, file) = (mounted.live().unwrap(), mounted.open());
    let mut copied = Copied::begin(live.clone());
    for length in [30 * PAGE + 5, 200 * PAGE + 1, 200 * PAGE, 0, 17, CAPACITY] {
        file.set_len(length).unwrap();
        if length > 100 {
            file.write_all_at(&[5; 100], length - 100).unwrap();
        }
        freeze(&live).unwrap();
        copied.round();
        copied.expect(&file);
        live.thaw();
    }
    drop(file);
    mounted.unmount();
}

/// Writers by calls and through maps, who stop at some moment; whoever copies meanwhile, in rounds, has everything after
/// that.
#[test]
fn whoever_copies_in_rounds_has_everything_in_the_end() {
    let host = Host::new(&pattern(300 * 4096, 5), CAPACITY);
    let mounted = host.mount("mounted", writable());
    let (live, file) = (mounted.live().unwrap(), mounted.open());
    let mapping = FileMapping::new(file.as_fd(), 300 * 4096, Protection::ReadWrite).unwrap();
    let mut copied = Copied::begin(live.clone());
    for round in 0..5u64 {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0u64.. {
                    let at = (turn * 7919 + round * 31) % (299 * PAGE);
                    file.write_all_at(&[turn as u8; 123], at).unwrap();
                    if turn % 64 == 0 {
                        file.sync_data().unwrap();
                    }
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                }
            });
            scope.spawn(|| {
                for turn in 0u64.. {
                    let at = (turn * 104_729 + round) % (299 * PAGE);
                    mapping.copy_in(at as usize, &[turn as u8; 57]).unwrap();
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                }
            });
            for _ in 0..6 {
                copied.round();
                std::thread::sleep(Duration::from_millis(20));
            }
            stop.store(true, Ordering::Release);
        });
        freeze(&live).unwrap();
        copied.round();
        copied.expect(&file);
        assert_eq!(copied.round(), [0u64; 0], "one answer has everything");
        live.thaw();
    }
    drop((mapping, file));
    mounted.unmount();
}

#[test]
fn a_mount_is_taken_down_while_it_is_tracked_and_while_it_is_frozen() {
    let host = Host::new(&pattern(100 * 4096, 6), CAPACITY);
    for is_frozen in [false, true] {
        let mounted = host.mount("mounted", writable());
        let live = mounted.live().unwrap();
        live.track().unwrap();
        run("cp", &["/proc/self/status", mounted.path().to_str().unwrap()]);
        if is_frozen {
            freeze(&live).unwrap();
        }
        mounted.unmount();
        assert_eq!(kind(live.track()), Some(ErrorKind::Cancelled));
        assert_eq!(kind(live.freeze()), Some(ErrorKind::Cancelled));
    }
}

#[test]
fn the_files_of_a_directory_are_moved_by_their_names_and_read_ones_not_at_all() {
    use pagewire::access::fuse::{Mount, MountOptions};
    use pagewire::store::RemoteOptions;
    let host = Host::new(&pattern(100 * 4096, 7), CAPACITY);
    let place = host.place("directory");
    std::fs::create_dir(&place).unwrap();
    let remote = RemoteOptions::default();
    let mount = |path: &_| Mount::peer(&host.address(), path, writable(), &remote);
    let mounted = crate::support::Mounted::at(&place, mount).unwrap();
    assert_eq!(kind(mounted.live()), Some(ErrorKind::Usage));
    assert_eq!(kind(mounted.live_of("none")), Some(ErrorKind::NotFound));
    let live = mounted.live_of(crate::support::NAME).unwrap();
    let mut copied = Copied::begin(live.clone());
    let file = File::options().read(true).write(true).open(place.join(crate::support::NAME)).unwrap();
    file.write_all_at(&[1; 100], 0).unwrap();
    freeze(&live).unwrap();
    assert!(copied.round().contains(&0));
    copied.expect(&file);
    drop((file, live, copied));
    mounted.unmount();
    let reading = host.mount("mounted", MountOptions::default());
    assert_eq!(kind(reading.live()), Some(ErrorKind::Denied));
}
