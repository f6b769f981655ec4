//! Frames on a connection: received into one buffer that is used again and again.

use std::io;
use std::time::Instant;

use pagewire_core::wire::data::PREFIX_LEN;
use pagewire_core::wire::{HEADER_LEN, Header, Malformed};

use crate::transport::Connection;

/// From this many missing bytes on, waiting for all of them in the kernel costs less than coming
/// back for each piece.
const WAIT_FOR_ALL: usize = 32 << 10;

/// Payloads are to begin at a multiple of this many bytes in memory: the kernel copies from there to
/// whole pages, and copies fastest between addresses that are aligned alike.
const ALIGNMENT: usize = 64;

/// A buffer that has grown beyond this is given back when the frame is dealt with.
const KEEP: usize = 2 << 20;

/// Why there is no next frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The connection has ended or failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came is no frame.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Receives frames. A body stays in the buffer until the next frame is asked for, so that bulk data
/// goes from the socket to its place through one buffer.
pub(crate) struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    eager: usize,
    deadline: Option<Instant>,
}

impl FrameReader {
    /// A reader that asks the socket for at least `eager` bytes at a time, so that a small frame
    /// (or several) comes with one system call.
    pub(crate) fn new(eager: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, eager, deadline: None }
    }

    /// From `deadline` on nothing more is received, however little at a time and however often it
    /// comes; none is never.
    pub(crate) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// The next frame: its header and its body.
    ///
    /// A long body makes the buffer grow no faster than its bytes come, so a peer that announces
    /// much and sends little costs little.
    pub(crate) fn next(&mut self, connection: &Connection) -> Result<(Header, &[u8]), FrameError> {
        if self.start == self.end && self.buffer.len() > KEEP {
            self.buffer = Vec::new();
            (self.start, self.end) = (0, 0);
        }
        self.fill(connection, HEADER_LEN)?;
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(&self.buffer[self.start..self.start + HEADER_LEN]);
        let header = Header::decode(&bytes)?;
        let whole = HEADER_LEN + header.length as usize;
        self.fill(connection, whole)?;
        let body = self.start + HEADER_LEN..self.start + whole;
        self.start += whole;
        Ok((header, &self.buffer[body]))
    }

    /// Receives until `count` bytes are there.
    fn fill(&mut self, connection: &Connection, count: usize) -> io::Result<()> {
        while self.end - self.start < count {
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let have = self.end - self.start;
            let missing = count - have;
            // Room for what is missing and a little of what follows, so that little has to be moved
            // to the front of the buffer later.
            let room = missing.max(self.eager).min(have.max(64 << 10).max(self.eager));
            self.make_room(have, room);
            if missing >= WAIT_FOR_ALL && missing <= self.buffer.len() - self.end {
                connection.receive_exact(&mut self.buffer[self.end..self.end + missing])?;
                self.end += missing;
            } else {
                match connection.receive(&mut self.buffer[self.end..self.end + room])? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    got => self.end += got,
                }
            }
        }
        Ok(())
    }

    /// Makes sure that `room` bytes fit behind the `have` bytes that are there, and that a data frame
    /// which begins with these has its payload aligned.
    fn make_room(&mut self, have: usize, room: usize) {
        let needed = have + room + ALIGNMENT;
        if self.buffer.len() < needed {
            let mut larger = vec![0; needed];
            larger[..have].copy_from_slice(&self.buffer[self.start..self.end]);
            self.buffer = larger;
            (self.start, self.end) = (0, have);
        }
        let payload = self.buffer.as_ptr().addr() + PREFIX_LEN;
        let front = payload.next_multiple_of(ALIGNMENT) - payload;
        if self.start != front {
            self.buffer.copy_within(self.start..self.end, front);
            (self.start, self.end) = (front, front + have);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagewire_core::wire::FrameType;
    use std::time::Duration;

    fn frame(kind: FrameType, body: &[u8]) -> Vec<u8> {
        let mut bytes = Header { length: body.len() as u32, kind, id: 5 }.encode().to_vec();
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn frames_of_all_sizes_arrive_whole_however_they_are_cut() {
        let bodies: Vec<Vec<u8>> =
            [0usize, 1, 15, 70_000, 3, 400_000, 64 << 10, 0].iter().map(|&n| vec![n as u8; n]).collect();
        for eager in [1, 40, 16 << 10, 128 << 10] {
            for cut in [1usize << 20, 7919] {
                let (one, other) = Connection::pair().unwrap();
                let bytes: Vec<u8> = bodies.iter().flat_map(|body| frame(FrameType::LIST, body)).collect();
                let sender = std::thread::spawn(move || {
                    for piece in bytes.chunks(cut) {
                        one.send(&[piece], false).unwrap();
                    }
                });
                let mut reader = FrameReader::new(eager);
                for body in &bodies {
                    let (header, got) = reader.next(&other).unwrap();
                    assert_eq!((header.id, got), (5, &body[..]));
                }
                let end = reader.next(&other).unwrap_err();
                assert!(matches!(end, FrameError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof));
                sender.join().unwrap();
            }
        }
    }

    #[test]
    fn a_frame_that_announces_much_and_sends_little_costs_little() {
        let (one, other) = Connection::pair().unwrap();
        other.set_timeouts(None, Some(Duration::from_millis(20))).unwrap();
        let header = Header { length: FrameType::READ.longest_body(), kind: FrameType::READ, id: 0 };
        one.send(&[&header.encode()], false).unwrap();
        let mut reader = FrameReader::new(4096);
        assert!(reader.next(&other).is_err());
        assert!(reader.buffer.capacity() <= 128 << 10, "{}", reader.buffer.capacity());
    }

    #[test]
    fn an_oversized_frame_is_refused_by_its_header() {
        let (one, other) = Connection::pair().unwrap();
        let header = Header { length: u32::MAX, kind: FrameType::READ, id: 0 };
        one.send(&[&header.encode()], false).unwrap();
        assert!(matches!(FrameReader::new(64).next(&other), Err(FrameError::Malformed(_))));
    }
}
