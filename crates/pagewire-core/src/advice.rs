//! Which access method to use for what, and why.
//!
//! The rules stand here and nowhere else: `pagewire doctor` asks them about this machine, and the report of the study about
//! the machine that it has measured. A [`Workload`] says what a program does with a region and how far away that is, a
//! [`Machine`] what the kernel, the privileges and the memory are, and [`Figures`] what the methods cost. Out comes
//! [`Advice`]: what fits, best first, with its reasons in whole sentences; what is ruled out, and by what; and how to
//! move the state where it has to move.
//!
//! It goes in three steps. What the machine or the workload cannot have is *ruled out* (`rules`). What is left is told
//! by how well it *fits*: what a method was made for comes before what it can be used for as well, and what has a price
//! that hurts comes last ([`Fit`]). Among those that fit alike, the *estimate* decides: the time to a byte where latency
//! counts, the time until all is there where throughput does. Estimates that are closer to each other than [`TIE`] are a
//! tie, and the order of [`Way::ALL`] decides: two measurements of one machine differ by as much, and should not
//! recommend different things for that.
//!
//! | part | holds |
//! | --- | --- |
//! | `workload` | what is asked, and the use cases that stand for many |
//! | `machine` | what a machine was found to have |
//! | `abilities` | what works on it |
//! | `checkup` | what is missing, what mends it, what works without it |
//! | `figures` | what the methods cost, measured or built in |
//! | `rules` | what is ruled out |
//! | `estimate` | how long it takes, and how well it fits |
//! | `moving` | before, after, or both before and after the switch of hosts |
//! | `character` | what is to be known of each method, whatever the workload |

mod abilities;
mod character;
mod checkup;
mod estimate;
mod figures;
mod machine;
mod moving;
mod phrase;
mod rules;
mod workload;

#[cfg(test)]
mod tests;

use serde::Serialize;

pub use abilities::{Abilities, Ability, Use, Works};
pub use character::{Character, character};
pub use checkup::{Finding, State, checkup};
pub use estimate::{Estimate, Fit};
pub use figures::{Costs, Figure, Figures};
pub use machine::{
    Access, Answer, Fuse, Installer, KernelVersion, Limits, Machine, Memory, Presence, Privileges, Tracked,
    Userfaultfd,
};
pub use moving::{Moving, NotMoved, Transfer};
pub use phrase::{rate, size, time};
pub use workload::{Goal, Need, UnknownUseCase, UseCase, Workload, Writes};

/// How an application reaches a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Memory of a program, or of a VM monitor's guest, that is filled as it is touched.
    Userfaultfd,
    /// A mounted file.
    Fuse,
    /// A disk: a block device of the kernel, or whatever an NBD client makes of an export.
    Nbd,
    /// A file that a program has mapped, kept in step by hashing.
    Mirror,
}

impl Method {
    /// All there are.
    pub const ALL: [Method; 4] = [Method::Userfaultfd, Method::Fuse, Method::Nbd, Method::Mirror];

    /// Its name, as it is said.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Userfaultfd => "userfaultfd",
            Method::Fuse => "FUSE",
            Method::Nbd => "NBD",
            Method::Mirror => "mirror",
        }
    }
}

/// Whether there is a local copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A local copy, filled by what is touched and in the background, written back in the background.
    Managed,
    /// None: every access goes to the region.
    Direct,
}

/// A method and whether it keeps a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Way {
    /// How the region is reached.
    pub method: Method,
    /// Whether there is a local copy.
    pub mode: Mode,
}

impl Way {
    /// All that can be chosen from, in the order in which they are preferred where they cost alike: first what has the
    /// shortest way for a fault, a copy before none, and last what leaves the others behind. Memory that was placed stays
    /// placed, and a mirrored file is a copy: neither can be direct.
    pub const ALL: [Way; 6] = [
        Way { method: Method::Userfaultfd, mode: Mode::Managed },
        Way { method: Method::Fuse, mode: Mode::Managed },
        Way { method: Method::Fuse, mode: Mode::Direct },
        Way { method: Method::Nbd, mode: Mode::Managed },
        Way { method: Method::Nbd, mode: Mode::Direct },
        Way { method: Method::Mirror, mode: Mode::Managed },
    ];
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.method, self.mode) {
            // There is no other.
            (Method::Mirror, _) => f.write_str(self.method.as_str()),
            (method, Mode::Managed) => write!(f, "{}, managed", method.as_str()),
            (method, Mode::Direct) => write!(f, "{}, direct", method.as_str()),
        }
    }
}

/// What to use, and what not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Advice {
    /// What can be used, best first.
    pub ranked: Vec<Recommendation>,
    /// What cannot, and why.
    pub ruled_out: Vec<RuledOut>,
    /// How to move the state, where it is to move.
    pub moving: Option<Moving>,
    /// What to do where nothing fits; never there beside something that does.
    pub nothing_fits: Option<String>,
}

impl Advice {
    /// The best of what fits.
    pub fn best(&self) -> Option<&Recommendation> {
        self.ranked.first()
    }
}

/// A way that can be used.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recommendation {
    /// The way.
    #[serde(flatten)]
    pub way: Way,
    /// How well it fits.
    pub fit: Fit,
    /// Whether to pull what nobody has touched yet.
    pub background: bool,
    /// Whether the copy has to be in a file of this host, since its memory is too small for it.
    pub cache_file: bool,
    /// What to expect.
    pub estimate: Estimate,
    /// Why, in whole sentences.
    pub reasons: Vec<String>,
    /// What it costs or lacks, in whole sentences.
    pub caveats: Vec<String>,
}

/// A way that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuledOut {
    /// The method.
    pub method: Method,
    /// The mode, where only that is ruled out.
    pub mode: Option<Mode>,
    /// Why, in whole sentences: all reasons, not the first alone.
    pub why: Vec<String>,
    /// The commands that would change it, where that is up to the machine alone.
    pub mend: Vec<String>,
}

/// Estimates are a tie where the greater one is at most so many times the less one: chosen well above what medians of a
/// few rounds differ by from one run to the next, and below what somebody would notice.
pub const TIE: f64 = 1.2;

/// What to use for `workload` on `machine`.
///
/// Never recommends what either of them rules out. Where nothing is left, [`Advice::nothing_fits`] says what to do.
pub fn advise(workload: &Workload, machine: &Machine, figures: &Figures) -> Advice {
    let workload = workload.in_bounds();
    let abilities = machine.abilities();
    let mut ranked = Vec::new();
    let mut refused = Vec::new();
    for way in Way::ALL {
        let why = rules::against(way, &workload, machine, &abilities);
        match why.is_empty() {
            true => ranked.push(estimate::recommend(way, &workload, machine, &abilities, figures)),
            false => refused.push((way, why)),
        }
    }
    let ranked = ranked_by(ranked, |one| one.estimate.cost(workload.goal));
    let nothing_fits = ranked.is_empty().then(|| rules::nothing_fits(&workload, &refused));
    Advice {
        ranked,
        ruled_out: merged(&refused),
        moving: workload.moves.then(|| moving::advise(&workload, figures)),
        nothing_fits,
    }
}

/// The best first: by fit, then by cost, and by the order that they come in where that is a [`TIE`] with the least that is
/// left. (With each other it would be no order: of three, the first and the last may be none.)
fn ranked_by(mut left: Vec<Recommendation>, cost: impl Fn(&Recommendation) -> f64) -> Vec<Recommendation> {
    let mut ranked = Vec::with_capacity(left.len());
    while let Some(fit) = left.iter().map(|one| one.fit).min() {
        let alike = |one: &Recommendation| one.fit == fit;
        let least = left.iter().filter(|one| alike(one)).map(&cost).fold(f64::INFINITY, f64::min);
        let next = left.iter().position(|one| alike(one) && cost(one) <= least * TIE);
        // What is no number ties with nothing.
        let next = next.or_else(|| left.iter().position(alike));
        ranked.push(left.remove(next.expect("one has this fit")));
    }
    ranked
}

/// One entry for a method that is ruled out altogether, for the same reasons.
fn merged(refused: &[(Way, Vec<rules::Against>)]) -> Vec<RuledOut> {
    let mut merged: Vec<RuledOut> = Vec::new();
    for (way, against) in refused {
        let why: Vec<String> = against.iter().map(|one| one.why.clone()).collect();
        // What only the machine lacks can be mended; what the workload forbids cannot.
        let mend = match against.iter().all(|one| one.mend.is_some()) {
            true => against.iter().filter_map(|one| one.mend.clone()).collect(),
            false => Vec::new(),
        };
        let of_this = Way::ALL.iter().filter(|other| other.method == way.method).count();
        match merged.iter_mut().find(|known| known.method == way.method && known.why == why) {
            Some(known) => known.mode = None,
            None => {
                let mode = (of_this > 1).then_some(way.mode);
                merged.push(RuledOut { method: way.method, mode, why, mend });
            }
        }
    }
    merged
}
