//! How mounts come and go: over which files, in use or not, taken down by whom.

use std::os::unix::fs::FileExt;
use std::process::Command;

use pagewire::ErrorKind;
use pagewire::access::fuse::MountOptions;
use pagewire::store::RemoteOptions;
use pagewire_sys::event::{PollItem, poll};

use crate::support::{self, HANG, Host, Program, kind, pattern, run, wait_until, writable};

const LENGTH: usize = 500_001;

#[test]
fn a_file_that_was_made_for_a_mount_goes_with_it_and_one_that_was_there_comes_back() {
    let bytes = pattern(LENGTH, 1);
    let host = Host::of(&bytes);
    let mounted = host.mount("made", MountOptions::default());
    let path = mounted.path().to_owned();
    assert!(std::fs::read(&path).unwrap() == bytes);
    mounted.unmount();
    assert!(!path.exists());

    let path = host.place("there");
    std::fs::write(&path, "what was there").unwrap();
    let mounted = host.mount("there", MountOptions::default());
    assert!(std::fs::read(&path).unwrap() == bytes);
    mounted.unmount();
    assert_eq!(std::fs::read(&path).unwrap(), b"what was there");
}

#[test]
fn places_where_nothing_can_be_mounted_are_refused() {
    let host = Host::of(&pattern(LENGTH, 2));
    let (peer, remote) = (host.address(), RemoteOptions::default());
    let try_at = |path: &std::path::Path| {
        kind(support::mount(&peer, path, MountOptions::default(), &remote).map(drop))
    };
    assert_eq!(try_at(host.folder.path()), Some(ErrorKind::Usage), "a directory");
    assert_eq!(try_at("/dev/null".as_ref()), Some(ErrorKind::Usage), "a device");
    assert!(try_at(&host.place("no/such/folder")).is_some());
    assert!(!host.place("no").exists());
    let mounted = host.mount("mounted", MountOptions::default());
    assert_eq!(try_at(mounted.path()), Some(ErrorKind::Busy), "mounted already");
    // A mount that could not be made leaves nothing.
    let _writer = host.mount("writer", writable());
    let second = host.place("second");
    assert_eq!(kind(support::mount(&peer, &second, writable(), &remote).map(drop)), Some(ErrorKind::Busy));
    assert!(!second.exists());
}

#[test]
fn a_mount_in_use_says_by_whom_and_goes_on() {
    let host = Host::of(&pattern(LENGTH, 3));
    let mounted = host.mount("mounted", writable());
    let user = Program::start(Command::new("tail").args(["-c", "1", "-f"]).arg(mounted.path()));
    let number = user.0.id();
    wait_until("the file is open", || {
        std::fs::read_dir(format!("/proc/{number}/fd")).is_ok_and(|open| {
            open.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to == mounted.path()))
        })
    });
    let error = mounted.unmount_now(false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let text = error.to_string();
    assert!(text.contains("tail") && text.contains(&number.to_string()), "{text}");
    mounted.open().write_all_at(b"it goes on", 0).unwrap();
    drop(user);
    mounted.unmount();
    assert_eq!(&host.bytes()[..10], b"it goes on");
}

#[test]
fn a_mount_in_use_that_has_to_go_is_flushed_and_gives_its_lease_back() {
    let host = Host::of(&pattern(LENGTH, 4));
    let mounted = host.mount("mounted", writable());
    let file = mounted.open();
    file.write_all_at(b"written in time", 100).unwrap();
    mounted.unmount_now(true).unwrap();
    assert_eq!(&host.bytes()[100..115], b"written in time");
    drop(mounted);
    drop(file);
    wait_until("another may write", || {
        let again =
            support::mount(&host.address(), &host.place("again"), writable(), &RemoteOptions::default());
        again.is_ok()
    });
}

#[test]
fn a_mount_that_somebody_else_takes_down_is_flushed() {
    let host = Host::of(&pattern(LENGTH, 5));
    let mounted = host.mount("mounted", writable());
    mounted.open().write_all_at(b"not synced by anybody", 7).unwrap();
    run("umount", &[mounted.path().to_str().unwrap()]);
    let mut items = [PollItem::readable(mounted.taken_down())];
    poll(&mut items, Some(HANG)).unwrap();
    assert!(items[0].is_ready(), "nobody has noticed");
    mounted.unmount();
    assert_eq!(&host.bytes()[7..28], b"not synced by anybody");
}

#[test]
fn a_mount_is_taken_down_while_its_background_pull_runs() {
    let host = Host::of(&pattern(16 << 20, 6));
    for _ in 0..5 {
        let mounted = host.mount("mounted", MountOptions::default());
        wait_until("the pull runs", || mounted.status_of_file().background_bytes > 0);
        run("umount", &[mounted.path().to_str().unwrap()]);
        mounted.unmount();
        let mounted = host.mount("mounted", MountOptions::default());
        wait_until("the pull runs", || mounted.status_of_file().background_bytes > 0);
        mounted.unmount();
    }
}
