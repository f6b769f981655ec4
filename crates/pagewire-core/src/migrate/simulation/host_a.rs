//! The origin's host: the machine, and what the engine keeps for it.

use std::collections::BTreeSet;

use super::super::{Answer, Origin, OriginEffect, Phase, Reply, Request};
use super::Random;
use super::disk::Slots;
use super::world::{Met, PAGES, kind};

/// Pages that were written.
pub(super) type Set = BTreeSet<usize>;

pub(super) struct HostA {
    pub(super) slots: Slots,
    /// What the regions' stores hold.
    pub(super) durable: Vec<u64>,
    pub(super) released: bool,
    /// What the witness holds of an offer that was told, where there is one.
    pub(super) witness: Option<Vec<u64>>,
    /// Whether the host is gone for ever, with its disk.
    pub(super) lost: bool,
    pub(super) process: Option<ProcessA>,
    pub(super) met: Met,
}

/// What dies with the process.
pub(super) struct ProcessA {
    pub(super) machine: Origin,
    /// What is being carried out.
    pub(super) effect: Option<OriginEffect>,
    pub(super) waiting: Vec<Request>,
    pub(super) live: Vec<u64>,
    tracking: bool,
    dirty: Set,
    kept: Set,
    pub(super) frozen: bool,
    pub(super) running: bool,
}

/// A request that was answered, with the set that belongs to it.
pub(super) type Answered = (Request, Answer, Option<Set>);

impl HostA {
    pub(super) fn new(random: &mut Random) -> Self {
        let durable = vec![0; PAGES];
        let mut host = Self {
            slots: Slots::new(),
            durable,
            released: false,
            witness: None,
            lost: false,
            process: None,
            met: Met::new(),
        };
        host.start(random);
        host
    }

    pub(super) fn start(&mut self, random: &mut Random) {
        let machine = Origin::new(self.slots.read_origin(), random.next());
        let running = machine.may_run();
        self.process = Some(ProcessA {
            machine,
            effect: None,
            waiting: Vec::new(),
            live: self.durable.clone(),
            tracking: false,
            dirty: Set::new(),
            kept: Set::new(),
            frozen: !running,
            running,
        });
    }

    /// The process dies; what it was doing may be done, or in part.
    pub(super) fn crash(&mut self, random: &mut Random) {
        if let Some(effect) = self.process.as_mut().and_then(|process| process.effect.take()) {
            self.meet(&effect, "cut short");
            self.carry_out(random, &effect, true);
        }
        self.process = None;
    }

    fn meet(&mut self, effect: &OriginEffect, how: &'static str) {
        *self.met.entry((format!("origin {}", kind(effect)), how)).or_default() += 1;
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.running)
    }

    pub(super) fn phase(&self) -> Option<Phase> {
        self.process.as_ref().map(|process| process.machine.phase())
    }

    /// The effect that is under way ends.
    pub(super) fn finish(&mut self, random: &mut Random, fails: bool) -> Vec<Answered> {
        let Some(effect) = self.process.as_mut().and_then(|process| process.effect.take()) else {
            return Vec::new();
        };
        self.meet(&effect, if fails { "failed" } else { "done" });
        self.carry_out(random, &effect, fails);
        let Some(process) = &mut self.process else { return Vec::new() };
        process.machine.handle_result(if fails { Err(format!("{effect:?} fails")) } else { Ok(()) });
        process.ask_again()
    }

    /// Whether it fails or is cut short: then anything may have been done of it.
    fn carry_out(&mut self, random: &mut Random, effect: &OriginEffect, fails: bool) {
        let Some(process) = &mut self.process else { return };
        let done = !fails || random.chance(50);
        match *effect {
            OriginEffect::Track => {
                process.tracking = done;
                process.dirty.clear();
                process.kept.clear();
            }
            OriginEffect::TakeRound { .. } => {
                process.kept = std::mem::take(&mut process.dirty);
                if fails {
                    process.kept.retain(|_| random.chance(50));
                }
            }
            OriginEffect::Record(phase) => self.slots.write_origin(random, fails, phase),
            OriginEffect::Suspend => process.running &= !done,
            OriginEffect::Freeze { confirmed, .. } => {
                assert!(!process.running, "regions are frozen under a running application");
                let mut last = std::mem::take(&mut process.dirty);
                if !confirmed {
                    last.append(&mut process.kept);
                }
                process.kept = last;
                process.frozen = done;
                for (durable, live) in self.durable.iter_mut().zip(&process.live) {
                    if !fails || random.chance(50) {
                        *durable = *live;
                    }
                }
                // What was done in part is no witness.
                self.witness = (!fails).then(|| process.live.clone());
            }
            OriginEffect::Thaw => process.frozen &= !done,
            OriginEffect::Resume => {
                assert!(!process.frozen, "the application is resumed on frozen regions");
                process.running |= done;
            }
            OriginEffect::Untrack => process.tracking &= !done,
            OriginEffect::Keep => {}
            OriginEffect::Release => self.released |= done,
        }
    }
}

impl ProcessA {
    pub(super) fn write(&mut self, page: usize, value: u64) {
        assert!(!self.frozen, "a frozen region is written to");
        self.live[page] = value;
        if self.tracking {
            self.dirty.insert(page);
        }
    }

    pub(super) fn request(&mut self, request: Request) -> Option<Answered> {
        let answer = self.machine.handle_request(request);
        match answer {
            Answer::Wait => {
                if !self.waiting.contains(&request) {
                    self.waiting.push(request);
                }
                None
            }
            Answer::Done(Reply::Taken { .. } | Reply::Offered { .. }) => {
                Some((request, answer, Some(self.kept.clone())))
            }
            answer => Some((request, answer, None)),
        }
    }

    /// What had to wait.
    pub(super) fn ask_again(&mut self) -> Vec<Answered> {
        std::mem::take(&mut self.waiting).into_iter().filter_map(|request| self.request(request)).collect()
    }

    /// Whether nothing of any migration is left.
    pub(super) fn is_clean(&self) -> bool {
        !self.frozen && !self.tracking && self.waiting.is_empty()
    }
}
