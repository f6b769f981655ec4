//! Frames on a bare socket: a client without the library's good manners.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use pagewire::ByteRange;
use pagewire::address::PeerAddress;
use pagewire_core::wire::{
    DataHeader, Encoding, HEADER_LEN, Header, Hello, Notification, OpenMode, RegionInfo, RemoteError, Reply,
    Request, Role, Trailer, VERSION,
};

use super::HANG;

pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
}

/// One frame.
pub(crate) type Frame = (Header, Vec<u8>);

pub(crate) fn hello(role: Role, token: [u8; 16]) -> Hello {
    Hello { oldest: VERSION, newest: VERSION, features: 0, session: token, role, agent: "a test".into() }
}

impl Raw {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    pub(crate) fn connect(peer: &PeerAddress) -> Self {
        let PeerAddress::Tcp(place) = peer else { panic!("a TCP peer") };
        Self::new(TcpStream::connect(place).unwrap())
    }

    /// A connection that has shaken hands.
    pub(crate) fn greeted(peer: &PeerAddress, role: Role, token: [u8; 16]) -> Self {
        let mut raw = Self::connect(peer);
        raw.send(0, &Request::Hello(hello(role, token)));
        assert!(matches!(raw.reply(0), Reply::Hello(_)));
        raw
    }

    /// A primary connection with an open region: its handle, and what is known of it.
    pub(crate) fn opened(peer: &PeerAddress, token: [u8; 16], name: &str) -> (Self, u32, RegionInfo) {
        let mut raw = Self::greeted(peer, Role::Primary, token);
        raw.send(1, &Request::Open { name: name.into(), mode: OpenMode::Read, resume: None });
        let Reply::Opened { handle, info } = raw.reply(1) else { panic!("not opened") };
        (raw, handle, info)
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn send(&mut self, id: u64, request: &Request) {
        let mut bytes = Vec::new();
        request.encode(id, &mut bytes);
        self.send_bytes(&bytes);
    }

    pub(crate) fn answer(&mut self, id: u64, reply: &Reply) {
        let mut bytes = Vec::new();
        reply.encode(id, &mut bytes);
        // A peer that has hung up already needs no answer.
        let _ = self.stream.write_all(&bytes);
    }

    pub(crate) fn notify(&mut self, notification: &Notification) {
        let mut bytes = Vec::new();
        notification.encode(&mut bytes);
        self.send_bytes(&bytes);
    }

    /// Sends a data frame.
    pub(crate) fn data(
        &mut self,
        id: u64,
        range: ByteRange,
        epoch: u64,
        bytes: &[u8],
        trailer: Option<Trailer>,
        last: bool,
    ) {
        let header = DataHeader { range, epoch, encoding: Encoding::Raw, last, trailer: trailer.is_some() };
        let mut frame = header.encode(id).to_vec();
        frame.extend_from_slice(bytes);
        frame.extend(trailer.into_iter().flat_map(|trailer| trailer.encode()));
        // A peer that has hung up already needs no data.
        let _ = self.stream.write_all(&frame);
    }

    /// The next frame; none at the end of the stream, however it ends.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        let mut bytes = [0; HEADER_LEN];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("no frame comes, and no end")
            }
            Err(_) => return None,
        }
        let header = Header::decode(&bytes).expect("a frame");
        let mut body = vec![0; header.length as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some((header, body))
    }

    /// The next frame, which is the reply to `id`.
    pub(crate) fn reply(&mut self, id: u64) -> Reply {
        let (header, body) = self.frame().expect("a reply, not the end");
        assert_eq!(header.id, id, "{:?}", header.kind);
        Reply::decode(&header, &body).unwrap()
    }

    /// The next frame, which is the error that answers `id`.
    pub(crate) fn error(&mut self, id: u64) -> RemoteError {
        match self.reply(id) {
            Reply::Error(error) => error,
            other => panic!("{other:?} is no error"),
        }
    }

    /// Reads to the end of the stream. Answers the frames before it.
    pub(crate) fn rest(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.frame()).collect()
    }

    pub(crate) fn close(&self) {
        // It may have ended already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The data of request `id` up to its end, all on this connection.
    pub(crate) fn all_data(&mut self, id: u64) -> Vec<(ByteRange, Vec<u8>)> {
        let mut parts = Vec::new();
        loop {
            let (header, body) = self.frame().expect("data, not the end");
            assert_eq!(header.id, id);
            let (data, payload, _) = DataHeader::decode(&body).expect("data");
            let bytes = match data.encoding {
                Encoding::Raw => payload.to_vec(),
                Encoding::Zero => vec![0; data.range.len() as usize],
                Encoding::Packed(..) => panic!("compressed, which this client does not offer to open"),
            };
            parts.push((data.range, bytes));
            if data.last {
                return parts;
            }
        }
    }
}
