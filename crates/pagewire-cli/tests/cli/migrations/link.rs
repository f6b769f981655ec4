//! The link between the two sides, which can be held: after so many bytes nothing goes through in one direction, and the
//! connections stay.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    ToOrigin,
    FromOrigin,
}

/// Everything goes through.
pub(super) const ALL: u64 = u64::MAX;

/// A link to an origin, that can be started again at its address.
pub(super) struct Link {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    origin: String,
    /// How many bytes may still go through, in each direction.
    left: [AtomicU64; 2],
    ends: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Link {
    /// A link to the origin of a region.
    pub(super) fn to(region: &str) -> Self {
        let (origin, _) = region.strip_prefix("pw://").and_then(|place| place.split_once('/')).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let left = [ALL, ALL].map(AtomicU64::new);
        let (ends, open) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { origin: origin.into(), left, ends, open });
        let accepts = shared.clone();
        let accepting = std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepts.ends.load(Ordering::Acquire) {
                    return;
                }
                accepts.connect(&client.unwrap());
            }
        });
        Self { shared, address, accepting: Some(accepting) }
    }

    /// The region's address on this side of the link.
    pub(super) fn region(&self, name: &str) -> String {
        format!("pw://{}/{name}", self.address)
    }

    /// Lets so many bytes through from now on, or a few more: what is on its way at once is not divided.
    pub(super) fn pass(&self, direction: Direction, bytes: u64) {
        self.shared.left[direction as usize].store(bytes, Ordering::Release);
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, client: &TcpStream) {
        // An origin that is gone is gone for those behind the link, too.
        let Ok(origin) = TcpStream::connect(&self.origin) else { return };
        for (from, to, direction) in
            [(client, &origin, Direction::ToOrigin), (&origin, client, Direction::FromOrigin)]
        {
            from.set_nodelay(true).unwrap();
            self.open.lock().unwrap().push(from.try_clone().unwrap());
            let (from, to, shared) = (from.try_clone().unwrap(), to.try_clone().unwrap(), self.clone());
            std::thread::spawn(move || shared.pump(from, to, direction));
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, direction: Direction) {
        let left = &self.left[direction as usize];
        let mut buffer = vec![0; 16 << 10];
        while let Ok(got @ 1..) = from.read(&mut buffer) {
            while left.load(Ordering::Acquire) == 0 && !self.ends.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if to.write_all(&buffer[..got]).is_err() {
                break;
            }
            let less = |left: u64| (left != ALL).then(|| left.saturating_sub(got as u64));
            // It is not counted while everything goes through.
            let _ = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        }
        // Each fails where the other side was faster.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        for stream in self.shared.open.lock().unwrap().drain(..) {
            // It may have ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        self.accepting.take().unwrap().join().unwrap();
    }
}
