//! Charts, as SVG that is part of a page: it has a title and a description, takes its colours from the page's style, and
//! tells series apart by colour, by shape and by name.
//!
//! - [`LineChart`]: a metric over what is varied, a line for each series.
//! - [`RowChart`]: a row for each series: a median with its spread, or a box of a distribution.

mod lines;
mod rows;
mod scale;
mod svg;

use super::data::Series;
use super::metric::Metric;
use crate::study::record::{Method, Mode};

use svg::Svg;
pub(super) use svg::escape;

/// A chart.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    /// By what it is told from the others of the page.
    pub(super) id: String,
    /// What it shows.
    pub(super) title: String,
    /// How to read it, and what can be seen in it.
    pub(super) description: String,
    /// What is in it.
    pub(super) plot: Plot,
}

/// What is in a chart.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Plot {
    /// Lines.
    Lines(LineChart),
    /// Rows.
    Rows(RowChart),
}

/// A metric over what is varied.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LineChart {
    /// What is varied, with its unit.
    pub(super) x_label: String,
    /// The values that it has, in order, and how they are written.
    pub(super) x: Vec<(f64, String)>,
    /// What is shown.
    pub(super) metric: Metric,
    /// The lines.
    pub(super) lines: Vec<Line>,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    /// Of what.
    pub(super) series: Series,
    /// Its points: which of the values of x, and the median with the least and the greatest.
    pub(super) points: Vec<(usize, Mark)>,
}

/// A value with what is around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mark {
    /// The least.
    pub(super) low: f64,
    /// Where the box begins; the median, where there is none.
    pub(super) box_low: f64,
    /// The median.
    pub(super) middle: f64,
    /// Where the box ends; the median, where there is none.
    pub(super) box_high: f64,
    /// The greatest, or nearly.
    pub(super) high: f64,
    /// One that is far from the others.
    pub(super) far: Option<f64>,
}

/// Rows of values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RowChart {
    /// What is shown.
    pub(super) metric: Metric,
    /// What it is called, where it is more than the metric.
    pub(super) name: &'static str,
    /// A value that everything is to be compared with.
    pub(super) reference: Option<f64>,
    /// Rows that belong together, under a heading; one without a heading, where all do.
    pub(super) groups: Vec<(String, Vec<(Series, Mark)>)>,
}

impl Chart {
    /// The chart as an SVG element.
    pub(super) fn svg(&self) -> String {
        match &self.plot {
            Plot::Lines(chart) => lines::draw(self, chart),
            Plot::Rows(chart) => rows::draw(self, chart),
        }
    }

    /// The series that need a legend, in order: rows have their names beside them.
    pub(super) fn legend(&self) -> Vec<Series> {
        match &self.plot {
            Plot::Lines(chart) => chart.lines.iter().map(|line| line.series).collect(),
            Plot::Rows(_) => Vec::new(),
        }
    }
}

/// The mark of a series by itself, for a legend.
pub(super) fn swatch(series: Series) -> String {
    let mut svg = Svg::new();
    svg.open("svg", &[("class", "swatch"), ("viewBox", "0 0 36 14"), ("aria-hidden", "true")]);
    svg.open("g", &[("class", &class(series))]);
    svg.empty("line", &[("class", "line"), ("x1", "1"), ("y1", "7"), ("x2", "35"), ("y2", "7")]);
    marker(&mut svg, series, 18.0, 7.0);
    svg.close("g");
    svg.close("svg");
    svg.finish()
}

/// The classes of a series in the page's style.
fn class(series: Series) -> String {
    let method = match series.method {
        Method::Uffd => "uffd",
        Method::Fuse => "fuse",
        Method::Nbd => "nbd",
        Method::NbdUser => "nbd-user",
        Method::Mirror => "mirror",
        Method::LocalMemory => "memory",
        Method::LocalFile => "file",
    };
    let mode = if series.mode == Some(Mode::Direct) { " direct" } else { "" };
    format!("s-{method}{mode}")
}

/// A mark in the shape of the method, hollow where there is no copy.
fn marker(svg: &mut Svg, series: Series, x: f64, y: f64) {
    let polygon = |svg: &mut Svg, corners: &[(f64, f64)]| {
        let points: Vec<String> = corners
            .iter()
            .map(|(dx, dy)| format!("{},{}", svg::number(x + dx), svg::number(y + dy)))
            .collect();
        svg.empty("polygon", &[("class", "mark"), ("points", &points.join(" "))]);
    };
    match series.method {
        Method::Uffd => svg.circle("mark", x, y, 4.2),
        Method::Fuse => polygon(svg, &[(-3.8, -3.8), (3.8, -3.8), (3.8, 3.8), (-3.8, 3.8)]),
        Method::Nbd => polygon(svg, &[(0.0, -4.8), (4.6, 3.6), (-4.6, 3.6)]),
        Method::NbdUser => polygon(svg, &[(0.0, -5.2), (5.2, 0.0), (0.0, 5.2), (-5.2, 0.0)]),
        Method::Mirror => polygon(svg, &[(-4.6, -3.6), (4.6, -3.6), (0.0, 4.8)]),
        Method::LocalMemory => svg.path("mark", &[(-4.0, -4.0, 4.0, 4.0), (-4.0, 4.0, 4.0, -4.0)], x, y),
        Method::LocalFile => svg.path("mark", &[(-4.8, 0.0, 4.8, 0.0), (0.0, -4.8, 0.0, 4.8)], x, y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(method: Method, mode: Option<Mode>) -> Series {
        Series { method, mode }
    }

    fn mark(middle: f64) -> Mark {
        let (low, high) = (middle * 0.8, middle * 1.3);
        Mark { low, box_low: middle * 0.9, middle, box_high: middle * 1.1, high, far: Some(middle * 3.0) }
    }

    fn lines() -> Chart {
        let x: Vec<(f64, String)> = [0.0, 1.0, 5.0, 25.0, 100.0].map(|x| (x, format!("{x}"))).to_vec();
        let line = |series, scale: f64| Line {
            series,
            points: (0..x.len()).map(|at| (at, mark(scale * (at + 1) as f64))).collect(),
        };
        let lines = vec![
            line(series(Method::Uffd, Some(Mode::Managed)), 1e-3),
            line(series(Method::Fuse, Some(Mode::Direct)), 2e-1),
        ];
        let plot = Plot::Lines(LineChart { x_label: "a < b".into(), x, metric: Metric::FirstByte, lines });
        Chart { id: "c".into(), title: "T & t".into(), description: "D".into(), plot }
    }

    #[test]
    fn charts_are_well_formed_and_have_names() {
        let rows = RowChart {
            metric: Metric::TouchMedian,
            name: "first touch",
            reference: Some(1.0),
            groups: vec![("a < b".into(), vec![(series(Method::LocalFile, None), mark(1e-6))])],
        };
        let rows = Chart { plot: Plot::Rows(rows), ..lines() };
        for chart in [lines(), rows] {
            let svg = chart.svg();
            let parsed = roxmltree::Document::parse(&svg).unwrap_or_else(|error| panic!("{error}: {svg}"));
            let root = parsed.root_element();
            assert_eq!(root.attribute("role"), Some("img"));
            let child = |name: &str| root.children().find(|child| child.has_tag_name(name)).unwrap();
            assert_eq!(child("title").text(), Some("T & t"));
            assert_eq!(child("desc").text(), Some("D"));
            let labelled = root.attribute("aria-labelledby").unwrap();
            assert!(labelled.contains(child("title").attribute("id").unwrap()));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn nothing_is_drawn_outside() {
        let svg = lines().svg();
        let parsed = roxmltree::Document::parse(&svg).unwrap();
        let size: Vec<f64> = parsed
            .root_element()
            .attribute("viewBox")
            .unwrap()
            .split(' ')
            .map(|n| n.parse().unwrap())
            .collect();
        for node in parsed.descendants() {
            for (names, most) in [(["x", "x1", "x2", "cx"], size[2]), (["y", "y1", "y2", "cy"], size[3])] {
                for value in names.iter().filter_map(|name| node.attribute(*name)) {
                    let value: f64 = value.parse().unwrap();
                    assert!((0.0..=most).contains(&value), "{node:?}: {value}");
                }
            }
        }
    }

    #[test]
    fn series_differ_by_more_than_colour() {
        let methods = [
            Method::Uffd,
            Method::Fuse,
            Method::Nbd,
            Method::NbdUser,
            Method::Mirror,
            Method::LocalMemory,
            Method::LocalFile,
        ];
        let shapes: std::collections::BTreeSet<String> = methods
            .iter()
            .map(|method| {
                let mut svg = Svg::new();
                marker(&mut svg, series(*method, None), 0.0, 0.0);
                svg.finish()
            })
            .collect();
        assert_eq!(shapes.len(), methods.len());
        let [direct, managed] =
            [Mode::Direct, Mode::Managed].map(|mode| swatch(series(Method::Uffd, Some(mode))));
        assert_ne!(direct, managed);
        roxmltree::Document::parse(&direct).unwrap();
    }
}
