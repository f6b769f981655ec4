//! Servers that are lost, silent or started again: what that means for those who use a mount.

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use pagewire::PullOrder;
use pagewire::access::fuse::MountOptions;

use crate::support::proxy::{Proxy, Weather};
use crate::support::{
    self, HANG, Host, Program, errno, fails_with, patient_for, pattern, read_at, wait_until, within,
    writable, writable_for,
};

const LENGTH: usize = 2 << 20;

/// Pulls nothing by itself, and reads no further than programs do.
fn by_demand() -> MountOptions {
    MountOptions { order: PullOrder::None, read_ahead: Some(4096), ..MountOptions::default() }
}

#[test]
fn a_lost_server_fails_what_needs_it_after_the_patience_and_nothing_else() {
    let bytes = pattern(LENGTH, 1);
    let mut host = Host::of(&bytes);
    let path = host.place("mounted");
    let mounted = support::mount(&host.address(), &path, by_demand(), &patient_for(400)).unwrap();
    let file = mounted.open_to_read();
    assert!(read_at(&file, 0, 300_000) == bytes[..300_000]);
    host.stop();
    let there = read_at(&file, 0, 300_000);
    assert!(there == bytes[..300_000], "what was read stays");
    let (failed, file) = within("a read without a server", HANG, move || {
        let failed = file.read_at(&mut [0; 4096], 1 << 20);
        (failed, file)
    });
    assert!(fails_with(failed, errno::EIO));
    assert!(read_at(&file, 100_000, 100_000) == bytes[100_000..200_000]);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), LENGTH as u64);
    // It comes back, and so does everything else.
    host.start();
    wait_until("the mount is whole again", || {
        let mut all = vec![0; LENGTH];
        file.read_exact_at(&mut all, 0).is_ok_and(|()| all == bytes)
    });
}

#[test]
fn readers_that_are_killed_go_away_while_the_server_is_silent() {
    let bytes = pattern(LENGTH, 2);
    let host = Host::of(&bytes);
    let proxy = Proxy::new(&host.address(), 1, Weather::default());
    let path = host.place("mounted");
    // Longer than the test waits for anybody.
    let mounted = support::mount(&proxy.address(), &path, by_demand(), &patient_for(60_000)).unwrap();
    read_at(&mounted.open_to_read(), 0, 4096);
    proxy.stall(true);
    let text = path.display().to_string();
    let mut readers: Vec<Program> = vec![
        Program::start(Command::new("cat").arg(&path)),
        Program::start(Command::new("dd").args([&format!("if={text}"), "bs=64k", "skip=8", "of=/dev/null"])),
        // GNU grep and cmp read, as most do.
        Program::start(Command::new("grep").args(["-c", "no such text"]).arg(&path)),
    ];
    std::thread::sleep(Duration::from_millis(200));
    for reader in &mut readers {
        assert!(reader.0.try_wait().unwrap().is_none(), "it waits for the server");
        reader.0.kill().unwrap();
    }
    let ended: Vec<bool> =
        readers.iter_mut().map(|reader| reader.end_within(Duration::from_secs(5)).is_some()).collect();
    proxy.stall(false);
    assert_eq!(ended, vec![true; readers.len()]);
    assert!(read_at(&mounted.open_to_read(), 0, LENGTH) == bytes, "and the others read on");
}

#[test]
fn what_was_not_flushed_is_sent_again_to_a_server_that_was_restarted() {
    let mut bytes = pattern(LENGTH, 3);
    let mut host = Host::of(&bytes);
    let mounted = host.mount("mounted", writable());
    let file = mounted.open();
    for (round, at) in [5000u64, 700_001, 1_500_000].into_iter().enumerate() {
        let piece = pattern(200_000, 10 + round as u8);
        file.write_all_at(&piece, at).unwrap();
        bytes[at as usize..at as usize + piece.len()].copy_from_slice(&piece);
        if round == 1 {
            // The kernel has written it back, and the mount has pushed it, when the store loses it.
            pagewire_sys::mount::sync_file_system(std::os::fd::AsFd::as_fd(&file)).unwrap();
            std::thread::sleep(Duration::from_millis(700));
        }
        host.stop();
        host.start();
        assert!(read_at(&file, 0, LENGTH) == bytes, "round {round}");
    }
    file.sync_all().unwrap();
    assert!(host.bytes() == bytes);
    assert_eq!(mounted.status_of_file().unflushed_bytes, 0);
}

#[test]
fn a_flush_without_a_server_fails_after_the_patience_and_a_later_one_does_it() {
    let mut bytes = pattern(LENGTH, 4);
    let mut host = Host::of(&bytes);
    let path = host.place("mounted");
    let mounted = support::mount(&host.address(), &path, writable_for(300), &patient_for(300)).unwrap();
    let file = mounted.open();
    host.stop();
    file.write_all_at(&[9; 4096], 8192).unwrap();
    let (failed, file) = within("a flush without a server", HANG, move || (file.sync_all(), file));
    assert!(fails_with(failed, errno::EIO));
    assert_eq!(read_at(&file, 8192, 4096), [9; 4096], "it is kept");
    assert!(mounted.status_of_file().unflushed_bytes >= 4096);
    host.start();
    wait_until("a later flush does it", || file.sync_all().is_ok());
    bytes[8192..12_288].fill(9);
    assert!(host.bytes() == bytes);
}

#[test]
fn a_mount_whose_server_is_gone_for_good_can_be_taken_down() {
    let mut host = Host::of(&pattern(LENGTH, 5));
    let path = host.place("mounted");
    let mounted = support::mount(&host.address(), &path, writable_for(300), &patient_for(300)).unwrap();
    let file = mounted.open();
    file.write_all_at(&[9; 4096], 0).unwrap();
    host.stop();
    drop(file);
    let mounted = within("a refused unmount", HANG, move || {
        assert!(mounted.unmount_now(false).is_err(), "something is not flushed");
        mounted
    });
    assert!(std::fs::metadata(&path).unwrap().len() > 0, "it is there still");
    within("a forced unmount", HANG, move || {
        assert!(mounted.unmount_now(true).is_err(), "what is lost is told");
        drop(mounted);
    });
    assert!(!path.exists());
}
