//! Lines over what is varied.

use super::scale::Scale;
use super::svg::{Svg, number};
use super::{Chart, LineChart, class, marker};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 736.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 340.0;

/// Labels that are nearer to each other than that are left out.
const ROOM: f64 = 46.0;

/// By how much the marks of one value of x are beside each other.
const BESIDE: f64 = 4.0;

pub(super) fn draw(chart: &Chart, plot: &LineChart) -> String {
    let mut svg = Svg::new();
    begin(&mut svg, chart, WIDTH, HEIGHT);
    let marks = plot.lines.iter().flat_map(|line| &line.points);
    let y = Scale::of(marks.flat_map(|(_, mark)| [mark.low, mark.middle, mark.high]));
    let x = places(&plot.x);
    let up = |value: f64| BOTTOM - y.place(value) * (BOTTOM - TOP);

    for tick in &y.ticks {
        svg.line("grid", (LEFT, up(*tick)), (RIGHT, up(*tick)));
        svg.label("tick left", LEFT - 8.0, up(*tick) + 4.0, &plot.metric.format(*tick));
    }
    svg.line("axis", (LEFT, BOTTOM), (RIGHT, BOTTOM));
    let mut labelled = f64::NEG_INFINITY;
    for (at, (_, text)) in x.iter().zip(&plot.x) {
        svg.line("axis", (*at, BOTTOM), (*at, BOTTOM + 5.0));
        if at - labelled >= ROOM {
            svg.label("tick middle", *at, BOTTOM + 21.0, text);
            labelled = *at;
        }
    }
    svg.label("name middle", (LEFT + RIGHT) / 2.0, BOTTOM + 46.0, &plot.x_label);
    svg.label("name", 8.0, 16.0, &plot.metric.axis(plot.metric.label(), y.is_log()));

    let middle = (plot.lines.len() as f64 - 1.0) / 2.0;
    for (index, line) in plot.lines.iter().enumerate() {
        let beside = (index as f64 - middle) * BESIDE;
        let at = |x_index: usize| (x[x_index] + beside).clamp(LEFT, RIGHT + 12.0);
        svg.open("g", &[("class", &class(line.series))]);
        svg.text("title", &[], &line.series.label());
        let points: Vec<String> = line
            .points
            .iter()
            .map(|(x_index, mark)| format!("{},{}", number(at(*x_index)), number(up(mark.middle))))
            .collect();
        svg.empty("polyline", &[("class", "line"), ("points", &points.join(" "))]);
        for (x_index, mark) in &line.points {
            svg.line("spread", (at(*x_index), up(mark.low)), (at(*x_index), up(mark.high)));
            marker(&mut svg, line.series, at(*x_index), up(mark.middle));
        }
        svg.close("g");
    }
    svg.close("svg");
    svg.finish()
}

/// The beginning of an SVG with its title and its description.
pub(super) fn begin(svg: &mut Svg, chart: &Chart, width: f64, height: f64) {
    let (title, desc) = (format!("{}-title", chart.id), format!("{}-desc", chart.id));
    svg.open(
        "svg",
        &[
            ("xmlns", "http://www.w3.org/2000/svg"),
            ("class", "chart"),
            ("viewBox", &format!("0 0 {} {}", number(width), number(height))),
            ("role", "img"),
            ("aria-labelledby", &format!("{title} {desc}")),
        ],
    );
    svg.text("title", &[("id", &title)], &chart.title);
    svg.text("desc", &[("id", &desc)], &chart.description);
}

/// Where the values of x are: by their logarithms where that leaves room between them; else one beside the other.
fn places(x: &[(f64, String)]) -> Vec<f64> {
    let (from, to) = (LEFT + 26.0, RIGHT - 26.0);
    let along = |share: f64| from + share * (to - from);
    let [first, .., last] = x else { return vec![along(0.5); x.len()] };
    let log = |value: f64| along((value / first.0).ln() / (last.0 / first.0).ln());
    let by_log: Option<Vec<f64>> = (first.0 > 0.0).then(|| x.iter().map(|(value, _)| log(*value)).collect());
    match by_log.filter(|places| places.windows(2).all(|pair| pair[1] - pair[0] >= ROOM)) {
        Some(places) => places,
        None => (0..x.len()).map(|at| along(at as f64 / (x.len() - 1) as f64)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_x_have_room() {
        let x = |values: &[f64]| values.iter().map(|value| (*value, String::new())).collect::<Vec<_>>();
        let log = places(&x(&[1.0, 10.0, 100.0]));
        assert!((log[1] - log[0] - (log[2] - log[1])).abs() < 1e-9);
        let with_zero = places(&x(&[0.0, 1.0, 100.0]));
        assert!((with_zero[1] - with_zero[0] - (with_zero[2] - with_zero[1])).abs() < 1e-9);
        let crowded = places(&x(&[1.0, 1.01, 100.0]));
        assert!(crowded[1] - crowded[0] > ROOM);
        assert_eq!(places(&x(&[5.0])).len(), 1);
        assert!(places(&[]).is_empty());
    }
}
