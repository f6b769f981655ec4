//! How peers are talked to: what all commands say alike.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use pagewire::Compression;
use pagewire::store::{ClientTls, RemoteOptions};

use super::value::{parse_compression, parse_time};

/// How peers are talked to.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Remote {
    /// How many connections carry bulk, besides the one for demand
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) connections: u8,

    /// Whether to compress what nobody waits for: auto where that is faster than the link alone; off; lz4 or zstd unless
    /// it gets no smaller
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = parse_compression)]
    pub(crate) compress: Compression,

    /// How long to wait for a peer before giving up
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_time)]
    pub(crate) patience: Duration,

    /// The authorities that sign servers' certificates, in PEM; those that the system trusts otherwise
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) identity: Identity,
}

impl Remote {
    pub(crate) fn options(&self) -> RemoteOptions {
        RemoteOptions {
            connections: usize::from(self.connections),
            patience: self.patience,
            connect_timeout: self.patience.min(Duration::from_secs(10)),
            compression: self.compress,
            tls: ClientTls { authorities: self.tls_ca.clone(), identity: self.identity.files() },
        }
    }
}

/// Who this process is to its peers at pw+tls://.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Identity {
    /// What this side shows to its peers at pw+tls://: a certificate in PEM, with those that lead to its authority
    #[arg(id = "certificate", long = "tls-cert", value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,

    /// The private key of that certificate, in PEM
    #[arg(id = "key", long = "tls-key", value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
}

impl Identity {
    /// The files, where they are named.
    pub(crate) fn files(&self) -> Option<pagewire::store::Identity> {
        let (certificate, key) = (self.certificate.clone()?, self.key.clone()?);
        Some(pagewire::store::Identity { certificate, key })
    }
}
