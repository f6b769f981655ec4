//! A TCP proxy that knows frames: it has something happen at one of them, the same one every time.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use pagewire::address::PeerAddress;
use pagewire_core::wire::{FrameType, HEADER_LEN, Header};

use super::HANG;

/// What happens at a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is lost, with the connection that it was on.
    LostWithItsConnection,
    /// It is lost, with every connection.
    LostWithAll,
    /// It arrives, and then its connection is cut.
    CutBehind,
    /// It arrives, and then every connection is cut.
    AllCutBehind,
    /// Neither it nor anything after it goes through any more; the connections stay.
    Held,
}

impl Fate {
    fn is_lost(self) -> bool {
        matches!(self, Fate::LostWithItsConnection | Fate::LostWithAll)
    }
}

/// Which frame it is: how many have gone through since the proxy was armed, and of which type it is.
type Which = Box<dyn FnMut(usize, FrameType) -> bool + Send>;

pub(crate) struct FrameProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    server: String,
    stop: AtomicBool,
    state: Mutex<State>,
    happened: Condvar,
}

#[derive(Default)]
struct State {
    armed: Option<(Which, Fate)>,
    seen: usize,
    /// The type of the frame at which it has happened.
    hit: Option<FrameType>,
    held: bool,
    open: Vec<TcpStream>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Passes frames on until one of the sides has ended, or its fate comes.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut frame = Vec::new();
        while read_frame(&mut from, &mut frame).is_some() {
            let kind = FrameType(u16::from_le_bytes([frame[4], frame[5]]));
            let fate = {
                let mut state = self.lock();
                if state.held {
                    continue;
                }
                let count = state.seen;
                state.seen += 1;
                let is_it = state.armed.as_mut().is_some_and(|(which, _)| which(count, kind));
                let fate = if is_it { state.armed.take().map(|(_, fate)| fate) } else { None };
                if fate.is_some() {
                    state.hit = Some(kind);
                    state.held = fate == Some(Fate::Held);
                    self.happened.notify_all();
                }
                fate
            };
            if fate == Some(Fate::Held) {
                continue;
            }
            if !fate.is_some_and(Fate::is_lost) && to.write_all(&frame).is_err() {
                break;
            }
            if let Some(fate) = fate {
                if matches!(fate, Fate::LostWithAll | Fate::AllCutBehind) {
                    self.cut_all();
                }
                break;
            }
        }
        // Each fails where the other side was faster.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn cut_all(&self) {
        for stream in self.lock().open.drain(..) {
            // It may have ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream) {
        // A server that is gone is gone for those behind the proxy, too.
        let Ok(server) = TcpStream::connect(&self.server) else { return };
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        self.lock().open.push(client.try_clone().unwrap());
        let (up, down) = (self.clone(), self.clone());
        let (client_too, server_too) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || up.pump(client_too, server_too));
        std::thread::spawn(move || down.pump(server, client));
    }
}

/// Reads one frame, if there is one more.
fn read_frame(from: &mut TcpStream, frame: &mut Vec<u8>) -> Option<()> {
    let mut bytes = [0; HEADER_LEN];
    from.read_exact(&mut bytes).ok()?;
    let length = Header::decode(&bytes).expect("a frame").length as usize;
    frame.clear();
    frame.extend_from_slice(&bytes);
    frame.resize(HEADER_LEN + length, 0);
    from.read_exact(&mut frame[HEADER_LEN..]).ok()
}

impl FrameProxy {
    /// A proxy before `server`, which passes everything on until it is armed.
    pub(crate) fn new(server: &PeerAddress) -> Self {
        let PeerAddress::Tcp(server) = server else { panic!("a TCP server") };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: server.clone(),
            stop: AtomicBool::new(false),
            state: Mutex::default(),
            happened: Condvar::new(),
        });
        let accepting = shared.clone();
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stop.load(Ordering::Acquire) {
                    return;
                }
                accepting.connect(stream.unwrap());
            }
        });
        Self { shared, address, accepting: Some(accepting) }
    }

    pub(crate) fn address(&self) -> PeerAddress {
        PeerAddress::Tcp(self.address.to_string())
    }

    /// Has the first frame that `which` says yes to meet its fate.
    pub(crate) fn arm(&self, fate: Fate, which: impl FnMut(usize, FrameType) -> bool + Send + 'static) {
        let mut state = self.shared.lock();
        state.armed = Some((Box::new(which), fate));
        (state.seen, state.hit) = (0, None);
    }

    /// Lets everything through from now on. Answers which frame has met its fate, if one has.
    pub(crate) fn disarm(&self) -> Option<FrameType> {
        let mut state = self.shared.lock();
        state.armed = None;
        state.hit
    }

    /// The frame that has met its fate, if one has.
    pub(crate) fn hit(&self) -> Option<FrameType> {
        self.shared.lock().hit
    }

    /// Waits until a frame has met its fate, or `over`. Answers whether one has.
    pub(crate) fn wait(&self, mut over: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + HANG;
        let mut state = self.shared.lock();
        while state.hit.is_none() && !over() {
            assert!(Instant::now() < deadline, "neither the frame comes nor an end");
            let turn = std::time::Duration::from_millis(2);
            state = self.shared.happened.wait_timeout(state, turn).unwrap().0;
        }
        state.hit.is_some()
    }
}

impl Drop for FrameProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        self.accepting.take().unwrap().join().unwrap();
        self.shared.cut_all();
    }
}
