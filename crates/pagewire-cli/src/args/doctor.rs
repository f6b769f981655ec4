//! `pagewire doctor`, and a workload as flags.

use std::time::Duration;

use clap::Args as ClapArgs;
use pagewire::address::{StoreAddress, parse_size};
use pagewire::advice::{Goal, Need, UseCase, Workload, Writes};

use super::remote::Remote;
use super::value::{parse_fine_time, parse_percent, parse_rate};

/// Say what this machine supports, what is missing and how to get it, and which method to use
///
/// Looks at the kernel, its features, and what this user may do, changes nothing, and leaves nothing behind. With
/// --for, with flags that describe a workload, or with a region it also recommends an access method: with
/// the reasons, what was ruled out and why, and the commands to type. A region of a peer or an NBD export is asked for its
/// size, for how far it is, and whether it can be written to; of a peer's, bytes are fetched for half a second to see what the
/// link carries, unless --rate says so.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Use cases for --for; flags change what one of them says:
  model     the weights of a model, mapped and read as a whole by a program as it is
  assets    a large collection far away, of which a program as it is needs little
  memory    a table in the memory of a program that can be changed, read at random
  state     the state of a program that can be changed, written in its memory
  database  a database of a program as it is, whose commits must survive a crash
  snapshot  the memory of a VM that is restored from a snapshot
  vm-ram    the memory of a VM that moves to another host while it runs
  replica   a file that a program as it is has mapped and writes to, followed on ten hosts
  disk      a disk, to be formatted and used by anything

Examples:
  pagewire doctor
  pagewire doctor --for model
  pagewire doctor --for database --region 20GiB --rtt 20ms --rate 100Mbit/s
  pagewire doctor --shared-file --unmodified-program --writes-per-second 200 --survives-crash
  pagewire doctor --for vm-ram --dirty-rate 400MB/s --downtime 100ms
  pagewire doctor pw://10.0.0.7:7070/model --for model")]
pub(crate) struct Doctor {
    /// The region that is to be used: it is asked for what can be known
    #[arg(value_name = "REGION", value_parser = parse_far)]
    pub(crate) of: Option<StoreAddress>,

    /// Recommend a method for this use case
    #[arg(long = "for", value_name = "USE", value_parser = parse_use)]
    pub(crate) case: Option<UseCase>,

    #[command(flatten)]
    pub(crate) workload: Flags,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) remote: Remote,
}

/// A workload, as far as it is said.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Workload")]
pub(crate) struct Flags {
    /// How large the region is
    #[arg(long, value_name = "SIZE", value_parser = parse_region)]
    pub(crate) region: Option<u64>,

    /// Which share of it is going to be touched
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    pub(crate) touched: Option<f64>,

    /// How long a question and its answer take on the link: 500us, 25ms
    #[arg(long, value_name = "TIME", value_parser = parse_fine_time)]
    pub(crate) rtt: Option<Duration>,

    /// What the link carries: 10Gbit/s, 125MB/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) rate: Option<f64>,

    /// The program wants a file
    #[arg(long, group = "need")]
    file: bool,

    /// Several programs of one host want the same file
    #[arg(long, group = "need")]
    shared_file: bool,

    /// The program wants bytes in its memory
    #[arg(long, group = "need")]
    memory: bool,

    /// The program wants a block device
    #[arg(long, group = "need")]
    block_device: bool,

    /// The program speaks NBD itself, as qemu does
    #[arg(long, group = "need")]
    nbd_client: bool,

    /// The program is not to be changed (=false: it can be)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    unmodified_program: Option<bool>,

    /// Nothing is written
    #[arg(long, conflicts_with_all = ["writes_per_second", "dirty_rate", "survives_crash"])]
    pub(crate) read_only: bool,

    /// How many pages are written to in a second
    #[arg(long, value_name = "COUNT")]
    writes_per_second: Option<u32>,

    /// How many bytes, in whole pages, are changed in a second
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    dirty_rate: Option<f64>,

    /// What counts: latency, that a byte is there soon; or throughput, that all are
    #[arg(long, value_name = "WHAT", value_parser = parse_goal)]
    goal: Option<Goal>,

    /// What the program was told is durable must survive a crash of its host (=false: it need not)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    survives_crash: Option<bool>,

    /// On how many other hosts the region is to be kept in step
    #[arg(long, value_name = "COUNT")]
    followers: Option<u32>,

    /// The region is the memory of a VM (=false: it is not)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    vm_ram: Option<bool>,

    /// The program moves to another host, with its state (=false: it stays)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    moves: Option<bool>,

    /// The longest that it may stand still when it moves
    #[arg(long, value_name = "TIME", value_parser = parse_fine_time)]
    downtime: Option<Duration>,
}

impl Flags {
    /// Whether nothing is said.
    pub(crate) fn are_none(&self) -> bool {
        let Flags { region, touched, rtt, rate, goal, followers, downtime, .. } = self;
        let said = [
            region.is_some(),
            touched.is_some(),
            rtt.is_some(),
            rate.is_some(),
            goal.is_some(),
            followers.is_some(),
            downtime.is_some(),
            self.need().is_some(),
            self.read_only,
            self.writes().is_some(),
            self.unmodified_program.is_some(),
            self.survives_crash.is_some(),
            self.vm_ram.is_some(),
            self.moves.is_some(),
        ];
        !said.contains(&true)
    }

    /// The workload that differs from `base` by what is said.
    pub(crate) fn over(&self, base: Workload) -> Workload {
        let read_only = Writes::NONE;
        Workload {
            region: self.region.unwrap_or(base.region),
            touched: self.touched.unwrap_or(base.touched),
            round_trip: self.rtt.unwrap_or(base.round_trip),
            rate: self.rate.unwrap_or(base.rate),
            need: self.need().unwrap_or(base.need),
            unmodified: self.unmodified_program.unwrap_or(base.unmodified),
            shared: self.shared_file || self.need().is_none() && base.shared,
            writes: if self.read_only { read_only } else { self.writes().unwrap_or(base.writes) },
            goal: self.goal.unwrap_or(base.goal),
            survives_crash: !self.read_only && self.survives_crash.unwrap_or(base.survives_crash),
            followers: self.followers.unwrap_or(base.followers),
            vm_ram: self.vm_ram.unwrap_or(base.vm_ram),
            moves: self.moves.unwrap_or(base.moves),
            downtime: self.downtime.unwrap_or(base.downtime),
        }
    }

    fn need(&self) -> Option<Need> {
        let said = [
            (self.file || self.shared_file, Need::File),
            (self.memory, Need::Memory),
            (self.block_device, Need::BlockDevice),
            (self.nbd_client, Need::NbdClient),
        ];
        said.into_iter().find_map(|(is_said, need)| is_said.then_some(need))
    }

    /// Either number stands for the other where one alone is said.
    fn writes(&self) -> Option<Writes> {
        let per_second = self.writes_per_second.map(f64::from);
        match (per_second, self.dirty_rate) {
            (None, None) => None,
            (Some(writes), None) => Some(Writes::scattered(writes)),
            (None, Some(rate)) => Some(Writes::dirtying(rate)),
            (Some(per_second), Some(dirty_per_second)) => Some(Writes { per_second, dirty_per_second }),
        }
    }
}

fn parse_region(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("a region that is empty needs no method".into()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_use(text: &str) -> Result<UseCase, String> {
    text.parse().map_err(|error: pagewire::advice::UnknownUseCase| error.to_string())
}

fn parse_goal(text: &str) -> Result<Goal, String> {
    match text {
        "latency" => Ok(Goal::Latency),
        "throughput" => Ok(Goal::Throughput),
        _ => Err("write latency or throughput".into()),
    }
}

/// The address of a region that is reached by a link.
fn parse_far(text: &str) -> Result<StoreAddress, String> {
    match text.parse::<StoreAddress>() {
        Ok(address @ (StoreAddress::Remote(_) | StoreAddress::Nbd(_))) => Ok(address),
        Ok(_) => {
            Err(format!("'{text}' is on this host: there is no link to be measured; use --for, or flags"))
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_change_what_a_use_case_says() {
        let base = UseCase::Model.workload();
        assert_eq!(Flags::default().over(base), base);
        assert!(Flags::default().are_none());
        let flags = Flags { region: Some(5), moves: Some(true), block_device: true, ..Flags::default() };
        assert!(!flags.are_none());
        let changed = flags.over(base);
        let expected = Workload { region: 5, moves: true, need: Need::BlockDevice, shared: false, ..base };
        assert_eq!(changed, expected, "a device is not the file that was to be shared");
        let flags = Flags { read_only: true, ..Flags::default() };
        let changed = flags.over(UseCase::Database.workload());
        assert!(changed.is_read_only() && !changed.survives_crash);
        let flags = Flags { writes_per_second: Some(10), dirty_rate: Some(1e6), ..Flags::default() };
        assert_eq!(flags.over(base).writes, Writes { per_second: 10.0, dirty_per_second: 1e6 });
        let flags = Flags { writes_per_second: Some(10), ..Flags::default() };
        assert_eq!(flags.over(base).writes, Writes { per_second: 10.0, dirty_per_second: 40960.0 });
    }

    #[test]
    fn the_help_has_every_use_case() {
        use clap::CommandFactory;
        let mut command = crate::args::Args::command();
        let help = command.find_subcommand_mut("doctor").unwrap().render_long_help().to_string();
        for case in UseCase::ALL {
            let line = format!("{:9} {}", case.as_str(), case.what());
            assert!(help.contains(&line), "{line}: {help}");
        }
    }
}
