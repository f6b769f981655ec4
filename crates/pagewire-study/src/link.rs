//! A point-to-point link with a true round-trip time, for kernels without netem.
//!
//! Two network namespaces have a TUN device each, and this process carries the packets between them,
//! each delayed by half the round trip. The kernel's own TCP runs over it and sees the round-trip
//! time, the rate, the queue and the losses as it would between two hosts. Segments of up to 64 KiB
//! travel whole, as they do within a network card that offloads segmentation: that is what makes it
//! fast, and why a loss is the loss of a whole segment, not of one packet of 9000 bytes.
//!
//! - `direction`: one direction: the queue and its two threads.
//! - `frames`: the buffers that packets wait in.
//! - `measure`: what the link really does, measured from its ends.

mod direction;
mod frames;
mod measure;

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use pagewire_sys::event::EventFd;
use pagewire_sys::net::{NetNamespace, Tun, configure, loopback_up};

use direction::Direction;
pub use measure::LinkMeasured;

/// What a link does to packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkOptions {
    /// There and back; half of it in each direction.
    pub round_trip: Duration,
    /// Bits per second in each direction, headers included. None is as fast as this machine can.
    pub rate: Option<u64>,
    /// Bytes that may wait in each direction, besides those that a link of this rate holds on their
    /// way. What comes to a full queue is dropped. None is [`DEFAULT_QUEUE`].
    pub queue: Option<u64>,
    /// What is lost at random. None is nothing.
    pub loss: Option<Loss>,
}

impl LinkOptions {
    /// A link of this round-trip time, without limits nor losses.
    pub fn new(round_trip: Duration) -> Self {
        Self { round_trip, ..Self::default() }
    }
}

/// Random loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Of a thousand segments, how many are lost, in each direction.
    pub per_mille: u32,
    /// Equal seeds lose the same segments of equal traffic.
    pub seed: u64,
}

/// The queue of a link in each direction unless told otherwise, in bytes: more than TCP ever has in
/// flight here, so that nothing is dropped unless it was asked for.
pub const DEFAULT_QUEUE: u64 = 256 << 20;

/// The name of the device in either namespace.
pub const DEVICE: &str = "wan0";

/// The address of end a.
pub const ADDRESS_A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The address of end b.
pub const ADDRESS_B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// Bytes of the longest packet, as on a network with jumbo frames.
const MTU: u32 = 9000;

/// Packets that a device holds before this process has read them: enough for every window that TCP
/// may have here, so that the one queue that drops is the link's own.
const DEVICE_QUEUE: u32 = 20_000;

/// What one direction of a link has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that arrived, headers included.
    pub bytes: u64,
    /// Segments that arrived.
    pub segments: u64,
    /// Segments that did not: lost at random, or come to a full queue.
    pub dropped: u64,
}

/// A link between two network namespaces of its own. It is gone, with its threads, its devices and
/// (unless somebody else is in them) its namespaces, when this is dropped.
///
/// A thread is on the link by [`NetNamespace::run`] of [`Link::a`] or [`Link::b`]; so are the threads
/// and processes that it starts.
pub struct Link {
    ends: [NetNamespace; 2],
    directions: [Arc<Direction>; 2],
    stop: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Link {
    /// Makes the namespaces and the devices, and begins to carry packets.
    ///
    /// # Errors
    ///
    /// Permission denied without `CAP_SYS_ADMIN` and `CAP_NET_ADMIN`; not found without
    /// `/dev/net/tun`.
    pub fn new(options: LinkOptions) -> io::Result<Self> {
        let (a, device_a) = end(ADDRESS_A)?;
        let (b, device_b) = end(ADDRESS_B)?;
        let there = Direction::new(device_a.clone(), device_b.clone(), &options, 0);
        let back = Direction::new(device_b, device_a, &options, 1);
        let mut link = Self {
            ends: [a, b],
            directions: [Arc::new(there), Arc::new(back)],
            stop: Arc::new(EventFd::new()?),
            threads: Vec::new(),
        };
        for (direction, name) in link.directions.clone().into_iter().zip(["ab", "ba"]) {
            let (reading, stop) = (direction.clone(), link.stop.clone());
            link.spawn(format!("link-{name}-take"), move || reading.take(&stop))?;
            link.spawn(format!("link-{name}-give"), move || direction.give())?;
        }
        Ok(link)
    }

    /// The namespace with the address [`ADDRESS_A`].
    pub fn a(&self) -> &NetNamespace {
        &self.ends[0]
    }

    /// The namespace with the address [`ADDRESS_B`].
    pub fn b(&self) -> &NetNamespace {
        &self.ends[1]
    }

    /// What went from a to b so far.
    pub fn a_to_b(&self) -> Traffic {
        self.directions[0].traffic()
    }

    /// What went from b to a so far.
    pub fn b_to_a(&self) -> Traffic {
        self.directions[1].traffic()
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // An event that cannot be signalled is one that is signalled already.
        let _ = self.stop.signal();
        self.directions.iter().for_each(|direction| direction.close());
        for thread in self.threads.drain(..) {
            // One that has panicked has ended, too.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("a_to_b", &self.a_to_b()).field("b_to_a", &self.b_to_a()).finish()
    }
}

/// A namespace with a device of this address in it.
fn end(address: Ipv4Addr) -> io::Result<(NetNamespace, Arc<Tun>)> {
    let namespace = NetNamespace::create()?;
    let device = namespace.run(|| {
        let device = Tun::create(DEVICE, true)?;
        configure(DEVICE, address, 24, MTU, DEVICE_QUEUE)?;
        loopback_up()?;
        Ok::<_, io::Error>(device)
    })??;
    Ok((namespace, Arc::new(device)))
}
