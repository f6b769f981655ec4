//! Exports through TLS, of nbdkit, which has another library for it.

use std::path::Path;

use pagewire::ErrorKind;
use pagewire::address::{NbdAddress, NbdTls};
use pagewire::store::{Identity, NbdStore, RemoteOptions};

use crate::nbd_stores::check_stream;
use crate::stores::{check_reads, check_writes};
use crate::support::certificates::Authority;
use crate::support::nbd_servers::{By, NbdServer, options};
use crate::support::{file, has, pattern};

/// A folder as libnbd, nbdkit and qemu want it: with an authority, and a certificate of one side.
fn folder(authority: &Path, side: &str, identity: Option<&Identity>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(authority, folder.path().join("ca-cert.pem")).unwrap();
    if let Some(identity) = identity {
        std::fs::copy(&identity.certificate, folder.path().join(format!("{side}-cert.pem"))).unwrap();
        std::fs::copy(&identity.key, folder.path().join(format!("{side}-key.pem"))).unwrap();
    }
    folder
}

fn with_tls(address: &NbdAddress, certificates: Option<&Path>, hostname: Option<&str>) -> NbdAddress {
    let tls = NbdTls { certificates: certificates.map(Into::into), hostname: hostname.map(str::to_owned) };
    let address = NbdAddress { tls: Some(tls), ..address.clone() };
    address.to_string().parse().unwrap()
}

#[test]
fn an_export_through_tls_keeps_the_contract() {
    if !has("nbd") {
        return;
    }
    let authority = Authority::new();
    let server = authority.sign(&["127.0.0.1", "nbd.example"]);
    let at_server = folder(&authority.file(), "server", Some(&server));
    let at_client = folder(&authority.file(), "client", Some(&authority.sign(&["me"])));
    let certificates = format!("--tls-certificates={}", at_server.path().display());
    let model = pattern(300_001, 2);
    for (by, hostname, verifies) in
        [(By::Tcp, None, false), (By::Tcp, Some("nbd.example"), true), (By::Unix, Some("nbd.example"), true)]
    {
        let file = file(&model);
        let mut arguments = vec!["--tls=require", &certificates];
        arguments.extend(verifies.then_some("--tls-verify-peer"));
        let server = NbdServer::nbdkit_file(by, file.path(), &arguments);
        let address = with_tls(&server.address(), Some(at_client.path()), hostname);
        let store = NbdStore::connect(&address, true, &options()).unwrap();
        check_reads("TLS", &store, &model);
        check_stream("TLS", &store, &model);
        check_writes("TLS", &store, model.clone());
    }
}

#[test]
fn nobody_is_talked_to_who_is_not_who_they_should_be() {
    if !has("nbd") {
        return;
    }
    let (authority, other) = (Authority::new(), Authority::new());
    let server = authority.sign(&["nbd.example"]);
    let at_server = folder(&authority.file(), "server", Some(&server));
    let at_client = folder(&authority.file(), "client", None);
    let elsewhere = folder(&other.file(), "client", None);
    let certificates = format!("--tls-certificates={}", at_server.path().display());
    let file = file(&pattern(8192, 2));
    let refused = |address: &NbdAddress, kind: ErrorKind, hint: &str| {
        let error = NbdStore::connect(address, false, &RemoteOptions::default()).err().unwrap();
        assert!(error.kind() == kind && !error.can_retry(), "{error:?}");
        assert!(error.to_string().contains(hint), "{error}");
    };
    let server = NbdServer::nbdkit_file(By::Tcp, file.path(), &["--tls=require", &certificates]);
    let (address, client) = (server.address(), at_client.path());
    refused(&address, ErrorKind::Denied, "write nbds://");
    refused(&with_tls(&address, Some(client), None), ErrorKind::Denied, "127.0.0.1");
    refused(&with_tls(&address, Some(elsewhere.path()), Some("nbd.example")), ErrorKind::Denied, "authority");
    let nowhere = with_tls(&address, Some(Path::new("/nowhere")), Some("nbd.example"));
    refused(&nowhere, ErrorKind::NotFound, "/nowhere/ca-cert.pem");
    NbdStore::connect(&with_tls(&address, Some(client), Some("nbd.example")), false, &options()).unwrap();

    // One that has no TLS is not talked to in clear.
    let plain = NbdServer::nbdkit_file(By::Unix, file.path(), &["--tls=off"]);
    let address = with_tls(&plain.address(), Some(client), Some("nbd.example"));
    refused(&address, ErrorKind::Unsupported, "does not offer TLS");
    let address = with_tls(&plain.address(), Some(client), None);
    let tls = NbdServer::nbdkit_file(By::Unix, file.path(), &["--tls=require", &certificates]);
    let unnamed = NbdAddress { place: tls.address().place, ..address };
    refused(&unnamed, ErrorKind::Usage, "tls-hostname=NAME");
}
