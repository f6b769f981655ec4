//! Both hosts, the network between them, and what is true.

use super::super::{Answer, MigrationId, Phase, Request};
use super::Random;
use super::host_a::{HostA, Set};
use super::host_b::{HostB, ProcessB};

/// Pages of all regions together.
pub(super) const PAGES: usize = 8;

/// Regions that move together.
pub(super) const REGIONS: usize = 2;

/// How often something happens at most once all is well.
const BOUND: u32 = 6000;

/// How often each effect was met, and how that ended: done, failed or cut short.
pub(super) type Met = std::collections::BTreeMap<(String, &'static str), u64>;

/// The name of an effect without what differs from run to run.
pub(super) fn kind(effect: &impl std::fmt::Debug) -> String {
    let text = format!("{effect:?}");
    let words = if text.starts_with("Record") { 2 } else { 1 };
    text.split([' ', '(']).take(words).collect::<Vec<_>>().join(" ")
}

/// How a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// The application runs at the origin.
    Stayed,
    /// It runs at the destination.
    Moved,
    /// It runs at the destination, and the origin is lost.
    Alone,
    /// It runs at the origin, where an operator has used force against the destination's claim.
    TakenBack,
}

#[derive(Debug, Clone)]
pub(super) enum Message {
    Ask(Request),
    Answer(Request, Answer, Option<Set>),
    Pull { page: usize, stamp: u64 },
    Pulled { page: usize, value: u64, stamp: u64 },
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) random: Random,
    pub(super) trace: bool,
    pub(super) a: HostA,
    pub(super) b: HostB,
    pub(super) network: Vec<Message>,
    /// The value that each page has, to whoever may run the application.
    pub(super) latest: Vec<u64>,
    /// The value that each page has kept for sure: the one that was flushed last.
    pub(super) committed: Vec<u64>,
    /// The last value that was given out.
    pub(super) value: u64,
    /// All migrations that there were.
    pub(super) ids: Vec<MigrationId>,
    /// Whether the regions have a witness, and the origin may be lost.
    pub(super) witnessed: bool,
    /// Whether an operator may use force, has done so against an offer, and has ever.
    pub(super) may_force: bool,
    pub(super) conflict: bool,
    pub(super) forced: bool,
    /// How many of a hundred effects fail, and messages are dropped.
    pub(super) failures: u64,
    pub(super) drops: u64,
    /// How much of what happens is trouble, of a thousand.
    pub(super) trouble: u64,
    /// Whether one more migration is to begin when all is well.
    pub(super) another: bool,
    pub(super) well: bool,
}

impl World {
    pub(super) fn new(seed: u64, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let a = HostA::new(&mut random);
        let may_force = random.chance(25);
        let failures = [0, 3, 10, 30][random.draw(4) as usize];
        let drops = [0, 5, 30][random.draw(3) as usize];
        let trouble = [0, 5, 20, 80][random.draw(4) as usize];
        let another = random.chance(50);
        let witnessed = random.chance(30);
        Self {
            seed,
            random,
            trace,
            a,
            b: HostB::new(),
            network: Vec::new(),
            latest: vec![0; PAGES],
            committed: vec![0; PAGES],
            value: 0,
            ids: Vec::new(),
            witnessed,
            may_force,
            conflict: false,
            forced: false,
            failures,
            drops,
            trouble,
            another,
            well: false,
        }
    }

    /// Answers how it ended, and adds what has been met to `met`.
    pub(super) fn run(mut self, met: &mut Met) -> End {
        let end = self.run_to_end();
        for (effect, times) in self.a.met.iter().chain(&self.b.met) {
            *met.entry(effect.clone()).or_default() += times;
        }
        end
    }

    fn run_to_end(&mut self) -> End {
        for _ in 0..self.random.draw(600) {
            self.chaos();
            self.check();
        }
        self.well = true;
        self.note("all is well again", "");
        for _ in 0..BOUND {
            if let Some(end) = self.end() {
                self.check_end(end);
                return end;
            }
            self.heal();
            self.check();
        }
        panic!(
            "seed {}: no end, with the origin {:?} and the destination {:?}",
            self.seed,
            self.a.phase(),
            self.b.phase()
        );
    }

    /// What holds at any time.
    fn check(&mut self) {
        let seed = self.seed;
        let owner = self.b.is_owner();
        if self.conflict {
            self.settle_conflict();
            return;
        }
        let (at_a, at_b) = (self.a.is_running(), self.b.is_running());
        assert!(!(at_a && at_b), "seed {seed}: both run it");
        assert!(!(at_a && owner), "seed {seed}: the origin runs what the destination has accepted");
        assert!(!at_b || owner, "seed {seed}: the destination runs what it has not accepted");
        if let Some(process) = &self.a.process {
            assert!(!(process.running && process.frozen), "seed {seed}: it runs on frozen regions");
            if !owner {
                assert_eq!(process.live, self.latest, "seed {seed}: the origin has lost a write");
            }
        }
        if owner || matches!(self.b.phase(), Some(Phase::Held | Phase::Accepting)) {
            for page in 0..PAGES {
                let at_home = self.b.process.as_ref().map(|process| process.pages[page].local);
                match at_home {
                    Some(Some(local)) => {
                        assert_eq!(
                            local, self.latest[page],
                            "seed {seed}: page {page} is old at the destination"
                        );
                    }
                    Some(None) => {
                        assert!(!self.a.released, "seed {seed}: page {page} is given up and was not pulled");
                        let elsewhere = self.elsewhere(page);
                        assert_eq!(elsewhere, Some(self.latest[page]), "seed {seed}: page {page} is lost");
                    }
                    None => {}
                }
            }
        }
    }

    /// What a page holds that the destination has accepted and not pulled.
    pub(super) fn elsewhere(&self, page: usize) -> Option<u64> {
        match self.a.lost {
            false => Some(self.a.durable[page]),
            true => self.a.witness.as_ref().map(|witness| witness[page]),
        }
    }

    /// An operator has used force, so that both may run. It is over when the destination knows.
    fn settle_conflict(&mut self) {
        let known = match self.b.phase() {
            None => self.b.process.is_some(),
            Some(Phase::Aborted | Phase::Ousted) => {
                self.b.process.as_ref().is_some_and(ProcessB::is_finished)
            }
            Some(_) => false,
        };
        let Some(process) = &self.a.process else { return };
        if known && !self.b.is_owner() && process.machine.may_run() {
            self.latest.clone_from(&process.live);
            self.committed.clone_from(&self.a.durable);
            self.conflict = false;
        }
    }

    /// Whether nothing is left to be done, and how that ended.
    fn end(&self) -> Option<End> {
        if self.a.lost {
            // Nobody is left to be told.
            let b = self.b.process.as_ref()?;
            let machine = b.machine.as_ref()?;
            let is_over = machine.has_everything() && machine.is_resumed() && !b.is_busy();
            return is_over.then_some(End::Alone);
        }
        let (a, b) = (self.a.process.as_ref()?, self.b.process.as_ref()?);
        if self.another || !self.network.is_empty() || !a.machine.is_settled() || !b.is_finished() {
            return None;
        }
        if a.machine.failure().is_some() {
            return None;
        }
        match (a.machine.phase(), self.b.phase()) {
            (Phase::Idle, None | Some(Phase::Aborted)) => Some(End::Stayed),
            (Phase::Idle, Some(Phase::Ousted)) => Some(End::TakenBack),
            (Phase::Released, Some(Phase::Completed)) => Some(End::Moved),
            _ => None,
        }
    }

    /// What holds at the end.
    fn check_end(&self, end: End) {
        let seed = self.seed;
        let running = (self.a.is_running(), self.b.is_running());
        let moved = matches!(end, End::Moved | End::Alone);
        assert_eq!(running, (!moved, moved), "seed {seed}: who runs it");
        match end {
            End::Stayed | End::TakenBack => {
                let a = self.a.process.as_ref().expect("it was started");
                assert!(a.is_clean(), "seed {seed}: the origin has something left of a migration");
                assert!(end == End::Stayed || self.forced, "seed {seed}: nobody has used force");
                assert!(!self.b.is_owner(), "seed {seed}: a restart would make the destination the owner");
            }
            End::Moved if self.conflict => {}
            End::Moved | End::Alone => {
                assert!(
                    self.a.released || end == End::Alone,
                    "seed {seed}: the origin keeps what nobody needs"
                );
                for (page, value) in self.b.stored().into_iter().enumerate() {
                    let least = self.committed[page];
                    assert!(
                        (least..=self.latest[page]).contains(&value),
                        "seed {seed}: page {page} was not kept"
                    );
                }
            }
        }
    }

    pub(super) fn note(&self, what: &str, more: impl std::fmt::Debug) {
        if self.trace {
            eprintln!("  {what} {more:?} [{:?} | {:?}]", self.a.phase(), self.b.phase());
        }
    }
}
