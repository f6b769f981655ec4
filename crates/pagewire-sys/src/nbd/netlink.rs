//! NBD devices by generic netlink.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::message::{Message, Request, attribute, attributes, messages, number, short};
use super::{Setup, seconds};
use crate::socket::receive;
use crate::syscall::{check, new_descriptor, retry_count};

/// The family and its group of events, as the kernel names them.
const FAMILY: &str = "nbd";
const GROUP: &[u8] = b"nbd_mc_group\0";
const VERSION: u8 = 1;

/// What the family can be asked for.
const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;
const LINK_DEAD: u8 = 4;
const STATUS: u8 = 5;

/// Its attributes.
const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const DEVICE_LIST: u16 = 9;
const BACKEND_IDENTIFIER: u16 = 10;

/// What a list of sockets, and of devices, is made of.
const ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

/// Room for what the kernel says at once: the state of all devices is the longest.
const ROOM: usize = 64 << 10;

/// A socket by which devices are configured.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    family: u16,
    group: Option<u32>,
}

/// The events of connections that have died.
#[derive(Debug)]
pub struct Deaths {
    socket: OwnedFd,
    family: u16,
}

impl Control {
    /// Opens one.
    ///
    /// # Errors
    ///
    /// `NotFound` where the kernel has no NBD devices, or the module is not loaded.
    pub fn open() -> io::Result<Self> {
        let socket = netlink()?;
        let control = (libc::GENL_ID_CTRL as u16, libc::CTRL_CMD_GETFAMILY as u8);
        let request =
            Request::new(control.0, control.1, 1, 1).text(libc::CTRL_ATTR_FAMILY_NAME as u16, FAMILY);
        let (mut family, mut group) = (None, None);
        ask(&socket, request, |attributes_found| {
            for (kind, value) in attributes(attributes_found)? {
                match i32::from(kind) {
                    libc::CTRL_ATTR_FAMILY_ID => family = Some(short(value, 0)?),
                    libc::CTRL_ATTR_MCAST_GROUPS => group = group_in(value)?,
                    _ => {}
                }
            }
            Ok(())
        })?;
        let family = family.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { socket, family, group })
    }

    /// Makes a block device of what answers at the other ends of `sockets`, and returns its number. Where `index`
    /// is none, the kernel chooses a device that is free. The kernel has sockets of its own from then on.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` where the device is in use, `PermissionDenied` without `CAP_SYS_ADMIN`.
    pub fn connect(&self, index: Option<u32>, setup: &Setup, sockets: &[BorrowedFd<'_>]) -> io::Result<u32> {
        let Setup { length, block_size, flags, timeout, dead_connection_timeout, backend } = setup;
        let mut request = self.request(CONNECT);
        if let Some(index) = index {
            request = request.u32(INDEX, index);
        }
        request = request
            .u64(SIZE_BYTES, *length)
            .u64(BLOCK_SIZE_BYTES, *block_size)
            .u64(SERVER_FLAGS, u64::from(*flags))
            .u64(DEAD_CONN_TIMEOUT, seconds(*dead_connection_timeout));
        if let Some(timeout) = timeout {
            request = request.u64(TIMEOUT, seconds(*timeout));
        }
        request = with_sockets(request, sockets).text(BACKEND_IDENTIFIER, backend);
        let mut connected = index;
        ask(&self.socket, request, |found| {
            if let Some(value) = attribute(found, INDEX)? {
                connected = Some(number(value, 0)?);
            }
            Ok(())
        })?;
        connected
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel does not say which device"))
    }

    /// Takes a device down, whoever uses it: everybody who does is answered with errors from then on. One that is not
    /// there, or is down already, is taken down.
    ///
    /// # Errors
    ///
    /// `PermissionDenied` without `CAP_SYS_ADMIN`.
    pub fn disconnect(&self, index: u32) -> io::Result<()> {
        let request = self.request(DISCONNECT).u32(INDEX, index);
        match ask(&self.socket, request, |_| Ok(())) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    /// Puts sockets in the place of connections that have died, as far as there are any. `backend` is what the device
    /// was made with.
    ///
    /// # Errors
    ///
    /// Invalid input where the device is not there, is not connected, or was made with another `backend`.
    pub fn reconnect(&self, index: u32, backend: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let request = self.request(RECONFIGURE).u32(INDEX, index).text(BACKEND_IDENTIFIER, backend);
        ask(&self.socket, with_sockets(request, sockets), |_| Ok(()))
    }

    /// The devices that there are, and which of them are connected.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub fn devices(&self) -> io::Result<Vec<(u32, bool)>> {
        let mut devices = Vec::new();
        ask(&self.socket, self.request(STATUS), |found| {
            let Some(list) = attribute(found, DEVICE_LIST)? else { return Ok(()) };
            for (_, item) in attributes(list)? {
                let Some(index) = attribute(item, DEVICE_INDEX)? else { continue };
                let connected =
                    attribute(item, DEVICE_CONNECTED)?.is_some_and(|value| value.first() == Some(&1));
                devices.push((number(index, 0)?, connected));
            }
            Ok(())
        })?;
        Ok(devices)
    }

    /// Is told from now on of connections that die.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the kernel does not tell.
    pub fn deaths(&self) -> io::Result<Deaths> {
        let group = self.group.ok_or(io::ErrorKind::Unsupported)?;
        let socket = netlink()?;
        let size = size_of_val(&group) as libc::socklen_t;
        // SAFETY: the kernel reads `size` bytes of `group`, a local.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                (&raw const group).cast(),
                size,
            )
        })?;
        Ok(Deaths { socket, family: self.family })
    }

    fn request(&self, command: u8) -> Request {
        Request::new(self.family, command, VERSION, 1)
    }
}

impl Deaths {
    /// Waits until connections die, and returns the numbers of their devices.
    ///
    /// # Errors
    ///
    /// What recv answers; events that nobody took in time are lost, and the kernel says so (`ENOBUFS`).
    pub fn wait(&self) -> io::Result<Vec<u32>> {
        let mut bytes = vec![0; ROOM];
        let received = receive(self.socket.as_fd(), &mut bytes)?;
        let mut devices = Vec::new();
        for message in messages(&bytes[..received])? {
            if let Message::Generic { family, command: LINK_DEAD, attributes, .. } = message
                && family == self.family
                && let Some(index) = attribute(attributes, INDEX)?
            {
                devices.push(number(index, 0)?);
            }
        }
        Ok(devices)
    }
}

impl AsFd for Deaths {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn with_sockets(request: Request, sockets: &[BorrowedFd<'_>]) -> Request {
    request.nested(SOCKETS, |mut list| {
        for socket in sockets {
            list = list.nested(ITEM, |item| item.u32(SOCKET_FD, socket.as_raw_fd().cast_unsigned()));
        }
        list
    })
}

/// The number of the group of events in a list of groups.
fn group_in(list: &[u8]) -> io::Result<Option<u32>> {
    for (_, group) in attributes(list)? {
        if attribute(group, libc::CTRL_ATTR_MCAST_GRP_NAME as u16)? == Some(GROUP)
            && let Some(id) = attribute(group, libc::CTRL_ATTR_MCAST_GRP_ID as u16)?
        {
            return number(id, 0).map(Some);
        }
    }
    Ok(None)
}

/// A socket with an address: what the kernel tells all, it does not tell one without.
fn netlink() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: takes numbers, and returns a new descriptor.
    let socket = unsafe { new_descriptor(|| libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_GENERIC)) }?;
    // SAFETY: zeroes are a valid address: the kernel chooses one.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    let size = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of the address, a local.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) })?;
    Ok(socket)
}

/// Sends a request, and gives `take` the attributes of each answer until its end.
fn ask(socket: &OwnedFd, request: Request, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let request = request.finish();
    // SAFETY: the kernel reads the bytes of the request, which is borrowed.
    retry_count(|| unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) })?;
    let mut bytes = vec![0; ROOM];
    loop {
        let received = receive(socket.as_fd(), &mut bytes)?;
        for message in messages(&bytes[..received])? {
            match message {
                Message::End { error: 0, .. } => return Ok(()),
                Message::End { error, .. } => return Err(io::Error::from_raw_os_error(error)),
                Message::Generic { attributes, .. } => take(attributes)?,
                Message::Other => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_events_is_found_among_others() {
        let entry = |list: Request, name: &str, id: u32| {
            list.nested(1, |group| {
                group
                    .u32(libc::CTRL_ATTR_MCAST_GRP_ID as u16, id)
                    .text(libc::CTRL_ATTR_MCAST_GRP_NAME as u16, name)
            })
        };
        let message = entry(entry(Request::new(16, 1, 1, 1), "config", 3), "nbd_mc_group", 9).finish();
        let Message::Generic { attributes, .. } = messages(&message).unwrap().remove(0) else {
            panic!("it is one");
        };
        assert_eq!(group_in(attributes).unwrap(), Some(9));
        assert_eq!(group_in(&[]).unwrap(), None);
    }

    #[test]
    fn sockets_are_a_list_of_items() {
        let stream = std::os::unix::net::UnixStream::pair().unwrap();
        let sockets = [stream.0.as_fd(), stream.1.as_fd()];
        let message = with_sockets(Request::new(30, CONNECT, 1, 1), &sockets).finish();
        let Message::Generic { attributes: found, .. } = messages(&message).unwrap().remove(0) else {
            panic!("it is one");
        };
        let list = attribute(found, SOCKETS).unwrap().unwrap();
        let numbers: Vec<u32> = attributes(list)
            .unwrap()
            .into_iter()
            .map(|(kind, item)| {
                assert_eq!(kind, ITEM);
                number(attribute(item, SOCKET_FD).unwrap().unwrap(), 0).unwrap()
            })
            .collect();
        assert_eq!(numbers, sockets.map(|socket| socket.as_raw_fd() as u32));
    }
}
