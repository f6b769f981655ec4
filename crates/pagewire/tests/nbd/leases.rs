//! All clients of an export are one writer, and there is no other.

use std::sync::Arc;
use std::time::Duration;

use pagewire::access::nbd::{NbdOptions, NbdServer};
use pagewire::engine::Region;
use pagewire::store::{Blocking, MemoryStore};
use pagewire::{ByteRange, ErrorKind};
use pagewire_core::nbd::{CommandFlags, ErrorNumber, Headers, TransmissionFlags};

use crate::client::{Client, disk, file, open, pattern, serve, wait_until};

fn memory() -> Arc<Region> {
    disk(Arc::new(MemoryStore::new(1 << 20)))
}

fn is_read_only(client: &Client) -> bool {
    client.flags.contains(TransmissionFlags::READ_ONLY)
}

fn with_lapse(milliseconds: u64) -> NbdOptions {
    NbdOptions { lapse: Duration::from_millis(milliseconds), ..NbdOptions::default() }
}

#[test]
fn the_lease_is_held_from_the_first_client_to_the_last_and_the_lapse() {
    let region = memory();
    // Longer than the test takes, however busy the machine is.
    let (_server, address) = serve([region.clone()], with_lapse(60_000));
    drop(region.writer("somebody").unwrap());
    let one = Client::enter(&address, "disk", Headers::Simple);
    let two = Client::enter(&address, "disk", Headers::Structured);
    assert!(!is_read_only(&one) && !is_read_only(&two));
    let refused = region.writer("somebody").err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.to_string().contains("NBD clients of 'disk'"), "{refused}");
    one.disconnect();
    assert_eq!(region.writer("somebody").err().unwrap().kind(), ErrorKind::Busy, "one is still there");
    two.disconnect();
    let refused = region.writer("somebody").err().unwrap();
    assert!(refused.to_string().contains("lapses in"), "{refused}");
}

#[test]
fn a_lease_that_nobody_comes_back_for_lapses() {
    let region = memory();
    let (_server, address) = serve([region.clone()], with_lapse(50));
    Client::enter(&address, "disk", Headers::Simple).disconnect();
    wait_until("the lease lapses", || region.writer("somebody").is_ok());
}

#[test]
fn a_client_that_comes_back_within_the_lapse_goes_on() {
    let region = memory();
    let (server, address) = serve([region.clone()], with_lapse(60_000));
    let mut one = Client::enter(&address, "disk", Headers::Simple);
    one.write(0, b"kept").unwrap();
    one.disconnect();
    let mut again = Client::enter(&address, "disk", Headers::Simple);
    assert!(!is_read_only(&again));
    assert_eq!(again.read(0, 4), Ok(b"kept".to_vec()));
    again.disconnect();
    // Nobody can come back to a server that is gone.
    drop(server);
    drop(region.writer("somebody").unwrap());
}

#[test]
fn while_somebody_else_writes_the_export_is_read_only() {
    let region = memory();
    let (_server, address) = serve([region.clone()], NbdOptions::default());
    let writer = region.writer("a pw peer").unwrap();
    writer.write_bytes(0, b"first").unwrap();
    writer.flush_all().unwrap();
    let mut early = Client::enter(&address, "disk", Headers::Structured);
    assert!(is_read_only(&early));
    assert!(!early.flags.contains(TransmissionFlags::CAN_MULTI_CONN), "others may come to another epoch");
    assert_eq!(early.write(0, b"no"), Err(ErrorNumber::EPERM));
    writer.write_bytes(0, b"later").unwrap();
    writer.flush_all().unwrap();
    let mut late = Client::enter(&address, "disk", Headers::Structured);
    assert_eq!(early.read(0, 5), Ok(b"first".to_vec()), "a client has one epoch");
    assert_eq!(late.read(0, 5), Ok(b"later".to_vec()));
    drop(writer);
    let mut writes = Client::enter(&address, "disk", Headers::Structured);
    assert!(!is_read_only(&writes));
    writes.write(0, b"third").unwrap();
    assert_eq!(writes.flush(), Ok(()));
    assert_eq!(early.read(0, 5), Ok(b"first".to_vec()));
    assert_eq!(late.read(0, 5), Ok(b"later".to_vec()));
}

#[test]
fn a_flush_by_one_covers_what_others_have_written() {
    let (_file, store) = file(&vec![0; 1 << 20], true);
    let region = disk(store);
    let (_server, address) = serve([region.clone()], NbdOptions::default());
    let mut one = Client::enter(&address, "disk", Headers::Simple);
    let mut two = Client::enter(&address, "disk", Headers::Extended);
    assert!(one.flags.contains(TransmissionFlags::CAN_MULTI_CONN));
    let bytes = pattern(100_000, 4);
    one.write(5000, &bytes).unwrap();
    assert!(two.read(5000, 100_000).unwrap() == bytes, "what one has written the other reads at once");
    let epoch = region.info().epoch;
    let range = ByteRange::new(5000, 105_000);
    two.flush().unwrap();
    assert_eq!(region.info().epoch, epoch + 1);
    let pin = region.pin().unwrap();
    let mut got = vec![0; 100_000];
    let at_once = region.read_at_once(range, pin.epoch(), &mut got).unwrap();
    assert!(at_once == pagewire::store::AtOnce::Bytes && got == bytes, "readers of the epoch see it");
}

#[test]
fn fua_is_a_flush() {
    let region = memory();
    let (_server, address) = serve([region.clone()], NbdOptions::default());
    for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
        let mut client = Client::enter(&address, "disk", headers);
        let epoch = region.info().epoch;
        client.write(0, b"one").unwrap();
        assert_eq!(region.info().epoch, epoch);
        client.write_with(CommandFlags::FUA, 10, b"two").unwrap();
        assert_eq!(region.info().epoch, epoch + 1);
        client.ask(pagewire_core::nbd::CommandType::WRITE_ZEROES, CommandFlags::FUA, 0, 4096).unwrap();
        assert_eq!(region.info().epoch, epoch + 2);
        client.disconnect();
    }
}

#[test]
fn what_was_not_flushed_is_when_the_last_client_leaves_or_is_gone() {
    for disconnects in [true, false] {
        let region = memory();
        let (_server, address) = serve([region.clone()], NbdOptions::default());
        let mut client = Client::enter(&address, "disk", Headers::Simple);
        let epoch = region.info().epoch;
        client.write(0, b"kept").unwrap();
        if disconnects {
            client.disconnect();
        } else {
            drop(client);
        }
        wait_until("it is flushed", || region.info().epoch == epoch + 1);
    }
}

#[test]
fn a_server_that_ends_answers_what_has_come_and_flushes() {
    let (path, store) = file(&vec![0; 8 << 20], true);
    let (server, address) = serve([disk(store)], NbdOptions::default());
    let mut client = Client::enter(&address, "disk", Headers::Simple);
    let bytes = pattern(3 << 20, 7);
    client.write(0, &bytes).unwrap();
    let idle = Client::enter(&address, "disk", Headers::Structured);
    let looking = Client::connect(&address);
    drop(server);
    assert!(client.is_cut_off());
    drop((idle, looking));
    let reopened = open(path.path(), false);
    let epoch = pagewire::store::Store::info(&*reopened).epoch;
    assert!(reopened.read_bytes(ByteRange::new(0, 3 << 20), epoch).unwrap() == bytes);
}

#[test]
fn two_servers_of_one_region_are_two_writers() {
    let region = memory();
    let (_one, first) = serve([region.clone()], NbdOptions::default());
    let (_two, second) = serve([region], NbdOptions::default());
    let writes = Client::enter(&first, "disk", Headers::Simple);
    let reads = Client::enter(&second, "disk", Headers::Simple);
    assert!(!is_read_only(&writes) && is_read_only(&reads));
}

#[test]
fn a_server_needs_sense_in_its_addresses() {
    let server = NbdServer::new([memory()], NbdOptions::default()).unwrap();
    for (address, words) in [
        ("nbd://127.0.0.1:0/disk", "leave out the name"),
        ("nbds://127.0.0.1:0", "--tls-cert"),
        ("nbds://127.0.0.1:0?tls-certificates=/x", "--tls-cert"),
    ] {
        let error = server.listen(&address.parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{address}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("nbd+unix:///?socket={}", folder.path().join("s").display());
    let bound = server.listen(&socket.parse().unwrap()).unwrap();
    assert_eq!(bound.to_string(), socket);
    let twice = server.listen(&socket.parse().unwrap()).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Busy, "{twice}");
    drop(server);
    assert!(!folder.path().join("s").exists(), "the socket is left behind");
}
