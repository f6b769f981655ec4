//! TUN devices: a network device whose packets a program reads and writes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::interface::request_for;
use crate::syscall::{ioctl, retry};

/// Bytes of the header (`virtio_net_hdr`) before each packet of a device that was made with `vnet_hdr`.
pub const VNET_HEADER_LEN: usize = 10;

/// A TUN device; it disappears when this is dropped.
#[derive(Debug)]
pub struct Tun {
    file: File,
}

impl Tun {
    /// Makes a device in the calling thread's network namespace; it stays there when the thread moves on.
    ///
    /// With `vnet_hdr`, every frame begins with [`VNET_HEADER_LEN`] bytes and may be a whole TCP segment of up to
    /// 64 KiB, not yet cut into packets nor with its checksum: written to another such device as it is, it arrives
    /// whole. That is what makes a fast emulated link.
    ///
    /// # Errors
    ///
    /// Not found without `/dev/net/tun`; permission denied without `CAP_NET_ADMIN`; busy when the name is taken;
    /// invalid input for a name that cannot be.
    pub fn create(name: &str, vnet_hdr: bool) -> io::Result<Tun> {
        let mut request = request_for(name)?;
        let vnet = if vnet_hdr { libc::IFF_VNET_HDR } else { 0 };
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | vnet) as libc::c_short;
        let file = File::options().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: the descriptor is a TUN device, for which this request reads and writes one ifreq.
        unsafe { ioctl(&file, libc::TUNSETIFF, &mut request) }?;
        if vnet_hdr {
            let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
            // SAFETY: of a TUN device this request takes flags by value.
            retry(|| unsafe {
                libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload))
            })?;
        }
        Ok(Tun { file })
    }

    /// Waits for one frame that the device sends, and reads it. What does not fit the buffer is lost: give it
    /// 64 KiB and the header.
    ///
    /// # Errors
    ///
    /// What read answers.
    pub fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.file).read(frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Has the device receive one frame.
    ///
    /// # Errors
    ///
    /// `EIO` while the device is down; invalid input for what is no frame.
    pub fn write(&self, frame: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.file).write(frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
