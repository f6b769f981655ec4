//! The figures that recommendations rest on: those of a study where it has them, with the cells that they are of, and
//! built-in ones else.

use pagewire::advice::{self, Costs, Figure, Figures, Machine, Mode as Keeping, Way, rate};

use super::data::{Group, Series, Study};
use super::metric::{Metric, seconds};
use super::statistics::Spread;
use crate::study::record::{Figure as Raw, Method, Mode, Pattern, Point, Run};

/// A figure that the rules count with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Source {
    /// Of which way; none for what all have in common.
    pub(super) way: Option<Way>,
    /// Which figure.
    pub(super) kind: Kind,
    /// Its value, in base units.
    pub(super) value: f64,
    /// The one that is built in.
    pub(super) built_in: f64,
    /// The cells that it is of; none where it is built in.
    pub(super) cells: Vec<String>,
}

/// What a figure says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// [`Costs::first_byte`].
    FirstTouch,
    /// [`Costs::read`].
    Read,
    /// [`Costs::write`].
    Write,
    /// [`Costs::cpu_per_gb`].
    CpuPerGb,
    /// [`Figures::tracked_write`].
    TrackedWrite,
    /// [`Figures::hashing`].
    Hashing,
}

impl Kind {
    /// Those of each way.
    const OF_WAYS: [Kind; 4] = [Kind::FirstTouch, Kind::Read, Kind::Write, Kind::CpuPerGb];

    /// What it is called.
    pub(super) fn label(self) -> &'static str {
        match self {
            Kind::FirstTouch => "first touch beyond the round trip",
            Kind::Read => "reading in order",
            Kind::Write => "writing until it is durable",
            Kind::CpuPerGb => "processor time per GB that is read",
            Kind::TrackedWrite => "what the first write to a tracked page takes longer",
            Kind::Hashing => "hashing, with each processor",
        }
    }

    /// A value as people read it.
    pub(super) fn format(self, value: f64) -> String {
        match self {
            Kind::FirstTouch | Kind::CpuPerGb | Kind::TrackedWrite => seconds(value),
            Kind::Read | Kind::Write | Kind::Hashing => rate(value),
        }
    }

    fn place(self, costs: &mut Costs) -> Option<&mut Figure> {
        match self {
            Kind::FirstTouch => Some(&mut costs.first_byte),
            Kind::Read => Some(&mut costs.read),
            Kind::Write => Some(&mut costs.write),
            Kind::CpuPerGb => Some(&mut costs.cpu_per_gb),
            Kind::TrackedWrite | Kind::Hashing => None,
        }
    }
}

/// A machine that lacks nothing, as large as the one of the study.
pub(super) fn machine(run: &Run) -> Machine {
    let mut machine = Machine::unlimited();
    machine.processors = run.machine.cores.max(1) as usize;
    machine
}

/// The figures of this study, built-in ones where it has none.
pub(super) fn figures(study: &Study) -> (Figures, Vec<Source>) {
    let mut figures = Figures::built_in();
    let mut sources = Vec::new();
    for way in Way::ALL {
        for kind in Kind::OF_WAYS {
            let found = measured(study, way, kind);
            let Some(figure) = figures.of_mut(way).and_then(|costs| kind.place(costs)) else { continue };
            sources.push(take(figure, Some(way), kind, found));
        }
    }
    let tracked = tracked_write(study);
    sources.push(take(&mut figures.tracked_write, None, Kind::TrackedWrite, tracked));
    sources.push(take(&mut figures.hashing, None, Kind::Hashing, None));
    (figures, sources)
}

/// Puts what was found in the place of what is built in.
fn take(figure: &mut Figure, way: Option<Way>, kind: Kind, found: Option<(&Group, f64)>) -> Source {
    let built_in = figure.value;
    if let Some((_, value)) = found {
        *figure = Figure::measured(value);
    }
    let cells = found.map(|(group, _)| group.id.clone()).into_iter().collect();
    Source { way, kind, value: figure.value, built_in, cells }
}

fn measured(study: &Study, way: Way, kind: Kind) -> Option<(&Group, f64)> {
    match kind {
        Kind::FirstTouch => first_touch(study, way),
        Kind::Read => fastest(study, way, Pattern::InOrder),
        Kind::Write => fastest(study, way, Pattern::Fill),
        Kind::CpuPerGb => {
            let (group, _) = fastest(study, way, Pattern::InOrder)?;
            Some((group, group.median(Metric::CpuPerGb)?))
        }
        Kind::TrackedWrite | Kind::Hashing => None,
    }
}

/// The methods of the raw data that stand for a way, best first.
fn methods(way: Way) -> &'static [Method] {
    match way.method {
        advice::Method::Userfaultfd => &[Method::Uffd],
        advice::Method::Fuse => &[Method::Fuse],
        advice::Method::Nbd => &[Method::Nbd, Method::NbdUser],
        advice::Method::Mirror => &[Method::Mirror],
    }
}

/// What a first touch takes beyond the round trip. A touch that was answered sooner than that was not one of the link; so
/// where there is a direct mode, it is what tells.
fn first_touch(study: &Study, way: Way) -> Option<(&Group, f64)> {
    if way.method == advice::Method::Mirror {
        return None;
    }
    let mut found: Vec<(&Group, f64)> = study
        .groups
        .iter()
        .filter(|group| methods(way).contains(&group.series.method) && group.point.pattern == Pattern::Random)
        .filter(|group| is_usual(study, group))
        .filter_map(|group| {
            let beyond = group.median(Metric::TouchMedian)? - study.round_trip(&group.point);
            (beyond > 0.0).then_some((group, beyond))
        })
        .collect();
    found.sort_by_key(|(group, _)| {
        let managed = group.series.mode != Some(Mode::Direct);
        (place(way, group), managed, group.point.rtt_ms, group.point.rate_bits.is_some())
    });
    found.first().copied()
}

/// What is read or written in a second where the link is no obstacle: over the nearest and fastest of the links. Reads of a
/// mirrored file are those of a local one, and nobody waits for what is written to it.
fn fastest(study: &Study, way: Way, pattern: Pattern) -> Option<(&Group, f64)> {
    let wanted = match way.mode {
        Keeping::Managed => Mode::Managed,
        Keeping::Direct => Mode::Direct,
    };
    let mut found: Vec<(&Group, f64)> = study
        .groups
        .iter()
        .filter(|group| methods(way).contains(&group.series.method) && group.point.pattern == pattern)
        .filter(|group| group.series.mode == Some(wanted) && is_usual(study, group))
        .filter_map(|group| Some((group, group.median(Metric::Throughput).filter(|rate| *rate > 0.0)?)))
        .collect();
    found.sort_by_key(|(group, _)| {
        (place(way, group), group.point.rtt_ms, group.point.rate_bits.map_or(0, |rate| u64::MAX - rate))
    });
    found.first().copied()
}

/// Whether nothing but the link differs from the base point.
fn is_usual(study: &Study, group: &Group) -> bool {
    let usual = |point: &Point| (point.chunk_bytes, point.connections);
    study.base().is_some_and(|base| usual(&base) == usual(&group.point))
}

fn place(way: Way, group: &Group) -> usize {
    methods(way).iter().position(|method| *method == group.series.method).unwrap_or(usize::MAX)
}

/// What the first write to a page takes longer than the same write in local memory, where changes are tracked: by the
/// median of first touches, since a few of them had to wait for bytes that were not there yet.
fn tracked_write(study: &Study) -> Option<(&Group, f64)> {
    let point = super::sections::at_base(&study.base()?, study.typical(Pattern::Write)?);
    let group = study.at(Series { method: Method::Uffd, mode: Some(Mode::Managed) }, &point)?;
    let beyond = group.counted().filter_map(|cell| {
        let figure = |figure: Raw| cell.figures.get(&figure).copied();
        let local = figure(Raw::LocalWorkS)? / (figure(Raw::MovedBytes)? / 4096.0);
        Some(figure(Raw::TouchP50S)? - local)
    });
    let median = Spread::of(beyond)?.median;
    (median > 0.0).then_some((group, median))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The built-in figures are those of the study that the repository keeps, rounded to two digits.
    #[test]
    fn built_in_figures_are_those_of_the_study_that_is_kept() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/study");
        let study = super::super::study_in(std::path::Path::new(folder)).expect("it is kept");
        let (_, sources) = figures(&study);
        let measured: Vec<&Source> = sources.iter().filter(|source| !source.cells.is_empty()).collect();
        assert!(measured.len() > 20, "{measured:#?}");
        for source in measured {
            let apart = (source.value / source.built_in - 1.0).abs();
            assert!(apart < 0.06, "{} is built in, and the study has {source:#?}", source.built_in);
        }
    }
}
