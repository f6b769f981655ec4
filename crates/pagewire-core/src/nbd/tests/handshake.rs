//! The server's handshake, driven without a socket.

use proptest::prelude::*;

use crate::nbd::option::{InfoRequest, MetaContextRequest};
use crate::nbd::option_reply::Info;
use crate::nbd::server::{Denied, Exports, MAX_OPTIONS, Next, ServerHandshake, TlsMode, Transmission};
use crate::nbd::*;

/// Two exports; the one named `disk` is the default, too.
#[derive(Default)]
struct Two {
    entered: Vec<String>,
}

impl Two {
    fn find(&self, name: &str) -> Result<ExportInfo, Denied> {
        let size = match name {
            "" | "disk" => 1 << 20,
            "other" => 5000,
            _ => return Err(Denied { kind: OptionReplyType::ERR_UNKNOWN, message: "no such export".into() }),
        };
        let blocks = Some(BlockSizes { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD });
        let flags = TransmissionFlags::HAS_FLAGS.with(TransmissionFlags::SEND_FLUSH);
        Ok(ExportInfo { name: Some("disk".into()), blocks, ..ExportInfo::new(size, flags) })
    }
}

impl Exports for Two {
    fn list(&mut self) -> Vec<(String, String)> {
        vec![("disk".into(), "a disk".into()), ("other".into(), String::new())]
    }

    fn info(&mut self, name: &str, _: Headers) -> Result<ExportInfo, Denied> {
        self.find(name)
    }

    fn enter(&mut self, name: &str, _: Headers) -> Result<ExportInfo, Denied> {
        self.entered.push(name.into());
        self.find(name)
    }

    fn contexts(&mut self, name: &str, query: Option<&str>, listing: bool) -> Result<Vec<String>, Denied> {
        self.find(name)?;
        let all = ["base:allocation", "test:one", "test:two"];
        let under = |context: &&str| match query {
            None => true,
            Some(query) => {
                *context == query || (listing && query.ends_with(':') && context.starts_with(query))
            }
        };
        Ok(all.into_iter().filter(under).map(String::from).collect())
    }
}

/// A client without a socket.
struct Client {
    handshake: ServerHandshake,
    exports: Two,
    out: Vec<u8>,
}

impl Client {
    fn new(tls: TlsMode, flags: ClientFlags) -> Self {
        let mut client =
            Self { handshake: ServerHandshake::new(tls), exports: Two::default(), out: Vec::new() };
        assert_eq!(client.give(&flags.encode()), Ok(Next::Receive));
        client
    }

    /// One that wants what everybody wants.
    fn usual() -> Self {
        Self::new(TlsMode::Absent, ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES))
    }

    fn give(&mut self, mut bytes: &[u8]) -> Result<Next, Malformed> {
        loop {
            let (head, rest) = bytes.split_at(self.handshake.wanted().min(bytes.len()));
            let next = self.handshake.receive(head, &mut self.exports, &mut self.out)?;
            bytes = rest;
            if next != Next::Receive || (bytes.is_empty() && self.handshake.wanted() > 0) {
                assert!(bytes.is_empty(), "more was given than was taken");
                return Ok(next);
            }
        }
    }

    fn ask(&mut self, option: &OptionRequest) -> (Result<Next, Malformed>, Vec<OptionReply>) {
        let mut bytes = Vec::new();
        option.encode(&mut bytes);
        self.out.clear();
        let next = self.give(&bytes);
        (next, self.replies(option.option()))
    }

    /// What was sent, as replies to `option`.
    fn replies(&self, option: OptionType) -> Vec<OptionReply> {
        let (mut replies, mut rest) = (Vec::new(), &self.out[..]);
        while let Some((header, behind)) = rest.split_first_chunk() {
            let header = OptionReplyHeader::decode(header).unwrap();
            assert_eq!(header.option, option);
            let (data, behind) = behind.split_at(header.length as usize);
            replies.push(OptionReply::decode(header.kind, data).unwrap());
            rest = behind;
        }
        assert!(rest.is_empty());
        replies
    }

    fn expect_error(&mut self, option: &OptionRequest, kind: OptionReplyType) {
        let (next, replies) = self.ask(option);
        assert_eq!(next, Ok(Next::Receive), "after {option:?}");
        let [OptionReply::Error { kind: found, message }] = &replies[..] else {
            panic!("{option:?}: {replies:?}")
        };
        assert_eq!(*found, kind, "{option:?}: {message}");
        assert!(!message.is_empty());
    }

    fn expect_ack(&mut self, option: &OptionRequest) {
        let (next, replies) = self.ask(option);
        assert_eq!((next, replies), (Ok(Next::Receive), vec![OptionReply::Ack]), "after {option:?}");
    }

    fn go(&mut self, name: &str) -> Transmission {
        let (next, replies) = self.ask(&OptionRequest::Go(request(name, &[])));
        assert_eq!(replies.last(), Some(&OptionReply::Ack));
        match next {
            Ok(Next::Transmit(transmission)) => transmission,
            other => panic!("{other:?}"),
        }
    }
}

fn request(name: &str, wanted: &[InfoType]) -> InfoRequest {
    InfoRequest { name: name.into(), wanted: wanted.into() }
}

fn contexts(name: &str, queries: &[&str]) -> MetaContextRequest {
    MetaContextRequest { name: name.into(), queries: queries.iter().map(|&query| query.into()).collect() }
}

fn names(replies: &[OptionReply]) -> Vec<(u32, &str)> {
    let name = |reply| match reply {
        &OptionReply::MetaContext { id, ref name } => Some((id, &name[..])),
        _ => None,
    };
    replies.iter().filter_map(name).collect()
}

#[test]
fn exports_are_listed_described_and_entered() {
    let mut client = Client::usual();
    let (_, replies) = client.ask(&OptionRequest::List);
    let server = |name: &str, description: &str| OptionReply::Server {
        name: name.into(),
        description: description.into(),
    };
    assert_eq!(replies, [server("disk", "a disk"), server("other", ""), OptionReply::Ack]);

    let all = [InfoType::NAME, InfoType::BLOCK_SIZE, InfoType::NAME, InfoType(77), InfoType::DESCRIPTION];
    let (next, replies) = client.ask(&OptionRequest::Info(request("", &all)));
    assert_eq!(next, Ok(Next::Receive));
    let [OptionReply::Info(Info::Export { size, .. }), rest @ ..] = &replies[..] else {
        panic!("{replies:?}")
    };
    assert_eq!(*size, 1 << 20);
    let blocks = BlockSizes { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD };
    let expected = [
        OptionReply::Info(Info::Name("disk".into())),
        OptionReply::Info(Info::BlockSize(blocks)),
        OptionReply::Ack,
    ];
    assert_eq!(rest, expected);
    assert!(client.exports.entered.is_empty());

    client.expect_error(&OptionRequest::Go(request("none", &[])), OptionReplyType::ERR_UNKNOWN);
    let transmission = client.go("other");
    assert_eq!((transmission.export.size, transmission.headers), (5000, Headers::Simple));
    assert!(!transmission.keeps_to_blocks);
    assert_eq!(client.handshake.wanted(), 0);
}

#[test]
fn the_old_option_answers_with_or_without_zeroes_or_not_at_all() {
    for (flags, length) in [
        (ClientFlags::NONE, 134),
        (ClientFlags::FIXED_NEWSTYLE, 134),
        (ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES), 10),
    ] {
        let mut client = Client::new(TlsMode::Absent, flags);
        let mut bytes = Vec::new();
        OptionRequest::ExportName("disk".into()).encode(&mut bytes);
        assert!(matches!(client.give(&bytes), Ok(Next::Transmit(_))));
        assert_eq!(client.out.len(), length);
    }
    let mut client = Client::usual();
    assert!(client.ask(&OptionRequest::ExportName("none".into())).0.is_err());
    let mut client = Client::usual();
    client.expect_ack(&OptionRequest::ExtendedHeaders);
    assert!(client.ask(&OptionRequest::ExportName("disk".into())).0.is_err());
}

#[test]
fn the_empty_name_needs_no_bytes() {
    let mut client = Client::usual();
    let header = OptionHeader { option: OptionType::EXPORT_NAME, length: 0 };
    assert_eq!(client.give(&header.encode()[..]).map(|next| matches!(next, Next::Transmit(_))), Ok(true));
    assert_eq!(client.exports.entered, [""]);
}

#[test]
fn who_does_not_expect_replies_gets_none() {
    let mut client = Client::new(TlsMode::Absent, ClientFlags::NONE);
    assert!(client.ask(&OptionRequest::List).0.is_err());
}

#[test]
fn flags_that_nobody_knows_end_the_connection() {
    let mut handshake = ServerHandshake::new(TlsMode::Absent);
    assert!(handshake.receive(&ClientFlags(4).encode(), &mut Two::default(), &mut Vec::new()).is_err());
}

#[test]
fn what_is_not_known_is_refused_and_skipped() {
    let mut client = Client::usual();
    client.expect_error(&OptionRequest::Unknown(OptionType::PEEK_EXPORT), OptionReplyType::ERR_UNSUP);
    let mut bytes = OptionHeader { option: OptionType(0xdead), length: 1000 }.encode().to_vec();
    bytes.resize(bytes.len() + 1000, 7);
    client.out.clear();
    assert_eq!(client.give(&bytes), Ok(Next::Receive));
    assert!(matches!(
        client.replies(OptionType(0xdead))[..],
        [OptionReply::Error { kind: OptionReplyType::ERR_UNSUP, .. }]
    ));
    client.expect_ack(&OptionRequest::StructuredReply);
}

#[test]
fn long_options_are_thrown_away_in_pieces_and_longer_ones_end_the_connection() {
    let mut client = Client::usual();
    let length = MAX_OPTION * 3 + 5;
    let mut bytes = OptionHeader { option: OptionType::LIST, length }.encode().to_vec();
    bytes.resize(bytes.len() + length as usize, 0);
    client.out.clear();
    assert_eq!(client.give(&bytes), Ok(Next::Receive));
    let replies = client.replies(OptionType::LIST);
    assert!(matches!(replies[..], [OptionReply::Error { kind: OptionReplyType::ERR_TOO_BIG, .. }]));
    let header = OptionHeader { option: OptionType::LIST, length: MAX_PAYLOAD + 1 };
    assert!(client.give(&header.encode()).is_err());
}

#[test]
fn data_that_make_no_sense_are_refused_and_the_next_option_is_read() {
    let mut client = Client::usual();
    for option in [OptionType::LIST, OptionType::GO, OptionType::STARTTLS, OptionType::STRUCTURED_REPLY] {
        let mut bytes = OptionHeader { option, length: 3 }.encode().to_vec();
        bytes.extend([1, 2, 3]);
        client.out.clear();
        assert_eq!(client.give(&bytes), Ok(Next::Receive));
        let replies = client.replies(option);
        assert!(matches!(replies[..], [OptionReply::Error { kind: OptionReplyType::ERR_INVALID, .. }]));
    }
    client.go("disk");
}

#[test]
fn a_flood_of_options_ends() {
    let mut client = Client::usual();
    for _ in 0..MAX_OPTIONS {
        assert!(client.ask(&OptionRequest::List).0.is_ok());
    }
    assert!(client.ask(&OptionRequest::List).0.is_err());
}

#[test]
fn an_option_without_its_magic_number_ends_the_connection() {
    let mut client = Client::usual();
    assert!(client.give(&[0; OptionHeader::LEN]).is_err());
}

#[test]
fn abort_is_acknowledged() {
    let mut client = Client::usual();
    let (next, replies) = client.ask(&OptionRequest::Abort);
    assert_eq!((next, replies), (Ok(Next::Close), vec![OptionReply::Ack]));
}

#[test]
fn headers_are_negotiated_as_the_specification_has_it() {
    let mut client = Client::usual();
    client.expect_ack(&OptionRequest::StructuredReply);
    client.expect_error(&OptionRequest::StructuredReply, OptionReplyType::ERR_INVALID);
    client.expect_ack(&OptionRequest::ExtendedHeaders);
    client.expect_error(&OptionRequest::ExtendedHeaders, OptionReplyType::ERR_INVALID);
    client.expect_error(&OptionRequest::StructuredReply, OptionReplyType::ERR_EXT_HEADER_REQD);
    assert_eq!(client.go("disk").headers, Headers::Extended);
}

#[test]
fn contexts_are_selected_for_one_export() {
    let mut client = Client::usual();
    let set = |name: &str, queries: &[&str]| OptionRequest::SetMetaContext(contexts(name, queries));
    let list = |name: &str, queries: &[&str]| OptionRequest::ListMetaContext(contexts(name, queries));
    client.expect_error(&set("disk", &["base:allocation"]), OptionReplyType::ERR_INVALID);
    client.expect_ack(&OptionRequest::StructuredReply);

    let (_, replies) = client.ask(&list("disk", &[]));
    assert_eq!(names(&replies), [(0, "base:allocation"), (0, "test:one"), (0, "test:two")]);
    let (_, replies) = client.ask(&list("disk", &["test:", "else:"]));
    assert_eq!(names(&replies), [(0, "test:one"), (0, "test:two")]);
    client.expect_error(&list("none", &[]), OptionReplyType::ERR_UNKNOWN);
    client.expect_error(&set("none", &["base:allocation"]), OptionReplyType::ERR_UNKNOWN);
    client.expect_error(&set("disk", &["no-colon"]), OptionReplyType::ERR_INVALID);

    // A pattern selects none, nor does no query at all.
    client.expect_ack(&set("disk", &["test:"]));
    client.expect_ack(&set("disk", &[]));
    let (_, replies) = client.ask(&set("disk", &["test:two", "base:allocation", "test:two", "x:y"]));
    assert_eq!(names(&replies), [(1, "test:two"), (2, "base:allocation")]);
    // A failed selection gives up the one before.
    assert_eq!(client.go("disk").contexts, ["test:two", "base:allocation"]);

    let mut client = Client::usual();
    client.expect_ack(&OptionRequest::StructuredReply);
    let _ = client.ask(&set("other", &["base:allocation"]));
    assert!(client.go("disk").contexts.is_empty(), "contexts of another export count");
    let mut client = Client::usual();
    client.expect_ack(&OptionRequest::StructuredReply);
    let _ = client.ask(&set("disk", &["base:allocation"]));
    client.expect_error(&set("none", &["base:allocation"]), OptionReplyType::ERR_UNKNOWN);
    assert!(client.go("disk").contexts.is_empty(), "contexts that were given up count");
}

#[test]
fn tls_forgets_what_was_said_before_it() {
    let mut client = Client::usual();
    client.expect_error(&OptionRequest::StartTls, OptionReplyType::ERR_POLICY);
    let flags = ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES);
    let mut client = Client::new(TlsMode::Offered, flags);
    client.expect_ack(&OptionRequest::ExtendedHeaders);
    let _ = client.ask(&OptionRequest::SetMetaContext(contexts("disk", &["base:allocation"])));
    let (next, replies) = client.ask(&OptionRequest::StartTls);
    assert_eq!((next, replies), (Ok(Next::StartTls), vec![OptionReply::Ack]));
    client.expect_error(&OptionRequest::StartTls, OptionReplyType::ERR_INVALID);
    let transmission = client.go("disk");
    assert_eq!((transmission.headers, transmission.contexts.len()), (Headers::Simple, 0));
}

#[test]
fn where_tls_is_a_must_nothing_is_told_without_it() {
    let flags = ClientFlags::FIXED_NEWSTYLE;
    let mut client = Client::new(TlsMode::Required, flags);
    for option in [
        OptionRequest::List,
        OptionRequest::Info(request("disk", &[])),
        OptionRequest::Go(request("none", &[])),
        OptionRequest::StructuredReply,
        OptionRequest::ListMetaContext(contexts("disk", &[])),
        OptionRequest::Unknown(OptionType(99)),
    ] {
        client.expect_error(&option, OptionReplyType::ERR_TLS_REQD);
    }
    assert_eq!(client.ask(&OptionRequest::StartTls).0, Ok(Next::StartTls));
    assert_eq!(client.ask(&OptionRequest::List).1.len(), 3);
    let mut client = Client::new(TlsMode::Required, flags);
    assert!(client.ask(&OptionRequest::ExportName("disk".into())).0.is_err());
    let mut client = Client::new(TlsMode::Required, flags);
    assert_eq!(client.ask(&OptionRequest::Abort).0, Ok(Next::Close));
    assert!(client.exports.entered.is_empty());
}

#[test]
fn a_server_that_stops_says_so() {
    let mut client = Client::usual();
    client.handshake.stop();
    client.expect_error(&OptionRequest::List, OptionReplyType::ERR_SHUTDOWN);
    client.expect_error(&OptionRequest::Go(request("disk", &[])), OptionReplyType::ERR_SHUTDOWN);
    assert_eq!(client.ask(&OptionRequest::Abort).0, Ok(Next::Close));
}

proptest! {
    /// Whatever comes, the handshake goes on, ends or fails, and never wants more than it may.
    #[test]
    fn no_client_does_harm(
        pieces in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64),
                (0u32..14, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(option, data)| {
                    let header = OptionHeader { option: OptionType(option), length: data.len() as u32 };
                    [&header.encode()[..], &data].concat()
                }),
            ],
            0..20,
        ),
        tls in prop_oneof![Just(TlsMode::Absent), Just(TlsMode::Offered), Just(TlsMode::Required)],
    ) {
        let mut handshake = ServerHandshake::new(tls);
        let (mut exports, mut out) = (Two::default(), Vec::new());
        let bytes = [&ClientFlags::FIXED_NEWSTYLE.encode()[..], &pieces.concat()].concat();
        let mut rest = &bytes[..];
        loop {
            let wanted = handshake.wanted();
            prop_assert!(wanted <= MAX_OPTION as usize);
            if wanted > rest.len() {
                break;
            }
            let (head, behind) = rest.split_at(wanted);
            rest = behind;
            match handshake.receive(head, &mut exports, &mut out) {
                Ok(Next::Receive | Next::StartTls) => {}
                Ok(Next::Transmit(_) | Next::Close) | Err(_) => break,
            }
        }
    }
}
