//! The 16 bytes that stand before every body: length, type, flags, id.

use super::{MAX_MESSAGE, MAX_PAYLOAD, Malformed, data};

/// The length of a header, in bytes.
pub const HEADER_LEN: usize = 16;

/// What stands before every body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How many bytes of body follow.
    pub length: u32,
    /// What the body is.
    pub kind: FrameType,
    /// The request that this frame makes, answers or belongs to; 0 in a notification.
    pub id: u64,
}

/// The type of a frame. Its upper four bits are its [`Class`], so that a receiver knows what to do
/// with a type that it has never heard of.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameType(pub u16);

/// What a receiver owes to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// An answer: a reply, data, or an error; an unknown one is answered UNSUPPORTED.
    Request,
    /// Nothing: it ends a request of the receiver's own.
    Reply,
    /// Nothing; an unknown one is ignored.
    Notification,
    /// Nothing: it carries bytes for a request of the receiver's own.
    Data,
    /// The connection's end: no version of the protocol has such frames.
    Invalid,
}

macro_rules! frame_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl FrameType {
            $($(#[$doc])* pub const $name: FrameType = FrameType($value);)*

            /// The type's name in the specification, or `UNKNOWN`.
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($value => stringify!($name),)*
                    _ => "UNKNOWN",
                }
            }
        }
    };
}

frame_types! {
    /// The first frame of either side of a connection.
    HELLO = 0x0001;
    /// Is the other side there? The body comes back.
    PING = 0x0002;
    /// The names of the regions that are offered.
    LIST = 0x0003;
    /// Opens a region and pins its epoch.
    OPEN = 0x0004;
    /// Gives an open region back.
    CLOSE = 0x0005;
    /// What is known of a region, without opening it.
    INFO = 0x0006;
    /// Bytes of some ranges.
    READ = 0x0007;
    /// Bytes of many ranges, as fast as the window allows, in an order that can be changed.
    STREAM = 0x0008;
    /// Moves an open region to its newest epoch.
    REFRESH = 0x0009;
    /// Which bytes differ between an epoch and the newest.
    CHANGES = 0x000a;
    /// Bytes for some ranges.
    WRITE = 0x0010;
    /// Zeroes for some ranges.
    ZERO = 0x0011;
    /// Changes a region's length.
    SET_LENGTH = 0x0012;
    /// Makes writes durable and raises the epoch.
    FLUSH = 0x0013;
    /// Gives up what was written and not flushed.
    DISCARD = 0x0014;
    /// Reserved: what changed since an epoch, now and from now on.
    SUBSCRIBE = 0x0015;
    /// Hashes of a region.
    TREE = 0x0016;
    /// A step of a migration.
    MIGRATE = 0x0017;
    /// Bytes for some ranges, compressed.
    PACKED_WRITE = 0x0018;
    /// How a migration is doing, or that it is to be given up.
    MIGRATION = 0x0019;

    /// The answer to [`FrameType::HELLO`].
    HELLO_REPLY = 0x1001;
    /// The answer to [`FrameType::PING`].
    PONG = 0x1002;
    /// The answer to [`FrameType::LIST`].
    LIST_REPLY = 0x1003;
    /// The answer to [`FrameType::OPEN`] and [`FrameType::REFRESH`].
    OPENED = 0x1004;
    /// The answer to [`FrameType::CLOSE`].
    CLOSED = 0x1005;
    /// The answer to [`FrameType::INFO`].
    INFO_REPLY = 0x1006;
    /// The end of the data of a READ or a STREAM.
    END = 0x1007;
    /// The answer to an OPEN for writing.
    LEASED = 0x1008;
    /// The answer to what needs no other: it was done.
    DONE = 0x1009;
    /// The answer to [`FrameType::FLUSH`].
    FLUSHED = 0x100a;
    /// The answer to [`FrameType::CHANGES`].
    CHANGED = 0x100b;
    /// The answer to [`FrameType::TREE`].
    NODES = 0x100c;
    /// The answer to [`FrameType::MIGRATE`].
    MIGRATED = 0x100d;
    /// The answer to [`FrameType::MIGRATION`].
    MIGRATION_STATE = 0x100e;
    /// The answer to a request that failed.
    ERROR = 0x1fff;

    /// How far a stream may go.
    CREDIT = 0x2001;
    /// What a stream is to send next.
    STEER = 0x2002;
    /// A request is not wanted any more.
    CANCEL = 0x2003;
    /// The sender is about to close the connection, and why.
    GOODBYE = 0x2004;
    /// A region that is open has a newer epoch.
    EPOCH = 0x2005;

    /// Bytes of a region.
    DATA = 0x3001;
}

impl FrameType {
    /// The class of this type.
    pub const fn class(self) -> Class {
        match self.0 >> 12 {
            0 => Class::Request,
            1 => Class::Reply,
            2 => Class::Notification,
            3 => Class::Data,
            _ => Class::Invalid,
        }
    }

    /// The longest body that a frame of this type may have, in bytes.
    pub const fn longest_body(self) -> u32 {
        match self.class() {
            _ if self.0 == FrameType::WRITE.0 || self.0 == FrameType::PACKED_WRITE.0 => {
                MAX_PAYLOAD + MAX_MESSAGE
            }
            Class::Data => MAX_PAYLOAD + (data::DATA_HEADER_LEN + data::TRAILER_LEN) as u32,
            _ => MAX_MESSAGE,
        }
    }
}

impl std::fmt::Debug for FrameType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}(0x{:04x})", self.name(), self.0)
    }
}

impl Header {
    /// The header as bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.kind.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    /// The header in `bytes`.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the body would be longer than its type allows, if the class is none, or if
    /// the two bytes of flags, which version 1 does not use, are not zero. Of the body nothing has
    /// been read then, so that an oversized frame costs nothing.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let kind = FrameType(u16::from_le_bytes([bytes[4], bytes[5]]));
        let mut id = [0; 8];
        id.copy_from_slice(&bytes[8..16]);
        if kind.class() == Class::Invalid {
            return Err(Malformed::new("header", format!("0x{:04x} is no type of frame", kind.0)));
        }
        if bytes[6..8] != [0, 0] {
            return Err(Malformed::new(kind.name(), "flags that version 1 does not have are set"));
        }
        if length > kind.longest_body() {
            let longest = kind.longest_body();
            return Err(Malformed::new(
                kind.name(),
                format!("a body of {length} bytes, where {longest} are allowed"),
            ));
        }
        Ok(Self { length, kind, id: u64::from_le_bytes(id) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn oversized_bodies_are_refused_by_the_header_alone() {
        for kind in [FrameType::READ, FrameType::DATA, FrameType(0x0fff), FrameType(0x2fff)] {
            let fits = Header { length: kind.longest_body(), kind, id: 7 };
            assert_eq!(Header::decode(&fits.encode()), Ok(fits));
            let over = Header { length: kind.longest_body() + 1, ..fits };
            assert!(Header::decode(&over.encode()).is_err(), "{kind:?}");
        }
    }

    #[test]
    fn flags_and_classes_of_no_version_are_refused() {
        let mut bytes = Header { length: 0, kind: FrameType::PING, id: 0 }.encode();
        bytes[6] = 1;
        assert!(Header::decode(&bytes).is_err());
        for class in 4..16u16 {
            let bytes = Header { length: 0, kind: FrameType(class << 12), id: 0 }.encode();
            assert!(Header::decode(&bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_sixteen_bytes_decode_to_what_they_encode(bytes: [u8; HEADER_LEN]) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
