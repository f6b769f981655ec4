//! The wire protocol `pw`: what two Pagewire processes say to each other, as bytes.
//!
//! `docs/PROTOCOL.md` is the specification; this module is its codec and nothing more: it turns
//! messages into bytes and bytes into messages, and refuses what the specification refuses. It does
//! no I/O, so it is tested and fuzzed without a socket.
//!
//! # How the parts meet
//!
//! Everything that travels is a *frame*: a 16-byte [`Header`] and a body.
//! - [`message`]: requests, replies and notifications, whose bodies are short and read whole.
//! - [`data`]: bytes of a region, whose bodies are long and never copied by the codec.
//! - [`mod@write`]: the same in the other direction.
//! - [`cursor`]: the primitives both are written with; every length is checked before it is trusted.
//!
//! # Versions
//!
//! | version | what changed, and why |
//! | --- | --- |
//! | 1 | the first: reading |
//! | 2 | writing, and word of newer epochs, in types that version 1 had reserved |
//! | 3 | hashes of regions, so that those that are alike need not travel; compressed bytes, where both say so |
//! | 4 | migration: regions are opened to be moved, with what uses them |

pub mod data;
pub mod header;
pub mod message;
pub mod write;

mod cursor;

pub use cursor::Malformed;
pub use data::{DataHeader, Encoding, Trailer};
pub use header::{Class, FrameType, HEADER_LEN, Header};
pub use message::{
    Hello, HelloReply, Leased, ListReply, MigrateRequest, MigrateStep, Migrated, MigrationAction,
    MigrationState, Notification, OpenMode, OriginState, RegionInfo, RemoteError, RemoteErrorKind, Reply,
    Request, Role, SetStream, TreeRequest, Witnessed,
};
pub use write::{PackedWriteHeader, WriteHeader};

/// The newest version of the protocol that this codec speaks.
pub const VERSION: u16 = 4;

/// The oldest version of the protocol that this codec still speaks.
pub const OLDEST_VERSION: u16 = 1;

/// The longest name of a region, in bytes of UTF-8.
pub const MAX_NAME: usize = 255;

/// The longest name of a writer, in bytes of UTF-8.
pub const MAX_OWNER: usize = 128;

/// The most ranges that one request or notification may carry. A longer order is sent as several
/// streams, one after another.
pub const MAX_RANGES: usize = 32 * 1024;

/// The most hashes that one reply may carry: as many as fit in [`MAX_MESSAGE`].
pub const MAX_NODES: usize = 32 * 1024;

/// The longest body of a frame that is not [`data`], in bytes: [`MAX_RANGES`] ranges and some room.
pub const MAX_MESSAGE: u32 = 16 * MAX_RANGES as u32 + 4096;

/// The longest payload of one data frame, in bytes. Large enough that the cost per frame vanishes
/// (256 KiB already do), small enough that a cancelled stream stops soon.
pub const MAX_PAYLOAD: u32 = 1 << 20;

/// The longest span of one zero frame, in bytes: zeroes cost no bytes, but a receiver still has to
/// place them, and must be able to stop.
pub const MAX_ZERO_SPAN: u32 = 1 << 30;

/// A session: 128 random bits chosen by the client. Connections that show the same token belong to
/// the same session.
pub type SessionToken = [u8; 16];

/// An instance of a server process: 128 random bits chosen when it starts. Another instance id
/// means that the server has restarted and that what was not flushed is gone.
pub type InstanceId = [u8; 16];

/// The identity of a region, a UUID. A region with another identity is another region, whatever its
/// name.
pub type RegionId = [u8; 16];
