//! Rows, targets, and how they are printed.

use serde::Serialize;

use super::Options;

/// What a ratio has to be.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// At least that, in the median.
    AtLeast(f64),
    /// At most that, in the median.
    AtMost(f64),
    /// The same, in every single round.
    AlwaysAtMost(f64),
    /// To know, not to reach.
    None,
}

/// One thing that was measured, round by round.
#[derive(Debug, Clone)]
pub struct Row {
    /// What is measured.
    pub name: String,
    unit: &'static str,
    /// What it is compared with.
    against: String,
    target: Target,
    /// Ours and the baseline, of each round.
    rounds: Vec<(f64, f64)>,
}

impl Row {
    /// A row without rounds.
    pub fn new(
        name: impl Into<String>,
        unit: &'static str,
        against: impl Into<String>,
        target: Target,
    ) -> Self {
        Self { name: name.into(), unit, against: against.into(), target, rounds: Vec::new() }
    }

    /// Adds a round, and says so to whoever waits.
    pub fn push(&mut self, ours: f64, baseline: f64) {
        self.rounds.push((ours, baseline));
        let (round, ratio) = (self.rounds.len(), ours / baseline);
        eprintln!("{:24} round {round}: {ours:8.3} to {baseline:8.3} {}: {ratio:.2}", self.name, self.unit);
    }

    fn summary(&self) -> Summary<'_> {
        let column = |of: fn(&(f64, f64)) -> f64| sorted(self.rounds.iter().map(of).collect());
        let (ours, baseline) = (column(|round| round.0), column(|round| round.1));
        let ratios = column(|round| round.0 / round.1);
        let ratio = match self.target {
            Target::AlwaysAtMost(_) => ratios.last().copied().unwrap_or(f64::NAN),
            _ => median(&ratios),
        };
        let (target, reached) = match self.target {
            Target::AtLeast(least) => (format!(">= {least}"), Some(ratio >= least)),
            Target::AtMost(most) => (format!("<= {most}"), Some(ratio <= most)),
            Target::AlwaysAtMost(most) => (format!("always <= {most}"), Some(ratio <= most)),
            Target::None => (String::new(), None),
        };
        Summary {
            name: &self.name,
            unit: self.unit,
            median: median(&ours),
            min: ours.first().copied().unwrap_or(f64::NAN),
            max: ours.last().copied().unwrap_or(f64::NAN),
            against: &self.against,
            baseline: median(&baseline),
            ratio,
            target,
            reached,
            rounds: &self.rounds,
        }
    }
}

#[derive(Serialize)]
struct Summary<'a> {
    name: &'a str,
    unit: &'a str,
    median: f64,
    min: f64,
    max: f64,
    against: &'a str,
    baseline: f64,
    ratio: f64,
    target: String,
    reached: Option<bool>,
    /// Ours and the baseline, of each round.
    rounds: &'a [(f64, f64)],
}

#[derive(Serialize)]
struct Report<'a> {
    machine: &'a str,
    size: u64,
    rounds: usize,
    rows: Vec<Summary<'a>>,
}

/// The table as one JSON object.
///
/// # Errors
///
/// None, for numbers that are numbers.
pub fn json(rows: &[Row], machine: &str, options: &Options) -> serde_json::Result<String> {
    let rows = rows.iter().map(Row::summary).collect();
    let report = Report { machine, size: options.size, rounds: options.rounds, rows };
    serde_json::to_string(&report)
}

/// The table as people read it.
pub fn text(rows: &[Row]) -> String {
    let mut lines = vec![
        ["row", "unit", "ours", "min", "max", "baseline", "", "ratio", "target", "reached"].map(String::from),
    ];
    for row in rows {
        let row = row.summary();
        let reached = row.reached.map_or("", |reached| if reached { "yes" } else { "NO" });
        let number = |value: f64| if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") };
        let cells = [row.median, row.min, row.max, row.baseline].map(number);
        let [ours, min, max, baseline] = cells;
        let ratio = format!("{:.2}", row.ratio);
        let (name, unit, against) = (row.name.into(), row.unit.into(), row.against.into());
        lines.push([name, unit, ours, min, max, baseline, against, ratio, row.target, reached.into()]);
    }
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or(0))
        .collect();
    let numbers = [2, 3, 4, 5, 7];
    let mut text = String::new();
    for line in &lines {
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            let cell =
                if numbers.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:width$}") };
            text += &cell;
            text += "  ";
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// The median of what is sorted.
fn median(values: &[f64]) -> f64 {
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}
