//! What the doctor says, as lines for people. Pure: what it is said of is made up in tests.

use pagewire::advice::{
    Ability, Advice, Fit, Need, Recommendation, State, Way, Workload, Works, rate, size, time,
};

use super::{Recommended, Report};

/// All that is said.
pub(super) fn lines(report: &Report) -> Vec<String> {
    let machine = &report.machine;
    let user = machine.privileges.user.clone().unwrap_or_else(|| machine.privileges.uid.to_string());
    let mut lines = vec![format!("pagewire {}, asked by {user}", report.version), String::new()];
    for finding in &report.findings {
        let state = match finding.state {
            State::Good => "ok",
            State::Limited => "limited",
            State::Missing => "missing",
        };
        lines.extend(wrapped(&format!("  {state:8} {:21} ", finding.what), &finding.found));
        // A command is to be copied, and so is left in one line.
        lines.extend(finding.mend.iter().map(|mend| format!("{:33}mend: {mend}", "")));
        lines.extend(finding.without.iter().flat_map(|without| under("without it", without)));
    }
    lines.extend([String::new(), format!("What works here and now, for {user}"), String::new()]);
    lines.extend(report.abilities.iter().flat_map(ability));
    if let Some(recommended) = &report.recommendation {
        lines.push(String::new());
        lines.extend(recommendation(recommended));
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// Where a line of sentences ends, at the latest.
const WIDTH: usize = 110;

/// Sentences behind `first`, with what does not fit the line below where they began.
fn wrapped(first: &str, text: &str) -> Vec<String> {
    let indent = first.chars().count();
    let mut lines = vec![first.to_owned()];
    let mut at = indent;
    for word in text.split(' ') {
        let width = word.chars().count();
        if at > indent && at + 1 + width > WIDTH {
            lines.push(" ".repeat(indent));
            at = indent;
        }
        let line = lines.last_mut().expect("there is a first one");
        if at > indent {
            line.push(' ');
            at += 1;
        }
        line.push_str(word);
        at += width;
    }
    lines
}

/// Below a finding.
fn under(what: &str, text: &str) -> Vec<String> {
    wrapped(&format!("{:33}{what}: ", ""), text)
}

fn ability(ability: &Ability) -> Vec<String> {
    let (word, why) = match &ability.works {
        Works::Yes => ("yes", None),
        Works::Partly(why) => ("partly", Some(why)),
        Works::No(why) => ("no", Some(why)),
    };
    let mut lines = vec![format!("  {word:8} {}", ability.said)];
    lines.extend(why.iter().flat_map(|why| wrapped(&format!("{:13}", ""), why)));
    lines.extend(ability.mend.iter().map(|mend| format!("{:13}mend: {mend}", "")));
    lines
}

fn recommendation(recommended: &Recommended) -> Vec<String> {
    let what = recommended.case.map_or("This workload", |case| case.what());
    let mut lines = vec![format!("For: {what}")];
    if let Some(region) = &recommended.region {
        let access = match region.writable {
            Some(true) => "read and write",
            Some(false) => "read",
            None => "nothing is said of writing",
        };
        let carried = match region.bytes_per_second {
            Some(carried) => format!(", on a link that has carried {}", rate(carried)),
            None => String::new(),
        };
        lines.push(format!(
            "  asked      {}: {}, {access}, {} away{carried}",
            region.address,
            size(region.length as f64),
            time(std::time::Duration::from_secs_f64(region.round_trip_seconds))
        ));
    }
    lines.extend(asked(&recommended.workload));
    lines.push(String::new());
    lines.extend(advised(&recommended.advice));
    if !recommended.commands.is_empty() {
        lines.extend([String::new(), "What to type".into(), String::new()]);
    }
    let mut on = "";
    for command in &recommended.commands {
        if command.on != on {
            lines.push(format!("  on {}", command.on));
            on = command.on;
        }
        lines.push(format!("    {}", command.line));
    }
    lines
}

/// What was taken to be the case.
fn asked(workload: &Workload) -> Vec<String> {
    let mut wishes = vec![match workload.need {
        Need::Any => "anything will do",
        Need::Memory => "bytes in memory",
        Need::File => "a file",
        Need::BlockDevice => "a block device",
        Need::NbdClient => "an NBD export",
    }];
    let wished = [
        (workload.unmodified, "a program that is not to be changed"),
        (workload.shared, "shared by several programs"),
        (workload.survives_crash, "must survive a crash"),
        (workload.vm_ram, "memory of a VM"),
        (workload.moves, "moves to another host"),
    ];
    wishes.extend(wished.iter().filter(|(is_wished, _)| *is_wished).map(|(_, what)| *what));
    let writes = match workload.is_read_only() {
        true => "nothing is written".into(),
        false => format!(
            "{:.0} writes/s, {} of changed pages",
            workload.writes.per_second,
            rate(workload.writes.dirty_per_second)
        ),
    };
    let followers = match workload.followers {
        0 => String::new(),
        count => format!("; {count} hosts follow"),
    };
    vec![
        format!(
            "  region     {}, of which {:.0} % are touched; {writes}{followers}",
            size(workload.region as f64),
            workload.touched * 100.0
        ),
        format!("  link       {} there and back, {}", time(workload.round_trip), rate(workload.rate)),
        format!("  wanted     {}", wishes.join(", ")),
    ]
}

fn advised(advice: &Advice) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(advice.nothing_fits.iter().flat_map(|text| wrapped("", text)));
    if let Some((best, others)) = advice.ranked.split_first() {
        lines.push(format!("Use {}", named(best)));
        lines.extend(sentences(best));
        for other in others {
            lines.push(String::new());
            lines.push(format!("Or {}, {}", named(other), behind(other.fit)));
            lines.extend(sentences(other));
        }
    }
    if let Some(moving) = &advice.moving {
        lines.push(String::new());
        let [downtime, total] = [moving.downtime_seconds, moving.total_seconds]
            .map(|seconds| time(std::time::Duration::from_secs_f64(seconds.min(1e9))));
        lines
            .push(format!("Move by {}: about {downtime} of standstill, {total} in all", moving.how.as_str()));
        lines.extend(moving.reasons.iter().flat_map(|text| wrapped("  + ", text)));
        lines.extend(
            moving
                .others
                .iter()
                .flat_map(|other| wrapped(&format!("  not {}: ", other.how.as_str()), &other.why)),
        );
    }
    if !advice.ruled_out.is_empty() {
        lines.extend([String::new(), "Ruled out".into()]);
    }
    for out in &advice.ruled_out {
        let name = match out.mode {
            Some(mode) => Way { method: out.method, mode }.to_string(),
            None => out.method.as_str().to_owned(),
        };
        lines.push(format!("  {name}"));
        lines.extend(out.why.iter().flat_map(|why| wrapped("    ", why)));
        lines.extend(out.mend.iter().map(|mend| format!("    mend: {mend}")));
    }
    lines
}

fn named(one: &Recommendation) -> String {
    let mut name = one.way.to_string();
    if one.cache_file {
        name += ", with a cache in a file";
    }
    name
}

fn behind(fit: Fit) -> &'static str {
    match fit {
        Fit::MadeFor => "which was made for this as well",
        Fit::Good => "which does it as well",
        Fit::AtAPrice => "at a price",
    }
}

fn sentences(one: &Recommendation) -> impl Iterator<Item = String> {
    let reasons = one.reasons.iter().flat_map(|text| wrapped("  + ", text));
    reasons.chain(one.caveats.iter().flat_map(|text| wrapped("  - ", text)))
}

#[cfg(test)]
mod tests {
    use pagewire::advice::{Answer, Figures, Machine, Presence, UseCase, advise, checkup};

    use super::super::lines as commands;
    use super::super::region::Measured;
    use super::*;

    fn said(machine: Machine, case: Option<UseCase>) -> String {
        let recommendation = case.map(|case| {
            let workload = case.workload();
            let advice = advise(&workload, &machine, &Figures::built_in());
            let commands = commands::commands(&advice, &workload, None);
            let region = Measured {
                address: "pw://there/x".into(),
                length: 4096,
                writable: Some(false),
                round_trip_seconds: 0.0005,
                bytes_per_second: Some(9e8),
            };
            Recommended { case: Some(case), region: Some(region), workload, advice, commands }
        });
        let (findings, abilities) = (checkup(&machine), machine.abilities());
        lines(&Report { version: "1.2.3", machine, findings, abilities, recommendation }).join("\n")
    }

    #[test]
    fn a_machine_that_lacks_nothing_needs_no_mending() {
        let said = said(Machine::unlimited(), None);
        assert!(said.starts_with("pagewire 1.2.3, asked by root\n"), "{said}");
        assert!(!said.contains("mend") && !said.contains("limited ") && !said.contains("For:"), "{said}");
        assert!(said.contains("  ok       kernel                Linux 6.18"), "{said}");
    }

    #[test]
    fn what_is_missing_is_said_with_its_mending() {
        let mut machine = Machine::unlimited();
        machine.nbd = Presence::Loadable;
        machine.userfaultfd.call = Answer::Refused("Operation not permitted".into());
        machine.userfaultfd.device = Answer::Refused("Permission denied".into());
        let said = said(machine, None);
        for text in [
            "  missing  NBD devices           the kernel's module nbd is not loaded",
            "mend: sudo modprobe nbd",
            "without it: NBD exports for clients",
            "  limited  userfaultfd           for faults of programs alone",
            "  no       pagewire mount --via nbd, a block device",
            "  partly   a mapping that is read (library)",
        ] {
            assert!(said.contains(text), "{text}: {said}");
        }
    }

    #[test]
    fn what_is_long_goes_on_below_where_it_began() {
        assert_eq!(wrapped("  + ", "short"), ["  + short"]);
        let text = "word ".repeat(60);
        let lines = wrapped("  + ", text.trim_end());
        assert!(lines.len() > 2 && lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:?}");
        assert!(lines[1].starts_with("    word"), "{lines:?}");
        let all: Vec<&str> = lines.iter().flat_map(|line| line.split_whitespace()).skip(1).collect();
        assert_eq!(all.len(), 60);
        let long = "x".repeat(200);
        assert_eq!(wrapped("  ", &long), [format!("  {long}")]);
    }

    #[test]
    fn a_recommendation_has_reasons_exclusions_and_commands() {
        let said = said(Machine::unlimited(), Some(UseCase::VmRam));
        for text in [
            "For: the memory of a VM that moves",
            "  asked      pw://there/x: 4 KiB, read, 500 µs away, on a link that has carried 900 MB/s\n",
            "  link       500 µs there and back, 1.25 GB/s",
            "Use FUSE, managed\n  + The guest's memory is a shared mapping",
            "Move by pre-copy: about",
            "  not post-copy: ",
            "Ruled out\n",
            "What to type\n\n  on the origin\n    pagewire migrate out",
        ] {
            assert!(said.contains(text), "{text}: {said}");
        }
    }
}
