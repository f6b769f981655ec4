//! `pagewire serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use pagewire::Compression;
use pagewire::address::{NbdAddress, PeerAddress, StoreAddress};

use super::remote::Identity;
use super::value::{parse_compression, parse_time};

/// Offer regions to peers, and to NBD clients
///
/// Prints `listening ADDRESS` once it accepts connections, and serves until SIGINT or SIGTERM. One peer at
/// a time may write to a region, all NBD clients together being one; what is flushed is kept, whatever is killed. A
/// region of another peer is passed on for reading.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire serve model=file:/srv/model.bin --read-only --listen pw://0.0.0.0:7070
  pagewire serve db=file:/srv/app.db?capacity=1GiB
  pagewire serve disk=file:/srv/disk.img --nbd nbd://127.0.0.1:10809
  pagewire serve db=file:/srv/app.db --listen pw+tls://0.0.0.0:7070 \\
    --tls-cert server.pem --tls-key server.key --tls-clients ca.pem --access access.toml

The file of --access says which names in clients' certificates may read and write which regions; who can write
can read, and what is not allowed is denied. \"*\" stands for all other regions, and for every certificate:
  [regions.db]
  read = [\"*\"]
  write = [\"alice.example\", \"backup\"]")]
pub(crate) struct Serve {
    /// What to offer, under which name
    #[arg(required = true, value_name = "NAME=STORE", value_parser = parse_offer)]
    pub(crate) offers: Vec<(String, StoreAddress)>,

    /// Where to listen for peers; port 0 is any free one. Can be given more than once. pw://127.0.0.1:7070, where
    /// there is no --nbd either
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Vec<PeerAddress>,

    /// Where to listen for NBD clients (qemu, libnbd, the kernel), each region being an export: nbd://HOST:PORT,
    /// nbd+unix:///?socket=PATH, or nbds:// to have TLS. Can be given more than once
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) nbd: Vec<NbdAddress>,

    /// How many connections there may be at once
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    pub(crate) max_connections: usize,

    /// Let peers read only
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Let whoever reaches a port of this host write, without asking who it is
    #[arg(long, conflicts_with = "read_only")]
    pub(crate) insecure: bool,

    #[command(flatten)]
    pub(crate) identity: Identity,

    /// The authorities that sign clients' certificates, in PEM: nobody else is let in at pw+tls://
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub(crate) tls_clients: Option<PathBuf>,

    /// The authorities that sign the certificates of peers whose regions are passed on, in PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Which certificates may read and write which regions, in TOML; without it all may do everything
    #[arg(long, value_name = "FILE", requires = "tls_clients")]
    pub(crate) access: Option<PathBuf>,

    /// Whether to compress for peers that take it: auto, off, lz4, zstd. It is their choice otherwise; off lets nobody
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = parse_compression)]
    pub(crate) compress: Compression,

    /// How long a writer whose connection is lost may take to come back before another may write; for NBD, after the
    /// last client has left
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    pub(crate) lapse: Duration,
}

/// Who offers something that can be listed.
#[derive(Debug, Clone)]
pub(crate) enum Offerer {
    Peer(PeerAddress),
    Nbd(NbdAddress),
}

impl std::str::FromStr for Offerer {
    type Err = pagewire::Error;

    fn from_str(text: &str) -> pagewire::Result<Self> {
        if !text.starts_with("nbd") {
            return text.parse().map(Offerer::Peer);
        }
        let server: NbdAddress = text.parse()?;
        if server.export.is_empty() {
            return Ok(Offerer::Nbd(server));
        }
        let server = NbdAddress { export: String::new(), ..server };
        let text = format!("'{text}' names an export: write {server} for the server");
        Err(pagewire::Error::new(pagewire::ErrorKind::Usage, text))
    }
}

pub(super) fn parse_offer(text: &str) -> Result<(String, StoreAddress), String> {
    let (name, store) =
        text.split_once('=').ok_or_else(|| format!("write NAME=STORE, for instance db=file:{text}"))?;
    pagewire::address::check_name(name).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), store.parse().map_err(|error: pagewire::Error| error.to_string())?))
}
