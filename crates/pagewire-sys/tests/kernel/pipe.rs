use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use pagewire_sys::pipe::Pipe;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251 + at / 4096) as u8).collect()
}

fn contents(mut file: &std::fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn bytes_go_from_a_socket_to_a_file_in_order() {
    let (from, to) = UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    let bytes = pattern(3_000_001);
    let mut pipe = Pipe::new(64).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (&from).write_all(&bytes).unwrap());
        let (mut received, mut written) = (0, 0);
        while written < bytes.len() as u64 {
            if received < bytes.len() as u64 {
                received += match pipe.receive(to.as_fd(), bytes.len() as u64 - received) {
                    Ok(came) => came,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                    Err(error) => panic!("{error}"),
                };
            }
            assert_eq!(pipe.len(), received - written);
            // Part of it stays, and is joined by what comes next.
            let length = if received < bytes.len() as u64 { pipe.len() / 2 + 1 } else { pipe.len() };
            let (moved, result) = pipe.write_at(file.as_fd(), written, length);
            result.unwrap();
            assert_eq!(moved, length);
            written += moved;
        }
    });
    assert!(pipe.is_empty());
    assert!(contents(&file) == bytes);
}

#[test]
fn a_pipe_is_full_of_small_parts_and_says_so() {
    let (mut from, to) = UnixStream::pair().unwrap();
    let mut pipe = Pipe::new(4).unwrap();
    for byte in 0..6 {
        from.write_all(&[byte]).unwrap();
    }
    let mut received = 0;
    let error = loop {
        match pipe.receive(to.as_fd(), 100) {
            Ok(came) => received += came,
            Err(error) => break error,
        }
        assert!(received <= 4);
    };
    assert_eq!((error.kind(), received, pipe.len()), (ErrorKind::WouldBlock, 4, 4));
    let mut bytes = [0; 2];
    pipe.read_exact(&mut bytes).unwrap();
    assert_eq!((bytes, pipe.len()), ([0, 1], 2));
    assert_eq!(pipe.read_exact(&mut [0; 3]).unwrap_err().kind(), ErrorKind::InvalidInput);
    // Its places are free again.
    while pipe.len() < 4 {
        pipe.receive(to.as_fd(), 4 - pipe.len()).unwrap();
    }
    let mut bytes = [0; 4];
    pipe.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [2, 3, 4, 5]);
    drop(from);
    assert_eq!(pipe.receive(to.as_fd(), 100).unwrap(), 0, "the end");
}

#[test]
fn the_end_comes_behind_what_was_sent_before() {
    let (mut from, to) = UnixStream::pair().unwrap();
    from.write_all(b"last").unwrap();
    drop(from);
    let mut pipe = Pipe::new(16).unwrap();
    assert_eq!(pipe.receive(to.as_fd(), 100).unwrap(), 4);
    assert_eq!(pipe.receive(to.as_fd(), 100).unwrap(), 0, "also where something is in the pipe");
    assert_eq!(pipe.len(), 4);
}

#[test]
fn what_a_file_does_not_take_stays_in_the_pipe() {
    let (mut from, to) = UnixStream::pair().unwrap();
    let mut pipe = Pipe::new(64).unwrap();
    let bytes = pattern(20_000);
    from.write_all(&bytes).unwrap();
    while pipe.len() < 20_000 {
        pipe.receive(to.as_fd(), 20_000).unwrap();
    }
    // A file that cannot grow past two pages.
    // SAFETY: the name ends with a zero, the descriptor is new; the seals are numbers.
    let file = unsafe {
        let file = libc::memfd_create(c"short".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        assert!(file >= 0);
        let file = OwnedFd::from_raw_fd(file);
        let file = std::fs::File::from(file);
        file.set_len(8192).unwrap();
        let raw = std::os::fd::AsRawFd::as_raw_fd(&file);
        assert_eq!(libc::fcntl(raw, libc::F_ADD_SEALS, libc::F_SEAL_GROW), 0);
        file
    };
    let (written, result) = pipe.write_at(file.as_fd(), 0, 20_000);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert!(written <= 8192 && pipe.len() == 20_000 - written, "{written}");
    let mut rest = vec![0; pipe.len() as usize];
    pipe.read_exact(&mut rest).unwrap();
    assert!([&contents(&file)[..written as usize], &rest].concat() == bytes);
    // One that cannot be written to takes nothing.
    from.write_all(b"more").unwrap();
    pipe.receive(to.as_fd(), 4).unwrap();
    let read_only = std::fs::File::open("/dev/null").unwrap();
    let (written, result) = pipe.write_at(read_only.as_fd(), 0, 4);
    assert_eq!((written, result.is_err(), pipe.len()), (0, true, 4));
    let (written, result) = pipe.write_at(file.as_fd(), u64::MAX, 4);
    assert_eq!((written, result.unwrap_err().kind()), (0, ErrorKind::InvalidInput));
}
