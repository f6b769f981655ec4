//! A row for each series.

use super::lines::begin;
use super::scale::Scale;
use super::svg::{Svg, number};
use super::{Chart, Mark, RowChart, class, marker};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 212.0;
const RIGHT: f64 = 724.0;
const TOP: f64 = 34.0;
const ROW: f64 = 23.0;
const HEADING: f64 = 28.0;
const BELOW: f64 = 40.0;

/// Labels of ticks that are nearer to each other than that are left out.
const ROOM: f64 = 62.0;

pub(super) fn draw(chart: &Chart, plot: &RowChart) -> String {
    let height_of = |(heading, rows): &(String, Vec<_>)| {
        rows.len() as f64 * ROW + if heading.is_empty() { 0.0 } else { HEADING }
    };
    let bottom = TOP + plot.groups.iter().map(height_of).sum::<f64>() + 8.0;
    let mut svg = Svg::new();
    begin(&mut svg, chart, WIDTH, bottom + BELOW);
    let marks = plot.groups.iter().flat_map(|(_, rows)| rows).map(|(_, mark)| mark);
    let values = marks.flat_map(|mark| [Some(mark.low), Some(mark.middle), Some(mark.high), mark.far]);
    let x = Scale::of(values.flatten().chain(plot.reference));
    let along = |value: f64| LEFT + x.place(value) * (RIGHT - LEFT);

    let mut labelled = f64::NEG_INFINITY;
    for tick in &x.ticks {
        let at = along(*tick);
        svg.line("grid", (at, TOP), (at, bottom));
        if at - labelled >= ROOM {
            svg.label("tick middle", at, bottom + 19.0, &plot.metric.format(*tick));
            labelled = at;
        }
    }
    svg.line("axis", (LEFT, bottom), (RIGHT, bottom));
    if let Some(reference) = plot.reference {
        svg.line("reference", (along(reference), TOP), (along(reference), bottom));
    }
    svg.label("name", 8.0, 16.0, &plot.metric.axis(plot.name, x.is_log()));

    let mut y = TOP;
    for (heading, rows) in &plot.groups {
        if !heading.is_empty() {
            svg.label("heading", 8.0, y + 19.0, heading);
            y += HEADING;
        }
        for (series, mark) in rows {
            let middle = y + ROW / 2.0;
            svg.open("g", &[("class", &class(*series))]);
            svg.label("row left", LEFT - 12.0, middle + 4.0, &series.label());
            draw_mark(&mut svg, mark, middle, along);
            marker(&mut svg, *series, along(mark.middle), middle);
            svg.close("g");
            y += ROW;
        }
    }
    svg.close("svg");
    svg.finish()
}

fn draw_mark(svg: &mut Svg, mark: &Mark, y: f64, along: impl Fn(f64) -> f64) {
    svg.line("spread", (along(mark.low), y), (along(mark.high), y));
    if mark.box_high > mark.box_low {
        let (from, to) = (along(mark.box_low), along(mark.box_high));
        let [x, top, width] = [from, y - 6.0, to - from].map(number);
        let attributes = [("class", "box"), ("x", &*x), ("y", &*top), ("width", &*width), ("height", "12")];
        svg.empty("rect", &attributes);
    }
    if let Some(far) = mark.far {
        svg.circle("far", along(far), y, 2.2);
    }
}
