//! What can be said on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};
use pagewire::address::{NbdAddress, PeerAddress, StoreAddress, parse_size};
use pagewire::store::{ClientTls, RemoteOptions};
use pagewire::{Algorithm, ChunkSize, Codec, Compression};

/// Makes memory of one host usable on another: at once, while it streams in behind.
#[derive(Debug, Parser)]
#[command(name = "pagewire", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "\
Addresses of regions:
  file:PATH                     a file or a block device
    ?size=SIZE                    creates it, sparse, where it is missing
    ?capacity=SIZE                the length that it may grow to
    ?journal=PATH, ?journal=off   where flushes become all or nothing: PATH.pagewire beside it else
  mem:SIZE                      zeroed memory of this process
  pw://HOST:PORT/NAME           a region that a peer offers
  pw+tls://HOST:PORT/NAME       the same through TLS
  pw+unix://SOCKET/NAME         the same over a UNIX socket, its path percent-encoded
  nbd://HOST[:PORT]/EXPORT      an NBD export; nbds:// through TLS
  nbd+unix:///EXPORT?socket=PATH  the same over a UNIX socket

Try it: pagewire demo")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,

    #[command(flatten)]
    pub(crate) output: Output,
}

/// What is said, and how.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Output {
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Say more; twice for everything. PAGEWIRE_LOG=debug,pagewire::peer=trace is finer
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(Serve),
    List(List),
    Info(Info),
    Copy(Copy),
    Uffd(Uffd),
    Mount(Mount),
    Mirror(Mirror),
    Follow(Follow),
    Demo(Demo),
    Completions(Completions),
}

/// Offer regions to peers, and to NBD clients
///
/// Prints `listening ADDRESS` once it accepts connections, and serves until SIGINT or SIGTERM. One peer at
/// a time may write to a region, all NBD clients together being one; what is flushed is kept, whatever is killed. A region of another peer is
/// passed on for reading.
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

/// Show what a peer or an NBD server offers
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire list pw://10.0.0.7:7070
  pagewire list pw+tls://db.example:7070 --tls-ca ca.pem --tls-cert me.pem --tls-key me.key
  pagewire list nbd://10.0.0.7")]
pub(crate) struct List {
    /// The peer, or the NBD server
    #[arg(value_name = "ADDRESS")]
    pub(crate) peer: Offerer,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Show what is known of a region: size, epoch, capabilities; or how a mounted file is doing
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire info pw://10.0.0.7:7070/model
  pagewire info /srv/model.bin")]
pub(crate) struct Info {
    /// The region, or the path of a file that `pagewire mount` has mounted
    pub(crate) region: String,

    /// Show, too, what of it is in this cache
    #[arg(long, value_name = "FILE")]
    pub(crate) cache: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Copy a whole region
///
/// A file is replaced as a whole when everything has arrived, and a region of a peer gets all of it as
/// one epoch: a copy that was interrupted leaves what was there before. With --delta, what is there already does not
/// move: both sides are compared by hashes, page by page.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire copy pw://10.0.0.7:7070/model file:/var/lib/model.bin
  pagewire copy file:model.bin pw://10.0.0.7:7070/model
  pagewire copy file:model-2.bin pw://10.0.0.7:7070/model --delta
  pagewire copy pw://10.0.0.7:7070/model file:/var/lib/model.bin --resume
  pagewire copy pw+tls://db.example:7070/db file:db --tls-ca ca.pem --tls-cert me.pem --tls-key me.key")]
pub(crate) struct Copy {
    /// The region to copy
    pub(crate) from: StoreAddress,

    /// Where to
    pub(crate) to: StoreAddress,

    /// Move only the pages that differ from what is there: a file is changed where it is, all or nothing by its journal
    #[arg(long)]
    pub(crate) delta: bool,

    /// Go on where a copy was interrupted, and keep what has arrived if this one is, too. Of a region of a peer, what has
    /// arrived is flushed now and then: it is a mix of old and new until the end
    #[arg(long)]
    pub(crate) resume: bool,

    /// How pages are compared: xxh3 is as fast as memory, blake3 withstands pages that somebody has made to have the
    /// same hash; auto is blake3 where pw+tls:// is involved
    #[arg(long, value_name = "ALGORITHM", default_value = "auto", value_parser = parse_hash)]
    pub(crate) hash: HashChoice,

    /// Print one JSON object when it is done
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Keep a region in step with a file that programs have mapped
///
/// The file is hashed again and again, since nobody tells of what programs write to a shared mapping, and the pages that
/// have changed are pushed to the region, as one epoch a round. The first round pushes what differs from what the
/// region holds. Prints `mirroring FILE` after that, and lasts until SIGINT or SIGTERM, with a last round then.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples: the state of a program that is not to be changed, on any number of other hosts
  pagewire serve 'state=file:/srv/state?size=1GiB'                           # the hub
  pagewire mirror /var/lib/app/state pw://10.0.0.7:7070/state                # where the program runs
  pagewire follow pw://10.0.0.7:7070/state /var/lib/app/state                # elsewhere")]
pub(crate) struct Mirror {
    /// The file
    pub(crate) file: PathBuf,

    /// The region that is kept in step
    pub(crate) region: StoreAddress,

    /// One round, and no more
    #[arg(long)]
    pub(crate) once: bool,

    /// The shortest pause between two rounds
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = parse_time)]
    pub(crate) interval: Duration,

    /// The longest: while nothing changes, each pause is twice the one before it, up to this
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_time)]
    pub(crate) max_interval: Duration,

    /// The most that hashing takes of one processor's time, in per cent; more than 100 where there are several
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpu: Option<u32>,

    /// How many threads hash; as many as there are processors, where none is given
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,

    /// How pages are told apart: see copy --hash
    #[arg(long, value_name = "ALGORITHM", default_value = "auto", value_parser = parse_hash)]
    pub(crate) hash: HashChoice,

    /// Print one JSON object at the end
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Bring the epochs of a region to a file, as they come
///
/// Each epoch is applied as a whole, by the file's journal: whoever opens the file through Pagewire sees one epoch, whatever is
/// killed. A follower that was away is compared with the region by hashes, and gets what differs. Prints `following
/// REGION` once the file has an epoch, and lasts until SIGINT or SIGTERM.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire follow pw://10.0.0.7:7070/state /var/lib/app/state
  pagewire follow pw://10.0.0.7:7070/state pw://10.0.1.7:7070/state          # a hub behind a hub")]
pub(crate) struct Follow {
    /// The region
    pub(crate) region: StoreAddress,

    /// Where its epochs go: a file, which is made where there is none, or the address of a store
    #[arg(value_name = "FILE")]
    pub(crate) to: String,

    /// Write to the file as pages come, without a journal: it is a mix of two epochs meanwhile
    #[arg(long)]
    pub(crate) in_place: bool,

    /// Bring the newest epoch, and end
    #[arg(long)]
    pub(crate) once: bool,

    /// How pages are compared: see copy --hash
    #[arg(long, value_name = "ALGORITHM", default_value = "auto", value_parser = parse_hash)]
    pub(crate) hash: HashChoice,

    /// Print one JSON object at the end
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Serve the page faults of VM monitors
///
/// Speaks Firecracker's handshake: a monitor that loads a snapshot with a memory backend of type
/// 'Uffd' connects to the socket, and its guest runs at once while its memory streams in.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples: restore microVMs from a snapshot that another host offers
  pagewire uffd pw://10.0.0.7:7070/snapshot --socket /run/pagewire-uffd.sock
  pagewire uffd pw://10.0.0.7:7070/snapshot --socket /run/pagewire-uffd.sock --cache /var/cache/snapshot")]
pub(crate) struct Uffd {
    /// The region that holds the guest's memory
    pub(crate) region: StoreAddress,

    /// The UNIX socket to listen on
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,

    /// Pull only what is touched: the same as --pull none
    #[arg(long, conflicts_with = "pull")]
    pub(crate) no_pull: bool,

    /// What to pull in the background: none, sequential, or trace:FILE
    #[arg(long, value_name = "ORDER", value_parser = parse_order)]
    pub(crate) pull: Option<Order>,

    /// Record to FILE in which order guests need their memory; nothing is pulled in the background unless --pull says so
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// Keep what was pulled in this file, and pull only what is missing there. Guests that run at the same
    /// time have the same epoch then
    #[arg(long, value_name = "FILE")]
    pub(crate) cache: Option<PathBuf>,

    /// What a fault pulls: a power of two, at least 4KiB
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = parse_chunk)]
    pub(crate) chunk: ChunkSize,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Make a region a file that any program can open and map, or a block device
///
/// A region is mounted over a file, which is made where there is none; the address of a peer without a name
/// mounts a directory of all its regions. The file is there at once and fills itself in the background; what
/// programs write is flushed to the region by their fsync. Prints `mounted PATH` once it is there, and lasts until
/// SIGINT, SIGTERM or `umount PATH`, which all flush first.
///
/// With --via nbd it is a block device, /dev/nbdN, which can be formatted and mounted: the kernel's NBD client is
/// connected to this process. It ends when nobody uses it any more; a second signal does not wait for that.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire mount pw://10.0.0.7:7070/model /srv/model.bin
  pagewire mount pw://10.0.0.7:7070/app.db /var/lib/app.db --writable --background
  pagewire mount pw://10.0.0.7:7070 /mnt/regions
  pagewire mount pw://10.0.0.7:7070/disk --via nbd --writable")]
pub(crate) struct Mount {
    /// The region, or a peer for all of its regions
    pub(crate) region: String,

    /// Where to mount it: a file or a directory; /dev/nbdN with --via nbd, or any that is free
    pub(crate) path: Option<PathBuf>,

    /// What to make of it: a file (fuse), or a block device (nbd)
    #[arg(long, value_name = "WAY", default_value = "fuse")]
    pub(crate) via: Via,

    /// Let programs write: takes the region's lease
    #[arg(long)]
    pub(crate) writable: bool,

    /// Keep no local copy: each read and write goes to the region; a device otherwise has one in memory, of a peer's
    #[arg(long)]
    pub(crate) direct: bool,

    /// Flush by the fsyncs of programs alone, so that each is all or nothing; keeps what they write in memory till then
    #[arg(long, requires = "writable")]
    pub(crate) atomic: bool,

    /// What to pull in the background: none, sequential, or trace:FILE
    #[arg(long, value_name = "ORDER", value_parser = parse_order)]
    pub(crate) pull: Option<Order>,

    /// Keep what was pulled, and what was written and not flushed yet, in this file across restarts
    #[arg(long, value_name = "FILE")]
    pub(crate) cache: Option<PathBuf>,

    /// Record to FILE in which order programs need the region; nothing is pulled in the background unless --pull says so
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// Stay at the epoch that is mounted, whatever happens to the region. With --cache, what is opened once all is
    /// there is read by the kernel from the cache's file
    #[arg(long)]
    pub(crate) stay: bool,

    /// How far the kernel reads ahead of programs: 2MiB beside a background pull or over a long way, else 16KiB.
    /// Only root can change it
    #[arg(long, value_name = "SIZE", value_parser = parse_read_ahead)]
    pub(crate) read_ahead: Option<u64>,

    /// Let other users use it, too
    #[arg(long)]
    pub(crate) allow_other: bool,

    /// Return when it is mounted, and go on in the background
    #[arg(long)]
    pub(crate) background: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// What a region is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Via {
    Fuse,
    Nbd,
}

/// In which order to pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    None,
    Sequential,
    Trace(PathBuf),
}

impl Order {
    /// What is pulled where `asked` is what was said: what the background brings is not asked for by programs, and is
    /// in no trace.
    pub(crate) fn or_default(asked: Option<&Self>, traced: bool) -> &Self {
        asked.unwrap_or(if traced { &Order::None } else { &Order::Sequential })
    }

    /// The order, for a pull in chunks of `chunk`.
    pub(crate) fn read(&self, chunk: ChunkSize) -> pagewire::Result<pagewire::PullOrder> {
        match self {
            Order::None => Ok(pagewire::PullOrder::None),
            Order::Sequential => Ok(pagewire::PullOrder::Sequential),
            Order::Trace(path) => pagewire::engine::trace::recorded(path, chunk),
        }
    }
}

/// How pages are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HashChoice {
    Auto,
    Of(Algorithm),
}

impl HashChoice {
    /// The algorithm for a comparison of these two.
    pub(crate) fn between(self, one: &StoreAddress, other: &StoreAddress) -> Algorithm {
        let is_tls = |address: &StoreAddress| matches!(address, StoreAddress::Remote(region) if matches!(region.peer, PeerAddress::Tls(_)));
        match self {
            HashChoice::Of(algorithm) => algorithm,
            HashChoice::Auto if is_tls(one) || is_tls(other) => Algorithm::Blake3,
            HashChoice::Auto => Algorithm::Xxh3,
        }
    }
}

fn parse_hash(text: &str) -> Result<HashChoice, String> {
    match text {
        "auto" => Ok(HashChoice::Auto),
        "xxh3" => Ok(HashChoice::Of(Algorithm::Xxh3)),
        "blake3" => Ok(HashChoice::Of(Algorithm::Blake3)),
        _ => Err("write auto, xxh3, or blake3".into()),
    }
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    match text {
        "auto" => Ok(Compression::Auto),
        "off" => Ok(Compression::Off),
        "lz4" => Ok(Compression::Always(Codec::Lz4)),
        "zstd" => Ok(Compression::Always(Codec::Zstd)),
        _ => Err("write auto, off, lz4, or zstd".into()),
    }
}

fn parse_order(text: &str) -> Result<Order, String> {
    match text {
        "none" => Ok(Order::None),
        "sequential" => Ok(Order::Sequential),
        _ => match text.strip_prefix("trace:") {
            Some(path) if !path.is_empty() => Ok(Order::Trace(path.into())),
            _ => Err("write none, sequential, or trace:FILE".into()),
        },
    }
}

fn parse_read_ahead(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    match bytes.is_multiple_of(4096) && bytes <= 16 << 20 {
        true => Ok(bytes),
        false => Err("write a multiple of 4KiB, up to 16MiB".into()),
    }
}

/// Show the main job, end to end, on this machine
///
/// A server process offers a file; this process maps it through userfaultfd, uses it at once, lets the
/// rest arrive, and compares both sides. Without a file it makes an SQLite database of a million rows; it
/// then also changes rows in the mapped database, flushes them, kills the server, and finds them again.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  pagewire demo\n  pagewire demo /srv/model.bin --json")]
pub(crate) struct Demo {
    /// The file to use
    pub(crate) file: Option<PathBuf>,

    /// How many rows the database that is made has
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, conflicts_with = "file")]
    pub(crate) rows: u32,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Print a completion script for a shell
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  pagewire completions bash > /etc/bash_completion.d/pagewire")]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

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

fn parse_offer(text: &str) -> Result<(String, StoreAddress), String> {
    let (name, store) =
        text.split_once('=').ok_or_else(|| format!("write NAME=STORE, for instance db=file:{text}"))?;
    pagewire::address::check_name(name).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), store.parse().map_err(|error: pagewire::Error| error.to_string())?))
}

fn parse_chunk(text: &str) -> Result<ChunkSize, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    ChunkSize::new(bytes).map_err(|error| error.to_string())
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, unit) = text.split_at(digits);
    let number = number.parse::<u64>().ok();
    let time = match (number, unit) {
        (Some(number), "ms") => Some(Duration::from_millis(number)),
        (Some(number), "s") => Some(Duration::from_secs(number)),
        (Some(number), "min") => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    };
    time.filter(|time| !time.is_zero() && *time <= Duration::from_secs(86_400 * 365))
        .ok_or_else(|| format!("'{text}' is no time: write a number with ms, s or min"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn times_read_as_people_write_them() {
        assert_eq!(parse_time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_time("3s"), Ok(Duration::from_secs(3)));
        for wrong in ["", "3", "s", "0s", "-1s", "3h", "99999999999999999999s"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
