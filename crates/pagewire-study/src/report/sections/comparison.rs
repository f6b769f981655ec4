//! The methods beside each other: what is to be known of each, and what was measured.

use pagewire::advice::{self, Character, character};

use super::{at_base, sources};
use crate::report::data::{Group, Study};
use crate::report::document::{Block, Item, Section, Table};
use crate::report::metric::Metric;
use crate::study::record::{Method, Mode, Pattern};

/// The methods in the order of the columns, and in the raw data.
const METHODS: [(advice::Method, &[Method]); 4] = [
    (advice::Method::Userfaultfd, &[Method::Uffd]),
    (advice::Method::Fuse, &[Method::Fuse]),
    (advice::Method::Nbd, &[Method::Nbd, Method::NbdUser]),
    (advice::Method::Mirror, &[Method::Mirror]),
];

/// What is measured of each, and at what work.
const MEASURED: [(&str, Metric, Pattern); 7] = [
    ("latency: first touch, at random", Metric::TouchMedian, Pattern::Random),
    ("throughput, in order", Metric::Throughput, Pattern::InOrder),
    ("processor time per GB, in order", Metric::CpuPerGb, Pattern::InOrder),
    ("traffic: bytes on the link per byte used, in order", Metric::WirePerByte, Pattern::InOrder),
    ("throughput, writing all of it until it is durable", Metric::Throughput, Pattern::Fill),
    ("traffic: bytes on the link per changed byte", Metric::WirePerChange, Pattern::Write),
    ("slowdown of a paced writer", Metric::Slowdown, Pattern::Write),
];

/// What is said of a method.
type Said = fn(&Character) -> &'static str;

/// What is to be known of each.
const KNOWN: [(&str, Said); 9] = [
    ("a program sees", |one| one.sees),
    ("ease of use", |one| one.to_use),
    ("ease of integration", |one| one.to_integrate),
    ("privileges", |one| one.privileges),
    ("kernel (Linux)", |one| one.kernel),
    ("read and write", |one| one.access),
    ("pull", |one| one.pull),
    ("push", |one| one.push),
    ("lost when the host crashes", |one| one.lost),
];

/// The section.
pub(super) fn section(study: &Study) -> Section {
    let columns = METHODS.iter().map(|(method, _)| method.as_str().to_owned());
    let known = KNOWN.iter().map(|(what, of)| {
        let items = METHODS.iter().map(|(method, _)| Item::Text(of(&character(*method)).into()));
        [Item::Text((*what).into())].into_iter().chain(items).collect::<Vec<_>>()
    });
    let measured = MEASURED.iter().map(|(what, metric, pattern)| {
        let items =
            METHODS.iter().map(|(_, methods)| Item::of(cell(study, methods, *pattern, *metric), *metric));
        [Item::Text((*what).into())].into_iter().chain(items).collect::<Vec<_>>()
    });
    let table = Table {
        caption: "The methods beside each other; numbers are of the managed mode where there is one, at the base point".into(),
        columns: ["".to_owned()].into_iter().chain(columns).collect(),
        rows: known.chain(measured).collect(),
    };
    let more = sources(std::slice::from_ref(&table));
    Section {
        id: "comparison",
        title: "The methods beside each other".into(),
        blocks: vec![Block::Table(table), more],
    }
}

/// The cell that stands for a method: managed before direct, a device before the client in user space; one that was
/// measured before one that was not.
fn cell<'a>(study: &'a Study, methods: &[Method], pattern: Pattern, metric: Metric) -> Option<&'a Group> {
    let base = study.base()?;
    let work = study.typical(pattern)?;
    let point = at_base(&base, work);
    let mut found: Vec<&Group> = study
        .groups
        .iter()
        .filter(|group| methods.contains(&group.series.method) && group.point == point)
        // Who writes to a mirrored file cannot wait until that is durable.
        .filter(|group| pattern != Pattern::Fill || group.series.competes(metric, work))
        .collect();
    found.sort_by_key(|group| {
        let without = group.median(metric).is_none();
        (without, group.series.method, group.series.mode == Some(Mode::Direct))
    });
    found.first().copied()
}
