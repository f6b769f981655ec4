//! What each command does, with each kind of headers.

use pagewire::access::nbd::{NbdOptions, NbdServer};
use pagewire::address::NbdAddress;
use pagewire::store::MemoryStore;
use pagewire_core::nbd::option::InfoRequest;
use pagewire_core::nbd::request::StatusPayload;
use pagewire_core::nbd::{
    CommandFlags, CommandType, ErrorNumber, Headers, MAX_PAYLOAD, OptionReply, OptionReplyType,
    OptionRequest, TransmissionFlags,
};
use proptest::prelude::*;

use crate::client::{Client, disk, file, pattern, serve};

const ALL: [Headers; 3] = [Headers::Simple, Headers::Structured, Headers::Extended];
const NONE: CommandFlags = CommandFlags::NONE;

fn memory(size: u64) -> (NbdServer, NbdAddress) {
    serve([disk(std::sync::Arc::new(MemoryStore::new(size)))], NbdOptions::default())
}

#[test]
fn bytes_of_a_file_are_read_with_all_headers_and_sizes() {
    let bytes = pattern(3_000_001, 1);
    for writable in [false, true] {
        let (_file, store) = file(&bytes, writable);
        let (_server, address) = serve([disk(store)], NbdOptions::default());
        for headers in ALL {
            let mut client = Client::enter(&address, "disk", headers);
            assert_eq!(client.size, bytes.len() as u64);
            for (offset, length) in [
                (0, 1),
                (1, 511),
                (4095, 4098),
                (100, 70_000),
                (0, 3_000_001),
                (2_999_999, 2),
                (7, 1_000_000),
            ] {
                let got = client.read(offset, length).unwrap();
                assert!(got == bytes[offset as usize..][..length as usize], "{headers:?} {offset}+{length}");
            }
            assert_eq!(client.read(3_000_001, 0), Ok(vec![]));
        }
    }
}

#[test]
fn one_chunk_is_given_where_one_is_asked_for() {
    let (_server, address) = memory(8 << 20);
    for headers in [Headers::Structured, Headers::Extended] {
        let mut client = Client::enter(&address, "", headers);
        assert!(client.flags.contains(TransmissionFlags::SEND_DF));
        client.write(100_000, &pattern(1000, 1)).unwrap();
        let given = client.ask(CommandType::READ, CommandFlags::DF, 0, 1 << 20).unwrap();
        assert_eq!((given.chunks, given.holes.len()), (1, 0));
        assert!(given.bytes[100_000..101_000] == pattern(1000, 1));
        // Else zeroes cost no bytes.
        let given = client.ask(CommandType::READ, NONE, 0, 8 << 20).unwrap();
        assert!(given.chunks > 1 && !given.holes.is_empty());
        assert!(given.bytes[100_000..101_000] == pattern(1000, 1));
    }
}

#[test]
fn what_is_written_is_read_back_with_all_headers() {
    for headers in ALL {
        let (_server, address) = memory(4 << 20);
        let mut client = Client::enter(&address, "disk", headers);
        let bytes = pattern(1_500_000, 3);
        client.write(77, &bytes).unwrap();
        client.write_with(CommandFlags::FUA, 4096, &pattern(9000, 5)).unwrap();
        let mut expected = vec![0; 4 << 20];
        expected[77..77 + bytes.len()].copy_from_slice(&bytes);
        expected[4096..4096 + 9000].copy_from_slice(&pattern(9000, 5));
        for (flags, offset, length) in
            [(NONE, 10_000u64, 30_000u64), (CommandFlags::NO_HOLE, 1_000_000, 300_000)]
        {
            client.ask(CommandType::WRITE_ZEROES, flags, offset, length).unwrap();
            expected[offset as usize..][..length as usize].fill(0);
        }
        client.ask(CommandType::TRIM, NONE, 200_000, 70_000).unwrap();
        // Whole pages are forgotten; what is no whole page is as it was.
        expected[200_704..266_240].fill(0);
        client.ask(CommandType::CACHE, NONE, 0, 1 << 20).unwrap();
        client.flush().unwrap();
        assert!(client.read(0, 4 << 20).unwrap() == expected, "{headers:?}");
        client.disconnect();
    }
}

#[test]
fn each_command_has_its_errors() {
    let (_server, address) = memory(1 << 20);
    for headers in ALL {
        let mut client = Client::enter(&address, "disk", headers);
        let end = 1 << 20;
        for (command, flags, offset, length, error) in [
            (CommandType::READ, NONE, end, 1, ErrorNumber::EINVAL),
            (CommandType::READ, CommandFlags::REQ_ONE, 0, 1, ErrorNumber::EINVAL),
            (CommandType::READ, NONE, 0, u64::from(MAX_PAYLOAD) + 1, ErrorNumber::EINVAL),
            (CommandType::WRITE_ZEROES, NONE, end - 1, 2, ErrorNumber::ENOSPC),
            (CommandType::WRITE_ZEROES, CommandFlags::DF, 0, 1, ErrorNumber::EINVAL),
            (CommandType::TRIM, NONE, end, 4096, ErrorNumber::EINVAL),
            (CommandType::CACHE, NONE, end, 4096, ErrorNumber::EINVAL),
            (CommandType::FLUSH, NONE, 0, 1, ErrorNumber::EINVAL),
            (CommandType::BLOCK_STATUS, NONE, 0, 4096, ErrorNumber::EINVAL),
            (CommandType::RESIZE, NONE, 0, 4096, ErrorNumber::EINVAL),
            (CommandType(0xabc), NONE, 0, 4096, ErrorNumber::EINVAL),
        ] {
            assert_eq!(
                client.ask(command, flags, offset, length).err(),
                Some(error),
                "{headers:?} {command}"
            );
        }
        assert_eq!(client.write(end - 5, &[1; 10]), Err(ErrorNumber::ENOSPC));
        assert_eq!(client.write_with(CommandFlags(1 << 11), 0, &[1; 10]), Err(ErrorNumber::EINVAL));
        // The payload of what was refused was read: the next request is understood.
        assert_eq!(client.read(0, 4), Ok(vec![0; 4]));
    }
}

#[test]
fn a_whole_that_is_too_large_overflows() {
    let (_server, address) = memory(1 << 30);
    let mut client = Client::enter(&address, "disk", Headers::Structured);
    let too_large = client.ask(CommandType::READ, CommandFlags::DF, 0, u64::from(MAX_PAYLOAD) + 1);
    assert_eq!(too_large.err(), Some(ErrorNumber::EOVERFLOW));
    let largest = client.ask(CommandType::READ, CommandFlags::DF, 0, u64::from(MAX_PAYLOAD)).unwrap();
    assert!(largest.bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn zeroes_are_fast_where_they_are_only_noted() {
    let (_file, store) = file(&pattern(1 << 20, 1), true);
    let (_server, address) = serve([disk(store)], NbdOptions::default());
    let mut client = Client::enter(&address, "disk", Headers::Structured);
    assert!(client.flags.contains(TransmissionFlags::SEND_FAST_ZERO));
    client.ask(CommandType::WRITE_ZEROES, CommandFlags::FAST_ZERO, 0, 1 << 19).unwrap();
    let both = CommandFlags::FAST_ZERO.with(CommandFlags::NO_HOLE);
    let slow = client.ask(CommandType::WRITE_ZEROES, both, 1 << 19, 4096);
    assert_eq!(slow.err(), Some(ErrorNumber::ENOTSUP));
    assert!(client.read(0, 1 << 19).unwrap().iter().all(|byte| *byte == 0));
    assert!(client.read(1 << 19, 4096).unwrap() == pattern(1 << 20, 1)[1 << 19..][..4096], "it was altered");
}

#[test]
fn a_read_only_server_refuses_to_write() {
    let region = disk(std::sync::Arc::new(MemoryStore::new(1 << 20)));
    let (_server, address) = serve([region], NbdOptions { read_only: true, ..NbdOptions::default() });
    let mut client = Client::enter(&address, "disk", Headers::Structured);
    assert!(client.flags.contains(TransmissionFlags::READ_ONLY));
    assert!(!client.flags.contains(TransmissionFlags::SEND_TRIM));
    assert_eq!(client.write(0, &[1; 100_000]), Err(ErrorNumber::EPERM));
    for command in [CommandType::TRIM, CommandType::WRITE_ZEROES] {
        assert!(client.ask(command, NONE, 0, 4096).is_err());
    }
    assert_eq!(client.read(0, 2), Ok(vec![0; 2]));
    assert_eq!(client.flush(), Ok(()), "there is nothing to flush");
}

#[test]
fn holes_and_dirty_pages_are_told() {
    let size: u64 = 1 << 20;
    let (_server, address) = memory(size);
    let mut other = Client::enter(&address, "disk", Headers::Simple);
    let contexts = ["qemu:dirty-bitmap:unflushed", "base:allocation", "qemu:dirty-bitmap:since-1"];
    for headers in [Headers::Structured, Headers::Extended] {
        let mut client = Client::enter_with(&address, "disk", headers, &contexts);
        other.ask(CommandType::WRITE_ZEROES, NONE, 0, size).unwrap();
        other.flush().unwrap();
        other.write(65_536, &pattern(4097, 1)).unwrap();
        let given = client.ask(CommandType::BLOCK_STATUS, NONE, 0, size).unwrap();
        let written = vec![(65_536, 0), (8192, 1), (size - 65_536 - 8192, 0)];
        let allocated = vec![(65_536, 3), (65_536, 0), (size - 2 * 65_536, 3)];
        assert_eq!(given.extents[0], (1, written), "{headers:?}");
        assert_eq!(given.extents[1], (2, allocated), "{headers:?}");
        assert_eq!(given.extents[2].0, 3);
        // From the middle, and only one.
        let given = client.ask(CommandType::BLOCK_STATUS, CommandFlags::REQ_ONE, 70_000, 100_000).unwrap();
        assert_eq!(given.extents[0], (1, vec![(73_728 - 70_000, 1)]));
        assert_eq!(given.extents[1], (2, vec![(131_072 - 70_000, 0)]));
        other.flush().unwrap();
        let given = client.ask(CommandType::BLOCK_STATUS, NONE, 0, size).unwrap();
        assert_eq!(given.extents[0], (1, vec![(size, 0)]), "what is flushed is not dirty");
        assert!(given.extents[2].1.iter().any(|(_, flags)| *flags == 1), "it has changed since epoch 1");
    }
}

#[test]
fn a_payload_chooses_among_the_contexts() {
    let (_server, address) = memory(1 << 20);
    let contexts = ["base:allocation", "qemu:dirty-bitmap:unflushed"];
    let mut client = Client::enter_with(&address, "disk", Headers::Extended, &contexts);
    assert!(client.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
    let ask = |client: &mut Client, contexts: &[u32]| {
        let mut payload = Vec::new();
        StatusPayload { length: 8192, contexts: contexts.into() }.encode(&mut payload);
        let length = payload.len() as u64;
        let cookie = client.submit(CommandType::BLOCK_STATUS, NONE, 4096, length, &payload);
        client.answer(cookie, 4096, 0)
    };
    assert_eq!(ask(&mut client, &[2]).unwrap().extents, [(2, vec![(8192, 0)])]);
    assert_eq!(ask(&mut client, &[2, 1]).unwrap().extents.len(), 2);
    for bad in [&[][..], &[3], &[1, 1], &[1; 100]] {
        assert_eq!(ask(&mut client, bad).err(), Some(ErrorNumber::EINVAL), "{bad:?}");
    }
    assert_eq!(client.read(0, 1), Ok(vec![0]));
}

#[test]
fn requests_that_come_together_are_all_answered() {
    let bytes = pattern(1 << 20, 9);
    let (_file, store) = file(&bytes, false);
    let (_server, address) = serve([disk(store)], NbdOptions::default());
    let mut client = Client::enter(&address, "disk", Headers::Simple);
    let cookies: Vec<u64> =
        (0..200).map(|n| client.submit(CommandType::READ, NONE, n * 4096, 4096, &[])).collect();
    for (n, cookie) in cookies.into_iter().enumerate() {
        let got = client.answer(cookie, n as u64 * 4096, 4096).unwrap();
        assert!(got.bytes == bytes[n * 4096..][..4096]);
    }
}

#[test]
fn exports_are_found_by_name_and_the_only_one_is_the_default() {
    let two = ["one", "two"].map(|name| {
        pagewire::engine::Region::new(name, std::sync::Arc::new(MemoryStore::new(4096))).unwrap()
    });
    let (_server, address) = serve(two, NbdOptions::default());
    let mut client = Client::connect(&address);
    let replies = client.option(&OptionRequest::List);
    let names = replies.iter().filter_map(|reply| match reply {
        OptionReply::Server { name, .. } => Some(name.as_str()),
        _ => None,
    });
    assert_eq!(names.collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(client.go(""), Err(OptionReplyType::ERR_UNKNOWN));
    assert_eq!(client.go("three"), Err(OptionReplyType::ERR_UNKNOWN));
    let info = client.option(&OptionRequest::Info(InfoRequest { name: "two".into(), wanted: vec![] }));
    assert_eq!(info.len(), 2);
    assert_eq!(client.go("two"), Ok(()));
    assert_eq!(client.read(0, 4096), Ok(vec![0; 4096]));
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, usize, u8),
    Zero(u64, u64, bool),
    Read(u64, u64),
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    let (size, longest) = (300_000u64, 70_000u64);
    prop_oneof![
        (0..size, 1..longest, any::<u8>()).prop_map(|(at, length, seed)| Op::Write(
            at,
            length as usize,
            seed
        )),
        (0..size, 1..longest, any::<bool>()).prop_map(|(at, length, hole)| Op::Zero(at, length, hole)),
        (0..size, 1..longest).prop_map(|(at, length)| Op::Read(at, length)),
        Just(Op::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Two clients of one export see one disk, which is what a `Vec` would be.
    #[test]
    fn clients_share_a_disk_that_is_like_memory(
        ops in proptest::collection::vec((op(), any::<bool>()), 1..40), kind in 0usize..3,
    ) {
        const SIZE: usize = 300_000;
        let mut model = vec![0; SIZE];
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(SIZE as u64).unwrap();
        let (_server, address) = serve([disk(crate::client::open(file.path(), true))], NbdOptions::default());
        let mut clients =
            [Client::enter(&address, "disk", ALL[kind]), Client::enter(&address, "disk", ALL[(kind + 1) % 3])];
        for (op, second) in ops {
            let client = &mut clients[usize::from(second)];
            let length = |at: u64, length: u64| length.min(SIZE as u64 - at);
            match op {
                Op::Write(at, count, seed) => {
                    let bytes = pattern(length(at, count as u64) as usize, seed);
                    client.write(at, &bytes).unwrap();
                    model[at as usize..][..bytes.len()].copy_from_slice(&bytes);
                }
                Op::Zero(at, count, hole) => {
                    let count = length(at, count);
                    let flags = NONE.with_if(CommandFlags::NO_HOLE, !hole);
                    client.ask(CommandType::WRITE_ZEROES, flags, at, count).unwrap();
                    model[at as usize..][..count as usize].fill(0);
                }
                Op::Read(at, count) => {
                    let count = length(at, count);
                    prop_assert!(client.read(at, count).unwrap() == model[at as usize..][..count as usize]);
                }
                Op::Flush => client.flush().unwrap(),
            }
        }
        prop_assert!(clients[0].read(0, SIZE as u64).unwrap() == model);
        clients.into_iter().for_each(Client::disconnect);
        drop(_server);
        let reopened = crate::client::open(file.path(), false);
        let bytes = pagewire::store::Blocking::read_bytes(
            &*reopened,
            pagewire::ByteRange::new(0, SIZE as u64),
            pagewire::store::Store::info(&*reopened).epoch,
        );
        prop_assert!(bytes.unwrap() == model, "what clients left is not what the file holds");
    }
}
