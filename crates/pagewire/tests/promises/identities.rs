//! Who is who: certificates that are refused, and what each of those that are accepted may do.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pagewire::access::serve::{Permissions, Server, ServerOptions, ServerTls};
use pagewire::address::PeerAddress;
use pagewire::engine::Region;
use pagewire::store::{self, Blocking, ClientTls, Identity, MemoryStore, RemoteOptions, RemoteStore, Store};
use pagewire::{ByteRange, Error, ErrorKind};
use pagewire_core::wire::{RemoteErrorKind, Reply, Role};
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};

use crate::support::certificates::{Authority, anywhere_with_tls};
use crate::support::raw_tls::RawTls;
use crate::support::{self, anywhere, file, file_region, pattern, region_at, serve_with};

/// A server of one region with these options, at an address of this kind.
fn server_at(address: &PeerAddress, options: ServerOptions) -> (Server, PeerAddress) {
    serve_with([Region::new("file", Arc::new(MemoryStore::new(8192))).unwrap()], address, options)
}

fn server(options: ServerOptions) -> (Server, PeerAddress) {
    server_at(&anywhere_with_tls(), options)
}

/// What keeps a client from opening the region.
fn refusal(peer: &PeerAddress, client: &RemoteOptions) -> Error {
    let opened = RemoteStore::connect(&region_at(peer, "file"), client);
    let error = opened.err().expect("it is refused");
    let listed = store::list(peer, client).unwrap_err();
    assert_eq!(listed.kind(), error.kind(), "{listed}");
    error
}

fn with_identity(client: &RemoteOptions, identity: Option<Identity>) -> RemoteOptions {
    RemoteOptions { tls: ClientTls { identity, ..client.tls.clone() }, ..client.clone() }
}

fn with_server_identity(options: &ServerOptions, identity: Identity) -> ServerOptions {
    let clients = options.tls.as_ref().unwrap().clients.clone();
    ServerOptions { tls: Some(ServerTls { identity, clients }), ..options.clone() }
}

#[test]
fn who_is_not_known_is_refused_at_once_and_told_why() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let (options, client) = (authority.server(), authority.client(&["alice.example"]));
    let (_known, known) = server(options.clone());
    RemoteStore::connect(&region_at(&known, "file"), &client).unwrap();
    let (_plain, plain) = server_at(&anywhere(), ServerOptions::default());

    let serve_as = |identity| server(with_server_identity(&options, identity));
    let (_other_name, other_name) = serve_as(authority.sign(&["db.example", "db2.example"]));
    let (_expired, expired) = serve_as(authority.sign_with(&["127.0.0.1"], |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    }));
    let (_early, early) = serve_as(authority.sign_with(&["127.0.0.1"], |params| {
        params.not_before = date_time_ymd(3001, 1, 1);
        params.not_after = date_time_ymd(3002, 1, 1);
    }));
    let (_for_clients, for_clients) = serve_as(authority.sign_with(&["127.0.0.1"], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    }));
    let old = authority.sign_with(&["old.example"], |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let for_servers = authority.sign_with(&["server.example"], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let as_tls = |peer: &PeerAddress| match peer {
        PeerAddress::Tcp(place) => PeerAddress::Tls(place.clone()),
        PeerAddress::Tls(place) => PeerAddress::Tcp(place.clone()),
        PeerAddress::Unix(_) => unreachable!(),
    };

    let trusting_foreign = foreign.client(&["alice.example"]);
    let of_foreign = with_identity(&client, trusting_foreign.tls.identity.clone());
    for (what, peer, client, kind, text) in [
        (
            "no certificate",
            &known,
            &with_identity(&client, None),
            ErrorKind::Denied,
            "(--tls-cert and --tls-key)",
        ),
        ("a foreign one", &known, &of_foreign, ErrorKind::Denied, "does not trust the authority"),
        ("an expired one", &known, &with_identity(&client, Some(old)), ErrorKind::Denied, "has expired"),
        ("for servers", &known, &with_identity(&client, Some(for_servers)), ErrorKind::Denied, "not accept"),
        ("a foreign server", &known, &trusting_foreign, ErrorKind::Denied, "(--tls-ca names one)"),
        (
            "another name",
            &other_name,
            &client,
            ErrorKind::Denied,
            "db.example, db2.example, not for '127.0.0.1'",
        ),
        ("expired server", &expired, &client, ErrorKind::Denied, "its certificate has expired"),
        ("early server", &early, &client, ErrorKind::Denied, "not valid yet"),
        ("a client that serves", &for_clients, &client, ErrorKind::Denied, "another purpose"),
        ("plain to TLS", &as_tls(&known), &client, ErrorKind::Protocol, "write pw+tls://"),
        ("TLS to plain", &as_tls(&plain), &client, ErrorKind::Protocol, "does not speak TLS"),
    ] {
        let error = refusal(peer, client);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.to_string().contains(text), "{what}: {error}");
        assert!(!error.can_retry(), "{what}: {error}");
        assert_eq!(error.to_string().lines().count(), 1);
    }
    RemoteStore::connect(&region_at(&known, "file"), &client).unwrap();
}

#[test]
fn files_that_are_of_no_use_are_told_before_anybody_is_called() {
    let authority = Authority::new();
    let options = authority.server();
    let (_server, peer) = server(options.clone());
    let client = authority.client(&["alice.example"]);
    let (alice, bob) = (authority.sign(&["alice.example"]), authority.sign(&["bob.example"]));
    let missing = Path::new("/no/such/file.pem").to_path_buf();
    let mismatched = Identity { certificate: alice.certificate.clone(), key: bob.key };
    let swapped = Identity { certificate: alice.key.clone(), key: alice.certificate.clone() };
    let no_key = Identity { certificate: alice.certificate.clone(), key: alice.certificate.clone() };
    let gone = Identity { certificate: missing.clone(), key: alice.key.clone() };
    for (identity, kind, text) in [
        (mismatched, ErrorKind::Usage, "does not belong to the certificate"),
        (swapped, ErrorKind::Usage, "holds no certificate in PEM"),
        (no_key, ErrorKind::Usage, "holds no private key in PEM"),
        (gone, ErrorKind::NotFound, "/no/such/file.pem"),
    ] {
        let error = refusal(&peer, &with_identity(&client, Some(identity.clone())));
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        let region = Region::new("file", Arc::new(MemoryStore::new(1))).unwrap();
        let error = Server::new([region], with_server_identity(&options, identity)).err().unwrap();
        assert_eq!(error.kind(), kind, "{error}");
    }
    for (authorities, kind) in [(missing, ErrorKind::NotFound), (alice.key, ErrorKind::Usage)] {
        let tls = ClientTls { authorities: Some(authorities), identity: None };
        assert_eq!(refusal(&peer, &RemoteOptions { tls, ..client.clone() }).kind(), kind);
    }
}

#[test]
fn a_server_that_could_permit_nobody_anything_does_not_begin() {
    let authority = Authority::new();
    let permissions = |text: &str| Some(Permissions::parse(text).unwrap());
    let region = || [Region::new("file", Arc::new(MemoryStore::new(1))).unwrap()];
    let nobody = ServerOptions::default();
    let error = Server::new(region(), nobody.clone()).unwrap().listen(&anywhere_with_tls()).unwrap_err();
    assert!(error.to_string().contains("--tls-cert"), "{error}");
    let options = ServerOptions {
        permissions: permissions("[regions.file]"),
        ..with_server_identity(&authority.server(), authority.sign(&["127.0.0.1"]))
    };
    let error = Server::new(region(), options.clone()).unwrap().listen(&anywhere()).unwrap_err();
    assert!(error.to_string().contains("listen at pw+tls:// only"), "{error}");
    let mut anybody = options.clone();
    anybody.tls.as_mut().unwrap().clients = None;
    for options in [ServerOptions { permissions: options.permissions.clone(), ..nobody }, anybody] {
        let error = Server::new(region(), options).err().unwrap();
        assert!(error.to_string().contains("--tls-clients"), "{error}");
    }
    let options = ServerOptions { permissions: permissions("[regions.fiel]"), ..options };
    let error = Server::new(region(), options).err().unwrap();
    assert!(error.to_string().contains("'fiel'"), "{error}");
}

#[test]
fn everybody_may_do_what_is_permitted_and_no_more() {
    let authority = Authority::new();
    let text = r#"
        [regions.db]
        read = ["*"]
        write = ["alice.example"]
        [regions.secret]
        read = ["alice.example"]
        [regions."*"]
        write = ["backup"]
    "#;
    let options =
        ServerOptions { permissions: Some(Permissions::parse(text).unwrap()), ..authority.server() };
    let regions = ["a", "db", "other", "secret"]
        .map(|name| Region::new(name, Arc::new(MemoryStore::new(8192))).unwrap());
    let (_server, peer) = serve_with(regions, &anywhere_with_tls(), options);
    for (names, listed, writable) in [
        (&["alice.example"][..], &["db", "secret"][..], &["db"][..]),
        (&["x.example", "Backup"], &["a", "db", "other"], &["a", "other"]),
        (&["mallory.example"], &["db"], &[]),
        (&["*"], &["db"], &[]),
        (&[], &["db"], &[]),
    ] {
        let client = authority.client(names);
        let found = store::list(&peer, &client).unwrap();
        let found: Vec<(&str, bool)> =
            found.iter().map(|(name, info)| (name.as_str(), info.writable)).collect();
        let expected: Vec<(&str, bool)> =
            listed.iter().map(|name| (*name, writable.contains(name))).collect();
        assert_eq!(found, expected, "{names:?}");
        for name in ["a", "db", "other", "secret", "no such region"] {
            let region = region_at(&peer, name);
            let told = [
                store::describe(&region, &client).err(),
                RemoteStore::connect(&region, &client).err(),
                RemoteStore::connect_writer(&region, &client, "a test").err(),
            ];
            let kinds = told.map(|error| {
                error.map(|error| {
                    assert!(!error.can_retry() && error.to_string().contains(name), "{error}");
                    error.kind()
                })
            });
            let expected = match (listed.contains(&name), writable.contains(&name)) {
                (false, _) => [Some(ErrorKind::NotFound); 3],
                (true, false) => [None, None, Some(ErrorKind::Denied)],
                (true, true) => [None; 3],
            };
            assert_eq!(kinds, expected, "{names:?}, {name}");
        }
    }
    let client = authority.client(&["alice.example"]);
    let writer = RemoteStore::connect_writer(&region_at(&peer, "db"), &client, "a test").unwrap();
    writer.write_bytes(5, &[7; 100]).unwrap();
    let epoch = writer.flush_all().unwrap().epoch;
    let reader =
        RemoteStore::connect(&region_at(&peer, "db"), &authority.client(&["mallory.example"])).unwrap();
    assert_eq!(reader.info().epoch, epoch);
    assert!(!reader.info().writable && !reader.refresh().unwrap().writable);
    assert_eq!(reader.read_bytes(ByteRange::new(5, 105), epoch).unwrap(), [7; 100]);
}

#[test]
fn a_session_is_joined_by_nobody_with_another_certificate() {
    let authority = Authority::new();
    let (_server, peer) = server(authority.server());
    let [alice, bob] = ["alice.example", "bob.example"]
        .map(|name| RawTls::connect(&peer, &authority.client(&[name]), b"pw"));
    let (mut alice, mut bob) = (alice, bob);
    assert!(matches!(alice.hello(Role::Primary, [9; 16]).unwrap(), Reply::Hello(_)));
    let Reply::Error(error) = bob.hello(Role::Bulk, [9; 16]).unwrap() else { panic!("bob is let in") };
    assert_eq!(error.kind, RemoteErrorKind::Protocol);
    assert!(error.text.contains("another certificate"), "{error}");
    let mut again = RawTls::connect(&peer, &authority.client(&["alice.example"]), b"pw");
    assert!(matches!(again.hello(Role::Bulk, [9; 16]).unwrap(), Reply::Hello(_)));
}

#[test]
fn who_wants_another_protocol_inside_tls_is_refused() {
    let authority = Authority::new();
    let (server, peer) = server(authority.server());
    let client = authority.client(&["alice.example"]);
    assert!(RawTls::connect(&peer, &client, b"http/1.1").hello(Role::Primary, [1; 16]).is_err());
    support::wait_until("it is gone", || server.connections() == 0);
}

#[test]
fn a_certificate_that_is_refused_in_the_middle_is_told_and_a_good_one_heals() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let bytes = pattern(100_000, 1);
    let file = file(&bytes);
    let region = || file_region(file.path());
    let (first, peer) = serve_with([region()], &anywhere_with_tls(), authority.server());
    let client = authority.client(&["alice.example"]);
    let remote = RemoteStore::connect(&region_at(&peer, "file"), &client).unwrap();
    let read = || remote.read_bytes(ByteRange::new(0, 100_000), 1);
    assert!(read().unwrap() == bytes);

    drop(first);
    let (second, _) = serve_with([region()], &peer, foreign.server());
    let error = read().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "told before the patience is over: {error}");
    drop(second);
    let (third, _) = serve_with([region()], &peer, authority.server());
    support::wait_until("the session goes on", || read().is_ok_and(|read| read == bytes));

    // What this side shows is read for each connection: one that was renewed is taken.
    let identity = client.tls.identity.unwrap();
    let expired = authority.sign_with(&["alice.example"], |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    replace(&identity, &expired);
    drop(third);
    let (_fourth, _) = serve_with([region()], &peer, authority.server());
    let mut told = None;
    support::wait_until("the old certificate is refused", || {
        told = read().err().filter(|error| error.kind() == ErrorKind::Denied);
        told.is_some()
    });
    assert!(told.unwrap().to_string().contains("expired"));
    replace(&identity, &authority.sign(&["alice.example"]));
    support::wait_until("the session goes on", || read().is_ok_and(|read| read == bytes));
}

/// Puts other files where those of an identity are.
fn replace(identity: &Identity, by: &Identity) {
    std::fs::copy(&by.key, &identity.key).unwrap();
    std::fs::copy(&by.certificate, &identity.certificate).unwrap();
}

#[test]
fn a_server_takes_a_renewed_certificate_and_keeps_the_old_one_while_there_is_none() {
    let authority = Authority::new();
    let options = authority.server();
    let identity = options.tls.clone().unwrap().identity;
    let (_server, peer) = server(options);
    let client = authority.client(&["alice.example"]);
    let open = || RemoteStore::connect(&region_at(&peer, "file"), &client);
    open().unwrap();
    std::fs::write(&identity.certificate, "half of it").unwrap();
    open().unwrap();
    replace(&identity, &authority.sign(&["db.example"]));
    support::wait_until("the renewed one is shown", || {
        open().is_err_and(|error| error.to_string().contains("is for db.example"))
    });
    replace(&identity, &authority.sign(&["127.0.0.1"]));
    support::wait_until("the next one, too", || open().is_ok());
}

#[test]
fn a_patient_client_is_not_patient_with_a_certificate() {
    let authority = Authority::new();
    let (_server, peer) = server(authority.server());
    let client = RemoteOptions {
        patience: Duration::from_secs(3600),
        connect_timeout: Duration::from_secs(3600),
        ..with_identity(&authority.client(&["alice.example"]), None)
    };
    let error = support::within("it is refused", support::HANG, move || {
        RemoteStore::connect(&region_at(&peer, "file"), &client).err()
    });
    assert_eq!(error.unwrap().kind(), ErrorKind::Denied);
}
