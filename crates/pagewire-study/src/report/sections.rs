//! What a report says, section by section.
//!
//! - `setup`: the machine, the links, how to read the rest
//! - `questions`: a metric over what is varied, or over what applications do
//! - `comparison`: the methods beside each other
//! - `recommendations`: which method for what, by the rules of [`pagewire::advice`] and the figures that were measured
//! - `missing`: what was not measured, and why

mod comparison;
mod missing;
mod questions;
mod recommendations;
mod setup;

use super::data::{Series, Study, Work};
use super::document::{Block, Document, Item, Section, Table};
use super::metric::Metric;
use crate::study::record::{Dimension, Pattern, Point, Profile};
use questions::{by_work, distributions, over};

/// The whole report.
pub(super) fn document(study: &Study) -> Document {
    let profile = match study.run.profile {
        Profile::Quick => "a quick run, whose few rounds show what to expect and are no basis for a decision",
        Profile::Full => "a full run",
    };
    Document {
        title: "How to reach memory of another host: the methods compared".into(),
        lead: format!(
            "Pagewire {} measured each access method on the same work, over links that were measured first; {}, {profile}.",
            study.run.pagewire,
            setup::date(study.run.started_unix_s)
        ),
        sections: [
            summary(study),
            recommendations::section(study),
            setup::reading(study),
            latency(study),
            reading(study),
            writing(study),
            costs(study),
            comparison::section(study),
            missing::section(study),
            setup::machine(study),
        ]
        .into(),
    }
}

/// The circumstances of the base point, but for what the application does.
pub(super) fn at_base(base: &Point, work: Work) -> Point {
    Point { pattern: work.pattern, dirty_percent: work.dirty_percent, ..*base }
}

/// What of the works is read, and what is written.
fn writes(work: &Work) -> bool {
    work.pattern.writes()
}

fn summary(study: &Study) -> Section {
    let mut blocks = Vec::new();
    if let Some(base) = study.base() {
        let work = |pattern: Pattern| study.typical(pattern);
        let base_work = Work { pattern: base.pattern, dirty_percent: base.dirty_percent };
        let columns = [
            (Metric::FirstByte, Some(base_work)),
            (Metric::TouchMedian, work(Pattern::Random)),
            (Metric::Throughput, work(Pattern::InOrder)),
            (Metric::CpuPerGb, work(Pattern::InOrder)),
            (Metric::Slowdown, work(Pattern::Write)),
            (Metric::Staleness, work(Pattern::Write)),
        ];
        let columns: Vec<(Metric, Work)> =
            columns.into_iter().filter_map(|(metric, work)| Some((metric, work?))).collect();
        let rows = study.series().into_iter().map(|series| {
            let items = columns
                .iter()
                .map(|(metric, work)| Item::of(study.at(series, &at_base(&base, *work)), *metric));
            [Item::Text(series.label())].into_iter().chain(items).collect()
        });
        let heads = columns.iter().map(|(metric, work)| format!("{}, {work}", metric.label()));
        let table = Table {
            caption: format!("At the base point: {}", setup::point(&base)),
            columns: ["method".into()].into_iter().chain(heads).collect(),
            rows: rows.collect(),
        };
        blocks.extend(columns.iter().take(3).filter_map(|(metric, work)| best(study, &base, *metric, *work)));
        blocks.push(Block::Table(table.clone()));
        blocks.push(sources(&[table]));
    }
    let counts = missing::counts(study);
    blocks.push(Block::Text(counts));
    Section { id: "summary", title: "In short".into(), blocks }
}

/// Which method is best at a point.
fn best(study: &Study, base: &Point, metric: Metric, work: Work) -> Option<Block> {
    let point = at_base(base, work);
    let mut ranked: Vec<(Series, f64)> = study
        .series()
        .into_iter()
        .filter(|series| series.competes(metric, work))
        .filter_map(|series| Some((series, study.at(series, &point)?.median(metric)?)))
        .collect();
    ranked.sort_by(|one, other| {
        let order = one.1.total_cmp(&other.1);
        if metric.less_is_better() { order } else { order.reverse() }
    });
    let (first, last) = (ranked.first()?, ranked.last()?);
    if ranked.len() < 2 {
        return None;
    }
    Some(Block::Verdict(format!(
        "{} ({work}): best by {}, {}; worst by {}, {}.",
        capitalized(metric.label()),
        first.0.label(),
        metric.format(first.1),
        last.0.label(),
        metric.format(last.1)
    )))
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn latency(study: &Study) -> Section {
    let mut blocks = vec![Block::Text(
        "How long an application waits: for the first byte, counted from the start of the first process of the method, with \
         its connections; and for pages that it touches for the first time."
            .into(),
    )];
    let reads = |work: &Work| !writes(work);
    let at_random = |work: &Work| work.pattern == Pattern::Random;
    blocks.extend(over(study, Metric::FirstByte, Dimension::Rtt, reads));
    blocks.extend(over(study, Metric::Ready, Dimension::Rtt, |work| work.pattern == Pattern::InOrder));
    blocks.extend(over(study, Metric::TouchMedian, Dimension::Rtt, at_random));
    blocks.extend(over(study, Metric::TouchTail, Dimension::Rtt, at_random));
    blocks.extend(distributions(study));
    blocks.extend(over(study, Metric::TouchMedian, Dimension::Chunk, reads));
    Section { id: "latency", title: "Latency".into(), blocks }
}

fn reading(study: &Study) -> Section {
    let mut blocks = vec![Block::Text(
        "How many bytes the application has read in a second, from the moment that the region could be used until the work \
         was done. A mirrored file can be used when all of it has come, so its reads are those of a local file."
            .into(),
    )];
    let reads = |work: &Work| !writes(work);
    for dimension in [Dimension::Rtt, Dimension::Rate, Dimension::Connections, Dimension::Chunk] {
        blocks.extend(over(study, Metric::Throughput, dimension, reads));
    }
    blocks.extend(by_work(study, Metric::Throughput, reads));
    Section { id: "reading", title: "Reading".into(), blocks }
}

fn writing(study: &Study) -> Section {
    let mut blocks = vec![Block::Text(
        "What a writer has to put up with, and how soon its changes are in the file of the server. Who writes all of it does so \
         as fast as it can, and its throughput is that until all of it is durable at the server; a mirror alone has nothing to \
         wait by, and shows how fast a local file is written. Writes at a steady rate are paced: their throughput is what was \
         asked for, unless the method could not follow."
            .into(),
    )];
    blocks.extend(over(study, Metric::Throughput, Dimension::Rtt, writes));
    blocks.extend(by_work(study, Metric::Throughput, writes));
    blocks.extend(over(study, Metric::Staleness, Dimension::Rtt, writes));
    blocks.extend(by_work(study, Metric::Staleness, writes));
    blocks.extend(by_work(study, Metric::StalenessTail, writes));
    blocks.extend(over(study, Metric::Slowdown, Dimension::Rtt, writes));
    blocks.extend(by_work(study, Metric::Slowdown, writes));
    blocks.extend(by_work(study, Metric::WirePerChange, writes));
    Section { id: "writing", title: "Writing".into(), blocks }
}

fn costs(study: &Study) -> Section {
    let mut blocks = vec![Block::Text(
        "What it costs: processor time of the client's processes with the application, of the server, and of the kernel's \
         threads; bytes on the link, with all headers; and memory."
            .into(),
    )];
    blocks.extend(by_work(study, Metric::CpuPerGb, |_| true));
    blocks.extend(by_work(study, Metric::WirePerByte, |work| !writes(work)));
    blocks.extend(by_work(study, Metric::Slowdown, |work| !writes(work)));
    blocks.extend(by_work(study, Metric::Memory, |_| true));
    blocks.extend(by_work(study, Metric::ServerMemory, |_| true));
    Section { id: "costs", title: "Costs".into(), blocks }
}

/// Where the numbers of these tables are from.
fn sources(tables: &[Table]) -> Block {
    let mut cells: Vec<String> = tables
        .iter()
        .flat_map(|table| &table.rows)
        .flatten()
        .filter_map(|item| match item {
            Item::Number { cell, .. } | Item::Missing { cell: Some(cell), .. } => Some(cell.clone()),
            _ => None,
        })
        .collect();
    cells.sort_unstable();
    cells.dedup();
    Block::More {
        summary: format!("The {} cells that this is made of", cells.len()),
        blocks: vec![Block::Table(Table {
            caption: "Names of cells in the raw data".into(),
            columns: vec!["cells".into()],
            rows: vec![vec![Item::Cells(cells)]],
        })],
    }
}
