//! What was not measured, and why. Nothing is left out in silence.

use std::collections::BTreeMap;

use crate::report::data::{Study, outcome_name};
use crate::report::document::{Block, Item, Section, Table};
use crate::study::record::Outcome;

/// How many rounds ended how, in a sentence.
pub(super) fn counts(study: &Study) -> String {
    let mut counts: BTreeMap<Outcome, usize> = BTreeMap::new();
    for cell in study.groups.iter().flat_map(|group| &group.rounds) {
        *counts.entry(cell.outcome).or_default() += 1;
    }
    let parts: Vec<String> =
        counts.iter().map(|(outcome, count)| format!("{count} {}", outcome_name(*outcome))).collect();
    let (there, all) = (study.rounds() as u64, study.run.cells);
    let lacking = match there < all {
        true => format!(" The study is not complete: {} more were not run.", all - there),
        false => String::new(),
    };
    format!("{there} rounds of {} cells: {}.{lacking}", study.groups.len(), parts.join(", "))
}

/// The section.
pub(super) fn section(study: &Study) -> Section {
    // Rounds that ended alike for the same reason are one line.
    let mut rows: BTreeMap<(Outcome, String, String), BTreeMap<&str, Vec<u32>>> = BTreeMap::new();
    for group in &study.groups {
        for cell in group.rounds.iter().filter(|cell| cell.outcome != Outcome::Measured) {
            let reason = cell.reason.clone().unwrap_or_else(|| "no reason was recorded".into());
            let cells = rows.entry((cell.outcome, group.series.label(), reason)).or_default();
            cells.entry(&group.id).or_default().push(cell.round);
        }
    }
    let mut blocks = vec![Block::Text(counts(study))];
    if rows.is_empty() {
        blocks.push(Block::Text("Every round was measured.".into()));
    } else {
        blocks.push(Block::List(vec![
            "capped: the time was over before the work was done.".into(),
            "not permitted: the user of the study may not.".into(),
            "unsupported: the kernel or the machine cannot.".into(),
            "refused: the link was not what was asked for.".into(),
            "failed: something went wrong.".into(),
        ]));
        let heads = |last: &str| ["method", "outcome", "why", last].map(String::from).to_vec();
        let start = |(outcome, series, reason): &(Outcome, String, String)| {
            [series.clone(), outcome_name(*outcome).into(), reason.clone()].map(Item::Text).to_vec()
        };
        let counted = rows.iter().map(|(why, cells)| {
            let rounds: usize = cells.values().map(Vec::len).sum();
            let text = format!("{rounds} of {} cells", cells.len());
            [start(why), vec![Item::Text(text)]].concat()
        });
        let named = rows.iter().map(|(why, cells)| {
            let names = cells.iter().map(|(id, rounds)| {
                let rounds: Vec<String> = rounds.iter().map(u32::to_string).collect();
                format!("{id} #{}", rounds.join(","))
            });
            [start(why), vec![Item::Cells(names.collect())]].concat()
        });
        blocks.push(Block::Table(Table {
            caption: "Rounds that were not measured, or not to their end".into(),
            columns: heads("rounds"),
            rows: counted.collect(),
        }));
        blocks.push(Block::More {
            summary: "Which cells these are".into(),
            blocks: vec![Block::Table(Table {
                caption: "Names of cells in the raw data, and the numbers of the rounds".into(),
                columns: heads("cells"),
                rows: named.collect(),
            })],
        });
    }
    Section { id: "missing", title: "What was not measured".into(), blocks }
}
