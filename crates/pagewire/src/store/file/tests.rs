//! Files: their journals on disks that lose what was not synced, and what happens to them from outside.

use std::collections::BTreeMap;

use pagewire_core::chunk::PAGE_SIZE;
use pagewire_core::journal::{self, BLOCK, State};

use super::*;
use crate::store::simulated::{Machine, Random, SimulatedDisk};
use crate::store::{Blocking, STAGED};

const LENGTH: u64 = 20 * PAGE_SIZE + 100;
const CAPACITY: u64 = 40 * PAGE_SIZE;

/// A file and its journal on the disks of a machine.
struct Disks {
    data: Arc<SimulatedDisk>,
    journal: Arc<SimulatedDisk>,
}

impl Disks {
    /// A file of which a journal was made, and nothing written.
    fn new(machine: &Machine) -> Self {
        let bytes: Vec<u8> = (0..LENGTH).map(|at| (at / PAGE_SIZE) as u8 + 1).collect();
        let data = SimulatedDisk::new(machine, bytes);
        let state = State {
            sequence: 0,
            region: [7; 16],
            file: FileId { inode: 1, birth: 1 },
            stamp: data.stamp().unwrap(),
            applied: 1,
            length: LENGTH,
            ..State::default()
        };
        let mut blocks = vec![0; 4 * BLOCK];
        blocks[..BLOCK].copy_from_slice(&state.encode());
        Self { data, journal: SimulatedDisk::new(machine, blocks) }
    }

    fn open(&self, writable: bool) -> Result<Journaled> {
        let found =
            Found { file: FileId { inode: 1, birth: 1 }, stamp: self.data.stamp().unwrap(), region: [9; 16] };
        let open = journaled::Open {
            data: self.data.clone(),
            journal: Some(self.journal.clone()),
            place: Place("the journal".into()),
            found,
            capacity: CAPACITY,
            images: 1 << 20,
        };
        open.open(writable)
    }
}

/// All of an epoch, or of what is staged.
fn read(store: &Journaled, epoch: u64, length: u64) -> Vec<u8> {
    let (pieces, _ticket) = store.resolve(epoch, &[ByteRange::new(0, length)]).unwrap();
    let mut bytes = vec![0; length as usize];
    for piece in pieces {
        let range = piece.range.start as usize..piece.bytes_end as usize;
        let bytes = &mut bytes[range.clone()];
        match &piece.source {
            Source::Zero => {}
            Source::Data => store.data.read_exact_at(bytes, piece.range.start).unwrap(),
            Source::Journal(at) => store.sidecar.disk().unwrap().read_exact_at(bytes, *at).unwrap(),
            Source::Image(of, image) => {
                let from = (piece.range.start - of.start) as usize;
                bytes.copy_from_slice(&image[from..from + range.len()]);
            }
        }
    }
    bytes
}

fn newest(store: &Journaled) -> (u64, Vec<u8>) {
    let (epoch, length) = {
        let view = store.view();
        (view.epoch, view.length)
    };
    (epoch, read(store, epoch, length))
}

/// A writer that follows a plan, and knows what each epoch has to be.
struct Writer {
    random: Random,
    staged: Vec<u8>,
    epochs: BTreeMap<u64, Vec<u8>>,
    /// The newest epoch whose flush was acknowledged, and the one whose flush was tried.
    acknowledged: u64,
    tried: u64,
    flushes: u64,
}

impl Writer {
    fn new(seed: u64, (epoch, bytes): (u64, Vec<u8>)) -> Self {
        let epochs = BTreeMap::from([(epoch, bytes.clone())]);
        Self { random: Random(seed), staged: bytes, epochs, acknowledged: epoch, tried: epoch, flushes: 0 }
    }

    /// Stages something.
    fn write(&mut self, store: &Journaled) -> Result<()> {
        let length = self.staged.len() as u64;
        let draw = self.random.below(12);
        if draw == 0 || length == 0 {
            let length = self.random.below(CAPACITY) + 1;
            store.set_length(length)?;
            self.staged.resize(length as usize, 0);
            return Ok(());
        }
        let start = self.random.below(length);
        let aligned = draw.is_multiple_of(2);
        let start = if aligned { start / PAGE_SIZE * PAGE_SIZE } else { start };
        let end = start + 1 + self.random.below(3 * PAGE_SIZE);
        let end = if aligned { end.next_multiple_of(PAGE_SIZE) } else { end }.min(length);
        let range = ByteRange::new(start, end);
        let value = if draw < 4 { 0 } else { self.random.below(256) as u8 };
        if draw < 4 {
            store.zero(&[range])?;
        } else {
            store.write(&[range], &vec![value; range.len() as usize])?;
        }
        self.staged[start as usize..end as usize].fill(value);
        Ok(())
    }

    fn flush(&mut self, store: &Journaled) -> Result<()> {
        let before = store.view().epoch;
        self.flushes += 1;
        self.tried = before + 1;
        self.epochs.insert(self.tried, self.staged.clone());
        store.flush(self.flushes, store.stage().number)?;
        self.acknowledged = store.view().epoch;
        assert!(self.acknowledged <= before + 1);
        Ok(())
    }

    /// Everything, until something fails.
    fn run(&mut self, store: &Journaled) -> Result<()> {
        store.fence()?;
        for _ in 0..5 {
            for _ in 0..self.random.below(6) {
                self.write(store)?;
            }
            self.flush(store)?;
            if store.view().placing {
                store.apply()?;
            }
        }
        Ok(())
    }

    /// Whether what was found is an epoch that may be found.
    fn check(&self, what: &str, (epoch, bytes): &(u64, Vec<u8>)) {
        let allowed = [self.acknowledged, self.tried];
        assert!(allowed.contains(epoch), "{what}: epoch {epoch} where {allowed:?} are possible");
        assert!(self.epochs[epoch] == *bytes, "{what}: epoch {epoch} is not what was flushed");
    }
}

#[test]
fn a_machine_that_stops_at_any_operation_has_one_epoch_or_the_next() {
    for seed in 0..2 {
        let mut operation = 0;
        loop {
            let machine = Machine::stopping_at(operation);
            let disks = Disks::new(&machine);
            let store = disks.open(false).unwrap();
            let mut writer = Writer::new(seed, newest(&store));
            let store = disks.open(true);
            let ended = store.and_then(|store| writer.run(&store));
            if !machine.has_stopped() {
                ended.unwrap();
                assert!(operation > 40, "{operation} operations");
                break;
            }
            for outcome in 0..6u64 {
                let what = format!("seed {seed}, operation {operation}, outcome {outcome}");
                let running = Machine::stopping_at(usize::MAX);
                let mut random = Random(seed << 32 | (operation as u64) << 8 | outcome);
                let after = match outcome {
                    0 => Disks {
                        data: disks.data.after_kill(&running),
                        journal: disks.journal.after_kill(&running),
                    },
                    _ => Disks {
                        data: disks.data.after_power_loss(&running, &mut random),
                        journal: disks.journal.after_power_loss(&running, &mut random),
                    },
                };
                // Who reads only sees the same as who writes, and changes nothing.
                let before = (after.data.bytes(), after.journal.bytes());
                let seen = newest(&after.open(false).unwrap());
                writer.check(&what, &seen);
                assert!(before == (after.data.bytes(), after.journal.bytes()), "{what}");
                let store = after.open(true).unwrap();
                let found = newest(&store);
                writer.check(&what, &found);
                assert!(found.0 >= seen.0, "{what}: an epoch is gone");
                assert_eq!(store.sidecar.state().region, [7; 16], "{what}: it is another region");
                assert!(after.data.bytes() == found.1, "{what}: it is in its place");
                // It goes on from there.
                let mut next = Writer::new(operation as u64, found);
                next.run(&store).unwrap();
                drop(store);
                let again = newest(&after.open(false).unwrap());
                assert_eq!(again.0, next.acknowledged, "{what}");
                next.check(&what, &again);
            }
            operation += 1;
        }
    }
}

#[test]
fn a_machine_that_stops_after_something_has_failed_has_one_epoch_or_the_next() {
    let mut failures = 0;
    for fails_at in 0.. {
        let mut reached = false;
        for stops_at in fails_at + 1..fails_at + 3 {
            let machine = Machine::failing_at(fails_at, stops_at);
            let disks = Disks::new(&machine);
            let mut writer = Writer::new(4, newest(&disks.open(false).unwrap()));
            // It goes on after a failure, as whoever has the bytes does.
            while !machine.has_stopped() && writer.flushes < 6 {
                let Ok(store) = disks.open(true) else { continue };
                if store.view().placing && store.apply().is_err() {
                    continue;
                }
                let found = newest(&store);
                writer.check("before", &found);
                (writer.acknowledged, writer.staged) = found;
                if let Err(error) = writer.run(&store) {
                    failures += usize::from(!machine.has_stopped());
                    assert!(machine.has_stopped() || error.to_string().contains("this once"), "{error}");
                }
            }
            reached |= machine.has_stopped();
            for outcome in 0..2u64 {
                let what = format!("fails at {fails_at}, stops at {stops_at}, outcome {outcome}");
                let running = Machine::stopping_at(usize::MAX);
                let mut random = Random((fails_at as u64) << 32 | (stops_at as u64) << 8 | outcome);
                let after = Disks {
                    data: disks.data.after_power_loss(&running, &mut random),
                    journal: disks.journal.after_power_loss(&running, &mut random),
                };
                let store = after.open(true).unwrap_or_else(|error| panic!("{what}: {error}"));
                writer.check(&what, &newest(&store));
            }
        }
        if !reached {
            break;
        }
    }
    assert!(failures > 60, "{failures}");
}

#[test]
fn what_is_staged_takes_no_more_room_than_the_region() {
    let machine = Machine::stopping_at(usize::MAX);
    let disks = Disks::new(&machine);
    let store = disks.open(true).unwrap();
    let mut writer = Writer::new(8, newest(&store));
    store.fence().unwrap();
    for step in 0..5000u64 {
        let page = step % (LENGTH / PAGE_SIZE) * PAGE_SIZE;
        let range = ByteRange::new(page, page + PAGE_SIZE);
        match step % 3 {
            0 => store.zero(&[ByteRange::new(0, writer.staged.len() as u64)]).unwrap(),
            1 => store.set_length(4096).and_then(|()| store.set_length(LENGTH)).unwrap(),
            _ => store.write(&[range], &[step as u8; PAGE_SIZE as usize]).unwrap(),
        }
        assert!(store.staged().slots <= CAPACITY / PAGE_SIZE, "step {step}: {} slots", store.staged().slots);
    }
    store.discard().unwrap();
    // What the slots hold is right, whichever pages had them before.
    for step in 0..4000 {
        writer.write(&store).unwrap();
        assert!(store.staged().slots <= CAPACITY / PAGE_SIZE, "{} slots", store.staged().slots);
        if step % 16 == 0 {
            assert!(read(&store, STAGED, writer.staged.len() as u64) == writer.staged, "step {step}");
        }
    }
    writer.flush(&store).unwrap();
    let flushed = newest(&store);
    writer.check("flushed", &flushed);
    drop(store);
    writer.check("opened again", &newest(&disks.open(true).unwrap()));
}

#[test]
fn full_disks_fail_a_flush_and_a_later_one_succeeds() {
    // In some stretches nothing has to grow.
    let mut with_failures = 0;
    for from in 0..60 {
        let machine = Machine::full(from..from + 8);
        let disks = Disks::new(&machine);
        let store = disks.open(true).unwrap();
        let mut writer = Writer::new(3, newest(&store));
        let mut failures = 0;
        let mut steps = 0;
        while machine.operations() < 120 {
            steps += 1;
            assert!(steps < 2000);
            if store.view().placing && store.apply().is_err() {
                // Readers see what was flushed all the same.
                writer.check("placing", &newest(&store));
                failures += 1;
                continue;
            }
            let before = store.view().epoch;
            let done = if steps % 4 == 0 { writer.flush(&store) } else { writer.write(&store) };
            if done.is_err() {
                failures += 1;
                assert_eq!(store.view().epoch, before);
                // What was written last may be there in part: all of it is given up.
                store.discard().unwrap();
                writer.staged = newest(&store).1;
                assert!(writer.staged == writer.epochs[&before], "from {from}");
            }
            if steps % 4 != 0 {
                let length = writer.staged.len() as u64;
                assert!(read(&store, STAGED, length) == writer.staged, "from {from}, step {steps}");
            }
        }
        with_failures += usize::from(failures > 0);
        let acknowledged = writer.acknowledged;
        drop(store);
        let found = newest(&disks.open(true).unwrap());
        assert_eq!(found.0, acknowledged);
        writer.check("at the end", &found);
    }
    assert!(with_failures > 10, "{with_failures}");
}

#[test]
fn ten_thousand_steps_with_readers_of_older_epochs_and_restarts() {
    let machine = Machine::stopping_at(usize::MAX);
    let disks = Disks::new(&machine);
    let mut store = disks.open(true).unwrap();
    let mut writer = Writer::new(20_261_123, newest(&store));
    let mut held: Vec<u64> = Vec::new();
    store.fence().unwrap();
    for step in 0..12_000 {
        match writer.random.below(16) {
            0..=8 => writer.write(&store).unwrap(),
            9 | 10 => {
                if store.view().placing {
                    store.apply().unwrap();
                }
                writer.flush(&store).unwrap();
            }
            11 => {
                store.discard().unwrap();
                writer.staged.clone_from(&writer.epochs[&writer.acknowledged]);
            }
            12 => {
                let epoch = store.view().epoch;
                store.view().hold(epoch).unwrap();
                held.push(epoch);
            }
            13 if !held.is_empty() => {
                let epoch = held.swap_remove(writer.random.below(held.len() as u64) as usize);
                store.view().release(epoch);
            }
            14 if writer.random.below(8) == 0 => {
                drop(store);
                store = disks.open(true).unwrap();
                held.clear();
                writer.flushes = store.stage().flushed;
                writer.staged.clone_from(&writer.epochs[&writer.acknowledged]);
            }
            _ => {}
        }
        let staged = read(&store, STAGED, writer.staged.len() as u64);
        assert!(staged == writer.staged, "step {step}: what is staged");
        let seen = newest(&store);
        assert_eq!(seen.0, writer.acknowledged, "step {step}");
        assert!(seen.1 == writer.epochs[&seen.0], "step {step}: epoch {}", seen.0);
        for &epoch in held.iter().take(3) {
            let Ok(length) = store.view().length_of(epoch) else { continue };
            let bytes = read(&store, epoch, length);
            assert!(bytes == writer.epochs[&epoch], "step {step}: epoch {epoch} of {}", seen.0);
        }
        if let Some(&since) = held.first()
            && let Some(changes) = store.view().changes(since)
        {
            let (old, new) = (&writer.epochs[&since], &seen.1);
            for at in (0..old.len().max(new.len())).step_by(64) {
                let known =
                    changes.iter().any(|range| range.contains(ByteRange::new(at as u64, at as u64 + 1)));
                assert!(known || old.get(at) == new.get(at), "step {step}: byte {at} since {since}");
            }
        }
        writer.epochs.retain(|epoch, _| held.contains(epoch) || *epoch + 1 >= writer.acknowledged);
    }
    assert!(writer.acknowledged > 500, "{} epochs", writer.acknowledged);
}

#[test]
fn a_flipped_bit_is_an_error_or_an_epoch_and_never_something_else() {
    let machine = Machine::stopping_at(usize::MAX);
    let disks = Disks::new(&machine);
    let store = disks.open(true).unwrap();
    let mut writer = Writer::new(5, newest(&store));
    store.fence().unwrap();
    for _ in 0..6 {
        writer.write(&store).unwrap();
    }
    writer.flush(&store).unwrap();
    let whole = disks.journal.bytes();
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let mut random = Random(1);
    let (mut refused, mut dropped) = (0, 0);
    for _ in 0..400 {
        let mut bytes = whole.clone();
        bytes[used[random.below(used.len() as u64) as usize]] ^= 1 << random.below(8);
        let flipped =
            Disks { data: disks.data.after_kill(&machine), journal: SimulatedDisk::new(&machine, bytes) };
        match flipped.open(false) {
            Ok(store) => {
                let (epoch, bytes) = newest(&store);
                assert!(writer.epochs[&epoch] == bytes, "epoch {epoch}");
                dropped += usize::from(epoch == 1);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
                refused += 1;
            }
        }
    }
    assert!(dropped > 50, "{dropped} dropped, {refused} refused");
    // Once the file may be a mix, a journal that cannot be read is not dropped.
    store.sidecar.update(true, |state| state.applying = 2).unwrap();
    let mut bytes = disks.journal.bytes();
    bytes[journal::commit_at(2) as usize + 20] ^= 1;
    let mixed = Disks { data: disks.data, journal: SimulatedDisk::new(&machine, bytes) };
    let error = mixed.open(true).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    assert!(error.to_string().contains("remove it"), "{error}");
}

fn sized(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("region");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let (_folder, path) = sized(&[7; 10_000]);
    let store = FileStore::open(&path, None, false).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
    let error = store.read_bytes(ByteRange::new(4096, 8192), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    assert!(error.to_string().contains("shrunk"), "{error}");
}

#[test]
fn a_file_that_is_written_behind_the_store_is_an_error() {
    let (_folder, path) = sized(&[7; 10_000]);
    let store = FileStore::open(&path, None, false).unwrap();
    let foreign = File::options().write(true).open(&path).unwrap();
    foreign.write_all_at(b"x", 0).unwrap();
    foreign.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(1)).unwrap();
    let error = store.read_bytes(ByteRange::new(4096, 8192), 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
}

#[test]
fn a_replaced_file_is_another_region_and_the_open_one_stays() {
    let (folder, path) = sized(&[7; 4096]);
    let store = FileStore::open(&path, None, false).unwrap();
    let other = folder.path().join("other");
    std::fs::write(&other, [8; 4096]).unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(store.read_bytes(ByteRange::new(0, 4096), 1).unwrap(), [7; 4096]);
    let again = FileStore::open(&path, None, false).unwrap();
    assert_ne!(store.info().id, again.info().id);
}

#[test]
fn one_writer_or_many_readers() {
    let (_folder, path) = sized(&[7; 4096]);
    let reader = FileStore::open(&path, None, false).unwrap();
    let second = FileStore::open(&path, None, false).unwrap();
    assert_eq!(FileStore::open(&path, None, true).err().unwrap().kind(), ErrorKind::Busy);
    drop((reader, second));
    let writer = FileStore::open(&path, None, true).unwrap();
    assert_eq!(FileStore::open(&path, None, false).err().unwrap().kind(), ErrorKind::Busy);
    drop(writer);
}

#[test]
fn a_size_creates_a_file_but_never_resizes_one() {
    let (folder, path) = sized(&[7; 4096]);
    assert_eq!(FileStore::open(&path, Some(8192), true).err().unwrap().kind(), ErrorKind::Usage);
    let fresh = folder.path().join("fresh");
    let store = FileStore::open(&fresh, Some(8192), true).unwrap();
    assert_eq!(store.info().length, 8192);
    assert!(FileStore::open(folder.path(), None, false).is_err(), "a folder is no region");
}
