//! Random lives of a cache against plain bytes.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const STEPS: usize = 20_000;

/// What is known from outside.
struct Model {
    random: Random,
    epochs: BTreeMap<u64, Vec<u8>>,
    /// What the writer sees, and which pages it has changed since the last flush, and since it kept them.
    staged: Vec<u8>,
    changed: BTreeSet<u64>,
    unkept: BTreeSet<u64>,
    /// What was flushed locally since the last flush, if anything was.
    local: Option<Vec<u8>>,
    /// Whether the writer has not written anything yet.
    untouched: bool,
    counts: BTreeMap<&'static str, usize>,
}

impl Model {
    fn newest(&self) -> &Vec<u8> {
        self.epochs.last_key_value().unwrap().1
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn range(&mut self, length: u64) -> ByteRange {
        let start = self.random.below(length.max(1));
        let long = if self.random.below(4) == 0 { length } else { 3 * PAGE_SIZE };
        let range = ByteRange::new(start, (start + 1 + self.random.below(long.max(1))).min(length));
        match self.random.below(2) {
            0 => range,
            _ => range.align_out(PAGE_SIZE).clamp_to(length),
        }
    }

    /// A reader begins at the newest epoch.
    fn reader(&mut self) {
        self.staged.clear();
    }

    /// A writer begins: with what was flushed locally.
    fn writer(&mut self) {
        self.staged = self.local.clone().unwrap_or_else(|| self.newest().clone());
        self.unkept.clear();
        self.untouched = true;
        let newest = self.newest();
        let pages = (self.staged.len().max(newest.len()) as u64).div_ceil(PAGE_SIZE);
        let page_of = |bytes: &[u8], page: u64| {
            let range = ByteRange::of_pages(page..page + 1).clamp_to(bytes.len() as u64);
            bytes[range.start as usize..range.end as usize].to_vec()
        };
        self.changed =
            (0..pages).filter(|page| page_of(&self.staged, *page) != page_of(newest, *page)).collect();
    }

    /// Another writer makes an epoch.
    fn others(&mut self, server: &Server) {
        server.store.fence().unwrap();
        let mut bytes = self.newest().clone();
        for _ in 0..1 + self.random.below(3) {
            if self.random.below(5) == 0 {
                let length = self.random.below(CAPACITY);
                wait(|done| server.store.set_length(length, done)).unwrap();
                bytes.resize(length as usize, 0);
            }
            let range = self.range(bytes.len() as u64);
            let value = self.random.below(5) as u8 * 40;
            bytes[range.start as usize..range.end as usize].fill(value);
            server.store.write_bytes(range.start, &bytes[range.start as usize..range.end as usize]).unwrap();
        }
        let info = server.store.flush_all().unwrap();
        self.epochs.insert(info.epoch, bytes);
    }

    fn write(&mut self, cache: &CacheStore) {
        self.untouched = false;
        let length = self.staged.len() as u64;
        let draw = self.random.below(10);
        if draw == 0 || length == 0 {
            let length = self.random.below(CAPACITY) + 1;
            let before = self.staged.len() as u64;
            wait(|done| cache.set_length(length, done)).unwrap();
            cache.keep_length(length).unwrap();
            self.staged.resize(length as usize, 0);
            // As a mapping has it: what comes back is zero, and written.
            let end = length.div_ceil(PAGE_SIZE);
            for pages in [&mut self.changed, &mut self.unkept] {
                pages.retain(|page| *page < end);
                pages.extend(
                    (before.min(length) / PAGE_SIZE..end).take_while(|page| *page <= before / PAGE_SIZE),
                );
            }
            return;
        }
        let range = self.range(length);
        let value = if draw < 4 { 0 } else { self.random.below(250) as u8 };
        let bytes = &mut self.staged[range.start as usize..range.end as usize];
        bytes.fill(value);
        if draw < 3 {
            cache.zero_range(range).unwrap();
        } else {
            cache.write_bytes(range.start, bytes).unwrap();
        }
        let pages = touching(range);
        self.changed.extend(pages.clone());
        self.unkept.extend(pages);
    }

    fn flush_local(&mut self, cache: &CacheStore) {
        let pages = std::mem::take(&mut self.unkept);
        keep(cache, &self.staged, pages).unwrap();
        cache.flush_local().unwrap();
        self.local = Some(self.staged.clone());
    }

    fn flush(&mut self, cache: &CacheStore) {
        let info = cache.flush_all().unwrap();
        self.epochs.insert(info.epoch, self.staged.clone());
        self.changed.clear();
        self.unkept.clear();
        self.local = None;
    }

    /// The server is started again: the writer writes all of it once more.
    fn restart(&mut self, cache: &CacheStore, server: &Server) {
        server.restart();
        let length = self.staged.len() as u64;
        if self.untouched && cache.stage().recovered {
            // What was recovered is there before anybody writes it again.
            self.count("reads after a restart");
            assert_eq!(cache.stage().length, length);
            let there = ByteRange::new(0, length);
            let got = cache.read_bytes(there, STAGED).unwrap();
            assert!(got == self.staged[..there.end as usize], "what was recovered is gone");
        }
        self.untouched = false;
        let shortest = length.min(self.newest().len() as u64).min(self.shortest());
        wait(|done| cache.set_length(shortest, done)).unwrap();
        wait(|done| cache.set_length(length, done)).unwrap();
        for page in touching(ByteRange::new(0, length)) {
            let range = ByteRange::of_pages(page..page + 1).clamp_to(length);
            if self.changed.contains(&page) || range.end > shortest {
                cache
                    .write_bytes(range.start, &self.staged[range.start as usize..range.end as usize])
                    .unwrap();
            }
        }
    }

    fn shortest(&self) -> u64 {
        self.changed.first().map_or(u64::MAX, |page| page * PAGE_SIZE)
    }
}

fn run(seed: u64, steps: usize) -> BTreeMap<&'static str, usize> {
    println!("seed {seed}");
    let server = Server::new();
    let machine = Machine::stopping_at(usize::MAX);
    let mut disks = Disks::new(&machine);
    let epochs = BTreeMap::from([(server.info().epoch, server.bytes())]);
    let mut model = Model {
        random: Random(seed),
        epochs,
        staged: Vec::new(),
        changed: BTreeSet::new(),
        unkept: BTreeSet::new(),
        local: None,
        untouched: true,
        counts: BTreeMap::new(),
    };
    let mut cache: Option<(CacheStore, bool)> = None;
    let mut settled = true;
    for step in 0..steps {
        let what = format!("seed {seed}, step {step}");
        let draw = model.random.below(100);
        let (open, writes) = match cache.take() {
            Some(open) => open,
            None => {
                // A reader is refused after a flush of which nobody was told.
                let writes = model.local.is_some() || !settled || model.random.below(2) == 0;
                let files = disks.files().unwrap_or_else(|error| panic!("{what}: {error}"));
                let open = CacheStore::new(files, server.clone(), writes)
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                if writes {
                    open.fence().unwrap();
                    model.writer();
                    model.count("writers");
                } else {
                    model.reader();
                    model.count("readers");
                }
                (open, writes)
            }
        };
        match draw {
            0..4 => {
                // Killed, or without power, whatever was on its way; or ended in order.
                model.count("ends");
                // Whoever writes in between must not come between a flush and the word that it is done.
                let others = model.local.is_none() && model.random.below(2) == 0;
                settled = others;
                if others {
                    open.settle();
                }
                match model.random.below(3) {
                    0 => {}
                    1 => disks = disks.after_kill(&machine),
                    _ => disks = disks.after_power_loss(&machine, &mut model.random),
                }
                drop(open);
                if others {
                    model.others(&server);
                }
                if model.local.is_some() && model.random.below(6) == 0 {
                    refused(&what, &mut model, &disks, &server);
                }
                continue;
            }
            4..40 => {
                let info = open.info();
                let (epoch, bytes) = if writes && model.random.below(2) == 0 {
                    (STAGED, &model.staged)
                } else {
                    (info.epoch, &model.epochs[&info.epoch])
                };
                let (length, bytes) = (bytes.len() as u64, bytes.clone());
                let range = model.range(length);
                let got = open.read_bytes(range, epoch).unwrap_or_else(|error| panic!("{what}: {error}"));
                let right = got == bytes[range.start as usize..range.end as usize];
                assert!(right, "{what}: bytes {range} of epoch {epoch} are wrong");
            }
            40..90 if writes => model.write(&open),
            90..95 if writes => model.flush_local(&open),
            95..98 if writes => model.flush(&open),
            98 if writes => model.restart(&open, &server),
            99 if writes && model.untouched => model.restart(&open, &server),
            40..60 if !writes => {
                model.count("epochs of others");
                model.others(&server);
                if model.random.below(2) == 0 {
                    open.refresh().unwrap();
                } else {
                    let pin = open.pin(None).unwrap();
                    open.unpin(pin.epoch);
                }
            }
            _ => open.settle(),
        }
        cache = Some((open, writes));
    }
    model.counts
}

/// Somebody else writes while changes are unpushed: they are refused until they are given up.
fn refused(what: &str, model: &mut Model, disks: &Disks, server: &Arc<Server>) {
    model.others(server);
    if model.local.as_ref() == Some(model.newest()) {
        return model.local = None;
    }
    match disks.open(server, true) {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Changed, "{what}: {error}");
            model.count("refusals");
        }
        Ok(cache) => {
            // Where all that was changed is what they have written, too.
            assert!(cache.unpushed().is_empty(), "{what}: changes on an epoch that was replaced");
        }
    }
    disks.kept.set_len(3 * BLOCK as u64).unwrap();
    for at in [commit_at(0), commit_at(1), COPY_AT] {
        disks.kept.write_all_at(&Kept::default().encode(), at).unwrap();
    }
    model.local = None;
}

#[test]
fn a_cache_gives_what_its_store_has_whatever_happens() {
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for seed in 1..=4 {
        for (what, count) in run(seed, STEPS / 4) {
            *counts.entry(what).or_default() += count;
        }
    }
    println!("{counts:?}");
    for what in ["readers", "writers", "ends", "epochs of others", "refusals"] {
        assert!(counts.get(what).is_some_and(|count| *count > 5), "{what}: {counts:?}");
    }
}
