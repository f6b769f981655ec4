//! What both sides keep durably of a migration, as bytes.
//!
//! ```text
//! 0        4096     8192
//! | slot 0 | slot 1 |
//! ```
//!
//! Each side has a *record* of its phase in a file of its own: two slots of 4096 bytes, written in turns, one
//! write and one sync each; the one with the greater sequence number counts. A write that is torn leaves the
//! other slot, which is the record before. A file in which nothing was ever whole tells of no migration. Two
//! slots that were written and are damaged are an error: nobody knows then who the owner is.
//!
//! The next sequence number is taken when a record *is* durable, not when its write was tried: a write that
//! failed is repeated in the same slot, since the other one holds the only record that is whole. It may say
//! something else then.
//!
//! The destination keeps [`HomeSets`] besides, one for each region, from when it accepts until everything is at
//! home: which pages the region's own store has durably, so that after a crash these are not pulled again over
//! what the application has written to them since.
//!
//! Numbers are little-endian. Slots end with the 64-bit xxh3 of what stands before it, as the blocks of the
//! [`journal`](crate::journal) do.

mod home;

pub use home::{HomeError, HomeSets};

use super::{MigrationId, Token};
use crate::journal::{BLOCK, Damaged, Reader, Writer};

/// The version of the formats. Others are not read.
pub const VERSION: u32 = 1;

/// The most bytes of an origin's address.
pub const MAX_ORIGIN: usize = 2048;

/// The most witnesses of one migration, so that a record has room for them.
pub const MAX_WITNESSES: usize = 64;

/// Where the slot of a sequence number is.
pub fn slot_at(sequence: u64) -> u64 {
    sequence % 2 * BLOCK as u64
}

/// What the origin's record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OriginPhase {
    /// The application is suspended, and the destination may accept: in doubt.
    Offered {
        /// The migration.
        id: MigrationId,
        /// The offer.
        token: Token,
    },
    /// The offer is void: the application belongs here, as if there had been none.
    Withdrawn {
        /// The migration.
        id: MigrationId,
    },
    /// The destination is the owner.
    Moved {
        /// The migration.
        id: MigrationId,
        /// The offer.
        token: Token,
    },
    /// The destination has everything.
    Released {
        /// The migration.
        id: MigrationId,
        /// The offer.
        token: Token,
    },
}

/// What the destination's record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationPhase {
    /// The origin may have been asked for something; nothing is accepted.
    Begun {
        /// The migration.
        id: MigrationId,
    },
    /// It was given up, and will never be accepted.
    Aborted {
        /// The migration.
        id: MigrationId,
    },
    /// The destination is the owner: the commit point.
    Accepted {
        /// The migration.
        id: MigrationId,
        /// The offer.
        token: Token,
    },
    /// Everything is at home, and the origin may not have heard that it is not the owner any more: what it is told
    /// first is that, and then the end.
    Home {
        /// The migration.
        id: MigrationId,
        /// The offer.
        token: Token,
    },
    /// Everything is at home, and the origin knows whose it is.
    Completed {
        /// The migration.
        id: MigrationId,
        /// The offer.
        token: Token,
    },
}

/// The origin's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginRecord {
    /// Grows with every record that is written.
    pub sequence: u64,
    /// What it says.
    pub phase: OriginPhase,
}

/// Where all of a region is besides: what its witness was at the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WitnessAt {
    /// Which store it is; zeroes for a region without one.
    pub store: [u8; 16],
    /// The store's epoch that has the frozen region.
    pub epoch: u64,
}

/// The destination's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationRecord {
    /// Grows with every record that is written.
    pub sequence: u64,
    /// What it says.
    pub phase: DestinationPhase,
    /// The address that the origin was opened at: at most [`MAX_ORIGIN`] bytes.
    pub origin: String,
    /// The witness of each region, in their order, from when it has accepted; none where none has one, and at most
    /// [`MAX_WITNESSES`].
    pub witnesses: Vec<WitnessAt>,
}

/// Why there is no record to go by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Both slots were written, and neither is whole.
    #[error("both copies of the migration's record are damaged")]
    Damaged,
    /// A later program has written it.
    #[error("the migration's record has format version {0}, of which this program knows nothing")]
    Version(u32),
    /// The other side's record, or one that says what none can say.
    #[error("the migration's record says what it cannot say: {0}")]
    Nonsense(&'static str),
}

const ORIGIN: &[u8; 8] = b"PWMIGORG";
const DESTINATION: &[u8; 8] = b"PWMIGDST";

impl OriginRecord {
    /// What a slot begins with.
    pub const MAGIC: &[u8; 8] = ORIGIN;

    /// The slot.
    pub fn encode(&self) -> [u8; BLOCK] {
        let (kind, id, token) = match self.phase {
            OriginPhase::Offered { id, token } => (1, id, token.0),
            OriginPhase::Withdrawn { id } => (2, id, 0),
            OriginPhase::Moved { id, token } => (3, id, token.0),
            OriginPhase::Released { id, token } => (4, id, token.0),
        };
        Writer::new(ORIGIN, VERSION).u64(self.sequence).u64(kind).bytes(&id.0).u64(token).end()
    }

    /// The newest record of two slots; none where there was never a whole one.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn newest(slots: [&[u8; BLOCK]; 2]) -> Result<Option<Self>, RecordError> {
        newest(slots, Self::decode, |record| record.sequence)
    }

    fn decode(slot: &[u8; BLOCK]) -> Result<Self, Slot> {
        let mut reader = Reader::new(slot, ORIGIN, VERSION).map_err(|damage| Slot::of(&damage, slot))?;
        let (sequence, kind) = (reader.u64(), reader.u64());
        let (id, token) = (read_id(&mut reader), Token(reader.u64()));
        let phase = match kind {
            1 => OriginPhase::Offered { id, token },
            2 => OriginPhase::Withdrawn { id },
            3 => OriginPhase::Moved { id, token },
            4 => OriginPhase::Released { id, token },
            _ => return Err(Slot::Nonsense("a phase that there is not")),
        };
        Ok(Self { sequence, phase })
    }
}

impl DestinationRecord {
    /// What a slot begins with.
    pub const MAGIC: &[u8; 8] = DESTINATION;

    /// The slot.
    ///
    /// # Panics
    /// If the origin's address is longer than [`MAX_ORIGIN`] bytes, or there are more than [`MAX_WITNESSES`].
    pub fn encode(&self) -> [u8; BLOCK] {
        assert!(self.origin.len() <= MAX_ORIGIN, "an address of {} bytes", self.origin.len());
        assert!(self.witnesses.len() <= MAX_WITNESSES, "{} witnesses", self.witnesses.len());
        let (kind, id, token) = match self.phase {
            DestinationPhase::Begun { id } => (1, id, 0),
            DestinationPhase::Aborted { id } => (2, id, 0),
            DestinationPhase::Accepted { id, token } => (3, id, token.0),
            DestinationPhase::Completed { id, token } => (4, id, token.0),
            DestinationPhase::Home { id, token } => (5, id, token.0),
        };
        let writer = Writer::new(DESTINATION, VERSION)
            .u64(self.sequence)
            .u64(kind)
            .bytes(&id.0)
            .u64(token)
            .u64(self.origin.len() as u64)
            .bytes(self.origin.as_bytes())
            .u64(self.witnesses.len() as u64);
        let witnesses = self.witnesses.iter();
        witnesses.fold(writer, |writer, at| writer.bytes(&at.store).u64(at.epoch)).end()
    }

    /// The newest record of two slots; none where there was never a whole one.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn newest(slots: [&[u8; BLOCK]; 2]) -> Result<Option<Self>, RecordError> {
        newest(slots, Self::decode, |record| record.sequence)
    }

    fn decode(slot: &[u8; BLOCK]) -> Result<Self, Slot> {
        let mut reader = Reader::new(slot, DESTINATION, VERSION).map_err(|damage| Slot::of(&damage, slot))?;
        let (sequence, kind) = (reader.u64(), reader.u64());
        let (id, token) = (read_id(&mut reader), Token(reader.u64()));
        let phase = match kind {
            1 => DestinationPhase::Begun { id },
            2 => DestinationPhase::Aborted { id },
            3 => DestinationPhase::Accepted { id, token },
            4 => DestinationPhase::Completed { id, token },
            5 => DestinationPhase::Home { id, token },
            _ => return Err(Slot::Nonsense("a phase that there is not")),
        };
        let length = reader.u64();
        if length > MAX_ORIGIN as u64 {
            return Err(Slot::Nonsense("an address that is too long"));
        }
        let origin = std::str::from_utf8(reader.take(length as usize))
            .map_err(|_| Slot::Nonsense("an address that is not UTF-8"))?;
        let origin = origin.to_owned();
        let count = reader.u64();
        if count > MAX_WITNESSES as u64 {
            return Err(Slot::Nonsense("more witnesses than there can be"));
        }
        let mut witness = || {
            let mut store = [0; 16];
            store.copy_from_slice(reader.take(16));
            WitnessAt { store, epoch: reader.u64() }
        };
        let witnesses = (0..count).map(|_| witness()).collect();
        Ok(Self { sequence, phase, origin, witnesses })
    }
}

/// Why there is no record in a slot.
enum Slot {
    Empty,
    Damaged,
    Version(u32),
    Nonsense(&'static str),
}

impl Slot {
    fn of(damage: &Damaged, slot: &[u8; BLOCK]) -> Self {
        match damage {
            Damaged::Version(version) => Self::Version(*version),
            Damaged::Hash if slot.iter().all(|byte| *byte == 0) => Self::Empty,
            Damaged::Hash => Self::Damaged,
        }
    }
}

fn newest<R>(
    slots: [&[u8; BLOCK]; 2],
    decode: fn(&[u8; BLOCK]) -> Result<R, Slot>,
    sequence: fn(&R) -> u64,
) -> Result<Option<R>, RecordError> {
    match slots.map(decode) {
        [Err(Slot::Version(version)), _] | [_, Err(Slot::Version(version))] => {
            Err(RecordError::Version(version))
        }
        [Err(Slot::Nonsense(why)), _] | [_, Err(Slot::Nonsense(why))] => Err(RecordError::Nonsense(why)),
        [Ok(one), Ok(other)] => Ok(Some(if sequence(&one) > sequence(&other) { one } else { other })),
        [Ok(record), Err(_)] | [Err(_), Ok(record)] => Ok(Some(record)),
        [Err(Slot::Damaged), Err(Slot::Damaged)] => Err(RecordError::Damaged),
        [Err(_), Err(_)] => Ok(None),
    }
}

fn read_id(reader: &mut Reader<'_>) -> MigrationId {
    let mut id = [0; 16];
    id.copy_from_slice(reader.take(16));
    MigrationId(id)
}

#[cfg(test)]
mod tests;
