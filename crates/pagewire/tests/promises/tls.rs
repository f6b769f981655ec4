//! TLS: what holds for every connection holds with it, and who is nobody gets nothing.

use std::sync::Arc;

use pagewire::engine::Region;
use pagewire::store::{RemoteStore, Store};

use crate::stores::{LENGTHS, check_reads, check_refuses_writes, memory, retry};
use crate::support::certificates::{Authority, anywhere_with_tls};
use crate::support::{self, file, file_region, pattern, region_at};

#[test]
fn a_region_behind_tls_keeps_the_contract() {
    let authority = Authority::new();
    let (server, client) = (authority.server(), authority.client(&["alice.example"]));
    for length in LENGTHS {
        let model = pattern(length, 3);
        let file = file(&model);
        let regions = [file_region(file.path()), Region::new("memory", Arc::new(memory(&model))).unwrap()];
        let (_server, peer) = support::serve_with(regions, &anywhere_with_tls(), server.clone());
        let peer = peer.to_string().parse().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(RemoteStore::connect(&region_at(&peer, "file"), &client).unwrap());
        check_reads("file behind TLS", &*store, &model);
        check_reads("file behind TLS, retried", &retry(&store), &model);
        check_refuses_writes("file behind TLS", &*store);
        let store = RemoteStore::connect(&region_at(&peer, "memory"), &client).unwrap();
        check_reads("memory behind TLS", &store, &model);
    }
}
