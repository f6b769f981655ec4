//! The numbers that name things, with the specification's names, and the magic ones.

/// What a server begins with: `NBDMAGIC`.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;

/// What newstyle negotiation and each option begin with: `IHAVEOPT`.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;

/// What the reply to an option begins with.
pub const NBD_OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// What a compact request begins with.
pub const NBD_REQUEST_MAGIC: u32 = 0x2560_9513;

/// What an extended request begins with.
pub const NBD_EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;

/// What a simple reply begins with.
pub const NBD_SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// What a chunk of a structured reply begins with.
pub const NBD_STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// What a chunk of an extended reply begins with.
pub const NBD_EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

macro_rules! numbers {
    ($(#[$doc:meta])* $type:ident($bits:ty), $prefix:literal; $($(#[$number_doc:meta])* $name:ident = $value:expr;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(pub $bits);

        impl $type {
            $($(#[$number_doc])* pub const $name: $type = $type($value);)*

            /// The name in the specification, or none.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $($type::$name => Some(concat!($prefix, stringify!($name))),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{}0x{:x}", $prefix, self.0),
                }
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

numbers! {
    /// What a client wants in the handshake.
    OptionType(u32), "NBD_OPT_";
    /// To use an export. Can only be answered by success.
    EXPORT_NAME = 1;
    /// To end the handshake.
    ABORT = 2;
    /// The names of the exports.
    LIST = 3;
    /// Withdrawn.
    PEEK_EXPORT = 4;
    /// TLS.
    STARTTLS = 5;
    /// What there is to know of an export.
    INFO = 6;
    /// To use an export.
    GO = 7;
    /// Structured replies.
    STRUCTURED_REPLY = 8;
    /// Which metadata contexts there are.
    LIST_META_CONTEXT = 9;
    /// To have metadata contexts.
    SET_META_CONTEXT = 10;
    /// Extended headers.
    EXTENDED_HEADERS = 11;
}

const ERROR: u32 = 1 << 31;

numbers! {
    /// How an option is answered.
    OptionReplyType(u32), "NBD_REP_";
    /// Done.
    ACK = 1;
    /// An export.
    SERVER = 2;
    /// Something about an export.
    INFO = 3;
    /// A metadata context.
    META_CONTEXT = 4;
    /// The option is unknown.
    ERR_UNSUP = ERROR + 1;
    /// The option is not allowed.
    ERR_POLICY = ERROR + 2;
    /// The option makes no sense.
    ERR_INVALID = ERROR + 3;
    /// The option is not supported here.
    ERR_PLATFORM = ERROR + 4;
    /// TLS has to be first.
    ERR_TLS_REQD = ERROR + 5;
    /// There is no such export.
    ERR_UNKNOWN = ERROR + 6;
    /// The server stops.
    ERR_SHUTDOWN = ERROR + 7;
    /// The client has to ask for the sizes of blocks.
    ERR_BLOCK_SIZE_REQD = ERROR + 8;
    /// It is too much.
    ERR_TOO_BIG = ERROR + 9;
    /// The client has to ask for extended headers, or has them.
    ERR_EXT_HEADER_REQD = ERROR + 10;
}

impl OptionReplyType {
    /// Whether it says that the option has failed.
    pub const fn is_error(self) -> bool {
        self.0 & ERROR != 0
    }
}

numbers! {
    /// What is said of an export.
    InfoType(u16), "NBD_INFO_";
    /// Its size and flags.
    EXPORT = 0;
    /// Its name.
    NAME = 1;
    /// What it is, for people.
    DESCRIPTION = 2;
    /// The sizes of its blocks.
    BLOCK_SIZE = 3;
}

numbers! {
    /// What a request asks for.
    CommandType(u16), "NBD_CMD_";
    /// Bytes.
    READ = 0;
    /// To have bytes written.
    WRITE = 1;
    /// The end. It is not answered.
    DISC = 2;
    /// That what was written is durable.
    FLUSH = 3;
    /// To forget bytes.
    TRIM = 4;
    /// To have bytes ready.
    CACHE = 5;
    /// To have zeroes written.
    WRITE_ZEROES = 6;
    /// What the metadata contexts say.
    BLOCK_STATUS = 7;
    /// Another size. Of an experimental extension.
    RESIZE = 8;
}

const CHUNK_ERROR: u16 = 1 << 15;

numbers! {
    /// What a chunk of a reply is.
    ChunkType(u16), "NBD_REPLY_TYPE_";
    /// Nothing but the end.
    NONE = 0;
    /// Bytes.
    OFFSET_DATA = 1;
    /// Zeroes.
    OFFSET_HOLE = 2;
    /// What a metadata context says.
    BLOCK_STATUS = 5;
    /// The same, in 64 bits.
    BLOCK_STATUS_EXT = 6;
    /// An error.
    ERROR = CHUNK_ERROR + 1;
    /// An error somewhere.
    ERROR_OFFSET = CHUNK_ERROR + 2;
}

impl ChunkType {
    /// Whether it says that the request has failed.
    pub const fn is_error(self) -> bool {
        self.0 & CHUNK_ERROR != 0
    }
}

numbers! {
    /// Why a request has failed.
    ErrorNumber(u32), "NBD_";
    /// Not permitted.
    EPERM = 1;
    /// Input or output has failed.
    EIO = 5;
    /// No memory.
    ENOMEM = 12;
    /// The request makes no sense.
    EINVAL = 22;
    /// No room.
    ENOSPC = 28;
    /// It is too much.
    EOVERFLOW = 75;
    /// Not supported.
    ENOTSUP = 95;
    /// The server stops.
    ESHUTDOWN = 108;
}
