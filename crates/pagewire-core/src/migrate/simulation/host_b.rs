//! The destination's host: the machine, and what the engine keeps for it.

use super::super::{
    Cause, Destination, DestinationEffect, DestinationPhase, HomeSets, MigrationId, Outcome, Phase, Request,
};
use super::Random;
use super::disk::{HomeFile, Slots};
use super::host_a::Set;
use super::world::{Met, PAGES, REGIONS, kind};
use crate::bitmap::BitSet;

/// Pages of one region.
const PER_REGION: usize = PAGES / REGIONS;

pub(super) struct HostB {
    pub(super) slots: Slots,
    files: [HomeFile; REGIONS],
    stores: [Store; REGIONS],
    pub(super) process: Option<ProcessB>,
    /// Goes with what was asked for, so that what comes after a restart is not for another life.
    lives: u64,
    pub(super) met: Met,
}

/// The store of one region.
struct Store {
    epoch: u64,
    pages: Vec<u64>,
}

/// What dies with the process.
pub(super) struct ProcessB {
    pub(super) machine: Option<Destination>,
    effect: Option<DestinationEffect>,
    pub(super) running: bool,
    pub(super) pages: Vec<PageB>,
    flush: Option<Flush>,
}

/// What is known of a page.
#[derive(Clone, Copy)]
pub(super) struct PageB {
    /// None where it is still to be pulled.
    pub(super) local: Option<u64>,
    /// Changes when what was asked for before must not be used any more.
    pub(super) stamp: u64,
    /// Whether the store has it, durably, for good.
    pub(super) at_home: bool,
}

struct Flush {
    region: usize,
    /// Page, value, stamp.
    pages: Vec<(usize, u64, u64)>,
}

fn region_name(region: usize) -> [u8; 16] {
    [region as u8 + 1; 16]
}

fn pages_of(region: usize) -> std::ops::Range<usize> {
    region * PER_REGION..(region + 1) * PER_REGION
}

impl HostB {
    pub(super) fn new() -> Self {
        let mut host = Self {
            slots: Slots::new(),
            files: Default::default(),
            stores: std::array::from_fn(|_| Store { epoch: 1, pages: vec![0; PER_REGION] }),
            process: None,
            lives: 0,
            met: Met::new(),
        };
        host.start();
        host
    }

    /// What the record says, as if it were read by another process.
    pub(super) fn recorded(&self) -> Option<DestinationPhase> {
        self.slots.found
    }

    pub(super) fn is_owner(&self) -> bool {
        matches!(
            self.recorded(),
            Some(
                DestinationPhase::Accepted { .. }
                    | DestinationPhase::Home { .. }
                    | DestinationPhase::Completed { .. }
            )
        )
    }

    fn meet(&mut self, effect: &DestinationEffect, how: &'static str) {
        *self.met.entry((format!("destination {}", kind(effect)), how)).or_default() += 1;
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.running)
    }

    /// Whether it is carrying out an effect.
    pub(super) fn is_busy(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.effect.is_some())
    }

    pub(super) fn phase(&self) -> Option<Phase> {
        Some(self.process.as_ref()?.machine.as_ref()?.phase())
    }

    /// Of each page what a restart would find at home; only for an owner.
    pub(super) fn at_home(&mut self) -> Vec<Option<u64>> {
        let Some(DestinationPhase::Accepted { id, .. }) = self.recorded() else {
            return self
                .stores
                .iter()
                .flat_map(|store| store.pages.iter().map(|value| Some(*value)))
                .collect();
        };
        let mut found = Vec::new();
        for (region, store) in self.stores.iter().enumerate() {
            let sets = self.files[region]
                .read(id, region_name(region), PER_REGION as u64)
                .expect("one copy is whole");
            let set = sets.at(store.epoch).expect("one set is of the store's epoch");
            found.extend((0..PER_REGION).map(|page| set.contains(page as u64).then(|| store.pages[page])));
        }
        found
    }

    pub(super) fn start(&mut self) {
        self.lives += 1;
        let machine = self.slots.read_destination().map(Destination::from_record);
        let found = if self.is_owner() { self.at_home() } else { vec![None; PAGES] };
        let stamp = self.lives << 32;
        self.process = Some(ProcessB {
            machine,
            effect: None,
            running: false,
            pages: found.into_iter().map(|local| PageB { local, stamp, at_home: local.is_some() }).collect(),
            flush: None,
        });
    }

    pub(super) fn crash(&mut self, random: &mut Random) {
        let Some(process) = &mut self.process else { return };
        let (effect, flush) = (process.effect.take(), process.flush.take());
        if let Some(effect) = effect {
            self.meet(&effect, "cut short");
            self.carry_out(random, effect, true);
        }
        if let Some(flush) = flush.filter(|_| random.chance(50)) {
            self.apply(&flush);
        }
        self.process = None;
    }

    /// An effect begins, or the one that is under way ends.
    pub(super) fn step_effect(&mut self, random: &mut Random, fails: bool) -> Option<DestinationEffect> {
        let process = self.process.as_mut()?;
        let machine = process.machine.as_mut()?;
        let Some(effect) = process.effect else {
            // The sets that go with the record have to be those of the store's epoch.
            if process.flush.is_none() || machine.phase() != Phase::Accepting {
                process.effect = machine.poll_effect();
            }
            return process.effect;
        };
        process.effect = None;
        self.meet(&effect, if fails { "failed" } else { "done" });
        self.carry_out(random, effect, fails);
        let machine = self.process.as_mut()?.machine.as_mut()?;
        machine.handle_result(if fails { Err(format!("{effect:?} fails")) } else { Ok(()) });
        Some(effect)
    }

    fn carry_out(&mut self, random: &mut Random, effect: DestinationEffect, fails: bool) {
        let done = !fails || random.chance(50);
        match effect {
            DestinationEffect::Record(phase) => {
                if let DestinationPhase::Accepted { id, .. } = phase {
                    for region in 0..REGIONS {
                        let sets = self.sets(region, id, &[]);
                        // What fails here fails before the record.
                        let cut = fails && random.chance(30);
                        self.files[region].write(random, cut, sets);
                        if cut {
                            return;
                        }
                    }
                }
                self.slots.write_destination(random, fails, phase);
            }
            DestinationEffect::Resume => self.set_running(|running| running | done),
            DestinationEffect::Suspend => self.set_running(|running| running & !done),
            DestinationEffect::Discard => {
                if let Some(process) = &mut self.process {
                    process.forget();
                }
            }
        }
    }

    fn set_running(&mut self, change: impl Fn(bool) -> bool) {
        if let Some(process) = &mut self.process {
            process.running = change(process.running);
        }
    }

    /// What is at home in a region, and will be when `flushed` is.
    fn sets(&self, region: usize, id: MigrationId, flushed: &[(usize, u64, u64)]) -> HomeSets {
        let epoch = self.stores[region].epoch;
        let mut pages = BitSet::new(PER_REGION as u64);
        if let Some(process) = &self.process {
            for page in pages_of(region).filter(|page| process.pages[*page].at_home) {
                pages.insert((page % PER_REGION) as u64);
            }
        }
        let mut next_pages = pages.clone();
        for (page, ..) in flushed {
            next_pages.insert((page % PER_REGION) as u64);
        }
        let next_epoch = epoch + u64::from(!flushed.is_empty());
        HomeSets { id, region: region_name(region), sequence: 0, epoch, pages, next_epoch, next_pages }
    }

    /// A flush begins, or the one that is under way ends. Answers what an application may count on from now on.
    pub(super) fn step_flush(&mut self, random: &mut Random, fails: bool) -> Vec<(usize, u64)> {
        let Some(process) = &mut self.process else { return Vec::new() };
        let Some(machine) = &process.machine else { return Vec::new() };
        if let Some(flush) = process.flush.take() {
            if fails {
                return Vec::new();
            }
            let owner = machine.may_run();
            self.apply(&flush);
            let Some(process) = &mut self.process else { return Vec::new() };
            for (page, _, stamp) in &flush.pages {
                // Unless it was found to be old meanwhile.
                let known = &mut process.pages[*page];
                known.at_home |= known.stamp == *stamp;
            }
            return flush.pages.iter().filter(|_| owner).map(|(page, value, _)| (*page, *value)).collect();
        }
        // The record may say Accepted from when that is written until another one is durable: the sets that
        // belong to it have to be those of the store's epoch all the while.
        let accepting =
            matches!(process.effect, Some(DestinationEffect::Record(DestinationPhase::Accepted { .. })));
        if accepting || matches!(machine.phase(), Phase::Aborting | Phase::Ousted) {
            return Vec::new();
        }
        let region = random.draw(REGIONS as u64) as usize;
        let pages: Vec<_> = pages_of(region)
            .filter_map(|page| {
                let PageB { local, stamp, at_home } = process.pages[page];
                let value = local?;
                let unchanged = at_home && self.stores[region].pages[page % PER_REGION] == value;
                (!unchanged).then_some((page, value, stamp))
            })
            .collect();
        if pages.is_empty() {
            return Vec::new();
        }
        if matches!(machine.phase(), Phase::PostCopy | Phase::Completing) {
            let id = machine.id();
            let sets = self.sets(region, id, &pages);
            self.files[region].write(random, fails, sets);
            if fails {
                return Vec::new();
            }
        }
        if let Some(process) = &mut self.process {
            process.flush = Some(Flush { region, pages });
        }
        Vec::new()
    }

    fn apply(&mut self, flush: &Flush) {
        let store = &mut self.stores[flush.region];
        store.epoch += 1;
        for (page, value, _) in &flush.pages {
            store.pages[page % PER_REGION] = *value;
        }
    }

    /// What the region is at home, whatever else there is.
    pub(super) fn stored(&self) -> Vec<u64> {
        self.stores.iter().flat_map(|store| store.pages.iter().copied()).collect()
    }
}

impl ProcessB {
    /// Whether something is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.effect.is_some() || self.flush.is_some()
    }

    fn forget(&mut self) {
        for page in &mut self.pages {
            *page = PageB { local: None, stamp: page.stamp + 1, at_home: false };
        }
        self.flush = None;
    }

    pub(super) fn begin(&mut self, id: MigrationId) {
        self.forget();
        self.machine = Some(Destination::new(id));
    }

    pub(super) fn write(&mut self, page: usize, value: u64) {
        // What is at home stays so, as it was. And a flush under way brings home what the page held before.
        self.pages[page].local = Some(value);
    }

    pub(super) fn pulled(&mut self, page: usize, value: u64, stamp: u64) {
        let page = &mut self.pages[page];
        if page.local.is_none() && page.stamp == stamp {
            page.local = Some(value);
        }
    }

    pub(super) fn outcome(&mut self, request: Request, outcome: Outcome, set: Option<&Set>) {
        let Some(machine) = &mut self.machine else { return };
        if machine.handle_outcome(request, outcome) {
            for page in set.into_iter().flatten() {
                let page = &mut self.pages[*page];
                *page = PageB { local: None, stamp: page.stamp + 1, at_home: false };
            }
        }
    }

    pub(super) fn has_everything(&self) -> bool {
        self.pages.iter().all(|page| page.local.is_some())
    }

    /// What an engine might decide, at random.
    pub(super) fn decide(&mut self, random: &mut Random) -> Option<String> {
        let home = self.pages.iter().all(|page| page.at_home);
        let machine = self.machine.as_mut()?;
        Some(match machine.phase() {
            Phase::Copying if random.chance(60) => format!("{:?}", machine.start_round()),
            Phase::Copying => format!("{:?}", machine.start_switch()),
            Phase::Held => format!("{:?}", machine.accept()),
            Phase::PostCopy if home => format!("{:?}", machine.handle_everything_home()),
            _ => return None,
        })
    }

    /// What an engine decides that wants to be done.
    pub(super) fn proceed(&mut self) -> Option<String> {
        let home = self.pages.iter().all(|page| page.at_home);
        let everything = self.has_everything();
        let machine = self.machine.as_mut()?;
        Some(match machine.phase() {
            Phase::Copying if everything => format!("{:?}", machine.start_switch()),
            Phase::Held => format!("{:?}", machine.accept()),
            Phase::PostCopy if home => format!("{:?}", machine.handle_everything_home()),
            _ => return None,
        })
    }

    pub(super) fn abort(&mut self) -> bool {
        self.machine.as_mut().is_some_and(|machine| machine.handle_abort(Cause::Operator).is_ok())
    }

    pub(super) fn is_finished(&self) -> bool {
        self.machine.as_ref().is_none_or(Destination::is_finished) && self.effect.is_none()
    }
}
