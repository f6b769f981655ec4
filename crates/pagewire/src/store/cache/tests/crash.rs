//! A machine that stops at any operation of a cache's life, killed or without power.

use super::*;

/// What may be found after a crash.
struct Plan {
    random: Random,
    /// What the writer sees.
    staged: Vec<u8>,
    /// What was flushed locally last, and what was being flushed locally.
    acknowledged: Vec<u8>,
    tried: Vec<u8>,
}

impl Plan {
    fn new(seed: u64, server: &Server) -> Self {
        let bytes = server.bytes();
        Self { random: Random(seed), staged: bytes.clone(), acknowledged: bytes.clone(), tried: bytes }
    }

    /// A life of a cache, until its machine stops.
    fn run(&mut self, machine: &Machine, disks: &Disks, server: &Arc<Server>) -> Result<()> {
        let reader = disks.open(server, false)?;
        assert!(epoch_of(&reader) == server.bytes());
        reader.settle();
        drop(reader);
        if machine.has_stopped() {
            return Ok(());
        }
        let cache = disks.open(server, true)?;
        cache.fence()?;
        for round in 0..3 {
            for _ in 0..2 {
                let pages = self.change(&cache)?;
                if machine.has_stopped() {
                    return Ok(());
                }
                self.tried = self.staged.clone();
                if self.staged.len() as u64 != cache.stage().length {
                    cache.keep_length(self.staged.len() as u64)?;
                }
                keep(&cache, &self.staged, pages)?;
                cache.flush_local()?;
                self.acknowledged = self.staged.clone();
            }
            cache.settle();
            if machine.has_stopped() {
                return Ok(());
            }
            if round == 1 {
                // What is flushed is newer than what is kept.
                self.change(&cache)?;
            }
            // The machine may stop after it, or at what follows it.
            cache.flush_all()?;
            self.acknowledged = self.staged.clone();
            self.tried = self.staged.clone();
            cache.settle();
            if machine.has_stopped() {
                return Ok(());
            }
            assert!(epoch_of(&cache) == self.staged);
            cache.settle();
        }
        Ok(())
    }

    /// Writes something to some pages, and answers to which.
    fn change(&mut self, cache: &CacheStore) -> Result<Vec<u64>> {
        let mut pages = Vec::new();
        if self.random.below(3) == 0 {
            let length = 10 * PAGE_SIZE + self.random.below(20 * PAGE_SIZE);
            let before = self.staged.len() as u64;
            wait(|done| cache.set_length(length, done))?;
            cache.keep_length(length)?;
            self.staged.resize(length as usize, 0);
            // As a mapping has it: the rest of the page at the end is written with zeroes.
            let end = before.min(length);
            if !end.is_multiple_of(PAGE_SIZE) {
                pages.push(end / PAGE_SIZE);
            }
        }
        for _ in 0..1 + self.random.below(3) {
            let page = self.random.below((self.staged.len() as u64).div_ceil(PAGE_SIZE));
            let range = ByteRange::of_pages(page..page + 1).clamp_to(self.staged.len() as u64);
            let value = self.random.below(4) as u8 * 50;
            let bytes = &mut self.staged[range.start as usize..range.end as usize];
            bytes.fill(value);
            cache.write_bytes(range.start, bytes)?;
            pages.push(page);
        }
        pages.sort_unstable();
        pages.dedup();
        Ok(pages)
    }
}

#[test]
fn a_machine_that_stops_at_any_operation_has_one_local_flush_or_the_next() {
    for seed in 0..3 {
        let mut operation = 0;
        loop {
            let machine = Machine::stopping_at(operation);
            let (disks, server) = (Disks::new(&machine), Server::new());
            let mut plan = Plan::new(seed, &server);
            let ended = plan.run(&machine, &disks, &server);
            if !machine.has_stopped() {
                ended.unwrap();
                assert!(operation > 80, "{operation} operations");
                break;
            }
            let restart = operation.is_multiple_of(2);
            if restart {
                server.restart();
            }
            for outcome in 0..5u64 {
                let what = format!("seed {seed}, operation {operation}, outcome {outcome}");
                let mut random = Random(seed << 32 | (operation as u64) << 8 | outcome);
                check(&what, &plan, &disks, &server, &mut random, outcome);
            }
            operation += 1;
        }
    }
}

/// Opens what is left, in several ways.
fn check(what: &str, plan: &Plan, disks: &Disks, server: &Arc<Server>, random: &mut Random, outcome: u64) {
    let running = Machine::stopping_at(usize::MAX);
    let after = match outcome {
        0 => disks.after_kill(&running),
        _ => disks.after_power_loss(&running, random),
    };
    let newest = server.bytes();
    // On a copy, since the next writer is to find what the machine has left.
    match after.after_kill(&running).open(server, false) {
        Ok(reader) => {
            assert!(epoch_of(&reader) == newest, "{what}");
            // What turns out to be missing only when the image itself is looked at is pulled again.
            if !reader.check().unwrap() {
                assert!(epoch_of(&reader) == newest, "{what}");
            }
            assert!(reader.check().unwrap(), "{what}: it is complete");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Changed, "{what}: {error}"),
    }
    let writer = after.open(server, true).unwrap_or_else(|error| panic!("{what}: {error}"));
    // A server of this test forgets its tokens no more than a real one; here it must not learn of ours.
    let found = {
        let before = writer.unpushed().pages().len();
        let found = writer.recovered_view(&newest);
        assert_eq!(before, writer.unpushed().pages().len());
        found
    };
    assert!(found == plan.acknowledged || found == plan.tried, "{what}: neither of two local flushes");
    assert!(epoch_of(&writer) == newest, "{what}");
}

impl CacheStore {
    /// What a writer would see, where the newest epoch has these bytes.
    fn recovered_view(&self, newest: &[u8]) -> Vec<u8> {
        let unpushed = self.unpushed();
        let mut bytes = newest.to_vec();
        if unpushed.is_empty() {
            return bytes;
        }
        let (cut, length) = unpushed.lengths();
        bytes.truncate(cut as usize);
        bytes.resize(length as usize, 0);
        for page in unpushed.pages() {
            let range = ByteRange::of_pages(page..page + 1).clamp_to(length);
            let kept = unpushed.read(page).unwrap().unwrap();
            bytes[range.start as usize..range.end as usize].copy_from_slice(&kept[..range.len() as usize]);
        }
        bytes
    }
}

/// The same to the end: what is found is flushed, by a writer whose machine may stop, too.
#[test]
fn a_machine_that_stops_again_and_again_loses_nothing() {
    for seed in 0..40u64 {
        let (server, mut random) = (Server::new(), Random(seed));
        let mut disks = Disks::new(&Machine::stopping_at(usize::MAX));
        let mut plan = Plan::new(seed, &server);
        for life in 0..12 {
            let what = format!("seed {seed}, life {life}");
            let machine = Machine::stopping_at(random.below(60) as usize);
            disks = match random.below(2) {
                0 => disks.after_kill(&machine),
                _ => disks.after_power_loss(&machine, &mut random),
            };
            // Looked at from outside, before this life changes anything.
            let running = Machine::stopping_at(usize::MAX);
            let look = disks.after_kill(&running).open(&server, true);
            let found =
                look.unwrap_or_else(|error| panic!("{what}: {error}")).recovered_view(&server.bytes());
            assert!(
                found == plan.acknowledged || found == plan.tried,
                "{what}: neither of two local flushes"
            );
            (plan.staged, plan.acknowledged, plan.tried) = (found.clone(), found.clone(), found.clone());
            let Ok(cache) = disks.open(&server, true) else { continue };
            if cache.fence().is_err() || machine.has_stopped() {
                continue;
            }
            assert!(staged_of(&cache) == found, "{what}");
            drop(cache);
            // Errors are those of a machine that has stopped.
            if let Err(error) = plan.live(&machine, &disks, &server) {
                assert!(machine.has_stopped(), "{what}: {error}");
            }
        }
    }
}

impl Plan {
    /// Another writer's life.
    fn live(&mut self, machine: &Machine, disks: &Disks, server: &Arc<Server>) -> Result<()> {
        let cache = disks.open(server, true)?;
        cache.fence()?;
        if machine.has_stopped() {
            return Ok(());
        }
        for _ in 0..2 {
            let pages = self.change(&cache)?;
            self.tried = self.staged.clone();
            keep(&cache, &self.staged, pages)?;
            cache.flush_local()?;
            self.acknowledged = self.staged.clone();
        }
        cache.flush_all()?;
        self.acknowledged = self.staged.clone();
        self.tried = self.staged.clone();
        assert!(server.bytes() == self.staged);
        Ok(())
    }
}
