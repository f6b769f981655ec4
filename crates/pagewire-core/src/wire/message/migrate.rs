//! What the two sides of a migration say to each other.

use super::super::cursor::{Fields, put_pages, put_string};
use super::super::{MAX_NAME, MAX_OWNER, Malformed};
use crate::chunk::ByteRange;

/// The longest text of a [`MigrationState`], in bytes of UTF-8.
const MAX_TEXT: usize = 1024;

/// One step of a migration, which the destination asks the origin for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrateRequest {
    /// The handle of a region that is open to be moved.
    pub handle: u32,
    /// What to do.
    pub step: MigrateStep,
    /// Has the pages of a round's or a switch's set follow, unasked.
    pub pages: Option<SetStream>,
}

/// A stream of the pages of a set, which begins as soon as the set is taken: to ask for them takes a round trip more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetStream {
    /// The request that the stream answers to from then on, as if it had been a STREAM; not 0.
    pub id: u64,
    /// How many bytes of payload it may have sent before it is granted more.
    pub credit: u64,
}

/// What a destination asks for. Each can be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrateStep {
    /// How much is written.
    Look,
    /// What was written since the set before.
    Round {
        /// The number of the set, from 1 on: that of the last one answers it again.
        number: u64,
    },
    /// Suspends the application, and answers what was written since the set before.
    Switch {
        /// The number of the set, as in a round.
        number: u64,
    },
    /// The destination owns the regions.
    Accept {
        /// The token that the switch has answered.
        token: u64,
    },
    /// The destination gives up.
    Abort,
    /// The destination has everything.
    Complete {
        /// The token that the switch has answered.
        token: u64,
    },
}

/// Where the origin of a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum OriginState {
    /// The application runs, and nobody takes its regions over.
    Running = 0,
    /// It runs, and what it writes is tracked.
    Tracking = 1,
    /// It is suspended, and it is not known here where it goes on.
    Offered = 2,
    /// It belongs to the destination.
    Moved = 3,
    /// The destination has everything.
    Released = 4,
}

/// The answer to a [`MigrateRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Where the origin is now.
    pub state: OriginState,
    /// What the destination accepts; 0 before the switch.
    pub token: u64,
    /// The region's length now, in bytes.
    pub length: u64,
    /// How many bytes of pages were written since this was asked last.
    pub written: u64,
    /// In how much time, in microseconds.
    pub micros: u64,
    /// How far the region's witness is, where it has one.
    pub witness: Option<Witnessed>,
    /// The pages that were written, for a round and a switch, but for what is behind the end: in order, and apart.
    pub ranges: Vec<ByteRange>,
}

/// How far a witness is: a third store, to which the origin streams a region before it moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Witnessed {
    /// Which store it is; zeroes until the origin has reached it.
    pub store: [u8; 16],
    /// The store's epoch at which it has all of the frozen region; 0 before the switch.
    pub epoch: u64,
    /// How many bytes of the region it lacks, as far as is known.
    pub missing: u64,
    /// How many bytes were written to it since the migration began.
    pub sent: u64,
}

/// What somebody who looks after a migration asks of its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationAction {
    /// How it is doing.
    Status,
    /// Give it up, and have the application go on.
    Abort {
        /// Also where only the destination could know whether it owns the regions.
        force: bool,
    },
}

/// How the origin of migrations is doing, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationState {
    /// Where it is.
    pub state: OriginState,
    /// The migration that is under way or was last; zeroes where there was none.
    pub id: [u8; 16],
    /// Who takes over.
    pub destination: String,
    /// In words.
    pub text: String,
}

impl MigrateRequest {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let (step, argument) = match self.step {
            MigrateStep::Look => (0, 0),
            MigrateStep::Round { number } => (1, number),
            MigrateStep::Switch { number } => (2, number),
            MigrateStep::Accept { token } => (3, token),
            MigrateStep::Abort => (4, 0),
            MigrateStep::Complete { token } => (5, token),
        };
        out.extend_from_slice(&self.handle.to_le_bytes());
        out.push(step);
        let (id, credit) = self.pages.map_or((0, 0), |pages| (pages.id, pages.credit));
        for number in [argument, id, credit] {
            out.extend_from_slice(&u64::to_le_bytes(number));
        }
    }

    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let (handle, step, argument) = (fields.u32()?, fields.u8()?, fields.u64()?);
        let step = match (step, argument) {
            (0, 0) => MigrateStep::Look,
            (1, number) if number > 0 => MigrateStep::Round { number },
            (2, number) if number > 0 => MigrateStep::Switch { number },
            (3, token) if token > 0 => MigrateStep::Accept { token },
            (4, 0) => MigrateStep::Abort,
            (5, token) if token > 0 => MigrateStep::Complete { token },
            (step, argument) => return Err(fields.bad(format!("step {step} with {argument} is none"))),
        };
        let pages = match (fields.u64()?, fields.u64()?) {
            (0, 0) => None,
            (id, credit) if id > 0 && step.takes_set() => Some(SetStream { id, credit }),
            (id, credit) => return Err(fields.bad(format!("stream {id} of credit {credit} is of no set"))),
        };
        Ok(Self { handle, step, pages })
    }
}

impl MigrateStep {
    /// Whether it is answered by a set of pages.
    pub fn takes_set(self) -> bool {
        matches!(self, Self::Round { .. } | Self::Switch { .. })
    }
}

impl OriginState {
    fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        Ok(match fields.u8()? {
            0 => Self::Running,
            1 => Self::Tracking,
            2 => Self::Offered,
            3 => Self::Moved,
            4 => Self::Released,
            other => return Err(fields.bad(format!("state {other} is none"))),
        })
    }
}

impl Migrated {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.state as u8);
        for number in [self.token, self.length, self.written, self.micros] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(u8::from(self.witness.is_some()));
        if let Some(witness) = &self.witness {
            out.extend_from_slice(&witness.store);
            for number in [witness.epoch, witness.missing, witness.sent] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        put_pages(out, &self.ranges);
    }

    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let state = OriginState::take(fields)?;
        let (token, length, written, micros) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        let witness = match fields.flag()? {
            false => None,
            true => Some(Witnessed {
                store: fields.array()?,
                epoch: fields.u64()?,
                missing: fields.u64()?,
                sent: fields.u64()?,
            }),
        };
        Ok(Self { state, token, length, written, micros, witness, ranges: fields.pages(length)? })
    }
}

impl MigrationAction {
    pub(super) fn put(self, name: &str, out: &mut Vec<u8>) {
        put_string(out, name, MAX_NAME);
        out.push(match self {
            Self::Status => 0,
            Self::Abort { force: false } => 1,
            Self::Abort { force: true } => 2,
        });
    }

    pub(super) fn take(fields: &mut Fields<'_>) -> Result<(String, Self), Malformed> {
        let name = fields.string(MAX_NAME)?;
        let action = match fields.u8()? {
            0 => Self::Status,
            1 => Self::Abort { force: false },
            2 => Self::Abort { force: true },
            other => return Err(fields.bad(format!("action {other} is none"))),
        };
        Ok((name, action))
    }
}

impl MigrationState {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.state as u8);
        out.extend_from_slice(&self.id);
        put_string(out, &self.destination, MAX_OWNER);
        put_string(out, &self.text, MAX_TEXT);
    }

    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let (state, id) = (OriginState::take(fields)?, fields.array()?);
        Ok(Self { state, id, destination: fields.string(MAX_OWNER)?, text: fields.string(MAX_TEXT)? })
    }
}
