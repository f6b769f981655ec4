//! Mounts: which one a path is on, whether it is still there, taking it down, and reaching its files without
//! holding it.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::event::{PollItem, poll};
use crate::syscall::{check, new_descriptor, retry};

/// One mount, for as long as it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MountId(u64);

/// A device number: that of a file system, or of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

/// Which mount `path` is on, and which file system that is. Asks the kernel alone, so that a file system that does
/// not answer is no obstacle.
///
/// # Errors
///
/// What statx answers; `Unsupported` before Linux 5.8.
pub fn mount_of(path: &Path) -> io::Result<(MountId, DeviceId)> {
    let path = c_path(path)?;
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    // SAFETY: the path ends with a zero, and the kernel writes at most one statx, for which there is room.
    check(unsafe {
        libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_MNT_ID, found.as_mut_ptr())
    })?;
    // SAFETY: all bytes were zero before, which is a valid statx, and the kernel has written over them.
    let found = unsafe { found.assume_init() };
    if found.stx_mask & libc::STATX_MNT_ID == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok((MountId(found.stx_mnt_id), DeviceId { major: found.stx_dev_major, minor: found.stx_dev_minor }))
}

/// Whether a FUSE mount of this subtype is at `path`, which is canonical.
pub fn is_of_type(path: &Path, subtype: &str) -> bool {
    // A kernel that is asked directly leaves the subtype out, and the source has its name.
    let kinds = [format!(" - fuse.{subtype} "), format!(" - fuse {subtype} ")];
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let is_of_type = kinds.iter().any(|kind| line.contains(kind));
        is_of_type && fields.get(4).is_some_and(|place| Path::new(&unescape(place)) == path)
    })
}

/// A path as it was before the kernel wrote spaces, tabs, line ends and backslashes of it in octal.
fn unescape(place: &str) -> OsString {
    let mut bytes = Vec::new();
    let mut rest = place.as_bytes();
    while let [first, after @ ..] = rest {
        let octal =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// The mounts that this process sees, to be waited for to change.
#[derive(Debug)]
pub struct MountTable(File);

impl MountTable {
    /// Opens the table.
    ///
    /// # Errors
    ///
    /// If /proc is not there.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/mountinfo").map(Self)
    }

    /// Whether the mount is there, under whichever path.
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn has(&self, mount: MountId) -> io::Result<bool> {
        loop {
            self.wait(Duration::ZERO)?;
            let table = std::fs::read_to_string("/proc/self/mountinfo")?;
            let mut ids = table.lines().filter_map(|line| line.split(' ').next()?.parse::<u64>().ok());
            if ids.any(|id| id == mount.0) {
                return Ok(true);
            }
            // The table is read in pieces: one that changes meanwhile may leave out what is there.
            if !self.wait(Duration::ZERO)? {
                return Ok(false);
            }
        }
    }

    /// Waits until mounts have come or gone since the last call, or for as long as `timeout`. Answers whether any
    /// have.
    ///
    /// # Errors
    ///
    /// What poll answers.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let mut items = [PollItem::exceptional(self.0.as_fd())];
        poll(&mut items, Some(timeout))?;
        Ok(items[0].is_ready())
    }
}

/// Takes down the mount at `path`; with `detach` also one that is in use, which is then out of sight and ends with
/// its last user.
///
/// # Errors
///
/// `ResourceBusy` while it is in use, `PermissionDenied` for those who may not.
pub fn unmount(path: &Path, detach: bool) -> io::Result<()> {
    let path = c_path(path)?;
    let flags = libc::UMOUNT_NOFOLLOW | if detach { libc::MNT_DETACH } else { 0 };
    // SAFETY: the path ends with a zero.
    retry(|| unsafe { libc::umount2(path.as_ptr(), flags) }).map(drop)
}

/// The mount at `path` once more, under no path: its files can be reached by [`Detached::open`], and the mount at
/// the path is not in use for it.
#[derive(Debug)]
pub struct Detached(OwnedFd);

impl Detached {
    /// Clones the mount at `path`.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` for those who may not mount; `Unsupported` before Linux 5.2.
    pub fn clone_of(path: &Path) -> io::Result<Self> {
        let path = c_path(path)?;
        let flags = linux_raw_sys::general::OPEN_TREE_CLONE | libc::O_CLOEXEC as u32;
        // SAFETY: the path ends with a zero; the descriptor that is returned is new and nobody else's.
        let descriptor = unsafe {
            new_descriptor(|| {
                libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) as libc::c_int
            })
        };
        descriptor.map(Self)
    }

    /// Opens the file at `path` below the root of the mount for reading; the root itself where the path is empty.
    ///
    /// # Errors
    ///
    /// As opening a file.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        // Of this thread, which may have a table of its own.
        let root = PathBuf::from(format!("/proc/thread-self/fd/{}", self.0.as_raw_fd()));
        File::open(if path.as_os_str().is_empty() { root } else { root.join(path) })
    }
}

/// Writes back what is dirty of the file system that `file` is on, and waits for it.
///
/// # Errors
///
/// What syncfs answers.
pub fn sync_file_system(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a number only.
    retry(|| unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

/// A process that uses a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub pid: u32,
    /// Its command.
    pub command: String,
}

/// The processes that have a file of the file system open, mapped, or as their folder: those that this process may
/// look at, without this one.
///
/// # Errors
///
/// If /proc cannot be read.
pub fn users_of(device: DeviceId) -> io::Result<Vec<User>> {
    let own = std::process::id();
    let mut users = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid != own && uses(&entry.path(), device) {
            let command = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            users.push(User { pid, command: command.trim_end().into() });
        }
    }
    Ok(users)
}

/// Whether the process at this place in /proc uses the file system.
fn uses(process: &Path, device: DeviceId) -> bool {
    let is_on = |path: &Path| mount_of(path).is_ok_and(|(_, found)| found == device);
    if ["cwd", "root", "exe"].iter().any(|name| is_on(&process.join(name))) {
        return true;
    }
    let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    if descriptors.into_iter().any(|entry| is_on(&entry.path())) {
        return true;
    }
    let name = format!(" {:02x}:{:02x} ", device.major, device.minor);
    std::fs::read_to_string(process.join("maps")).is_ok_and(|maps| maps.contains(&name))
}

/// How far the kernel reads ahead in files of a file system, for those that are opened from then on.
#[derive(Debug)]
pub struct ReadAhead(PathBuf);

impl ReadAhead {
    /// That of the file system.
    pub fn of(device: DeviceId) -> Self {
        Self(format!("/sys/class/bdi/{}:{}/read_ahead_kb", device.major, device.minor).into())
    }

    /// Sets it, in bytes: a multiple of 1024.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` for anybody but root; `NotFound` where /sys is not there.
    pub fn set(&self, bytes: u64) -> io::Result<()> {
        std::fs::write(&self.0, (bytes / 1024).to_string())
    }
}

pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
