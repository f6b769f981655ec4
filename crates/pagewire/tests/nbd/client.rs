//! A client that is made of core's codec and a socket, and what the tests share.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagewire::access::nbd::{NbdOptions, NbdServer};
use pagewire::address::{NbdAddress, NbdPlace};
use pagewire::engine::Region;
use pagewire::store::{FileOptions, FileStore, Store};
use pagewire_core::nbd::option::{InfoRequest, MetaContextRequest};
use pagewire_core::nbd::option_reply::Info;
use pagewire_core::nbd::{
    Chunk, ChunkType, ClientFlags, CommandFlags, CommandType, ErrorNumber, Greeting, Headers, InfoType,
    OptionReply, OptionReplyHeader, OptionReplyType, OptionRequest, ReplyFlags, ReplyHeader, Request,
    TransmissionFlags,
};

/// Longer than anything here may take: whatever waits as long as this hangs.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// Bytes that differ from page to page and within a page; none is zero.
pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    let seed = usize::from(seed) * 67;
    (0..length).map(|i| ((i / 4096) * 31 + i % 251 + seed) as u8 | 1).collect()
}

/// A file with these bytes.
pub(crate) fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A file with these bytes, and the store of it.
pub(crate) fn file(bytes: &[u8], writable: bool) -> (tempfile::NamedTempFile, Arc<FileStore>) {
    let file = file_of(bytes);
    let store = open(file.path(), writable);
    (file, store)
}

/// The store of a file.
pub(crate) fn open(path: &std::path::Path, writable: bool) -> Arc<FileStore> {
    Arc::new(FileStore::open_with(path, &FileOptions { writable, ..FileOptions::default() }).unwrap())
}

/// The region `disk` in a store.
pub(crate) fn disk(store: Arc<dyn Store>) -> Arc<Region> {
    Region::new("disk", store).unwrap()
}

/// A server of regions on a free port, and where that is.
pub(crate) fn serve(
    regions: impl IntoIterator<Item = Arc<Region>>,
    options: NbdOptions,
) -> (NbdServer, NbdAddress) {
    let server = NbdServer::new(regions, options).unwrap();
    let address = server.listen(&"nbd://127.0.0.1:0".parse().unwrap()).unwrap();
    (server, address)
}

/// Numbers by xorshift (Marsaglia, 2003).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound
    }
}

/// Waits until `ready`, and fails with `what` when that takes too long.
pub(crate) fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A connection: of a network, where nothing else is said.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) socket: S,
    pub(crate) headers: Headers,
    pub(crate) size: u64,
    pub(crate) flags: TransmissionFlags,
    next: u64,
}

/// How a request has ended: what it gave, or why it gave nothing.
pub(crate) type Answer = Result<Given, ErrorNumber>;

/// What a request gave.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) bytes: Vec<u8>,
    /// Which bytes came as zeroes.
    pub(crate) holes: Vec<(u64, u64)>,
    /// The extents of each context.
    pub(crate) extents: Vec<(u32, Vec<(u64, u64)>)>,
    pub(crate) chunks: usize,
}

impl Client {
    /// One that has been greeted.
    pub(crate) fn connect(address: &NbdAddress) -> Self {
        let NbdPlace::Tcp { host, port } = &address.place else { panic!("{address} is no port") };
        let socket = TcpStream::connect((host.as_str(), *port)).unwrap();
        socket.set_read_timeout(Some(HANG)).unwrap();
        socket.set_write_timeout(Some(HANG)).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut client = Self::of(socket, Headers::Simple);
        let mut greeting = [0; Greeting::LEN];
        client.socket.read_exact(&mut greeting).unwrap();
        Greeting::decode(&greeting).unwrap();
        let flags = ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES);
        client.send(&flags.encode());
        client
    }

    /// One that uses an export.
    pub(crate) fn enter(address: &NbdAddress, name: &str, headers: Headers) -> Self {
        Self::enter_with(address, name, headers, &[])
    }

    /// One that uses an export and has these metadata contexts, numbered from 1 on.
    pub(crate) fn enter_with(address: &NbdAddress, name: &str, headers: Headers, contexts: &[&str]) -> Self {
        let mut client = Self::connect(address);
        match headers {
            Headers::Simple => {}
            Headers::Structured => client.acknowledged(&OptionRequest::StructuredReply),
            Headers::Extended => client.acknowledged(&OptionRequest::ExtendedHeaders),
        }
        if !contexts.is_empty() {
            let queries = contexts.iter().map(|&name| name.into()).collect();
            let request = MetaContextRequest { name: name.into(), queries };
            let replies = client.option(&OptionRequest::SetMetaContext(request));
            assert_eq!(replies.len(), contexts.len() + 1, "{replies:?}");
        }
        client.headers = headers;
        client.go(name).unwrap();
        client
    }

    /// Goes on to transmission, or is told why not.
    pub(crate) fn go(&mut self, name: &str) -> Result<(), OptionReplyType> {
        let wanted = vec![InfoType::BLOCK_SIZE, InfoType::DESCRIPTION];
        let replies = self.option(&OptionRequest::Go(InfoRequest { name: name.into(), wanted }));
        for reply in &replies {
            match reply {
                OptionReply::Info(Info::Export { size, flags }) => (self.size, self.flags) = (*size, *flags),
                OptionReply::Error { kind, .. } => return Err(*kind),
                _ => {}
            }
        }
        Ok(())
    }
}

impl<S: Read + Write> Client<S> {
    /// One on a socket that needs no handshake, or before it.
    pub(crate) fn of(socket: S, headers: Headers) -> Self {
        Self { socket, headers, size: 0, flags: TransmissionFlags::NONE, next: 1 }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// Sends an option, and receives all replies to it.
    pub(crate) fn option(&mut self, option: &OptionRequest) -> Vec<OptionReply> {
        let mut bytes = Vec::new();
        option.encode(&mut bytes);
        self.send(&bytes);
        self.replies()
    }

    /// Receives replies to an option up to the last.
    pub(crate) fn replies(&mut self) -> Vec<OptionReply> {
        let mut replies = Vec::new();
        loop {
            let mut header = [0; OptionReplyHeader::LEN];
            self.socket.read_exact(&mut header).unwrap();
            let header = OptionReplyHeader::decode(&header).unwrap();
            let mut data = vec![0; header.length as usize];
            self.socket.read_exact(&mut data).unwrap();
            replies.push(OptionReply::decode(header.kind, &data).unwrap());
            if header.kind == OptionReplyType::ACK || header.kind.is_error() {
                return replies;
            }
        }
    }

    pub(crate) fn acknowledged(&mut self, option: &OptionRequest) {
        assert_eq!(self.option(option), [OptionReply::Ack], "{option:?}");
    }

    /// Sends a request with its payload, and answers its cookie.
    pub(crate) fn submit(
        &mut self,
        command: CommandType,
        flags: CommandFlags,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> u64 {
        let cookie = self.next;
        self.next += 1;
        let flags = flags.with_if(CommandFlags::PAYLOAD_LEN, self.headers.extended() && !payload.is_empty());
        let mut bytes = Vec::new();
        Request { flags, command, cookie, offset, length }.encode(self.headers.extended(), &mut bytes);
        bytes.extend_from_slice(payload);
        self.send(&bytes);
        cookie
    }

    /// The answer to the one request that is under way, which began at `offset`; a READ of so many bytes has
    /// `length`.
    pub(crate) fn answer(&mut self, cookie: u64, offset: u64, length: u64) -> Answer {
        let mut given = Given::default();
        let mut covered = 0;
        if self.headers != Headers::Simple {
            given.bytes = vec![0xee; length as usize];
        }
        let mut failed = None;
        loop {
            let mut header = vec![0; 4];
            self.socket.read_exact(&mut header).unwrap();
            header.resize(ReplyHeader::len(self.headers, &header).unwrap(), 0);
            self.socket.read_exact(&mut header[4..]).unwrap();
            match ReplyHeader::decode(self.headers, &header).unwrap() {
                ReplyHeader::Simple { error, cookie: found } => {
                    assert_eq!(found, cookie);
                    if error.0 != 0 {
                        return Err(error);
                    }
                    assert!(self.headers == Headers::Simple || length == 0, "a simple reply to a READ");
                    given.bytes.resize(length as usize, 0);
                    self.socket.read_exact(&mut given.bytes).unwrap();
                    return Ok(given);
                }
                ReplyHeader::Chunk { flags, kind, cookie: found, offset: at, length: payload } => {
                    assert_eq!(found, cookie);
                    assert!(self.headers == Headers::Structured || at == offset, "{at} is not {offset}");
                    assert!(payload <= Chunk::longest(kind, length));
                    given.chunks += 1;
                    let mut bytes = vec![0; payload as usize];
                    self.socket.read_exact(&mut bytes).unwrap();
                    match Chunk::decode(kind, &bytes).unwrap() {
                        Chunk::None => assert!(flags.contains(ReplyFlags::DONE)),
                        Chunk::OffsetData { offset: at, data } => {
                            let from = (at - offset) as usize;
                            given.bytes[from..from + data.len()].copy_from_slice(data);
                            covered += data.len() as u64;
                        }
                        Chunk::OffsetHole { offset: at, length } => {
                            let from = (at - offset) as usize;
                            given.bytes[from..from + length as usize].fill(0);
                            given.holes.push((at, length.into()));
                            covered += u64::from(length);
                        }
                        Chunk::BlockStatus { context, descriptors } => {
                            let extent =
                                |d: pagewire_core::nbd::Descriptor| (d.length.into(), d.flags.into());
                            given.extents.push((context, descriptors.into_iter().map(extent).collect()));
                        }
                        Chunk::BlockStatusExt { context, descriptors } => {
                            let extent = |d: pagewire_core::nbd::DescriptorExt| (d.length, d.flags);
                            given.extents.push((context, descriptors.into_iter().map(extent).collect()));
                        }
                        Chunk::Error { error, message } | Chunk::ErrorOffset { error, message, .. } => {
                            assert!(!message.is_empty(), "{kind} without a word");
                            failed = Some(error);
                        }
                    }
                    if flags.contains(ReplyFlags::DONE) {
                        assert!(kind != ChunkType::NONE || payload == 0);
                        assert!(failed.is_some() || covered == length, "{covered} of {length} bytes came");
                        return failed.map_or(Ok(given), Err);
                    }
                }
            }
        }
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn ask(
        &mut self,
        command: CommandType,
        flags: CommandFlags,
        offset: u64,
        length: u64,
    ) -> Answer {
        let cookie = self.submit(command, flags, offset, length, &[]);
        let expected = if command == CommandType::READ { length } else { 0 };
        self.answer(cookie, offset, expected)
    }

    pub(crate) fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, ErrorNumber> {
        self.ask(CommandType::READ, CommandFlags::NONE, offset, length).map(|given| given.bytes)
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ErrorNumber> {
        self.write_with(CommandFlags::NONE, offset, bytes)
    }

    pub(crate) fn write_with(
        &mut self,
        flags: CommandFlags,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), ErrorNumber> {
        let cookie = self.submit(CommandType::WRITE, flags, offset, bytes.len() as u64, bytes);
        self.answer(cookie, offset, 0).map(drop)
    }

    pub(crate) fn flush(&mut self) -> Result<(), ErrorNumber> {
        self.ask(CommandType::FLUSH, CommandFlags::NONE, 0, 0).map(drop)
    }

    /// Leaves as the specification has it, and waits until the server has let go.
    pub(crate) fn disconnect(mut self) {
        self.submit(CommandType::DISC, CommandFlags::NONE, 0, 0, &[]);
        assert!(self.is_cut_off());
    }

    /// Whether the server has closed the connection, whatever it has sent before.
    pub(crate) fn is_cut_off(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.socket.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
