//! The raw data, grouped: all rounds of a cell together, and what is said of a cell.

use std::collections::BTreeMap;
use std::fmt;

use super::metric::Metric;
use super::statistics::{Distribution, Spread};
use crate::study::record::{Cell, Dimension, LinkRecord, Method, Mode, Outcome, Pattern, Point, Record, Run};

/// A study, as a report sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Study {
    /// How it was run; where it was interrupted and went on, as it began.
    pub(super) run: Run,
    /// When it went on, in seconds since 1970.
    pub(super) went_on: Vec<u64>,
    /// The links that were made.
    pub(super) links: Vec<Link>,
    /// The cells, in the order of their series and then of the raw data.
    pub(super) groups: Vec<Group>,
}

/// A link: it is made in each round, and measured each time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Link {
    /// As it was measured, time after time.
    pub(super) times: Vec<LinkRecord>,
}

/// All rounds of one cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    /// The cell's name in the raw data.
    pub(super) id: String,
    /// How the region is reached.
    pub(super) series: Series,
    /// Under which circumstances.
    pub(super) point: Point,
    /// The rounds, in order.
    pub(super) rounds: Vec<Cell>,
}

/// What is compared: a method and its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Series {
    /// The method.
    pub(super) method: Method,
    /// Its mode, where it has more than one.
    pub(super) mode: Option<Mode>,
}

/// What an application does, and how much it writes where it does.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(super) struct Work {
    /// What it does.
    pub(super) pattern: Pattern,
    /// Per cent of the region that are written in a second.
    pub(super) dirty_percent: Option<f64>,
}

/// What is said of one metric of one cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// It was measured, in at least one round.
    Measured {
        /// In all of those.
        spread: Spread,
        /// No round had the time to do all of the work: this is of the part that was done.
        capped: bool,
    },
    /// The cell ended in another way.
    Not(Outcome),
    /// The cell was measured, and this is nothing that it has.
    Without,
}

/// Why there is no report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoRun;

impl fmt::Display for NoRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the raw data does not begin with a line about the run")
    }
}

impl std::error::Error for NoRun {}

impl Study {
    /// Groups the records.
    ///
    /// # Errors
    ///
    /// When nothing says how the study was run.
    pub(super) fn of(records: Vec<Record>) -> Result<Study, NoRun> {
        let (mut runs, mut links, mut groups) = (Vec::new(), Vec::<Link>::new(), Vec::<Group>::new());
        let mut known: BTreeMap<String, usize> = BTreeMap::new();
        for record in records {
            match record {
                Record::Run(run) => runs.push(run),
                Record::Link(link) => match links.iter_mut().find(|other| other.is_like(&link)) {
                    Some(other) => other.times.push(link),
                    None => links.push(Link { times: vec![link] }),
                },
                Record::Cell(cell) => {
                    let at = *known.entry(cell.id.clone()).or_insert_with(|| {
                        let series = Series { method: cell.method, mode: cell.mode };
                        let (id, point) = (cell.id.clone(), cell.point);
                        groups.push(Group { id, series, point, rounds: Vec::new() });
                        groups.len() - 1
                    });
                    let rounds = &mut groups[at].rounds;
                    // A round that was run again, after an interruption, is the later one.
                    rounds.retain(|round| round.round != cell.round);
                    rounds.push(*cell);
                }
            }
        }
        for group in &mut groups {
            group.rounds.sort_by_key(|cell| cell.round);
        }
        groups.sort_by_key(|group| group.series);
        links.sort_by_key(|link| (link.setting().rtt_ms, link.setting().rate_bits.unwrap_or(u64::MAX)));
        let went_on = runs.iter().skip(1).map(|run| run.started_unix_s).collect();
        let run = runs.into_iter().next().ok_or(NoRun)?;
        Ok(Study { run, went_on, links, groups })
    }

    /// How many rounds of cells there are.
    pub(super) fn rounds(&self) -> usize {
        self.groups.iter().map(|group| group.rounds.len()).sum()
    }

    /// The circumstances from which one at a time is varied.
    pub(super) fn base(&self) -> Option<Point> {
        let is_base = |group: &&Group| group.rounds.iter().any(|cell| cell.dimension == Dimension::Base);
        self.groups.iter().find(is_base).or(self.groups.first()).map(|group| group.point)
    }

    /// What was compared, in order.
    pub(super) fn series(&self) -> Vec<Series> {
        let mut series: Vec<Series> = self.groups.iter().map(|group| group.series).collect();
        series.dedup();
        series
    }

    /// What applications did, in order.
    pub(super) fn works(&self) -> Vec<Work> {
        let mut works: Vec<Work> = self.groups.iter().map(Group::work).collect();
        works.sort_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal));
        works.dedup();
        works
    }

    /// The cell of a series at a point.
    pub(super) fn at(&self, series: Series, point: &Point) -> Option<&Group> {
        self.groups.iter().find(|group| group.series == series && group.point == *point)
    }

    /// The work with this pattern that was done under the most circumstances.
    pub(super) fn typical(&self, pattern: Pattern) -> Option<Work> {
        let works = self.works().into_iter().filter(|work| work.pattern == pattern);
        works.max_by_key(|work| self.groups.iter().filter(|group| group.work() == *work).count())
    }

    /// The round trip of the link of a point, in seconds: as it was measured, or as it was asked for.
    pub(super) fn round_trip(&self, point: &Point) -> f64 {
        let mut links = self.links.iter();
        let link = links.find(|link| {
            (link.setting().rtt_ms, link.setting().rate_bits) == (point.rtt_ms, point.rate_bits)
        });
        let measured = link.and_then(|link| link.measured(|time| time.measured_rtt_s));
        measured.map_or(f64::from(point.rtt_ms) * 1e-3, |spread| spread.median)
    }
}

impl Link {
    /// What was asked for.
    pub(super) fn setting(&self) -> &LinkRecord {
        &self.times[0]
    }

    /// What was measured, each time.
    pub(super) fn measured(&self, of: impl Fn(&LinkRecord) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.times.iter().filter_map(of))
    }

    fn is_like(&self, other: &LinkRecord) -> bool {
        let setting = self.setting();
        (setting.kind, setting.rtt_ms, setting.rate_bits) == (other.kind, other.rtt_ms, other.rate_bits)
    }
}

impl Group {
    /// What the application did.
    pub(super) fn work(&self) -> Work {
        Work { pattern: self.point.pattern, dirty_percent: self.point.dirty_percent }
    }

    /// The rounds that count: those that were measured; where there are none, those that were cut off.
    fn counting(&self) -> (impl Iterator<Item = &Cell>, bool) {
        let is_measured = self.rounds.iter().any(|cell| cell.outcome == Outcome::Measured);
        let wanted = if is_measured { Outcome::Measured } else { Outcome::Capped };
        (self.rounds.iter().filter(move |cell| cell.outcome == wanted), !is_measured)
    }

    /// What is said of a metric.
    pub(super) fn value(&self, metric: Metric) -> Value {
        let (counting, capped) = self.counting();
        let mut counting = counting.peekable();
        let others = self.rounds.first().map_or(Outcome::Failed, |cell| cell.outcome);
        if counting.peek().is_none() {
            return Value::Not(others);
        }
        match Spread::of(counting.filter_map(|cell| metric.of(cell))) {
            Some(spread) => Value::Measured { spread, capped },
            None if capped => Value::Not(Outcome::Capped),
            None => Value::Without,
        }
    }

    /// The rounds that count.
    pub(super) fn counted(&self) -> impl Iterator<Item = &Cell> {
        self.counting().0
    }

    /// The median of a metric, where there is one.
    pub(super) fn median(&self, metric: Metric) -> Option<f64> {
        match self.value(metric) {
            Value::Measured { spread, .. } => Some(spread.median),
            _ => None,
        }
    }

    /// How first touches were distributed, in all rounds together. Each round has kept as many.
    pub(super) fn touches(&self) -> Option<Distribution> {
        let (counting, _) = self.counting();
        Distribution::of(counting.flat_map(|cell| cell.samples.touch_s.iter().copied()))
    }
}

impl Series {
    /// Its name.
    pub(super) fn label(self) -> String {
        let method = method_name(self.method);
        match self.mode {
            Some(Mode::Direct) => format!("{method}, direct"),
            Some(Mode::Managed) => format!("{method}, managed"),
            None => method.to_owned(),
        }
    }

    /// Whether it is there to compare with, and no method.
    pub(super) fn is_reference(self) -> bool {
        matches!(self.method, Method::LocalMemory | Method::LocalFile)
    }

    /// Whether it is to be called best by a metric of a work. What a mirror reads is a local file, once all of it has
    /// come: how fast that is says nothing of reaching it. And nobody can wait until what was written to it is durable.
    pub(super) fn competes(self, metric: Metric, work: Work) -> bool {
        let of_reading = [Metric::TouchMedian, Metric::TouchTail, Metric::Throughput, Metric::Slowdown];
        let is_fill = work.pattern == Pattern::Fill;
        let is_local = self.method == Method::Mirror
            && (!work.pattern.writes() || is_fill)
            && of_reading.contains(&metric);
        !self.is_reference() && !is_local
    }
}

/// The name of a method.
pub(super) fn method_name(method: Method) -> &'static str {
    match method {
        Method::Uffd => "userfaultfd",
        Method::Fuse => "FUSE",
        Method::Nbd => "NBD device",
        Method::NbdUser => "NBD in user space",
        Method::Mirror => "mirror",
        Method::LocalMemory => "local memory",
        Method::LocalFile => "local file",
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pattern = match self.pattern {
            Pattern::InOrder => "reading in order",
            Pattern::Random => "reading at random",
            Pattern::HotSet => "reading a hot set",
            Pattern::Write => "writing",
            Pattern::Fill => "writing all of it",
            Pattern::Mixed => "reading and writing",
        };
        match self.dirty_percent {
            Some(percent) => write!(f, "{pattern}, {percent} % of the region a second"),
            None => f.write_str(pattern),
        }
    }
}

/// What an outcome is called.
pub(super) fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Measured => "measured",
        Outcome::Capped => "capped",
        Outcome::NotPermitted => "not permitted",
        Outcome::Unsupported => "unsupported",
        Outcome::Refused => "refused",
        Outcome::Failed => "failed",
    }
}
