use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pagewire_sys::socket::{
    MAX_DESCRIPTORS, peer_pid, queued_bytes, receive, receive_exact, receive_with_fds, send_all_vectored,
    send_fds, send_file, send_vectored, set_keepalive, set_user_timeout, tcp_info,
};

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

#[test]
fn many_parts_arrive_as_one_stream() {
    let (client, server) = tcp_pair();
    // More parts than one call takes, some empty, some large enough that the kernel stops within them.
    let parts: Vec<Vec<u8>> = (0..300)
        .map(|part: usize| vec![part as u8; if part.is_multiple_of(7) { 0 } else { part * 77 }])
        .collect();
    let expected = parts.concat();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            send_all_vectored(client.as_fd(), &slices, true).unwrap();
            send_all_vectored(client.as_fd(), &[b"", b"end", b""], false).unwrap();
            send_all_vectored(client.as_fd(), &[], false).unwrap();
        });
        let mut received = vec![0; expected.len()];
        receive_exact(server.as_fd(), &mut received).unwrap();
        assert!(received == expected);
        let mut end = [0; 3];
        receive_exact(server.as_fd(), &mut end).unwrap();
        assert_eq!(&end, b"end");
    });
    assert_eq!(send_vectored(client.as_fd(), &[b"ab", b"", b"cde"], false).unwrap(), 5);
    let mut buffer = [0; 10];
    assert_eq!(receive(server.as_fd(), &mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"abcde");
}

#[test]
fn a_peer_that_is_gone_is_an_error_and_no_signal() {
    let (client, server) = UnixStream::pair().unwrap();
    (&server).write_all(b"half").unwrap();
    drop(server);
    let mut buffer = [0; 8];
    let error = receive_exact(client.as_fd(), &mut buffer).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(receive(client.as_fd(), &mut buffer).unwrap(), 0);
    // Rust ignores SIGPIPE: have it kill the process for once, in a child.
    crate::support::Child::fork(|| {
        // SAFETY: sets the default action.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let error = send_all_vectored(client.as_fd(), &[b"x"], false).unwrap_err();
        error.kind() == io::ErrorKind::BrokenPipe
    })
    .succeed();
}

#[test]
fn a_full_socket_that_does_not_block_says_so() {
    let (client, _server) = UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    let part = vec![0; 1 << 20];
    let error = loop {
        match send_vectored(client.as_fd(), &[&part, &part], false) {
            Ok(sent) => assert!(sent > 0),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(queued_bytes(client.as_fd()).unwrap() > 0);
    assert_eq!(receive(client.as_fd(), &mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_file_is_sent_from_where_one_says() {
    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..100_000u32).map(|byte| (byte % 253) as u8).collect();
    file.write_all(&bytes).unwrap();
    let (client, server) = tcp_pair();
    let mut sent = 0;
    while sent < 50_000 {
        let more = send_file(client.as_fd(), file.as_fd(), 40_000 + sent, 50_000 - sent).unwrap();
        assert!(more > 0);
        sent += more;
    }
    let mut received = vec![0; 50_000];
    receive_exact(server.as_fd(), &mut received).unwrap();
    assert!(received == bytes[40_000..90_000]);
    assert_eq!(send_file(client.as_fd(), file.as_fd(), 100_000, 1).unwrap(), 0, "the end of the file");
    assert_eq!(
        send_file(client.as_fd(), file.as_fd(), u64::MAX, 1).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}

#[test]
fn options_are_set_and_the_connection_is_known() {
    let (client, server) = tcp_pair();
    let option = |level, name| {
        let mut value: libc::c_int = 0;
        let mut size = size_of_val(&value) as libc::socklen_t;
        // SAFETY: writes one int.
        let result = unsafe {
            use std::os::fd::AsRawFd;
            libc::getsockopt(client.as_raw_fd(), level, name, (&raw mut value).cast(), &mut size)
        };
        assert_eq!(result, 0);
        value
    };
    set_user_timeout(client.as_fd(), Duration::from_micros(1_500_100)).unwrap();
    assert_eq!(option(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT), 1501);
    set_keepalive(client.as_fd(), Duration::from_secs(7), Duration::from_millis(2500), 4).unwrap();
    assert_eq!(option(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE), 7);
    assert_eq!(option(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL), 3);
    assert_eq!(option(libc::IPPROTO_TCP, libc::TCP_KEEPCNT), 4);
    assert_eq!(option(libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
    assert!(set_user_timeout(client.as_fd(), Duration::MAX).is_err());
    assert!(set_keepalive(client.as_fd(), Duration::ZERO, Duration::from_secs(1), 1).is_err());

    send_all_vectored(client.as_fd(), &[&[1; 1000]], false).unwrap();
    receive_exact(server.as_fd(), &mut [0; 1000]).unwrap();
    let info = tcp_info(client.as_fd()).unwrap();
    assert_eq!(info.bytes_sent, 1000);
    assert!(info.rtt > Duration::ZERO && info.rtt < Duration::from_secs(5), "{info:?}");
    assert!(info.congestion_window > 0 && info.segment_size > 0, "{info:?}");
    assert_eq!(tcp_info(server.as_fd()).unwrap().bytes_received, 1000);
    let (unix, _) = UnixStream::pair().unwrap();
    assert!(tcp_info(unix.as_fd()).is_err());
}

#[test]
fn descriptors_are_passed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut reader, writer) = io::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    assert_eq!(send_fds(ours.as_fd(), b"hello", &[writer.as_fd(), file.as_fd()]).unwrap(), 5);
    drop(writer);
    let mut buffer = [0; 16];
    let (bytes, fds) = receive_with_fds(theirs.as_fd(), &mut buffer, 5).unwrap();
    assert_eq!((&buffer[..bytes], fds.len()), (&b"hello"[..], 2));
    for fd in &fds {
        use std::os::fd::AsRawFd;
        // SAFETY: takes numbers only.
        assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }, libc::FD_CLOEXEC);
    }
    let mut fds = fds.into_iter();
    File::from(fds.next().unwrap()).write_all(b"through").unwrap();
    let mut through = String::new();
    reader.read_to_string(&mut through).unwrap();
    assert_eq!(through, "through");

    // Bytes alone, an end, and what cannot be sent.
    send_fds(ours.as_fd(), b"x", &[]).unwrap();
    assert_eq!(receive_with_fds(theirs.as_fd(), &mut buffer, 0).unwrap().0, 1);
    assert!(send_fds(ours.as_fd(), b"", &[file.as_fd()]).is_err());
    let many: Vec<BorrowedFd<'_>> = vec![file.as_fd(); MAX_DESCRIPTORS + 1];
    assert!(send_fds(ours.as_fd(), b"x", &many).is_err());
    send_fds(ours.as_fd(), b"x", &many[1..]).unwrap();
    assert_eq!(receive_with_fds(theirs.as_fd(), &mut buffer, usize::MAX).unwrap().1.len(), MAX_DESCRIPTORS);
    drop(ours);
    assert_eq!(receive_with_fds(theirs.as_fd(), &mut buffer, 1).unwrap().0, 0);
}

#[test]
fn more_descriptors_than_expected_are_refused_and_closed() {
    for room in 0..3 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send_fds(ours.as_fd(), b"x", &[writer.as_fd(); 3]).unwrap();
        drop(writer);
        let error = receive_with_fds(theirs.as_fd(), &mut [0], room).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        // Every copy of the writer is closed when the reader sees the end.
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
    }
}

#[test]
fn the_peer_of_a_unix_socket_has_a_process() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert_eq!(peer_pid(ours.as_fd()).unwrap(), std::process::id());
    let (client, _server) = tcp_pair();
    assert!(peer_pid(client.as_fd()).is_err());
}
