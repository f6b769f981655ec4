//! What a server sends, received into one buffer that is used again and again: short headers with as few
//! system calls as possible, long payloads to an aligned place and no further than they reach.

use std::io;

use crate::transport::Connection;

/// From this many missing bytes on, waiting for all of them in the kernel costs less than coming back for
/// each piece.
const WAIT_FOR_ALL: usize = 32 << 10;

/// Payloads begin at a multiple of this many bytes in memory: the kernel copies from there to whole pages,
/// and copies fastest between addresses that are aligned alike.
const ALIGNMENT: usize = 64;

/// Receives what a server sends.
pub(super) struct Incoming {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// How many bytes to ask the socket for at least, so that a short answer comes with one system call.
    eager: usize,
    /// How long what stands before a payload is at most times.
    prefix: usize,
}

impl Incoming {
    /// One for a connection whose payloads stand behind `prefix` bytes at most times.
    pub(super) fn new(eager: usize, prefix: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, eager: eager.max(prefix), prefix }
    }

    /// The next bytes, which come again with what is asked for next.
    pub(super) fn peek(&mut self, connection: &Connection, count: usize) -> io::Result<&[u8]> {
        self.fill(connection, count)?;
        Ok(&self.buffer[self.start..self.start + count])
    }

    /// The next bytes. A caller that asks for no more than 256 KiB at a time makes the buffer grow no faster
    /// than bytes come.
    pub(super) fn take(&mut self, connection: &Connection, count: usize) -> io::Result<&[u8]> {
        self.fill(connection, count)?;
        let at = self.start;
        self.start += count;
        Ok(&self.buffer[at..at + count])
    }

    fn fill(&mut self, connection: &Connection, count: usize) -> io::Result<()> {
        let have = self.end - self.start;
        if have >= count {
            return Ok(());
        }
        let is_payload = count >= WAIT_FOR_ALL;
        let room = (count - have).max(if is_payload { 0 } else { self.eager });
        self.make_room(have, room, if is_payload { 0 } else { self.prefix });
        while self.end - self.start < count {
            let missing = count - (self.end - self.start);
            if missing >= WAIT_FOR_ALL {
                connection.receive_exact(&mut self.buffer[self.end..self.end + missing])?;
                self.end += missing;
                continue;
            }
            let most = missing.max(if is_payload { 0 } else { self.eager });
            let until = (self.end + most).min(self.buffer.len());
            match connection.receive(&mut self.buffer[self.end..until])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                came => self.end += came,
            }
        }
        Ok(())
    }

    /// Makes sure that `room` bytes fit behind the `have` that are there, and that what stands `prefix` bytes
    /// behind the first of them is aligned, where nothing or a payload is there.
    fn make_room(&mut self, have: usize, room: usize, prefix: usize) {
        let needed = have + room + 2 * ALIGNMENT;
        if self.buffer.len() < needed {
            let mut larger = vec![0; needed];
            larger[..have].copy_from_slice(&self.buffer[self.start..self.end]);
            self.buffer = larger;
            (self.start, self.end) = (0, have);
        }
        let fits = self.buffer.len() - self.end >= room;
        let address = self.buffer.as_ptr().addr();
        if fits && have > 0 && (address + self.start + prefix).is_multiple_of(ALIGNMENT) {
            return;
        }
        let front = (address + prefix).next_multiple_of(ALIGNMENT) - address - prefix;
        if self.start != front {
            self.buffer.copy_within(self.start..self.end, front);
            (self.start, self.end) = (front, front + have);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives_whole_however_it_is_cut() {
        let sizes = [1usize, 20, 70_000, 3, 256 << 10, 28, 32 << 10, 28, (32 << 10) - 1, 5];
        let bytes: Vec<u8> = (0..sizes.iter().sum::<usize>()).map(|at| (at % 251) as u8).collect();
        for eager in [0, 64, 80 << 10] {
            for cut in [1usize << 20, 7919] {
                let (one, other) = Connection::pair().unwrap();
                let sent = bytes.clone();
                let sender = std::thread::spawn(move || {
                    for piece in sent.chunks(cut) {
                        one.send(&[piece], false).unwrap();
                    }
                });
                let mut incoming = Incoming::new(eager, 28);
                let mut at = 0;
                for size in sizes {
                    let peek = size.min(4);
                    assert_eq!(incoming.peek(&other, peek).unwrap(), &bytes[at..at + peek]);
                    let got = incoming.take(&other, size).unwrap();
                    assert!(got == &bytes[at..at + size], "{eager} {cut} {size}");
                    at += size;
                }
                let end = incoming.take(&other, 1).unwrap_err();
                assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
                sender.join().unwrap();
            }
        }
    }

    #[test]
    fn a_payload_behind_its_header_is_aligned() {
        let (one, other) = Connection::pair().unwrap();
        for eager in [0, 80 << 10] {
            let mut incoming = Incoming::new(eager, 28);
            for size in [64 << 10, 64 << 10, 100 << 10] {
                one.send(&[&[1; 28], &vec![2; size]], false).unwrap();
                incoming.take(&other, 28).unwrap();
                let payload = incoming.take(&other, size).unwrap();
                assert!(payload.as_ptr().addr().is_multiple_of(ALIGNMENT), "{eager} {size}");
            }
        }
    }
}
