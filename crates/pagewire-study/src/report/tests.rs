//! A report of made-up data is well-formed, says all that the data says, and nothing that it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::made_up;
use super::metric::Metric;
use super::*;
use crate::study::record::{Cell, Outcome, Record};

struct Made {
    html: String,
    markdown: String,
    /// The rounds of each cell, straight from the lines.
    cells: BTreeMap<String, Vec<Cell>>,
    _folder: tempfile::TempDir,
}

fn made(raw: &str) -> Made {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE_NAME), raw).unwrap();
    let written = write(folder.path()).unwrap();
    let [html, markdown] =
        [&written.html, &written.markdown].map(|path| std::fs::read_to_string(path).unwrap());
    let left: BTreeSet<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(left, [FILE_NAME, HTML_NAME, MARKDOWN_NAME].map(String::from).into());
    let mut cells: BTreeMap<String, Vec<Cell>> = BTreeMap::new();
    for line in raw.lines() {
        if let Ok(Record::Cell(cell)) = serde_json::from_str(line) {
            cells.entry(cell.id.clone()).or_default().push(*cell);
        }
    }
    Made { html, markdown, cells, _folder: folder }
}

fn parsed(html: &str) -> roxmltree::Document<'_> {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    roxmltree::Document::parse_with_options(html, options).unwrap_or_else(|error| panic!("{error}"))
}

fn text_of(node: roxmltree::Node<'_, '_>) -> String {
    node.descendants().filter_map(|node| node.is_text().then(|| node.text()).flatten()).collect()
}

/// What a table has to say of these rounds: by counting, not as the report does it.
fn expected(rounds: &[Cell], metric: Metric) -> Option<(f64, f64, f64, bool)> {
    let of = |outcome: Outcome| -> Vec<f64> {
        let rounds = rounds.iter().filter(|cell| cell.outcome == outcome);
        rounds.filter_map(|cell| metric.of(cell)).collect()
    };
    let capped = !rounds.iter().any(|cell| cell.outcome == Outcome::Measured);
    let values = of(if capped { Outcome::Capped } else { Outcome::Measured });
    let least = values.iter().copied().reduce(f64::min)?;
    let most = values.iter().copied().reduce(f64::max)?;
    let mut rest = values;
    while rest.len() > 2 {
        for extreme in [f64::min, f64::max] {
            let value = rest.iter().copied().reduce(extreme).unwrap();
            rest.remove(rest.iter().position(|other| *other == value).unwrap());
        }
    }
    Some((rest.iter().sum::<f64>() / rest.len() as f64, least, most, capped))
}

#[test]
fn every_number_is_that_of_its_cell() {
    let made = made(&made_up::raw(7));
    let page = parsed(&made.html);
    let mut seen = BTreeSet::new();
    for node in page.descendants().filter(|node| node.has_attribute("data-metric")) {
        let (key, cell) = (node.attribute("data-metric").unwrap(), node.attribute("data-cell").unwrap());
        let metric = Metric::ALL.into_iter().find(|metric| metric.key() == key).unwrap();
        let rounds = made.cells.get(cell).unwrap_or_else(|| panic!("no line has '{cell}'"));
        let said = text_of(node);
        // Distributions are of samples, which the next test is about.
        let table = node.ancestors().find(|node| node.has_tag_name("table")).unwrap();
        let caption = text_of(table.children().find(|node| node.has_tag_name("caption")).unwrap());
        if caption.starts_with("First touches") {
            continue;
        }
        let (median, least, most, capped) = expected(rounds, metric).unwrap();
        let mut text = metric.format(median);
        let ends = [least, most].map(|value| metric.format(value));
        if ends[0] != ends[1] {
            text += &format!(" ({} – {})", ends[0], ends[1]);
        }
        if capped {
            text.push('†');
        }
        assert_eq!(said, text, "{cell}, {key}");
        assert!(made.markdown.contains(&text), "{text} is not in the Markdown");
        seen.insert(key);
    }
    assert_eq!(seen.len(), Metric::ALL.len(), "{seen:?}");
}

#[test]
fn distributions_are_those_of_all_samples() {
    let made = made(&made_up::raw(3));
    let page = parsed(&made.html);
    let mut rows = 0;
    for table in page.descendants().filter(|node| node.has_tag_name("table")) {
        let caption = table.children().find(|node| node.has_tag_name("caption")).unwrap();
        if !text_of(caption).starts_with("First touches") {
            continue;
        }
        for row in table.descendants().filter(|node| node.has_tag_name("tr")).skip(1) {
            let numbers: Vec<_> = row.children().filter(|node| node.has_attribute("data-cell")).collect();
            let rounds = &made.cells[numbers[0].attribute("data-cell").unwrap()];
            let mut samples: Vec<f64> = rounds.iter().flat_map(|cell| cell.samples.touch_s.clone()).collect();
            samples.sort_unstable_by(f64::total_cmp);
            // 303 samples: the middle one, and the last one.
            assert_eq!(samples.len(), 303);
            assert_eq!(text_of(numbers[2]), metric::seconds(samples[151]));
            assert_eq!(text_of(numbers[5]), metric::seconds(samples[302]));
            rows += 1;
        }
    }
    assert!(rows > 8, "{rows}");
}

#[test]
fn nothing_that_was_not_measured_is_left_out() {
    let made = made(&made_up::raw(1));
    let page = parsed(&made.html);
    let missing = page.descendants().find(|node| node.attribute("id") == Some("missing")).unwrap();
    let text = text_of(missing);
    for rounds in made.cells.values() {
        let lacking = || rounds.iter().filter(|cell| cell.outcome != Outcome::Measured);
        for cell in lacking() {
            assert!(text.contains(cell.reason.as_ref().unwrap()), "{:?}", cell.reason);
        }
        let numbers: Vec<String> = lacking().map(|cell| cell.round.to_string()).collect();
        let name = format!("{} #{}", rounds[0].id, numbers.join(","));
        assert!(numbers.is_empty() || text.contains(&name) && made.markdown.contains(&name), "{name}");
    }
    for outcome in ["capped", "not permitted", "unsupported", "refused", "failed"] {
        assert!(text.contains(outcome), "{outcome}");
    }
    assert!(text.contains("2 more were not run"), "{text}");
    // A row of the summary whose cells could not be run says so.
    let summary = page.descendants().find(|node| node.attribute("id") == Some("summary")).unwrap();
    assert!(text_of(summary).contains("unsupported") && text_of(summary).contains("not permitted"));
}

#[test]
fn the_page_stands_alone_and_can_be_reached_by_everybody() {
    let made = made(&made_up::raw(1));
    let page = parsed(&made.html);
    for banned in ["<script", "http:", "https:", "url(", "@import", "<img", "<link"] {
        let rest = made.html.replace("http://www.w3.org/2000/svg", "");
        assert!(!rest.contains(banned), "{banned}");
    }
    assert!(made.html.contains("prefers-color-scheme: dark"));
    let ids: Vec<&str> = page.descendants().filter_map(|node| node.attribute("id")).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "no name is taken twice: {ids:?}");
    for link in page.descendants().filter_map(|node| node.attribute("href")) {
        assert!(ids.contains(&link.trim_start_matches('#')), "{link}");
    }
    let charts: Vec<_> = page.descendants().filter(|node| node.attribute("class") == Some("chart")).collect();
    assert!(charts.len() > 12, "{}", charts.len());
    for chart in charts {
        for name in ["title", "desc"] {
            let text = chart.children().find(|node| node.tag_name().name() == name).map(text_of);
            assert!(text.is_some_and(|text| text.len() > 10));
        }
    }
    assert!(!made.html.contains("NaN") && !made.markdown.contains("NaN"));
    // What the data says is text, whatever it is.
    assert!(made.html.contains("&lt;made up&gt; &amp; more"));
    assert!(made.markdown.contains(r"NBD &lt;client> \| module"));
}

#[test]
fn recommendations_rest_on_cells_of_the_study() {
    let made = made(&made_up::raw(1));
    let page = parsed(&made.html);
    let section = page.descendants().find(|node| node.attribute("id") == Some("recommendations")).unwrap();
    let text = text_of(section);
    for case in pagewire::advice::UseCase::ALL {
        assert!(text.contains(case.what()), "{}", case.as_str());
    }
    assert!(text.contains("(measured)") && text.contains("Of this study it rests on:"), "{text}");
    let cells = section.descendants().filter(|node| node.attribute("class") == Some("cells"));
    let codes = cells.flat_map(|cells| cells.children().filter(|node| node.has_tag_name("code")));
    let names: Vec<String> = codes.map(text_of).collect();
    assert!(names.len() > 8, "{names:?}");
    assert!(names.iter().all(|name| made.cells.contains_key(name)), "{names:?}");
}

#[test]
fn the_same_data_makes_the_same_report() {
    let [one, other] = [made(&made_up::raw(5)), made(&made_up::raw(5))];
    assert_eq!(one.html, other.html);
    assert_eq!(one.markdown, other.markdown);
}

#[test]
fn little_data_makes_a_report_too() {
    let all = made_up::raw(2);
    let run = all.lines().next().unwrap();
    let nothing = made(&format!("{run}\n"));
    parsed(&nothing.html);
    assert!(nothing.markdown.contains("No link was recorded."), "{}", nothing.markdown);
    // Each way to end with each kind of work, by itself.
    let mut seen = BTreeSet::new();
    for line in all.lines() {
        let Ok(Record::Cell(cell)) = serde_json::from_str(line) else { continue };
        if seen.insert((cell.outcome, cell.point.pattern)) {
            let one = made(&format!("{run}\n{line}\n"));
            parsed(&one.html);
        }
    }
    assert!(seen.len() > 12, "{seen:?}");
}

#[test]
fn a_round_that_was_run_again_counts_once() {
    let all = made_up::raw(2);
    let lines: Vec<&str> = all.lines().collect();
    let last = lines.iter().rposition(|line| line.contains("uffd-managed-in-order-5ms\"")).unwrap();
    let Ok(Record::Cell(mut cell)) = serde_json::from_str(lines[last]) else { panic!("it is a cell") };
    for value in cell.figures.values_mut() {
        *value *= 1000.0;
    }
    let again = serde_json::to_string(&Record::Cell(cell)).unwrap();
    let twice = made(&format!("{all}{}\n{again}\n", lines[0]));
    assert!(twice.markdown.contains("went on"));
    assert!(!twice.markdown.contains("4 rounds"));
    let group =
        data::Study::of(crate::study::record::read(format!("{all}{again}\n").as_bytes()).unwrap()).unwrap();
    let found = group.groups.iter().find(|group| group.id == "uffd-managed-in-order-5ms").unwrap();
    assert_eq!(found.rounds.len(), 3);
    let data::Value::Measured { spread, .. } = found.value(Metric::Throughput) else {
        panic!("it was measured")
    };
    assert!(spread.max > 100.0 * spread.median, "the later one counts");
}

#[test]
fn what_is_no_raw_data_is_an_error_that_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let error = write(folder.path()).unwrap_err();
    assert!(error.to_string().contains(FILE_NAME), "{error}");
    let all = made_up::raw(2);
    for (text, said) in
        [("", "does not begin with a line about the run"), ("{}\n", "line 1"), ("nonsense\n", "line 1")]
    {
        std::fs::write(folder.path().join(FILE_NAME), text).unwrap();
        let error = write(folder.path()).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    let cells: String = all.lines().skip(1).map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.path().join(FILE_NAME), cells).unwrap();
    assert!(write(folder.path()).is_err());
    assert!(!Path::new(&folder.path().join(HTML_NAME)).exists(), "nothing is written of what cannot be read");
}
