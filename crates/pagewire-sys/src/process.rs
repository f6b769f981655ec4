//! Other processes: signals to them, and whether they are stopped.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::event::PidFd;
use crate::syscall::check;

pub use libc::{SIGCONT, SIGKILL, SIGSTOP};

/// Sends a signal to the process that `process` was opened for, and to no other that has its number by now.
///
/// # Errors
///
/// `ESRCH` where it has ended; permission denied for a process of somebody else.
pub fn signal(process: &PidFd, signal: i32) -> io::Result<()> {
    let fd = process.as_fd().as_raw_fd();
    // SAFETY: takes numbers; without information about the signal, which may be null, the kernel makes it up.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<libc::siginfo_t>(), 0)
    })
    .map(drop)
}

/// Kills all processes of a group, whose number is that of the child that leads it. The child must not have been
/// waited for: its number may be somebody else's then.
///
/// # Errors
///
/// `ESRCH` where the group has none; invalid input for 0 and 1, which would mean other groups.
pub fn kill_group(leader: u32) -> io::Result<()> {
    let group = libc::pid_t::try_from(leader).ok().filter(|group| *group > 1);
    let group = group.ok_or_else(|| crate::syscall::invalid("no group of processes that can be killed"))?;
    // SAFETY: takes numbers.
    check(unsafe { libc::kill(-group, libc::SIGKILL) }).map(drop)
}

/// Has the process that the command starts killed when the thread ends that starts it, as it does when its process is
/// killed. What that process starts itself is not.
pub fn kill_with_thread(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    let arrange = move || {
        let kill = libc::SIGKILL as libc::c_ulong;
        // SAFETY: takes numbers only.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, kill, 0, 0, 0) })?;
        // SAFETY: takes nothing, and cannot fail.
        match unsafe { libc::getppid() } as u32 == parent {
            true => Ok(()),
            // It was too late: nobody would tell.
            false => Err(io::Error::from_raw_os_error(libc::ECHILD)),
        }
    };
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(arrange) }
}

/// Whether all threads of a process are stopped, so that it runs no instruction until it is continued. One that has
/// ended counts as stopped.
///
/// # Errors
///
/// Not found where there is no such process; what /proc says that cannot be understood.
pub fn is_stopped(pid: u32) -> io::Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = match std::fs::read_to_string(thread?.path().join("stat")) {
            Ok(stat) => stat,
            // It has just ended.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => continue,
            Err(error) => return Err(error),
        };
        // The name before the state is in parentheses, and may hold some itself.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        let state = state.ok_or_else(|| io::Error::other("/proc tells no state of a thread"))?;
        if !matches!(state, 'T' | 't' | 'Z' | 'X') {
            return Ok(false);
        }
    }
    Ok(true)
}
