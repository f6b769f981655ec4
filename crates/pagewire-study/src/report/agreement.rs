//! Whether two studies say the same: what they recommend, the figures that this rests on, and all other figures of the
//! cells that both have.
//!
//! Medians of few rounds are never equal. Two figures are *apart* where no round of the one study lies within those of the
//! other. Of three rounds each, one in ten is so by chance: what tells is how far they are apart, and whether it is many of
//! one method or one dimension.

use std::fmt;

use pagewire::advice::{Advice, Transfer, UseCase, Way, advise};
use serde::Serialize;

use super::data::{Group, Study, Value};
use super::figures::{Kind, Source, figures, machine};
use super::metric::Metric;
use crate::study::record::{Dimension, Method, Mode};

/// What two studies have in common, and where they differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
    /// Whether both recommend the same for each use case.
    pub agree: bool,
    /// What both recommend, use case by use case.
    pub recommendations: Vec<Compared>,
    /// The figures that recommendations rest on, where at least one study has measured them.
    pub figures: Vec<Resting>,
    /// How many figures both have of each method and dimension, and how many of them are apart.
    pub dimensions: Vec<Tally>,
    /// The figures that are apart.
    pub apart: Vec<Apart>,
}

/// What both studies recommend for a use case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// The use case.
    #[serde(rename = "for")]
    pub case: UseCase,
    /// What the one recommends.
    pub one: Recommended,
    /// What the other does.
    pub other: Recommended,
    /// Whether that is the same.
    pub agree: bool,
}

/// What is recommended for a use case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Recommended {
    /// The best of what fits; none where nothing does.
    pub way: Option<Way>,
    /// Whether to pull what nobody has touched yet.
    pub background: bool,
    /// How to move, where the state is to move.
    pub moving: Option<Transfer>,
}

/// A figure that recommendations rest on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Resting {
    /// Of which way; none for what all have in common.
    pub way: Option<Way>,
    /// What it is.
    pub what: &'static str,
    /// Its value in the one study, in base units, which may be the built-in one.
    pub one: f64,
    /// And in the other.
    pub other: f64,
    /// The other over the one.
    pub ratio: f64,
    #[serde(skip)]
    kind: Kind,
}

/// How many figures of one method and dimension are apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tally {
    /// The method.
    pub method: Method,
    /// Its mode, where it has more than one.
    pub mode: Option<Mode>,
    /// What is varied.
    pub dimension: Dimension,
    /// How many figures both studies have.
    pub figures: usize,
    /// How many of them are apart.
    pub apart: usize,
}

/// A figure of which no round of one study lies within those of the other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Apart {
    /// The cell.
    pub cell: String,
    /// The method.
    pub method: Method,
    /// Its mode, where it has more than one.
    pub mode: Option<Mode>,
    /// What is varied in this cell.
    pub dimension: Dimension,
    /// What it is.
    pub what: &'static str,
    /// The median of the one study, in base units.
    pub one: f64,
    /// The median of the other.
    pub other: f64,
    /// The other over the one; infinite where that is nothing, which JSON has as null.
    pub ratio: f64,
}

impl Agreement {
    /// Of two studies.
    pub(super) fn of(one: &Study, other: &Study) -> Agreement {
        let (one_advice, one_sources) = recommended(one);
        let (other_advice, other_sources) = recommended(other);
        let recommendations: Vec<Compared> = UseCase::ALL
            .into_iter()
            .zip(one_advice.into_iter().zip(other_advice))
            .map(|(case, (one, other))| Compared { case, one, other, agree: one == other })
            .collect();
        let (dimensions, apart) = compare(one, other);
        Agreement {
            agree: recommendations.iter().all(|compared| compared.agree),
            recommendations,
            figures: resting(&one_sources, &other_sources),
            dimensions,
            apart,
        }
    }

    /// How many recommendations differ.
    pub fn differing(&self) -> usize {
        self.recommendations.iter().filter(|compared| !compared.agree).count()
    }

    /// All of it, as lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec!["Recommendations".to_owned()];
        for Compared { case, one, other, agree } in &self.recommendations {
            lines.push(match agree {
                true => format!("  same     {:9} {one}", case.as_str()),
                false => format!("  differs  {:9} {one}; the other: {other}", case.as_str()),
            });
        }
        lines.extend([String::new(), "Figures that they rest on".into()]);
        for Resting { way, what, one, other, ratio, kind } in &self.figures {
            let way = way.map_or_else(|| "all".into(), |way| way.to_string());
            let [one, other] = [one, other].map(|value| kind.format(*value));
            lines.push(format!("  {ratio:5.2}  {way:21} {what}: {one}; the other: {other}"));
        }
        if self.figures.is_empty() {
            lines.push("  all are built in".into());
        }
        lines.extend([String::new(), "Figures that are apart, of those that both have".into()]);
        for Tally { method, mode, dimension, figures, apart } in &self.dimensions {
            let way = named(*method, *mode);
            let of_this =
                |one: &&Apart| (one.method, one.mode, one.dimension) == (*method, *mode, *dimension);
            // So many times more or less.
            let distance = |one: &&Apart| one.ratio.ln().abs();
            let finite = self.apart.iter().filter(of_this).filter(|one| distance(one).is_finite());
            let farthest = finite.max_by(|one, other| distance(one).total_cmp(&distance(other)));
            let farthest = farthest.map_or_else(String::new, |Apart { cell, what, ratio, .. }| {
                format!("  farthest {ratio:.2}: {what}, {cell}")
            });
            lines.push(format!("  {apart:3} of {figures:<4} {way:16} {:12}{farthest}", key(*dimension)));
        }
        if self.dimensions.is_empty() {
            lines.push("  they have no cell in common".into());
        }
        lines.iter().map(|line| line.trim_end().to_owned()).collect()
    }
}

impl fmt::Display for Recommended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.way {
            Some(way) => write!(f, "{way}")?,
            None => f.write_str("nothing")?,
        }
        if self.background {
            f.write_str(", with the rest in the background")?;
        }
        match self.moving {
            Some(moving) => write!(f, ", moved by {}", moving.as_str()),
            None => Ok(()),
        }
    }
}

/// What a study recommends for each use case, and by which figures.
fn recommended(study: &Study) -> (Vec<Recommended>, Vec<Source>) {
    let (figures, sources) = figures(study);
    let machine = machine(&study.run);
    let of = |advice: &Advice| Recommended {
        way: advice.best().map(|best| best.way),
        background: advice.best().is_some_and(|best| best.background),
        moving: advice.moving.as_ref().map(|moving| moving.how),
    };
    let all = UseCase::ALL.iter().map(|case| of(&advise(&case.workload(), &machine, &figures)));
    (all.collect(), sources)
}

/// Both have the same figures, in the same order.
fn resting(one: &[Source], other: &[Source]) -> Vec<Resting> {
    let both = one.iter().zip(other).filter(|(one, other)| !(one.cells.is_empty() && other.cells.is_empty()));
    both.map(|(one, other)| Resting {
        way: one.way,
        what: one.kind.label(),
        one: one.value,
        other: other.value,
        ratio: other.value / one.value,
        kind: one.kind,
    })
    .collect()
}

fn compare(one: &Study, other: &Study) -> (Vec<Tally>, Vec<Apart>) {
    let (mut tallies, mut apart): (Vec<Tally>, Vec<Apart>) = (Vec::new(), Vec::new());
    for group in &one.groups {
        let Some(same) = other.groups.iter().find(|other| other.id == group.id) else { continue };
        let Some(dimension) = group.rounds.first().map(|cell| cell.dimension) else { continue };
        let (method, mode) = (group.series.method, group.series.mode);
        let (figures, differing) = compare_cell(group, same, dimension);
        if figures == 0 {
            continue;
        }
        let of_this =
            |tally: &&mut Tally| (tally.method, tally.mode, tally.dimension) == (method, mode, dimension);
        match tallies.iter_mut().find(of_this) {
            Some(tally) => {
                tally.figures += figures;
                tally.apart += differing.len();
            }
            None => tallies.push(Tally { method, mode, dimension, figures, apart: differing.len() }),
        }
        apart.extend(differing);
    }
    tallies.sort_by_key(|tally| (tally.method, tally.mode, tally.dimension));
    apart.sort_by_key(|apart| (apart.method, apart.mode, apart.dimension));
    (tallies, apart)
}

/// How many figures of a cell both have, and which are apart.
fn compare_cell(one: &Group, other: &Group, dimension: Dimension) -> (usize, Vec<Apart>) {
    let (mut figures, mut apart) = (0, Vec::new());
    for metric in Metric::ALL {
        let (Value::Measured { spread: here, .. }, Value::Measured { spread: there, .. }) =
            (one.value(metric), other.value(metric))
        else {
            continue;
        };
        figures += 1;
        if here.max < there.min || there.max < here.min {
            apart.push(Apart {
                cell: one.id.clone(),
                method: one.series.method,
                mode: one.series.mode,
                dimension,
                what: metric.label(),
                one: here.median,
                other: there.median,
                ratio: there.median / here.median,
            });
        }
    }
    (figures, apart)
}

fn named(method: Method, mode: Option<Mode>) -> String {
    mode.map_or_else(|| method.name().to_owned(), |mode| format!("{}-{}", method.name(), mode.name()))
}

fn key(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Base => "base",
        Dimension::Rtt => "rtt",
        Dimension::Rate => "rate",
        Dimension::Chunk => "chunk",
        Dimension::Connections => "connections",
        Dimension::Pattern => "pattern",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::made_up;
    use crate::study::record::{Cell, Figure, Pattern, Record};

    /// A study that nobody has run, with its cells changed.
    fn study(change: impl Fn(&mut Cell)) -> Study {
        let mut records = made_up::records(7);
        for record in &mut records {
            if let Record::Cell(cell) = record {
                change(cell);
            }
        }
        Study::of(records).unwrap()
    }

    fn scale(cell: &mut Cell, figure: Figure, factor: f64) {
        cell.figures.entry(figure).and_modify(|value| *value *= factor);
    }

    #[test]
    fn a_study_agrees_with_itself() {
        let agreement = Agreement::of(&study(|_| ()), &study(|_| ()));
        assert!(agreement.agree && agreement.differing() == 0 && agreement.apart.is_empty());
        assert_eq!(agreement.recommendations.len(), UseCase::ALL.len());
        assert!(agreement.figures.iter().all(|resting| resting.ratio == 1.0), "{agreement:#?}");
        // All that is measured of a userfaultfd, and of what the made-up study has besides.
        let whats: Vec<&str> = agreement.figures.iter().map(|resting| resting.what).collect();
        for kind in [Kind::FirstTouch, Kind::Read, Kind::Write, Kind::CpuPerGb, Kind::TrackedWrite] {
            assert!(whats.contains(&kind.label()), "{kind:?}: {whats:?}");
        }
        assert!(!whats.contains(&Kind::Hashing.label()), "what is built in for both says nothing");
        let text = agreement.lines().join("\n");
        assert!(
            text.contains("  same     model     FUSE, managed, with the rest in the background\n"),
            "{text}"
        );
        assert!(text.contains("FUSE, managed, with the rest in the background, moved by pre-copy"), "{text}");
        assert!(!text.contains("differs") && !text.contains("farthest"), "{text}");
    }

    #[test]
    fn what_is_apart_is_told_with_its_ratio_and_what_overlaps_is_not() {
        let is_base = |cell: &Cell| {
            (cell.method, cell.mode, cell.dimension) == (Method::Uffd, Some(Mode::Managed), Dimension::Base)
        };
        let other = study(|cell| {
            if is_base(cell) {
                scale(cell, Figure::ThroughputBytesPerS, 3.0);
                // Within what rounds differ by.
                scale(cell, Figure::ReadyS, 1.01);
            }
        });
        let agreement = Agreement::of(&study(|_| ()), &other);
        assert!(agreement.agree, "it is over the nearest link that recommendations count");
        let [apart] = &agreement.apart[..] else { panic!("{:#?}", agreement.apart) };
        assert_eq!((apart.what, apart.dimension), ("throughput", Dimension::Base));
        assert!((apart.ratio - 3.0).abs() < 1e-9 && (apart.other / apart.one - 3.0).abs() < 1e-9);
        let tally = |dimension: Dimension| {
            let found = agreement.dimensions.iter().find(|tally| {
                (tally.method, tally.mode, tally.dimension) == (apart.method, apart.mode, dimension)
            });
            found.unwrap().clone()
        };
        assert_eq!(tally(Dimension::Base).apart, 1);
        assert!(tally(Dimension::Base).figures > 5 && tally(Dimension::Rtt).apart == 0);
        let text = agreement.lines().join("\n");
        assert!(text.contains("farthest 3.00: throughput, uffd-managed-in-order-5ms"), "{text}");
    }

    #[test]
    fn studies_that_recommend_something_else_differ() {
        // Changes cost so much to track, and faults so much to serve, that a file is better than a program's memory.
        let other = study(|cell| match (cell.method, cell.point.pattern) {
            (Method::Uffd, Pattern::Write) => scale(cell, Figure::TouchP50S, 100.0),
            (Method::Uffd, Pattern::Random) => scale(cell, Figure::TouchP50S, 10.0),
            _ => {}
        });
        let agreement = Agreement::of(&study(|_| ()), &other);
        let differing: Vec<&Compared> = agreement.recommendations.iter().filter(|one| !one.agree).collect();
        let [state] = &differing[..] else { panic!("{differing:#?}") };
        assert_eq!((state.case, agreement.agree, agreement.differing()), (UseCase::State, false, 1));
        assert_ne!(state.one.way, state.other.way);
        let text = agreement.lines().join("\n");
        assert!(
            text.contains(
                "  differs  state     userfaultfd, managed, with the rest in the background; the other: "
            ),
            "{text}"
        );
    }

    #[test]
    fn studies_of_different_cells_are_compared_in_what_both_have() {
        let nothing = Study::of(vec![made_up::records(7).swap_remove(0)]).unwrap();
        let agreement = Agreement::of(&study(|_| ()), &nothing);
        assert!(agreement.dimensions.is_empty() && agreement.apart.is_empty());
        assert!(!agreement.figures.is_empty(), "one of them has measured");
        assert!(agreement.lines().join("\n").contains("they have no cell in common"));
        let agreement = Agreement::of(&nothing, &nothing);
        assert!(agreement.agree && agreement.figures.is_empty());
        assert!(agreement.lines().join("\n").contains("all are built in"));
    }
}
