//! A metric over what is varied, or over what applications do: a chart, the table of its numbers, and where they are from.

use super::{at_base, capitalized, sources};
use crate::report::chart::{Chart, Line, LineChart, Mark, Plot, RowChart};
use crate::report::data::{Group, Series, Study, Value, Work};
use crate::report::document::{Block, Item, Table};
use crate::report::metric::Metric;
use crate::report::sections::setup;
use crate::report::statistics::{Distribution, Spread};
use crate::study::record::{Dimension, Point};

/// A metric over what is varied, for each of the works for which it was varied.
pub(super) fn over(
    study: &Study,
    metric: Metric,
    dimension: Dimension,
    wanted: impl Fn(&Work) -> bool,
) -> Vec<Block> {
    let Some(base) = study.base() else { return Vec::new() };
    let works = study.works().into_iter().filter(|work| wanted(work));
    works.flat_map(|work| over_for(study, &base, metric, dimension, work)).collect()
}

fn over_for(study: &Study, base: &Point, metric: Metric, dimension: Dimension, work: Work) -> Vec<Block> {
    let here =
        |group: &&Group| group.work() == work && fixed(&group.point, base, dimension) == at_base(base, work);
    let groups: Vec<&Group> = study.groups.iter().filter(here).collect();
    let mut x: Vec<(f64, String)> = groups.iter().map(|group| varied(&group.point, dimension)).collect();
    x.sort_by(|one, other| one.0.total_cmp(&other.0));
    x.dedup();
    if x.len() < 2 || !groups.iter().any(|group| group.median(metric).is_some()) {
        return Vec::new();
    }
    let find = |series: Series, at: &(f64, String)| {
        groups.iter().copied().find(|group| group.series == series && varied(&group.point, dimension) == *at)
    };
    // To what has one value of x alone it makes no difference, or nothing was asked.
    let is_varied = |series: &Series| x.iter().filter(|x| find(*series, x).is_some()).count() > 1;
    let here: Vec<Series> = study.series().into_iter().filter(is_varied).collect();
    let lines = here.iter().filter_map(|series| {
        let points = x.iter().enumerate().filter_map(|(at, x)| Some((at, mark(find(*series, x)?, metric)?)));
        let points: Vec<(usize, Mark)> = points.collect();
        (!points.is_empty()).then_some(Line { series: *series, points })
    });
    let title = format!("{} by {}, {work}", capitalized(metric.label()), name(dimension));
    let chart = Chart {
        id: format!("{}-by-{}-{}", metric.key(), key(dimension), work_key(work)),
        title: title.clone(),
        description: format!(
            "Medians of rounds, with the least and the greatest as a line. {}",
            described(&here, &x, metric, |series, x| {
                find(series, x).filter(|_| series.competes(metric, work))?.median(metric)
            })
        ),
        plot: Plot::Lines(LineChart {
            x_label: format!("{}{}", name(dimension), unit(dimension)),
            x: x.clone(),
            metric,
            lines: lines.collect(),
        }),
    };
    let table = Table {
        caption: format!("{title}; all else as at the base point: {}", setup::point(base)),
        columns: ["method".to_owned()].into_iter().chain(x.iter().map(|(_, text)| text.clone())).collect(),
        rows: here
            .iter()
            .map(|series| {
                let items = x.iter().map(|x| Item::of(find(*series, x), metric));
                [Item::Text(series.label())].into_iter().chain(items).collect()
            })
            .collect(),
    };
    let more = sources(std::slice::from_ref(&table));
    vec![Block::Heading(title), Block::Chart(Box::new(chart)), Block::Table(table), more]
}

/// A metric over what applications do, at the base point.
pub(super) fn by_work(study: &Study, metric: Metric, wanted: impl Fn(&Work) -> bool) -> Vec<Block> {
    let Some(base) = study.base() else { return Vec::new() };
    let works: Vec<Work> = study.works().into_iter().filter(|work| wanted(work)).collect();
    let cell = |series: Series, work: Work| study.at(series, &at_base(&base, work));
    let works: Vec<Work> = works
        .into_iter()
        .filter(|work| {
            study
                .series()
                .iter()
                .any(|series| cell(*series, *work).and_then(|group| group.median(metric)).is_some())
        })
        .collect();
    if works.is_empty() {
        return Vec::new();
    }
    let here: Vec<Series> = study
        .series()
        .into_iter()
        .filter(|series| works.iter().any(|work| cell(*series, *work).is_some()))
        .collect();
    let groups = works.iter().map(|work| {
        let rows = here.iter().filter_map(|series| Some((*series, mark(cell(*series, *work)?, metric)?)));
        (capitalized(&work.to_string()), rows.collect())
    });
    let title = format!("{} by what the application does", capitalized(metric.label()));
    let x: Vec<(f64, String)> =
        works.iter().enumerate().map(|(at, work)| (at as f64, work.to_string())).collect();
    let chart = Chart {
        id: format!("{}-by-work-{}", metric.key(), work_key(works[0])),
        title: title.clone(),
        description: format!(
            "Medians of rounds, with the least and the greatest as a line. {}",
            described(&here, &x, metric, |series, x| {
                let work = works[x.0 as usize];
                cell(series, work).filter(|_| series.competes(metric, work))?.median(metric)
            })
        ),
        plot: Plot::Rows(RowChart {
            metric,
            name: metric.label(),
            reference: matches!(metric, Metric::Slowdown | Metric::WirePerByte | Metric::WirePerChange)
                .then_some(1.0),
            groups: groups.collect(),
        }),
    };
    let table = Table {
        caption: format!("{title}, at the base point: {}", setup::point(&base)),
        columns: ["method".to_owned()].into_iter().chain(works.iter().map(Work::to_string)).collect(),
        rows: here
            .iter()
            .map(|series| {
                let items = works.iter().map(|work| Item::of(cell(*series, *work), metric));
                [Item::Text(series.label())].into_iter().chain(items).collect()
            })
            .collect(),
    };
    let more = sources(std::slice::from_ref(&table));
    vec![Block::Heading(title), Block::Chart(Box::new(chart)), Block::Table(table), more]
}

/// How first touches are distributed, at the base point.
pub(super) fn distributions(study: &Study) -> Vec<Block> {
    let Some(base) = study.base() else { return Vec::new() };
    let mut blocks = Vec::new();
    for work in study.works() {
        let point = at_base(&base, work);
        let found: Vec<(Series, &Group, Distribution)> = study
            .series()
            .into_iter()
            .filter_map(|series| {
                let group = study.at(series, &point)?;
                Some((series, group, group.touches()?))
            })
            .collect();
        if found.is_empty() {
            continue;
        }
        let title = format!("First touches, {work}");
        let rows = found.iter().map(|(series, _, touches)| {
            let Distribution { p1, p25, p50, p75, p99, max } = *touches;
            let mark = Mark { low: p1, box_low: p25, middle: p50, box_high: p75, high: p99, far: Some(max) };
            (*series, mark)
        });
        let chart = Chart {
            id: format!("touches-{}", work_key(work)),
            title: title.clone(),
            description: "How long a page took that was touched for the first time. A box from the first to the third \
                          quartile around the median, a line from the first to the 99th of a hundred, and a dot for the \
                          longest."
                .into(),
            plot: Plot::Rows(RowChart {
                metric: Metric::TouchMedian,
                name: "first touch",
                reference: None,
                groups: vec![(String::new(), rows.collect())],
            }),
        };
        let number = |value: f64, cell: &str| Item::Number {
            text: Metric::TouchMedian.format(value),
            metric: Metric::TouchMedian,
            cell: cell.to_owned(),
        };
        let table = Table {
            caption: format!(
                "{title}, samples of all rounds together, at the base point: {}",
                setup::point(&base)
            ),
            columns: [
                "method",
                "1 of 100",
                "first quartile",
                "median",
                "third quartile",
                "99 of 100",
                "longest",
            ]
            .map(String::from)
            .to_vec(),
            rows: found
                .iter()
                .map(|(series, group, touches)| {
                    let Distribution { p1, p25, p50, p75, p99, max } = *touches;
                    let numbers = [p1, p25, p50, p75, p99, max].map(|value| number(value, &group.id));
                    [Item::Text(series.label())].into_iter().chain(numbers).collect()
                })
                .collect(),
        };
        let more = sources(std::slice::from_ref(&table));
        blocks.extend([Block::Heading(title), Block::Chart(Box::new(chart)), Block::Table(table), more]);
    }
    blocks
}

fn mark(group: &Group, metric: Metric) -> Option<Mark> {
    match group.value(metric) {
        Value::Measured { spread: Spread { median, min, max, .. }, .. } => {
            Some(Mark { low: min, box_low: median, middle: median, box_high: median, high: max, far: None })
        }
        _ => None,
    }
}

/// The best at both ends, in words.
fn described(
    series: &[Series],
    x: &[(f64, String)],
    metric: Metric,
    median: impl Fn(Series, &(f64, String)) -> Option<f64>,
) -> String {
    let best = |x: &(f64, String)| {
        let values = series.iter().filter_map(|series| Some((*series, median(*series, x)?)));
        let best = match metric.less_is_better() {
            true => values.min_by(|one, other| one.1.total_cmp(&other.1)),
            false => values.max_by(|one, other| one.1.total_cmp(&other.1)),
        };
        best.map(|(series, value)| format!("{}: best is {}, {}.", x.1, series.label(), metric.format(value)))
    };
    let [first, last] = [x.first(), x.last()].map(|x| x.and_then(best));
    let both = first.into_iter().chain(last.filter(|_| x.len() > 1));
    both.collect::<Vec<_>>().join(" ")
}

/// A point with what is varied as at the base point.
fn fixed(point: &Point, base: &Point, dimension: Dimension) -> Point {
    match dimension {
        Dimension::Rtt => Point { rtt_ms: base.rtt_ms, ..*point },
        Dimension::Rate => Point { rate_bits: base.rate_bits, ..*point },
        Dimension::Chunk => Point { chunk_bytes: base.chunk_bytes, ..*point },
        Dimension::Connections => Point { connections: base.connections, ..*point },
        Dimension::Base | Dimension::Pattern => *point,
    }
}

/// The value of what is varied, and how it is written.
fn varied(point: &Point, dimension: Dimension) -> (f64, String) {
    match dimension {
        Dimension::Rtt => (f64::from(point.rtt_ms), format!("{} ms", point.rtt_ms)),
        Dimension::Rate => match point.rate_bits {
            // No limit is the highest of all.
            None => (f64::INFINITY, "no limit".into()),
            Some(bits) => (bits as f64, setup::bits(bits)),
        },
        Dimension::Chunk => (point.chunk_bytes as f64, pagewire::advice::size(point.chunk_bytes as f64)),
        Dimension::Connections => (f64::from(point.connections), point.connections.to_string()),
        Dimension::Base | Dimension::Pattern => (0.0, String::new()),
    }
}

fn name(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Rtt => "round-trip time",
        Dimension::Rate => "rate of the link",
        Dimension::Chunk => "size of chunks",
        Dimension::Connections => "connections",
        Dimension::Base | Dimension::Pattern => "work",
    }
}

fn unit(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Rtt => " of the link",
        Dimension::Connections => " for bulk",
        _ => "",
    }
}

fn key(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Rtt => "rtt",
        Dimension::Rate => "rate",
        Dimension::Chunk => "chunk",
        Dimension::Connections => "connections",
        Dimension::Base | Dimension::Pattern => "work",
    }
}

/// A work as a part of a name within the page.
fn work_key(work: Work) -> String {
    work.to_string().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}
