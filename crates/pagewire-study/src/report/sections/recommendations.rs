//! Which method for what: by the rules that `pagewire doctor` follows, with what was measured in the place of built-in
//! figures.

use pagewire::advice::{self, Advice, UseCase, Workload, advise, rate};

use crate::report::data::Study;
use crate::report::document::{Block, Item, Section, Table};
use crate::report::figures::{Source, figures, machine};
use crate::report::metric::seconds;

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
    blocks.push(Block::Heading("Figures that recommendations rest on".into()));
    blocks.push(Block::Table(Table {
        caption: "What the rules count with, beside what is built in for machines without a study".into(),
        columns: ["way", "figure", "value", "built in", "cells"].map(String::from).to_vec(),
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
            .map(|source| {
                let (what, value) = (source.kind.label(), source.kind.format(source.value));
                format!("{what}: {value}, of `{}`", source.cells.join("`, `"))
            })
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
    let [value, built_in] = [source.value, source.built_in].map(|value| source.kind.format(value));
    let cells = match source.cells.is_empty() {
        true => Item::Text("this study has none: built in".into()),
        false => Item::Cells(source.cells.clone()),
    };
    let texts = [way, source.kind.label().into(), value, built_in].map(Item::Text);
    texts.into_iter().chain([cells]).collect()
}
