//! Many of something at once: connections, regions.

use std::sync::Arc;

use pagewire::access::serve::ServerOptions;
use pagewire::engine::Region;
use pagewire::store::{self, Blocking, MemoryStore, RemoteOptions, RemoteStore, Store};
use pagewire::{ByteRange, ErrorKind};
use pagewire_core::wire::{RemoteErrorKind, Reply, Request, Role};

use crate::support::raw::Raw;
use crate::support::{self, anywhere, file, file_region, patient_for, pattern, region_at, serve_with};

fn token(number: usize) -> [u8; 16] {
    let mut token = [0; 16];
    token[..8].copy_from_slice(&number.to_le_bytes());
    token
}

#[test]
fn two_hundred_clients_are_served_at_once() {
    let bytes = pattern(1 << 20, 1);
    let file = file(&bytes);
    let (server, address) = support::serve([file_region(file.path())], &anywhere());
    let mut clients: Vec<(Raw, u32)> = (0..200)
        .map(|number| {
            let (raw, handle, _) = Raw::opened(&address, token(number), "file");
            (raw, handle)
        })
        .collect();
    assert_eq!(server.connections(), 200);
    for (number, (raw, handle)) in clients.iter_mut().enumerate() {
        let start = number as u64 * 4096;
        let ranges = vec![ByteRange::new(start, start + 8192)];
        raw.send(9, &Request::Read { handle: *handle, epoch: 1, ranges });
    }
    for (number, (raw, _)) in clients.iter_mut().enumerate() {
        let got: Vec<u8> = raw.all_data(9).into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert!(got == bytes[number * 4096..number * 4096 + 8192]);
    }
    drop(clients);
    support::wait_until("all are gone", || server.connections() == 0);
}

#[test]
fn one_connection_too_many_is_told_so_and_the_others_stay() {
    let file = file(&pattern(65536, 2));
    let options = ServerOptions { max_connections: 6, ..ServerOptions::default() };
    let (server, address) = serve_with([file_region(file.path())], &anywhere(), options);
    let mut clients: Vec<Raw> =
        (0..6).map(|number| Raw::greeted(&address, Role::Primary, token(number))).collect();
    for _ in 0..20 {
        let mut refused = Raw::connect(&address);
        let frames = refused.rest();
        let Reply::Error(error) = Reply::decode(&frames[0].0, &frames[0].1).unwrap() else {
            panic!("no error")
        };
        assert_eq!((error.kind, error.retry), (RemoteErrorKind::Busy, true), "{error}");
    }
    let error = RemoteStore::connect(&region_at(&address, "file"), &patient_for(500)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(1, &Request::Ping(vec![number as u8]));
        assert_eq!(client.reply(1), Reply::Pong(vec![number as u8]));
    }
    drop(clients);
    support::wait_until("there is room", || server.connections() == 0);
    let remote = RemoteStore::connect(&region_at(&address, "file"), &patient_for(5000)).unwrap();
    assert_eq!(remote.read_bytes(ByteRange::new(0, 5), 1).unwrap(), pattern(5, 2));
}

#[test]
fn many_regions_are_listed_described_and_opened() {
    const COUNT: usize = 2500;
    let longest = format!("{:0>255}", "z");
    let name = |number: usize| match number {
        0 => longest.clone(),
        1 => "ein/Name mit Leerzeichen, und ü".to_owned(),
        number => format!("region-{number}"),
    };
    let regions = (0..COUNT).map(|number| {
        let store = MemoryStore::new(number as u64);
        Region::new(&name(number), Arc::new(store)).unwrap()
    });
    let (_server, address) = support::serve(regions, &anywhere());
    let listed = store::list(&address, &RemoteOptions::default()).unwrap();
    assert_eq!(listed.len(), COUNT);
    let mut names: Vec<(String, u64)> = (0..COUNT).map(|number| (name(number), number as u64)).collect();
    names.sort();
    let told: Vec<(String, u64)> = listed.iter().map(|(name, info)| (name.clone(), info.length)).collect();
    assert_eq!(told, names);
    for number in [0, 1, 2, 1023, 1024, 1025, 2499] {
        let region = region_at(&address, &name(number));
        let described = store::describe(&region, &RemoteOptions::default()).unwrap();
        assert_eq!(described.length, number as u64);
        let options = RemoteOptions { connections: 1, ..RemoteOptions::default() };
        let opened = RemoteStore::connect(&format!("{region}").parse().unwrap(), &options).unwrap();
        assert_eq!(opened.info().id, described.id);
    }
    let error = store::describe(&region_at(&address, "region-0"), &RemoteOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}
