//! A report before it is written: sections of sentences, tables and charts, the same for every way to write it down.
//!
//! A sentence is plain text, but for `code` between backticks and **what matters** between asterisks.

use super::chart::Chart;
use super::data::{Group, Value, outcome_name};
use super::metric::Metric;

/// A report.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Document {
    /// What it is.
    pub(super) title: String,
    /// A sentence below that.
    pub(super) lead: String,
    /// The rest, in order.
    pub(super) sections: Vec<Section>,
}

/// A part of a report.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Section {
    /// By what it is reached within the page.
    pub(super) id: &'static str,
    /// Its heading.
    pub(super) title: String,
    /// What is in it.
    pub(super) blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Block {
    /// A heading within the section.
    Heading(String),
    /// Sentences.
    Text(String),
    /// A sentence that matters more than others.
    Verdict(String),
    /// A list of sentences.
    List(Vec<String>),
    /// A table.
    Table(Table),
    /// A chart. Its numbers are those of the table behind it.
    Chart(Box<Chart>),
    /// What is shown to who asks for it.
    More {
        /// What is in there.
        summary: String,
        /// The blocks.
        blocks: Vec<Block>,
    },
}

/// A table. The first item of each row says what the row is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    /// What it shows.
    pub(super) caption: String,
    /// The heads of the columns.
    pub(super) columns: Vec<String>,
    /// The rows, each with an item per column.
    pub(super) rows: Vec<Vec<Item>>,
}

/// What is in one place of a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item {
    /// Words.
    Text(String),
    /// Names of cells in the raw data.
    Cells(Vec<String>),
    /// A number.
    Number {
        /// As it is read.
        text: String,
        /// Of what.
        metric: Metric,
        /// The cell that it was made of.
        cell: String,
    },
    /// That there is no number.
    Missing {
        /// Why, in a word.
        text: String,
        /// Of which cell, where there is one.
        cell: Option<String>,
    },
}

impl Item {
    /// What a cell says of a metric. Nothing at all where there is no such cell.
    pub(super) fn of(group: Option<&Group>, metric: Metric) -> Item {
        let Some(group) = group else { return Item::Missing { text: "·".into(), cell: None } };
        let cell = group.id.clone();
        match group.value(metric) {
            Value::Measured { spread, capped } => {
                let mut text = metric.format(spread.median);
                let ends = [spread.min, spread.max].map(|value| metric.format(value));
                if ends[0] != ends[1] {
                    text += &format!(" ({} – {})", ends[0], ends[1]);
                }
                if capped {
                    text.push('†');
                }
                Item::Number { text, metric, cell }
            }
            Value::Not(outcome) => Item::Missing { text: outcome_name(outcome).into(), cell: Some(cell) },
            Value::Without => Item::Missing { text: "–".into(), cell: Some(cell) },
        }
    }

    /// As it is read.
    pub(super) fn text(&self) -> String {
        match self {
            Item::Text(text) | Item::Number { text, .. } | Item::Missing { text, .. } => text.clone(),
            Item::Cells(cells) => cells.join(", "),
        }
    }
}
