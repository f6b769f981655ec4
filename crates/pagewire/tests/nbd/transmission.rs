//! The transmission phase alone, on a socket that has had no handshake: what a kernel is given.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use pagewire::ErrorKind;
use pagewire::access::nbd::{Export, ExportOptions, Headers, TransmissionFlags, serve_transmission};
use pagewire::store::MemoryStore;
use pagewire_core::nbd::{CommandFlags, CommandType};

use crate::client::{Client, disk};

#[test]
fn several_sockets_of_one_export_share_its_lease_and_end_with_their_clients() {
    let region = disk(Arc::new(MemoryStore::new(1 << 20)));
    let export = Export::new(region.clone(), ExportOptions::default());
    let (mut clients, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let attachment = export.attach(true).unwrap();
        assert_eq!((attachment.size(), attachment.is_writable()), (1 << 20, true));
        let flags = attachment.flags(Headers::Simple);
        assert!(flags.contains(TransmissionFlags::CAN_MULTI_CONN.with(TransmissionFlags::SEND_FLUSH)));
        assert!(!flags.contains(TransmissionFlags::SEND_DF));
        let (ours, theirs) = UnixStream::pair().unwrap();
        threads.push(std::thread::spawn(move || serve_transmission(attachment, ours, Headers::Simple)));
        theirs.set_read_timeout(Some(crate::client::HANG)).unwrap();
        clients.push(Client::of(theirs, Headers::Simple));
    }
    assert!(region.writer("somebody").is_err());
    clients[0].write(100, b"hello").unwrap();
    assert_eq!(clients[1].read(100, 5).unwrap(), b"hello");
    let epoch = region.info().epoch;
    clients[1].flush().unwrap();
    assert_eq!(region.info().epoch, epoch + 1);
    clients[0].submit(CommandType::DISC, CommandFlags::NONE, 0, 0, &[]);
    // One leaves as it should, one breaks the protocol.
    clients[1].send(&[0; 28]);
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
