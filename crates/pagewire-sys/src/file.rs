//! Files beyond the standard library: holes, locks, reads that do not wait for the disk, identity, attributes.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::syscall::{check, file_offset, invalid, new_descriptor, retry, retry_count};

/// The first byte at or behind `from` that is not in a hole; none when only a hole follows, or the end.
///
/// Moves the offset that all holders of this open file share: do not mix with `read` and `write`, but with calls that
/// take an offset.
///
/// # Errors
///
/// What lseek answers: invalid input where the file system knows no holes.
pub fn seek_data(file: BorrowedFd<'_>, from: u64) -> io::Result<Option<u64>> {
    match seek(file, from, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        result => result.map(Some),
    }
}

/// The first byte at or behind `from` that is in a hole; the end of the file counts as one. Moves the shared offset
/// as [`seek_data`] does.
///
/// # Errors
///
/// What lseek answers: `ENXIO` at or behind the end of the file.
pub fn seek_hole(file: BorrowedFd<'_>, from: u64) -> io::Result<u64> {
    seek(file, from, libc::SEEK_HOLE)
}

/// The parts of `range` that are not holes, in order. A file system that knows no holes has data everywhere. Moves
/// the shared offset as [`seek_data`] does.
///
/// While others write the file, holes that are filled meanwhile may be missed.
///
/// # Errors
///
/// What lseek answers.
pub fn data_extents(file: BorrowedFd<'_>, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut extents = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let start = match seek_data(file, at) {
            Ok(Some(start)) if start < range.end => start,
            Ok(_) => break,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                return Ok(vec![range]);
            }
            Err(error) => return Err(error),
        };
        let end = match seek_hole(file, start) {
            Ok(end) => end.min(range.end),
            // The file was cut between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => break,
            Err(error) => return Err(error),
        };
        extents.push(start..end);
        // A hole that is at `start` only now, since somebody punched it, must not stop the walk.
        at = end.max(start + 1);
    }
    extents.retain(|extent| !extent.is_empty());
    Ok(extents)
}

/// Whether this process may read and write what is at `path`, as the kernel would answer; it is not opened, which for
/// a device may load its driver.
///
/// # Errors
///
/// What faccessat answers but for a refusal: not found where nothing is there.
pub fn may_use(path: &Path) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (modes, flags) = (libc::R_OK | libc::W_OK, libc::AT_EACCESS);
    // SAFETY: the path ends with a zero.
    match check(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), modes, flags) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn seek(file: BorrowedFd<'_>, from: u64, whence: libc::c_int) -> io::Result<u64> {
    let from = file_offset(from)?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::lseek(file.as_raw_fd(), from, whence) }).map(|position| position as u64)
}

/// Reads at an offset, at most the buffer; the file's own offset stays. 0 is the end of the file.
///
/// # Errors
///
/// What pread answers; invalid input for an offset that no file has.
pub fn pread(file: BorrowedFd<'_>, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let at = file_offset(at)?;
    // SAFETY: the kernel writes at most the buffer's length into the buffer, which is borrowed mutably.
    retry_count(|| unsafe { libc::pread(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), at) })
}

/// Reads at `offset` what is in the page cache, without waiting for a disk. Returns how many bytes; 0 is the end.
///
/// # Errors
///
/// `WouldBlock` when the first byte is not in the page cache, or the file system cannot tell: read as usual then.
pub fn pread_nowait(file: BorrowedFd<'_>, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let at = file_offset(at)?;
    let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the kernel writes at most the buffer's length into the buffer, which is borrowed mutably.
    match retry_count(|| unsafe { libc::preadv2(file.as_raw_fd(), &vector, 1, at, libc::RWF_NOWAIT) }) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(io::ErrorKind::WouldBlock.into()),
        result => result,
    }
}

/// Whether the file's bytes are in memory by the nature of its file system (tmpfs, ramfs, hugetlbfs), so that to
/// read them waits for no disk. Such a file system need not know [`pread_nowait`].
///
/// # Errors
///
/// What fstatfs answers.
pub fn is_in_memory(file: BorrowedFd<'_>) -> io::Result<bool> {
    const KINDS: [libc::c_long; 3] = [libc::TMPFS_MAGIC, RAMFS_MAGIC, libc::HUGETLBFS_MAGIC];
    const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;
    Ok(KINDS.contains(&file_system(file)?))
}

/// Whether who maps the file sees what who reads it does, at any time, by the nature of its file system: those of this
/// host alone, which have one page cache for both. Others may ask a server when a file is read, and not when it is loaded from.
///
/// # Errors
///
/// What fstatfs answers.
pub fn is_mapped_as_read(file: BorrowedFd<'_>) -> io::Result<bool> {
    const KINDS: [libc::c_long; 5] = [
        libc::TMPFS_MAGIC,
        libc::EXT4_SUPER_MAGIC,
        libc::XFS_SUPER_MAGIC,
        libc::BTRFS_SUPER_MAGIC,
        F2FS_MAGIC,
    ];
    const F2FS_MAGIC: libc::c_long = 0xf2f5_2010;
    Ok(KINDS.contains(&file_system(file)?))
}

/// The kind of its file system, as the kernel's number for it.
fn file_system(file: BorrowedFd<'_>) -> io::Result<libc::c_long> {
    let mut found = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel writes one statfs, for which there is room.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) })?;
    // SAFETY: the call has succeeded, so all of it is written.
    Ok(unsafe { found.assume_init() }.f_type)
}

/// A file in memory that is under no path, and goes with its last descriptor. `name` is for those who look at /proc.
///
/// # Errors
///
/// What memfd_create answers; invalid input for a name that is too long or has a zero in it.
pub fn in_memory(name: &str) -> io::Result<File> {
    let name = CString::new(name).map_err(|_| invalid("a name with a zero in it"))?;
    // SAFETY: the name ends with a zero; the descriptor that is returned is new and nobody else's.
    let descriptor = unsafe { new_descriptor(|| libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC)) };
    descriptor.map(File::from)
}

/// Tells the kernel that the range will be read soon; it starts to read it and does not wait. Length 0 means to the
/// end.
///
/// # Errors
///
/// What posix_fadvise answers.
pub fn fadvise_willneed(file: BorrowedFd<'_>, at: u64, len: u64) -> io::Result<()> {
    advise(file, at, len, libc::POSIX_FADV_WILLNEED)
}

/// Tells the kernel that the range will not be read soon; it drops those of its pages from the page cache that are
/// clean and not mapped. Length 0 means to the end.
///
/// # Errors
///
/// What posix_fadvise answers.
pub fn fadvise_dontneed(file: BorrowedFd<'_>, at: u64, len: u64) -> io::Result<()> {
    advise(file, at, len, libc::POSIX_FADV_DONTNEED)
}

fn advise(file: BorrowedFd<'_>, at: u64, len: u64, advice: libc::c_int) -> io::Result<()> {
    let (at, len) = (file_offset(at)?, file_offset(len)?);
    // SAFETY: takes numbers only.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), at, len, advice) } {
        0 => Ok(()),
        // This one call returns the error instead of setting errno.
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Turns the range into a hole: it reads as zeroes and takes no space. The file's size stays.
///
/// # Errors
///
/// What fallocate answers: unsupported where the file system cannot.
pub fn punch_hole(file: BorrowedFd<'_>, at: u64, len: u64) -> io::Result<()> {
    let (at, len) = (file_offset(at)?, file_offset(len)?);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes numbers only.
    retry(|| unsafe { libc::fallocate(file.as_raw_fd(), mode, at, len) }).map(drop)
}

/// Locks the whole file for one holder. The lock is of the open file (an "open file description" lock), so that two
/// opens conflict even within one process; it ends when the last descriptor of that open is closed.
///
/// # Errors
///
/// `WouldBlock` when another open holds a lock. `EBADF` for a file that is not open for writing.
pub fn lock_exclusive(file: BorrowedFd<'_>) -> io::Result<()> {
    lock(file, libc::F_WRLCK)
}

/// Locks the whole file along with other shared holders, as [`lock_exclusive`] does.
///
/// # Errors
///
/// `WouldBlock` when another open holds an exclusive lock. `EBADF` for a file that is not open for reading.
pub fn lock_shared(file: BorrowedFd<'_>) -> io::Result<()> {
    lock(file, libc::F_RDLCK)
}

/// Gives up the lock of this open file, if it has one.
///
/// # Errors
///
/// What fcntl answers.
pub fn unlock(file: BorrowedFd<'_>) -> io::Result<()> {
    lock(file, libc::F_UNLCK)
}

fn lock(file: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: zeroes are a valid flock; start and length 0 mean the whole file, and the pid must be 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the command reads the struct.
    match retry(|| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }) {
        // POSIX allows either answer.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EAGAIN)) => {
            Err(io::ErrorKind::WouldBlock.into())
        }
        result => result.map(drop),
    }
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Bytes in a file system.
    Regular,
    /// Its size is [`block_device_size`].
    BlockDevice,
    /// Of files.
    Directory,
    /// A pipe, a socket, a character device.
    Other,
}

/// Tells one file from another, and whether it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Number of the device that the file system is on.
    pub device: u64,
    /// Number in the file system; used again after the file was deleted, so compare `birth`, too.
    pub inode: u64,
    /// When it was created, in seconds and nanoseconds since 1970, where the file system knows.
    pub birth: Option<(i64, u32)>,
    /// When its bytes last changed.
    pub modified: (i64, u32),
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: FileKind,
}

/// Asks what file this is.
///
/// # Errors
///
/// What statx answers.
pub fn identity(file: BorrowedFd<'_>) -> io::Result<FileIdentity> {
    let status = status(file)?;
    let kind = match libc::mode_t::from(status.stx_mode) & libc::S_IFMT {
        libc::S_IFREG => FileKind::Regular,
        libc::S_IFBLK => FileKind::BlockDevice,
        libc::S_IFDIR => FileKind::Directory,
        _ => FileKind::Other,
    };
    let has_birth = status.stx_mask & libc::STATX_BTIME != 0;
    Ok(FileIdentity {
        device: libc::makedev(status.stx_dev_major, status.stx_dev_minor),
        inode: status.stx_ino,
        birth: has_birth.then_some((status.stx_btime.tv_sec, status.stx_btime.tv_nsec)),
        modified: (status.stx_mtime.tv_sec, status.stx_mtime.tv_nsec),
        size: status.stx_size,
        kind,
    })
}

/// The size of a file and when its bytes last changed: what of [`identity`] can change, at a third of its price.
///
/// # Errors
///
/// What fstat answers.
pub fn size_and_modified(file: BorrowedFd<'_>) -> io::Result<(u64, (i64, u32))> {
    let mut status = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the kernel writes one stat, for which there is room.
    check(unsafe { libc::fstat(file.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: zeroes but for what the kernel wrote; the struct is of integers.
    let status = unsafe { status.assume_init() };
    Ok((status.st_size as u64, (status.st_mtime, status.st_mtime_nsec as u32)))
}

/// Bytes that the file takes on its device: as many as its size or more where it has no holes, unless the file
/// system compresses.
///
/// # Errors
///
/// What statx answers.
pub fn allocated(file: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(status(file)?.stx_blocks * 512)
}

fn status(file: BorrowedFd<'_>) -> io::Result<libc::statx> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, and the kernel writes one statx.
    check(unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, status.as_mut_ptr())
    })?;
    // SAFETY: zeroes but for what the kernel wrote; the struct is of integers.
    Ok(unsafe { status.assume_init() })
}

/// Bytes of a block device.
///
/// # Errors
///
/// `ENOTTY` for what is none.
pub fn block_device_size(device: BorrowedFd<'_>) -> io::Result<u64> {
    const BLKGETSIZE64: libc::Ioctl = linux_raw_sys::ioctl::BLKGETSIZE64 as libc::Ioctl;
    if identity(device)?.kind != FileKind::BlockDevice {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    let mut bytes = 0u64;
    // SAFETY: of a block device this request writes one u64.
    unsafe { crate::syscall::ioctl(&device, BLKGETSIZE64, &mut bytes) }?;
    Ok(bytes)
}

/// What `fallocate` is asked for, as a file system is told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocate {
    /// The range is to hold zeroes; else what it holds is to stay, and to have room.
    pub zero: bool,
    /// The file is not to grow.
    pub keep_size: bool,
}

impl Allocate {
    /// Does it to `len` bytes from `at` on.
    ///
    /// # Errors
    ///
    /// What fallocate answers: unsupported where the file system cannot.
    pub fn apply(self, file: BorrowedFd<'_>, at: u64, len: u64) -> io::Result<()> {
        let (at, len) = (file_offset(at)?, file_offset(len)?);
        let keep_size = if self.keep_size { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
        let mode = match self {
            Self { zero: false, .. } => keep_size,
            Self { zero: true, .. } => keep_size | libc::FALLOC_FL_ZERO_RANGE,
        };
        // SAFETY: takes numbers only.
        retry(|| unsafe { libc::fallocate(file.as_raw_fd(), mode, at, len) }).map(drop)
    }

    /// The meaning of a mode; none for kinds that move bytes.
    pub fn from_mode(mode: i32) -> Option<Self> {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => Some(Self { zero: false, keep_size }),
            libc::FALLOC_FL_ZERO_RANGE => Some(Self { zero: true, keep_size }),
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => Some(Self { zero: true, keep_size }),
            _ => None,
        }
    }
}

/// The value of an extended attribute of the file at `path`; none where it has no such attribute.
///
/// # Errors
///
/// What getxattr answers; invalid input for a name with a zero byte.
pub fn extended_attribute(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let zero = || invalid("a zero byte in a name");
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| zero())?;
    let name = CString::new(name).map_err(|_| zero())?;
    // As large as they can be.
    let mut value = vec![0; 64 << 10];
    // SAFETY: both strings end with a zero, and the kernel writes at most as many bytes as there is room for.
    let read = retry_count(|| unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    });
    match read {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a seek is one for data (true) or for a hole (false); none for any other.
pub fn seeks_data(whence: i32) -> Option<bool> {
    match whence {
        libc::SEEK_DATA => Some(true),
        libc::SEEK_HOLE => Some(false),
        _ => None,
    }
}
