//! Requests, replies and notifications: the frames whose bodies are short and read whole.

mod error;
mod hello;
mod migrate;
mod notification;
mod reply;
mod request;

pub use error::{RemoteError, RemoteErrorKind};
pub use hello::{Hello, HelloReply, MAGIC, Role};
pub use migrate::{
    MigrateRequest, MigrateStep, Migrated, MigrationAction, MigrationState, OriginState, SetStream, Witnessed,
};
pub use notification::Notification;
pub use reply::{Leased, ListReply, RegionInfo, Reply};
pub use request::{OpenMode, Request, TreeRequest};

use super::{FrameType, HEADER_LEN, Header};

/// Appends a frame: room for the header, the body that `write` appends, then the header over the room.
fn put_frame(out: &mut Vec<u8>, kind: FrameType, id: u64, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    write(out);
    let length = (out.len() - start - HEADER_LEN) as u32;
    debug_assert!(length <= kind.longest_body());
    out[start..start + HEADER_LEN].copy_from_slice(&Header { length, kind, id }.encode());
}

#[cfg(test)]
mod tests;
