//! What is reported of a cell: its figures, and what follows from several of them.

use pagewire::advice::{rate, size, time};
use std::time::Duration;

use crate::study::record::{Cell, Figure};

/// What is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Metric {
    /// Until the application may use the region.
    Ready,
    /// Until it has the first byte.
    FirstByte,
    /// The median of first touches.
    TouchMedian,
    /// 99 of 100 first touches.
    TouchTail,
    /// Bytes of work per second of work.
    Throughput,
    /// Processor time of all that is involved, for a gigabyte of work.
    CpuPerGb,
    /// Bytes on the link to the client, for a byte of work.
    WirePerByte,
    /// Bytes on the link to the server, for a byte of changed pages.
    WirePerChange,
    /// The median time until a write is in the server's file.
    Staleness,
    /// The longest such time.
    StalenessTail,
    /// How much longer the work takes than on local memory.
    Slowdown,
    /// Memory of the processes on the client.
    Memory,
    /// Memory of the server.
    ServerMemory,
}

/// In what a metric is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Seconds,
    Rate,
    Bytes,
    Ratio,
}

impl Metric {
    /// All there are.
    pub(super) const ALL: [Metric; 13] = [
        Metric::Ready,
        Metric::FirstByte,
        Metric::TouchMedian,
        Metric::TouchTail,
        Metric::Throughput,
        Metric::CpuPerGb,
        Metric::WirePerByte,
        Metric::WirePerChange,
        Metric::Staleness,
        Metric::StalenessTail,
        Metric::Slowdown,
        Metric::Memory,
        Metric::ServerMemory,
    ];

    /// What it is called in a table.
    pub(super) fn label(self) -> &'static str {
        match self {
            Metric::Ready => "ready to use",
            Metric::FirstByte => "first byte",
            Metric::TouchMedian => "first touch, median",
            Metric::TouchTail => "first touch, 99 of 100",
            Metric::Throughput => "throughput",
            Metric::CpuPerGb => "processor time per GB",
            Metric::WirePerByte => "bytes on the link per byte used",
            Metric::WirePerChange => "bytes on the link per changed byte",
            Metric::Staleness => "staleness, median",
            Metric::StalenessTail => "staleness, longest",
            Metric::Slowdown => "slowdown",
            Metric::Memory => "memory on the client",
            Metric::ServerMemory => "memory of the server",
        }
    }

    /// By what it is told in the page.
    pub(super) fn key(self) -> &'static str {
        match self {
            Metric::Ready => "ready",
            Metric::FirstByte => "first-byte",
            Metric::TouchMedian => "touch-median",
            Metric::TouchTail => "touch-tail",
            Metric::Throughput => "throughput",
            Metric::CpuPerGb => "cpu-per-gb",
            Metric::WirePerByte => "wire-per-byte",
            Metric::WirePerChange => "wire-per-change",
            Metric::Staleness => "staleness",
            Metric::StalenessTail => "staleness-tail",
            Metric::Slowdown => "slowdown",
            Metric::Memory => "memory",
            Metric::ServerMemory => "server-memory",
        }
    }

    /// How it follows from the figures of a cell, by their names in the raw data.
    pub(super) fn formula(self) -> &'static str {
        match self {
            Metric::Ready => "ready_s",
            Metric::FirstByte => "first_byte_s",
            Metric::TouchMedian => "touch_p50_s",
            Metric::TouchTail => "touch_p99_s",
            Metric::Throughput => "throughput_bytes_per_s",
            Metric::CpuPerGb => "(client_cpu_s + server_cpu_s + kernel_cpu_s) / moved_bytes × 10⁹",
            Metric::WirePerByte => "wire_to_client_bytes / moved_bytes",
            Metric::WirePerChange => "wire_to_server_bytes / changed_bytes",
            Metric::Staleness => "staleness_s",
            Metric::StalenessTail => "staleness_max_s",
            Metric::Slowdown => "slowdown_ratio",
            Metric::Memory => "memory_bytes",
            Metric::ServerMemory => "server_memory_bytes",
        }
    }

    /// Whether less of it is better.
    pub(super) fn less_is_better(self) -> bool {
        self != Metric::Throughput
    }

    /// What the axis of a chart is called.
    pub(super) fn axis(self, name: &str, logarithmic: bool) -> String {
        let better = if self.less_is_better() { "less is better" } else { "more is better" };
        let scale = if logarithmic { "; logarithmic" } else { "" };
        format!("{name} ({better}{scale})")
    }

    /// Its value in one round of a cell, in base units; none where a figure that it needs was not measured.
    pub(super) fn of(self, cell: &Cell) -> Option<f64> {
        let figure = |figure: Figure| cell.figures.get(&figure).copied();
        let per = |value: Option<f64>, of: Figure| {
            let of = figure(of).filter(|of| *of > 0.0)?;
            Some(value? / of)
        };
        match self {
            Metric::Ready => figure(Figure::ReadyS),
            Metric::FirstByte => figure(Figure::FirstByteS),
            Metric::TouchMedian => figure(Figure::TouchP50S),
            Metric::TouchTail => figure(Figure::TouchP99S),
            // Where nothing was done there is no rate.
            Metric::Throughput => figure(Figure::ThroughputBytesPerS).filter(|rate| *rate > 0.0),
            Metric::CpuPerGb => {
                let others = [Figure::ServerCpuS, Figure::KernelCpuS];
                // Where there is no server, it takes no time.
                let all = figure(Figure::ClientCpuS)
                    .map(|client| others.iter().filter_map(|other| figure(*other)).sum::<f64>() + client);
                per(all, Figure::MovedBytes).map(|seconds| seconds * 1e9)
            }
            Metric::WirePerByte => per(figure(Figure::WireToClientBytes), Figure::MovedBytes),
            Metric::WirePerChange => per(figure(Figure::WireToServerBytes), Figure::ChangedBytes),
            Metric::Staleness => figure(Figure::StalenessS),
            Metric::StalenessTail => figure(Figure::StalenessMaxS),
            Metric::Slowdown => figure(Figure::SlowdownRatio),
            Metric::Memory => figure(Figure::MemoryBytes),
            Metric::ServerMemory => figure(Figure::ServerMemoryBytes),
        }
    }

    fn unit(self) -> Unit {
        match self {
            Metric::Throughput => Unit::Rate,
            Metric::Memory | Metric::ServerMemory => Unit::Bytes,
            Metric::WirePerByte | Metric::WirePerChange | Metric::Slowdown => Unit::Ratio,
            _ => Unit::Seconds,
        }
    }

    /// A value as people read it, with its unit.
    pub(super) fn format(self, value: f64) -> String {
        match self.unit() {
            Unit::Seconds => seconds(value),
            Unit::Rate => rate(value),
            // What a process has less than before is none.
            Unit::Bytes => size(value.max(0.0)),
            Unit::Ratio => ratio(value),
        }
    }
}

/// A time in seconds, as people read it.
pub(super) fn seconds(value: f64) -> String {
    let negative = value < 0.0;
    let text = Duration::try_from_secs_f64(value.abs()).map_or_else(|_| "?".into(), time);
    match (negative, &*text) {
        (_, "no time") => "0 s".into(),
        (true, _) => format!("−{text}"),
        (false, _) => text,
    }
}

/// A ratio, with three digits.
fn ratio(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        ..0.001 => format!("{value:.0e}"),
        ..0.1 => format!("{value:.4}"),
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_units() {
        assert_eq!(Metric::FirstByte.format(0.00123), "1.23 ms");
        assert_eq!(Metric::FirstByte.format(0.0), "0 s");
        assert_eq!(Metric::FirstByte.format(-0.001), "−1 ms");
        assert_eq!(Metric::Throughput.format(1.234e9), "1.23 GB/s");
        assert_eq!(Metric::Memory.format(1048576.0), "1 MiB");
        assert_eq!(Metric::Memory.format(-5.0), "0 B");
        assert_eq!(Metric::Slowdown.format(1.0), "1.00");
        assert_eq!(Metric::Slowdown.format(99.3), "99.3");
        assert_eq!(Metric::WirePerByte.format(0.0625), "0.0625");
    }

    #[test]
    fn keys_are_not_taken_twice() {
        let mut keys: Vec<&str> = Metric::ALL.iter().map(|metric| metric.key()).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), Metric::ALL.len());
    }
}
