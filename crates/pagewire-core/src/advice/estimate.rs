//! How well a way that can be used fits, and how long it takes.

use serde::Serialize;

use super::abilities::{Abilities, Works};
use super::figures::Figures;
use super::machine::{Machine, Tracked};
use super::phrase::{rate, seconds, share, size, time};
use super::rules::needed;
use super::workload::{Goal, Need, Workload};
use super::{Method, Mode, Recommendation, Way};

/// How well a way fits, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// The method was made for this.
    MadeFor,
    /// It does this as well.
    Good,
    /// It can be used, at a price.
    AtAPrice,
}

impl Fit {
    fn worse(self) -> Fit {
        match self {
            Fit::MadeFor => Fit::Good,
            Fit::Good | Fit::AtAPrice => Fit::AtAPrice,
        }
    }
}

/// What to expect, by the figures and the link.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Seconds from the first touch of a page to its byte.
    pub first_byte_seconds: f64,
    /// Seconds in which all that is going to be touched has arrived.
    pub complete_seconds: f64,
    /// Seconds of processor time for that, of both sides together.
    pub cpu_seconds: f64,
    /// Whether all figures behind this were measured.
    pub measured: bool,
}

impl Estimate {
    /// What decides among ways that fit alike: less is better.
    pub(super) fn cost(&self, goal: Goal) -> f64 {
        match goal {
            Goal::Latency => self.first_byte_seconds,
            Goal::Throughput => self.complete_seconds,
        }
    }
}

/// What a program that reads in order has asked for at once where there is no copy: the kernel's readahead.
const READ_AHEAD: f64 = (128 << 10) as f64;

/// Up to this share it is better to pull what is touched alone, where the rest would keep the link busy for longer than
/// [`LONG`].
const LITTLE: f64 = 0.25;
const LONG: f64 = 10.0;

/// A round trip that is no more than what the methods themselves take: a copy gains little then.
const NEAR: f64 = 100e-6;

/// From this share of one processor on, something is said to be expensive.
const EXPENSIVE: f64 = 0.25;

/// From this many seconds on, a round of hashing leaves followers behind.
const LONG_ROUND: f64 = 1.0;

/// A way that nothing rules out.
pub(super) fn recommend(
    way: Way,
    workload: &Workload,
    machine: &Machine,
    abilities: &Abilities,
    figures: &Figures,
) -> Recommendation {
    let estimate = estimate(way, workload, figures);
    let copy = LocalCopy::of(way, workload, machine, figures);
    let (mut fit, mut reasons) = made_for(way, workload);
    reasons.extend(speed(way, workload, figures, &estimate));
    reasons.extend(copy.reason.clone());
    let mut caveats = Vec::new();
    for (caveat, hurts) in prices(way, workload, machine, abilities, figures, &copy) {
        if hurts {
            fit = fit.worse();
        }
        caveats.push(caveat);
    }
    Recommendation {
        way,
        fit,
        background: copy.background,
        cache_file: copy.file,
        estimate,
        reasons,
        caveats,
    }
}

fn estimate(way: Way, workload: &Workload, figures: &Figures) -> Estimate {
    let (costs, round_trip) = (figures.of(way), workload.round_trip.as_secs_f64());
    let touched = workload.touched_bytes();
    let first_byte = match way.method {
        // A follower has all of it.
        Method::Mirror => costs.first_byte.value,
        _ => round_trip + costs.first_byte.value,
    };
    let streaming = touched / workload.rate.min(costs.read.value);
    let complete = match way.mode {
        Mode::Managed => round_trip + streaming,
        Mode::Direct => streaming.max(touched / READ_AHEAD * first_byte),
    };
    Estimate {
        first_byte_seconds: first_byte,
        complete_seconds: complete,
        cpu_seconds: touched / 1e9 * costs.cpu_per_gb.value,
        measured: costs.first_byte.measured && costs.read.measured && costs.cpu_per_gb.measured,
    }
}

/// What is done about the local copy.
struct LocalCopy {
    background: bool,
    file: bool,
    reason: Option<String>,
}

impl LocalCopy {
    fn of(way: Way, workload: &Workload, machine: &Machine, figures: &Figures) -> LocalCopy {
        let none = LocalCopy { background: false, file: false, reason: None };
        if way.mode == Mode::Direct || way.method == Method::Mirror {
            return none;
        }
        let (region, available) = (workload.region as f64, machine.memory.available as f64);
        let in_memory = matches!(way.method, Method::Userfaultfd | Method::Nbd);
        let too_large = in_memory && region > available;
        let whole = region / workload.rate.min(figures.of(way).read.value);
        let little = workload.touched <= LITTLE && whole > LONG;
        let reason = match (too_large, way.method) {
            (true, Method::Nbd) => format!(
                "A device's copy is in memory, and this machine has {} free for {}: so it is put into a file, by --cache.",
                size(available),
                size(region)
            ),
            (true, _) => format!(
                "The whole region does not fit the {} that are free, so only what is touched is pulled.",
                size(available)
            ),
            (false, _) if little => format!(
                "{} of it are going to be touched, and all of it would keep the link busy for {}: so only what is touched is \
                 pulled.",
                share(workload.touched),
                seconds(whole)
            ),
            (false, _) => {
                format!("All of it is here after about {}, pulled in the background.", seconds(whole))
            }
        };
        let file = too_large && way.method == Method::Nbd;
        LocalCopy { background: !little && (file || !too_large), file, reason: Some(reason) }
    }
}

/// How well a method suits what the program is, and what speaks for it.
fn made_for(way: Way, workload: &Workload) -> (Fit, Vec<String>) {
    let (fit, reason) = match way.method {
        Method::Userfaultfd if workload.vm_ram => (
            Fit::MadeFor,
            "The guest runs at once, and each page that it touches is asked for by a fault; the monitor hands its \
             userfaultfd over by Firecracker's handshake.",
        ),
        Method::Userfaultfd if workload.need == Need::Memory => (
            Fit::MadeFor,
            "The program can be changed, and has the region as bytes in its memory, without a system call for a byte \
             that is there.",
        ),
        Method::Userfaultfd => (
            Fit::Good,
            "The program can be changed to map the region by the library, which has the shortest way for a fault.",
        ),
        Method::Fuse if workload.followers > 0 && !workload.is_read_only() => (
            Fit::Good,
            "The program writes to a mounted file, and the other hosts mount it as well: they move with its epochs.",
        ),
        Method::Fuse if workload.need == Need::File => (
            Fit::MadeFor,
            "The program finds a file at a path, and may read, write, and map it, without being changed.",
        ),
        Method::Fuse if workload.moves_guest() => (
            Fit::MadeFor,
            "The guest's memory is a shared mapping of a mounted file: it runs at once, what it writes is known while it \
             runs, and so it can be moved.",
        ),
        Method::Fuse => (Fit::Good, "A mounted file can be opened and mapped by any program."),
        Method::Nbd if workload.need == Need::NbdClient => {
            (Fit::MadeFor, "The program speaks NBD itself: an export is all that it needs, and no privilege.")
        }
        Method::Nbd if workload.need == Need::BlockDevice => {
            (Fit::MadeFor, "It is a block device, which can be formatted, mounted, or given to a VM.")
        }
        Method::Nbd => (Fit::AtAPrice, "A block device can be read, written and mapped as a file can."),
        Method::Mirror if workload.followers > 0 && workload.unmodified => (
            Fit::MadeFor,
            "The program goes on with the file that it has mapped, at the speed of local memory; what it has changed is found \
             by hashing, leaves this host once, and is brought to any number of followers.",
        ),
        Method::Mirror => (
            Fit::Good,
            "The program goes on with its own file; the others have a copy of it that is kept in step.",
        ),
    };
    let mut reasons = vec![reason.to_owned()];
    let fit = match way.mode {
        Mode::Managed => fit,
        Mode::Direct if workload.need == Need::NbdClient => fit,
        Mode::Direct if workload.round_trip.as_secs_f64() <= NEAR => {
            reasons.push(format!(
                "The region is {} away, so going there each time costs little, and nothing is kept twice.",
                time(workload.round_trip)
            ));
            fit.worse()
        }
        Mode::Direct => Fit::AtAPrice,
    };
    (fit, reasons)
}

fn speed(way: Way, workload: &Workload, figures: &Figures, estimate: &Estimate) -> Vec<String> {
    let costs = figures.of(way);
    let mut reasons = Vec::new();
    if way.method != Method::Mirror {
        reasons.push(format!(
            "A page that nobody has touched yet is there after {}: {} of the link, and {} of the way itself ({}).",
            seconds(estimate.first_byte_seconds),
            time(workload.round_trip),
            seconds(costs.first_byte.value),
            costs.first_byte.origin()
        ));
    }
    if way.mode == Mode::Managed && workload.goal == Goal::Throughput {
        let (link, read) = (workload.rate, costs.read.value);
        reasons.push(match link <= read {
            true => format!(
                "The link, at {}, is slower than the way itself, at {} ({}).",
                rate(link),
                rate(read),
                costs.read.origin()
            ),
            false => format!(
                "The way itself, at {} ({}), is slower than the link, at {}.",
                rate(read),
                costs.read.origin(),
                rate(link)
            ),
        });
    }
    if workload.survives_crash {
        reasons.push(match way.method {
            Method::Userfaultfd => {
                "A flush returns when everything before it is durable at the region, as one epoch.".into()
            }
            _ => "An fsync returns when everything before it is durable at the region, as one epoch.".into(),
        });
    }
    reasons
}

/// What a way costs or lacks, and whether that hurts so much that others come first.
fn prices(
    way: Way,
    workload: &Workload,
    machine: &Machine,
    abilities: &Abilities,
    figures: &Figures,
    copy: &LocalCopy,
) -> Vec<(String, bool)> {
    let mut prices = Vec::new();
    let ability = abilities.of(needed(way, workload));
    if let Works::Partly(why) = &ability.works {
        // Where only others' use is concerned, nothing hurts.
        let hurts = way.method == Method::Userfaultfd && !machine.handles_kernel_faults();
        prices.push((format!("On this machine: {}.", why.trim_end_matches('.')), hurts));
    }
    if way.mode == Mode::Direct && workload.round_trip.as_secs_f64() > NEAR {
        let text = format!(
            "Nothing is kept: what is read again makes the round trip of {} again.",
            time(workload.round_trip)
        );
        prices.push((text, false));
    }
    if way.method == Method::Mirror {
        prices.extend(of_hashing(workload, machine, figures));
    }
    if !workload.is_read_only() {
        prices.extend(of_writing(way, workload, machine, figures, copy));
    }
    prices
}

fn of_hashing(workload: &Workload, machine: &Machine, figures: &Figures) -> Vec<(String, bool)> {
    let processors = machine.processors.max(1) as f64;
    let round = workload.region as f64 / (figures.hashing.value * processors);
    let text = format!(
        "Each round hashes all of the file: {} with {} processors ({}); followers are behind by that, and by what the link \
         takes.",
        seconds(round),
        machine.processors,
        figures.hashing.origin()
    );
    let disk =
        "Every follower has room for all of the region, and can use it when all has arrived.".to_owned();
    vec![(text, round > LONG_ROUND), (disk, false)]
}

fn of_writing(
    way: Way,
    workload: &Workload,
    machine: &Machine,
    figures: &Figures,
    copy: &LocalCopy,
) -> Vec<(String, bool)> {
    let mut prices = Vec::new();
    let (writes, dirty) = (workload.writes.per_second, workload.writes.dirty_per_second);
    if way.method == Method::Userfaultfd && workload.vm_ram {
        let text = "What the guest writes stays in its memory: the region is what it was.".to_owned();
        return vec![(text, false)];
    }
    if way.method == Method::Userfaultfd {
        let slowed = writes * figures.tracked_write.value;
        if slowed > EXPENSIVE / 10.0 {
            let text = format!(
                "{writes:.0} writes to pages in a second cost {} of a processor, since the first write to each page after a \
                 push takes {} longer ({}).",
                share(slowed),
                seconds(figures.tracked_write.value),
                figures.tracked_write.origin()
            );
            prices.push((text, slowed > EXPENSIVE));
        }
        if machine.tracked == Some(Tracked::Hashing) {
            let round = workload.region as f64 / figures.hashing.value;
            let text = format!(
                "This kernel makes each search for changes a pass over all of it: {}.",
                seconds(round)
            );
            prices.push((text, round > LONG_ROUND));
        }
    }
    let carried = workload.rate.min(figures.of(way).write.value);
    if dirty > carried {
        let text = format!(
            "More is written ({}) than can be pushed ({}): a flush waits for the rest, and what is not pushed yet grows \
             meanwhile.",
            rate(dirty),
            rate(carried)
        );
        prices.push((text, true));
    }
    if workload.followers > 0 && way.method == Method::Userfaultfd {
        let text = "The other hosts mount the region, or map it and refresh.".to_owned();
        prices.push((text, false));
    }
    if copy.file {
        prices.push(("What is not in memory yet is read from that file.".into(), false));
    }
    prices
}
