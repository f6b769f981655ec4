//! The handshake as a server carries it out.
//!
//! A state machine: it says how many bytes it wants ([`ServerHandshake::wanted`]), is given exactly these
//! ([`ServerHandshake::receive`]), and answers with bytes to send and with what to do next. So whoever drives
//! it reads nothing that belongs behind an upgrade to TLS or to the transmission phase, and nobody who sits
//! between can slip something in. What exports there are it asks [`Exports`].
//!
//! Memory is bounded by [`MAX_OPTION`]; an option that is longer is received in pieces, thrown away and refused.
//! How long the handshake may take is for the driver to say.

use super::greeting::ExportNameReply;
use super::option::{InfoRequest, MetaContextRequest};
use super::option_reply::Info;
use super::{
    ClientFlags, ExportInfo, Greeting, HandshakeFlags, Headers, InfoType, MAX_OPTION, MAX_PAYLOAD, Malformed,
    OptionHeader, OptionReply, OptionReplyType, OptionRequest, OptionType, TransmissionFlags,
};

/// The most options that one client may send: who sends more is after something else.
pub const MAX_OPTIONS: usize = 4096;

/// The most metadata contexts that one connection may select.
pub const MAX_CONTEXTS: usize = 64;

/// What a server does about TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// It has none: NOTLS.
    Absent,
    /// Clients may have it: SELECTIVETLS, with all exports for everybody.
    Offered,
    /// Clients must have it: FORCEDTLS.
    Required,
}

/// What exports a server has: whoever drives the handshake knows.
pub trait Exports {
    /// The exports' names, and what each is, for people.
    fn list(&mut self) -> Vec<(String, String)>;

    /// What there is to know of an export under these headers; an empty name is the default export's.
    ///
    /// # Errors
    ///
    /// [`Denied`] where there is none, or it cannot be used.
    fn info(&mut self, name: &str, headers: Headers) -> Result<ExportInfo, Denied>;

    /// The same for one that is used from now on.
    ///
    /// # Errors
    ///
    /// As [`Exports::info`].
    fn enter(&mut self, name: &str, headers: Headers) -> Result<ExportInfo, Denied>;

    /// The metadata contexts of an export that are under `query`, or all without one. A query that ends with
    /// a colon may stand for many where `listing`; else a query names at most one.
    ///
    /// # Errors
    ///
    /// As [`Exports::info`].
    fn contexts(&mut self, name: &str, query: Option<&str>, listing: bool) -> Result<Vec<String>, Denied>;
}

/// Why an export cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The reply to the option.
    pub kind: OptionReplyType,
    /// The same for people.
    pub message: String,
}

/// What to do next, after what there is to send was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// To receive what is [wanted](ServerHandshake::wanted).
    Receive,
    /// To begin TLS, and then to receive.
    StartTls,
    /// The handshake is over: the export of [`Exports::enter`] is used from now on.
    Transmit(Transmission),
    /// To close the connection.
    Close,
}

/// What the handshake has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmission {
    /// The export as the client has been told of it.
    pub export: ExportInfo,
    /// Which headers are used.
    pub headers: Headers,
    /// The metadata contexts that were selected; each one's id is its place, from 1 on.
    pub contexts: Vec<String>,
    /// Whether the client has promised to keep to the sizes of blocks.
    pub keeps_to_blocks: bool,
}

/// The server's side of one handshake.
#[derive(Debug)]
pub struct ServerHandshake {
    tls: TlsMode,
    secured: bool,
    /// Until the client has said that it expects replies, there is one option for it.
    fixed: bool,
    no_zeroes: bool,
    headers: Headers,
    /// The export that metadata contexts were selected for, and which.
    contexts: Option<(String, Vec<String>)>,
    state: State,
    options: usize,
    /// Set where the server is about to stop.
    stopping: bool,
}

#[derive(Debug)]
enum State {
    Flags,
    Header,
    Data(OptionHeader),
    /// So many bytes of an option are thrown away.
    Skip(OptionType, u32),
    Over,
}

impl ServerHandshake {
    /// Of a connection that has just been made. Send [`ServerHandshake::greeting`] first.
    pub fn new(tls: TlsMode) -> Self {
        Self {
            tls,
            secured: false,
            fixed: false,
            no_zeroes: false,
            headers: Headers::Simple,
            contexts: None,
            state: State::Flags,
            options: 0,
            stopping: false,
        }
    }

    /// What the server sends first.
    pub fn greeting() -> [u8; Greeting::LEN] {
        Greeting { flags: HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES) }.encode()
    }

    /// From now on all options but ABORT are refused: the server stops.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// How many bytes [`ServerHandshake::receive`] wants. May be 0.
    pub fn wanted(&self) -> usize {
        match &self.state {
            State::Flags => ClientFlags::LEN,
            State::Header => OptionHeader::LEN,
            State::Data(header) => header.length as usize,
            State::Skip(_, left) => (*left).min(MAX_OPTION) as usize,
            State::Over => 0,
        }
    }

    /// Goes on with as many bytes as were wanted, and appends to `out` what there is to send.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where the client breaks the protocol, so that its connection is to be closed.
    ///
    /// # Panics
    ///
    /// If it is given another number of bytes than wanted.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        exports: &mut dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Next, Malformed> {
        assert_eq!(bytes.len(), self.wanted(), "the handshake wants so many bytes");
        match std::mem::replace(&mut self.state, State::Over) {
            State::Flags => self.client_flags(bytes),
            State::Header => self.header(bytes),
            State::Data(header) => self.option(header.option, bytes, exports, out),
            State::Skip(option, left) => {
                let left = left - bytes.len() as u32;
                if left == 0 {
                    let message = format!("{option} with so much data is not taken");
                    error(option, OptionReplyType::ERR_TOO_BIG, &message, out);
                    self.state = State::Header;
                } else {
                    self.state = State::Skip(option, left);
                }
                Ok(Next::Receive)
            }
            State::Over => Ok(Next::Close),
        }
    }

    fn client_flags(&mut self, bytes: &[u8]) -> Result<Next, Malformed> {
        let mut array = [0; ClientFlags::LEN];
        array.copy_from_slice(bytes);
        let flags = ClientFlags::decode(array);
        if !flags.is_within(ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES)) {
            return Err(Malformed::new("client flags", format!("{flags:?} are not known")));
        }
        self.fixed = flags.contains(ClientFlags::FIXED_NEWSTYLE);
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.state = State::Header;
        Ok(Next::Receive)
    }

    fn header(&mut self, bytes: &[u8]) -> Result<Next, Malformed> {
        let mut array = [0; OptionHeader::LEN];
        array.copy_from_slice(bytes);
        let header = OptionHeader::decode(&array)?;
        let OptionHeader { option, length } = header;
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Err(Malformed::new("handshake", format!("{MAX_OPTIONS} options and no end")));
        }
        if !self.fixed && option != OptionType::EXPORT_NAME {
            return Err(Malformed::new("handshake", format!("{option} without NBD_FLAG_C_FIXED_NEWSTYLE")));
        }
        if length <= MAX_OPTION {
            self.state = State::Data(header);
        } else if length <= MAX_PAYLOAD && option != OptionType::EXPORT_NAME {
            self.state = State::Skip(option, length);
        } else {
            return Err(Malformed::new("option", format!("{option} with {length} bytes of data")));
        }
        Ok(Next::Receive)
    }

    /// An option with all of its data.
    fn option(
        &mut self,
        option: OptionType,
        data: &[u8],
        exports: &mut dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Next, Malformed> {
        self.state = State::Header;
        let request = match OptionRequest::decode(option, data) {
            // What was selected before is given up also where the new selection fails.
            Err(_) if option == OptionType::SET_META_CONTEXT => {
                self.contexts = None;
                error(option, OptionReplyType::ERR_INVALID, "the option's data make no sense", out);
                return Ok(Next::Receive);
            }
            Err(malformed) if option == OptionType::EXPORT_NAME => return Err(malformed),
            Err(malformed) => {
                error(option, OptionReplyType::ERR_INVALID, &malformed.to_string(), out);
                return Ok(Next::Receive);
            }
            Ok(request) => request,
        };
        if request == OptionRequest::Abort {
            OptionReply::Ack.encode(option, out);
            self.state = State::Over;
            return Ok(Next::Close);
        }
        if let Some((kind, message)) = self.refusal(&request) {
            if option == OptionType::EXPORT_NAME {
                return Err(Malformed::new("handshake", format!("NBD_OPT_EXPORT_NAME: {message}")));
            }
            error(option, kind, message, out);
            return Ok(Next::Receive);
        }
        match request {
            OptionRequest::ExportName(name) => return self.export_name(&name, exports, out),
            OptionRequest::List => {
                for (name, description) in exports.list() {
                    OptionReply::Server { name, description }.encode(option, out);
                }
                OptionReply::Ack.encode(option, out);
            }
            OptionRequest::StartTls => {
                OptionReply::Ack.encode(option, out);
                // Nothing that was said in clear counts any more.
                self.secured = true;
                self.headers = Headers::Simple;
                self.contexts = None;
                return Ok(Next::StartTls);
            }
            OptionRequest::Info(request) => {
                let info = exports.info(&request.name, self.headers);
                self.tell(option, &request, info, out);
            }
            OptionRequest::Go(request) => {
                let info = exports.enter(&request.name, self.headers);
                if let Some(info) = self.tell(option, &request, info, out) {
                    let keeps_to_blocks = request.wanted.contains(&InfoType::BLOCK_SIZE);
                    return Ok(self.transmit(&request.name, info, keeps_to_blocks));
                }
            }
            OptionRequest::StructuredReply => {
                self.headers = Headers::Structured;
                OptionReply::Ack.encode(option, out);
            }
            OptionRequest::ExtendedHeaders => {
                self.headers = Headers::Extended;
                OptionReply::Ack.encode(option, out);
            }
            OptionRequest::ListMetaContext(request) => self.list_contexts(&request, exports, out),
            OptionRequest::SetMetaContext(request) => self.set_contexts(request, exports, out),
            OptionRequest::Abort | OptionRequest::Unknown(_) => {
                error(option, OptionReplyType::ERR_UNSUP, &format!("{option} is not known here"), out);
            }
        }
        Ok(Next::Receive)
    }

    /// Why an option cannot be had, whatever its data.
    fn refusal(&self, request: &OptionRequest) -> Option<(OptionReplyType, &'static str)> {
        use OptionReplyType as Kind;
        let is_tls = matches!(request, OptionRequest::StartTls);
        if self.stopping {
            return Some((Kind::ERR_SHUTDOWN, "the server stops"));
        }
        if self.tls == TlsMode::Required && !self.secured && !is_tls {
            return Some((Kind::ERR_TLS_REQD, "TLS is spoken here"));
        }
        match request {
            OptionRequest::StartTls if self.secured => Some((Kind::ERR_INVALID, "TLS is spoken already")),
            OptionRequest::StartTls if self.tls == TlsMode::Absent => {
                Some((Kind::ERR_POLICY, "the server has no certificate"))
            }
            OptionRequest::StructuredReply if self.headers == Headers::Extended => {
                Some((Kind::ERR_EXT_HEADER_REQD, "extended headers are used already"))
            }
            OptionRequest::ExtendedHeaders if self.headers == Headers::Extended => {
                Some((Kind::ERR_INVALID, "extended headers are used already"))
            }
            OptionRequest::StructuredReply if self.headers == Headers::Structured => {
                Some((Kind::ERR_INVALID, "structured replies are used already"))
            }
            OptionRequest::ExportName(_) if self.headers == Headers::Extended => {
                Some((Kind::ERR_INVALID, "extended headers want NBD_OPT_GO"))
            }
            _ => None,
        }
    }

    fn export_name(
        &mut self,
        name: &str,
        exports: &mut dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<Next, Malformed> {
        // There is no other way to say that it is refused than to close the connection.
        let info = exports.enter(name, self.headers);
        let info = info.map_err(|denied| Malformed::new("NBD_OPT_EXPORT_NAME", denied.message))?;
        ExportNameReply { size: info.size, flags: info.flags }.encode(self.no_zeroes, out);
        Ok(self.transmit(name, info, false))
    }

    /// Tells of an export, or why there is nothing to tell.
    fn tell(
        &self,
        option: OptionType,
        request: &InfoRequest,
        info: Result<ExportInfo, Denied>,
        out: &mut Vec<u8>,
    ) -> Option<ExportInfo> {
        let info = match info {
            Ok(info) => info,
            Err(Denied { kind, message }) => {
                error(option, kind, &message, out);
                return None;
            }
        };
        let mut say = |info| OptionReply::Info(info).encode(option, out);
        say(Info::Export { size: info.size, flags: info.flags });
        for (n, kind) in request.wanted.iter().enumerate() {
            if request.wanted[..n].contains(kind) {
                continue;
            }
            match (*kind, &info) {
                (InfoType::NAME, ExportInfo { name: Some(name), .. }) => say(Info::Name(name.clone())),
                (InfoType::DESCRIPTION, ExportInfo { description: Some(text), .. }) => {
                    say(Info::Description(text.clone()));
                }
                (InfoType::BLOCK_SIZE, ExportInfo { blocks: Some(blocks), .. }) => {
                    say(Info::BlockSize(*blocks));
                }
                _ => {}
            }
        }
        OptionReply::Ack.encode(option, out);
        Some(info)
    }

    fn transmit(&mut self, name: &str, export: ExportInfo, keeps_to_blocks: bool) -> Next {
        self.state = State::Over;
        // Contexts that were selected for another export do not count.
        let contexts =
            self.contexts.take().filter(|(of, _)| of == name).map_or_else(Vec::new, |(_, all)| all);
        debug_assert!(export.flags.contains(TransmissionFlags::HAS_FLAGS));
        Next::Transmit(Transmission { export, headers: self.headers, contexts, keeps_to_blocks })
    }

    fn list_contexts(&self, request: &MetaContextRequest, exports: &mut dyn Exports, out: &mut Vec<u8>) {
        let option = OptionType::LIST_META_CONTEXT;
        match self.find_contexts(request, exports, true) {
            Ok(names) => {
                names
                    .into_iter()
                    .for_each(|name| OptionReply::MetaContext { id: 0, name }.encode(option, out));
                OptionReply::Ack.encode(option, out);
            }
            Err(Denied { kind, message }) => error(option, kind, &message, out),
        }
    }

    fn set_contexts(&mut self, request: MetaContextRequest, exports: &mut dyn Exports, out: &mut Vec<u8>) {
        let option = OptionType::SET_META_CONTEXT;
        self.contexts = None;
        match self.find_contexts(&request, exports, false) {
            Ok(names) => {
                for (id, name) in (1..).zip(&names) {
                    OptionReply::MetaContext { id, name: name.clone() }.encode(option, out);
                }
                OptionReply::Ack.encode(option, out);
                self.contexts = Some((request.name, names));
            }
            Err(Denied { kind, message }) => error(option, kind, &message, out),
        }
    }

    fn find_contexts(
        &self,
        request: &MetaContextRequest,
        exports: &mut dyn Exports,
        listing: bool,
    ) -> Result<Vec<String>, Denied> {
        let invalid = |message: &str| Denied { kind: OptionReplyType::ERR_INVALID, message: message.into() };
        if !self.headers.chunked() {
            return Err(invalid("metadata contexts need structured replies or extended headers first"));
        }
        // Also tells whether there is such an export.
        let all = exports.contexts(&request.name, None, listing)?;
        if request.queries.is_empty() {
            return Ok(if listing { all } else { Vec::new() });
        }
        let mut names: Vec<String> = Vec::new();
        for query in &request.queries {
            if !query.contains(':') {
                return Err(invalid("a query begins with a namespace and a colon"));
            }
            for name in exports.contexts(&request.name, Some(query), listing)? {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            if names.len() > MAX_CONTEXTS {
                let kind = OptionReplyType::ERR_TOO_BIG;
                return Err(Denied { kind, message: format!("more than {MAX_CONTEXTS} contexts") });
            }
        }
        Ok(names)
    }
}

fn error(option: OptionType, kind: OptionReplyType, message: &str, out: &mut Vec<u8>) {
    OptionReply::Error { kind, message: message.into() }.encode(option, out);
}
