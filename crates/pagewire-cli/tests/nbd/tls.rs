//! TLS, and who may do what by certificates.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::driving;
use crate::support::{PYTHON, Served, fail, has, noise, same, succeed};

/// Folders of certificates as libnbd and qemu have them, below the folder of a server.
fn certificates(served: &Served) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, "the authority of a test");
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    for (folder, name) in [("server", "localhost"), ("alice", "alice.example"), ("bob", "bob.example")] {
        let folder = served.path(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join("ca-cert.pem"), &authority).unwrap();
        for kind in ["client", "server"] {
            std::fs::write(folder.join(format!("{kind}-cert.pem")), certificate.pem()).unwrap();
            std::fs::write(folder.join(format!("{kind}-key.pem")), key.serialize_pem()).unwrap();
        }
    }
}

/// The options of a server with TLS, that asks for certificates where it `knows_clients`.
fn options(served: &Served, knows_clients: bool) -> Vec<String> {
    let mut options = vec![
        "--tls-cert".into(),
        served.text("server/server-cert.pem"),
        "--tls-key".into(),
        served.text("server/server-key.pem"),
    ];
    if knows_clients {
        options.extend(["--tls-clients".into(), served.text("server/ca-cert.pem")]);
    }
    options
}

/// A server of the file `disk` at these addresses.
fn start(served: &mut Served, addresses: &[&str], more: &[String]) {
    let offer = format!("disk=file:{}", served.text("disk"));
    let mut args = vec!["serve", &offer];
    addresses.iter().for_each(|address| args.extend(["--nbd", address]));
    args.extend(more.iter().map(String::as_str));
    served.start_as(&args, addresses.len());
}

fn uri(server: &str, served: &Served, who: &str) -> String {
    let separator = if server.contains('?') { '&' } else { '?' };
    let server =
        server.replace("127.0.0.1", "localhost").replace("nbd://", "nbds://").replace("nbd+", "nbds+");
    format!("{server}{separator}tls-certificates={}&tls-hostname=localhost", served.text(who))
}

#[test]
fn libnbd_speaks_tls_with_and_without_certificates_of_its_own() {
    if !has("libnbd") {
        return;
    }
    let mut served = Served::new(&noise(3 << 20, 1), &[]);
    certificates(&served);
    served.terminate();
    for knows_clients in [false, true] {
        let more = options(&served, knows_clients);
        let socket = format!("nbds+unix:///?socket={}", served.text("tls"));
        start(&mut served, &["nbds://127.0.0.1:0", "nbd://127.0.0.1:0", &socket], &more);
        let [forced, offered, unix] = [0, 1, 2].map(|n| served.uris[n].clone());
        assert!(forced.starts_with("nbds://") && unix.starts_with("nbds+unix://"), "{:?}", served.uris);
        for server in [&forced, &offered, &unix] {
            let uri = uri(server, &served, "alice");
            let info = succeed("nbdinfo", &[&uri]);
            assert!(info.contains("newstyle-fixed with TLS, using structured packets"), "{info}");
            succeed("nbdcopy", &[&uri, &served.text("copy")]);
            assert!(same(&served.path("disk"), &served.path("copy")), "{uri}");
        }
        // Where it is a must, nobody is told anything without it.
        let clear = forced.replace("nbds://", "nbd://");
        let said = fail("nbdinfo", &[&clear]);
        assert!(said.contains("TLS") || said.contains("tls"), "{said}");
        succeed("nbdinfo", &[&offered]);
        // Writes, too.
        let script = format!(
            "import nbd\nh = nbd.NBD()\nh.set_uri_allow_local_file(True)\nh.connect_uri('{}')\n\
             assert h.get_tls_negotiated()\nh.pwrite(b'secret' * 50000, 1000)\nh.flush()\n\
             assert h.pread(300000, 1000) == b'secret' * 50000\n",
            uri(&forced, &served, "alice")
        );
        succeed(PYTHON, &["-c", &script]);
        served.terminate();
    }
}

#[test]
fn qemu_speaks_tls() {
    if !has("qemu") {
        return;
    }
    let mut served = Served::new(&noise(3 << 20, 2), &[]);
    certificates(&served);
    served.terminate();
    let more = options(&served, true);
    start(&mut served, &["nbds://127.0.0.1:0"], &more);
    let port = served.uris[0].rsplit_once(':').unwrap().1.to_owned();
    let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", served.text("alice"));
    let image = format!("driver=nbd,host=localhost,port={port},export=disk,tls-creds=tls0");
    let image = image.replace("host=localhost,port=", "server.type=inet,server.host=localhost,server.port=");
    let info = succeed("qemu-img", &["info", "--object", &credentials, "--image-opts", &image]);
    assert!(info.contains("3 MiB"), "{info}");
    let copy = served.text("copy");
    succeed("qemu-img", &["convert", "--object", &credentials, "--image-opts", &image, "-O", "raw", &copy]);
    assert!(same(&served.path("disk"), &served.path("copy")));
}

#[test]
fn certificates_say_who_may_read_and_write() {
    if !has("libnbd") {
        return;
    }
    let mut served = Served::new(&noise(1 << 20, 3), &[]);
    certificates(&served);
    served.terminate();
    let access = served.text("access.toml");
    std::fs::write(&access, "[regions.disk]\nread = [\"*\"]\nwrite = [\"alice.example\"]\n").unwrap();
    let mut more = options(&served, true);
    more.extend(["--access".into(), access.clone()]);
    more.extend(["--listen".into(), "pw+tls://127.0.0.1:0".into()]);
    let offer = format!("disk=file:{}", served.text("disk"));
    let mut args = vec!["serve", &offer, "--nbd", "nbds://127.0.0.1:0"];
    args.extend(more.iter().map(String::as_str));
    served.start_as(&args, 2);
    let nbds = served.uris.iter().find(|uri| uri.starts_with("nbds")).unwrap().clone();
    let is_read_only =
        |who: &str| succeed("nbdinfo", &[&uri(&nbds, &served, who)]).contains("is_read_only: true");
    assert!(!is_read_only("alice") && is_read_only("bob"));
    served.terminate();

    std::fs::write(&access, "[regions.disk]\nwrite = [\"alice.example\"]\n").unwrap();
    served.start_as(&args, 2);
    let nbds = served.uris.iter().find(|uri| uri.starts_with("nbds")).unwrap().clone();
    let said = fail("nbdinfo", &[&uri(&nbds, &served, "bob")]);
    assert!(said.contains("No such file"), "what bob may not read is not there: {said}");
    succeed("nbdinfo", &[&uri(&nbds, &served, "alice")]);
    served.terminate();

    // Nobody shows a certificate in clear.
    let clear: Vec<&str> =
        args.iter().map(|arg| if *arg == "nbds://127.0.0.1:0" { "nbd://127.0.0.1:0" } else { arg }).collect();
    let refused = driving::run(&clear);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{errors}");
    assert!(errors.contains("nbds://"), "{errors}");
}
