//! Which method for what: by the rules that `pagewire doctor` follows, with what was measured in the place of built-in
//! figures.

use pagewire::advice::{
    self, Advice, Figure, Figures, Machine, Mode as Keeping, UseCase, Way, Workload, advise, rate,
};

use crate::report::data::{Group, Series, Study};
use crate::report::document::{Block, Item, Section, Table};
use crate::report::metric::{Metric, seconds};
use crate::study::record::{Figure as Raw, Method, Mode, Pattern, Point, Run};

/// A figure that the rules use, and where it is from.
#[derive(Debug, Clone, PartialEq)]
struct Source {
    way: Option<Way>,
    what: &'static str,
    text: String,
    cells: Vec<String>,
}

/// The section.
pub(super) fn section(study: &Study) -> Section {
    let (figures, sources) = figures(study);
    let machine = machine(&study.run);
    let mut blocks = vec![Block::Text(
        "Which method to use for what, by the rules that `pagewire doctor --for` follows, with the figures of this study \
         where it has them and built-in ones else. It is taken for granted that the kernel and the privileges are there: \
         what a machine of your own lacks `pagewire doctor` says."
            .into(),
    )];
    let advices: Vec<(UseCase, Workload, Advice)> = UseCase::ALL
        .into_iter()
        .map(|case| (case, case.workload(), advise(&case.workload(), &machine, &figures)))
        .collect();
    blocks.push(Block::Table(overview(&advices)));
    for (case, workload, advice) in &advices {
        blocks.push(Block::More {
            summary: format!("{}: why, and what else", case.as_str()),
            blocks: explained(*case, workload, advice, &sources),
        });
    }
    blocks.push(Block::Heading("The figures behind it".into()));
    blocks.push(Block::Table(Table {
        caption: "What the rules count with".into(),
        columns: ["way", "figure", "value", "cells"].map(String::from).to_vec(),
        rows: sources.iter().map(source_row).collect(),
    }));
    Section { id: "recommendations", title: "Which method for what".into(), blocks }
}

fn overview(advices: &[(UseCase, Workload, Advice)]) -> Table {
    let rows = advices.iter().map(|(case, _, advice)| {
        let (way, why) = match advice.best() {
            Some(best) => (best.way.to_string(), best.reasons.first().cloned().unwrap_or_default()),
            None => ("none".into(), advice.nothing_fits.clone().unwrap_or_default()),
        };
        let way = match &advice.moving {
            Some(moving) => format!("{way}; moved by {}", moving.how.as_str()),
            None => way,
        };
        [format!("`{}`", case.as_str()), case.what().into(), way, why].map(Item::Text).to_vec()
    });
    Table {
        caption: "Recommendations by use case".into(),
        columns: ["use case", "what it is", "use", "since"].map(String::from).to_vec(),
        rows: rows.collect(),
    }
}

fn explained(case: UseCase, workload: &Workload, advice: &Advice, sources: &[Source]) -> Vec<Block> {
    let mut blocks = vec![Block::Text(format!(
        "{}: a region of {}, {} away on a link of {}.",
        case.what(),
        advice::size(workload.region as f64),
        advice::time(workload.round_trip),
        rate(workload.rate)
    ))];
    for (at, one) in advice.ranked.iter().enumerate() {
        let word = if at == 0 { "Use" } else { "Or" };
        blocks.push(Block::Text(format!("**{word} {}.**", one.way)));
        blocks.push(Block::List(
            one.reasons
                .iter()
                .cloned()
                .chain(one.caveats.iter().map(|text| format!("But: {text}")))
                .collect(),
        ));
    }
    if let Some(best) = advice.best() {
        let rests: Vec<String> = sources
            .iter()
            .filter(|source| source.way == Some(best.way) && !source.cells.is_empty())
            .map(|source| format!("{}: {}, of `{}`", source.what, source.text, source.cells.join("`, `")))
            .collect();
        match rests.is_empty() {
            true => blocks
                .push(Block::Text("It rests on built-in figures: this study has none of this way.".into())),
            false => {
                blocks.push(Block::Text("Of this study it rests on:".into()));
                blocks.push(Block::List(rests));
            }
        }
    }
    if let Some(moving) = &advice.moving {
        blocks.push(Block::Text(format!(
            "**Move by {}**: about {} of standstill, {} in all.",
            moving.how.as_str(),
            seconds(moving.downtime_seconds),
            seconds(moving.total_seconds)
        )));
        let others = moving.others.iter().map(|other| format!("Not {}: {}", other.how.as_str(), other.why));
        blocks.push(Block::List(moving.reasons.iter().cloned().chain(others).collect()));
    }
    let out = advice.ruled_out.iter().map(|out| format!("{}: {}", out.method.as_str(), out.why.join(" ")));
    let out: Vec<String> = out.collect();
    if !out.is_empty() {
        blocks.push(Block::Text("Ruled out:".into()));
        blocks.push(Block::List(out));
    }
    blocks
}

fn source_row(source: &Source) -> Vec<Item> {
    let way = source.way.map_or_else(|| "all".into(), |way| way.to_string());
    let cells = match source.cells.is_empty() {
        true => Item::Text("built in: measured once, on the development machine".into()),
        false => Item::Cells(source.cells.clone()),
    };
    vec![Item::Text(way), Item::Text(source.what.into()), Item::Text(source.text.clone()), cells]
}

/// A machine that lacks nothing, as large as the one of the study.
fn machine(run: &Run) -> Machine {
    let mut machine = Machine::unlimited();
    machine.processors = run.machine.cores.max(1) as usize;
    machine
}

/// The figures of this study, built-in ones where it has none.
fn figures(study: &Study) -> (Figures, Vec<Source>) {
    let mut figures = Figures::built_in();
    let mut sources = Vec::new();
    for way in Way::ALL {
        let (touched, read) = (first_touch(study, way), fastest(study, way));
        let read_at = read.map(|(group, _)| group);
        let cpu = read_at.and_then(|group| Some((group, group.median(Metric::CpuPerGb)?)));
        let Some(costs) = figures.of_mut(way) else { continue };
        let found = [
            (
                "first touch beyond the round trip",
                touched,
                &mut costs.first_byte,
                seconds as fn(f64) -> String,
            ),
            ("reading in order", read, &mut costs.read, rate),
            ("processor time per GB", cpu, &mut costs.cpu_per_gb, seconds),
        ];
        for (what, found, figure, format) in found {
            let cells = found.map(|(group, _)| group.id.clone()).into_iter().collect();
            if let Some((_, value)) = found {
                *figure = Figure::measured(value);
            }
            sources.push(Source { way: Some(way), what, text: format(figure.value), cells });
        }
    }
    let tracked = tracked_write(study);
    if let Some((_, value)) = tracked {
        figures.tracked_write = Figure::measured(value);
    }
    sources.push(Source {
        way: None,
        what: "what the first write to a tracked page takes longer",
        text: seconds(figures.tracked_write.value),
        cells: tracked.map(|(group, _)| group.id.clone()).into_iter().collect(),
    });
    let text = format!("{} with each processor", rate(figures.hashing.value));
    sources.push(Source { way: None, what: "hashing", text, cells: Vec::new() });
    (figures, sources)
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

/// What is read in a second where the link is no obstacle: over the nearest and fastest of the links.
fn fastest(study: &Study, way: Way) -> Option<(&Group, f64)> {
    let wanted = match way.mode {
        Keeping::Managed => Mode::Managed,
        Keeping::Direct => Mode::Direct,
    };
    let mut found: Vec<(&Group, f64)> = study
        .groups
        .iter()
        .filter(|group| {
            methods(way).contains(&group.series.method) && group.point.pattern == Pattern::InOrder
        })
        .filter(|group| group.series.mode.is_none_or(|mode| mode == wanted) && is_usual(study, group))
        .filter(|group| way.method != advice::Method::Mirror || group.series.mode.is_some())
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

/// What a write to a page takes longer than in local memory, where changes are tracked.
fn tracked_write(study: &Study) -> Option<(&Group, f64)> {
    let point = super::at_base(&study.base()?, study.typical(Pattern::Write)?);
    let group = study.at(Series { method: Method::Uffd, mode: Some(Mode::Managed) }, &point)?;
    let cell = group.rounds.iter().find(|cell| cell.figures.contains_key(&Raw::SlowdownRatio))?;
    let figure = |figure: Raw| cell.figures.get(&figure).copied();
    let (work, moved, slowdown) =
        (figure(Raw::WorkS)?, figure(Raw::MovedBytes)?, figure(Raw::SlowdownRatio)?);
    let extra = work / moved * 4096.0 * (1.0 - 1.0 / slowdown);
    (slowdown > 1.0 && extra.is_finite() && extra > 0.0).then_some((group, extra))
}
