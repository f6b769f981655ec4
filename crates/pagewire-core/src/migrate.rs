//! Moving what an application uses to another host while it uses it: what either side may do, and when.
//!
//! An application on the *origin* uses regions. The *destination* is the client of it all: it opens the regions
//! under a [`MigrationId`] of its own choice, pulls their bytes while the application runs, asks the
//! origin to suspend it, becomes the owner, resumes it, and pulls what is left. Several regions of one application
//! are one migration, with one machine on each side: they switch together or not at all.
//!
//! ```text
//!      destination                                            origin
//!  Begun durable ──── BEGIN ────────────────────────────────> tracks what is written
//!  pulls            ─ LOOK ────────────────────────────────── how much was written, in how long
//!                   ─ ROUND 1, 2, … ───────────────────────── what was written since the round before
//!                   ─ SWITCH ───────────────────────────────> Offered durable, suspends, freezes
//!                 <── token, last set ─────────────────────── in doubt from here on
//!  Accepted durable ← the commit point
//!  resumes          ─ ACCEPT ───────────────────────────────> Moved durable: never runs it again
//!  pulls the rest of the frozen bytes
//!  Completed durable ─ COMPLETE ────────────────────────────> Released durable
//! ```
//!
//! # What must never happen
//!
//! - **Both sides run the application.** The origin suspends it before it offers, and takes it up again only
//!   when it knows that the destination will not: it has not told the offer's token to anybody, or the
//!   destination has said ABORT, which it does when its own record rules out that it accepts. The destination
//!   runs it only once [`Accepted`](DestinationPhase::Accepted) is durable, which needs the token.
//! - **A write is lost.** Each set of written pages is kept by the origin until the destination has said, by asking
//!   for the next, that it has received it. What was written before the freeze is in some set, or was pulled after.
//! - **Neither runs it, for ever.** Each request is repeated until it is answered, each record that has to be
//!   written is tried again, and whoever restarts goes on from its record. A side is in doubt only while the
//!   other one is away. Then an operator can decide, by force, at the price that is said at
//!   [`Origin::handle_operator`].
//!
//! What neither side can see to is that the origin's host is not lost before the destination has everything. Where
//! that must lose nothing there is a *witness*, a third store: the origin's freeze is done only when the witness has
//! all of the frozen regions durably, so that it is there before the offer is told. The destination keeps which
//! store that is, and its epoch, with *Accepted*. It has no say in who the owner is.
//!
//! # How the engine uses it
//!
//! [`Origin`] and [`Destination`] are called under one lock each, and do no I/O. `poll_effect` gives the one
//! thing that has to be done next, in the machine's order; it is done without the lock, and `handle_result`
//! says how it ended. Nothing else comes out meanwhile, whatever else goes in. A record that failed to be
//! written may or may not be durable; machines count on neither. An effect that failed, or was interrupted by a
//! crash, may have been done in part, and is done again, or undone, as a whole.
//!
//! At the origin, [`Origin::handle_request`] answers at once or says [`Answer::Wait`]: then the same request is
//! handed in again after each `handle_result` or `handle_retry`, which is harmless, since requests are
//! idempotent. At the destination, [`Destination::poll_request`] gives the one request to have under way,
//! besides effects, and `handle_outcome` what came of it.
//!
//! Where something failed that must be done nevertheless, it is done again by `handle_retry`, which the engine
//! calls every now and then, a second apart, say. Until then nothing comes out, so that a full disk keeps no
//! loop busy.
//!
//! # The parts
//!
//! [`origin`] and [`destination`] are the two machines, [`record`] what they keep durably, as bytes. [`control`] decides
//! which round to make and when to switch, and [`frequency`] in which order pages are sent. [`moment`] says when to begin: at
//! once, or in the part of the workload's cycle in which little is written.

use std::fmt;

pub mod control;
pub mod destination;
pub mod frequency;
pub mod moment;
pub mod origin;
pub mod record;

pub use control::{Controller, Decision, Goals, Last, Mode, Next, Reason};
pub use destination::{Cause, Destination, DestinationEffect, Outcome};
pub use frequency::{Holding, Plan, WriteFrequency};
pub use origin::{Answer, Origin, OriginEffect};
pub use record::{DestinationPhase, DestinationRecord, HomeSets, OriginPhase, OriginRecord, WitnessAt};

/// Which migration: random, and chosen by the destination anew for each attempt. Who knows it speaks for the
/// destination, so it goes to nobody but the origin and its operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MigrationId(pub [u8; 16]);

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which offer of the origin: no other has the same, so that what was meant for an old one is not taken for a
/// new one. It orders, and protects nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// What the destination asks of the origin. Each can be asked any number of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// To track what is written from now on. It is also how a destination comes back after a lost connection.
    Begin {
        /// The migration.
        id: MigrationId,
    },
    /// How much was written since the last look.
    Look {
        /// The migration.
        id: MigrationId,
    },
    /// The set of what was written since the round before, which this confirms to have been received.
    Round {
        /// The migration.
        id: MigrationId,
        /// That of [`Reply::Begun`].
        generation: u64,
        /// Counted from 1: the last one that was received, and one.
        number: u64,
    },
    /// To suspend the application, and the last set.
    Switch {
        /// The migration.
        id: MigrationId,
        /// That of [`Reply::Begun`].
        generation: u64,
        /// As that of a round: the number of the last set.
        number: u64,
    },
    /// The destination is the owner.
    Accept {
        /// The migration.
        id: MigrationId,
        /// That of [`Reply::Offered`].
        token: Token,
    },
    /// The destination will never accept this migration.
    Abort {
        /// The migration.
        id: MigrationId,
    },
    /// The destination has everything durably.
    Complete {
        /// The migration.
        id: MigrationId,
        /// That of [`Reply::Offered`].
        token: Token,
    },
}

impl Request {
    /// The migration that it is about.
    pub fn id(&self) -> MigrationId {
        match *self {
            Self::Begin { id }
            | Self::Look { id }
            | Self::Round { id, .. }
            | Self::Switch { id, .. }
            | Self::Accept { id, .. }
            | Self::Abort { id }
            | Self::Complete { id, .. } => id,
        }
    }

    /// Its name in the protocol.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Begin { .. } => "BEGIN",
            Self::Look { .. } => "LOOK",
            Self::Round { .. } => "ROUND",
            Self::Switch { .. } => "SWITCH",
            Self::Accept { .. } => "ACCEPT",
            Self::Abort { .. } => "ABORT",
            Self::Complete { .. } => "COMPLETE",
        }
    }
}

/// What the origin answers to a request that it has carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reply {
    /// To BEGIN: everything that is written is noticed, without a gap since this generation began. Another one than
    /// before means that there was a gap.
    Begun {
        /// No other tracking has the same.
        generation: u64,
    },
    /// To LOOK; the engine adds the sample.
    Looked,
    /// To ROUND: the engine adds the set that it keeps, which is that of this round.
    Taken {
        /// The round.
        number: u64,
    },
    /// To SWITCH: the application is suspended, the regions are frozen. The engine adds lengths and the last set.
    Offered {
        /// Of this offer.
        token: Token,
        /// The number of the last set.
        number: u64,
    },
    /// To ACCEPT: it is durable that the application has moved.
    Accepted,
    /// To ABORT: nothing of this migration is under way.
    Aborted,
    /// To COMPLETE: the origin keeps nothing any more.
    Completed,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another migration is under way. Its id is not to be told: who knows it can abort it.
    #[error("another migration of this application is under way; abort that one first")]
    Busy(MigrationId),
    /// The migration is over.
    #[error("the migration is over: {0}")]
    Ended(Ending),
    /// The origin knows no such migration: it was restarted meanwhile, or this one never began.
    #[error("no such migration is under way; the origin may have been restarted")]
    Unknown,
    /// The tracking that the destination means is gone.
    #[error("the origin has lost track of what was written; everything has to be pulled anew")]
    Gap,
    /// It belongs into another phase.
    #[error("a request that does not belong into this phase: {0}")]
    OutOfTurn(&'static str),
    /// The application is suspended, but the last set was lost when the origin was restarted.
    #[error("the origin was restarted while it was suspended, and has lost the last set")]
    SetLost,
    /// The destination may have accepted, or may do so at any time.
    #[error(
        "in doubt: the destination may own the application; ask there, and use force only if it never will"
    )]
    InDoubt,
    /// The destination is the owner.
    #[error("the application has moved; it must never run here again")]
    Moved,
    /// The destination has everything, and nothing is left here.
    #[error("the application has moved, and nothing of it is left here")]
    Released,
    /// Something could not be done; asking again later may help.
    #[error("{0}")]
    Failed(String),
}

/// What a refusal means to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// The origin does not have this migration under way, or not where the destination thinks: asking
    /// again changes nothing.
    Over,
    /// Asking again later may help.
    Later,
}

impl Refusal {
    /// What it means to the destination.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Failed(_) => RefusalKind::Later,
            _ => RefusalKind::Over,
        }
    }
}

/// Why a migration has ended without a switch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    /// The destination has said ABORT.
    #[error("the destination has given up")]
    Aborted,
    /// The destination's sessions have ended, and did not come back.
    #[error("the destination was gone for too long")]
    Lapsed,
    /// An operator of the origin wanted it.
    #[error("the origin's operator has aborted it")]
    Operator,
    /// An operator of the origin has decided that the destination must not become the owner.
    #[error("the origin's operator has taken the application back by force")]
    Forced,
    /// Something failed at the origin.
    #[error("{0}")]
    Failed(String),
}

/// Where a migration stands, on either side: for people, and as a name for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Origin: none is under way; the application runs.
    Idle,
    /// Origin: what is written is tracked; the application runs.
    Tracking,
    /// Origin: the application is being suspended, for an offer that nobody knows of yet.
    Offering,
    /// Origin: the application is suspended, and the destination may have accepted.
    InDoubt,
    /// Origin: the application goes on here.
    Withdrawing,
    /// Origin: the application goes on here, but could not be resumed.
    NotResumed,
    /// Origin: the destination is the owner; the frozen bytes are served.
    Moved,
    /// Origin: nothing is left here.
    Released,
    /// Destination: it has not begun yet.
    Preparing,
    /// Destination: it pulls, while the application runs at the origin.
    Copying,
    /// Destination: the origin was asked to suspend the application.
    Switching,
    /// Destination: the application is suspended, and its last set was received.
    Held,
    /// Destination: it is becoming the owner.
    Accepting,
    /// Destination: it is the owner, and pulls what is left.
    PostCopy,
    /// Destination: it has everything, and says so.
    Completing,
    /// Destination: it has everything, and the origin knows.
    Completed,
    /// Destination: it has given up, and says so.
    Aborting,
    /// Destination: it has given up, and the origin knows.
    Aborted,
    /// Destination: the origin's operator has taken the application back by force.
    Ousted,
}

impl Phase {
    /// The name in JSON and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Tracking => "tracking",
            Self::Offering => "offering",
            Self::InDoubt => "in-doubt",
            Self::Withdrawing => "withdrawing",
            Self::NotResumed => "not-resumed",
            Self::Moved => "moved",
            Self::Released => "released",
            Self::Preparing => "preparing",
            Self::Copying => "copying",
            Self::Switching => "switching",
            Self::Held => "held",
            Self::Accepting => "accepting",
            Self::PostCopy => "post-copy",
            Self::Completing => "completing",
            Self::Completed => "completed",
            Self::Aborting => "aborting",
            Self::Aborted => "aborted",
            Self::Ousted => "ousted",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "no migration is under way",
            Self::Tracking => "the application runs here, and is being copied",
            Self::Offering => "the application is being suspended",
            Self::InDoubt => {
                "the application is suspended until the destination says whether it has accepted"
            }
            Self::Withdrawing => "the application is being resumed here",
            Self::NotResumed => "the application belongs here and could not be resumed",
            Self::Moved => "the application has moved; what it left is served",
            Self::Released => "the application has moved with everything",
            Self::Preparing => "about to begin",
            Self::Copying => "copying, while the application runs at the origin",
            Self::Switching => "waiting for the origin to suspend the application",
            Self::Held => "the application is suspended, and about to be accepted",
            Self::Accepting => "the application is being accepted",
            Self::PostCopy => "the application belongs here, and what it left is being pulled",
            Self::Completing => "everything is here, and the origin is being told",
            Self::Completed => "everything is here",
            Self::Aborting => "given up, and the origin is being told",
            Self::Aborted => "given up",
            Self::Ousted => "the origin has taken the application back by force; it must not run here",
        })
    }
}

#[cfg(test)]
mod simulation;
