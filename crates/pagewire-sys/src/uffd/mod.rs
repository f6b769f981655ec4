//! userfaultfd: threads that touch an absent page wait until somebody places it.
//!
//! [`Uffd::open`] makes a descriptor, [`Uffd::register`] puts a [`Mapping`] under it, [`Uffd::read_events`] says who
//! waits for what, and the calls of `place` ([`Uffd::copy_all`] above all) put pages in. A descriptor may come from
//! another process ([`Uffd::from_fd`]); then all addresses are that process's.
//!
//! The thread that serves faults must not touch a registered page: it would wait for itself.

mod events;
mod features;
mod fill;
mod place;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;

pub use self::events::{Event, EventBuffer};
pub use self::features::Features;
pub use self::fill::AGAIN_RETRIES;
pub use self::place::{CopyMode, PlaceError};
use crate::mapping::Mapping;
use crate::syscall::{invalid, ioctl, new_descriptor, retry_count};

const UFFDIO_API: libc::Ioctl = libc::_IOWR::<raw::uffdio_api>(raw::UFFDIO, raw::_UFFDIO_API);
const UFFDIO_REGISTER: libc::Ioctl = libc::_IOWR::<raw::uffdio_register>(raw::UFFDIO, raw::_UFFDIO_REGISTER);
const UFFDIO_UNREGISTER: libc::Ioctl = libc::_IOR::<raw::uffdio_range>(raw::UFFDIO, raw::_UFFDIO_UNREGISTER);
const USERFAULTFD_IOC_NEW: libc::Ioctl = libc::_IO(raw::USERFAULTFD_IOC, 0);

/// In the features of fdinfo: the handshake is done (a bit of the kernel's own).
const HANDSHAKE_DONE: u64 = 1 << 31;

/// A userfaultfd whose handshake is done.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    features: Features,
    user_mode_only: bool,
    /// Opened by this process, so that addresses are ours.
    own: bool,
}

/// What each way to open a userfaultfd answers: the features of the kernel, or why not.
#[derive(Debug)]
pub struct Ways {
    /// The system call, for faults of the kernel, too.
    pub call: io::Result<Features>,
    /// `/dev/userfaultfd`.
    pub device: io::Result<Features>,
    /// The system call, for faults of programs alone.
    pub user_mode: io::Result<Features>,
}

/// How a descriptor is opened. It is always close-on-exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFlags {
    /// [`Uffd::read_events`] answers `WouldBlock` when there is no event. poll(2) reports events only of such a
    /// descriptor, and an error of any other.
    pub nonblocking: bool,
    /// Do not even try to handle faults of the kernel: what every user is allowed. A system call that is given an
    /// absent page then answers `EFAULT`.
    pub user_mode_only: bool,
}

/// What a registered range reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RegisterModes {
    /// Touching an absent page.
    pub missing: bool,
    /// Writing a protected page; with [`Features::WP_ASYNC`] the kernel only takes note.
    pub write_protect: bool,
    /// Touching a page that is in the page cache and not mapped (shared memory).
    pub minor: bool,
}

impl Uffd {
    /// Opens a userfaultfd with those of the `wanted` features that the kernel has; [`Uffd::features`] says which.
    ///
    /// Tries the system call, then `/dev/userfaultfd` (whose permissions an administrator can set), then user mode
    /// only, which every user may.
    ///
    /// # Errors
    ///
    /// When no way works, with all three reasons; permission denied for [`Features::EVENT_FORK`] without
    /// `CAP_SYS_PTRACE`.
    pub fn open(wanted: Features, flags: OpenFlags) -> io::Result<Uffd> {
        let available = Uffd::available(flags)?;
        let mut features = wanted.intersect(available);
        let (fd, user_mode_only) = open_descriptor(flags)?;
        handshake(&fd, features)?;
        if features.contains(Features::WP_ASYNC) {
            // The kernel turns it on, too: the one makes no sense without the other.
            features = features.union(Features::WP_UNPOPULATED.intersect(available));
        }
        Ok(Uffd { fd, features, user_mode_only, own: true })
    }

    /// The features of this kernel. The question takes a descriptor of its own: a handshake can be done once.
    ///
    /// # Errors
    ///
    /// As [`Uffd::open`].
    pub fn available(flags: OpenFlags) -> io::Result<Features> {
        let (fd, _) = open_descriptor(flags)?;
        handshake(&fd, Features::NONE)
    }

    /// Tries each way by itself, and asks for the features by each.
    pub fn ways() -> Ways {
        let features = |fd: io::Result<OwnedFd>| fd.and_then(|fd| handshake(&fd, Features::NONE));
        let user_mode = raw::UFFD_USER_MODE_ONLY as libc::c_int;
        Ways {
            call: features(open_by_call(libc::O_CLOEXEC)),
            device: features(open_by_device(libc::O_CLOEXEC)),
            user_mode: features(open_by_call(libc::O_CLOEXEC | user_mode)),
        }
    }

    /// Takes a descriptor that another process made, and did the handshake of.
    ///
    /// [`Uffd::features`] are those of its handshake. Whether it is for user mode only cannot be known.
    ///
    /// # Errors
    ///
    /// Invalid input when it is no userfaultfd or its handshake is not done; needs `/proc`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Uffd> {
        // The ioctls below are sound for a userfaultfd only, so make sure that it is one.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if std::fs::read_link(path)?.as_os_str() != "anon_inode:[userfaultfd]" {
            return Err(invalid("the descriptor is not a userfaultfd"));
        }
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
        let bits =
            handshake_bits(&info).ok_or_else(|| invalid("no API line in the fdinfo of a userfaultfd"))?;
        if bits & HANDSHAKE_DONE == 0 {
            return Err(invalid("the handshake of the userfaultfd is not done"));
        }
        let features = Features::from_bits(bits & !HANDSHAKE_DONE);
        Ok(Uffd { fd, features, user_mode_only: false, own: false })
    }

    /// The features that are on.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Whether this descriptor is known to miss faults of the kernel: `write(2)` from an absent page answers
    /// `EFAULT` then. Never known of another process's descriptor.
    pub fn user_mode_only(&self) -> bool {
        self.user_mode_only
    }

    /// Puts the mapping under this descriptor. Does nothing for an empty one.
    ///
    /// # Errors
    ///
    /// Invalid input for a descriptor of another process (the address would be taken for one of that process) or
    /// for modes that the memory cannot; busy when another userfaultfd has the range.
    pub fn register(&self, mapping: &Mapping, modes: RegisterModes) -> io::Result<()> {
        self.require_own()?;
        if mapping.is_empty() {
            return Ok(());
        }
        let bit = |on: bool, bit: u32| if on { u64::from(bit) } else { 0 };
        let mut argument = raw::uffdio_register {
            range: range(mapping.address(), mapping.len()),
            mode: bit(modes.missing, raw::UFFDIO_REGISTER_MODE_MISSING)
                | bit(modes.write_protect, raw::UFFDIO_REGISTER_MODE_WP)
                | bit(modes.minor, raw::UFFDIO_REGISTER_MODE_MINOR),
            ioctls: 0,
        };
        // SAFETY: the range is a live mapping of ours. Registering changes no byte of it; it only makes accesses to
        // absent pages wait, which is sound for every reader.
        unsafe { ioctl(&self.fd, UFFDIO_REGISTER, &mut argument) }.map(drop)
    }

    /// Takes the mapping out of this descriptor's care and wakes who waits for it: absent pages read as zeroes
    /// from now on. Does nothing for an empty mapping.
    ///
    /// # Errors
    ///
    /// As [`Uffd::register`].
    pub fn unregister(&self, mapping: &Mapping) -> io::Result<()> {
        self.require_own()?;
        if mapping.is_empty() {
            return Ok(());
        }
        let mut argument = range(mapping.address(), mapping.len());
        // SAFETY: the range is a live mapping of ours, and no byte that was read before changes.
        unsafe { ioctl(&self.fd, UFFDIO_UNREGISTER, &mut argument) }.map(drop)
    }

    /// Reads what there is, up to the buffer's capacity. Waits for one event, unless the descriptor does not block.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is none. Invalid data names an event that this version does not know; those that
    /// came with it are delivered first.
    pub fn read_events<'b>(&self, buffer: &'b mut EventBuffer) -> io::Result<&'b [Event]> {
        if let Some(error) = buffer.take_unknown() {
            return Err(error);
        }
        let (room, size) = buffer.room();
        // SAFETY: the room is `size` bytes of plain integers, borrowed mutably.
        let read = retry_count(|| unsafe { libc::read(self.fd.as_raw_fd(), room, size) })?;
        // SAFETY: the descriptor is a userfaultfd (opened as one, or checked), and wrote these bytes just now.
        unsafe { buffer.parse(read, self.features.contains(Features::THREAD_ID)) };
        if buffer.events().is_empty()
            && let Some(error) = buffer.take_unknown()
        {
            return Err(error);
        }
        Ok(buffer.events())
    }

    fn require_own(&self) -> io::Result<()> {
        if self.own { Ok(()) } else { Err(invalid("this userfaultfd registers another process's memory")) }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The kernel's range of `len` bytes from `start`.
fn range(start: usize, len: usize) -> raw::uffdio_range {
    raw::uffdio_range { start: start as u64, len: len as u64 }
}

/// A descriptor without its handshake, and whether it is for user mode only.
fn open_descriptor(flags: OpenFlags) -> io::Result<(OwnedFd, bool)> {
    let common = libc::O_CLOEXEC | if flags.nonblocking { libc::O_NONBLOCK } else { 0 };
    let user_mode = || open_by_call(common | raw::UFFD_USER_MODE_ONLY as libc::c_int);
    if flags.user_mode_only {
        return Ok((user_mode()?, true));
    }
    let call_error = match open_by_call(common) {
        Ok(fd) => return Ok((fd, false)),
        Err(error) => error,
    };
    let device_error = match open_by_device(common) {
        Ok(fd) => return Ok((fd, false)),
        Err(error) => error,
    };
    match user_mode() {
        Ok(fd) => Ok((fd, true)),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!(
                "userfaultfd: {call_error}; /dev/userfaultfd: {device_error}; for user mode only: {error}"
            ),
        )),
    }
}

fn open_by_call(flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes flags only and returns a new descriptor.
    unsafe { new_descriptor(|| libc::syscall(libc::SYS_userfaultfd, flags) as libc::c_int) }
}

fn open_by_device(flags: libc::c_int) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: of the userfaultfd device this request takes flags by value and returns a new descriptor; a device
    // that does not know it answers ENOTTY.
    unsafe { new_descriptor(|| libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags)) }
}

/// Agrees on the features, once per descriptor; returns what the kernel has (not what is on).
fn handshake(fd: &OwnedFd, features: Features) -> io::Result<Features> {
    let mut argument =
        raw::uffdio_api { api: u64::from(raw::UFFD_API), features: features.bits(), ioctls: 0 };
    // SAFETY: the descriptor is a userfaultfd that was just opened; the request fills the struct.
    unsafe { ioctl(fd, UFFDIO_API, &mut argument) }?;
    Ok(Features::from_bits(argument.features))
}

/// The features in the line `API: <api>:<features>:<ioctls>` of fdinfo, in hexadecimal.
fn handshake_bits(info: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix("API:"))?;
    u64::from_str_radix(line.trim().split(':').nth(1)?, 16).ok()
}
