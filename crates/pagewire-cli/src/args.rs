//! What can be said on the command line.

mod doctor;
mod migrate;
mod mount;
mod remote;
mod serve;
mod study;
mod transfer;
mod value;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

pub(crate) use doctor::Doctor;
pub(crate) use migrate::{
    Hooks, Migrate, MigrateAbort, MigrateIn, MigrateOut, MigrateResume, MigrateStatus, MigrateStep, Moment,
    Offering, Subject,
};
pub(crate) use mount::{Mount, Order, Uffd, Via};
pub(crate) use remote::Remote;
pub(crate) use serve::{Offerer, Serve};
pub(crate) use study::Study;
pub(crate) use transfer::{Copy, Follow, Mirror};

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
    Migrate(Migrate),
    Doctor(Doctor),
    Study(Study),
    Demo(Demo),
    Completions(Completions),
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

/// Show the main job, end to end, on this machine
///
/// A server process offers a file; this process maps it through userfaultfd, uses it at once, lets the
/// rest arrive, and compares both sides. Without a file it makes an SQLite database of a million rows; it
/// then also changes rows in the mapped database, flushes them, kills the server, and finds them again; and in the end
/// it moves the database to another host while a program commits to it, and looks whether all that was committed is there.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
