//! The handshake as a client carries it out, as a state machine without I/O: what to send, how many bytes to
//! wait for, and what the server offers in the end.
//!
//! [`ClientHandshake::poll_send`] gives what is to be sent; [`ClientHandshake::poll_next`] says what has to happen then,
//! and the `handle_*` methods take it. One option follows another, each when the one before was answered, as
//! the protocol demands:
//!
//! | option | where the server does not have it |
//! | --- | --- |
//! | STARTTLS, if TLS is wanted | the handshake fails: nothing goes on in clear |
//! | EXTENDED_HEADERS | STRUCTURED_REPLY |
//! | STRUCTURED_REPLY | simple replies |
//! | SET_META_CONTEXT `base:allocation` | nobody says where the holes are |
//! | GO, with the sizes of blocks | EXPORT_NAME, which does not tell them |
//!
//! A server of *newstyle* that is not *fixed* is asked for EXPORT_NAME alone, since it would hang up at any
//! other option. The oldstyle that was spoken before 2011 is refused.
//!
//! What a server says is bounded before it is kept: the length of each reply by [`MAX_OPTION`], and the
//! number of those to one option here.
//!
//! [`MAX_OPTION`]: super::MAX_OPTION

use super::numbers::NBDMAGIC;
use super::option::{InfoRequest, MetaContextRequest};
use super::option_reply::Info;
use super::{
    ClientFlags, ExportInfo, ExportNameReply, Greeting, HandshakeFlags, Headers, InfoType, Malformed,
    OptionReply, OptionReplyHeader, OptionReplyType, OptionRequest, OptionType,
};

/// The metadata context that says where holes are.
const ALLOCATION: &str = "base:allocation";

/// The second magic number of a server that speaks the oldstyle.
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;

/// How many replies to one option are taken, but for the list of exports.
const MOST_REPLIES: usize = 64;

/// How many exports of a list are taken, and how many bytes of their names and descriptions.
const MOST_EXPORTS: usize = 100_000;
const MOST_LISTED: usize = 16 << 20;

/// About how many exports of a list it is asked what there is to know, which takes a round trip each.
const MOST_DESCRIBED: usize = 1000;

/// What a client wants of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// To use the export of this name; an empty one is the default export's.
    Export(String),
    /// To know which exports there are.
    List,
}

/// What has to happen next, once all that [`ClientHandshake::poll_send`] gives is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// So many bytes are to be received, and given to [`ClientHandshake::handle_bytes`].
    Receive(usize),
    /// TLS is to be begun, and then [`ClientHandshake::handle_tls`] to be called.
    BeginTls,
    /// Nothing: the handshake is over.
    Done,
}

/// Why a handshake has failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Whoever is there is no NBD server.
    #[error("it is no NBD server: it begins with {0:02x?}")]
    NoServer([u8; 8]),
    /// It speaks the protocol of before 2011.
    #[error("it speaks the oldstyle handshake of before 2011, which has no export names and no options")]
    Oldstyle,
    /// TLS is wanted, and not to be had.
    #[error("it does not offer TLS{}", said(.0))]
    NoTls(String),
    /// TLS is not wanted, and the server talks to nobody without it.
    #[error("it demands TLS{}: write nbds://", said(.0))]
    TlsDemanded(String),
    /// There is no such export.
    #[error("it has no export '{}'{}", .name.escape_debug(), said(.message))]
    NoExport {
        /// The name that was asked for.
        name: String,
        /// What the server says.
        message: String,
    },
    /// The server will not have it.
    #[error("it refuses {option} ({kind}){}", said(.message))]
    Refused {
        /// What was asked for.
        option: OptionType,
        /// How it was refused.
        kind: OptionReplyType,
        /// What the server says.
        message: String,
    },
    /// It does not tell which exports it has.
    #[error("it does not list its exports{}", said(.0))]
    NoList(String),
    /// What it says does not follow the specification.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What a server says for people, behind what has happened. A terminal is not to obey it.
fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {}", message.escape_debug()) }
}

/// What a server has agreed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// The export that was chosen.
    pub export: ExportInfo,
    /// Which headers are used.
    pub headers: Headers,
    /// The number of the metadata context `base:allocation`, where it was selected.
    pub allocation: Option<u32>,
}

/// An export in a server's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What it is, for people; may be empty.
    pub description: String,
    /// What there is to know of it, where the server tells.
    pub export: Option<ExportInfo>,
}

/// What a handshake has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An export can be used: transmission begins.
    Export(Agreed),
    /// The server's exports. The server is told that this was all, and the connection is to be closed.
    List(Vec<Listed>),
}

/// A handshake with a server. [`ClientHandshake`] describes the order of the calls.
#[derive(Debug)]
pub struct ClientHandshake {
    wanted: Wanted,
    wants_tls: bool,
    step: Step,
    out: Vec<u8>,
    no_zeroes: bool,
    headers: Headers,
    allocation: Option<u32>,
    /// What was said of the export that is asked for just now.
    infos: Infos,
    listed: Vec<Listed>,
    listed_bytes: usize,
    /// Which of them is asked for.
    at: usize,
    /// How many replies have come to the option that was sent last.
    replies: usize,
    outcome: Option<Outcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Greeting,
    ReplyHeader(OptionType),
    Reply(OptionReplyHeader),
    ExportName,
    BeginTls,
    Done,
}

/// What replies to INFO and GO have said.
#[derive(Debug, Default)]
struct Infos {
    export: Option<ExportInfo>,
    name: Option<String>,
    description: Option<String>,
    blocks: Option<super::BlockSizes>,
}

impl Infos {
    fn finish(self) -> Result<ExportInfo, Malformed> {
        let Some(mut export) = self.export else {
            let reason = "an export without NBD_INFO_EXPORT";
            return Err(Malformed::new("reply to NBD_OPT_GO", reason));
        };
        (export.name, export.description, export.blocks) = (self.name, self.description, self.blocks);
        export.check()?;
        Ok(export)
    }
}

impl ClientHandshake {
    /// One that wants this of a server; through TLS, if so.
    pub fn new(wanted: Wanted, tls: bool) -> Self {
        Self {
            wanted,
            wants_tls: tls,
            step: Step::Greeting,
            out: Vec::new(),
            no_zeroes: false,
            headers: Headers::Simple,
            allocation: None,
            infos: Infos::default(),
            listed: Vec::new(),
            listed_bytes: 0,
            at: 0,
            replies: 0,
            outcome: None,
        }
    }

    /// What is to be sent now. Gives each byte once.
    pub fn poll_send(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// What has to happen next.
    pub fn poll_next(&self) -> Next {
        match self.step {
            Step::Greeting => Next::Receive(Greeting::LEN),
            Step::ReplyHeader(_) => Next::Receive(OptionReplyHeader::LEN),
            Step::Reply(header) => Next::Receive(header.length as usize),
            Step::ExportName => {
                let zeroes = if self.no_zeroes { 0 } else { ExportNameReply::ZEROES };
                Next::Receive(ExportNameReply::LEN + zeroes)
            }
            Step::BeginTls => Next::BeginTls,
            Step::Done => Next::Done,
        }
    }

    /// What the handshake has brought, once it is over.
    pub fn into_outcome(self) -> Option<Outcome> {
        self.outcome
    }

    /// TLS has begun: everything from now on goes through it.
    pub fn handle_tls(&mut self) {
        if self.step == Step::BeginTls {
            self.wants_tls = false;
            self.after_tls();
        }
    }

    /// The bytes that [`Next::Receive`] has asked for have come.
    ///
    /// # Errors
    ///
    /// Where the server will not, or does not speak the protocol. The handshake cannot go on then. What
    /// [`ClientHandshake::poll_send`] gives is the word to the server that this side goes, where it can be told.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        match self.step {
            Step::Greeting => self.greeted(bytes),
            Step::ReplyHeader(option) => self.reply_header(option, bytes),
            Step::Reply(header) => self.reply(header, bytes),
            Step::ExportName => {
                let mut reply = [0; ExportNameReply::LEN];
                reply.copy_from_slice(&bytes[..ExportNameReply::LEN]);
                let ExportNameReply { size, flags } = ExportNameReply::decode(&reply)?;
                self.agree(ExportInfo::new(size, flags));
                Ok(())
            }
            Step::BeginTls | Step::Done => Ok(()),
        }
    }

    fn greeted(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        let mut greeting = [0; Greeting::LEN];
        greeting.copy_from_slice(bytes);
        let (first, second) = greeting.split_at(8);
        if *first != NBDMAGIC.to_be_bytes() {
            let mut begin = [0; 8];
            begin.copy_from_slice(first);
            return Err(HandshakeError::NoServer(begin));
        }
        if second[..8] == OLDSTYLE_MAGIC.to_be_bytes() {
            return Err(HandshakeError::Oldstyle);
        }
        let Greeting { flags } = Greeting::decode(&greeting)?;
        let is_fixed = flags.contains(HandshakeFlags::FIXED_NEWSTYLE);
        self.no_zeroes = flags.contains(HandshakeFlags::NO_ZEROES);
        let ours = ClientFlags::NONE
            .with_if(ClientFlags::FIXED_NEWSTYLE, is_fixed)
            .with_if(ClientFlags::NO_ZEROES, self.no_zeroes);
        self.out.extend_from_slice(&ours.encode());
        match &self.wanted {
            _ if is_fixed && self.wants_tls => self.ask(&OptionRequest::StartTls),
            _ if is_fixed => self.after_tls(),
            _ if self.wants_tls => return Err(HandshakeError::NoTls("it knows no options".into())),
            Wanted::List => return Err(HandshakeError::NoList("it knows no options".into())),
            Wanted::Export(_) => self.ask_by_name(),
        }
        Ok(())
    }

    fn reply_header(&mut self, option: OptionType, bytes: &[u8]) -> Result<(), HandshakeError> {
        let mut header = [0; OptionReplyHeader::LEN];
        header.copy_from_slice(bytes);
        let header = OptionReplyHeader::decode(&header)?;
        if header.option != option {
            let reason = format!("{} is answered where {option} was asked for", header.option);
            return Err(Malformed::new("reply to an option", reason).into());
        }
        self.step = Step::Reply(header);
        if header.length == 0 { self.reply(header, &[]) } else { Ok(()) }
    }

    fn reply(&mut self, header: OptionReplyHeader, data: &[u8]) -> Result<(), HandshakeError> {
        let option = header.option;
        self.replies += 1;
        let most = if option == OptionType::LIST { MOST_EXPORTS } else { MOST_REPLIES };
        if self.replies > most {
            let reason = format!("more than {most} replies");
            return Err(Malformed::new(option.name().unwrap_or("option"), reason).into());
        }
        self.step = Step::ReplyHeader(option);
        match OptionReply::decode(header.kind, data)? {
            OptionReply::Ack => self.acknowledged(option),
            OptionReply::Error { kind, message } => self.refused(option, kind, message),
            OptionReply::Server { name, description } if option == OptionType::LIST => {
                self.listed_bytes += name.len() + description.len();
                if self.listed_bytes > MOST_LISTED {
                    let reason = format!("more than {MOST_LISTED} bytes of names");
                    return Err(Malformed::new("list of exports", reason).into());
                }
                self.listed.push(Listed { name, description, export: None });
                Ok(())
            }
            OptionReply::Info(info) if matches!(option, OptionType::GO | OptionType::INFO) => {
                match info {
                    Info::Export { size, flags } => self.infos.export = Some(ExportInfo::new(size, flags)),
                    Info::Name(name) => self.infos.name = Some(name),
                    Info::Description(description) => self.infos.description = Some(description),
                    Info::BlockSize(blocks) => self.infos.blocks = Some(blocks),
                    Info::Unknown(_) => {}
                }
                Ok(())
            }
            OptionReply::MetaContext { id, name } if option == OptionType::SET_META_CONTEXT => {
                // Others were not asked for.
                if name == ALLOCATION {
                    self.allocation = Some(id);
                }
                Ok(())
            }
            reply => {
                let reason = format!("it is answered by {}", reply.kind());
                Err(Malformed::new(option.name().unwrap_or("option"), reason).into())
            }
        }
    }

    fn acknowledged(&mut self, option: OptionType) -> Result<(), HandshakeError> {
        match option {
            OptionType::STARTTLS => self.step = Step::BeginTls,
            OptionType::EXTENDED_HEADERS => {
                self.headers = Headers::Extended;
                self.ask_for_context();
            }
            OptionType::STRUCTURED_REPLY => {
                self.headers = Headers::Structured;
                self.ask_for_context();
            }
            OptionType::SET_META_CONTEXT => self.ask_to_go(),
            OptionType::GO => {
                let export = std::mem::take(&mut self.infos).finish()?;
                self.agree(export);
            }
            OptionType::LIST => self.ask_for_info(),
            OptionType::INFO => {
                let export = std::mem::take(&mut self.infos).finish()?;
                self.listed[self.at].export = Some(export);
                self.at += 1;
                self.ask_for_info();
            }
            _ => {}
        }
        Ok(())
    }

    fn refused(
        &mut self,
        option: OptionType,
        kind: OptionReplyType,
        message: String,
    ) -> Result<(), HandshakeError> {
        // Whatever it is for: the server stops, or talks to nobody like this.
        if kind == OptionReplyType::ERR_SHUTDOWN {
            return self.leave(HandshakeError::Refused { option, kind, message });
        }
        if kind == OptionReplyType::ERR_TLS_REQD && option != OptionType::INFO {
            return self.leave(HandshakeError::TlsDemanded(message));
        }
        match option {
            OptionType::EXTENDED_HEADERS => self.ask(&OptionRequest::StructuredReply),
            OptionType::STRUCTURED_REPLY | OptionType::SET_META_CONTEXT => {
                self.allocation = None;
                self.ask_to_go();
            }
            OptionType::STARTTLS => return self.leave(HandshakeError::NoTls(message)),
            OptionType::LIST => return self.leave(HandshakeError::NoList(message)),
            OptionType::INFO => {
                // Told or not, the export is in the list.
                self.infos = Infos::default();
                self.at += 1;
                self.ask_for_info();
            }
            OptionType::GO if kind == OptionReplyType::ERR_UNSUP => self.ask_by_name(),
            OptionType::GO if kind == OptionReplyType::ERR_UNKNOWN => {
                let name = self.export_name().to_owned();
                return self.leave(HandshakeError::NoExport { name, message });
            }
            _ => return self.leave(HandshakeError::Refused { option, kind, message }),
        }
        Ok(())
    }

    fn export_name(&self) -> &str {
        match &self.wanted {
            Wanted::Export(name) => name,
            Wanted::List => "",
        }
    }

    fn ask(&mut self, option: &OptionRequest) {
        option.encode(&mut self.out);
        self.replies = 0;
        self.step = Step::ReplyHeader(option.option());
    }

    fn after_tls(&mut self) {
        match self.wanted {
            Wanted::Export(_) => self.ask(&OptionRequest::ExtendedHeaders),
            Wanted::List => self.ask(&OptionRequest::List),
        }
    }

    fn ask_for_context(&mut self) {
        let (name, queries) = (self.export_name().to_owned(), vec![ALLOCATION.to_owned()]);
        self.ask(&OptionRequest::SetMetaContext(MetaContextRequest { name, queries }));
    }

    fn ask_to_go(&mut self) {
        let (name, wanted) = (self.export_name().to_owned(), vec![InfoType::BLOCK_SIZE]);
        self.ask(&OptionRequest::Go(InfoRequest { name, wanted }));
    }

    fn ask_by_name(&mut self) {
        OptionRequest::ExportName(self.export_name().to_owned()).encode(&mut self.out);
        self.step = Step::ExportName;
    }

    /// Asks what there is to know of the next export of the list, if there is one.
    fn ask_for_info(&mut self) {
        let Some(listed) = self.listed.get(self.at).filter(|_| self.at < MOST_DESCRIBED) else {
            OptionRequest::Abort.encode(&mut self.out);
            self.step = Step::Done;
            self.outcome = Some(Outcome::List(std::mem::take(&mut self.listed)));
            return;
        };
        let (name, wanted) = (listed.name.clone(), vec![InfoType::BLOCK_SIZE]);
        self.ask(&OptionRequest::Info(InfoRequest { name, wanted }));
    }

    fn agree(&mut self, export: ExportInfo) {
        self.step = Step::Done;
        self.outcome =
            Some(Outcome::Export(Agreed { export, headers: self.headers, allocation: self.allocation }));
    }

    /// Gives up, and tells the server.
    fn leave(&mut self, error: HandshakeError) -> Result<(), HandshakeError> {
        OptionRequest::Abort.encode(&mut self.out);
        self.step = Step::Done;
        Err(error)
    }
}
