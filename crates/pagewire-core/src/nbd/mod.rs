//! The protocol NBD: what a server of block devices and its clients say to each other, as bytes.
//!
//! The [specification] is followed to the letter and in its words; this module is the codec of both
//! roles, and the decisions of the handshake and of what a request may ask for. It does no I/O, so it is
//! tested and fuzzed without a socket. Integers are big-endian.
//!
//! # How the parts meet
//!
//! A connection has two phases. In the *handshake* the server greets ([`greeting`]), and the client sends
//! [options](option), each answered by [replies](option_reply), until one of them chooses an export. From
//! then on there is *transmission*: [requests](request), each answered by a simple [reply] or by
//! [chunks](chunk).
//!
//! - [`numbers`], [`flags`]: the constants of the specification.
//! - [`export`]: what is said of an export.
//! - [`server`]: the handshake as a server carries it out, as a state machine.
//! - [`command`]: what a request asks for, if it may ask for it.
//! - [`fields`]: the primitives that all is written with; every length is checked before it is trusted.
//!
//! Numbers that nobody knows are kept as they are: what is to be done about them depends on the role.
//!
//! [specification]: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md

pub mod chunk;
pub mod command;
pub mod export;
pub mod flags;
pub mod greeting;
pub mod numbers;
pub mod option;
pub mod option_reply;
pub mod reply;
pub mod request;
pub mod server;

mod fields;

#[cfg(test)]
mod tests;

pub use chunk::{Chunk, Descriptor, DescriptorExt};
pub use command::{Command, Refusal, Terms};
pub use export::{BlockSizes, ExportInfo};
pub use fields::Malformed;
pub use flags::{AllocationState, ClientFlags, CommandFlags, HandshakeFlags, ReplyFlags, TransmissionFlags};
pub use greeting::{ExportNameReply, Greeting};
pub use numbers::{ChunkType, CommandType, ErrorNumber, InfoType, OptionReplyType, OptionType};
pub use option::{OptionHeader, OptionRequest};
pub use option_reply::{OptionReply, OptionReplyHeader};
pub use reply::{Headers, ReplyHeader};
pub use request::Request;

/// The longest string (name, description, message, query), in bytes: the specification's limit.
pub const MAX_STRING: usize = 4096;

/// The longest data of an option or of a reply to one that is taken in, in bytes. The longest that makes
/// sense is a name with a handful of queries.
pub const MAX_OPTION: u32 = 64 << 10;

/// The longest payload of a request, and the most bytes that one read may ask for: what the
/// specification tells clients to rely on.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// The most descriptors in one status chunk: the specification's limit.
pub const MAX_DESCRIPTORS: usize = 1 << 20;
