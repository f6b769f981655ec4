//! What the NBD codec is to withstand, whatever the bytes. Fuzzed here, and run on the corpus by an ordinary test of
//! `pagewire-core`.

use pagewire_core::nbd::option_reply::OptionReply;
use pagewire_core::nbd::request::StatusPayload;
use pagewire_core::nbd::server::{Denied, Exports, Next, ServerHandshake, TlsMode};
use pagewire_core::nbd::{
    BlockSizes, Chunk, ChunkType, ExportInfo, ExportNameReply, Greeting, Headers, MAX_OPTION, MAX_PAYLOAD,
    OptionReplyHeader, OptionReplyType, ReplyFlags, ReplyHeader, Request, Terms, TransmissionFlags,
};

/// One export, `disk`.
struct One;

impl One {
    fn find(name: &str) -> Result<ExportInfo, Denied> {
        if !["", "disk"].contains(&name) {
            return Err(Denied { kind: OptionReplyType::ERR_UNKNOWN, message: "there is none".into() });
        }
        let blocks = Some(BlockSizes { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD });
        Ok(ExportInfo { blocks, ..ExportInfo::new(1 << 20, TransmissionFlags::HAS_FLAGS) })
    }
}

impl Exports for One {
    fn list(&mut self) -> Vec<(String, String)> {
        vec![("disk".into(), "a disk".into())]
    }

    fn info(&mut self, name: &str, _: Headers) -> Result<ExportInfo, Denied> {
        Self::find(name)
    }

    fn enter(&mut self, name: &str, _: Headers) -> Result<ExportInfo, Denied> {
        Self::find(name)
    }

    fn contexts(&mut self, name: &str, query: Option<&str>, _: bool) -> Result<Vec<String>, Denied> {
        Self::find(name)?;
        let all = ["base:allocation", "test:one"];
        Ok(all
            .into_iter()
            .filter(|name| query.is_none_or(|query| query == *name))
            .map(String::from)
            .collect())
    }
}

fn headers(byte: u8) -> Headers {
    [Headers::Simple, Headers::Structured, Headers::Extended][usize::from(byte) % 3]
}

/// A client's side of a handshake: the first byte says what the server does about TLS.
pub(crate) fn handshake(data: &[u8]) {
    let [first, rest @ ..] = data else { return };
    let mode = [TlsMode::Absent, TlsMode::Offered, TlsMode::Required][usize::from(*first) % 3];
    let (mut handshake, mut rest) = (ServerHandshake::new(mode), rest);
    loop {
        let wanted = handshake.wanted();
        assert!(wanted <= MAX_OPTION as usize);
        if wanted > rest.len() {
            return;
        }
        let (head, behind) = rest.split_at(wanted);
        rest = behind;
        let mut out = Vec::new();
        match handshake.receive(head, &mut One, &mut out) {
            Ok(Next::Receive | Next::StartTls) => replies_to_options(&out),
            Ok(Next::Close) => return replies_to_options(&out),
            Ok(Next::Transmit(transmission)) => {
                assert_eq!(transmission.export.check(), Ok(()));
                return;
            }
            Err(_) => return,
        }
        if handshake.wanted() == 0 && rest.is_empty() {
            return;
        }
    }
}

/// What a server sends can be read.
fn replies_to_options(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (header, rest) = bytes.split_first_chunk().expect("a whole header");
        let header = OptionReplyHeader::decode(header).expect("a header");
        let (data, rest) = rest.split_at(header.length as usize);
        OptionReply::decode(header.kind, data).expect("a reply");
        bytes = rest;
    }
}

/// A client's requests: the first byte says which headers are used, the next two what the export offers.
pub(crate) fn requests(data: &[u8]) {
    let [first, flags @ .., last] = &data[..data.len().min(4)] else { return };
    let [one, other] = flags else { return };
    let headers = headers(*first);
    let flags = TransmissionFlags(u16::from_be_bytes([*one, *other]));
    let minimum = 1 << (last % 17);
    let terms = Terms { size: 1 << 20 | 77, flags, headers, minimum, contexts: first & 0x80 != 0 };
    let mut rest = &data[4..];
    while let Ok(request) = Request::decode(headers.extended(), rest) {
        let mut bytes = Vec::new();
        request.encode(headers.extended(), &mut bytes);
        assert_eq!(bytes, rest[..bytes.len()]);
        rest = &rest[bytes.len()..];
        let payload =
            usize::try_from(request.payload(headers.extended())).unwrap_or(usize::MAX).min(rest.len());
        if let Err(refusal) = request.parse(&terms) {
            assert!(refusal.error.name().is_some());
        }
        if let Ok(status) = StatusPayload::decode(&rest[..payload]) {
            let _ = terms.status_of(request.offset, &status, &[1, 2, 3], false);
        }
        rest = &rest[payload..];
    }
}

/// A server's replies: the first byte says which headers are used.
pub(crate) fn replies(data: &[u8]) {
    let [first, rest @ ..] = data else { return };
    let headers = headers(*first);
    if let Some(bytes) = rest.first_chunk() {
        let _ = Greeting::decode(bytes);
    }
    if let Some(bytes) = rest.first_chunk() {
        let _ = ExportNameReply::decode(bytes);
    }
    if let Some((header, data)) = rest.split_first_chunk()
        && let Ok(header) = OptionReplyHeader::decode(header)
    {
        let _ = OptionReply::decode(header.kind, &data[..data.len().min(header.length as usize)]);
    }
    let mut rest = rest;
    while let Ok(header) = ReplyHeader::decode(headers, rest) {
        let length = ReplyHeader::len(headers, rest).expect("it was decoded");
        rest = &rest[length..];
        let ReplyHeader::Chunk { kind, cookie, offset, length, .. } = header else { continue };
        if length > Chunk::longest(kind, MAX_PAYLOAD.into()) || length > rest.len() as u64 {
            return;
        }
        let (payload, behind) = rest.split_at(length as usize);
        rest = behind;
        if let Ok(chunk) = Chunk::decode(kind, payload) {
            // What is understood is written as it came, but for what is for people and what is not known.
            let mut bytes = Vec::new();
            chunk.encode(headers, cookie, offset, ReplyFlags::NONE, &mut bytes);
            let counted = matches!(kind, ChunkType::NONE | ChunkType::OFFSET_DATA | ChunkType::OFFSET_HOLE);
            if counted || kind == ChunkType::BLOCK_STATUS {
                assert_eq!(&bytes[bytes.len() - payload.len()..], payload);
            }
        }
    }
}
