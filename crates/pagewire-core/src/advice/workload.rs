//! What a program does with a region, and how far away that is.

use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// What a program does with a region.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Workload {
    /// Bytes of the region.
    pub region: u64,
    /// Which share of it is going to be touched, 0 to 1.
    pub touched: f64,
    /// How long a question and its answer take on the link.
    #[serde(rename = "round_trip_seconds", serialize_with = "as_seconds")]
    pub round_trip: Duration,
    /// What the link carries, in bytes per second.
    pub rate: f64,
    /// What the program is to see.
    pub need: Need,
    /// The program is not to be changed.
    pub unmodified: bool,
    /// Several programs of one host use the region at once.
    pub shared: bool,
    /// What is written.
    pub writes: Writes,
    /// What counts.
    pub goal: Goal,
    /// What a program has been told is durable must be so after a crash of its host.
    pub survives_crash: bool,
    /// On how many other hosts the region is to be kept in step.
    pub followers: u32,
    /// The region is the memory of a virtual machine.
    pub vm_ram: bool,
    /// The program that uses the region moves to another host.
    pub moves: bool,
    /// The longest that it may stand still when it moves.
    #[serde(rename = "downtime_seconds", serialize_with = "as_seconds")]
    pub downtime: Duration,
}

/// What a program is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// It takes what there is.
    Any,
    /// Bytes in its memory.
    Memory,
    /// A file.
    File,
    /// A block device.
    BlockDevice,
    /// It speaks NBD itself, as qemu does.
    NbdClient,
}

/// What counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// That a byte is there soon.
    Latency,
    /// That all bytes are.
    Throughput,
}

/// A region of 1 GiB within a data centre, which a program that can be changed reads all of, as soon as it can.
impl Default for Workload {
    fn default() -> Self {
        Self {
            region: 1 << 30,
            touched: 1.0,
            round_trip: Duration::from_micros(500),
            // 10 Gbit/s.
            rate: 1.25e9,
            need: Need::Any,
            unmodified: false,
            shared: false,
            writes: Writes::NONE,
            goal: Goal::Throughput,
            survives_crash: false,
            followers: 0,
            vm_ram: false,
            moves: false,
            downtime: Duration::from_millis(300),
        }
    }
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Writes {
    /// Writes in a second, each to a page.
    pub per_second: f64,
    /// Bytes in whole pages that are different after a second.
    pub dirty_per_second: f64,
}

impl Writes {
    /// Nothing is written.
    pub const NONE: Writes = Writes { per_second: 0.0, dirty_per_second: 0.0 };

    /// Writes to pages all over the region: each dirties one.
    pub fn scattered(per_second: f64) -> Writes {
        Writes { per_second, dirty_per_second: per_second * 4096.0 }
    }

    /// So many bytes are dirtied in a second, by a write to each page.
    pub fn dirtying(bytes_per_second: f64) -> Writes {
        Writes { per_second: bytes_per_second / 4096.0, dirty_per_second: bytes_per_second }
    }

    /// Whether nothing is written.
    pub fn are_none(self) -> bool {
        self.per_second <= 0.0 && self.dirty_per_second <= 0.0
    }
}

impl Workload {
    /// What is going to be touched, in bytes.
    pub fn touched_bytes(&self) -> f64 {
        self.region as f64 * self.touched
    }

    /// Whether nothing is written.
    pub fn is_read_only(&self) -> bool {
        self.writes.are_none()
    }

    /// Whether a guest is moved whose memory it writes to: then what it writes has to be known from outside of its monitor.
    pub fn moves_guest(&self) -> bool {
        self.vm_ram && self.moves && !self.is_read_only()
    }

    /// With numbers that can be computed with.
    pub(super) fn in_bounds(&self) -> Workload {
        let positive = |value: f64, least: f64| if value.is_finite() { value.max(least) } else { least };
        let writes = Writes {
            per_second: positive(self.writes.per_second, 0.0),
            dirty_per_second: positive(self.writes.dirty_per_second, 0.0),
        };
        Workload {
            touched: positive(self.touched, 0.0).min(1.0),
            rate: positive(self.rate, 1.0),
            writes,
            ..*self
        }
    }
}

/// What stands for many workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UseCase {
    /// The weights of a model, that a program as it is maps and reads all of.
    Model,
    /// A large collection of which little is needed, far away.
    Assets,
    /// A table in the memory of a program that can be changed, read at random.
    Memory,
    /// The state of a program that can be changed, written in its memory.
    State,
    /// A database, whose commits must survive.
    Database,
    /// The memory of a VM that is restored from a snapshot.
    Snapshot,
    /// The memory of a VM that moves while it runs.
    VmRam,
    /// A file that a program as it is has mapped and writes to; others follow.
    Replica,
    /// A disk, to be formatted.
    Disk,
}

impl UseCase {
    /// All there are.
    pub const ALL: [UseCase; 9] = [
        UseCase::Model,
        UseCase::Assets,
        UseCase::Memory,
        UseCase::State,
        UseCase::Database,
        UseCase::Snapshot,
        UseCase::VmRam,
        UseCase::Replica,
        UseCase::Disk,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            UseCase::Model => "model",
            UseCase::Assets => "assets",
            UseCase::Memory => "memory",
            UseCase::State => "state",
            UseCase::Database => "database",
            UseCase::Snapshot => "snapshot",
            UseCase::VmRam => "vm-ram",
            UseCase::Replica => "replica",
            UseCase::Disk => "disk",
        }
    }

    /// What it is, in a line.
    pub fn what(self) -> &'static str {
        match self {
            UseCase::Model => "the weights of a model, mapped and read as a whole by a program as it is",
            UseCase::Assets => "a large collection far away, of which a program as it is needs little",
            UseCase::Memory => "a table in the memory of a program that can be changed, read at random",
            UseCase::State => "the state of a program that can be changed, written in its memory",
            UseCase::Database => "a database of a program as it is, whose commits must survive a crash",
            UseCase::Snapshot => "the memory of a VM that is restored from a snapshot",
            UseCase::VmRam => "the memory of a VM that moves to another host while it runs",
            UseCase::Replica => {
                "a file that a program as it is has mapped and writes to, followed on ten hosts"
            }
            UseCase::Disk => "a disk, to be formatted and used by anything",
        }
    }

    /// The workload that it stands for.
    pub fn workload(self) -> Workload {
        const GIB: u64 = 1 << 30;
        let base = Workload { region: 8 * GIB, need: Need::File, unmodified: true, ..Workload::default() };
        match self {
            UseCase::Model => Workload { shared: true, ..base },
            UseCase::Assets => Workload {
                region: 100 * GIB,
                touched: 0.05,
                round_trip: Duration::from_millis(25),
                rate: 125e6,
                goal: Goal::Latency,
                ..base
            },
            UseCase::Memory => {
                Workload { region: GIB, need: Need::Memory, unmodified: false, goal: Goal::Latency, ..base }
            }
            UseCase::State => Workload {
                region: GIB,
                need: Need::Memory,
                unmodified: false,
                writes: Writes::scattered(2_000.0),
                goal: Goal::Latency,
                survives_crash: true,
                ..base
            },
            UseCase::Database => Workload {
                region: 4 * GIB,
                touched: 0.3,
                writes: Writes::scattered(500.0),
                goal: Goal::Latency,
                survives_crash: true,
                ..base
            },
            UseCase::Snapshot => Workload {
                region: 2 * GIB,
                touched: 0.3,
                need: Need::Memory,
                goal: Goal::Latency,
                vm_ram: true,
                ..base
            },
            UseCase::VmRam => Workload {
                need: Need::Memory,
                goal: Goal::Latency,
                writes: Writes::dirtying(50e6),
                vm_ram: true,
                moves: true,
                ..base
            },
            UseCase::Replica => Workload {
                region: GIB,
                writes: Writes::scattered(1_000.0),
                goal: Goal::Latency,
                followers: 10,
                ..base
            },
            UseCase::Disk => Workload {
                region: 40 * GIB,
                touched: 0.3,
                need: Need::BlockDevice,
                writes: Writes::scattered(2_000.0),
                survives_crash: true,
                ..base
            },
        }
    }
}

/// No use case has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no use case '{0}'; there are: {names}", names = names())]
pub struct UnknownUseCase(String);

fn names() -> String {
    UseCase::ALL.map(UseCase::as_str).join(", ")
}

impl FromStr for UseCase {
    type Err = UnknownUseCase;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = UseCase::ALL.into_iter().find(|case| case.as_str() == text);
        found.ok_or_else(|| UnknownUseCase(text.into()))
    }
}

fn as_seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}
