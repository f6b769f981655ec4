//! The raw data of a study: JSON objects, one a line, in `raw.jsonl`. A report is made from nothing else.
//!
//! The first line is a [`Run`]: the machine and what was asked for. A [`LinkRecord`] follows for each link that was made,
//! and a [`Cell`] for each round of each cell, in the order in which they were run. A study that was interrupted and went
//! on has another `Run` line, of the same machine, where it went on. A last line without its end is of a study that
//! was killed as it wrote it, and counts for nothing.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};

/// The version of these records. It grows with every change that an older reader would take wrongly.
pub const VERSION: u32 = 1;

/// The name of the file within the folder of a study.
pub const FILE_NAME: &str = "raw.jsonl";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// The machine and what was asked for.
    Run(Run),
    /// A link that was made, and what it was measured to do.
    Link(LinkRecord),
    /// One round of one cell.
    Cell(Box<Cell>),
}

/// The machine and what was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// [`VERSION`].
    pub version: u32,
    /// When it started, in seconds since 1970.
    pub started_unix_s: u64,
    /// Pagewire's version.
    pub pagewire: String,
    /// Where.
    pub machine: Machine,
    /// By whom.
    pub user: User,
    /// How much was asked for.
    pub profile: Profile,
    /// What the order of the cells and everything random in their work follows from.
    pub seed: u64,
    /// How often each cell is run.
    pub rounds: u32,
    /// How long the work of one cell may take, in seconds.
    pub cap_s: f64,
    /// Bytes of the region that every cell uses.
    pub region_bytes: u64,
    /// The cells of the whole study, every round of each counted.
    pub cells: u64,
    /// The share of segments that every link loses on purpose, in each direction.
    #[serde(default)]
    pub loss: f64,
}

/// A machine, as far as results depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The kernel's release and version, as `uname -rv` has them.
    pub kernel: String,
    /// The model of the processor.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

/// Who runs a study.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The number of the user; 0 is root.
    pub uid: u32,
}

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// A few points of each dimension: minutes.
    Quick,
    /// All of them.
    Full,
}

/// A link that was made, and what it was measured to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// What it is made of.
    pub kind: LinkKind,
    /// The round-trip time that was asked for.
    pub rtt_ms: u32,
    /// Bits per second that were asked for; null is no limit.
    pub rate_bits: Option<u64>,
    /// The share of segments that is lost on purpose.
    pub loss: f64,
    /// The median round trip of a byte over TCP, in seconds, between its ends.
    pub measured_rtt_s: Option<f64>,
    /// Payload bits per second over several TCP connections, between its ends.
    pub measured_rate_bits: Option<u64>,
    /// The share of segments that did not arrive, meanwhile.
    #[serde(default)]
    pub measured_loss: Option<f64>,
    /// Whether cells are run on it: it could be made, and is what was asked for.
    pub accepted: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// What a link is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// TUN devices in two network namespaces, with this process in between.
    Namespaces,
    /// The loopback device: for those who may not make namespaces. Nothing is counted on it.
    Loopback,
}

/// One round of one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Names the cell, the same in all rounds: no two cells of a study have the same.
    pub id: String,
    /// How the region is reached.
    pub method: Method,
    /// With a local copy that fills itself or without; null where the method has only one way.
    pub mode: Option<Mode>,
    /// Under which circumstances.
    #[serde(flatten)]
    pub point: Point,
    /// Which of the circumstances is varied here: all others are those of the base point.
    pub dimension: Dimension,
    /// Which round, from 1.
    pub round: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it ended so; null where it was measured.
    pub reason: Option<String>,
    /// What was measured. One that is absent was not, or has no meaning here; it is never zero for that.
    pub figures: Figures,
    /// Some of the single measurements.
    pub samples: Samples,
}

/// The circumstances of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The round-trip time of the link, in milliseconds, as asked for.
    pub rtt_ms: u32,
    /// The rate of the link in bits per second, as asked for; null is no limit.
    pub rate_bits: Option<u64>,
    /// Bytes that are pulled at once.
    #[serde(rename = "chunk")]
    pub chunk_bytes: u64,
    /// Connections between client and server.
    pub connections: u32,
    /// What the application does.
    pub pattern: Pattern,
    /// How much of the region is written in a second, where the pattern is [`Pattern::Write`].
    pub dirty_percent: Option<f64>,
}

/// How a region is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The library's mapping, by userfaultfd.
    Uffd,
    /// A file of a FUSE mount, which is mapped.
    Fuse,
    /// A block device of the kernel's NBD client.
    Nbd,
    /// An NBD export by the client in user space, without a device.
    NbdUser,
    /// A local file that is mapped, and kept in step by hashing.
    Mirror,
    /// For reference: memory of the application alone.
    LocalMemory,
    /// For reference: a local file that is mapped, and kept in step with nothing.
    LocalFile,
}

/// Whether there is a local copy that fills itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// What the application asks for is fetched, and nothing else.
    Direct,
    /// The rest comes in the background.
    Managed,
}

/// What the application does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Reads the whole region from its first page to its last.
    InOrder,
    /// Reads single pages of 4 KiB, each one once, in an order that nobody foresees.
    Random,
    /// Reads pages of a sixteenth of the region, again and again, and few others.
    HotSet,
    /// Writes pages at a steady rate, [`Point::dirty_percent`] of the region a second.
    Write,
    /// Replaces the whole region from its first page to its last, as fast as it can, and waits until that is durable.
    Fill,
    /// Reads pages and writes one for every four, in an order that nobody foresees.
    Mixed,
}

/// What is varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dimension {
    /// Nothing: the base point.
    Base,
    /// The round-trip time of the link.
    Rtt,
    /// The rate of the link.
    Rate,
    /// Bytes that are pulled at once.
    Chunk,
    /// Connections between client and server.
    Connections,
    /// What the application does.
    Pattern,
}

/// How a round of a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All of the work was done.
    Measured,
    /// The time was over before the work was: figures are of the part that was done.
    Capped,
    /// This user may not.
    NotPermitted,
    /// This kernel or machine cannot.
    Unsupported,
    /// The link was not what was asked for.
    Refused,
    /// Something went wrong.
    Failed,
}

/// Named numbers, in base units of SI: seconds, bytes, bytes per second.
pub type Figures = BTreeMap<Figure, f64>;

/// What can be measured. Its name in the raw data ends with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// From when the application asks for the region until it may use it: with the start of a mount, or the copying of
    /// what is copied before.
    ReadyS,
    /// From the same moment until the application has the first byte.
    FirstByteS,
    /// From the same moment until the work was done.
    TotalS,
    /// The work alone: all of the application's reads and writes, without the pauses of a steady rate, and without flushes.
    WorkS,
    /// As much of the same work on memory of the same process, just before.
    LocalWorkS,
    /// [`Figure::WorkS`] over [`Figure::LocalWorkS`].
    SlowdownRatio,
    /// The median of the first touches of a page.
    TouchP50S,
    /// Nine of ten first touches were not longer.
    TouchP90S,
    /// 99 of 100 first touches were not longer.
    TouchP99S,
    /// The longest first touch.
    TouchMaxS,
    /// Bytes of work per second, from when the region was usable until the work was done and flushed. Of a steady rate
    /// it is that rate, where the method keeps up; of [`Pattern::Fill`] it is what can be written.
    ThroughputBytesPerS,
    /// Processor time of all processes on the client, the application among them, from when it asks for the region until
    /// the work was done.
    ClientCpuS,
    /// Processor time of the server process, meanwhile.
    ServerCpuS,
    /// Processor time of all kernel threads of the machine, meanwhile.
    KernelCpuS,
    /// Bytes on the link from server to client, headers included, meanwhile.
    WireToClientBytes,
    /// Bytes on the link from client to server, headers included, meanwhile.
    WireToServerBytes,
    /// Memory that the processes on the client have more at the end than before: with the pages of the region that are
    /// mapped.
    MemoryBytes,
    /// Memory of the server process at the end, without what is of files.
    ServerMemoryBytes,
    /// Bytes that the application has read or written: a page that was used twice counts twice.
    MovedBytes,
    /// Bytes of the pages that the application has changed.
    ChangedBytes,
    /// The median time from a write until the change is in the server's file.
    StalenessS,
    /// The longest such time.
    StalenessMaxS,
}

/// Single measurements, [`Samples::MOST`] of each kind at most: evenly spaced in the sorted list of all, with the shortest
/// and the longest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// First touches of a page, in seconds, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub touch_s: Vec<f64>,
    /// Times from a write until it is in the server's file, in seconds, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub staleness_s: Vec<f64>,
}

impl Samples {
    /// How many of each kind are kept.
    pub const MOST: usize = 101;
}

/// The records of a file of raw data, in order.
///
/// # Errors
///
/// What reading answers; invalid data, with the number of the line, for what is no record of this version.
pub fn read(from: impl BufRead) -> io::Result<Vec<Record>> {
    let mut from = from;
    let (mut records, mut line, mut number) = (Vec::new(), String::new(), 0);
    loop {
        line.clear();
        if from.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Ok(records);
        }
        number += 1;
        let wrong =
            |text: String| io::Error::new(io::ErrorKind::InvalidData, format!("line {number}: {text}"));
        let record = serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?;
        if let Record::Run(run) = &record
            && run.version != VERSION
        {
            let text = format!("raw data of version {}; this program reads version {VERSION}", run.version);
            return Err(wrong(text));
        }
        records.push(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell() -> Cell {
        let point = Point {
            rtt_ms: 5,
            rate_bits: None,
            chunk_bytes: 64 << 10,
            connections: 4,
            pattern: Pattern::Write,
            dirty_percent: Some(0.1),
        };
        Cell {
            id: "x".into(),
            method: Method::NbdUser,
            mode: Some(Mode::Direct),
            point,
            dimension: Dimension::Pattern,
            round: 1,
            outcome: Outcome::Measured,
            reason: None,
            figures: Figures::from([(Figure::TouchP50S, 1e-4), (Figure::WireToClientBytes, 4096.0)]),
            samples: Samples { touch_s: vec![1e-4, 2e-4], staleness_s: Vec::new() },
        }
    }

    #[test]
    fn a_cell_is_a_flat_object_whose_figures_have_their_units_in_their_names() {
        let text = serde_json::to_string(&Record::Cell(Box::new(cell()))).unwrap();
        let start =
            r#"{"record":"cell","id":"x","method":"nbd-user","mode":"direct","rtt_ms":5,"rate_bits":null,"#;
        assert!(text.starts_with(start), "{text}");
        assert!(
            text.contains(r#""chunk":65536,"connections":4,"pattern":"write","dirty_percent":0.1"#),
            "{text}"
        );
        assert!(text.contains(r#""figures":{"touch_p50_s":0.0001,"wire_to_client_bytes":4096.0}"#), "{text}");
        let read = read(format!("{text}\n").as_bytes()).unwrap();
        assert_eq!(read, [Record::Cell(Box::new(cell()))]);
    }

    #[test]
    fn a_line_without_its_end_is_left_out_and_a_wrong_one_is_named() {
        let line = serde_json::to_string(&Record::Cell(Box::new(cell()))).unwrap();
        let cut = format!("{line}\n{}", &line[..line.len() / 2]);
        assert_eq!(read(cut.as_bytes()).unwrap().len(), 1);
        assert_eq!(read(format!("{line}\n{line}").as_bytes()).unwrap().len(), 1);
        let error = read(format!("{line}\n{{}}\n{line}\n").as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with("line 2: "), "{error}");
    }
}
