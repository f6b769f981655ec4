//! Addresses and state of network devices, in the calling thread's namespace, by the old ioctls: they need no `ip`
//! program and no netlink.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use crate::syscall::{invalid, ioctl};

/// Gives a device its address, MTU (bytes) and transmit queue (packets), and brings it up. Root of a user namespace
/// other than the first may not change a queue, which then stays as long as it is: 500 packets for a TUN device.
///
/// # Errors
///
/// Invalid input for a name or prefix length that cannot be; `ENODEV` when there is no such device; permission
/// denied without `CAP_NET_ADMIN`.
pub fn configure(name: &str, address: Ipv4Addr, prefix: u8, mtu: u32, queue_length: u32) -> io::Result<()> {
    let host_bits =
        32u32.checked_sub(u32::from(prefix)).ok_or_else(|| invalid("prefix longer than 32 bits"))?;
    let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0));
    let number =
        |value: u32| libc::c_int::try_from(value).map_err(|_| invalid("number too large for a device"));
    let socket = control_socket()?;

    let mut request = request_for(name)?;
    request.ifr_ifru.ifru_addr = socket_address(address);
    change(&socket, libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_netmask = socket_address(mask);
    change(&socket, libc::SIOCSIFNETMASK, &mut request)?;
    request.ifr_ifru.ifru_mtu = number(mtu)?;
    change(&socket, libc::SIOCSIFMTU, &mut request)?;
    // The queue length has the place of the metric in the kernel's union.
    request.ifr_ifru.ifru_metric = number(queue_length)?;
    match change(&socket, libc::SIOCSIFTXQLEN, &mut request) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    bring_up(&socket, name)
}

/// Brings the loopback device up; a fresh namespace has it down.
///
/// # Errors
///
/// Permission denied without `CAP_NET_ADMIN`.
pub fn loopback_up() -> io::Result<()> {
    bring_up(&control_socket()?, "lo")
}

fn bring_up(socket: &UdpSocket, name: &str) -> io::Result<()> {
    let mut request = request_for(name)?;
    change(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel wrote the flags, and every member of the union is valid for any bytes but the pointers.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    change(socket, libc::SIOCSIFFLAGS, &mut request)
}

/// Any IPv4 socket will do; it stands for the namespace that it was made in.
fn control_socket() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

fn change(socket: &UdpSocket, what: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the descriptor is a socket, for which the requests of this file read or write one ifreq, without
    // following a pointer in it.
    unsafe { ioctl(&socket.as_raw_fd(), what as libc::Ioctl, request) }.map(drop)
}

/// A request about the device of this name, else zero.
pub(super) fn request_for(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero and ends the name.
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room || name.bytes().any(|byte| byte == 0 || byte == b'/') {
        return Err(invalid("a device's name has 1 to 15 bytes"));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // sockaddr_in in the generic struct: two bytes of port, then the address in network order.
    let mut data = [0; 14];
    for (place, byte) in data[2..6].iter_mut().zip(address.octets()) {
        *place = byte as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}
