//! Options of sockets that the standard library lacks, and what the kernel knows about a connection.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use linux_raw_sys::net as raw;

use crate::syscall::{check, invalid, retry};

/// For how long data that was sent may stay unacknowledged before the kernel closes a TCP connection. Zero is the
/// system's default. Whole milliseconds, rounded up.
///
/// # Errors
///
/// What setsockopt answers; invalid input when it is too long.
pub fn set_user_timeout(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
    let value = libc::c_int::try_from(milliseconds).map_err(|_| invalid("user timeout too long"))?;
    set(socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, value)
}

/// Probes a TCP connection that has been idle for `idle`, then every `interval`; after `count` probes without an
/// answer it is closed. Whole seconds, rounded up.
///
/// # Errors
///
/// What setsockopt answers; invalid input when a number is zero or too large.
pub fn set_keepalive(
    socket: BorrowedFd<'_>,
    idle: Duration,
    interval: Duration,
    count: u32,
) -> io::Result<()> {
    let seconds = |time: Duration| {
        libc::c_int::try_from(time.as_nanos().div_ceil(1_000_000_000))
            .map_err(|_| invalid("keepalive too long"))
    };
    let count = libc::c_int::try_from(count).map_err(|_| invalid("too many keepalive probes"))?;
    set(socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(idle)?)?;
    set(socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds(interval)?)?;
    set(socket, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, count)?;
    set(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)
}

/// Bytes that were sent and not yet acknowledged by the peer's kernel (TCP), or not yet read by the peer (UNIX).
///
/// # Errors
///
/// What the SIOCOUTQ ioctl answers.
pub fn queued_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SIOCOUTQ has the same number as TIOCOUTQ, which libc knows.
    // SAFETY: for every kind of file that has it, this request writes one int.
    retry(|| unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) })?;
    Ok(bytes.max(0) as usize)
}

/// What the kernel knows about a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpInfo {
    /// Round-trip time, smoothed.
    pub rtt: Duration,
    /// Its mean deviation.
    pub rtt_deviation: Duration,
    /// The least that was seen lately; zero when there was none yet.
    pub min_rtt: Duration,
    /// Segments that may be in flight.
    pub congestion_window: u32,
    /// Payload bytes of a full segment.
    pub segment_size: u32,
    /// Segments that were sent again, ever.
    pub retransmitted: u32,
    /// Bytes a second that the receiver lately got; 0 when not known.
    pub delivery_rate: u64,
    /// Payload bytes that were sent, with those sent again.
    pub bytes_sent: u64,
    /// Payload bytes that the peer acknowledged.
    pub bytes_acknowledged: u64,
    /// Payload bytes that were received.
    pub bytes_received: u64,
    /// How long there was something on its way that was not acknowledged.
    pub busy: Duration,
    /// How long of that the receiver had no room for more.
    pub receiver_full: Duration,
}

/// Asks the kernel about a TCP connection. What an older kernel does not tell is 0.
///
/// # Errors
///
/// What getsockopt answers: unsupported for other sockets.
pub fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    // SAFETY: the struct is of integers, for which zeroes are valid.
    let info: raw::tcp_info = unsafe { get(socket, libc::IPPROTO_TCP, libc::TCP_INFO) }?;
    let microseconds = |value: u32| Duration::from_micros(u64::from(value));
    Ok(TcpInfo {
        rtt: microseconds(info.tcpi_rtt),
        rtt_deviation: microseconds(info.tcpi_rttvar),
        // The kernel says all ones when it has no sample.
        min_rtt: if info.tcpi_min_rtt == u32::MAX { Duration::ZERO } else { microseconds(info.tcpi_min_rtt) },
        congestion_window: info.tcpi_snd_cwnd,
        segment_size: info.tcpi_snd_mss,
        retransmitted: info.tcpi_total_retrans,
        delivery_rate: info.tcpi_delivery_rate,
        bytes_sent: info.tcpi_bytes_sent,
        bytes_acknowledged: info.tcpi_bytes_acked,
        bytes_received: info.tcpi_bytes_received,
        busy: Duration::from_micros(info.tcpi_busy_time),
        receiver_full: Duration::from_micros(info.tcpi_rwnd_limited),
    })
}

/// The process that connected (or that made the pair, or that listens, as seen from the other side) of a UNIX
/// socket. It may have ended since, or have passed the socket on.
///
/// # Errors
///
/// What getsockopt answers; not found when the peer is none of this process's PID namespace.
pub fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the struct is of integers, for which zeroes are valid.
    let peer: libc::ucred = unsafe { get(socket, libc::SOL_SOCKET, libc::SO_PEERCRED) }?;
    match u32::try_from(peer.pid) {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "the peer's process is not known")),
    }
}

fn set(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of `value`.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size) })
        .map(drop)
}

/// An option's value; what the kernel did not write is zero.
///
/// # Safety
///
/// Zeroes, and any other bytes, must be a valid `T`.
unsafe fn get<T>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes to the value.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut size)
    })?;
    // SAFETY: it is all zeroes but for what the kernel wrote, and the caller says that any bytes are valid.
    Ok(unsafe { value.assume_init() })
}
