//! Two hosts with the real machines, and everything that can go wrong between them and within them.
//!
//! Each *seed* is one run. First comes chaos: one thing after another happens, at random: a program writes, or
//! flushes; a message arrives, late, twice or not at all; the network is cut; an effect ends, or fails, having
//! been done, or in part, or not; a process dies, with everything but what was durable, and what was being
//! written torn; the origin's host is lost for ever, where a witness has the regions; an operator has a say; somebody else asks for something. Then all is well again, and the run
//! has to come to its end.
//!
//! Pages hold numbers that never come twice, so that it is known of each page which write it should show. What is
//! checked after every single step is in [`World::check`](world::World::check), what holds at the end in
//! [`World::check_end`](world::World::check_end).
//!
//! `PAGEWIRE_TEST_SEEDS` says how many seeds, `PAGEWIRE_TEST_SEED` runs one of them and prints what happened.

mod disk;
mod events;
mod host_a;
mod host_b;
mod world;

/// Random numbers that a seed decides: SplitMix64 (Steele, Lea, Flood, 2014).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `below`.
    pub(super) fn draw(&mut self, below: u64) -> u64 {
        self.next() % below
    }

    /// True `percent` times of a hundred.
    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.draw(100) < percent
    }

    /// One of them, if there is any.
    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        if of.is_empty() { None } else { Some(of[self.draw(of.len() as u64) as usize]) }
    }
}

/// Runs seeds from `first` on.
fn run(first: u64, count: u64) {
    let named = |name: &str| {
        let value = std::env::var(name).ok()?;
        Some(value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
    };
    if let Some(seed) = named("PAGEWIRE_TEST_SEED") {
        eprintln!("PAGEWIRE_TEST_SEED={seed}");
        world::World::new(seed, true).run(&mut world::Met::new());
        return;
    }
    let count = named("PAGEWIRE_TEST_SEEDS").unwrap_or(count);
    let mut ends = std::collections::BTreeMap::new();
    let mut met = world::Met::new();
    for seed in first..first + count {
        let run = || world::World::new(seed, false).run(&mut met);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(end) => *ends.entry(end).or_insert(0u64) += 1,
            Err(panic) => {
                eprintln!("this was PAGEWIRE_TEST_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{count} seeds have ended like this: {ends:?}; this was met: {met:#?}");
    if count < 2000 {
        return;
    }
    // A simulation in which nothing much happens would find nothing.
    for end in [world::End::Stayed, world::End::Moved, world::End::Alone, world::End::TakenBack] {
        assert!(ends.contains_key(&end), "no run has ended with {end:?}");
    }
    let effects: std::collections::BTreeSet<&str> = met.keys().map(|(effect, _)| effect.as_str()).collect();
    assert_eq!(effects.len(), 13 + 8, "not every effect was met: {effects:?}");
    for effect in effects {
        for how in ["done", "failed", "cut short"] {
            assert!(met.contains_key(&(effect.to_owned(), how)), "{effect} was never {how}");
        }
    }
}

#[test]
fn nothing_is_lost_and_nothing_runs_twice_whatever_goes_wrong() {
    run(1, 2000);
}
