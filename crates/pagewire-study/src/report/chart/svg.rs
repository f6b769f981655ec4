//! Elements of XML, written one after the other.

use std::fmt::Write;

/// An SVG element that is being written.
#[derive(Debug, Default)]
pub(super) struct Svg {
    text: String,
}

impl Svg {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Begins an element that has others in it.
    pub(super) fn open(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.tag(name, attributes, ">");
    }

    /// Ends it.
    pub(super) fn close(&mut self, name: &str) {
        self.text += &format!("</{name}>");
    }

    /// An element that has nothing in it.
    pub(super) fn empty(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.tag(name, attributes, "/>");
    }

    /// An element that has text in it.
    pub(super) fn text(&mut self, name: &str, attributes: &[(&str, &str)], text: &str) {
        self.open(name, attributes);
        self.text += &escape(text);
        self.close(name);
    }

    /// A line.
    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(number);
        self.empty("line", &[("class", class), ("x1", &x1), ("y1", &y1), ("x2", &x2), ("y2", &y2)]);
    }

    /// A circle.
    pub(super) fn circle(&mut self, class: &str, x: f64, y: f64, radius: f64) {
        let [x, y, radius] = [x, y, radius].map(number);
        self.empty("circle", &[("class", class), ("cx", &x), ("cy", &y), ("r", &radius)]);
    }

    /// Strokes from and to, around a place.
    pub(super) fn path(&mut self, class: &str, strokes: &[(f64, f64, f64, f64)], x: f64, y: f64) {
        let mut d = String::new();
        for (x1, y1, x2, y2) in strokes {
            let [x1, y1, x2, y2] = [x + x1, y + y1, x + x2, y + y2].map(number);
            // Writing to a string does not fail.
            let _ = write!(d, "M{x1} {y1}L{x2} {y2}");
        }
        self.empty("path", &[("class", class), ("d", &d)]);
    }

    /// Words at a place.
    pub(super) fn label(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let [x, y] = [x, y].map(number);
        self.text("text", &[("class", class), ("x", &x), ("y", &y)], text);
    }

    /// The text.
    pub(super) fn finish(self) -> String {
        self.text
    }

    fn tag(&mut self, name: &str, attributes: &[(&str, &str)], end: &str) {
        self.text += &format!("<{name}");
        for (key, value) in attributes {
            self.text += &format!(" {key}=\"{}\"", escape(value));
        }
        self.text += end;
    }
}

/// Text as XML and HTML have it.
pub(in crate::report) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // XML has none of the others.
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A number as SVG has it, to a tenth.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}
