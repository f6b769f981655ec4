//! Scheduling of the calling thread, and what the process has used.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use crate::syscall::{check, invalid};

/// The number of the calling thread, as the kernel counts threads of all processes.
pub fn id() -> u32 {
    // SAFETY: takes nothing, and cannot fail.
    (unsafe { libc::gettid() }) as u32
}

/// Gives the calling thread a table of descriptors of its own, with none in it but those of standard input, output
/// and error. The tables of other threads stay as they are; what this thread opens from now on is in its own alone.
///
/// It is for threads that use a FUSE file system which their own process serves. When a process is killed, the
/// kernel closes one descriptor after the other, and to close a file of that file system it waits for an answer:
/// for ever, if the process's own connection to the kernel lies in the same table, which is closed for good after
/// all of them.
///
/// What the thread was given must hold no descriptors: they are not open here.
///
/// # Errors
///
/// What close_range answers: unknown before Linux 5.9.
pub fn leave_descriptors() -> io::Result<()> {
    // SAFETY: takes numbers only. No descriptor of another thread is closed, since the table is this thread's own
    // from then on; those that the thread has opened itself before are its caller's to name.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE as libc::c_uint)
    })
    .map(drop)
}

/// Makes the calling thread a batch thread (`SCHED_BATCH`): it gets its share of the processor, but does not preempt
/// others when it wakes. For background work beside threads that serve demand.
///
/// # Errors
///
/// What sched_setscheduler answers.
pub fn set_batch() -> io::Result<()> {
    // SAFETY: zeroes are a valid parameter: batch threads have priority 0.
    let parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: reads the parameter. 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameter) }).map(drop)
}

/// Sets the nice value of the calling thread only: -20 (first) to 19 (last).
///
/// # Errors
///
/// Permission denied for a lower value without `CAP_SYS_NICE`.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: takes numbers only. Unlike what POSIX says, on Linux this is an attribute of one thread.
    check(unsafe {
        let thread = libc::gettid() as libc::id_t;
        libc::setpriority(libc::PRIO_PROCESS, thread, nice)
    })
    .map(drop)
}

/// Asks for short turns on the processor for the calling thread: when it wakes, it may interrupt threads with
/// longer ones, at the price of shorter turns (never of a smaller share). For threads that do little at a time and
/// that others wait for. The kernel takes 0.1 ms at least; before Linux 6.12 it takes no notice.
///
/// # Errors
///
/// What sched_setattr answers.
pub fn set_slice(slice: Duration) -> io::Result<()> {
    /// `struct sched_attr`, the first version.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    // SAFETY: takes numbers only; 0 is the calling thread.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: slice.as_nanos() as u64,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of the structure, all of which are there; 0 is the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } as i32).map(drop)
}

/// How much later than asked the kernel may wake the calling thread from a sleep, in nanoseconds, to save power. The
/// default is 50,000; 1 is as exact as it gets.
///
/// # Errors
///
/// Invalid input for 0, which the kernel takes for "back to the default".
pub fn set_timer_slack(nanoseconds: u64) -> io::Result<()> {
    let slack = libc::c_ulong::try_from(nanoseconds).map_err(|_| invalid("timer slack too long"))?;
    if slack == 0 {
        return Err(invalid("timer slack must be at least a nanosecond"));
    }
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack, 0, 0, 0) }).map(drop)
}

/// What this process has used since it started, all threads together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessUsage {
    /// Processor time in its own code.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// The most memory that was resident at once, in bytes.
    pub max_rss: u64,
}

/// Asks what this process has used.
///
/// # Errors
///
/// None is known.
pub fn process_usage() -> io::Result<ProcessUsage> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one rusage.
    check(unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) })?;
    // SAFETY: filled by the kernel; the struct is of integers.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Ok(ProcessUsage {
        user: time(usage.ru_utime),
        system: time(usage.ru_stime),
        // The kernel counts in KiB.
        max_rss: usage.ru_maxrss as u64 * 1024,
    })
}
