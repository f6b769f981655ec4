//! What happens in a run: each of these is one thing, chosen at random, and answers whether it has happened.

use super::super::{Answer, MigrationId, Outcome, Phase, Request, Token};
use super::host_a::Answered;
use super::host_b::ProcessB;
use super::world::{Message, PAGES, World};

impl World {
    /// One thing happens: mostly work goes on, sometimes there is trouble.
    pub(super) fn chaos(&mut self) {
        // Force is interesting where it does harm.
        let harmful = self.may_force && self.a.phase() == Some(Phase::InDoubt) && self.b.is_owner();
        if harmful && self.random.chance(10) && self.operate_a() {
            return;
        }
        let trouble = self.random.draw(1000) < self.trouble;
        // What cannot happen now is drawn again.
        for _ in 0..20 {
            let happened = if trouble { self.trouble() } else { self.work(self.failures) };
            if happened {
                return;
            }
        }
    }

    /// One thing happens that brings the end nearer.
    pub(super) fn heal(&mut self) {
        let happened = match self.random.draw(100) {
            0..90 => self.work(0),
            90..96 => self.depart(),
            _ => self.retry() | self.start(),
        };
        if !happened && self.another && self.network.is_empty() {
            self.another = self.b.phase() != Some(Phase::Completed) && !self.begin();
        }
    }

    /// Something that belongs to a migration without trouble.
    fn work(&mut self, failures: u64) -> bool {
        match self.random.draw(100) {
            0..25 => self.deliver(),
            25..40 => self.step_a(failures),
            40..55 => self.step_b(failures),
            55..65 => self.ask(),
            65..75 => self.pull(),
            75..80 => self.write_a(),
            80 => self.flush_a(),
            81..85 => self.write_b(),
            85..91 => self.flush_b(failures),
            91..95 => self.decide(),
            95..97 => self.lose(),
            97 if self.random.chance(50) => self.retry(),
            97 => self.reopen(),
            98 => self.start(),
            _ => !self.well && self.begin(),
        }
    }

    fn trouble(&mut self) -> bool {
        match self.random.draw(12) {
            0..2 => self.crash_a(),
            2..4 => self.crash_b(),
            4 => {
                self.note("network is cut", self.network.len());
                self.network.clear();
                true
            }
            5 => self.depart(),
            6..8 => self.operate_a(),
            8 => {
                let aborted = self.b.process.as_mut().is_some_and(ProcessB::abort);
                self.note("operator of the destination aborts", aborted);
                aborted
            }
            _ => self.strange(),
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
    fn deliver(&mut self) -> bool {
        if self.network.is_empty() {
            return false;
        }
        let which = self.random.draw(self.network.len() as u64) as usize;
        let message = if !self.well && self.random.chance(10) {
            self.network[which].clone()
        } else {
            self.network.swap_remove(which)
        };
        if !self.well && self.random.chance(self.drops) {
            return true;
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
                    Answer::Wait => return true,
                };
                if let Some(process) = &mut self.b.process {
                    process.outcome(request, outcome, set.as_ref());
                }
            }
            Message::Pull { page, stamp } => {
                let origin = self.a.process.as_ref().filter(|_| !self.a.released);
                let value = match self.a.lost {
                    true => self.elsewhere(page),
                    false => origin.map(|process| process.live[page]),
                };
                if let Some(value) = value {
                    self.send(Message::Pulled { page, value, stamp });
                }
            }
            Message::Pulled { page, value, stamp } => {
                if let Some(process) = &mut self.b.process {
                    process.pulled(page, value, stamp);
                }
            }
        }
        true
    }

    fn step_a(&mut self, failures: u64) -> bool {
        let fails = self.random.chance(failures);
        let Some(process) = &mut self.a.process else { return false };
        if process.effect.is_none() {
            process.effect = process.machine.poll_effect();
            let Some(effect) = process.effect.clone() else { return false };
            self.note("origin begins", effect);
            return true;
        }
        if self.dies_in_the_middle() {
            return self.crash_a();
        }
        let answered = self.a.finish(&mut self.random, fails);
        self.note("origin has finished, failing:", fails);
        self.answer(answered);
        true
    }

    fn step_b(&mut self, failures: u64) -> bool {
        let fails = self.random.chance(failures);
        if self.b.is_busy() && self.dies_in_the_middle() {
            return self.crash_b();
        }
        let Some(effect) = self.b.step_effect(&mut self.random, fails) else { return false };
        self.note("destination begins, or has finished, failing:", (effect, fails));
        true
    }

    /// Whether a process dies while it carries something out, which deserves more than its share of chance.
    fn dies_in_the_middle(&mut self) -> bool {
        !self.well && self.trouble > 0 && self.random.chance(3)
    }

    fn ask(&mut self) -> bool {
        let machine = self.b.process.as_mut().and_then(|process| process.machine.as_mut());
        let Some(request) = machine.and_then(|machine| machine.poll_request()) else { return false };
        self.note("destination asks", request);
        self.send(Message::Ask(request));
        true
    }

    fn pull(&mut self) -> bool {
        let wants = [Phase::Copying, Phase::Switching, Phase::Held, Phase::PostCopy];
        let Some(process) = &self.b.process else { return false };
        if !self.b.phase().is_some_and(|phase| wants.contains(&phase)) {
            return false;
        }
        let missing: Vec<usize> = (0..PAGES).filter(|page| process.pages[*page].local.is_none()).collect();
        let Some(page) = self.random.pick(&missing) else { return false };
        let stamp = process.pages[page].stamp;
        self.send(Message::Pull { page, stamp });
        true
    }

    fn write_a(&mut self) -> bool {
        let page = self.random.draw(PAGES as u64) as usize;
        let Some(process) = self.a.process.as_mut().filter(|process| process.running) else { return false };
        self.value += 1;
        process.write(page, self.value);
        self.latest[page] = self.value;
        true
    }

    fn flush_a(&mut self) -> bool {
        let Some(process) = self.a.process.as_ref().filter(|process| process.running) else { return false };
        self.a.durable.clone_from(&process.live);
        if !self.conflict {
            self.committed.clone_from(&process.live);
        }
        true
    }

    fn write_b(&mut self) -> bool {
        let page = self.random.draw(PAGES as u64) as usize;
        let Some(process) = self.b.process.as_mut().filter(|process| process.running) else { return false };
        self.value += 1;
        process.write(page, self.value);
        if !self.conflict {
            self.latest[page] = self.value;
        }
        true
    }

    fn flush_b(&mut self, failures: u64) -> bool {
        let fails = self.random.chance(failures);
        let flushed = self.b.step_flush(&mut self.random, fails);
        if !self.conflict {
            for (page, value) in &flushed {
                self.committed[*page] = *value;
            }
        }
        !flushed.is_empty()
    }

    fn decide(&mut self) -> bool {
        let proceeds = self.well || self.random.chance(50);
        let Self { b, random, .. } = self;
        let Some(process) = &mut b.process else { return false };
        let decided = if proceeds { process.proceed() } else { process.decide(random) };
        self.note("destination decides", &decided);
        decided.is_some()
    }

    fn retry(&mut self) -> bool {
        if let Some(process) = &mut self.a.process {
            process.machine.handle_retry();
            let answered = process.ask_again();
            self.answer(answered);
        }
        if let Some(machine) = self.b.process.as_mut().and_then(|process| process.machine.as_mut()) {
            machine.handle_retry();
        }
        false
    }

    /// The destination takes an answer for lost; it may come all the same.
    fn lose(&mut self) -> bool {
        let waited = self.a.process.as_ref().is_some_and(|process| !process.waiting.is_empty());
        if self.well && (waited || !self.network.is_empty()) {
            return false;
        }
        let Some(process) = &mut self.b.process else { return false };
        let Some(machine) = &mut process.machine else { return false };
        let Some(request) = machine.awaited() else { return false };
        machine.handle_outcome(request, Outcome::Lost);
        self.note("destination takes for lost", request);
        true
    }

    /// A connection was lost and is made again, which begins with BEGIN, whatever else is under way.
    fn reopen(&mut self) -> bool {
        let phases = [Phase::Copying, Phase::Switching, Phase::Held, Phase::PostCopy];
        let Some(machine) = self.b.process.as_ref().and_then(|process| process.machine.as_ref()) else {
            return false;
        };
        if self.well || !phases.contains(&machine.phase()) {
            return false;
        }
        let request = Request::Begin { id: machine.id() };
        self.note("destination comes back", request);
        self.send(Message::Ask(request));
        true
    }

    fn start(&mut self) -> bool {
        let down = (self.a.process.is_none() && !self.a.lost, self.b.process.is_none());
        if down.0 {
            self.a.start(&mut self.random);
        }
        if down.1 {
            self.b.start();
        }
        if down != (false, false) {
            self.note("origin or destination starts", down);
        }
        down != (false, false)
    }

    fn crash_a(&mut self) -> bool {
        if self.a.process.is_none() {
            return false;
        }
        self.a.crash(&mut self.random);
        // Once everything is there, or where a witness has it: before that it is lost with the host.
        let is_safe = self.b.is_owner() && !self.conflict && self.a.witness.is_some();
        self.a.lost = self.witnessed && is_safe && self.random.chance(50);
        self.note("origin crashes, for ever:", self.a.lost);
        if !self.conflict && !self.b.is_owner() {
            for page in 0..PAGES {
                self.expect_kept(page, self.a.durable[page]);
            }
            self.latest.clone_from(&self.a.durable);
        }
        true
    }

    fn crash_b(&mut self) -> bool {
        if self.b.process.is_none() {
            return false;
        }
        self.b.crash(&mut self.random);
        self.note("destination crashes", self.b.recorded());
        if !self.conflict && self.b.is_owner() {
            for (page, home) in self.b.at_home().into_iter().enumerate() {
                assert!(home.is_some() || !self.a.released, "seed {}: page {page} is nowhere", self.seed);
                let elsewhere = self.elsewhere(page);
                let value = home.or(elsewhere).unwrap_or_else(|| panic!("seed {}: page {page}", self.seed));
                self.expect_kept(page, value);
                self.latest[page] = value;
            }
        }
        true
    }

    fn expect_kept(&self, page: usize, value: u64) {
        let kept = (self.committed[page]..=self.latest[page]).contains(&value);
        assert!(kept, "seed {}: page {page} was flushed and is lost", self.seed);
    }

    /// A migration begins, where the last one is over and the application has not moved.
    fn begin(&mut self) -> bool {
        let over = matches!(self.b.phase(), None | Some(Phase::Aborted | Phase::Ousted));
        let Some(process) = self.b.process.as_mut().filter(|process| over && process.is_finished()) else {
            return false;
        };
        let id = MigrationId(std::array::from_fn(|_| self.random.next() as u8));
        self.ids.push(id);
        process.begin(id);
        self.note("a migration begins", "");
        true
    }

    /// Somebody's sessions have ended for good, or the destination's for long.
    fn depart(&mut self) -> bool {
        let Some(process) = &mut self.a.process else { return false };
        let Some(id) = process.machine.id() else { return false };
        let machine = self.b.process.as_ref().and_then(|process| process.machine.as_ref());
        let there = machine.is_some_and(|machine| machine.id() == id && !machine.is_finished());
        if there && (self.well || self.random.chance(70)) {
            return false;
        }
        process.machine.handle_departure(id);
        let answered = process.ask_again();
        self.note("the destination is gone for", id);
        self.answer(answered);
        true
    }

    fn operate_a(&mut self) -> bool {
        let force = self.may_force && self.random.chance(50);
        let Some(process) = &mut self.a.process else { return false };
        let in_doubt = process.machine.phase() == Phase::InDoubt;
        let result = process.machine.handle_operator(force);
        let taken_back = in_doubt && result.is_ok();
        let answered = process.ask_again();
        if taken_back {
            assert!(force, "seed {}: nobody has used force", self.seed);
            self.conflict = true;
            self.forced = true;
        }
        self.note("operator of the origin aborts", (force, result));
        self.answer(answered);
        taken_back
    }

    /// A request that nobody has sent, or long ago.
    fn strange(&mut self) -> bool {
        // The newest may be under way, and nobody else knows its id.
        let old = self.ids.len().saturating_sub(1);
        let id = match self.random.pick(&self.ids[..old]) {
            Some(id) if self.random.chance(70) => id,
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
        true
    }
}
