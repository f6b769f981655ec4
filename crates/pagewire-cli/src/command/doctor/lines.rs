//! The commands that carry a recommendation out.

use pagewire::advice::{Advice, Method, Mode, Need, Recommendation, Transfer, Workload};
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

/// What to type for the best of `advice`. `region` is where the region is offered already, if it is.
pub(super) fn commands(advice: &Advice, workload: &Workload, region: Option<&str>) -> Vec<Line> {
    let Some(best) = advice.best() else { return Vec::new() };
    let writes = !workload.is_read_only();
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
    if let Some(moving) = &advice.moving {
        lines.extend(moved(moving.how, &address, tls));
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

/// What moves it.
fn moved(how: Transfer, address: &str, tls: &str) -> Vec<Line> {
    let from = |line: String| Line { on: "the origin", line };
    let copy = format!("pagewire copy file:/srv/NAME {address} --delta{tls}");
    match how {
        Transfer::PreCopy => vec![
            from(format!("{copy}   # while the program runs, until little is left")),
            from(format!("{copy}   # once it stands still; then it starts on the destination")),
        ],
        Transfer::StopAndCopy => vec![from(format!("{copy}   # once the program stands still"))],
        // The commands above pull after the switch.
        Transfer::PostCopy => Vec::new(),
        Transfer::Hybrid => vec![from(format!("{copy}   # while the program runs, once, before the switch"))],
    }
}

#[cfg(test)]
mod tests {
    use pagewire::advice::{Figures, Machine, UseCase, advise};

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
        let lines = of(&UseCase::VmRam.workload(), None);
        assert!(lines.iter().any(|line| line.contains("--delta")), "{lines:#?}");
        assert_eq!(pagewire_size(5_000), "5000");
    }

    #[test]
    fn a_region_that_is_offered_need_not_be() {
        let lines = of(&UseCase::Model.workload(), Some("pw://10.0.0.7:7070/model"));
        assert_eq!(lines, ["pagewire mount pw://10.0.0.7:7070/model /srv/NAME"]);
    }
}
