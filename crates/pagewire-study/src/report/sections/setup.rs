//! How it was measured, and how to read what is said.

use pagewire::advice::{rate, size};

use crate::report::data::{Link, Study};
use crate::report::document::{Block, Item, Section, Table};
use crate::report::metric::{Metric, seconds};
use crate::report::statistics::Spread;
use crate::study::record::{FILE_NAME, LinkKind, LinkRecord, Point, Profile};

/// How to read the report.
pub(super) fn reading(study: &Study) -> Section {
    let rounds = study.run.rounds;
    let formulas = Metric::ALL
        .iter()
        .map(|metric| vec![Item::Text(metric.label().into()), Item::Text(format!("`{}`", metric.formula()))]);
    let blocks = vec![
        Block::List(vec![
            format!(
                "Every number is the median of up to {rounds} rounds, with the least and the greatest behind it in brackets \
                 where they differ."
            ),
            "**direct**: what the application asks for is fetched, and nothing else. **managed**: there is a local copy, \
             and the rest comes in the background."
                .into(),
            "One of the circumstances is varied at a time; all others are those of the base point.".into(),
            "† behind a number: the time was over before the work was done, in all rounds; it is of the part that was done.".into(),
            "– stands where a cell was measured and has no such figure; a word (unsupported, not permitted, refused, \
             failed) where it was not measured, and the last sections say why; · where a study has no such cell."
                .into(),
            "local memory and local file are there to compare with: the same work without any other host.".into(),
        ]),
        Block::Heading("Where each number is from".into()),
        Block::Text(format!(
            "Below each table are the names of the cells that it is made of, and each number carries the name of its own \
             cell (in the page: when it is pointed at). `grep '\"id\":\"NAME\"' {FILE_NAME}` shows all rounds of a cell, one a \
             line, with their figures under the names below; the median of those whose `outcome` is `measured` (of the \
             capped ones, where none is) is the number. Distributions are of `samples`."
        )),
        Block::Table(Table {
            caption: "How numbers follow from the figures of a round".into(),
            columns: vec!["number".into(), "figures".into()],
            rows: formulas.collect(),
        }),
    ];
    Section { id: "reading-this", title: "How to read this".into(), blocks }
}

/// The machine, the run, and the links.
pub(super) fn machine(study: &Study) -> Section {
    let run = &study.run;
    let row = |what: &str, value: String| vec![Item::Text(what.into()), Item::Text(value)];
    let mut rows = vec![
        row("kernel", run.machine.kernel.clone()),
        row("processors", format!("{} of {}", run.machine.cores, run.machine.cpu)),
        row("memory", size(run.machine.memory_bytes as f64)),
        row("user", if run.user.uid == 0 { "root".into() } else { format!("number {}", run.user.uid) }),
        row("Pagewire", run.pagewire.clone()),
        row("started", date(run.started_unix_s)),
    ];
    if !study.went_on.is_empty() {
        rows.push(row("went on", study.went_on.iter().map(|at| date(*at)).collect::<Vec<_>>().join(", ")));
    }
    rows.extend([
        row("profile", if run.profile == Profile::Quick { "quick".into() } else { "full".into() }),
        row("rounds", run.rounds.to_string()),
        row("seed", run.seed.to_string()),
        row("region", size(run.region_bytes as f64)),
        row("longest work of a cell", seconds(run.cap_s)),
        row("rounds of cells", format!("{} recorded of {}", study.rounds(), run.cells)),
    ]);
    if run.loss > 0.0 {
        rows.push(row("lost on purpose", format!("{} % of the segments on every link", run.loss * 100.0)));
    }
    if let Some(base) = study.base() {
        rows.push(row("base point", point(&base)));
    }
    let setup = Table { caption: "The run".into(), columns: vec!["what".into(), "value".into()], rows };
    let links = Table {
        caption: "Links: each is made in each round, and measured before anything else is on it".into(),
        columns: ["link", "round trip asked for", "measured", "rate asked for", "measured", "times accepted"]
            .map(String::from)
            .to_vec(),
        rows: study.links.iter().map(link).collect(),
    };
    let mut blocks = vec![Block::Table(setup), Block::Heading("The links".into()), Block::Table(links)];
    if study.links.is_empty() {
        blocks.pop();
        blocks.push(Block::Text("No link was recorded.".into()));
    }
    if study.links.iter().any(|link| link.setting().kind == LinkKind::Loopback) {
        blocks.push(Block::Text(
            "On the loopback device nothing is counted, and so there are no bytes on the link.".into(),
        ));
    }
    Section { id: "machine", title: "The machine, the run, and the links".into(), blocks }
}

fn link(link: &Link) -> Vec<Item> {
    let LinkRecord { kind, rtt_ms, rate_bits, loss, .. } = link.setting();
    let mut name = match kind {
        LinkKind::Namespaces => "two namespaces".to_owned(),
        LinkKind::Loopback => "loopback".to_owned(),
    };
    if *loss > 0.0 {
        let found = link.measured(|time| time.measured_loss).map(|spread| spread.median * 100.0);
        let found = found.map_or_else(String::new, |found| format!(" ({found:.2} % measured)"));
        name += &format!(", {} % lost{found}", loss * 100.0);
    }
    let measured = |spread: Option<Spread>, format: fn(f64) -> String| {
        let Some(Spread { median, min, max, .. }) = spread else { return "–".to_owned() };
        let [median, min, max] = [median, min, max].map(format);
        if min == max { median } else { format!("{median} ({min} – {max})") }
    };
    let (times, accepted) = (link.times.len(), link.times.iter().filter(|time| time.accepted).count());
    let mut reasons: Vec<&str> = link.times.iter().filter_map(|time| time.reason.as_deref()).collect();
    reasons.dedup();
    let mut verdict = format!("{accepted} of {times}");
    if !reasons.is_empty() {
        verdict += &format!(": {}", reasons.join("; "));
    }
    [
        name,
        format!("{rtt_ms} ms"),
        measured(link.measured(|time| time.measured_rtt_s), seconds),
        rate_bits.map_or_else(|| "no limit".into(), bits),
        measured(link.measured(|time| time.measured_rate_bits.map(|bits| bits as f64)), |rate| {
            bits(rate as u64)
        }),
        verdict,
    ]
    .map(Item::Text)
    .to_vec()
}

/// Circumstances, in a line.
pub(super) fn point(point: &Point) -> String {
    let rate = point.rate_bits.map_or_else(|| "no limit of the rate".into(), bits);
    format!(
        "{} ms round trip, {rate}, chunks of {}, {} connections",
        point.rtt_ms,
        size(point.chunk_bytes as f64),
        point.connections
    )
}

/// A rate in bits per second.
pub(super) fn bits(bits_per_second: u64) -> String {
    rate(bits_per_second as f64).replace("B/s", "bit/s")
}

/// A moment, in UTC, to the minute.
pub(super) fn date(unix_s: u64) -> String {
    let (days, rest) = (unix_s / 86_400, unix_s % 86_400);
    // Howard Hinnant's "civil_from_days": years begin in March, so that the leap day is their last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest % 3600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(951_868_800), "2000-03-01 00:00 UTC");
        assert_eq!(date(1_735_689_599), "2024-12-31 23:59 UTC");
        assert_eq!(date(4_102_444_800), "2100-01-01 00:00 UTC");
    }

    #[test]
    fn rates_are_in_bits() {
        assert_eq!(bits(100_000_000), "100 Mbit/s");
        assert_eq!(bits(10_000_000_000), "10 Gbit/s");
        assert_eq!(bits(500), "500 bit/s");
    }
}
