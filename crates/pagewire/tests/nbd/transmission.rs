//! The transmission phase alone, on a socket that has had no handshake: what a kernel is given.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use pagewire::ErrorKind;
use pagewire::access::nbd::{Export, ExportOptions, Headers, TransmissionFlags, serve_transmission};
use pagewire::store::MemoryStore;
use pagewire_core::nbd::{CommandFlags, CommandType, ReplyHeader, Request};

use crate::client::disk;

fn request(socket: &mut UnixStream, command: CommandType, offset: u64, length: u64, payload: &[u8]) {
    let mut bytes = Vec::new();
    Request { flags: CommandFlags::NONE, command, cookie: 9, offset, length }.encode(false, &mut bytes);
    bytes.extend_from_slice(payload);
    socket.write_all(&bytes).unwrap();
}

fn done(socket: &mut UnixStream) {
    let mut header = [0; ReplyHeader::SIMPLE_LEN];
    socket.read_exact(&mut header).unwrap();
    assert_eq!(ReplyHeader::decode(Headers::Simple, &header), Ok(ReplyHeader::done(9)));
}

#[test]
fn several_sockets_of_one_export_share_its_lease_and_end_with_their_clients() {
    let region = disk(Arc::new(MemoryStore::new(1 << 20)));
    let export = Export::new(region.clone(), ExportOptions::default());
    let (mut sockets, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let attachment = export.attach(true).unwrap();
        assert_eq!((attachment.size(), attachment.is_writable()), (1 << 20, true));
        let flags = attachment.flags(Headers::Simple);
        assert!(flags.contains(TransmissionFlags::CAN_MULTI_CONN.with(TransmissionFlags::SEND_FLUSH)));
        assert!(!flags.contains(TransmissionFlags::SEND_DF));
        let (ours, theirs) = UnixStream::pair().unwrap();
        threads.push(std::thread::spawn(move || serve_transmission(attachment, ours, Headers::Simple)));
        theirs.set_read_timeout(Some(crate::client::HANG)).unwrap();
        sockets.push(theirs);
    }
    assert!(region.writer("somebody").is_err());
    request(&mut sockets[0], CommandType::WRITE, 100, 5, b"hello");
    done(&mut sockets[0]);
    request(&mut sockets[1], CommandType::READ, 100, 5, &[]);
    done(&mut sockets[1]);
    let mut bytes = [0; 5];
    sockets[1].read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    let epoch = region.info().epoch;
    request(&mut sockets[1], CommandType::FLUSH, 0, 0, &[]);
    done(&mut sockets[1]);
    assert_eq!(region.info().epoch, epoch + 1);
    request(&mut sockets[0], CommandType::DISC, 0, 0, &[]);
    // One leaves as it should, one breaks the protocol.
    sockets[1].write_all(&[0; 28]).unwrap();
    let second = threads.pop().unwrap().join().unwrap();
    assert_eq!(second.unwrap_err().kind(), ErrorKind::Protocol);
    threads.pop().unwrap().join().unwrap().unwrap();
}

#[test]
fn who_may_not_write_reads_and_takes_no_lease() {
    let region = disk(Arc::new(MemoryStore::new(4096)));
    let export = Export::new(region.clone(), ExportOptions::default());
    let attachment = export.attach(false).unwrap();
    assert!(!attachment.is_writable());
    assert!(attachment.flags(Headers::Simple).contains(TransmissionFlags::READ_ONLY));
    drop(region.writer("somebody").unwrap());
}
