//! What can be said on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};
use pagewire::ChunkSize;
use pagewire::address::{PeerAddress, StoreAddress, parse_size};

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
  pw+unix://SOCKET/NAME         the same over a UNIX socket, its path percent-encoded

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
    Demo(Demo),
    Completions(Completions),
}

/// Offer regions to peers
///
/// Prints `listening ADDRESS` once it accepts connections, and serves until SIGINT or SIGTERM. One peer at
/// a time may write to a region; what is flushed is kept, whatever is killed. A region of another peer is
/// passed on for reading.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire serve model=file:/srv/model.bin --read-only --listen pw://0.0.0.0:7070
  pagewire serve db=file:/srv/app.db?capacity=1GiB")]
pub(crate) struct Serve {
    /// What to offer, under which name
    #[arg(required = true, value_name = "NAME=STORE", value_parser = parse_offer)]
    pub(crate) offers: Vec<(String, StoreAddress)>,

    /// Where to listen; port 0 is any free one. Can be given more than once
    #[arg(long, value_name = "ADDRESS", default_value = "pw://127.0.0.1:7070")]
    pub(crate) listen: Vec<PeerAddress>,

    /// How many connections there may be at once
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    pub(crate) max_connections: usize,

    /// Let peers read only
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Let whoever reaches a port of this host write, without encryption and without asking who it is
    #[arg(long, conflicts_with = "read_only")]
    pub(crate) insecure: bool,

    /// How long a writer whose connection is lost may take to come back before another may write
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    pub(crate) lapse: Duration,
}

/// Show what a peer offers
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  pagewire list pw://10.0.0.7:7070")]
pub(crate) struct List {
    /// The peer
    #[arg(value_name = "ADDRESS")]
    pub(crate) peer: PeerAddress,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Show what is known of a region: size, epoch, capabilities
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  pagewire info pw://10.0.0.7:7070/model")]
pub(crate) struct Info {
    /// The region
    pub(crate) region: StoreAddress,

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
/// one epoch: a copy that was interrupted leaves what was there before.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire copy pw://10.0.0.7:7070/model file:/var/lib/model.bin
  pagewire copy file:model.bin pw://10.0.0.7:7070/model")]
pub(crate) struct Copy {
    /// The region to copy
    pub(crate) from: StoreAddress,

    /// Where to
    pub(crate) to: StoreAddress,

    /// Print one JSON object when it is done
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

    /// Pull only what is touched
    #[arg(long)]
    pub(crate) no_pull: bool,

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

    /// How long to wait for a peer before giving up
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_time)]
    pub(crate) patience: Duration,
}

impl Remote {
    pub(crate) fn options(&self) -> pagewire::store::RemoteOptions {
        pagewire::store::RemoteOptions {
            connections: usize::from(self.connections),
            patience: self.patience,
            connect_timeout: self.patience.min(Duration::from_secs(10)),
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
