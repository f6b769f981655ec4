//! TLS without the library: a client that has its keys at hand, and so can say in records what it likes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use pagewire::address::PeerAddress;
use pagewire::store::RemoteOptions;
use pagewire_core::wire::{HEADER_LEN, Header, Reply, Request, Role};
use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::pki_types::pem::PemObject;
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion, SupportedCipherSuite};

use super::HANG;
use super::raw::hello;

/// A client without a session of the library.
pub(crate) struct RawTls(pub(crate) rustls::StreamOwned<rustls::ClientConnection, TcpStream>);

impl RawTls {
    pub(crate) fn connect(peer: &PeerAddress, client: &RemoteOptions, alpn: &[u8]) -> Self {
        let PeerAddress::Tls(place) = peer else { panic!("a TLS peer") };
        let files = client.tls.identity.as_ref().unwrap();
        let certificates = |path: &Path| {
            let found = rustls::pki_types::CertificateDer::pem_file_iter(path).unwrap();
            found.map(Result::unwrap).collect::<Vec<_>>()
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(certificates(client.tls.authorities.as_ref().unwrap()));
        // The one suite whose keys let records be numbered as one likes.
        let provider = rustls::crypto::CryptoProvider {
            cipher_suites: vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
            ..rustls::crypto::aws_lc_rs::default_provider()
        };
        let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&files.key).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&files.certificate), key)
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        config.enable_secret_extraction = true;
        let name = "127.0.0.1".try_into().unwrap();
        let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let stream = TcpStream::connect(place).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        Self(rustls::StreamOwned::new(connection, stream))
    }

    pub(crate) fn hello(&mut self, role: Role, token: [u8; 16]) -> std::io::Result<Reply> {
        let mut bytes = Vec::new();
        Request::Hello(hello(role, token)).encode(0, &mut bytes);
        self.0.write_all(&bytes)?;
        let mut header = [0; HEADER_LEN];
        self.0.read_exact(&mut header)?;
        let header = Header::decode(&header).unwrap();
        let mut body = vec![0; header.length as usize];
        self.0.read_exact(&mut body)?;
        Ok(Reply::decode(&header, &body).unwrap())
    }
}

/// What such a client has after the handshake: its socket, and the keys to records.
pub(crate) struct Forger {
    pub(crate) stream: TcpStream,
    encrypter: Box<dyn MessageEncrypter>,
    number: u64,
}

impl RawTls {
    /// Takes the keys out.
    pub(crate) fn forge(self) -> Forger {
        let rustls::StreamOwned { conn, sock } = self.0;
        let SupportedCipherSuite::Tls13(suite) = conn.negotiated_cipher_suite().unwrap();
        let (number, secrets) = conn.dangerous_extract_secrets().unwrap().tx;
        let (key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
            _ => panic!("another suite"),
        };
        Forger { stream: sock, encrypter: suite.aead_alg.encrypter(key, iv), number }
    }
}

impl Forger {
    /// Sends a good record of this type. Who has hung up needs none.
    pub(crate) fn send(&mut self, kind: u8, bytes: &[u8]) {
        let message = OutboundPlainMessage {
            typ: ContentType::from(kind),
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(bytes),
        };
        let record = self.encrypter.encrypt(message, self.number).unwrap().encode();
        self.number += 1;
        let _ = self.stream.write_all(&record);
    }

    /// Leaves a record out.
    pub(crate) fn skip(&mut self) {
        self.number += 1;
    }

    /// Reads to the end of the stream, which has to come.
    pub(crate) fn wait_for_the_end(&mut self, what: &str) {
        let mut rest = Vec::new();
        if let Err(error) = self.stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "no end comes: {what}");
        }
    }
}
