use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pagewire_sys::event::{EventFd, PidFd, PollItem, poll};
use pagewire_sys::signals::{SIGTERM, SIGUSR1, SIGUSR2, Signals};
use pagewire_sys::thread::{process_usage, set_batch, set_nice, set_timer_slack};

use crate::support::Child;

#[test]
fn an_eventfd_wakes_and_counts() {
    let event = EventFd::new().unwrap();
    assert_eq!(event.drain().unwrap(), 0);
    let other = EventFd::new().unwrap();
    let mut items = [PollItem::readable(other.as_fd()), PollItem::readable(event.as_fd())];
    let start = Instant::now();
    assert_eq!(poll(&mut items, Some(Duration::from_millis(20))).unwrap(), 0);
    assert!(start.elapsed() >= Duration::from_millis(20));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            event.signal().unwrap();
            event.signal().unwrap();
        });
        assert_eq!(poll(&mut items, None).unwrap(), 1);
    });
    assert!(!items[0].is_ready() && items[1].is_readable() && !items[1].is_hung_up());
    assert_eq!(event.drain().unwrap(), 2);
    assert_eq!(poll(&mut items, Some(Duration::ZERO)).unwrap(), 0);
    assert_eq!(poll(&mut [], Some(Duration::ZERO)).unwrap(), 0);

    let (reader, writer) = std::io::pipe().unwrap();
    let mut items = [PollItem::writable(writer.as_fd()), PollItem::readable(reader.as_fd())];
    assert_eq!(poll(&mut items, Some(Duration::MAX)).unwrap(), 1);
    assert!(items[0].is_writable());
    drop(writer);
    let mut items = [PollItem::readable(reader.as_fd())];
    poll(&mut items, None).unwrap();
    assert!(items[0].is_hung_up());
}

#[test]
fn a_pidfd_tells_the_end_of_a_process() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let process = PidFd::open(child.id()).unwrap();
    let mut items = [PollItem::readable(process.as_fd())];
    assert_eq!(poll(&mut items, Some(Duration::from_millis(5))).unwrap(), 0);
    drop(child.stdin.take());
    assert_eq!(poll(&mut items, Some(Duration::from_secs(5))).unwrap(), 1);
    assert!(child.wait().unwrap().success());
    assert!(PidFd::open(child.id()).is_err(), "the process is waited for");
}

#[test]
fn signals_are_waited_for() {
    // In a process with one thread: here no other thread can take the signal.
    Child::fork(|| {
        let signals = Signals::block_and_watch(&[SIGUSR1, SIGTERM]).unwrap();
        for signal in [SIGTERM, SIGUSR1] {
            let mut items = [PollItem::readable(signals.as_fd())];
            assert_eq!(poll(&mut items, Some(Duration::ZERO)).unwrap(), 0);
            // SAFETY: sends a signal to this process, which has it blocked.
            assert_eq!(unsafe { libc::kill(libc::getpid(), signal) }, 0);
            assert_eq!(poll(&mut items, Some(Duration::from_secs(5))).unwrap(), 1);
            assert_eq!(signals.wait().unwrap(), signal);
        }
        // A new process is not born deaf.
        let mut command = Command::new("sleep");
        signals.unblock_in(command.arg("10"));
        let mut sleep = command.spawn().unwrap();
        // SAFETY: signals our own child, which was not waited for.
        assert_eq!(unsafe { libc::kill(sleep.id() as libc::pid_t, SIGTERM) }, 0);
        !sleep.wait().unwrap().success()
    })
    .succeed();
    assert!(Signals::block_and_watch(&[1234]).is_err());
    assert_ne!(SIGUSR1, SIGUSR2);
}

#[test]
fn scheduling_is_of_the_calling_thread() {
    let settings = || {
        // SAFETY: takes numbers only.
        unsafe {
            let nice = libc::getpriority(libc::PRIO_PROCESS, libc::gettid() as libc::id_t);
            (libc::sched_getscheduler(0), nice, libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0))
        }
    };
    let before = settings();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            set_batch().unwrap();
            set_nice(3).unwrap();
            set_timer_slack(1).unwrap();
            assert_eq!(settings(), (libc::SCHED_BATCH, 3, 1));
            assert!(set_timer_slack(0).is_err());
        });
    });
    assert_eq!(settings(), before);
}

#[test]
fn usage_grows() {
    let before = process_usage().unwrap();
    let start = Instant::now();
    let mut sum = 0u64;
    while process_usage().unwrap().user + process_usage().unwrap().system == before.user + before.system {
        sum = std::hint::black_box(sum + 1);
        assert!(start.elapsed() < Duration::from_secs(5), "no processor time was counted");
    }
    assert!(before.max_rss > 1 << 20 && before.max_rss < 1 << 40, "{before:?}");
}
