//! A machine that stops: its disks keep what was synced, and of what was not whatever they like, in whatever
//! order, torn at sectors.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use pagewire_core::chunk::ByteRange;
use pagewire_core::journal::Stamp;

use super::disk::Disk;

const SECTOR: usize = 512;

/// SplitMix64 (Steele, Lea, Flood, 2014).
pub(crate) struct Random(pub(super) u64);

impl Random {
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// What the disks of one machine share.
#[derive(Clone)]
pub(crate) struct Machine(Arc<Mutex<Clock>>);

struct Clock {
    operations: usize,
    /// The operation that does not happen any more.
    stops_at: usize,
    /// From this operation on nothing can grow, up to that one.
    full: std::ops::Range<usize>,
    /// The operation that fails, half done.
    fails_at: usize,
}

impl Machine {
    /// One that stops before an operation.
    pub(crate) fn stopping_at(operation: usize) -> Self {
        Self::failing_at(usize::MAX, operation)
    }

    /// One of which one operation fails, half done, and which stops before another.
    pub(crate) fn failing_at(fails_at: usize, stops_at: usize) -> Self {
        Self(Arc::new(Mutex::new(Clock { operations: 0, stops_at, full: 0..0, fails_at })))
    }

    /// One whose disks are full during some operations.
    pub(crate) fn full(operations: std::ops::Range<usize>) -> Self {
        let clock = Clock { operations: 0, stops_at: usize::MAX, full: operations, fails_at: usize::MAX };
        Self(Arc::new(Mutex::new(clock)))
    }

    pub(crate) fn has_stopped(&self) -> bool {
        let clock = self.0.lock().unwrap();
        clock.operations >= clock.stops_at
    }

    pub(crate) fn operations(&self) -> usize {
        self.0.lock().unwrap().operations
    }

    /// Counts an operation, if it happens.
    fn operate(&self, takes_room: bool) -> io::Result<()> {
        let mut clock = self.0.lock().unwrap();
        if clock.operations >= clock.stops_at {
            return Err(io::Error::other("the machine has stopped"));
        }
        clock.operations += 1;
        if clock.operations - 1 == clock.fails_at {
            return Err(io::Error::other("it fails this once"));
        }
        if takes_room && clock.full.contains(&clock.operations) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    modified: u64,
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write(at, bytes) => {
                let end = at + bytes.len();
                if self.bytes.len() < end {
                    self.bytes.resize(end, 0);
                }
                self.bytes[*at..end].copy_from_slice(bytes);
            }
            Change::Length(length) => self.bytes.resize(*length, 0),
        }
    }
}

/// A disk of a machine.
pub(crate) struct SimulatedDisk {
    machine: Machine,
    state: Mutex<State>,
}

struct State {
    durable: Content,
    /// What has happened since the last sync.
    pending: Vec<Change>,
    now: Content,
}

impl SimulatedDisk {
    pub(crate) fn new(machine: &Machine, bytes: Vec<u8>) -> Arc<Self> {
        let content = Content { bytes, modified: 1 };
        Self::with(machine, content)
    }

    fn with(machine: &Machine, content: Content) -> Arc<Self> {
        let state = State { durable: content.clone(), pending: Vec::new(), now: content };
        Arc::new(Self { machine: machine.clone(), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What the disk holds, as another program would see it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.lock().now.bytes.clone()
    }

    /// The disk after the machine has started again, having lost its power: `machine` is the same one.
    pub(crate) fn after_power_loss(&self, machine: &Machine, random: &mut Random) -> Arc<Self> {
        let state = self.lock();
        let mut content = state.durable.clone();
        let mut left: Vec<&Change> = state.pending.iter().collect();
        while !left.is_empty() {
            // Lengths and writes of one file may reach the disk in any order, or not at all.
            let change = left.swap_remove(random.below(left.len() as u64) as usize);
            match (random.below(4), change) {
                (0, _) => {}
                (1, Change::Write(at, bytes)) if bytes.len() > SECTOR => {
                    for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                        if random.below(2) == 0 {
                            content.apply(&Change::Write(at + index * SECTOR, sector.to_vec()));
                        }
                    }
                }
                (_, change) => content.apply(change),
            }
        }
        if random.below(2) == 0 {
            content.modified = state.now.modified;
        }
        Self::with(machine, content)
    }

    /// The disk after the program was killed: everything that it wrote is there.
    pub(crate) fn after_kill(&self, machine: &Machine) -> Arc<Self> {
        Self::with(machine, self.lock().now.clone())
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.lock();
        state.now.apply(&change);
        state.now.modified += 1;
        state.pending.push(change);
        Ok(())
    }
}

impl Disk for SimulatedDisk {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let state = self.lock();
        let at = at as usize;
        let found = state.now.bytes.get(at..at + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }

    fn read_nowait(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.read_exact_at(bytes, at).map(|()| bytes.len())
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let grows = at as usize + bytes.len() > self.lock().now.bytes.len();
        if let Err(error) = self.machine.operate(grows) {
            if !self.machine.has_stopped() && !grows {
                self.change(Change::Write(at as usize, bytes[..bytes.len() / 2].to_vec()))?;
            }
            return Err(error);
        }
        self.change(Change::Write(at as usize, bytes.to_vec()))
    }

    fn sync(&self) -> io::Result<()> {
        self.machine.operate(false)?;
        let mut state = self.lock();
        let modified = state.durable.modified;
        state.durable = Content { modified, ..state.now.clone() };
        state.pending.clear();
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()?;
        let mut state = self.lock();
        state.durable.modified = state.now.modified;
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().now.bytes.len() as u64)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let grows = length > self.lock().now.bytes.len() as u64;
        self.machine.operate(grows)?;
        self.change(Change::Length(length as usize))
    }

    fn punch(&self, range: ByteRange) -> io::Result<()> {
        self.machine.operate(false)?;
        self.change(Change::Write(range.start as usize, vec![0; range.len() as usize]))
    }

    fn stamp(&self) -> io::Result<Stamp> {
        let state = self.lock();
        Ok(Stamp { size: state.now.bytes.len() as u64, modified: state.now.modified })
    }
}
