//! A TCP proxy that treats what goes through it badly, as a seed has it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pagewire::address::PeerAddress;

/// What happens to connections.
#[derive(Clone, Copy, Default)]
pub(crate) struct Weather {
    /// How many connections are cut, of those that come first.
    pub(crate) cuts: usize,
    /// After how many bytes from the server, at most.
    pub(crate) cut_within: u64,
    /// After how many bytes to the server, at most; 0 is never.
    pub(crate) cut_up_within: u64,
    /// Where a connection would be cut, a bit is flipped instead, and it goes on.
    pub(crate) flips: bool,
    /// How long each piece of up to 64 KiB is held back, at most.
    pub(crate) delay: Duration,
}

pub(crate) struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    server: String,
    is_tls: bool,
    weather: Weather,
    random: AtomicU64,
    stop: AtomicBool,
    /// While it is set, nothing goes through from the server; the connections stay.
    stalled: AtomicBool,
    accepted: AtomicUsize,
    cut: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Shared {
    /// SplitMix64.
    fn draw(&self, below: u64) -> u64 {
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below.max(1)
    }

    /// Passes on what comes from `from`, until the end or the cut.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, mut left: Option<u64>) {
        let mut buffer = vec![0; 64 << 10];
        let mut flip = 0;
        loop {
            let most = left.map_or(buffer.len(), |left| buffer.len().min(left as usize));
            if most == 0 {
                self.cut.fetch_add(1, Ordering::SeqCst);
                if !self.weather.flips {
                    break;
                }
                (left, flip) = (None, 1);
                continue;
            }
            let Ok(got @ 1..) = from.read(&mut buffer[..most]) else { break };
            buffer[0] ^= std::mem::take(&mut flip);
            if !self.weather.delay.is_zero() {
                std::thread::sleep(Duration::from_micros(self.draw(self.weather.delay.as_micros() as u64)));
            }
            while self.stalled.load(Ordering::Acquire) && !self.stop.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if to.write_all(&buffer[..got]).is_err() {
                break;
            }
            left = left.map(|left| left - got as u64);
        }
        // Each fails where the other side was faster.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn connect(self: &Arc<Self>, client: TcpStream) {
        // A server that is gone is gone for those behind the proxy, too.
        let Ok(server) = TcpStream::connect(&self.server) else { return };
        let number = self.accepted.fetch_add(1, Ordering::SeqCst);
        let Weather { cuts, cut_within, cut_up_within, .. } = self.weather;
        let left = (number < cuts).then(|| self.draw(cut_within));
        let left_up = (number < cuts && cut_up_within > 0).then(|| self.draw(cut_up_within));
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        let (up, down) = (self.clone(), self.clone());
        self.open.lock().unwrap().push(client.try_clone().unwrap());
        let (client_too, server_too) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || up.pump(client_too, server_too, left_up));
        std::thread::spawn(move || down.pump(server, client, left));
    }
}

impl Proxy {
    /// A proxy before `server`.
    pub(crate) fn new(server: &PeerAddress, seed: u64, weather: Weather) -> Self {
        let (PeerAddress::Tcp(place) | PeerAddress::Tls(place)) = server else { panic!("a TCP server") };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: place.clone(),
            is_tls: matches!(server, PeerAddress::Tls(_)),
            weather,
            random: AtomicU64::new(seed),
            stop: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            cut: AtomicUsize::new(0),
            open: Mutex::default(),
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
        let place = self.address.to_string();
        if self.shared.is_tls { PeerAddress::Tls(place) } else { PeerAddress::Tcp(place) }
    }

    /// Holds back everything from the server, or lets it go.
    pub(crate) fn stall(&self, stalled: bool) {
        self.shared.stalled.store(stalled, Ordering::Release);
    }

    /// Cuts every connection that there is.
    pub(crate) fn cut_all(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            self.shared.cut.fetch_add(1, Ordering::SeqCst);
            // It may have ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// How many connections were cut.
    pub(crate) fn cuts(&self) -> usize {
        self.shared.cut.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        self.accepting.take().unwrap().join().unwrap();
    }
}
