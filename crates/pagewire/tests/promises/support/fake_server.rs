//! A server that lies: a bare listener, and a function that answers as the test has it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use pagewire::address::PeerAddress;
use pagewire_core::wire::{HelloReply, RegionInfo, Reply, Request};

use super::raw::Raw;

pub(crate) struct FakeServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

/// A region of `length` bytes at epoch 1.
pub(crate) fn info(length: u64) -> RegionInfo {
    RegionInfo {
        id: [7; 16],
        epoch: 1,
        length,
        capacity: length,
        granularity: 65536,
        read_only: true,
        commit: false,
        hash: false,
    }
}

/// What an honest server answers to HELLO.
pub(crate) fn welcome() -> Reply {
    Reply::Hello(HelloReply { version: 1, features: 0, instance: [3; 16], agent: "a fake".into() })
}

impl FakeServer {
    /// Runs `talk` with each connection, on a thread of its own.
    pub(crate) fn talking(talk: impl Fn(&mut Raw) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (talk, stopped) = (Arc::new(talk), stop.clone());
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let talk = talk.clone();
                std::thread::spawn(move || talk(&mut Raw::new(stream.unwrap())));
            }
        });
        Self { address, stop, accepting: Some(accepting) }
    }

    /// Greets like an honest server, opens a region of `length` bytes, and leaves the rest to `answer`.
    pub(crate) fn of_region(
        length: u64,
        answer: impl Fn(&mut Raw, u64, Request) + Send + Sync + 'static,
    ) -> Self {
        Self::answering(move |raw, id, request| match request {
            Request::Open { .. } => raw.answer(id, &Reply::Opened { handle: 1, info: info(length) }),
            request => answer(raw, id, request),
        })
    }

    /// Greets like an honest server, and leaves the rest to `answer`.
    pub(crate) fn answering(answer: impl Fn(&mut Raw, u64, Request) + Send + Sync + 'static) -> Self {
        Self::talking(move |raw| {
            while let Some((header, body)) = raw.frame() {
                match Request::decode(&header, &body) {
                    Ok(Request::Hello(_)) => raw.answer(header.id, &welcome()),
                    Ok(request) if header.kind.0 >> 12 == 0 => answer(raw, header.id, request),
                    _ => {}
                }
            }
        })
    }

    pub(crate) fn address(&self) -> PeerAddress {
        PeerAddress::Tcp(self.address.to_string())
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        self.accepting.take().unwrap().join().unwrap();
    }
}
