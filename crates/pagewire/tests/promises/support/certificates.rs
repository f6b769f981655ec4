//! An authority that a test has made for itself, and the certificates that it signs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use pagewire::access::serve::{ServerOptions, ServerTls};
use pagewire::address::PeerAddress;
use pagewire::store::{ClientTls, Identity, RemoteOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// An authority. Its files go with it.
pub(crate) struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    signed: AtomicUsize,
}

/// Any free port of this host, with TLS.
pub(crate) fn anywhere_with_tls() -> PeerAddress {
    "pw+tls://127.0.0.1:0".parse().unwrap()
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "the authority of a test");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key), signed: AtomicUsize::new(0) }
    }

    /// Its own certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for these names, in files of its own.
    pub(crate) fn sign(&self, names: &[&str]) -> Identity {
        self.sign_with(names, |_| ())
    }

    /// The same for another time, or another purpose.
    pub(crate) fn sign_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let number = self.signed.fetch_add(1, Ordering::Relaxed);
        let files = Identity {
            certificate: self.folder.path().join(format!("{number}.pem")),
            key: self.folder.path().join(format!("{number}.key")),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// A server on this host that lets in whom this authority knows.
    pub(crate) fn server(&self) -> ServerOptions {
        let identity = self.sign(&["127.0.0.1", "localhost"]);
        ServerOptions {
            tls: Some(ServerTls { identity, clients: Some(self.file()) }),
            ..ServerOptions::default()
        }
    }

    /// Somebody with these names, who knows servers by this authority.
    pub(crate) fn client(&self, names: &[&str]) -> RemoteOptions {
        let tls = ClientTls { authorities: Some(self.file()), identity: Some(self.sign(names)) };
        RemoteOptions { connections: 2, tls, ..RemoteOptions::default() }
    }
}
