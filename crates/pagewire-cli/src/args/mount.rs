//! The commands that let programs use a region where it is: `pagewire mount` and `pagewire uffd`.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use pagewire::ChunkSize;
use pagewire::address::{StoreAddress, parse_size};

use super::remote::Remote;
use super::value::parse_chunk;

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
