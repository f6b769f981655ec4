//! The files that say who a process is in TLS, and whom it trusts. All are PEM.

use std::path::PathBuf;

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and after it those between it and the authority, if there are any.
    pub certificate: PathBuf,
    /// The private key that belongs to it.
    pub key: PathBuf,
}

/// How a client knows its servers, and shows who it is. The files are read for each connection that is
/// made, so that a renewed certificate is taken by the next one.
///
/// That a server's certificate is for the name in the address is always checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// The authorities that may sign a server's certificate; those that the system trusts where none are
    /// named.
    pub authorities: Option<PathBuf>,
    /// What is shown to a server that asks who it is.
    pub identity: Option<Identity>,
}

/// How a server shows who it is, and knows its clients. The files are read again when they have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// What is shown to clients.
    pub identity: Identity,
    /// The authorities that sign the certificates of clients. If they are named, whoever shows no
    /// certificate of theirs is turned away.
    pub clients: Option<PathBuf>,
}

/// What is spoken inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Both sides name it, so that a server of something else is not talked to by mistake.
    Pw,
    /// Its clients and servers name nothing.
    #[cfg_attr(not(feature = "nbd"), expect(dead_code, reason = "only NBD speaks it"))]
    Nbd,
}
