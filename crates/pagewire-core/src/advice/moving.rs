//! How state moves to another host: before the switch, after it, or both.

use serde::Serialize;

use super::figures::Figures;
use super::phrase::{rate, seconds, share, size, time};
use super::workload::Workload;

/// A way to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transfer {
    /// What there is moves while the program runs on the origin; what has changed meanwhile moves again, until what is
    /// left fits the downtime.
    PreCopy,
    /// The program switches at once, and pulls what it touches; the rest follows.
    PostCopy,
    /// A first pass before the switch, and what has changed since after it.
    Hybrid,
    /// The program stops, all that differs moves, and it starts again.
    StopAndCopy,
}

impl Transfer {
    /// All there are.
    pub const ALL: [Transfer; 4] =
        [Transfer::PreCopy, Transfer::PostCopy, Transfer::Hybrid, Transfer::StopAndCopy];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Transfer::PreCopy => "pre-copy",
            Transfer::PostCopy => "post-copy",
            Transfer::Hybrid => "hybrid",
            Transfer::StopAndCopy => "stop and copy",
        }
    }
}

/// How to move.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moving {
    /// The way.
    pub how: Transfer,
    /// Why, in whole sentences.
    pub reasons: Vec<String>,
    /// How long the program stands still, in seconds.
    pub downtime_seconds: f64,
    /// How long it takes in all, in seconds.
    pub total_seconds: f64,
    /// The others, and why not.
    pub others: Vec<NotMoved>,
}

/// A way that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotMoved {
    /// The way.
    pub how: Transfer,
    /// Why not, in a whole sentence.
    pub why: String,
}

/// As many rounds as are worth making: each moves what the one before it took to move.
const ROUNDS: u32 = 30;

/// Up to this share of what the link carries, each round is half of the one before it or less.
const CALM: f64 = 0.5;

/// What a workload comes to on its link.
struct Outlook {
    /// Bytes that arrive in a second: what the link carries, or less where the way itself is slower.
    rate: f64,
    /// Seconds to move all of it once.
    once: f64,
    /// What is dirtied, as a share of what the link carries.
    share: f64,
    /// Seconds of standstill after as many rounds of pre-copy as it takes, and seconds until then.
    pre_copy: (f64, f64),
    /// Seconds that a switch takes: what is left is a few messages.
    switch: f64,
}

impl Outlook {
    fn of(workload: &Workload, figures: &Figures) -> Self {
        let best = super::Way { method: super::Method::Userfaultfd, mode: super::Mode::Managed };
        let rate = workload.rate.min(figures.of(best).read.value);
        let (once, share) = (workload.region as f64 / rate, workload.writes.dirty_per_second / rate);
        let switch = 2.0 * workload.round_trip.as_secs_f64();
        let (mut left, mut total) = (once, once);
        for _ in 0..ROUNDS {
            left = (left * share).min(once);
            if left + switch <= workload.downtime.as_secs_f64() || share >= 1.0 {
                break;
            }
            total += left;
        }
        Self { rate, once, share, pre_copy: (left + switch, total + left + switch), switch }
    }
}

/// How to move a workload, which [`Workload::moves`].
pub(super) fn advise(workload: &Workload, figures: &Figures) -> Moving {
    let outlook = Outlook::of(workload, figures);
    let how = choose(workload, &outlook);
    let (downtime_seconds, total_seconds) = match how {
        Transfer::PreCopy => outlook.pre_copy,
        Transfer::PostCopy => (outlook.switch, outlook.switch + outlook.once),
        Transfer::Hybrid => {
            let rest = outlook.once * outlook.share.min(1.0);
            (outlook.switch, outlook.once + outlook.switch + rest)
        }
        Transfer::StopAndCopy => (outlook.once + outlook.switch, outlook.once + outlook.switch),
    };
    let others = Transfer::ALL.into_iter().filter(|other| *other != how);
    Moving {
        how,
        reasons: reasons(how, workload, &outlook),
        downtime_seconds,
        total_seconds,
        others: others
            .map(|other| NotMoved { how: other, why: why_not(other, workload, &outlook) })
            .collect(),
    }
}

fn choose(workload: &Workload, outlook: &Outlook) -> Transfer {
    let allowed = workload.downtime.as_secs_f64();
    let in_time = outlook.pre_copy.0 <= allowed && outlook.share < 1.0;
    match () {
        () if outlook.once + outlook.switch <= allowed => Transfer::StopAndCopy,
        () if workload.is_read_only() && !workload.survives_crash => Transfer::PostCopy,
        () if in_time && (outlook.share <= CALM || workload.survives_crash) => Transfer::PreCopy,
        // Half of the state on each host: what is lost with one of them is lost.
        () if workload.survives_crash && outlook.share < 1.0 => Transfer::PreCopy,
        () if workload.survives_crash => Transfer::StopAndCopy,
        () if outlook.share < 1.0 => Transfer::Hybrid,
        () => Transfer::PostCopy,
    }
}

fn reasons(how: Transfer, workload: &Workload, outlook: &Outlook) -> Vec<String> {
    let dirty = rate(workload.writes.dirty_per_second);
    let link = rate(workload.rate);
    let (all, once) = (size(workload.region as f64), seconds(outlook.once));
    let all = match outlook.rate < workload.rate {
        true => {
            let brought = rate(outlook.rate);
            format!(
                "{all} take {once}: the link carries {link}, and as it is brought here, {brought} arrive."
            )
        }
        false => format!("{all} take {once} on a link of {link}."),
    };
    let why = match how {
        Transfer::PreCopy if outlook.pre_copy.0 > workload.downtime.as_secs_f64() => format!(
            "The program dirties {dirty}, {} of what the link carries: rounds get shorter, and after the last one it stands \
             still for {}, longer than the {} that were wished; no other way keeps what must survive on one host.",
            share(outlook.share),
            seconds(outlook.pre_copy.0),
            time(workload.downtime)
        ),
        Transfer::PreCopy => format!(
            "The program dirties {dirty}, {} of what the link carries: rounds get shorter, and after the last one it stands \
             still for {}.",
            share(outlook.share),
            seconds(outlook.pre_copy.0)
        ),
        Transfer::PostCopy if workload.is_read_only() => {
            "Nothing is written, so nothing would be sent twice, and the program may run on the destination at once.".into()
        }
        Transfer::PostCopy => format!(
            "The program dirties {dirty}, as much as the link carries or more: rounds before the switch would never get \
             shorter, while after it everything moves once."
        ),
        Transfer::Hybrid => format!(
            "The program dirties {dirty}, {} of what the link carries: one round before the switch leaves that much to \
             pull after it, and more rounds gain little.",
            share(outlook.share)
        ),
        Transfer::StopAndCopy if workload.survives_crash && outlook.once > workload.downtime.as_secs_f64() => format!(
            "The program dirties {dirty}, as much as the link carries or more, and what must survive a crash is not to be \
             on two hosts by halves: only a standstill moves it."
        ),
        Transfer::StopAndCopy => {
            format!("That is within the standstill of {} that is allowed.", time(workload.downtime))
        }
    };
    let safety = match how {
        Transfer::PostCopy | Transfer::Hybrid => Some(
            "Until all has arrived the program needs both hosts: should the origin be lost before that, so is the program."
                .to_owned(),
        ),
        Transfer::PreCopy => {
            Some("Should anything fail before the switch, the program goes on where it was.".to_owned())
        }
        Transfer::StopAndCopy => None,
    };
    [Some(all), Some(why), safety].into_iter().flatten().collect()
}

fn why_not(how: Transfer, workload: &Workload, outlook: &Outlook) -> String {
    match how {
        Transfer::StopAndCopy => {
            format!("The program would stand still for {}.", seconds(outlook.once + outlook.switch))
        }
        Transfer::PreCopy if outlook.once + outlook.switch <= workload.downtime.as_secs_f64() => {
            "It is not needed for so little.".into()
        }
        Transfer::PreCopy if outlook.share >= 1.0 => {
            "What is dirtied meanwhile is as much as moves: it would never end.".into()
        }
        Transfer::PreCopy if workload.is_read_only() => {
            format!("The program would run on the destination {} later.", seconds(outlook.pre_copy.1))
        }
        Transfer::PreCopy => format!(
            "After its last round the program would still stand still for {}, and it would move {} times as much.",
            seconds(outlook.pre_copy.0),
            (10.0 * outlook.pre_copy.1 / outlook.once).round() / 10.0
        ),
        _ if workload.survives_crash => {
            "For as long as it lasts, the loss of either host is the loss of the program.".into()
        }
        Transfer::PostCopy | Transfer::Hybrid
            if outlook.once + outlook.switch <= workload.downtime.as_secs_f64() =>
        {
            "It is not needed for so little.".into()
        }
        Transfer::PostCopy => format!(
            "Each first touch on the destination would wait for {}, for up to {}.",
            time(workload.round_trip),
            seconds(outlook.once)
        ),
        Transfer::Hybrid if outlook.share >= 1.0 => {
            "A round before the switch would be dirtied again by the time that it ends.".into()
        }
        Transfer::Hybrid if workload.is_read_only() => {
            "Nothing changes, so a first round gains nothing.".into()
        }
        Transfer::Hybrid => "What is left after the last round fits the standstill that is allowed.".into(),
    }
}
