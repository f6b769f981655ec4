//! `pagewire study`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ClapArgs;
use pagewire::address::parse_size;
use pagewire_study::study::record::Method;

use super::value::parse_time;

/// Compare the access methods with each other, on this machine
///
/// Each method does the same work over links between two network namespaces, whose round-trip time and rate are measured
/// first: how long the first byte and first touches take, throughput, processor time, bytes on the link, memory,
/// how long a change is on its way. One circumstance is varied at a time. In the folder are then the raw data, and the report
/// that is made from it: report.html and report.md. What this user may not do, or this kernel cannot, is
/// recorded with the reason. Ctrl-C ends it at any time; --resume goes on.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  pagewire study --quick
  pagewire study --out /var/tmp/study --methods uffd,fuse
  pagewire study --out /var/tmp/study --methods uffd,fuse --resume
  pagewire study --out /var/tmp/study --report-only
  pagewire study --out /var/tmp/study --compare /var/tmp/another")]
pub(crate) struct Study {
    /// The folder for the results
    #[arg(long, value_name = "DIR", default_value = "pagewire-study")]
    pub(crate) out: PathBuf,

    /// A few points of each dimension, once, on a small region: some minutes instead of most of an hour
    #[arg(long)]
    pub(crate) quick: bool,

    /// Go on with the study in the folder: measure what it lacks
    #[arg(long)]
    pub(crate) resume: bool,

    /// Which methods, instead of all: uffd, fuse, nbd, nbd-user, mirror, local-memory, local-file
    #[arg(long, value_name = "METHOD,…", value_delimiter = ',', value_parser = parse_method)]
    pub(crate) methods: Vec<Method>,

    /// Only cells whose name has one of these texts in it, such as random or .rtt5.: names are in the raw data
    #[arg(long, value_name = "TEXT,…", value_delimiter = ',')]
    pub(crate) only: Vec<String>,

    /// How often each cell is measured; 3 times where nothing is said, once with --quick
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: Option<u32>,

    /// How long a cell may take: what was done by then is recorded; 4s where nothing is said, 2s with --quick
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) cap: Option<Duration>,

    /// The size of the region; 128MiB where nothing is said, 32MiB with --quick
    #[arg(long, value_name = "SIZE", value_parser = parse_region)]
    pub(crate) size: Option<u64>,

    /// What the order and all that is random follows from: a number, to have the same again
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,

    /// How far the round-trip time and the rate of a link may be from what was asked for, in per cent: the cells of one that
    /// is farther from it are refused
    #[arg(long, value_name = "PERCENT", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) tolerance: u32,

    /// Drop so many of a hundred segments at random, on every link in each direction: in steps of 0.1, up to 20
    #[arg(long, value_name = "PERCENT", value_parser = parse_loss)]
    pub(crate) loss: Option<f64>,

    /// Measure nothing: make the report of the raw data that is in the folder, though it be from another machine
    #[arg(long, conflicts_with_all = ["quick", "resume", "methods", "only", "rounds", "cap", "size", "seed", "loss"])]
    pub(crate) report_only: bool,

    /// Measure nothing: say whether the study in the folder and the one in DIR recommend the same, and which of their figures
    /// are apart; status 1 where a recommendation differs
    #[arg(long, value_name = "DIR", conflicts_with_all = ["quick", "resume", "methods", "only", "rounds", "cap", "size", "seed", "loss", "report_only"])]
    pub(crate) compare: Option<PathBuf>,

    /// Print one JSON object when it is done
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_method(text: &str) -> Result<Method, String> {
    let names = || Method::ALL.map(Method::name).join(", ");
    let found = Method::ALL.into_iter().find(|method| method.name() == text);
    found.ok_or_else(|| format!("there is no method '{text}': the methods are {}", names()))
}

fn parse_region(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    match bytes {
        // A region has a hot set, and a share of it is written in a second.
        0x10_0000..=0x10_0000_0000 if bytes.is_multiple_of(4096) => Ok(bytes),
        _ => Err("a region of a study has 1MiB to 64GiB, in whole pages of 4KiB".into()),
    }
}

/// Segments of a hundred: a link drops so many of a thousand.
fn parse_loss(text: &str) -> Result<f64, String> {
    let thousandths = text.trim_end_matches('%').trim().parse::<f64>().map(|percent| percent * 10.0);
    match thousandths {
        Ok(many) if (0.0..=200.0).contains(&many) && (many - many.round()).abs() < 1e-6 => {
            Ok(many.round() / 10.0)
        }
        _ => Err("a loss is 0 to 20 per cent, in steps of 0.1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_and_sizes_are_told_from_what_is_none() {
        assert_eq!(parse_method("nbd-user"), Ok(Method::NbdUser));
        assert!(parse_method("nfs").unwrap_err().contains("uffd, fuse"));
        assert_eq!(parse_region("2MiB"), Ok(2 << 20));
        for wrong in ["1KiB", "1048577", "65TiB", "much"] {
            assert!(parse_region(wrong).is_err(), "{wrong}");
        }
        assert_eq!((parse_loss("0.1"), parse_loss("2%"), parse_loss("20")), (Ok(0.1), Ok(2.0), Ok(20.0)));
        for wrong in ["0.05", "20.1", "-1", "nan", "some"] {
            assert!(parse_loss(wrong).is_err(), "{wrong}");
        }
    }
}
