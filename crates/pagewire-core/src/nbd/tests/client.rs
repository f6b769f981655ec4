//! The client's handshake, driven without a socket: against this crate's server, and against servers that
//! cannot do everything or mean harm.

use proptest::prelude::*;

use crate::nbd::client::{Agreed, ClientHandshake, HandshakeError, Listed, Next, Outcome, Wanted};
use crate::nbd::greeting::ExportNameReply;
use crate::nbd::numbers::NBDMAGIC;
use crate::nbd::option_reply::Info;
use crate::nbd::server::{self, Denied, Exports, ServerHandshake, TlsMode};
use crate::nbd::*;

const FLAGS: TransmissionFlags = TransmissionFlags::HAS_FLAGS.with(TransmissionFlags::SEND_FLUSH);

fn export(name: &str) -> Wanted {
    Wanted::Export(name.into())
}

/// What an option is answered by: replies, or bytes that follow without one.
enum Answer {
    Replies(Vec<OptionReply>),
    Bytes(Vec<u8>),
}

fn refuse(kind: OptionReplyType) -> Answer {
    Answer::Replies(vec![OptionReply::Error { kind, message: "because".into() }])
}

fn ack() -> Answer {
    Answer::Replies(vec![OptionReply::Ack])
}

/// Has a client talk to a server that answers as `answer` says. Gives what the client has come to, and which
/// options it has sent.
fn talk(
    wanted: Wanted,
    tls: bool,
    flags: HandshakeFlags,
    answer: impl Fn(&OptionRequest) -> Answer,
) -> (Result<Outcome, HandshakeError>, Vec<OptionType>) {
    let mut client = ClientHandshake::new(wanted, tls);
    let mut to_client = Greeting { flags }.encode().to_vec();
    let mut from_client: Vec<u8> = Vec::new();
    let (mut greeted, mut at) = (false, 0);
    let mut asked = Vec::new();
    loop {
        from_client.extend(client.poll_send());
        if !greeted && from_client.len() >= ClientFlags::LEN {
            from_client.drain(..ClientFlags::LEN);
            greeted = true;
        }
        while from_client.len() >= OptionHeader::LEN {
            let header = OptionHeader::decode(from_client[..OptionHeader::LEN].try_into().unwrap()).unwrap();
            let end = OptionHeader::LEN + header.length as usize;
            let option = OptionRequest::decode(header.option, &from_client[OptionHeader::LEN..end]).unwrap();
            from_client.drain(..end);
            asked.push(option.option());
            match answer(&option) {
                Answer::Replies(replies) => {
                    replies.iter().for_each(|reply| reply.encode(option.option(), &mut to_client));
                }
                Answer::Bytes(bytes) => to_client.extend(bytes),
            }
        }
        match client.poll_next() {
            Next::Receive(count) => {
                let bytes = to_client.get(at..at + count).expect("the client waits for what does not come");
                at += count;
                if let Err(error) = client.handle_bytes(bytes) {
                    let last = client.poll_send();
                    if last.len() == OptionHeader::LEN {
                        asked.push(OptionHeader::decode(&last.try_into().unwrap()).unwrap().option);
                    }
                    return (Err(error), asked);
                }
            }
            Next::BeginTls => client.handle_tls(),
            Next::Done => {
                // What is sent last is told to nobody who answers.
                return (Ok(client.into_outcome().unwrap()), asked);
            }
        }
    }
}

fn fixed() -> HandshakeFlags {
    HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES)
}

fn go(size: u64) -> Answer {
    let info = Info::Export { size, flags: FLAGS };
    let blocks = BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
    let blocks = Info::BlockSize(blocks);
    Answer::Replies(vec![OptionReply::Info(info), OptionReply::Info(blocks), OptionReply::Ack])
}

fn agreed(outcome: Result<Outcome, HandshakeError>) -> Agreed {
    match outcome {
        Ok(Outcome::Export(agreed)) => agreed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_that_can_do_everything_is_asked_for_everything() {
    let (outcome, asked) = talk(export("x"), true, fixed(), |option| match option {
        OptionRequest::SetMetaContext(request) => {
            assert_eq!(
                (request.name.as_str(), &request.queries[..]),
                ("x", &["base:allocation".to_owned()][..])
            );
            let context = OptionReply::MetaContext { id: 7, name: "base:allocation".into() };
            let other = OptionReply::MetaContext { id: 8, name: "qemu:dirty".into() };
            Answer::Replies(vec![context, other, OptionReply::Ack])
        }
        OptionRequest::Go(request) => {
            assert_eq!(request.wanted, [InfoType::BLOCK_SIZE]);
            go(4096)
        }
        _ => ack(),
    });
    let agreed = agreed(outcome);
    assert_eq!(agreed.export.size, 4096);
    assert_eq!(agreed.export.blocks.unwrap().minimum, 512);
    assert_eq!((agreed.headers, agreed.allocation), (Headers::Extended, Some(7)));
    let order =
        [OptionType::STARTTLS, OptionType::EXTENDED_HEADERS, OptionType::SET_META_CONTEXT, OptionType::GO];
    assert_eq!(asked, order);
}

#[test]
fn what_a_server_does_not_have_is_done_without() {
    let (outcome, asked) = talk(export("x"), false, fixed(), |option| match option {
        OptionRequest::ExtendedHeaders => refuse(OptionReplyType::ERR_UNSUP),
        OptionRequest::StructuredReply => ack(),
        OptionRequest::SetMetaContext(_) => refuse(OptionReplyType::ERR_UNSUP),
        _ => go(10),
    });
    let structured = agreed(outcome);
    assert_eq!((structured.headers, structured.allocation), (Headers::Structured, None));
    assert_eq!(asked.len(), 4);

    let (outcome, asked) = talk(export("x"), false, fixed(), |option| match option {
        OptionRequest::ExportName(name) => {
            let mut bytes = Vec::new();
            ExportNameReply { size: 10, flags: FLAGS }.encode(name == "x", &mut bytes);
            Answer::Bytes(bytes)
        }
        _ => refuse(OptionReplyType::ERR_UNSUP),
    });
    let simple = agreed(outcome);
    assert_eq!((simple.headers, simple.export.size, simple.export.blocks), (Headers::Simple, 10, None));
    assert_eq!(asked.last(), Some(&OptionType::EXPORT_NAME));
    assert!(!asked.contains(&OptionType::SET_META_CONTEXT), "it needs structured replies");
}

#[test]
fn a_server_that_is_not_fixed_is_asked_for_one_thing() {
    for flags in [HandshakeFlags::NONE, HandshakeFlags::NO_ZEROES] {
        let (outcome, asked) = talk(export("x"), false, flags, |_| {
            let mut bytes = Vec::new();
            let no_zeroes = flags.contains(HandshakeFlags::NO_ZEROES);
            ExportNameReply { size: 10, flags: FLAGS }.encode(no_zeroes, &mut bytes);
            Answer::Bytes(bytes)
        });
        assert_eq!(agreed(outcome).export.size, 10);
        assert_eq!(asked, [OptionType::EXPORT_NAME]);
        for (wanted, tls) in [(Wanted::List, false), (export("x"), true)] {
            let (outcome, asked) = talk(wanted, tls, flags, |_| panic!("it is asked"));
            let error = outcome.unwrap_err();
            assert!(matches!(error, HandshakeError::NoList(_) | HandshakeError::NoTls(_)), "{error}");
            assert!(asked.is_empty());
        }
    }
}

#[test]
fn nothing_goes_on_in_clear_where_tls_is_wanted() {
    for kind in [OptionReplyType::ERR_UNSUP, OptionReplyType::ERR_POLICY] {
        let (outcome, asked) = talk(export("x"), true, fixed(), |_| refuse(kind));
        assert_eq!(outcome.unwrap_err(), HandshakeError::NoTls("because".into()));
        assert_eq!(asked, [OptionType::STARTTLS, OptionType::ABORT]);
    }
    let (outcome, _) = talk(export("x"), false, fixed(), |_| refuse(OptionReplyType::ERR_TLS_REQD));
    let error = outcome.unwrap_err();
    assert!(error.to_string().contains("demands TLS: because: write nbds://"), "{error}");
}

#[test]
fn refusals_are_told_apart() {
    let going = |kind| {
        let (outcome, asked) = talk(export("a\u{1b}b"), false, fixed(), |option| match option {
            OptionRequest::Go(_) => refuse(kind),
            _ => refuse(OptionReplyType::ERR_UNSUP),
        });
        assert_eq!(asked.last(), Some(&OptionType::ABORT), "the server is told");
        outcome.unwrap_err()
    };
    let error = going(OptionReplyType::ERR_UNKNOWN);
    assert_eq!(error.to_string(), "it has no export 'a\\u{1b}b': because");
    for kind in [OptionReplyType::ERR_POLICY, OptionReplyType::ERR_SHUTDOWN, OptionReplyType::ERR_INVALID] {
        let error = going(kind);
        assert!(matches!(error, HandshakeError::Refused { option: OptionType::GO, .. }), "{error}");
        assert!(error.to_string().contains(kind.name().unwrap()), "{error}");
    }
    let (outcome, asked) = talk(export("x"), false, fixed(), |_| refuse(OptionReplyType::ERR_SHUTDOWN));
    assert!(outcome.is_err());
    assert_eq!(asked, [OptionType::EXTENDED_HEADERS, OptionType::ABORT], "the first word of it is enough");
}

#[test]
fn exports_are_listed_with_what_is_known_of_them() {
    let (outcome, asked) = talk(Wanted::List, false, fixed(), |option| match option {
        OptionRequest::List => {
            let server = |name: &str| OptionReply::Server { name: name.into(), description: "d".into() };
            Answer::Replies(vec![server("one"), server("two"), OptionReply::Ack])
        }
        OptionRequest::Info(request) if request.name == "one" => go(1 << 20),
        _ => refuse(OptionReplyType::ERR_POLICY),
    });
    let Ok(Outcome::List(listed)) = outcome else { panic!() };
    let [one, two] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((one.name.as_str(), one.export.as_ref().unwrap().size), ("one", 1 << 20));
    assert_eq!(two, &Listed { name: "two".into(), description: "d".into(), export: None });
    assert_eq!(asked, [OptionType::LIST, OptionType::INFO, OptionType::INFO, OptionType::ABORT]);
    let (outcome, _) = talk(Wanted::List, false, fixed(), |_| refuse(OptionReplyType::ERR_POLICY));
    assert_eq!(outcome.unwrap_err(), HandshakeError::NoList("because".into()));
}

#[test]
fn who_is_no_server_is_told_from_one_of_before_2011() {
    let greet = |bytes: &[u8]| {
        let mut client = ClientHandshake::new(export("x"), false);
        assert_eq!(client.poll_next(), Next::Receive(18));
        client.handle_bytes(bytes).unwrap_err()
    };
    let mut old = NBDMAGIC.to_be_bytes().to_vec();
    old.extend(0x0000_4202_8186_1253u64.to_be_bytes());
    old.extend([0; 2]);
    assert_eq!(greet(&old), HandshakeError::Oldstyle);
    let error = greet(b"SSH-2.0-OpenSSH_9.");
    assert!(matches!(error, HandshakeError::NoServer(_)), "{error}");
    old[8..16].fill(9);
    assert!(matches!(greet(&old), HandshakeError::Malformed(_)));
}

#[test]
fn a_server_that_means_harm_is_left() {
    let hole = OptionReply::Info(Info::Unknown(InfoType(99)));
    let name = "n".repeat(MAX_STRING);
    let endless = |reply: OptionReply, count: usize| Answer::Replies(vec![reply; count]);
    type Server = Box<dyn Fn(&OptionRequest) -> Answer>;
    let cases: [(&str, Wanted, Server); 6] = [
        ("replies without end", export("x"), Box::new(move |_| endless(hole.clone(), 1000))),
        (
            "exports without end",
            Wanted::List,
            Box::new(move |_| {
                endless(OptionReply::Server { name: name.clone(), description: String::new() }, 6000)
            }),
        ),
        (
            "another option's reply",
            export("x"),
            Box::new(|_| {
                let mut bytes = Vec::new();
                OptionReply::Ack.encode(OptionType::GO, &mut bytes);
                Answer::Bytes(bytes)
            }),
        ),
        (
            "a long reply",
            export("x"),
            Box::new(|_| {
                let header = OptionReplyHeader {
                    option: OptionType::EXTENDED_HEADERS,
                    kind: OptionReplyType::ACK,
                    length: u32::MAX,
                };
                Answer::Bytes(header.encode().to_vec())
            }),
        ),
        ("no size", export("x"), Box::new(|_| ack())),
        (
            "an absurd size",
            export("x"),
            Box::new(|option| match option {
                OptionRequest::Go(_) => go(u64::MAX),
                _ => refuse(OptionReplyType::ERR_UNSUP),
            }),
        ),
    ];
    for (name, wanted, answer) in cases {
        let (outcome, _) = talk(wanted, false, fixed(), answer);
        let error = outcome.expect_err(name);
        assert!(matches!(error, HandshakeError::Malformed(_)), "{name}: {error}");
    }
}

struct One;

impl Exports for One {
    fn list(&mut self) -> Vec<(String, String)> {
        vec![("disk".into(), "a disk".into())]
    }

    fn info(&mut self, name: &str, _: Headers) -> Result<ExportInfo, Denied> {
        match name {
            "disk" | "" => Ok(ExportInfo::new(1 << 30, FLAGS)),
            _ => Err(Denied { kind: OptionReplyType::ERR_UNKNOWN, message: "no".into() }),
        }
    }

    fn enter(&mut self, name: &str, headers: Headers) -> Result<ExportInfo, Denied> {
        self.info(name, headers)
    }

    fn contexts(&mut self, _: &str, query: Option<&str>, _: bool) -> Result<Vec<String>, Denied> {
        Ok(query.map(str::to_owned).into_iter().collect())
    }
}

/// Both state machines, whose bytes are carried from one to the other.
fn meet(wanted: Wanted, tls: bool, mode: TlsMode) -> Result<Outcome, HandshakeError> {
    let (mut client, mut server) = (ClientHandshake::new(wanted, tls), ServerHandshake::new(mode));
    let (mut to_client, mut to_server) = (ServerHandshake::greeting().to_vec(), Vec::new());
    let mut next = server::Next::Receive;
    loop {
        to_server.extend(client.poll_send());
        while next == server::Next::Receive && server.wanted() <= to_server.len() {
            let bytes: Vec<u8> = to_server.drain(..server.wanted()).collect();
            next = server.receive(&bytes, &mut One, &mut to_client).unwrap();
            if next == server::Next::StartTls {
                // Nothing but the handshake of TLS may come in between.
                assert!(to_server.is_empty());
                next = server::Next::Receive;
                break;
            }
        }
        match client.poll_next() {
            Next::Receive(count) => {
                let bytes: Vec<u8> = to_client.drain(..count).collect();
                client.handle_bytes(&bytes)?;
            }
            Next::BeginTls => {
                assert!(to_client.is_empty());
                client.handle_tls();
            }
            Next::Done => {
                if let server::Next::Transmit(transmission) = &next {
                    assert_eq!(transmission.contexts, ["base:allocation"]);
                }
                return Ok(client.into_outcome().unwrap());
            }
        }
    }
}

#[test]
fn client_and_server_understand_each_other() {
    for (tls, mode) in [(false, TlsMode::Absent), (true, TlsMode::Required), (false, TlsMode::Offered)] {
        let agreed = agreed(meet(export("disk"), tls, mode));
        assert_eq!(agreed.export.size, 1 << 30);
        assert_eq!((agreed.headers, agreed.allocation), (Headers::Extended, Some(1)));
        let Ok(Outcome::List(listed)) = meet(Wanted::List, tls, mode) else { panic!() };
        assert_eq!(listed[0].export.as_ref().unwrap().size, 1 << 30);
    }
    let error = meet(export("none"), false, TlsMode::Absent).unwrap_err();
    assert!(matches!(error, HandshakeError::NoExport { .. }), "{error}");
    let error = meet(export("disk"), false, TlsMode::Required).unwrap_err();
    assert!(matches!(error, HandshakeError::TlsDemanded(_)), "{error}");
    let error = meet(export("disk"), true, TlsMode::Absent).unwrap_err();
    assert!(matches!(error, HandshakeError::NoTls(_)), "{error}");
}

proptest! {
    /// Whatever a server sends: the handshake ends or fails, and asks for no more than it has bounded.
    #[test]
    fn no_bytes_from_a_stranger_do_harm(
        greets: bool,
        bytes in proptest::collection::vec(any::<u8>(), 0..4000),
        magic: bool,
    ) {
        let mut client = ClientHandshake::new(export("x"), false);
        let mut input = if greets { Greeting { flags: fixed() }.encode().to_vec() } else { Vec::new() };
        if magic {
            OptionReply::Ack.encode(OptionType::EXTENDED_HEADERS, &mut input);
        }
        input.extend(bytes);
        let mut at = 0;
        while let Next::Receive(count) = client.poll_next() {
            prop_assert!(count <= MAX_OPTION as usize);
            let Some(bytes) = input.get(at..at + count) else { break };
            at += count;
            if client.handle_bytes(bytes).is_err() {
                break;
            }
            let _ = client.poll_send();
        }
    }
}
