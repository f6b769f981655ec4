//! Clients that break the protocol or abuse it: each loses its own connection, and nobody else notices.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use pagewire::access::nbd::{NbdOptions, NbdServer};
use pagewire::address::{NbdAddress, NbdPlace};
use pagewire::store::MemoryStore;
use pagewire_core::nbd::{
    ClientFlags, CommandFlags, CommandType, Headers, OptionHeader, OptionReply, OptionReplyType,
    OptionRequest, OptionType, Request,
};

use crate::client::{Client, Random, disk, pattern, serve, wait_until};

/// A server, and a client of it that must notice nothing.
struct Stage {
    server: NbdServer,
    address: NbdAddress,
    bystander: Client,
    round: u8,
}

impl Stage {
    fn new(options: NbdOptions) -> Self {
        let (server, address) = serve([disk(Arc::new(MemoryStore::new(64 << 20)))], options);
        let bystander = Client::enter(&address, "disk", Headers::Structured);
        Self { server, address, bystander, round: 0 }
    }

    /// The bystander writes and reads, right now.
    fn check(&mut self) {
        self.round += 1;
        let bytes = pattern(100_000, self.round);
        self.bystander.write(12_345, &bytes).unwrap();
        assert!(self.bystander.read(12_345, 100_000).unwrap() == bytes);
    }

    fn raw(&self) -> TcpStream {
        let NbdPlace::Tcp { host, port } = &self.address.place else { panic!() };
        let socket = TcpStream::connect((host.as_str(), *port)).unwrap();
        socket.set_read_timeout(Some(crate::client::HANG)).unwrap();
        socket
    }

    fn only_the_bystander_is_left(&mut self) {
        wait_until("the others are gone", || self.server.connections() == 1);
        self.check();
    }
}

fn ends(socket: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn what_is_no_handshake_ends_the_connection() {
    let mut stage = Stage::new(NbdOptions::default());
    let flags = ClientFlags::FIXED_NEWSTYLE.encode();
    let with_flags = |bytes: &[u8]| [&flags[..], bytes].concat();
    let option = |option, length| with_flags(&OptionHeader { option, length }.encode());
    for (what, bytes) in [
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec()),
        ("unknown flags", ClientFlags(0x10).encode().to_vec()),
        ("zeroes", vec![0; 64]),
        ("ones", vec![0xff; 64]),
        ("an option without its magic number", with_flags(&[7; 16])),
        ("an option of 4 GiB", option(OptionType::LIST, u32::MAX)),
        ("a name that is too long", option(OptionType::EXPORT_NAME, 1 << 20)),
        ("options without the flag for them", {
            [&[0; 4][..], &OptionHeader { option: OptionType::LIST, length: 0 }.encode()].concat()
        }),
        ("an export that there is not, in the old way", {
            let mut bytes = flags.to_vec();
            OptionRequest::ExportName("none".into()).encode(&mut bytes);
            bytes
        }),
    ] {
        let mut socket = stage.raw();
        socket.write_all(&bytes).unwrap();
        assert!(ends(&mut socket), "{what}");
        stage.only_the_bystander_is_left();
    }
}

#[test]
fn half_of_anything_is_waited_for_only_so_long() {
    let options = NbdOptions { handshake_timeout: Duration::from_millis(300), ..NbdOptions::default() };
    let mut stage = Stage::new(options);
    let flags = ClientFlags::FIXED_NEWSTYLE.encode();
    for bytes in [&[][..], &flags[..2], &[&flags[..], b"IHAVE"].concat()] {
        let mut socket = stage.raw();
        socket.write_all(bytes).unwrap();
        assert!(ends(&mut socket));
        stage.check();
    }
    // One that sends a byte now and then.
    let mut slow = stage.raw();
    let bytes = [&flags[..], &OptionHeader { option: OptionType::LIST, length: 1 << 16 }.encode()].concat();
    slow.write_all(&bytes).unwrap();
    let mut sent = 0;
    while slow.write_all(&[0]).is_ok() {
        sent += 1;
        assert!(sent < 1000, "it is listened to for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    stage.only_the_bystander_is_left();
}

#[test]
fn a_long_option_is_refused_and_costs_nothing() {
    let mut stage = Stage::new(NbdOptions::default());
    let mut client = Client::connect(&stage.address);
    client.send(&OptionHeader { option: OptionType::LIST, length: 30 << 20 }.encode());
    for _ in 0..30 {
        client.send(&vec![0; 1 << 20]);
    }
    let replies = client.replies();
    assert!(matches!(replies[..], [OptionReply::Error { kind: OptionReplyType::ERR_TOO_BIG, .. }]));
    assert_eq!(client.go("disk"), Ok(()));
    stage.check();
}

#[test]
fn a_flood_of_options_ends_the_connection() {
    let mut stage = Stage::new(NbdOptions::default());
    let mut client = Client::connect(&stage.address);
    let mut bytes = Vec::new();
    (0..10_000).for_each(|_| OptionRequest::List.encode(&mut bytes));
    let reader = client.socket.try_clone().unwrap();
    let reading = std::thread::spawn(move || ends(&mut { reader }));
    // It may be cut off while it sends.
    let _ = client.socket.write_all(&bytes);
    assert!(reading.join().unwrap());
    stage.only_the_bystander_is_left();
}

#[test]
fn what_is_no_request_ends_the_connection() {
    let mut stage = Stage::new(NbdOptions::default());
    let request =
        |command, length| Request { flags: CommandFlags::NONE, command, cookie: 1, offset: 0, length };
    let encode = |request: Request, extended| {
        let mut bytes = Vec::new();
        request.encode(extended, &mut bytes);
        bytes
    };
    let mut option = Vec::new();
    OptionRequest::List.encode(&mut option);
    option.resize(Request::EXTENDED_LEN, 0);
    for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
        let extended = headers.extended();
        let flags = CommandFlags::PAYLOAD_LEN;
        let huge = Request { flags, ..request(CommandType::WRITE, 0xffff_fff0) };
        for (what, bytes) in [
            ("an option after GO", option.clone()),
            ("zeroes", vec![0; 64]),
            ("the other kind of request", encode(request(CommandType::READ, 1), !extended)),
            ("a payload of 4 GiB", encode(huge, extended)),
        ] {
            let mut client = Client::enter(&stage.address, "disk", headers);
            client.send(&bytes);
            // What is shorter than a request of the other kind is one that goes on.
            client.socket.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(client.is_cut_off(), "{what}");
            stage.only_the_bystander_is_left();
        }
    }
}

#[test]
fn half_a_request_and_half_a_payload_write_nothing_and_hold_up_nobody() {
    let mut stage = Stage::new(NbdOptions::default());
    let mut client = Client::enter(&stage.address, "disk", Headers::Simple);
    client.submit(CommandType::WRITE, CommandFlags::NONE, 0, 200_000, &[7; 1000]);
    stage.check();
    let mut other = Client::enter(&stage.address, "disk", Headers::Simple);
    other.send(&[0x25, 0x60]);
    stage.check();
    drop((client, other));
    stage.only_the_bystander_is_left();
    assert_eq!(stage.bystander.read(0, 1000), Ok(vec![0; 1000]));
}

#[test]
fn a_client_that_reads_no_replies_is_cut_off_and_holds_up_nobody() {
    let options = NbdOptions { send_timeout: Duration::from_millis(300), ..NbdOptions::default() };
    let mut stage = Stage::new(options);
    let mut deaf = Client::enter(&stage.address, "disk", Headers::Simple);
    let request = Request {
        flags: CommandFlags::NONE,
        command: CommandType::READ,
        cookie: 1,
        offset: 0,
        length: 1 << 20,
    };
    let mut bytes = Vec::new();
    (0..500).for_each(|_| request.encode(false, &mut bytes));
    // It may be cut off while it sends.
    let _ = deaf.socket.write_all(&bytes);
    stage.check();
    stage.only_the_bystander_is_left();
}

#[test]
fn too_many_connections_are_closed_at_once() {
    let options = NbdOptions { max_connections: 3, ..NbdOptions::default() };
    let mut stage = Stage::new(options);
    let _two = [Client::connect(&stage.address), Client::connect(&stage.address)];
    assert!(ends(&mut stage.raw()));
    stage.check();
}

#[test]
fn random_bytes_after_the_handshake_do_no_harm() {
    let mut stage = Stage::new(NbdOptions::default());
    let mut random = Random(0x1234_5678_9abc_def1);
    for round in 0..30 {
        let headers = [Headers::Simple, Headers::Structured, Headers::Extended][round % 3];
        let mut client = Client::enter(&stage.address, "disk", headers);
        let mut bytes = Vec::new();
        for _ in 0..40 {
            let mut next = || random.next();
            let request = Request {
                // Payloads are announced and not sent.
                flags: CommandFlags((next() & 0x1f) as u16),
                command: CommandType([0, 3, 4, 5, 6, 7, 8, 9][next() as usize % 8]),
                cookie: next(),
                offset: next() % (80 << 20),
                length: next() % (1 << 20),
            };
            // What reads is not read.
            let offset = if request.command == CommandType::WRITE_ZEROES {
                request.offset | 32 << 20
            } else {
                request.offset
            };
            if request.command != CommandType::TRIM {
                Request { offset, ..request }.encode(headers.extended(), &mut bytes);
            }
        }
        // It may be cut off while it sends.
        let _ = client.socket.write_all(&bytes);
        drop(client);
        stage.check();
    }
    stage.only_the_bystander_is_left();
}
