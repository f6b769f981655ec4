//! NBD devices by ioctl: for kernels that do not have them by netlink.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Setup, seconds};
use crate::syscall::{invalid, retry};

/// The requests, which take a number each: `_IO(0xab, N)`.
const SET_SOCK: u64 = 0xab00;
const SET_BLKSIZE: u64 = 0xab01;
const DO_IT: u64 = 0xab03;
const CLEAR_SOCK: u64 = 0xab04;
const SET_SIZE_BLOCKS: u64 = 0xab07;
const DISCONNECT: u64 = 0xab08;
const SET_TIMEOUT: u64 = 0xab09;
const SET_FLAGS: u64 = 0xab0a;

/// The major number of NBD devices.
const MAJOR: u32 = 43;

/// A device that this thread configures and serves with its sockets. Dropping it clears them.
#[derive(Debug)]
pub struct Bound {
    device: File,
}

impl Bound {
    /// Configures the device at `path`. All of it, and [`Bound::run`], has to be done by one thread.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` where somebody else has configured it by ioctl; invalid input where that was by netlink, where it
    /// is no NBD device, and for what no device has.
    pub fn new(path: &Path, setup: &Setup, sockets: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let device = open(path)?;
        let blocks = setup.length / setup.block_size;
        let (first, others) = sockets.split_first().ok_or_else(|| invalid("a device needs a socket"))?;
        request_of(&device, SET_SOCK, first.as_raw_fd() as u64)?;
        // From here on it is this thread's, and can be cleared without taking it from somebody else.
        let bound = Self { device };
        for socket in others {
            bound.request(SET_SOCK, socket.as_raw_fd() as u64)?;
        }
        bound.request(SET_BLKSIZE, setup.block_size)?;
        bound.request(SET_SIZE_BLOCKS, blocks)?;
        bound.request(SET_TIMEOUT, setup.timeout.map_or(0, seconds))?;
        bound.request(SET_FLAGS, u64::from(setup.flags))?;
        Ok(bound)
    }

    /// Has the kernel use the device until it is taken down or its connections are lost.
    ///
    /// # Errors
    ///
    /// What the kernel answers when it is over for another reason than that.
    pub fn run(self) -> io::Result<()> {
        self.request(DO_IT, 0)
    }

    fn request(&self, request: u64, argument: u64) -> io::Result<()> {
        request_of(&self.device, request, argument)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Without sockets there is nothing to clear, and the device is free either way.
        let _ = self.request(CLEAR_SOCK, 0);
    }
}

/// Takes the device at `path` down, whoever uses it: [`Bound::run`], on whichever thread or in whichever process,
/// returns once what is behind the device has closed the connections. One that is down is taken down.
///
/// # Errors
///
/// `NotFound` where there is no such device, and invalid input where it is another.
pub fn disconnect(path: &Path) -> io::Result<()> {
    request_of(&open(path)?, DISCONNECT, 0)
}

fn open(path: &Path) -> io::Result<File> {
    let device = File::options().read(true).write(true).open(path)?;
    let found = device.metadata()?;
    if found.file_type().is_block_device() && libc::major(found.rdev()) == MAJOR {
        return Ok(device);
    }
    Err(invalid("it is no NBD device"))
}

fn request_of(device: &File, request: u64, argument: u64) -> io::Result<()> {
    // SAFETY: the file is an NBD device, as was checked when it was opened, whose requests take numbers only.
    retry(|| unsafe { libc::ioctl(device.as_raw_fd(), request as libc::Ioctl, argument) }).map(drop)
}
