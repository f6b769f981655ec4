//! What is copied before the switch, and the switch.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use pagewire_core::chunk::ByteRange;
use pagewire_core::migrate::control::Costs;
use pagewire_core::migrate::{Controller, Decision, Last, Mode, Next, Phase};
use pagewire_core::wire::MigrateStep;

use super::driving::Inner;
use crate::engine::migration::incoming::is_passing;
use crate::engine::migration::transfer::Carried;
use crate::error::{Error, ErrorKind, Result};

/// What a switch takes besides bytes, before anything was measured.
const COSTS: Costs = Costs {
    suspend: Duration::from_millis(2),
    record: Duration::from_millis(1),
    resume: Duration::from_millis(1),
};

/// From so many bytes on, what has come is made durable at home before the next round, so that the switch need not wait for it.
const SETTLED: u64 = 16 << 20;

/// How often the origin is asked how much is written, while something long is pulled.
const LOOK: Duration = Duration::from_secs(1);

/// How often it is asked how far a witness is that is waited for.
const LOOK_AT_WITNESS: Duration = Duration::from_millis(50);

/// What a look has shown, of all regions.
pub(super) struct Looked {
    /// How many bytes they have.
    pub(super) length: u64,
    /// How many bytes of pages were written since the last look.
    pub(super) written: u64,
    /// How long ago that was.
    pub(super) time: Duration,
}

impl Inner {
    /// Copies until the application is suspended, what has to be here is here, and it is to be accepted.
    pub(super) fn copy(&self) -> Result<()> {
        let goals = self.options.goals;
        let mut controller = Controller::new(goals, COSTS);
        // The wait for a good moment is no part of it.
        let began = {
            let state = self.lock();
            state.times.began + state.times.waited
        };
        controller.handle_round_trip(self.incoming()[0].round_trip());
        controller.handle_begun(began.elapsed());
        self.reach_witnesses()?;
        // Who switches at once needs to know nothing but how far a witness is.
        if goals.mode != Mode::PostCopy || !self.options.witnesses.is_empty() {
            self.look_for(&mut controller, began)?;
        }
        let mut last = began.elapsed();
        loop {
            let decision = controller.decide(began.elapsed(), self.missing(), 0);
            self.decided(&decision);
            match decision.next {
                Next::Pull => {
                    if let Some(decision) = self.pull(&mut controller, began)? {
                        self.decided(&decision);
                        return self.act_once_witnessed(&decision, &mut controller, began);
                    }
                }
                Next::Round => {
                    let number = self.with(|machine| machine.start_round()).map_err(|_| super::not_now())?;
                    self.wait_for(|state| (state.round() == Some(number)).then_some(()))?;
                    let (now, before) = (began.elapsed(), std::mem::replace(&mut last, began.elapsed()));
                    let mut state = self.lock();
                    state.report.rounds += 1;
                    let bytes = state.sets.iter().map(ByteRange::total).sum();
                    for (one, set) in self.incoming().iter().zip(&state.sets) {
                        one.frequency().handle_round(set, now - before);
                    }
                    drop(state);
                    controller.handle_round(now, bytes);
                }
                Next::Witness => self.await_witness(&mut controller, began)?,
                Next::Switch(_) | Next::Abort => return self.act(&decision),
            }
        }
    }

    /// Lets the witness come nearer, and looks how far it is.
    fn await_witness(&self, controller: &mut Controller, began: Instant) -> Result<()> {
        self.rest(LOOK_AT_WITNESS)?;
        self.look_for(controller, began)
    }

    /// Does what was decided while something was pulled, as soon as the witness has enough.
    fn act_once_witnessed(
        &self,
        decision: &Decision,
        controller: &mut Controller,
        began: Instant,
    ) -> Result<()> {
        let Next::Switch(last) = decision.next else { return self.act(decision) };
        while let Some(kept) = controller.witness(began.elapsed(), self.missing(), last) {
            self.decided(&kept);
            if kept.next == Next::Abort {
                return self.act(&kept);
            }
            self.await_witness(controller, began)?;
        }
        self.act(decision)
    }

    fn act(&self, decision: &Decision) -> Result<()> {
        match decision.next {
            Next::Switch(last) => self.switch(last),
            _ => {
                let text = format!("the goals cannot be reached: {}", decision.reason);
                Err(Error::new(ErrorKind::Cancelled, text))
            }
        }
    }

    fn decided(&self, decision: &Decision) {
        let text = decision.to_string();
        let mut state = self.lock();
        // That is decided again and again.
        let waits = decision.next == Next::Witness;
        let is_known = std::mem::replace(&mut state.waits, waits) && waits;
        if !is_known {
            tracing::info!("{text}");
            state.report.decisions.push(text);
        }
    }

    /// How many bytes have not arrived.
    pub(super) fn missing(&self) -> u64 {
        self.incoming().iter().map(|one| ByteRange::total(&one.arriving.absent())).sum()
    }

    pub(super) fn moved(&self) -> u64 {
        self.incoming().iter().map(|one| one.moved()).sum()
    }

    /// Asks how long the regions are, and how much was written since this was asked last.
    pub(super) fn look(&self) -> Result<Looked> {
        let mut looked = Looked { length: 0, written: 0, time: Duration::ZERO };
        for (index, one) in self.incoming().iter().enumerate() {
            let answer = one.step(MigrateStep::Look)?;
            self.told_of_witness(index, &answer)?;
            // What is new of a longer one is in the next set.
            one.arriving.resize(answer.length)?;
            looked.length += answer.length;
            looked.written += answer.written;
            looked.time = looked.time.max(Duration::from_micros(answer.micros));
        }
        Ok(looked)
    }

    /// Looks, and tells the controller.
    fn look_for(&self, controller: &mut Controller, began: Instant) -> Result<()> {
        let looked = self.look()?;
        controller.handle_length(looked.length);
        controller.handle_look(began.elapsed(), looked.written, looked.time);
        if let Some(lacking) = self.lacking() {
            controller.handle_witness(began.elapsed(), lacking.missing, lacking.sent);
        }
        Ok(())
    }

    /// Pulls what is missing. Answers what was decided meanwhile, if that is to stop.
    fn pull(&self, controller: &mut Controller, began: Instant) -> Result<Option<Decision>> {
        let started = self.moved();
        let watched = RefCell::new((controller, None, self.moved(), Instant::now(), Instant::now(), None));
        let interrupted = || {
            let mut watched = watched.borrow_mut();
            let (controller, decision, before, since, looked, lost) = &mut *watched;
            let (moved, now) = (self.moved(), Instant::now());
            if moved > *before {
                controller.handle_sent(moved - *before, now - *since);
            }
            (*before, *since) = (moved, now);
            if now - *looked > LOOK {
                *looked = now;
                // What cannot be asked now is asked later; a witness that is given up ends it.
                *lost = self.look_for(controller, began).err().filter(|error| !is_passing(error));
            }
            if decision.is_none() {
                *decision = controller.interrupt(began.elapsed(), self.missing(), 0);
            }
            decision.is_some() || lost.is_some() || self.is_over()
        };
        for one in self.incoming() {
            // What is written often goes last.
            let plan = one.frequency().plan(&one.arriving.absent(), None);
            let carried = one.carry(&plan.send, &interrupted)?;
            interrupted();
            if carried == Carried::InPart {
                break;
            }
        }
        let (_, decision, .., lost) = watched.into_inner();
        match (decision, self.failure().or(lost)) {
            (None, Some(error)) => return Err(error),
            (Some(decision), _) => return Ok(Some(decision)),
            (None, None) => {}
        }
        if self.moved() - started >= SETTLED {
            let durable = self.incoming().iter().filter(|one| one.arriving.home().is_durable());
            durable.map(|one| one.arriving.settle()).collect::<Result<Vec<_>>>()?;
        }
        Ok(None)
    }

    fn settle(&self) -> Result<()> {
        self.incoming().iter().try_for_each(|one| one.arriving.settle().map(drop))
    }

    /// Has the application suspended, and accepts it when as much is here as has to be.
    fn switch(&self, last: Last) -> Result<()> {
        let before = self.moved();
        if before > 0 && last == Last::Leave {
            // Of a pull that was called off there is more on its way, in front of the answer.
            self.incoming().iter().for_each(|one| one.drain());
            tracing::debug!("nothing is on its way");
        }
        self.lock().pages_follow = last == Last::Send;
        self.with(|machine| machine.start_switch()).map_err(|_| super::not_now())?;
        self.wait_for(|state| (state.phase() == Phase::Held).then_some(()))?;
        if last == Last::Send {
            for one in self.incoming() {
                if one.carry(&[], &|| self.is_over())? == Carried::InPart {
                    return Err(self.failure().unwrap_or_else(super::not_now));
                }
            }
        }
        tracing::debug!(bytes = self.moved() - before, "what has to be here is here");
        if last == Last::Leave {
            self.rely_on_witnesses()?;
        }
        // What was not flushed would be given up with the lease that passes to the application.
        self.settle()?;
        tracing::debug!("what is here is durable");
        self.lock().report.mode = match last {
            Last::Send => Mode::PreCopy,
            Last::Leave if before == 0 => Mode::PostCopy,
            Last::Leave => Mode::Hybrid,
        }
        .name()
        .into();
        self.with(|machine| machine.accept()).map_err(|_| super::not_now())
    }
}
