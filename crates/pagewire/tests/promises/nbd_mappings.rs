//! Exports of NBD servers as memory: faults, the background pull, and what is written.

use pagewire::PullOrder;
use pagewire::access::uffd::{Mapping, WritableMapping, WriteOptions};
use pagewire::address::StoreAddress;

use crate::support::nbd_servers::{By, NbdServer, options};
use crate::support::{file, has, has_userfaultfd, map_options, pattern};

#[test]
fn an_export_is_mapped_and_pulled() {
    if !has("nbd") || !has_userfaultfd() {
        return;
    }
    let model = pattern(6 << 20, 3);
    let file = file(&model);
    for (by, arguments) in [
        (By::Tcp, &[][..]),
        (By::Unix, &["--filter=multi-conn", "multi-conn-mode=disable"][..]),
        // Demand goes by a connection of its own, past a slow pull.
        (By::Unix, &["--filter=delay", "rdelay=2ms"][..]),
    ] {
        let server = NbdServer::nbdkit_file(by, file.path(), arguments);
        let address = StoreAddress::Nbd(server.address());
        for order in [PullOrder::None, PullOrder::Sequential] {
            let waits = order == PullOrder::Sequential;
            let mapping = Mapping::open_with(&address, &map_options(order), &options()).unwrap();
            for at in [0, 4_000_000, 12_345, model.len() - 1] {
                assert_eq!(mapping[at], model[at]);
            }
            if waits {
                mapping.wait().unwrap();
            }
            assert!(mapping[..] == model[..]);
        }
    }
}

#[test]
fn what_is_written_to_a_mapping_is_in_the_export_when_it_is_flushed() {
    if !has("nbd") || !has_userfaultfd() {
        return;
    }
    let mut model = pattern(2 << 20, 3);
    let file = file(&model);
    let server = NbdServer::nbdkit_file(By::Tcp, file.path(), &[]);
    let address = StoreAddress::Nbd(server.address());
    let mapping = WritableMapping::open_with(&address, &WriteOptions::default(), &options()).unwrap();
    for (round, at) in [0usize, 1_000_000, model.len() - 100].into_iter().enumerate() {
        mapping.write(at as u64, &[round as u8; 100]).unwrap();
        model[at..at + 100].fill(round as u8);
        mapping.flush().unwrap();
        assert!(std::fs::read(file.path()).unwrap() == model, "round {round}");
    }
}
