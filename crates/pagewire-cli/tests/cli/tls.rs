//! Servers and clients that know each other by certificates.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::driving::{Running, pattern, run, stdout};

/// A folder with an authority's certificate, `ca.pem`, and what it has signed.
struct Certificates {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        std::fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let this = Self { folder, issuer: Issuer::new(params, key) };
        for (file, name) in [
            ("server", "127.0.0.1"),
            ("alice", "alice.example"),
            ("bob", "bob.example"),
            ("db", "db.example"),
        ] {
            this.sign(file, name);
        }
        this
    }

    fn sign(&self, file: &str, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn text(&self, file: &str) -> String {
        self.path(file).display().to_string()
    }

    /// The options of a side that shows this certificate.
    fn shown(&self, file: &str) -> Vec<String> {
        let [certificate, key] = ["pem", "key"].map(|kind| self.text(&format!("{file}.{kind}")));
        vec!["--tls-cert".into(), certificate, "--tls-key".into(), key]
    }

    fn client(&self, file: &str) -> Vec<String> {
        [self.shown(file), vec!["--tls-ca".into(), self.text("ca.pem")]].concat()
    }

    fn server(&self) -> Vec<String> {
        [self.shown("server"), vec!["--tls-clients".into(), self.text("ca.pem")]].concat()
    }
}

/// The words of a command line.
fn words<'a>(first: &[&'a str], more: &'a [String]) -> Vec<&'a str> {
    first.iter().copied().chain(more.iter().map(String::as_str)).collect()
}

/// What a command says that fails with this status.
fn failure(args: &[&str], status: i32) -> String {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {errors}");
    assert!(output.stdout.is_empty() && (status == 2 || errors.lines().count() == 1), "{args:?}: {errors}");
    errors
}

fn file_address(path: &Path) -> String {
    format!("file:{}", path.display())
}

#[test]
fn regions_are_read_and_written_by_those_who_may() {
    let certificates = Certificates::new();
    let bytes = pattern(3_000_001);
    std::fs::write(certificates.path("source"), &bytes).unwrap();
    let access = "[regions.db]\nread = [\"*\"]\nwrite = [\"alice.example\"]\n[regions.secret]\nread = [\"alice.example\"]\n";
    std::fs::write(certificates.path("access.toml"), access).unwrap();
    let offer = format!("db={}?size=3000001", file_address(&certificates.path("db")));
    let options = [certificates.server(), vec!["--access".into(), certificates.text("access.toml")]].concat();
    let server = Running::start(&words(
        &["serve", &offer, "secret=mem:1MiB", "--listen", "pw+tls://127.0.0.1:0"],
        &options,
    ));
    assert!(server.address.starts_with("pw+tls://127.0.0.1:"), "{}", server.address);
    let db = format!("{}/db", server.address);
    let (alice, bob) = (certificates.client("alice"), certificates.client("bob"));

    assert_eq!(stdout(&words(&["list", &server.address], &alice)).lines().count(), 2);
    assert_eq!(stdout(&words(&["list", &server.address], &bob)).lines().count(), 1);
    let source = file_address(&certificates.path("source"));
    let denied = failure(&words(&["copy", &source, &db], &bob), 1);
    assert!(denied.contains("may be read, but not written to, by bob.example"), "{denied}");
    let hidden = failure(&words(&["info", &format!("{}/secret", server.address)], &bob), 1);
    assert!(hidden.contains("no region 'secret' here"), "{hidden}");

    stdout(&words(&["copy", &source, &db, "-q"], &alice));
    let target = certificates.path("target");
    stdout(&words(&["copy", &db, &file_address(&target), "-q"], &bob));
    assert!(std::fs::read(&target).unwrap() == bytes);
    assert!(stdout(&words(&["info", &db], &alice)).contains("read and write"));
    let info = stdout(&words(&["info", &db], &bob));
    assert!(!info.contains("read and write"), "{info}");

    // Passed on to this host by a server in between, which shows its own certificate.
    let between = [certificates.client("bob"), vec!["--read-only".into()]].concat();
    let offer = format!("again={db}");
    let between = Running::start(&words(&["serve", &offer, "--listen", "pw://127.0.0.1:0"], &between));
    std::fs::remove_file(&target).unwrap();
    stdout(&["copy", &format!("{}/again", between.address), &file_address(&target), "-q"]);
    assert!(std::fs::read(&target).unwrap() == bytes);
}

#[test]
fn who_is_refused_is_told_in_one_line_what_to_do() {
    let certificates = Certificates::new();
    let foreign = Certificates::new();
    let server = Running::start(&words(
        &["serve", "a=mem:64K", "--listen", "pw+tls://127.0.0.1:0"],
        &certificates.server(),
    ));
    let plain = Running::start(&["serve", "a=mem:64K", "--listen", "pw://127.0.0.1:0"]);
    let db = Running::start(&words(
        &["serve", "a=mem:64K", "--listen", "pw+tls://127.0.0.1:0"],
        &certificates.shown("db"),
    ));
    let without_tls = server.address.replace("pw+tls", "pw");
    let with_tls = plain.address.replace("pw", "pw+tls");
    let alice = certificates.client("alice");
    let ca = ["--tls-ca".to_owned(), certificates.text("ca.pem")];
    let mixed = [
        "--tls-cert".to_owned(),
        certificates.text("alice.pem"),
        "--tls-key".into(),
        certificates.text("bob.key"),
    ];
    let gone = ["--tls-ca".to_owned(), "/no/such/ca.pem".to_owned()];
    let half = ["--tls-cert".to_owned(), certificates.text("alice.pem")];
    for (address, options, status, text) in [
        (&server.address, &ca[..], 1, "it wants a certificate of this side (--tls-cert and --tls-key)"),
        (&server.address, &certificates.shown("alice")[..], 1, "(--tls-ca names one)"),
        (&server.address, &foreign.client("alice"), 1, "(--tls-ca names one)"),
        (&db.address, &alice, 1, "its certificate is for db.example, not for '127.0.0.1'"),
        (&without_tls, &[], 1, "write pw+tls:// in the address"),
        (&with_tls, &alice, 1, "it does not speak TLS (an address without TLS begins with pw://)"),
        (&server.address, &mixed, 2, "does not belong to the certificate"),
        (&server.address, &gone, 1, "/no/such/ca.pem"),
        (&server.address, &half, 2, "--tls-key"),
    ] {
        let told = failure(&words(&["list", address], options), status);
        assert!(told.contains(text), "{options:?}: {told}");
    }
    stdout(&words(&["list", &server.address], &alice));
}

#[test]
fn a_server_says_what_it_lacks() {
    let certificates = Certificates::new();
    let serve = |listen: &str, options: &[String], status, text: &str| {
        let told = failure(&words(&["serve", "a=mem:1K", "--listen", listen], options), status);
        assert!(told.contains(text), "{listen} {options:?}: {told}");
    };
    let here = "pw+tls://127.0.0.1:0";
    serve(here, &[], 2, "--tls-cert");
    serve(here, &certificates.shown("server")[..2], 2, "--tls-key");
    serve("pw+tls://0.0.0.0:0", &certificates.shown("server"), 2, "--tls-clients");
    serve(here, &["--tls-clients".into(), certificates.text("ca.pem")], 2, "--tls-cert");
    serve(
        here,
        &[certificates.shown("server"), vec!["--access".into(), "x".into()]].concat(),
        2,
        "--tls-clients",
    );
    let with_access = |text: &str| {
        std::fs::write(certificates.path("access.toml"), text).unwrap();
        [certificates.server(), vec!["--access".into(), certificates.text("access.toml")]].concat()
    };
    serve(here, &with_access("[regions.b]"), 2, "'b', which is not offered");
    serve(here, &with_access("[regions.a]\nwirte = []"), 2, "access.toml: line 2: unknown field `wirte`");
    serve("pw://127.0.0.1:0", &with_access("[regions.a]"), 2, "listen at pw+tls:// only");
    let missing = [certificates.server(), vec!["--access".into(), "/no/such/file".into()]].concat();
    serve(here, &missing, 1, "cannot read the permissions /no/such/file");

    let server = Running::start(&words(
        &["serve", "a=mem:1K", "--listen", "pw+tls://0.0.0.0:0"],
        &certificates.server(),
    ));
    assert!(server.address.starts_with("pw+tls://0.0.0.0:"), "who comes is known: no --insecure is needed");
    let help = stdout(&["serve", "--help"]);
    assert!(help.contains("[regions.db]") && help.contains("--tls-clients"), "{help}");
}
