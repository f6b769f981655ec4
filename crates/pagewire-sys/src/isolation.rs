//! Processes with mounts of their own: what they and their children mount nobody else sees, and it is gone when the
//! last of them is, however that ends.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr;

use crate::mount::c_path;
use crate::syscall::{check, retry};

/// What a process gets of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Mounts. For those who have `CAP_SYS_ADMIN`.
    Mounts,
    /// Mounts, and a user namespace: it is root there, over what is made there, and may outside of it what it may now.
    /// For anybody, where the system has not forbidden it.
    UserAndMounts,
}

/// Has the process that the command starts begin in namespaces of its own.
///
/// To start it fails with permission denied where that is not allowed, and with no space or users exhausted (`ENOSPC`,
/// `EUSERS`) where there are as many namespaces as there may be.
pub fn isolate(command: &mut Command, how: Isolation) -> &mut Command {
    // SAFETY: both take nothing, and cannot fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let map = |number: u32| CString::new(format!("0 {number} 1\n")).expect("digits have no zero byte");
    let (user, group) = (map(user), map(group));
    let enter = move || {
        let namespaces = match how {
            Isolation::Mounts => libc::CLONE_NEWNS,
            Isolation::UserAndMounts => libc::CLONE_NEWNS | libc::CLONE_NEWUSER,
        };
        // SAFETY: takes a number; the process has one thread, since it was just forked.
        check(unsafe { libc::unshare(namespaces) })?;
        if how == Isolation::UserAndMounts {
            // Who maps groups without privileges has to give up changing them first.
            write_all(c"/proc/self/setgroups", c"deny")?;
            write_all(c"/proc/self/uid_map", &user)?;
            write_all(c"/proc/self/gid_map", &group)?;
        }
        let (root, none) = (c"/".as_ptr(), ptr::null());
        // SAFETY: the path ends with a zero; for a change of propagation the other pointers are not used.
        check(unsafe { libc::mount(none, root, none, libc::MS_REC | libc::MS_PRIVATE, ptr::null()) })
            .map(drop)
    };
    // SAFETY: between fork and exec the closure makes system calls alone: it allocates nothing and takes no lock. An
    // error that it answers is one of the system, which is a number.
    unsafe { command.pre_exec(enter) }
}

/// Mounts a file system in memory over the directory at `path`: all that it may take is half of the machine's memory.
///
/// # Errors
///
/// Permission denied for those who may not mount, not found where there is no such directory.
pub fn mount_in_memory(path: &Path) -> io::Result<()> {
    let (path, kind) = (c_path(path)?, c"tmpfs".as_ptr());
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: all strings end with a zero.
    check(unsafe { libc::mount(kind, path.as_ptr(), kind, flags, c"mode=700".as_ptr().cast()) }).map(drop)
}

/// Writes text to a file that is there, without allocating.
fn write_all(path: &CStr, text: &CStr) -> io::Result<()> {
    // SAFETY: the path ends with a zero.
    let file = retry(|| unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
    let bytes = text.to_bytes();
    // SAFETY: as many bytes as are there are read; the files of /proc that this is for take all or nothing.
    let written = retry(|| unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) } as libc::c_long);
    // SAFETY: the descriptor was opened above and is used nowhere else.
    unsafe { libc::close(file) };
    written.map(drop)
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    /// What a shell says that has these namespaces.
    fn said(how: Isolation, script: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        let output = isolate(&mut command, how).output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("it says text")
    }

    #[test]
    fn what_is_mounted_inside_is_not_seen_outside() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().display();
        for how in [Isolation::Mounts, Isolation::UserAndMounts] {
            let script = format!("mount -t tmpfs none {path} && touch {path}/inside && ls {path} && id -u");
            assert_eq!(said(how, &script), "inside\n0\n", "{how:?}");
            assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0, "{how:?}");
        }
    }

    #[test]
    fn memory_is_mounted_over_directories_alone() {
        let error = mount_in_memory(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
