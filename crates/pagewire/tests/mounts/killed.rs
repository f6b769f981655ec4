//! A process that is killed while it has its own mount open and mapped: it ends, and takes its mount with it.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use pagewire::store::RemoteOptions;
use pagewire_sys::file_mapping::FileMapping;
use pagewire_sys::mapping::Protection;
use pagewire_sys::mount::mount_of;

use crate::support::{self, HANG, Host, Program, pattern, wait_until, writable};

/// Where the one to be killed finds the region, and where it mounts it: it is this program, which runs [`play`].
const PEER: &str = "PAGEWIRE_TEST_PEER";
const PLACE: &str = "PAGEWIRE_TEST_PLACE";

const LENGTH: usize = 64 << 12;

#[test]
fn whoever_is_killed_with_its_own_mount_mapped_ends_and_leaves_no_mount() {
    let host = Host::of(&pattern(LENGTH, 1));
    let place = host.place("mounted");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "killed::play", "--nocapture"]);
    command.env(PEER, host.address().to_string()).env(PLACE, &place);
    let mut program = Program::start(command.stdin(Stdio::null()));
    let stdout = BufReader::new(program.0.stdout.take().unwrap());
    let is_ready = stdout.lines().map_while(Result::ok).any(|line| line == "ready");
    assert!(is_ready, "it has mapped the file");
    let before = mount_of(host.folder.path()).unwrap();
    assert_ne!(mount_of(&place).unwrap(), before);
    program.0.kill().unwrap();
    assert!(program.end_within(HANG).is_some(), "it cannot be killed");
    wait_until("the mount is taken down", || mount_of(&place).is_ok_and(|found| found == before));
}

#[test]
fn play() {
    let (Ok(peer), Ok(place)) = (std::env::var(PEER), std::env::var(PLACE)) else { return };
    let mounted =
        support::mount(&peer.parse().unwrap(), place.as_ref(), writable(), &RemoteOptions::default())
            .unwrap();
    let file = mounted.open();
    let mapping = FileMapping::new(file.as_fd(), LENGTH, Protection::ReadWrite).unwrap();
    // To be written back when it ends.
    mapping.copy_in(0, &[7; LENGTH]).unwrap();
    println!("\nready");
    // Until it is killed.
    loop {
        std::thread::park();
    }
}
