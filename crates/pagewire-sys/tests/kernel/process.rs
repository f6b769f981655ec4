//! Signals to other processes.

use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use pagewire_sys::event::{PidFd, PollItem, poll};
use pagewire_sys::process::{SIGCONT, SIGKILL, SIGSTOP, is_stopped, kill_group, kill_with_thread, signal};
use pagewire_sys::signals::unblock_all_in;

/// A process that is gone when this goes.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_process_is_stopped_goes_on_and_is_killed() {
    let mut child = Started(Command::new("sleep").arg("100").spawn().unwrap());
    let (pid, process) = (child.0.id(), PidFd::open(child.0.id()).unwrap());
    assert!(!is_stopped(pid).unwrap());
    signal(&process, SIGSTOP).unwrap();
    wait_until("it is stopped", || is_stopped(pid).unwrap());
    signal(&process, SIGCONT).unwrap();
    wait_until("it goes on", || !is_stopped(pid).unwrap());
    signal(&process, SIGKILL).unwrap();
    assert_eq!(child.0.wait().unwrap().signal(), Some(SIGKILL));
    assert!(signal(&process, SIGCONT).is_err(), "whoever has its number now is somebody else");
    assert!(is_stopped(pid).is_err());
}

#[test]
fn a_group_is_killed_as_a_whole_and_no_other() {
    let mut leader = Started(
        Command::new("sh")
            .args(["-c", "sleep 100 & echo $!; wait"])
            .process_group(0)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(leader.0.stdout.take().unwrap()), &mut line)
        .unwrap();
    let follower = PidFd::open(line.trim().parse().unwrap()).unwrap();
    kill_group(leader.0.id()).unwrap();
    assert_eq!(leader.0.wait().unwrap().signal(), Some(SIGKILL));
    assert_eq!(poll(&mut [PollItem::readable(follower.as_fd())], Some(Duration::from_secs(10))).unwrap(), 1);
    for wrong in [0, 1, u32::MAX] {
        assert!(kill_group(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_process_that_is_started_takes_what_its_parent_blocks() {
    // Of a thread of its own: its mask is nobody else's.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _signals =
                pagewire_sys::signals::Signals::block_and_watch(&[pagewire_sys::signals::SIGTERM]).unwrap();
            let mut command = Command::new("sleep");
            unblock_all_in(command.arg("100"));
            let mut child = Started(command.spawn().unwrap());
            let process = PidFd::open(child.0.id()).unwrap();
            signal(&process, pagewire_sys::signals::SIGTERM).unwrap();
            assert_eq!(child.0.wait().unwrap().signal(), Some(pagewire_sys::signals::SIGTERM));
        });
    });
}

#[test]
fn a_process_is_killed_with_the_thread_that_has_started_it() {
    let start = || {
        let mut command = Command::new("sleep");
        Started(kill_with_thread(command.arg("100")).spawn().unwrap())
    };
    let mut child = std::thread::spawn(start).join().unwrap();
    assert_eq!(child.0.wait().unwrap().signal(), Some(SIGKILL));
    let mut stays = start();
    std::thread::sleep(Duration::from_millis(20));
    assert!(stays.0.try_wait().unwrap().is_none());
}
