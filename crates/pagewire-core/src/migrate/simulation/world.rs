//! Both hosts, the network between them, and what is true.

use super::super::{Answer, MigrationId, Outcome, Phase, Request, Token};
use super::Random;
use super::host_a::{Answered, HostA, Set};
use super::host_b::HostB;

/// Pages of all regions together.
pub(super) const PAGES: usize = 12;

/// Regions that move together.
pub(super) const REGIONS: usize = 2;

/// How often something happens at most once all is well.
const BOUND: u32 = 6000;

/// How a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// The application runs at the origin.
    Stayed,
    /// It runs at the destination.
    Moved,
    /// It runs at the origin, where an operator has used force against the destination's claim.
    TakenBack,
}

#[derive(Debug, Clone)]
enum Message {
    Ask(Request),
    Answer(Request, Answer, Option<Set>),
    Pull { page: usize, stamp: u64 },
    Pulled { page: usize, value: u64, stamp: u64 },
}

pub(super) struct World {
    seed: u64,
    random: Random,
    trace: bool,
    a: HostA,
    b: HostB,
    network: Vec<Message>,
    /// The value that each page has, to whoever may run the application.
    latest: Vec<u64>,
    /// The value that each page has kept for sure: the one that was flushed last.
    committed: Vec<u64>,
    /// The last value that was given out.
    value: u64,
    /// All migrations that there were.
    ids: Vec<MigrationId>,
    /// Whether an operator may use force, has done so against an offer, and has ever.
    may_force: bool,
    conflict: bool,
    forced: bool,
    /// How many of a hundred effects fail, and messages are dropped.
    failures: u64,
    drops: u64,
    well: bool,
}

impl World {
    pub(super) fn new(seed: u64, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let a = HostA::new(&mut random);
        let may_force = random.chance(15);
        let failures = [0, 3, 10, 30][random.draw(4) as usize];
        let drops = [0, 5, 30][random.draw(3) as usize];
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
            may_force,
            conflict: false,
            forced: false,
            failures,
            drops,
            well: false,
        }
    }

    pub(super) fn run(mut self) -> End {
        for _ in 0..100 + self.random.draw(500) {
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
                        assert_eq!(
                            self.a.durable[page], self.latest[page],
                            "seed {seed}: page {page} is lost"
                        );
                    }
                    None => {}
                }
            }
        }
    }

    /// An operator has used force, so that both may run. It is over when the destination knows.
    fn settle_conflict(&mut self) {
        let known = match self.b.phase() {
            None => self.b.process.is_some(),
            Some(Phase::Aborted | Phase::Ousted) => {
                self.b.process.as_ref().is_some_and(super::host_b::ProcessB::is_finished)
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
        let (a, b) = (self.a.process.as_ref()?, self.b.process.as_ref()?);
        if !self.network.is_empty() || !a.machine.is_settled() || !b.is_finished() {
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
        assert_eq!(running, (end != End::Moved, end == End::Moved), "seed {seed}: who runs it");
        let a = self.a.process.as_ref().expect("it was started");
        match end {
            End::Stayed | End::TakenBack => {
                assert!(a.is_clean(), "seed {seed}: the origin has something left of a migration");
                assert!(end == End::Stayed || self.forced, "seed {seed}: nobody has used force");
                assert!(!self.b.is_owner(), "seed {seed}: a restart would make the destination the owner");
            }
            End::Moved if self.conflict => {}
            End::Moved => {
                assert!(self.a.released, "seed {seed}: the origin keeps what nobody needs");
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

    fn note(&self, what: &str, more: impl std::fmt::Debug) {
        if self.trace {
            eprintln!("  {what} {more:?} [{:?} | {:?}]", self.a.phase(), self.b.phase());
        }
    }

    /// One thing happens that may happen, as often as that is interesting.
    fn chaos(&mut self) {
        match self.random.draw(1000) {
            0..150 => self.deliver(),
            150..260 => self.step_a(self.failures),
            260..370 => self.step_b(self.failures),
            370..470 => self.ask(),
            470..620 => self.pull(),
            620..690 => self.write_a(),
            690..710 => self.flush_a(),
            710..770 => self.write_b(),
            770..850 => self.flush_b(self.failures),
            850..905 => {
                let Self { b, random, .. } = self;
                let decided = b.process.as_mut().and_then(|process| process.decide(random));
                self.note("destination decides", decided);
            }
            905..925 => self.retry(),
            925..945 => self.lose(),
            945..949 => {
                self.note("network is cut", self.network.len());
                self.network.clear();
            }
            949..960 => self.start(),
            960..966 => self.crash_a(),
            966..972 => self.crash_b(),
            972..982 => self.begin(),
            982..985 => self.depart(),
            985..988 => self.operate_a(),
            988..991 => {
                let aborted = self.b.process.as_mut().is_some_and(super::host_b::ProcessB::abort);
                self.note("operator of the destination aborts", aborted);
            }
            _ => self.strange(),
        }
    }

    /// One thing happens that brings the end nearer.
    fn heal(&mut self) {
        match self.random.draw(100) {
            0..25 => self.deliver(),
            25..40 => self.step_a(0),
            40..55 => self.step_b(0),
            55..65 => self.ask(),
            65..75 => self.pull(),
            75..80 => self.flush_b(0),
            80..90 => {
                let decided = self.b.process.as_mut().and_then(super::host_b::ProcessB::proceed);
                self.note("destination decides", decided);
            }
            90..93 => self.retry(),
            93..95 => self.start(),
            95..97 => self.depart(),
            _ if self.network.is_empty() => self.lose(),
            _ => {}
        }
    }

    fn send(&mut self, message: Message) {
        if self.network.len() < 64 {
            self.network.push(message);
        }
    }

    fn answer(&mut self, answered: Vec<Answered>) {
        for (request, answer, set) in answered {
            self.send(Message::Answer(request, answer, set));
        }
    }

    /// Any message that is on its way arrives, or is lost, and may arrive again.
    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let which = self.random.draw(self.network.len() as u64) as usize;
        let message = if !self.well && self.random.chance(10) {
            self.network[which].clone()
        } else {
            self.network.swap_remove(which)
        };
        if !self.well && self.random.chance(self.drops) {
            return;
        }
        self.note("arrives", &message);
        match message {
            Message::Ask(request) => {
                let answered = self.a.process.as_mut().and_then(|process| process.request(request));
                self.answer(answered.into_iter().collect());
            }
            Message::Answer(request, answer, set) => {
                let outcome = match answer {
                    Answer::Done(reply) => Outcome::Done(reply),
                    Answer::Refused(refusal) => {
                        Outcome::Refused { kind: refusal.kind(), reason: refusal.to_string() }
                    }
                    Answer::Wait => return,
                };
                if let Some(process) = &mut self.b.process {
                    process.outcome(request, outcome, set.as_ref());
                }
            }
            Message::Pull { page, stamp } => {
                if let Some(process) = self.a.process.as_ref().filter(|_| !self.a.released) {
                    let value = process.live[page];
                    self.send(Message::Pulled { page, value, stamp });
                }
            }
            Message::Pulled { page, value, stamp } => {
                if let Some(process) = &mut self.b.process {
                    process.pulled(page, value, stamp);
                }
            }
        }
    }

    fn step_a(&mut self, failures: u64) {
        let fails = self.random.chance(failures);
        let Some(process) = &mut self.a.process else { return };
        if process.effect.is_none() {
            process.effect = process.machine.poll_effect();
            let effect = process.effect.clone();
            self.note("origin begins", effect);
            return;
        }
        let answered = self.a.finish(&mut self.random, fails);
        self.note("origin has finished, failing:", fails);
        self.answer(answered);
    }

    fn step_b(&mut self, failures: u64) {
        let fails = self.random.chance(failures);
        let effect = self.b.step_effect(&mut self.random, fails);
        self.note("destination begins or has finished", (effect, fails));
    }

    fn ask(&mut self) {
        let machine = self.b.process.as_mut().and_then(|process| process.machine.as_mut());
        if let Some(request) = machine.and_then(|machine| machine.poll_request()) {
            self.note("destination asks", request);
            self.send(Message::Ask(request));
        }
    }

    fn pull(&mut self) {
        let wants =
            matches!(self.b.phase(), Some(Phase::Copying | Phase::Switching | Phase::Held | Phase::PostCopy));
        let Some(process) = self.b.process.as_ref().filter(|_| wants) else { return };
        let missing: Vec<usize> = (0..PAGES).filter(|page| process.pages[*page].local.is_none()).collect();
        if let Some(page) = self.random.pick(&missing) {
            let stamp = process.pages[page].stamp;
            self.send(Message::Pull { page, stamp });
        }
    }

    fn write_a(&mut self) {
        let page = self.random.draw(PAGES as u64) as usize;
        if let Some(process) = self.a.process.as_mut().filter(|process| process.running) {
            self.value += 1;
            process.write(page, self.value);
            self.latest[page] = self.value;
        }
    }

    fn flush_a(&mut self) {
        if let Some(process) = self.a.process.as_ref().filter(|process| process.running) {
            self.a.durable.clone_from(&process.live);
            if !self.conflict {
                self.committed.clone_from(&process.live);
            }
        }
    }

    fn write_b(&mut self) {
        let page = self.random.draw(PAGES as u64) as usize;
        if let Some(process) = self.b.process.as_mut().filter(|process| process.running) {
            self.value += 1;
            process.write(page, self.value);
            if !self.conflict {
                self.latest[page] = self.value;
            }
        }
    }

    fn flush_b(&mut self, failures: u64) {
        let fails = self.random.chance(failures);
        let flushed = self.b.step_flush(&mut self.random, fails);
        if !self.conflict {
            for (page, value) in flushed {
                self.committed[page] = value;
            }
        }
    }

    fn retry(&mut self) {
        if let Some(process) = &mut self.a.process {
            process.machine.handle_retry();
            let answered = process.ask_again();
            self.answer(answered);
        }
        if let Some(machine) = self.b.process.as_mut().and_then(|process| process.machine.as_mut()) {
            machine.handle_retry();
        }
    }

    /// The destination takes an answer for lost; it may come all the same.
    fn lose(&mut self) {
        let waited = self.a.process.as_ref().is_some_and(|process| !process.waiting.is_empty());
        if self.well && waited {
            return;
        }
        let Some(machine) = self.b.process.as_mut().and_then(|process| process.machine.as_mut()) else {
            return;
        };
        if let Some(request) = machine.awaited() {
            machine.handle_outcome(request, Outcome::Lost);
            self.note("destination takes for lost", request);
        }
    }

    fn start(&mut self) {
        if self.a.process.is_none() {
            self.a.start(&mut self.random);
            self.note("origin starts", "");
        }
        if self.b.process.is_none() {
            self.b.start();
            self.note("destination starts", "");
        }
    }

    fn crash_a(&mut self) {
        if self.a.process.is_none() {
            return;
        }
        self.a.crash(&mut self.random);
        self.note("origin crashes", "");
        if !self.conflict && !self.b.is_owner() {
            for page in 0..PAGES {
                let value = self.a.durable[page];
                let kept = (self.committed[page]..=self.latest[page]).contains(&value);
                assert!(kept, "seed {}: page {page} was flushed and is lost", self.seed);
            }
            self.latest.clone_from(&self.a.durable);
        }
    }

    fn crash_b(&mut self) {
        if self.b.process.is_none() {
            return;
        }
        self.b.crash(&mut self.random);
        self.note("destination crashes", self.b.recorded());
        if !self.conflict && self.b.is_owner() {
            for (page, home) in self.b.at_home().into_iter().enumerate() {
                assert!(home.is_some() || !self.a.released, "seed {}: page {page} is nowhere", self.seed);
                let value = home.unwrap_or(self.a.durable[page]);
                let kept = (self.committed[page]..=self.latest[page]).contains(&value);
                assert!(kept, "seed {}: page {page} was flushed and is lost", self.seed);
                self.latest[page] = value;
            }
        }
    }

    /// A migration begins, where the last one is over and the application has not moved.
    fn begin(&mut self) {
        let over = matches!(self.b.phase(), None | Some(Phase::Aborted | Phase::Ousted));
        let Some(process) = self.b.process.as_mut().filter(|process| over && process.is_finished()) else {
            return;
        };
        let id = MigrationId(std::array::from_fn(|_| self.random.next() as u8));
        self.ids.push(id);
        process.begin(id);
        self.note("a migration begins", "");
    }

    /// Somebody's sessions have ended for good, or the destination's for long.
    fn depart(&mut self) {
        let Some(process) = &mut self.a.process else { return };
        let Some(id) = process.machine.id() else { return };
        let machine = self.b.process.as_ref().and_then(|process| process.machine.as_ref());
        let there = machine.is_some_and(|machine| machine.id() == id && !machine.is_finished());
        if !there || (!self.well && self.random.chance(20)) {
            process.machine.handle_departure(id);
            let answered = process.ask_again();
            self.note("the destination is gone for", id);
            self.answer(answered);
        }
    }

    fn operate_a(&mut self) {
        let force = self.may_force && self.random.chance(50);
        let Some(process) = &mut self.a.process else { return };
        let in_doubt = process.machine.phase() == Phase::InDoubt;
        let result = process.machine.handle_operator(force);
        if in_doubt && result.is_ok() {
            assert!(force, "seed {}: nobody has used force", self.seed);
            self.conflict = true;
            self.forced = true;
        }
        let answered = process.ask_again();
        self.note("operator of the origin aborts", (force, result));
        self.answer(answered);
    }

    /// A request that nobody has sent, or long ago.
    fn strange(&mut self) {
        let known = self.random.pick(&self.ids);
        let current = self.b.process.as_ref().and_then(|process| Some(process.machine.as_ref()?.id()));
        let id = match known {
            Some(id) if self.random.chance(70) && Some(id) != current => id,
            _ => MigrationId([self.random.draw(3) as u8; 16]),
        };
        let (generation, number, token) =
            (self.random.draw(3), self.random.draw(3), Token(self.random.draw(3)));
        let request = match self.random.draw(8) {
            0 | 1 => Request::Begin { id },
            2 => Request::Look { id },
            3 => Request::Round { id, generation, number },
            4 => Request::Switch { id, generation, number },
            5 => Request::Accept { id, token },
            6 => Request::Abort { id },
            _ => Request::Complete { id, token },
        };
        self.send(Message::Ask(request));
    }
}
