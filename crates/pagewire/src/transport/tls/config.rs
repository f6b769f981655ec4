//! What rustls is told: TLS 1.3 alone, no resumption, no early data, and certificates from files.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};

use super::Layer;
use super::machine::Machine;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::credentials::{ClientTls, Identity, Protocol, ServerTls};

impl Protocol {
    /// The name that both sides have to give it, if any.
    pub(super) fn alpn(self) -> Option<&'static [u8]> {
        match self {
            Protocol::Pw => Some(b"pw"),
            Protocol::Nbd => None,
        }
    }
}

/// What a server needs to begin TLS on a connection.
#[derive(Clone)]
pub(crate) struct Acceptor(Arc<Files>);

struct Files {
    tls: ServerTls,
    protocol: Protocol,
    loaded: Mutex<(Stamps, Arc<ServerConfig>)>,
}

/// When the files were changed last, as far as that can be told.
type Stamps = Vec<Option<SystemTime>>;

impl Acceptor {
    /// Reads the files, for a server that speaks `protocol`.
    ///
    /// # Errors
    ///
    /// Where one cannot be read, holds something else, or the key does not belong to the certificate.
    pub(crate) fn load(tls: &ServerTls, protocol: Protocol) -> Result<Self> {
        let loaded = Mutex::new((stamps(tls), server_config(tls, protocol)?));
        Ok(Self(Arc::new(Files { tls: tls.clone(), protocol, loaded })))
    }

    /// Whether every client has to show a certificate.
    pub(crate) fn knows_clients(&self) -> bool {
        self.0.tls.clients.is_some()
    }

    /// The TLS of a connection that has come, before its handshake.
    pub(in crate::transport) fn layer(&self) -> Layer {
        let config = self.0.config();
        let connection = rustls::server::UnbufferedServerConnection::new(config);
        let connection = connection.expect("the settings are those of every other connection");
        Layer::new(Machine::from(connection), self.0.protocol, true)
    }
}

impl Files {
    /// The settings, read anew if the files have changed since; those that were good while the new ones
    /// are not.
    fn config(&self) -> Arc<ServerConfig> {
        let now = stamps(&self.tls);
        let mut loaded = self.loaded.lock().expect("no holder panics");
        if loaded.0 != now {
            match server_config(&self.tls, self.protocol) {
                Ok(config) => {
                    tracing::info!("the certificates have changed, and are used from now on");
                    *loaded = (now, config);
                }
                Err(error) => tracing::warn!(%error, "the certificates have changed, and cannot be used"),
            }
        }
        loaded.1.clone()
    }
}

fn stamps(tls: &ServerTls) -> Stamps {
    let files = [Some(&tls.identity.certificate), Some(&tls.identity.key), tls.clients.as_ref()];
    let modified = |path: &Path| path.metadata().and_then(|found| found.modified()).ok();
    files.iter().map(|path| modified(path.as_deref()?)).collect()
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    #[cfg(test)]
    use super::tests::default_provider;
    #[cfg(not(test))]
    use rustls::crypto::aws_lc_rs::default_provider;
    PROVIDER.get_or_init(|| Arc::new(default_provider())).clone()
}

fn server_config(tls: &ServerTls, protocol: Protocol) -> Result<Arc<ServerConfig>> {
    let (chain, key) = identity(&tls.identity)?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| unusable(&tls.identity, &error))?;
    let builder = match &tls.clients {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(roots(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = verifier.build().map_err(|error| {
                Error::new(ErrorKind::Usage, format!("cannot use {}", path.display())).because(error)
            })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| unusable(&tls.identity, &error))?;
    config.alpn_protocols = protocol.alpn().iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The TLS of a connection to the server at `place`, a host and a port, before its handshake.
pub(super) fn client(place: &str, tls: &ClientTls, protocol: Protocol) -> Result<Machine> {
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("'{host}' is no name that a certificate could be for"))
    })?;
    let roots = match &tls.authorities {
        Some(path) => Arc::new(roots(path)?),
        None => system_roots()?,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| Error::new(ErrorKind::Unsupported, "TLS 1.3 cannot be spoken").because(error))?
        .with_root_certificates(roots);
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let (chain, key) = identity(files)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unusable(files, &error))?
        }
    };
    config.alpn_protocols = protocol.alpn().iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    let connection = rustls::client::UnbufferedClientConnection::new(Arc::new(config), name);
    let connection = connection
        .map_err(|error| Error::new(ErrorKind::Usage, format!("no TLS with {place}")).because(error))?;
    Ok(connection.into())
}

/// The authorities that the system trusts. They are read once.
fn system_roots() -> Result<Arc<RootCertStore>> {
    static ROOTS: Mutex<Option<Arc<RootCertStore>>> = Mutex::new(None);
    let mut known = ROOTS.lock().expect("no holder panics");
    if let Some(roots) = &*known {
        return Ok(roots.clone());
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A system may trust some that are too odd to be used; the others are good all the same.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let text = "this system trusts no authority: name one with --tls-ca, or install ca-certificates";
        return Err(Error::new(ErrorKind::Usage, text));
    }
    Ok(known.insert(Arc::new(roots)).clone())
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| {
            let text = format!("{} holds a certificate of no authority", path.display());
            Error::new(ErrorKind::Usage, text).because(error)
        })?;
    }
    Ok(roots)
}

fn identity(files: &Identity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            let text = format!("{} holds no private key in PEM that is not encrypted", files.key.display());
            Error::new(ErrorKind::Usage, text)
        }
        error => unreadable("the key", &files.key, &error),
    })?;
    Ok((chain, key))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let failed = |error: pem::Error| unreadable("the certificate", path, &error);
    let found = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if found.is_empty() {
        return Err(Error::new(ErrorKind::Usage, format!("{} holds no certificate in PEM", path.display())));
    }
    Ok(found)
}

fn unreadable(what: &str, path: &Path, error: &pem::Error) -> Error {
    let text = format!("cannot read {what} {}", path.display());
    match error {
        pem::Error::Io(error) => Error::io(text, error),
        error => Error::new(ErrorKind::Usage, text).because(error),
    }
}

fn unusable(files: &Identity, error: &rustls::Error) -> Error {
    let (certificate, key) = (files.certificate.display(), files.key.display());
    match error {
        rustls::Error::InconsistentKeys(_) => {
            let text = format!("the key {key} does not belong to the certificate {certificate}");
            Error::new(ErrorKind::Usage, text)
        }
        error => Error::new(ErrorKind::Usage, format!("cannot use {certificate} and {key}")).because(error),
    }
}
