//! `pagewire migrate`, and what its steps are told.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use pagewire::Compression;
use pagewire::address::{PeerAddress, RegionAddress, StoreAddress, parse_size};
use pagewire::engine::migration::Mode;

use super::remote::{Identity, Remote};
use super::serve::parse_offer;
use super::value::{parse_compression, parse_time};

/// Move regions that are in use to another host, with the application that uses them
///
/// On the host that has the application, `migrate out` makes its regions files, and offers them to be taken over. On the
/// host that it is to go to, `migrate in` copies them while the application runs, has it suspended, makes them files
/// there, and resumes it. At each moment one of both owns the regions, and a record on either side's disk says which:
/// whatever is killed, the application runs on one host, and nothing that it has written is missing there.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Example: a database moves from one host to another
  # where it is:
  pagewire migrate out db=file:/srv/app.db?capacity=1GiB --mount /var/lib/app/db --listen pw://10.0.0.7:7070 --insecure \\
    --on-suspend 'systemctl stop app' --on-resume 'systemctl start app'
  # where it is to go:
  pagewire migrate in pw://10.0.0.7:7070/db /var/lib/app/db \\
    --on-suspend 'systemctl stop app' --on-resume 'systemctl start app'")]
pub(crate) struct Migrate {
    #[command(subcommand)]
    pub(crate) step: MigrateStep,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MigrateStep {
    Out(MigrateOut),
    In(MigrateIn),
    Status(MigrateStatus),
    Resume(MigrateResume),
    Abort(MigrateAbort),
}

/// Offer the regions of an application to be taken over
///
/// Each region is mounted as a file that the application uses, and offered; all of them move together. Readers
/// are served beside. Prints `mounted PATH` for each and then `listening ADDRESS`, and ends with status 0 when another
/// host has everything, or at SIGINT or SIGTERM.
///
/// Started again after a crash it goes by the record: where the application has moved, or may have, its files
/// are there and cannot be written to, and it is not resumed here.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Commands get PAGEWIRE_MIGRATION (an id), PAGEWIRE_ROLE (origin or destination), and, a line each, PAGEWIRE_REGIONS (names) and
PAGEWIRE_PATHS (files). What they print goes to standard error. When a command fails, or takes too long, the migration is given
up, and the command of --on-resume is run: it has to be one that may be run also where the application runs.

Examples:
  pagewire migrate out db=file:/srv/app.db --mount /var/lib/app/db --on-suspend ./stop --on-resume ./start
  pagewire migrate out ram=file:/srv/vm.ram --mount /run/vm.ram --suspend-pid 4711
  pagewire migrate out db=file:/srv/app.db --mount /run/db --witness pw://10.0.0.9:7070/db --on-suspend ./stop --on-resume ./start
  pagewire migrate out db=file:db --mount db=/run/db log=file:log --mount log=/run/log --suspend-pid $(pidof app)")]
pub(crate) struct MigrateOut {
    /// The regions, each under a name
    #[arg(required = true, value_name = "NAME=STORE", value_parser = parse_offer)]
    pub(crate) offers: Vec<(String, StoreAddress)>,

    /// Where a region is mounted as a file; of one region alone, just the path
    #[arg(long, required = true, value_name = "[NAME=]PATH")]
    pub(crate) mount: Vec<String>,

    #[command(flatten)]
    pub(crate) offering: Offering,

    #[command(flatten)]
    pub(crate) hooks: Hooks,

    /// A third store, on neither of the two hosts, that a region is streamed to while it is copied, and that has all of it
    /// before the application is resumed elsewhere: so the loss of this host loses nothing afterwards. What it holds is
    /// overwritten. Of one region alone, just the store
    #[arg(long, value_name = "[NAME=]STORE")]
    pub(crate) witness: Vec<String>,

    /// How long a witness that fails is tried again before the migration is given up, and how long the suspended application
    /// may wait for it
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_time)]
    pub(crate) witness_patience: Duration,

    /// The file that says, across crashes, who owns the regions; STORE.migration beside the first file among the stores,
    /// where none is named
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,

    /// Let other users use the files, too
    #[arg(long)]
    pub(crate) allow_other: bool,

    #[command(flatten)]
    pub(crate) identity: Identity,

    /// Whether to compress for those who take it: auto, off, lz4, zstd
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = parse_compression)]
    pub(crate) compress: Compression,
}

/// Take regions over, with the application that uses them
///
/// Prints `arrived` with what it came to as soon as the application runs here, and `complete` when everything is
/// here and the origin is not needed any more. It stays in the foreground and serves the files, until SIGINT,
/// SIGTERM or umount, which all flush first. With --listen and a way to suspend the application it offers the regions to
/// be moved on from then on, as `migrate out` does.
///
/// What a store holds is overwritten, also where the migration is given up. Started again after a crash, with the same
/// words, it goes on where it was: see `migrate resume`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire migrate in pw://10.0.0.7:7070/db /var/lib/app/db --on-resume 'systemctl start app'
  pagewire migrate in pw://10.0.0.7:7070/db /run/db pw://10.0.0.7:7070/log /run/log --max-downtime 50ms --deadline 60s
  pagewire migrate in pw://10.0.0.7:7070/ram /run/vm.ram --store file:/srv/vm.ram --mode post-copy
  pagewire migrate in pw://10.0.0.7:7070/db /run/db --mode post-copy --witness pw://10.0.0.9:7070/db")]
pub(crate) struct MigrateIn {
    /// Each region at its origin, and where it is mounted as a file here
    #[arg(required = true, num_args = 2.., value_names = ["REGION", "PATH"])]
    pub(crate) regions: Vec<String>,

    /// Where the bytes of a region live from now on, in the order of the regions; file:PATH.region beside where it is
    /// mounted, as large as it was at the origin, where none is named
    #[arg(long, value_name = "STORE")]
    pub(crate) store: Vec<StoreAddress>,

    /// How: pre-copy sends everything before the switch, post-copy after it, hybrid most of it before; auto as the other
    /// goals and what is measured on the way ask for
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub(crate) mode: Mode,

    /// For how long the application may stand still; as short as it can be, where nothing is said
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) max_downtime: Option<Duration>,

    /// When everything should be here, from the beginning
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) deadline: Option<Duration>,

    /// How many bytes may be sent in all
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) max_bytes: Option<u64>,

    /// When to begin: now, or at the best moment, when the application writes little
    #[arg(long, value_name = "WHEN", default_value = "now")]
    pub(crate) when: Moment,

    /// How long to wait for the best moment
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time)]
    pub(crate) within: Duration,

    #[command(flatten)]
    pub(crate) hooks: Hooks,

    #[command(flatten)]
    pub(crate) offering: Offering,

    /// The store that the origin streams a region to by its own --witness, as it is reached from here: what has not arrived
    /// comes from there when the origin is gone. Of one region alone, just the store
    #[arg(long, value_name = "[NAME=]STORE")]
    pub(crate) witness: Vec<String>,

    /// For how long an origin may not answer before the witness is asked in its place; at once, where it refuses
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_time)]
    pub(crate) witness_patience: Duration,

    /// The file that says, across crashes, who owns the regions; STORE.arrival beside the first file among the stores,
    /// where none is named
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,

    /// Let other users use the files, too
    #[arg(long)]
    pub(crate) allow_other: bool,

    /// Print one JSON object when everything is here
    #[arg(long)]
    pub(crate) json: bool,

    /// Return when the application runs here, and go on in the background
    #[arg(long, conflicts_with = "json")]
    pub(crate) background: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// When a migration begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Moment {
    Now,
    Best,
}

/// How an application is suspended and resumed.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Hooks {
    /// What suspends the application, for sh -c: when it returns, nothing is written any more
    #[arg(long, value_name = "CMD")]
    pub(crate) on_suspend: Option<String>,

    /// What has the application go on, for sh -c
    #[arg(long, value_name = "CMD")]
    pub(crate) on_resume: Option<String>,

    /// A process that is suspended by SIGSTOP, after the command if there is one, and continued if it stays. Once the
    /// regions have moved it is killed. Can be given more than once
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) suspend_pid: Vec<u32>,

    /// How long suspending or resuming may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    pub(crate) hook_timeout: Duration,
}

impl Hooks {
    /// Whether there is a way to suspend the application.
    pub(crate) fn can_suspend(&self) -> bool {
        self.on_suspend.is_some() || !self.suspend_pid.is_empty()
    }
}

/// Where regions are offered, and to whom.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Offering {
    /// Where to offer the regions; port 0 is any free one. Can be given more than once
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Vec<PeerAddress>,

    /// Let whoever reaches a port of this host take the regions over, without asking who it is
    #[arg(long)]
    pub(crate) insecure: bool,

    /// The authorities that sign clients' certificates, in PEM: nobody else is let in at pw+tls://
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub(crate) tls_clients: Option<PathBuf>,

    /// Which certificates may read the regions, and take them over, which takes the right to write; in TOML, see serve
    #[arg(long, value_name = "FILE", requires = "tls_clients")]
    pub(crate) access: Option<PathBuf>,

    /// How long a destination that is gone is waited for before the migration is given up; not after the switch
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    pub(crate) lapse: Duration,
}

/// Tell how a migration is doing
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire migrate status pw://10.0.0.7:7070/db
  pagewire migrate status /srv/app.db.migration       # where no process runs any more")]
pub(crate) struct MigrateStatus {
    /// A region at its origin, or the record of either side
    #[arg(value_name = "REGION|RECORD")]
    pub(crate) of: Subject,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// Go on with what a crash has interrupted
///
/// Runs `migrate out` or `migrate in` again, in the same folder and with the same words as they were begun with,
/// which are kept beside the record.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  pagewire migrate resume /var/lib/app/db.region.arrival")]
pub(crate) struct MigrateResume {
    /// The record of either side
    pub(crate) record: PathBuf,
}

/// Give a migration up, so that the application goes on at its origin
///
/// Before the switch that is always possible. After it has been offered, only the destination can know whether it owns
/// the application. Where its host is lost for good, --force takes the application back; what it has written
/// there is lost then, and if it still runs there, both do.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire migrate abort pw://10.0.0.7:7070/db
  pagewire migrate abort /srv/app.db.migration --force      # where no process runs any more")]
pub(crate) struct MigrateAbort {
    /// A region at its origin, or the record of either side
    #[arg(value_name = "REGION|RECORD")]
    pub(crate) of: Subject,

    /// Also where only the destination could know whether it owns the application: it is known never to run there
    #[arg(long)]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// What knows of a migration.
#[derive(Debug, Clone)]
pub(crate) enum Subject {
    /// The origin of a region.
    Region(RegionAddress),
    /// The record of either side.
    Record(PathBuf),
}

impl std::str::FromStr for Subject {
    type Err = pagewire::Error;

    fn from_str(text: &str) -> pagewire::Result<Self> {
        match text.starts_with("pw://") || text.starts_with("pw+") {
            true => text.parse().map(Subject::Region),
            false => Ok(Subject::Record(text.into())),
        }
    }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}
