//! What a host keeps over a crash, in the real formats.

use super::super::record::{DestinationRecord, HomeError, HomeSets, OriginRecord, slot_at};
use super::super::{DestinationPhase, MigrationId, OriginPhase};
use super::Random;
use crate::journal::BLOCK;

/// How a write ends that fails, or that a crash interrupts.
fn torn(random: &mut Random, old: &[u8], new: &[u8]) -> Vec<u8> {
    match random.draw(4) {
        0 => old.to_vec(),
        1 => new.to_vec(),
        // Some bytes from the front.
        2 => {
            let cut = random.draw(new.len() as u64) as usize;
            let mut bytes = new[..cut].to_vec();
            bytes.extend_from_slice(old.get(cut..).unwrap_or(&[]));
            bytes
        }
        // Some sectors.
        _ => {
            let mut bytes = old.to_vec();
            bytes.resize(new.len(), 0);
            for sector in (0..new.len()).step_by(512) {
                if random.chance(50) {
                    let end = new.len().min(sector + 512);
                    bytes[sector..end].copy_from_slice(&new[sector..end]);
                }
            }
            bytes
        }
    }
}

/// The two slots of a record, as the engine writes them.
pub(super) struct Slots {
    slots: [[u8; BLOCK]; 2],
    /// The sequence of the last record that is known to be written.
    sequence: u64,
    /// What a destination that starts would find.
    pub(super) found: Option<DestinationPhase>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self { slots: [[0; BLOCK]; 2], sequence: 0, found: None }
    }

    /// Writes what `encode` makes of the next sequence. A slot whose write has failed is written again, since
    /// the other one holds the record before.
    fn write(&mut self, random: &mut Random, fails: bool, encode: impl FnOnce(u64) -> [u8; BLOCK]) {
        let sequence = self.sequence + 1;
        let new = encode(sequence);
        let slot = &mut self.slots[(slot_at(sequence) / BLOCK as u64) as usize];
        if fails {
            let bytes = torn(random, &slot[..], &new);
            slot.copy_from_slice(&bytes);
        } else {
            *slot = new;
            self.sequence = sequence;
        }
    }

    pub(super) fn write_origin(&mut self, random: &mut Random, fails: bool, phase: OriginPhase) {
        self.write(random, fails, |sequence| OriginRecord { sequence, phase }.encode());
    }

    pub(super) fn write_destination(&mut self, random: &mut Random, fails: bool, phase: DestinationPhase) {
        let origin = "pw://origin:7070/region".to_owned();
        self.write(random, fails, |sequence| {
            DestinationRecord { sequence, phase, origin, witnesses: Vec::new() }.encode()
        });
        self.found = self.newest_destination().map(|record| record.phase);
    }

    /// What a process finds that starts.
    pub(super) fn read_origin(&mut self) -> Option<OriginPhase> {
        let record = OriginRecord::newest([&self.slots[0], &self.slots[1]]).expect("one slot is whole")?;
        self.sequence = record.sequence;
        Some(record.phase)
    }

    pub(super) fn read_destination(&mut self) -> Option<DestinationPhase> {
        let record = self.newest_destination()?;
        self.sequence = record.sequence;
        Some(record.phase)
    }

    fn newest_destination(&self) -> Option<DestinationRecord> {
        DestinationRecord::newest([&self.slots[0], &self.slots[1]]).expect("one slot is whole")
    }
}

/// The two copies of a region's home sets.
#[derive(Default)]
pub(super) struct HomeFile {
    copies: [Vec<u8>; 2],
    sequence: u64,
}

impl HomeFile {
    pub(super) fn write(&mut self, random: &mut Random, fails: bool, mut sets: HomeSets) {
        sets.sequence = self.sequence + 1;
        let new = sets.encode();
        let copy = &mut self.copies[(sets.sequence % 2) as usize];
        if fails {
            *copy = torn(random, copy, &new);
        } else {
            *copy = new;
            self.sequence = sets.sequence;
        }
    }

    pub(super) fn read(
        &mut self,
        id: MigrationId,
        region: [u8; 16],
        pages: u64,
    ) -> Result<HomeSets, HomeError> {
        let sets = HomeSets::newest([&self.copies[0], &self.copies[1]], id, region, pages)?;
        self.sequence = sets.sequence;
        Ok(sets)
    }
}
