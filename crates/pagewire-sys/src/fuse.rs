//! Which FUSE the kernel speaks, asked of the kernel itself and without a mount.
//!
//! A file system is made by the calls for mounting and never put anywhere: the kernel greets whoever serves it with the
//! first message of the protocol, which is read, and then all of it goes with its descriptors. Nothing is seen of it in
//! any folder, and nothing is left.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use linux_raw_sys::general as raw;

use crate::event::{PollItem, poll};
use crate::syscall::{check, new_descriptor};

/// How the kernel has introduced itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// The version of the protocol: its major and minor numbers.
    pub version: (u32, u32),
    /// Its features, as the bits of `FUSE_INIT`.
    pub features: u64,
}

impl Greeting {
    /// Whether the kernel can read and write files below a mount by itself.
    pub fn has_passthrough(&self) -> bool {
        self.features & PASSTHROUGH != 0
    }
}

const PASSTHROUGH: u64 = 1 << 37;
/// There are more than 32 features.
const EXTENDED: u64 = 1 << 30;
const INIT: u32 = 26;
/// Bytes before the body of a request, and the least that a reader has to have room for.
const HEADER: usize = 40;
const ROOM: usize = 8192;

/// Asks the kernel.
///
/// # Errors
///
/// Permission denied without `CAP_SYS_ADMIN` or for who may not open `/dev/fuse`; not found without that; `ENOSYS`
/// before Linux 5.2; timed out where the kernel says nothing.
pub fn greeting() -> io::Result<Greeting> {
    let context = open_context(c"fuse")?;
    let mut device =
        File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/fuse")?;
    let number = CString::new(device.as_raw_fd().to_string())?;
    for (key, value) in
        [(c"fd", number.as_c_str()), (c"rootmode", c"40000"), (c"user_id", c"0"), (c"group_id", c"0")]
    {
        configure(&context, raw::fsconfig_command::FSCONFIG_SET_STRING, Some((key, value)))?;
    }
    configure(&context, raw::fsconfig_command::FSCONFIG_CMD_CREATE, None)?;
    if poll(&mut [PollItem::readable(device.as_fd())], Some(Duration::from_secs(1)))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut request = vec![0; ROOM];
    let length = device.read(&mut request)?;
    let greeting = parse(&request[..length]).ok_or(io::ErrorKind::InvalidData)?;
    // Who serves it goes first, so that nobody waits for an answer when the file system ends.
    drop(device);
    drop(context);
    Ok(greeting)
}

/// The greeting in the first request of a connection.
fn parse(request: &[u8]) -> Option<Greeting> {
    let word = |at: usize| Some(u32::from_ne_bytes(request.get(at..at + 4)?.try_into().ok()?));
    if word(4)? != INIT {
        return None;
    }
    let mut features = u64::from(word(HEADER + 12)?);
    if features & EXTENDED != 0 {
        features |= u64::from(word(HEADER + 16)?) << 32;
    }
    Some(Greeting { version: (word(HEADER)?, word(HEADER + 4)?), features })
}

fn open_context(kind: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a zero; the descriptor that is returned is new and nobody else's.
    unsafe {
        new_descriptor(|| libc::syscall(libc::SYS_fsopen, kind.as_ptr(), raw::FSOPEN_CLOEXEC) as libc::c_int)
    }
}

fn configure(
    context: &OwnedFd,
    command: raw::fsconfig_command,
    pair: Option<(&CStr, &CStr)>,
) -> io::Result<()> {
    let (key, value) =
        pair.map_or((std::ptr::null(), std::ptr::null()), |(key, value)| (key.as_ptr(), value.as_ptr()));
    // SAFETY: both texts end with a zero, or are null where the command takes none.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command as u32, key, value, 0) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_greets_and_nothing_is_left() {
        let connections = || std::fs::read_dir("/sys/fs/fuse/connections").map_or(0, Iterator::count);
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let (before, mounted) = (connections(), mounts());
        let greeting = greeting().unwrap();
        assert_eq!(greeting.version.0, 7);
        assert!(greeting.version.1 >= 31, "{greeting:?}");
        assert_eq!(mounts(), mounted);
        // Other tests may have mounts of their own meanwhile, so only many would be told from none.
        for _ in 0..50 {
            super::greeting().unwrap();
        }
        assert!(connections() < before + 25, "connections are left");
    }

    #[test]
    fn only_a_greeting_is_one() {
        let mut request = vec![0; 104];
        request[4..8].copy_from_slice(&INIT.to_ne_bytes());
        request[40..44].copy_from_slice(&7u32.to_ne_bytes());
        request[44..48].copy_from_slice(&41u32.to_ne_bytes());
        request[52..56].copy_from_slice(&5u32.to_ne_bytes());
        request[56..60].copy_from_slice(&(1u32 << 5).to_ne_bytes());
        // Without the bit that says so, there are no further features.
        assert_eq!(parse(&request), Some(Greeting { version: (7, 41), features: 5 }));
        request[52..56].copy_from_slice(&(1u32 << 30).to_ne_bytes());
        assert!(parse(&request).unwrap().has_passthrough());
        assert_eq!(parse(&request[..50]), None);
        request[4] = 1;
        assert_eq!(parse(&request), None);
        assert_eq!(parse(&[]), None);
    }
}
