//! The commands that bring a region from one place to another.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use pagewire::Algorithm;
use pagewire::address::{PeerAddress, StoreAddress};

use super::remote::Remote;
use super::value::parse_time;

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
