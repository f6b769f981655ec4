//! Live migration: a region that is in use is moved to another host, with the application that uses it.
//!
//! What happens when is decided in [`pagewire_core::migrate`]; here it is carried out.
//!
//! - [`live`]: what is moved: what an application has mapped or mounted.
//! - [`origin`]: the side that the application leaves, and [`outgoing`], each of its regions.
//! - [`destination`]: the side that it comes to, and [`incoming`], each region there.
//! - [`witness`]: a third store that has all of it before it moves, and [`witnessing`], how it comes there.
//! - [`transfer`]: pages on their way there.
//! - [`source`]: the origin or a witness, for what has not arrived.
//! - [`record`]: what either side keeps durably; [`inspect`] tells of it without a process.
//! - [`arriving`](crate::store::arriving): the region at the destination, while part of it is still at the origin.

mod destination;
mod incoming;
mod inspect;
mod live;
mod origin;
mod outgoing;
mod record;
mod source;
mod transfer;
mod witness;
mod witnessing;

pub use destination::{Arrived, Destination, DestinationOptions, Report, Saved, When, WitnessReport};
pub use inspect::{Recorded, Side, abort_recorded, recorded};
pub use live::Live;
pub(crate) use origin::Place;
pub use origin::{Application, Origin, OriginOptions, OriginStatus, Outcome};
pub use pagewire_core::migrate::{Goals, Mode, Phase};
pub use pagewire_core::wire::{MigrationAction, MigrationState, OriginState};
pub use witness::Witness;
