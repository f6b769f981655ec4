//! The commands that carry a recommendation out.

use pagewire::advice::{Advice, Method, Mode, Moving, Need, Recommendation, Transfer, Workload};
use serde::Serialize;

/// What to type, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    /// On which host.
    pub(super) on: &'static str,
    /// A command, or a line of a program.
    pub(super) line: String,
}

const THERE: &str = "the region's host";
const HERE: &str = "this host";
const FOLLOWERS: &str = "each follower";
const ORIGIN: &str = "the origin";
const DESTINATION: &str = "the destination";

/// What to type for the best of `advice`. `region` is where the region is offered already, if it is.
pub(super) fn commands(advice: &Advice, workload: &Workload, region: Option<&str>) -> Vec<Line> {
    let Some(best) = advice.best() else { return Vec::new() };
    let writes = !workload.is_read_only();
    if let Some(moving) = advice.moving.as_ref().filter(|_| writes) {
        return moved(moving, workload, region);
    }
    // What can be written to is not offered beyond its host without certificates.
    let (scheme, tls) = match writes {
        true => ("pw+tls", " --tls-ca ca.pem --tls-cert me.pem --tls-key me.key"),
        false => ("pw", ""),
    };
    let address = region.map_or_else(|| format!("{scheme}://HOST:7070/NAME"), str::to_owned);
    let tls = if address.starts_with("pw+tls:") { tls } else { "" };
    let mut lines = Vec::new();
    if region.is_none() {
        lines.push(Line { on: THERE, line: offer(best, workload, scheme) });
    }
    if workload.need != Need::NbdClient {
        lines.extend(used(best, workload, &address, tls));
    } else if region.is_none() {
        lines.push(Line {
            on: HERE,
            line: "nbdinfo nbd://HOST:10809/NAME   # or: qemu … -drive file=nbd://HOST:10809/NAME,format=raw"
                .into(),
        });
    }
    // What is never written need not be taken over: the destination uses it as this host does.
    if advice.moving.is_some() {
        let used: Vec<String> =
            lines.iter().filter(|line| line.on == HERE).map(|line| line.line.clone()).collect();
        lines.extend(used.into_iter().map(|line| Line { on: DESTINATION, line }));
    }
    lines
}

/// What offers the region.
fn offer(best: &Recommendation, workload: &Workload, scheme: &str) -> String {
    let store = match (best.way.method, workload.followers) {
        (Method::Mirror, _) => format!("'NAME=file:/srv/NAME?size={}'", pagewire_size(workload.region)),
        _ => "NAME=file:/srv/NAME".into(),
    };
    if workload.need == Need::NbdClient {
        let read_only = if workload.is_read_only() { " --read-only" } else { "" };
        let listen = match workload.is_read_only() {
            true => "--nbd nbd://0.0.0.0:10809",
            false => {
                "--nbd nbds://0.0.0.0:10809 --tls-cert server.pem --tls-key server.key --tls-clients ca.pem"
            }
        };
        return format!("pagewire serve {store}{read_only} {listen}");
    }
    match scheme {
        "pw" => format!("pagewire serve {store} --read-only --listen pw://0.0.0.0:7070"),
        _ => format!(
            "pagewire serve {store} --listen pw+tls://0.0.0.0:7070 --tls-cert server.pem --tls-key server.key \
             --tls-clients ca.pem"
        ),
    }
}

/// A size that `pagewire` reads.
fn pagewire_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let found = units.into_iter().find(|(shift, _)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift));
    found.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// What uses it.
fn used(best: &Recommendation, workload: &Workload, address: &str, tls: &str) -> Vec<Line> {
    let writable = if workload.is_read_only() { "" } else { " --writable" };
    let direct = if best.way.mode == Mode::Direct { " --direct" } else { "" };
    let managed = best.way.mode == Mode::Managed;
    let pull = if managed && !best.background { " --pull none" } else { "" };
    let cache = if best.cache_file { " --cache /var/cache/NAME" } else { "" };
    let here = |line: String| Line { on: HERE, line };
    match best.way.method {
        Method::Userfaultfd if workload.vm_ram => {
            vec![here(format!("pagewire uffd {address} --socket /run/NAME.sock{pull}{tls}"))]
        }
        Method::Userfaultfd => {
            let kind = if workload.is_read_only() { "Mapping" } else { "WritableMapping" };
            let options = match (workload.is_read_only(), best.background) {
                (true, true) => "&MapOptions::default()",
                (true, false) => {
                    "&MapOptions { pull: PullOptions { order: PullOrder::None, ..PullOptions::default() }, \
                     ..MapOptions::default() }"
                }
                (false, _) => "&WriteOptions::default()",
            };
            vec![here(format!("{kind}::open(\"{address}\", {options})?   // in the program"))]
        }
        Method::Fuse => {
            vec![here(format!("pagewire mount {address} /srv/NAME{writable}{direct}{pull}{tls}"))]
        }
        Method::Nbd => {
            vec![here(format!("pagewire mount {address} --via nbd{writable}{direct}{cache}{pull}{tls}"))]
        }
        Method::Mirror => vec![
            here(format!("pagewire mirror /var/lib/NAME {address}{tls}")),
            Line { on: FOLLOWERS, line: format!("pagewire follow {address} /var/lib/NAME{tls}") },
        ],
    }
}

/// What makes the region a file that the program uses, and moves it with the program. It replaces a server and a mount: it is
/// both. `region` is where its bytes are, if that is another host.
fn moved(moving: &Moving, workload: &Workload, region: Option<&str>) -> Vec<Line> {
    let (store, record) = match region {
        Some(address) => (format!("NAME={address}"), " --record /var/lib/NAME.migration"),
        // Its record is beside it.
        None => ("NAME=file:/srv/NAME".into(), ""),
    };
    let mode = match moving.how {
        // One standstill that is as long as it takes is a pre-copy whose first round is its last.
        Transfer::PreCopy | Transfer::StopAndCopy => "pre-copy",
        Transfer::PostCopy => "post-copy",
        Transfer::Hybrid => "hybrid",
    };
    // It would be given up where that cannot be kept.
    let can_keep = moving.downtime_seconds <= workload.downtime.as_secs_f64();
    let downtime = match moving.how != Transfer::PostCopy && can_keep {
        true => format!(" --max-downtime {}ms", workload.downtime.as_millis()),
        false => String::new(),
    };
    let (suspend, resume, of) = match workload.vm_ram {
        true => ("PAUSE", "LOAD AND CONTINUE", "   # the guest's memory: a shared mapping of /run/NAME"),
        false => ("systemctl stop NAME", "systemctl start NAME", "   # the program uses /run/NAME"),
    };
    let hooks = format!("--on-suspend '{suspend}' --on-resume '{resume}'");
    vec![
        Line {
            on: ORIGIN,
            line: format!(
                "pagewire migrate out {store} --mount /run/NAME --listen pw+tls://0.0.0.0:7070 --tls-cert server.pem \
                 --tls-key server.key --tls-clients ca.pem{record} {hooks}{of}"
            ),
        },
        Line {
            on: DESTINATION,
            line: format!(
                "pagewire migrate in pw+tls://ORIGIN:7070/NAME /run/NAME --mode {mode}{downtime} --tls-ca ca.pem \
                 --tls-cert me.pem --tls-key me.key {hooks}"
            ),
        },
    ]
}

#[cfg(test)]
mod tests {
    use pagewire::advice::{Figures, Machine, UseCase, Writes, advise};

    use super::*;

    fn of(workload: &Workload, region: Option<&str>) -> Vec<String> {
        let advice = advise(workload, &Machine::unlimited(), &Figures::built_in());
        commands(&advice, workload, region).into_iter().map(|line| line.line).collect()
    }

    #[test]
    fn each_use_case_has_commands() {
        for (case, texts) in [
            (
                UseCase::Model,
                vec!["serve NAME=file:/srv/NAME --read-only", "mount pw://HOST:7070/NAME /srv/NAME"],
            ),
            (UseCase::Assets, vec!["serve", "--pull none"]),
            (UseCase::Memory, vec!["serve", "Mapping::open"]),
            (UseCase::State, vec!["--tls-clients", "WritableMapping::open"]),
            (UseCase::Database, vec!["--tls-clients", "--writable"]),
            (UseCase::Snapshot, vec!["serve", "uffd pw://HOST:7070/NAME --socket"]),
            (UseCase::Replica, vec!["?size=1GiB", "mirror", "follow"]),
            (UseCase::Disk, vec!["serve", "--via nbd --writable"]),
        ] {
            let lines = of(&case.workload(), None);
            assert_eq!(lines.len(), texts.len(), "{lines:#?}");
            for (line, text) in lines.iter().zip(texts) {
                assert!(line.contains(text), "{text}: {line}");
            }
        }
        assert_eq!(pagewire_size(5_000), "5000");
    }

    #[test]
    fn a_region_that_is_offered_need_not_be() {
        let lines = of(&UseCase::Model.workload(), Some("pw://10.0.0.7:7070/model"));
        assert_eq!(lines, ["pagewire mount pw://10.0.0.7:7070/model /srv/NAME"]);
    }

    #[test]
    fn what_moves_is_taken_over_by_the_mode_that_is_recommended() {
        let vm = UseCase::VmRam.workload();
        let dirtying = |rate: f64| Workload { writes: Writes::dirtying(rate), ..vm };
        let small = Workload { region: 1 << 20, ..vm };
        let safe = Workload { survives_crash: true, vm_ram: false, ..dirtying(3e9) };
        for (workload, texts) in [
            (vm, "--mode pre-copy --max-downtime 300ms"),
            (dirtying(0.9e9), "--mode hybrid --max-downtime 300ms"),
            (dirtying(3e9), "--mode post-copy --tls-ca"),
            (small, "--mode pre-copy --max-downtime 300ms"),
            // It takes longer than was wished, and would be given up.
            (safe, "--mode pre-copy --tls-ca"),
        ] {
            let lines = of(&workload, None);
            let [out, arrive] = &lines[..] else { panic!("{lines:#?}") };
            assert!(
                out.starts_with(
                    "pagewire migrate out NAME=file:/srv/NAME --mount /run/NAME --listen pw+tls:"
                )
            );
            assert!(
                out.contains("--tls-clients") && out.contains("--on-suspend") && !out.contains("--record")
            );
            assert!(arrive.starts_with("pagewire migrate in pw+tls://ORIGIN:7070/NAME /run/NAME --mode"));
            assert!(arrive.contains(texts) && arrive.contains("--on-resume"), "{texts}: {arrive}");
        }
        let lines = of(&vm, Some("pw://10.0.0.7:7070/ram"));
        assert!(
            lines[0].contains("NAME=pw://10.0.0.7:7070/ram --mount") && lines[0].contains("--record"),
            "{lines:#?}"
        );
        // Nothing is taken over of what nobody writes to.
        let read = Workload { moves: true, ..UseCase::Model.workload() };
        let advice = advise(&read, &Machine::unlimited(), &Figures::built_in());
        let lines = commands(&advice, &read, None);
        assert_eq!(lines.iter().map(|line| line.on).collect::<Vec<_>>(), [THERE, HERE, DESTINATION]);
        assert_eq!(lines[1].line, lines[2].line);
    }

    /// What is printed is what the command line takes.
    #[test]
    fn commands_are_those_that_there_are() {
        use clap::Parser;
        for (case, region) in
            UseCase::ALL.into_iter().flat_map(|case| [(case, None), (case, Some("pw://h:1/x"))])
        {
            for line in of(&case.workload(), region).iter().filter(|line| line.starts_with("pagewire ")) {
                let command = line.split("   # ").next().unwrap_or(line);
                let words = words(command);
                let parsed = crate::args::Args::try_parse_from(&words);
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }

    /// The words of a line, as a shell has them: what is quoted is one.
    fn words(line: &str) -> Vec<String> {
        let pieces = line.split('\'').enumerate();
        let mut words = vec![String::new()];
        for (at, piece) in pieces {
            let mut parts = if at % 2 == 1 { vec![piece] } else { piece.split(' ').collect() };
            let first = parts.remove(0);
            words.last_mut().expect("there is one").push_str(first);
            words.extend(parts.into_iter().map(String::from));
        }
        words.retain(|word| !word.is_empty());
        words
    }
}
