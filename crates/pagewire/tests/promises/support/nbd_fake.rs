//! An NBD server that shakes hands as it should, and then does what a script says.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pagewire::address::NbdAddress;
use pagewire_core::nbd::server::{Denied, Exports, Next, ServerHandshake, TlsMode};
use pagewire_core::nbd::{
    CommandType, ExportInfo, Headers, ReplyFlags, ReplyHeader, Request, TransmissionFlags, chunk,
};

/// What the server has: an export of bytes.
pub(crate) struct FakeNbd {
    pub(crate) address: NbdAddress,
    /// How many connections have come as far as to transmission.
    pub(crate) connections: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

/// One connection in transmission.
pub(crate) struct Transmitting {
    pub(crate) stream: TcpStream,
    pub(crate) headers: Headers,
    /// How many came before it.
    pub(crate) number: usize,
    pub(crate) bytes: Arc<Vec<u8>>,
}

struct Export {
    size: u64,
    flags: TransmissionFlags,
    plain: bool,
}

impl Exports for Export {
    fn list(&mut self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn info(&mut self, _: &str, _: Headers) -> Result<ExportInfo, Denied> {
        Ok(ExportInfo::new(self.size, self.flags))
    }

    fn enter(&mut self, name: &str, headers: Headers) -> Result<ExportInfo, Denied> {
        self.info(name, headers)
    }

    fn contexts(&mut self, _: &str, query: Option<&str>, _: bool) -> Result<Vec<String>, Denied> {
        Ok(query.filter(|_| !self.plain).map(str::to_owned).into_iter().collect())
    }
}

impl FakeNbd {
    /// A server of `bytes` whose connections are each handed to `serve`.
    pub(crate) fn start(
        bytes: Vec<u8>,
        flags: TransmissionFlags,
        serve: impl Fn(&mut Transmitting) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("nbd://{}/x", listener.local_addr().unwrap()).parse().unwrap();
        let (connections, stop): (Arc<AtomicUsize>, Arc<AtomicBool>) = Default::default();
        let (counted, stopped) = (connections.clone(), stop.clone());
        let (serve, bytes) = (Arc::new(serve), Arc::new(bytes));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (serve, bytes, counted) = (serve.clone(), bytes.clone(), counted.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let export = Export { size: bytes.len() as u64, flags, plain: false };
                    // A client that goes is no matter.
                    if let Ok(Some(headers)) = shake_hands(&mut stream, export) {
                        let number = counted.fetch_add(1, Ordering::SeqCst);
                        let mut transmitting = Transmitting { stream, headers, number, bytes };
                        let _ = serve(&mut transmitting);
                        let _ = transmitting.stream.shutdown(Shutdown::Both);
                    }
                });
            }
        });
        Self { address, connections, stop }
    }
}

impl Drop for FakeNbd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let pagewire::address::NbdPlace::Tcp { host, port } = &self.address.place {
            // Wakes the thread that accepts.
            let _ = TcpStream::connect((host.as_str(), *port));
        }
    }
}

fn shake_hands(stream: &mut TcpStream, mut export: Export) -> std::io::Result<Option<Headers>> {
    let mut handshake = ServerHandshake::new(TlsMode::Absent);
    stream.write_all(&ServerHandshake::greeting())?;
    loop {
        let mut bytes = vec![0; handshake.wanted()];
        stream.read_exact(&mut bytes)?;
        let mut out = Vec::new();
        let next = handshake.receive(&bytes, &mut export, &mut out).map_err(std::io::Error::other)?;
        stream.write_all(&out)?;
        match next {
            Next::Receive => {}
            Next::Transmit(transmission) => return Ok(Some(transmission.headers)),
            Next::StartTls | Next::Close => return Ok(None),
        }
    }
}

impl Transmitting {
    /// The next request, and its payload.
    pub(crate) fn request(&mut self) -> std::io::Result<(Request, Vec<u8>)> {
        let mut bytes = vec![0; self.headers.request_len()];
        self.stream.read_exact(&mut bytes)?;
        let extended = self.headers.extended();
        let request = Request::decode(extended, &bytes).map_err(std::io::Error::other)?;
        if request.command == CommandType::DISC {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let mut payload = vec![0; request.payload(extended) as usize];
        self.stream.read_exact(&mut payload)?;
        Ok((request, payload))
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A chunk with bytes of the export, as it should be.
    pub(crate) fn data(&self, request: &Request, at: u64, length: u64, flags: ReplyFlags) -> Vec<u8> {
        let mut out = Vec::new();
        chunk::data_header(self.headers, request.cookie, request.offset, at, length, flags, &mut out);
        out.extend_from_slice(&self.bytes[at as usize..(at + length) as usize]);
        out
    }

    /// Any chunk.
    pub(crate) fn chunk(&self, request: &Request, chunk: &chunk::Chunk<'_>, flags: ReplyFlags) -> Vec<u8> {
        let mut out = Vec::new();
        chunk.encode(self.headers, request.cookie, request.offset, flags, &mut out);
        out
    }

    /// Answers as it should.
    pub(crate) fn answer(&mut self, request: &Request) -> std::io::Result<()> {
        let out = match request.command {
            CommandType::READ => self.data(request, request.offset, request.length, ReplyFlags::DONE),
            CommandType::BLOCK_STATUS => {
                let error = pagewire_core::nbd::ErrorNumber::ENOTSUP;
                self.chunk(request, &chunk::Chunk::Error { error, message: String::new() }, ReplyFlags::DONE)
            }
            _ => self.chunk(request, &chunk::Chunk::None, ReplyFlags::DONE),
        };
        self.send(&out)
    }

    /// The header of a chunk that is made up.
    pub(crate) fn header(&self, header: &ReplyHeader) -> Vec<u8> {
        let mut out = Vec::new();
        header.encode(self.headers, &mut out);
        out
    }
}
