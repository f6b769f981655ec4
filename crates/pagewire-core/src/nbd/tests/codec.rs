//! The codec, against itself and against known bytes.

use proptest::prelude::*;

use crate::nbd::option::{InfoRequest, MetaContextRequest};
use crate::nbd::option_reply::Info;
use crate::nbd::request::StatusPayload;
use crate::nbd::*;

fn text() -> impl Strategy<Value = String> {
    "[a-zäß:0-9 ]{0,60}"
}

fn info_request() -> impl Strategy<Value = InfoRequest> {
    (text(), proptest::collection::vec(0u16..6, 0..5))
        .prop_map(|(name, wanted)| InfoRequest { name, wanted: wanted.into_iter().map(InfoType).collect() })
}

fn meta_request() -> impl Strategy<Value = MetaContextRequest> {
    (text(), proptest::collection::vec(text(), 0..5))
        .prop_map(|(name, queries)| MetaContextRequest { name, queries })
}

fn option() -> impl Strategy<Value = OptionRequest> {
    prop_oneof![
        text().prop_map(OptionRequest::ExportName),
        Just(OptionRequest::Abort),
        Just(OptionRequest::List),
        Just(OptionRequest::StartTls),
        info_request().prop_map(OptionRequest::Info),
        info_request().prop_map(OptionRequest::Go),
        Just(OptionRequest::StructuredReply),
        meta_request().prop_map(OptionRequest::ListMetaContext),
        meta_request().prop_map(OptionRequest::SetMetaContext),
        Just(OptionRequest::ExtendedHeaders),
        Just(OptionRequest::Unknown(OptionType::PEEK_EXPORT)),
    ]
}

fn option_reply() -> impl Strategy<Value = OptionReply> {
    prop_oneof![
        Just(OptionReply::Ack),
        (text(), text()).prop_map(|(name, description)| OptionReply::Server { name, description }),
        any::<(u64, u16)>().prop_map(|(size, flags)| {
            OptionReply::Info(Info::Export { size, flags: TransmissionFlags(flags) })
        }),
        text().prop_map(|text| OptionReply::Info(Info::Name(text))),
        text().prop_map(|text| OptionReply::Info(Info::Description(text))),
        any::<(u32, u32, u32)>().prop_map(|(minimum, preferred, maximum)| {
            OptionReply::Info(Info::BlockSize(BlockSizes { minimum, preferred, maximum }))
        }),
        (any::<u32>(), text()).prop_map(|(id, name)| OptionReply::MetaContext { id, name }),
        (1u32..20, text()).prop_map(|(kind, message)| {
            OptionReply::Error { kind: OptionReplyType(1 << 31 | kind), message }
        }),
    ]
}

fn request(longest: u64) -> impl Strategy<Value = Request> {
    (any::<(u16, u16, u64, u64)>(), 0..=longest).prop_map(|((flags, command, cookie, offset), length)| {
        Request { flags: CommandFlags(flags), command: CommandType(command), cookie, offset, length }
    })
}

fn headers() -> impl Strategy<Value = Headers> {
    prop_oneof![Just(Headers::Simple), Just(Headers::Structured), Just(Headers::Extended)]
}

/// A chunk of each type. Its bytes are leaked, which is fine for a test.
fn chunk() -> impl Strategy<Value = Chunk<'static>> {
    prop_oneof![
        Just(Chunk::None),
        (any::<u64>(), proptest::collection::vec(any::<u8>(), 1..50))
            .prop_map(|(offset, data)| Chunk::OffsetData { offset, data: data.leak() }),
        (any::<u64>(), 1u32..).prop_map(|(offset, length)| Chunk::OffsetHole { offset, length }),
        (any::<u32>(), proptest::collection::vec((1u32.., any::<u32>()), 1..9)).prop_map(|(context, all)| {
            let descriptors = all.into_iter().map(|(length, flags)| Descriptor { length, flags }).collect();
            Chunk::BlockStatus { context, descriptors }
        }),
        (any::<u32>(), proptest::collection::vec((1u64.., any::<u64>()), 1..9)).prop_map(|(context, all)| {
            let descriptors =
                all.into_iter().map(|(length, flags)| DescriptorExt { length, flags }).collect();
            Chunk::BlockStatusExt { context, descriptors }
        }),
        (1u32.., text()).prop_map(|(error, message)| Chunk::Error { error: ErrorNumber(error), message }),
        (1u32.., text(), any::<u64>()).prop_map(|(error, message, offset)| Chunk::ErrorOffset {
            error: ErrorNumber(error),
            message,
            offset
        }),
    ]
}

proptest! {
    #[test]
    fn options_survive_the_wire(option in option()) {
        let mut bytes = Vec::new();
        option.encode(&mut bytes);
        let (header, data) = bytes.split_at(OptionHeader::LEN);
        let header = OptionHeader::decode(header.try_into().unwrap()).unwrap();
        prop_assert_eq!(header.length as usize, data.len());
        prop_assert_eq!(OptionRequest::decode(header.option, data).unwrap(), option);
    }

    #[test]
    fn replies_to_options_survive_the_wire(reply in option_reply(), option in 1u32..12) {
        let mut bytes = Vec::new();
        reply.encode(OptionType(option), &mut bytes);
        let (header, data) = bytes.split_at(OptionReplyHeader::LEN);
        let header = OptionReplyHeader::decode(header.try_into().unwrap()).unwrap();
        prop_assert_eq!((header.option, header.length as usize), (OptionType(option), data.len()));
        prop_assert_eq!(OptionReply::decode(header.kind, data).unwrap(), reply);
    }

    #[test]
    fn requests_survive_the_wire(compact in request(u32::MAX.into()), extended in request(u64::MAX)) {
        for (is_extended, request) in [(false, compact), (true, extended)] {
            let mut bytes = Vec::new();
            request.encode(is_extended, &mut bytes);
            prop_assert_eq!(bytes.len(), Request::len(is_extended));
            prop_assert_eq!(Request::decode(is_extended, &bytes).unwrap(), request);
            prop_assert!(Request::decode(!is_extended, &bytes).is_err(), "another magic number is taken");
            prop_assert!(Request::decode(is_extended, &bytes[..bytes.len() - 1]).is_err());
        }
    }

    #[test]
    fn chunks_survive_the_wire(chunk in chunk(), cookie: u64, at: u64, done: bool, extended: bool) {
        let headers = if extended { Headers::Extended } else { Headers::Structured };
        let flags = ReplyFlags::NONE.with_if(ReplyFlags::DONE, done);
        let mut bytes = Vec::new();
        chunk.encode(headers, cookie, at, flags, &mut bytes);
        prop_assert_eq!(ReplyHeader::len(headers, &bytes).unwrap(), headers.chunk_len());
        let (header, payload) = bytes.split_at(headers.chunk_len());
        let header = ReplyHeader::decode(headers, header).unwrap();
        let (kind, length) = (chunk.kind(), payload.len() as u64);
        let offset = if extended { at } else { 0 };
        prop_assert_eq!(header, ReplyHeader::Chunk { flags, kind, cookie, offset, length });
        prop_assert!(length <= Chunk::longest(kind, 50));
        prop_assert_eq!(Chunk::decode(kind, payload).unwrap(), chunk.clone());
        if let Chunk::OffsetData { offset, data } = chunk {
            let mut prefix = Vec::new();
            chunk::data_header(headers, cookie, at, offset, data.len() as u64, flags, &mut prefix);
            prop_assert_eq!(&bytes[..prefix.len()], &prefix[..]);
            prop_assert_eq!(&bytes[prefix.len()..], data);
        }
    }

    #[test]
    fn simple_replies_survive_the_wire(error: u32, cookie: u64, headers in headers()) {
        let reply = ReplyHeader::Simple { error: ErrorNumber(error), cookie };
        let mut bytes = Vec::new();
        reply.encode(headers, &mut bytes);
        prop_assert_eq!(bytes.len(), ReplyHeader::SIMPLE_LEN);
        if headers == Headers::Extended {
            prop_assert!(ReplyHeader::decode(headers, &bytes).is_err(), "a server may not send this");
        } else {
            prop_assert_eq!(ReplyHeader::decode(headers, &bytes).unwrap(), reply);
        }
    }

    #[test]
    fn what_is_on_the_edge_of_the_handshake_survives_the_wire(flags: u16, client: u32, size in 0u64..1 << 62) {
        let greeting = Greeting { flags: HandshakeFlags(flags) };
        prop_assert_eq!(Greeting::decode(&greeting.encode()).unwrap(), greeting);
        prop_assert_eq!(ClientFlags::decode(ClientFlags(client).encode()), ClientFlags(client));
        let reply = ExportNameReply { size, flags: TransmissionFlags(flags | 1) };
        for no_zeroes in [false, true] {
            let mut bytes = Vec::new();
            reply.encode(no_zeroes, &mut bytes);
            prop_assert_eq!(bytes.len(), if no_zeroes { 10 } else { 134 });
            prop_assert_eq!(ExportNameReply::decode(bytes[..10].try_into().unwrap()).unwrap(), reply);
        }
        let payload = StatusPayload { length: size, contexts: vec![client, 1] };
        let mut bytes = Vec::new();
        payload.encode(&mut bytes);
        prop_assert_eq!(StatusPayload::decode(&bytes).unwrap(), payload);
        prop_assert!(StatusPayload::decode(&bytes[1..]).is_err());
    }

    #[test]
    fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind: u32, headers in headers()) {
        for option in (0..13).chain([kind]) {
            let _ = OptionRequest::decode(OptionType(option), &bytes);
        }
        for reply in (0..6).chain((0..12).map(|n| 1 << 31 | n)).chain([kind]) {
            let _ = OptionReply::decode(OptionReplyType(reply), &bytes);
        }
        for chunk in (0..8).chain((0..4).map(|n| 1 << 15 | n)).chain([kind as u16]) {
            let _ = Chunk::decode(ChunkType(chunk), &bytes);
        }
        let _ = Request::decode(headers.extended(), &bytes);
        let _ = ReplyHeader::decode(headers, &bytes);
        let _ = StatusPayload::decode(&bytes);
        if let Some(bytes) = bytes.first_chunk() {
            let _ = Greeting::decode(bytes);
        }
        if let Some(bytes) = bytes.first_chunk() {
            let _ = OptionHeader::decode(bytes);
        }
        if let Some(bytes) = bytes.first_chunk() {
            let _ = OptionReplyHeader::decode(bytes);
        }
        if let Some(bytes) = bytes.first_chunk() {
            let _ = ExportNameReply::decode(bytes);
        }
    }
}

#[test]
fn bytes_are_those_of_the_specification() {
    let greeting = server::ServerHandshake::greeting();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    let mut bytes = Vec::new();
    OptionRequest::Go(InfoRequest { name: "ab".into(), wanted: vec![InfoType::BLOCK_SIZE] })
        .encode(&mut bytes);
    assert_eq!(bytes, b"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x02ab\0\x01\0\x03");
    bytes.clear();
    OptionReply::Info(Info::Export { size: 1 << 32, flags: TransmissionFlags(0x0102) })
        .encode(OptionType::GO, &mut bytes);
    assert_eq!(
        bytes,
        b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c\0\0\0\0\0\x01\0\0\0\0\x01\x02"
    );
    bytes.clear();
    let request = Request {
        flags: CommandFlags::FUA,
        command: CommandType::WRITE,
        cookie: 0x0102,
        offset: 0x1000,
        length: 0x200,
    };
    request.encode(false, &mut bytes);
    assert_eq!(bytes, b"\x25\x60\x95\x13\0\x01\0\x01\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\x10\0\0\0\x02\0");
    bytes.clear();
    request.encode(true, &mut bytes);
    assert_eq!(
        bytes,
        b"\x21\xe4\x1c\x71\0\x01\0\x01\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x02\0"
    );
    bytes.clear();
    ReplyHeader::done(7).encode(Headers::Simple, &mut bytes);
    assert_eq!(bytes, b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x07");
    bytes.clear();
    let hole = Chunk::OffsetHole { offset: 0x1000, length: 0x20 };
    hole.encode(Headers::Structured, 7, 0x1000, ReplyFlags::DONE, &mut bytes);
    assert_eq!(
        bytes,
        b"\x66\x8e\x33\xef\0\x01\0\x02\0\0\0\0\0\0\0\x07\0\0\0\x0c\0\0\0\0\0\0\x10\0\0\0\0\x20"
    );
    bytes.clear();
    hole.encode(Headers::Extended, 7, 0x0800, ReplyFlags::NONE, &mut bytes);
    let header = b"\x6e\x8a\x27\x8c\0\0\0\x02\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\x0c";
    assert_eq!(bytes[..32], header[..]);
}

#[test]
fn lengths_are_checked_before_anything_is_reserved() {
    // A count of queries that would take gigabytes, a name that is longer than all there is.
    let mut data = b"\0\0\0\0\xff\xff\xff\xff".to_vec();
    assert!(OptionRequest::decode(OptionType::SET_META_CONTEXT, &data).is_err());
    data[0..4].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(OptionRequest::decode(OptionType::GO, &data).is_err());
    let long = [b'a'; MAX_STRING + 1];
    assert!(OptionRequest::decode(OptionType::EXPORT_NAME, &long).is_err());
    assert!(OptionRequest::decode(OptionType::EXPORT_NAME, &long[1..]).is_ok());
    let header =
        OptionReplyHeader { option: OptionType::LIST, kind: OptionReplyType::SERVER, length: MAX_OPTION + 1 };
    assert!(OptionReplyHeader::decode(&header.encode()).is_err());
}

#[test]
fn what_the_specification_forbids_is_refused() {
    assert!(OptionRequest::decode(OptionType::LIST, b"x").is_err());
    assert!(OptionRequest::decode(OptionType::STARTTLS, b"x").is_err());
    assert!(OptionRequest::decode(OptionType::EXPORT_NAME, b"a\0b").is_err());
    assert!(OptionRequest::decode(OptionType::EXPORT_NAME, b"\xff").is_err());
    assert_eq!(OptionRequest::decode(OptionType::ABORT, b"whatever"), Ok(OptionRequest::Abort));
    assert!(Chunk::decode(ChunkType::NONE, b"x").is_err());
    assert!(Chunk::decode(ChunkType::OFFSET_DATA, &[0; 8]).is_err(), "data of no byte");
    assert!(Chunk::decode(ChunkType::OFFSET_HOLE, &[0; 12]).is_err(), "a hole of no byte");
    assert!(Chunk::decode(ChunkType::BLOCK_STATUS, &[0; 4]).is_err(), "no descriptor");
    assert!(Chunk::decode(ChunkType::BLOCK_STATUS, &[1; 13]).is_err(), "half a descriptor");
    assert!(Chunk::decode(ChunkType::ERROR, &[0; 6]).is_err(), "an error that is none");
    assert!(Chunk::decode(ChunkType::ERROR, b"\0\0\0\x05\0\x09short").is_err());
    assert!(Chunk::decode(ChunkType(3), b"").is_err());
    // An unknown error is an error all the same.
    let unknown = Chunk::decode(ChunkType(0x8123), b"\0\0\0\x05\0\x02hmextra").unwrap();
    assert_eq!(unknown, Chunk::Error { error: ErrorNumber::EIO, message: "hm".into() });
}

#[test]
fn exports_that_no_client_can_use_are_refused() {
    let flags = TransmissionFlags::HAS_FLAGS;
    let with = |blocks| ExportInfo { blocks: Some(blocks), ..ExportInfo::new(1 << 20, flags) };
    let sizes = |minimum, preferred, maximum| with(BlockSizes { minimum, preferred, maximum });
    assert!(sizes(1, 4096, 32 << 20).check().is_ok());
    assert!(sizes(1, 4096, u32::MAX).check().is_ok());
    assert!(sizes(3, 4096, u32::MAX).check().is_err());
    assert!(sizes(1 << 17, 1 << 17, u32::MAX).check().is_err());
    assert!(sizes(4096, 512, u32::MAX).check().is_err());
    assert!(sizes(4096, 4096, 5000).check().is_err());
    assert!(sizes(512, 4096, 512).check().is_err());
    assert!(ExportInfo::new(u64::MAX, flags).check().is_err());
    assert!(ExportInfo::new(1, TransmissionFlags::NONE).check().is_err());
}

#[test]
fn strings_are_cut_between_characters() {
    let name = "ß".repeat(MAX_STRING);
    let mut bytes = Vec::new();
    OptionRequest::ExportName(name).encode(&mut bytes);
    assert_eq!(bytes.len(), OptionHeader::LEN + MAX_STRING);
    assert!(OptionRequest::decode(OptionType::EXPORT_NAME, &bytes[OptionHeader::LEN..]).is_ok());
}
