//! The fields of flags, with the specification's names.

macro_rules! flags {
    ($(#[$doc:meta])* $type:ident($bits:ty), $prefix:literal; $($(#[$flag_doc:meta])* $name:ident = $bit:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $type(pub $bits);

        impl $type {
            $($(#[$flag_doc])* pub const $name: $type = $type(1 << $bit);)*

            /// No flag.
            pub const NONE: $type = $type(0);

            /// Whether all of these are set.
            pub const fn contains(self, flags: $type) -> bool {
                self.0 & flags.0 == flags.0
            }

            /// These flags and those.
            pub const fn with(self, flags: $type) -> $type {
                $type(self.0 | flags.0)
            }

            /// These flags and those, if so.
            pub const fn with_if(self, flags: $type, so: bool) -> $type {
                if so { self.with(flags) } else { self }
            }

            /// These flags but those.
            pub const fn without(self, flags: $type) -> $type {
                $type(self.0 & !flags.0)
            }

            /// Whether there are none but these.
            pub const fn is_within(self, flags: $type) -> bool {
                self.0 & !flags.0 == 0
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let known: &[($type, &str)] = &[$(($type::$name, stringify!($name))),*];
                write!(f, "{}(0x{:x}", $prefix, self.0)?;
                for (_, name) in known.iter().filter(|(flag, _)| self.contains(*flag)) {
                    write!(f, " {name}")?;
                }
                f.write_str(")")
            }
        }
    };
}

flags! {
    /// What a server says of the handshake: `NBD_FLAG_…`.
    HandshakeFlags(u16), "NBD_FLAG";
    /// Options are answered.
    FIXED_NEWSTYLE = 0;
    /// The answer to `NBD_OPT_EXPORT_NAME` can do without its 124 bytes of zeroes.
    NO_ZEROES = 1;
}

flags! {
    /// What a client says of the handshake: `NBD_FLAG_C_…`.
    ClientFlags(u32), "NBD_FLAG_C";
    /// The client expects options to be answered.
    FIXED_NEWSTYLE = 0;
    /// The client wants the answer to `NBD_OPT_EXPORT_NAME` without its zeroes.
    NO_ZEROES = 1;
}

flags! {
    /// What an export can do: `NBD_FLAG_…`.
    TransmissionFlags(u16), "NBD_FLAG";
    /// Always set.
    HAS_FLAGS = 0;
    /// It cannot be written to.
    READ_ONLY = 1;
    /// `NBD_CMD_FLUSH`.
    SEND_FLUSH = 2;
    /// `NBD_CMD_FLAG_FUA`.
    SEND_FUA = 3;
    /// It is on a disk that turns.
    ROTATIONAL = 4;
    /// `NBD_CMD_TRIM`.
    SEND_TRIM = 5;
    /// `NBD_CMD_WRITE_ZEROES` and `NBD_CMD_FLAG_NO_HOLE`.
    SEND_WRITE_ZEROES = 6;
    /// `NBD_CMD_FLAG_DF`.
    SEND_DF = 7;
    /// A flush on one connection covers what was written on all of them.
    CAN_MULTI_CONN = 8;
    /// `NBD_CMD_RESIZE`, of an experimental extension.
    SEND_RESIZE = 9;
    /// `NBD_CMD_CACHE`.
    SEND_CACHE = 10;
    /// `NBD_CMD_FLAG_FAST_ZERO`.
    SEND_FAST_ZERO = 11;
    /// `NBD_CMD_BLOCK_STATUS` with a payload that chooses among the contexts.
    BLOCK_STATUS_PAYLOAD = 12;
}

flags! {
    /// How a request is to be carried out: `NBD_CMD_FLAG_…`.
    CommandFlags(u16), "NBD_CMD_FLAG";
    /// Answered when it is durable.
    FUA = 0;
    /// Zeroes that take up room.
    NO_HOLE = 1;
    /// One chunk of content at most.
    DF = 2;
    /// One descriptor.
    REQ_ONE = 3;
    /// Zeroes that cost less than to write them, or none.
    FAST_ZERO = 4;
    /// The length is that of a payload. Of extended headers.
    PAYLOAD_LEN = 5;
}

flags! {
    /// Of a chunk: `NBD_REPLY_FLAG_…`.
    ReplyFlags(u16), "NBD_REPLY_FLAG";
    /// The last one of its reply.
    DONE = 0;
}

flags! {
    /// The state of an extent in the context `base:allocation`: `NBD_STATE_…`.
    AllocationState(u32), "NBD_STATE";
    /// It takes up no room.
    HOLE = 0;
    /// It reads as zeroes.
    ZERO = 1;
}
